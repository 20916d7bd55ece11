//! The consumer's side: receipts in the consumer's own transaction.

mod schema;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mongodb::{
    Client, ClientSession, Collection, Database,
    bson::{Bson, Document, doc},
};
use outbox_core::{
    EventError, Finding, Inbox, InboxError, Receipt, StoreError,
    inbox::{EventIdentity, check_consumer, check_purge_age},
};

use crate::{
    MongoConfig,
    codec::millis,
    config::Names,
    database::{index, transaction::is_open},
    error::{Fault, not_migrated, transaction_error},
    schema::VERSION_ID,
};

pub use schema::inbox_migration_script;

/// The most receipts that one command removes: their ids, of 800 bytes at most, fit into it.
const RECEIPTS_PER_COMMAND: usize = 5_000;

/// The inbox of one consumer, in a transaction of the consumer. Has no connection of its own, since the
/// session brings its client, and is cheap to clone.
///
/// ```no_run
/// # async fn handle(client: mongodb::Client, event: outbox_core::ReceivedEvent) -> Result<(), Box<dyn std::error::Error>> {
/// use mongodb::bson::{Document, doc};
/// use outbox_core::{Inbox, Receipt};
/// use outbox_mongo::{MongoConfig, MongoInbox};
///
/// let inbox = MongoInbox::new(&MongoConfig::builder().database("billing").build()?, "billing")?;
/// let mut session = client.start_session().await?;
/// session.start_transaction().await?;
/// if inbox.receive(&mut session, &event.identity).await? == Receipt::New {
///     let invoices = client.database("billing").collection::<Document>("invoices");
///     invoices.insert_one(doc! { "order_id": 4711 }).session(&mut session).await?;
/// }
/// session.commit_transaction().await?;
/// // Only now acknowledge the message.
/// # Ok(()) }
/// ```
///
/// A session without a transaction is refused, as [`MongoOutbox`](crate::MongoOutbox) refuses it.
///
/// MongoDB's transactions do not wait for each other: beside another transaction that handles or purges the
/// same event, the answer is [`StoreErrorKind::Conflict`](outbox_core::StoreErrorKind::Conflict). The server
/// has ended the transaction then: abort it, and begin again.
#[derive(Clone)]
pub struct MongoInbox {
    consumer: Arc<str>,
    names: Arc<Names>,
}

impl MongoInbox {
    /// The inbox of `consumer` in the collections that `config` names: `outbox_inbox…` unless told otherwise.
    /// They are in the consumer's database, which need not have an outbox. The url of `config` is not needed,
    /// but its database is.
    ///
    /// # Errors
    /// A name that [`check_consumer`] refuses.
    pub fn new(config: &MongoConfig, consumer: &str) -> Result<Self, EventError> {
        check_consumer(consumer)?;
        Ok(Self { consumer: consumer.into(), names: Arc::clone(&config.names) })
    }

    /// Creates the inbox's collections. Does nothing where they are there; two processes may do it at once.
    ///
    /// # Errors
    /// [`StoreErrorKind::Schema`](outbox_core::StoreErrorKind::Schema) if the collections are of a newer
    /// version than this program knows.
    pub async fn migrate(&self, client: &Client) -> Result<(), StoreError> {
        schema::migrate(client, &self.names).await
    }

    /// Looks for whatever would break a guarantee, and names all of it at once: a server without a replica
    /// set, missing collections, indexes and privileges, another version, events that can never be purged.
    /// Changes nothing.
    ///
    /// # Errors
    /// Where the server cannot be asked.
    pub async fn check(&self, client: &Client) -> Result<Vec<Finding>, StoreError> {
        schema::check(client, &self.names, &self.consumer).await
    }

    fn database(&self, session: &ClientSession) -> Database {
        session.client().database(&self.names.database)
    }

    fn receipts(&self, session: &ClientSession) -> Collection<Document> {
        self.database(session).collection(&self.names.inbox)
    }

    fn horizons(&self, session: &ClientSession) -> Collection<Document> {
        self.database(session).collection(&self.names.inbox_horizons)
    }

    /// Equal only to what has the same fields in the same order.
    fn receipt_id(&self, event: &EventIdentity) -> Document {
        doc! { "consumer": &*self.consumer, "source": event.source(), "id": event.id() }
    }

    fn horizon_id(&self, source: &str) -> Document {
        doc! { "consumer": &*self.consumer, "source": source }
    }

    async fn receive_in(&self, session: &mut ClientSession, event: &EventIdentity) -> Result<Receipt, Fault> {
        let receipts = self.receipts(session);
        let id = self.receipt_id(event);
        // A date has milliseconds, and an event's time microseconds.
        let time = event.time().map(|time| time.timestamp_micros());
        let mut fields = doc! { "received_at": { "$ifNull": ["$received_at", "$$NOW"] } };
        if let Some(time) = time {
            fields.insert("time_us", doc! { "$ifNull": ["$time_us", time] });
        }
        // A plain insert of what is there would end the transaction.
        let write = receipts.update_one(doc! { "_id": id.clone() }, vec![doc! { "$set": fields }]);
        if write.upsert(true).session(&mut *session).await?.upserted_id.is_none() {
            return Ok(Receipt::Seen);
        }
        // The transaction's snapshot has a purge that ended before it, and with it what that purge raised.
        // One that ended later has removed a document with this id that the snapshot lacks, or still has: the
        // first is a conflict for the server, and the second was seen above.
        let Some(time) = time else { return Ok(Receipt::New) };
        let horizons = self.horizons(session);
        let horizon = horizons.find_one(doc! { "_id": self.horizon_id(event.source()) });
        let horizon = horizon.session(&mut *session).await?;
        let too_old =
            horizon.is_some_and(|horizon| horizon.get_i64("horizon_us").is_ok_and(|horizon| time <= horizon));
        if !too_old {
            return Ok(Receipt::New);
        }
        receipts.delete_one(doc! { "_id": id }).session(session).await?;
        Ok(Receipt::TooOld)
    }

    /// How many receipts were removed; `None` where the collections are not there.
    async fn purge_in(
        &self,
        session: &mut ClientSession,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<Option<u64>, Fault> {
        let meta = self.database(session).collection::<Document>(&self.names.inbox_meta);
        let now = meta.find_one(doc! { "_id": VERSION_ID }).projection(doc! { "now": "$$NOW" });
        let now = now.session(&mut *session).await?;
        let now = now.and_then(|document| document.get_datetime("now").ok().copied());
        let Some(now) = now else { return Ok(None) };
        let latest = now.timestamp_millis().saturating_sub(millis(older_than)).saturating_mul(1000);
        let receipts = self.receipts(session);
        let old = doc! { "_id.consumer": &*self.consumer, "time_us": { "$lt": latest } };
        let find = receipts.find(old).hint(index(schema::TIME)).sort(doc! { "time_us": 1 });
        let find = find.limit(rows_max.into()).projection(doc! { "time_us": 1 });
        let mut cursor = find.session(&mut *session).await?;
        let (mut ids, mut horizons) = (Vec::new(), BTreeMap::new());
        while cursor.advance(&mut *session).await? {
            let receipt = cursor.deserialize_current()?;
            let (Ok(id), Ok(time)) = (receipt.get_document("_id"), receipt.get_i64("time_us")) else {
                continue;
            };
            let source = id.get_str("source").unwrap_or_default().to_owned();
            let horizon = horizons.entry(source).or_insert(time);
            *horizon = time.max(*horizon);
            ids.push(Bson::Document(id.clone()));
        }
        let mut removed = 0;
        for ids in ids.chunks(RECEIPTS_PER_COMMAND) {
            let remove = receipts.delete_many(doc! { "_id": { "$in": ids } }).session(&mut *session);
            removed += remove.await?.deleted_count;
        }
        let collection = self.horizons(session);
        for (source, horizon) in horizons {
            let raise = doc! { "$max": { "horizon_us": horizon }, "$currentDate": { "changed_at": true } };
            let raise = collection.update_one(doc! { "_id": self.horizon_id(&source) }, raise);
            raise.upsert(true).session(&mut *session).await?;
        }
        Ok(Some(removed))
    }
}

impl std::fmt::Debug for MongoInbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MongoInbox")
            .field("consumer", &self.consumer)
            .field("database", &self.names.database)
            .field("collection", &self.names.inbox)
            .finish_non_exhaustive()
    }
}

impl Inbox<ClientSession> for MongoInbox {
    async fn receive(
        &self,
        transaction: &mut ClientSession,
        event: &EventIdentity,
    ) -> Result<Receipt, InboxError> {
        const WHAT: &str = "ask the inbox";
        insist_on_transaction(transaction, WHAT).await?;
        let received = self.receive_in(transaction, event).await;
        Ok(received.map_err(|fault| transaction_error(WHAT, fault))?)
    }

    async fn purge(
        &self,
        transaction: &mut ClientSession,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, InboxError> {
        const WHAT: &str = "purge the inbox";
        check_purge_age(older_than)?;
        insist_on_transaction(transaction, WHAT).await?;
        // To the server, no limit at all is a limit of zero.
        if rows_max == 0 {
            return Ok(0);
        }
        let purged = self.purge_in(transaction, older_than, rows_max).await;
        let purged = purged.map_err(|fault| transaction_error(WHAT, fault))?;
        Ok(purged.ok_or_else(|| not_migrated(WHAT, &self.names.database, &self.names.inbox))?)
    }
}

async fn insist_on_transaction(session: &mut ClientSession, what: &str) -> Result<(), InboxError> {
    match is_open(session).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(InboxError::NoTransaction),
        Err(error) => Err(transaction_error(what, error).into()),
    }
}
