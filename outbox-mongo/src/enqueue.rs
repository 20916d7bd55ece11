//! The writer's side: events in the caller's own transaction.

use std::{collections::HashMap, sync::Arc};

use mongodb::{
    ClientSession, Collection,
    bson::{
        Binary, Bson, DateTime as BsonDateTime, Document, RawDocumentBuf, Timestamp, doc, spec::BinarySubtype,
    },
    error::{Error, ErrorKind},
};
use outbox_core::{
    AggregateKey, Enqueue, EnqueueError, Event, StoreError, StoreErrorKind, statement::payload_columns,
    store::Sequence,
};

use crate::{
    MongoConfig,
    codec::{
        document::{id_of, partition_of},
        sequence::sequence_of,
    },
    config::Names,
    database::transaction::is_open,
    error::{DUPLICATE_KEY, code_of, store_error},
};

/// The most events that are written before their sequences are asked for.
const EVENTS_PER_STATEMENT: usize = 5_000;

const WHAT: &str = "write an event";

/// Writes events inside a transaction of the service. Has no connection of its own, since the session brings
/// its client, and is cheap to clone.
///
/// ```no_run
/// # async fn place(client: mongodb::Client, outbox: outbox_mongo::MongoOutbox) -> Result<(), Box<dyn std::error::Error>> {
/// use mongodb::bson::doc;
/// use outbox_core::{Enqueue, Event};
///
/// let mut session = client.start_session().await?;
/// session.start_transaction().await?;
/// let orders = client.database("shop").collection::<mongodb::bson::Document>("orders");
/// orders.update_one(doc! { "_id": 4711 }, doc! { "$set": { "state": "placed" } }).session(&mut session).await?;
/// let event = Event::builder("order", "4711", "order.placed").payload("{}").build()?;
/// outbox.enqueue(&mut session, &event).await?;
/// session.commit_transaction().await?;
/// # Ok(()) }
/// ```
///
/// A session without a transaction is refused. After [`EnqueueError::Duplicate`] and [`EnqueueError::Store`]
/// the server has ended the transaction: run the whole of it again, or abort it. An error with a kind of
/// [`StoreErrorKind::Conflict`] is one to run it again; the driver's own, which has the label
/// `TransientTransactionError`, is among its sources.
#[derive(Debug, Clone)]
pub struct MongoOutbox {
    names: Arc<Names>,
    payload_bytes_max: usize,
}

impl MongoOutbox {
    /// The writer's side of the outbox that `config` names. Its url is not needed, but its database is.
    pub fn new(config: &MongoConfig) -> Self {
        Self { names: Arc::clone(&config.names), payload_bytes_max: config.payload_bytes_max }
    }

    async fn admit(&self, session: &mut ClientSession, events: &[Event]) -> Result<(), EnqueueError> {
        for event in events {
            event.check_payload(self.payload_bytes_max)?;
        }
        match is_open(session).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(EnqueueError::NoTransaction),
            Err(error) => Err(store_error(WHAT, error).into()),
        }
    }

    /// The sequences that the server gave.
    async fn sequences(
        &self,
        collection: &Collection<RawDocumentBuf>,
        session: &mut ClientSession,
        events: &[Event],
    ) -> Result<Vec<Sequence>, Error> {
        let ids: Vec<Bson> = events.iter().map(|event| id_of(event.id())).collect();
        let find = collection.find(doc! { "_id": { "$in": ids } }).projection(doc! { "sequence": 1 });
        let mut cursor = find.batch_size(u32::MAX >> 1).session(&mut *session).await?;
        let mut found: HashMap<[u8; 16], Sequence> = HashMap::with_capacity(events.len());
        while cursor.advance(session).await? {
            let document = cursor.current();
            let id = document.get_binary("_id").ok().and_then(|id| <[u8; 16]>::try_from(id.bytes).ok());
            let sequence = document.get_timestamp("sequence").ok().and_then(sequence_of);
            found.extend(id.zip(sequence));
        }
        Ok(events.iter().filter_map(|event| found.get(event.id().as_bytes()).copied()).collect())
    }

    async fn insert(
        &self,
        session: &mut ClientSession,
        events: &[Event],
    ) -> Result<Vec<Sequence>, EnqueueError> {
        let database = session.client().database(&self.names.database);
        let documents: Vec<Document> = events.iter().map(document_of).collect();
        let collection = database.collection::<Document>(&self.names.outbox);
        let inserted = match <[Document; 1]>::try_from(documents) {
            Ok([document]) => collection.insert_one(document).session(&mut *session).await.map(drop),
            // In the order given, which is that of the sequences.
            Err(documents) => {
                collection.insert_many(documents).ordered(true).session(&mut *session).await.map(drop)
            }
        };
        inserted.map_err(|error| refusal(events, error))?;
        let collection = database.collection::<RawDocumentBuf>(&self.names.outbox);
        let sequences =
            self.sequences(&collection, session, events).await.map_err(|error| store_error(WHAT, error))?;
        if sequences.len() == events.len() && sequences.is_sorted_by(|left, right| left < right) {
            return Ok(sequences);
        }
        let what = "cannot write events: the server has not given them ascending sequences (is it sharded?)";
        Err(StoreError::new(StoreErrorKind::Unexpected, what).into())
    }
}

impl Enqueue<ClientSession> for MongoOutbox {
    async fn enqueue(
        &self,
        transaction: &mut ClientSession,
        event: &Event,
    ) -> Result<Sequence, EnqueueError> {
        let sequences = self.enqueue_all(transaction, std::slice::from_ref(event)).await?;
        Ok(sequences.first().copied().unwrap_or_default())
    }

    async fn enqueue_all(
        &self,
        transaction: &mut ClientSession,
        events: &[Event],
    ) -> Result<Vec<Sequence>, EnqueueError> {
        self.admit(transaction, events).await?;
        let mut sequences = Vec::with_capacity(events.len());
        for events in events.chunks(EVENTS_PER_STATEMENT) {
            sequences.extend(self.insert(transaction, events).await?);
        }
        Ok(sequences)
    }
}

/// What is a default is left out: a document is the smaller, and the relay reads it the same.
fn document_of(event: &Event) -> Document {
    let key = AggregateKey::new(event.aggregate_type(), event.aggregate_id());
    let payload = match payload_columns(event) {
        (Some(text), _) => Bson::from(text),
        (None, Some(bytes)) => {
            Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() })
        }
        (None, None) => Bson::Null,
    };
    let mut document = doc! {
        "_id": id_of(event.id()),
        // Filled by the server, because it is empty and on the first level.
        "sequence": Timestamp { time: 0, increment: 0 },
        "partition": i32::from(partition_of(&key)),
        "aggregate_type": event.aggregate_type(),
        "aggregate_id": event.aggregate_id(),
        "event_type": event.event_type(),
        "version": event.version(),
        "payload": payload,
        "content_type": event.content_type(),
        // The second is the server's, by the sequence; this is for what is below it.
        "created_at": BsonDateTime::now(),
    };
    if !event.headers().is_empty() {
        let headers = event.headers().iter().map(|(name, value)| (name.clone(), Bson::from(value.clone())));
        document.insert("headers", headers.collect::<Document>());
    }
    if let Some(topic) = event.topic() {
        document.insert("topic", topic);
    }
    if let Some(at) = event.available_at() {
        // Up to the next millisecond, since it is not to be sent sooner.
        let millis = at.timestamp_millis() + i64::from(at.timestamp_subsec_nanos() % 1_000_000 > 0);
        document.insert("available_at", BsonDateTime::from_millis(millis));
    }
    document
}

fn refusal(events: &[Event], error: Error) -> EnqueueError {
    if code_of(&error) == Some(DUPLICATE_KEY) {
        let index = match &*error.kind {
            ErrorKind::InsertMany(many) => {
                many.write_errors.as_ref().and_then(|errors| Some(errors.first()?.index))
            }
            _ => Some(0),
        };
        if let Some(event) = index.and_then(|index| events.get(index)) {
            return EnqueueError::Duplicate(event.id());
        }
    }
    store_error(WHAT, error).into()
}
