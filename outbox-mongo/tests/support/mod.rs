//! A database of its own for each test, on a real server.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    dead_code,
    unused_imports,
    reason = "helpers of tests, not all of them used by each"
)]

use std::time::Duration;

use mongodb::{
    Client, ClientSession, Collection, Database,
    bson::{Document, doc},
};
use outbox_conformance::testing;
pub(crate) use outbox_conformance::testing::{event, key, request, sequences, settle};
use outbox_core::{
    Enqueue as _, Event, OutboxStore as _,
    store::{Lease, RelayId, Sequence},
};
use outbox_mongo::{MongoConfig, MongoOutbox, MongoStore};
use uuid::Uuid;

const VARIABLE: &str = "OUTBOX_TEST_MONGODB_URL";

/// The server, or a line that says which is missing.
pub(crate) fn url() -> Option<String> {
    address(VARIABLE)
}

/// What the variable says, or a line that says what is missing.
pub(crate) fn address(variable: &str) -> Option<String> {
    testing::address("MongoDB", "mongodb", variable)
}

/// A migrated database that no other test sees.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) url: String,
    pub(crate) name: String,
    pub(crate) config: MongoConfig,
    pub(crate) store: MongoStore,
    pub(crate) outbox: MongoOutbox,
    /// The service's own client, and the database by it.
    pub(crate) client: Client,
    pub(crate) database: Database,
}

impl Place {
    pub(crate) async fn new() -> Option<Self> {
        let place = Self::empty().await?;
        place.store.migrate().await.unwrap();
        Some(place)
    }

    /// A database without collections.
    pub(crate) async fn empty() -> Option<Self> {
        let url = url()?;
        let name = format!("t_{}", Uuid::now_v7().simple());
        let config = MongoConfig::builder().url(&url).database(&name).build().unwrap();
        let store = MongoStore::connect_lazy(&config).await.unwrap();
        let client = Client::with_uri_str(&url).await.unwrap();
        let database = client.database(&name);
        let outbox = MongoOutbox::new(&config);
        Some(Self { url, name, config, store, outbox, client, database })
    }

    pub(crate) async fn drop(self) {
        self.database.drop().await.unwrap();
    }

    pub(crate) fn collection(&self, name: &str) -> Collection<Document> {
        self.database.collection(name)
    }

    pub(crate) async fn count(&self, name: &str) -> u64 {
        self.collection(name).count_documents(doc! {}).await.unwrap()
    }

    /// The server's clock.
    pub(crate) async fn now(&self) -> mongodb::bson::DateTime {
        let hello = self.database.run_command(doc! { "hello": 1 }).await.unwrap();
        *hello.get_datetime("localTime").unwrap()
    }

    /// A transaction of the service.
    pub(crate) async fn begin(&self) -> ClientSession {
        let mut session = self.client.start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        session
    }

    pub(crate) async fn commit(&self, events: &[Event]) -> Vec<Sequence> {
        let mut session = self.begin().await;
        let sequences = self.outbox.enqueue_all(&mut session, events).await.unwrap();
        session.commit_transaction().await.unwrap();
        sequences
    }

    /// A relay that owns everything.
    pub(crate) async fn relay(&self) -> (RelayId, Vec<Lease>) {
        let relay = self.store.join(Duration::from_secs(60)).await.unwrap();
        (relay, self.claim_all(relay).await)
    }

    pub(crate) async fn claim_all(&self, relay: RelayId) -> Vec<Lease> {
        testing::claim_all(&self.store, relay).await
    }
}

/// Makes an account with these actions by collection.
pub(crate) async fn account(place: &Place, name: &str, grants: &[(&str, &[&str])]) -> String {
    let privilege = |(collection, actions): &(&str, &[&str])| {
        doc! { "resource": { "db": &place.name, "collection": *collection }, "actions": actions.to_vec() }
    };
    let privileges: Vec<Document> = grants.iter().map(privilege).collect();
    let role = doc! { "createRole": name, "privileges": privileges, "roles": [] };
    place.database.run_command(role).await.unwrap();
    let user = doc! { "createUser": name, "pwd": "secret", "roles": [name] };
    place.database.run_command(user).await.unwrap();
    let url = place.url.replace("outbox:outbox@", &format!("{name}:secret@"));
    url.replace("authSource=admin", &format!("authSource={}", place.name))
}

pub(crate) async fn remove_account(place: &Place, name: &str) {
    place.database.run_command(doc! { "dropUser": name }).await.unwrap();
    place.database.run_command(doc! { "dropRole": name }).await.unwrap();
}
