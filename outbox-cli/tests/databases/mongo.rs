//! MongoDB, in databases of one replica set.

use mongodb::{
    Client, Database,
    bson::{Document, Timestamp, doc},
};
use tokio::runtime::Runtime;

use crate::{Databases, address, new_names};

struct Sets {
    url: String,
    names: Vec<String>,
    client: Client,
    runtime: Runtime,
}

impl Sets {
    fn database(&self, index: usize) -> Database {
        self.client.database(&self.names[index])
    }

    fn run(&self, database: &Database, command: Document) {
        let answer = self.runtime.block_on(async { database.run_command(command).await.unwrap() });
        assert!(!answer.contains_key("writeErrors"), "{answer}");
    }

    fn rename(&self, index: usize, from: &str, to: &str) {
        let name = |collection: &str| format!("{}.{collection}", self.names[index]);
        self.run(&self.client.database("admin"), doc! { "renameCollection": name(from), "to": name(to) });
    }
}

/// What a driver of any language inserts. The server fills the sequence.
fn event(order: &str, payload: String) -> Document {
    doc! {
        "sequence": Timestamp { time: 0, increment: 0 },
        "aggregate_type": "order", "aggregate_id": order, "event_type": "order.placed", "payload": payload,
    }
}

impl Databases for Sets {
    fn new(count: usize) -> Option<Self> {
        let url = address("MongoDB", "mongodb")?;
        let runtime = Runtime::new().unwrap();
        let client = runtime.block_on(Client::with_uri_str(&url)).unwrap();
        Some(Self { url, names: new_names(count), client, runtime })
    }

    fn url(&self) -> &str {
        &self.url
    }

    fn names(&self) -> &[String] {
        &self.names
    }

    fn insert(&self, index: usize, from: u64, to: u64) {
        let events = (from..to).map(|n| event(&(n % 3).to_string(), format!("{{\"n\": {n}}}")));
        let events: Vec<Document> = events.collect();
        self.run(&self.database(index), doc! { "insert": "outbox", "documents": events });
    }

    fn insert_nonsense(&self, index: usize) {
        let mut nonsense = event("1", "{}".to_owned());
        nonsense.insert("headers", vec!["no map"]);
        self.run(&self.database(index), doc! { "insert": "outbox", "documents": [nonsense] });
    }

    fn break_it(&self, index: usize) {
        self.rename(index, "outbox_meta", "away");
    }

    fn mend_it(&self, index: usize) {
        self.rename(index, "away", "outbox_meta");
    }

    fn make_newer(&self, index: usize) {
        let update = doc! { "q": { "_id": "schema_version" }, "u": { "$set": { "value": 9 } } };
        self.run(&self.database(index), doc! { "update": "outbox_meta", "updates": [update] });
    }
}

impl Drop for Sets {
    fn drop(&mut self) {
        for index in 0..self.names.len() {
            self.run(&self.database(index), doc! { "dropDatabase": 1 });
        }
    }
}

tell_stories!(Sets);
