//! MongoDB: a database for each scenario.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use mongodb::{
    Client, ClientSession, Collection,
    bson::{Bson, Document, doc},
    error::{Error, TRANSIENT_TRANSACTION_ERROR},
};
use outbox::{
    Enqueue as _, Event, OutboxAdmin, OutboxStore,
    mongo::{MongoConfig, MongoOutbox, MongoStore},
};
use uuid::Uuid;

use super::database::{ACCOUNTS, Change, Database, End, Failure, Fate, StoreAt};
use crate::servers;

pub(crate) struct Mongo {
    address: String,
    name: String,
    store: MongoStore,
    outbox: MongoOutbox,
    client: Client,
}

impl Mongo {
    pub(crate) async fn fresh() -> Option<Self> {
        let address = servers::address("mongodb", "OUTBOX_TEST_MONGODB_URL")?;
        let name = format!("service_{}", Uuid::now_v7().simple());
        let config = config(&address, &name);
        let store = MongoStore::connect_lazy(&config).await.unwrap();
        store.migrate().await.unwrap();
        let client = Client::with_uri_str(&address).await.unwrap();
        let mongo = Self { address, name, store, outbox: MongoOutbox::new(&config), client };
        let account = |number| doc! { "_id": format!("account-{number}"), "changes": 0_i64 };
        mongo.collection("accounts").insert_many((0..ACCOUNTS).map(account)).await.unwrap();
        mongo.client.database(&mongo.name).create_collection("changes").await.unwrap();
        Some(mongo)
    }

    fn collection(&self, name: &str) -> Collection<Document> {
        self.client.database(&self.name).collection(name)
    }

    async fn begin_and_end(&self, changes: &[Change], open: Duration, end: End) -> Result<Fate, Failure> {
        let mut session = self.client.start_session().await?;
        session.start_transaction().await?;
        for change in changes {
            self.change(&mut session, change).await?;
        }
        tokio::time::sleep(open).await;
        if end == End::RollBack {
            session.abort_transaction().await?;
            return Ok(Fate::RolledBack);
        }
        match session.commit_transaction().await {
            Ok(()) => Ok(Fate::Committed),
            Err(error) if error.contains_label(TRANSIENT_TRANSACTION_ERROR) => Err(error.into()),
            Err(_) => Ok(Fate::Unknown),
        }
    }

    async fn change(&self, session: &mut ClientSession, change: &Change) -> Result<(), Failure> {
        let Change { account, events, topic } = change;
        let lock = doc! { "$inc": { "changes": events.len() as i64 } };
        self.collection("accounts").update_one(doc! { "_id": account }, lock).session(&mut *session).await?;
        let sequences = self.outbox.enqueue_all(session, events).await?;
        let note = |(event, sequence): (Uuid, i64)| {
            doc! { "_id": event.to_string(), "sequence": sequence, "account": account, "topic": topic }
        };
        let notes = events.iter().map(Event::id).zip(sequences).map(note);
        self.collection("changes").insert_many(notes).session(session).await?;
        Ok(())
    }
}

#[async_trait]
impl Database for Mongo {
    fn store_at(&self) -> StoreAt {
        StoreAt::Mongo { url: self.address.clone(), database: self.name.clone() }
    }

    fn store(&self) -> &dyn OutboxStore {
        &self.store
    }

    fn admin(&self) -> &dyn OutboxAdmin {
        &self.store
    }

    fn server(&self) -> Option<(&'static str, String)> {
        Some(("mongodb", self.address.clone()))
    }

    fn settles(&self) -> &'static [u8] {
        b"settles"
    }

    /// A transaction that was in another's way is run again as a whole, as MongoDB demands.
    async fn transact(&self, changes: &[Change], open: Duration, end: End) -> Result<Fate, String> {
        loop {
            match self.begin_and_end(changes, open, end).await {
                Err(error) if is_in_the_way(&error) => {}
                ended => return ended.map_err(|error| error.to_string()),
            }
        }
    }

    async fn committed(&self, topic: Option<&str>) -> Vec<(String, Uuid)> {
        let topic = topic.map_or(Bson::Null, Bson::from);
        let changes = self.collection("changes");
        let mut cursor = changes.find(doc! { "topic": topic }).sort(doc! { "sequence": 1 }).await.unwrap();
        let mut committed = Vec::new();
        while cursor.advance().await.unwrap() {
            let change = cursor.deserialize_current().unwrap();
            let event = change.get_str("_id").unwrap().parse().unwrap();
            committed.push((change.get_str("account").unwrap().to_owned(), event));
        }
        committed
    }

    async fn remove(&self) {
        self.client.database(&self.name).drop().await.unwrap();
    }
}

/// Two transactions wanted the same document: one of them had to go.
fn is_in_the_way(failure: &Failure) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(failure.as_ref());
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<Error>() {
            return error.contains_label(TRANSIENT_TRANSACTION_ERROR);
        }
        cause = error.source();
    }
    false
}

pub(super) async fn open(url: &str, database: &str) -> Arc<dyn OutboxStore> {
    Arc::new(MongoStore::connect_lazy(&config(url, database)).await.unwrap())
}

fn config(url: &str, database: &str) -> MongoConfig {
    MongoConfig::builder().url(url).database(database).build().unwrap()
}
