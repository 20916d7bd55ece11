//! The database as the relay and its operator use it: the client with its collections and settings,
//! [`Database`].

pub(crate) mod transaction;

use mongodb::{
    Client, Collection,
    bson::{DateTime as BsonDateTime, Document, RawDocumentBuf, doc},
    error::Error,
    options::{
        ClientOptions, DatabaseOptions, Hint, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern,
    },
};
use outbox_core::StoreError;

use crate::{
    MongoConfig,
    config::Names,
    error::{not_migrated, within},
    schema::VERSION_ID,
};

/// The client and what belongs to it, shared by the store, its readers and its settles.
pub(crate) struct Database {
    pub(crate) client: Client,
    /// For everything else: what a majority has.
    pub(crate) majority: mongodb::Database,
    /// For the statements of a snapshot session: the driver leaves a read concern as it is where there is
    /// one, and anything but `snapshot` would let each statement see another state.
    snapshots: mongodb::Database,
    pub(crate) config: MongoConfig,
    /// What the client was told of reads and writes by its url, for `check`.
    pub(crate) options: Option<ClientOptions>,
}

impl Database {
    pub(crate) fn new(client: Client, config: &MongoConfig, options: Option<ClientOptions>) -> Self {
        let database = |read_concern: ReadConcern| {
            let options = DatabaseOptions::builder()
                .read_concern(read_concern)
                .write_concern(WriteConcern::majority())
                .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
                .build();
            client.database_with_options(&config.names.database, options)
        };
        let (snapshots, majority) = (database(ReadConcern::snapshot()), database(ReadConcern::majority()));
        Self { client, majority, snapshots, config: config.clone(), options }
    }

    pub(crate) fn names(&self) -> &Names {
        &self.config.names
    }

    /// A collection as a snapshot session reads it.
    pub(crate) fn snapshot(&self, collection: &str) -> Collection<RawDocumentBuf> {
        self.snapshots.collection(collection)
    }

    pub(crate) fn outbox(&self) -> Collection<RawDocumentBuf> {
        self.majority.collection(&self.names().outbox)
    }

    pub(crate) fn holds(&self) -> Collection<RawDocumentBuf> {
        self.majority.collection(&self.names().holds)
    }

    pub(crate) fn archive(&self) -> Collection<RawDocumentBuf> {
        self.majority.collection(&self.names().archive)
    }

    pub(crate) fn relays(&self) -> Collection<Document> {
        self.majority.collection(&self.names().relays)
    }

    pub(crate) fn partitions(&self) -> Collection<Document> {
        self.majority.collection(&self.names().partitions)
    }

    pub(crate) fn topics(&self) -> Collection<Document> {
        self.majority.collection(&self.names().topics)
    }

    pub(crate) fn meta(&self) -> Collection<Document> {
        self.majority.collection(&self.names().meta)
    }

    /// The server's clock.
    pub(crate) async fn now(&self, what: &str) -> Result<BsonDateTime, StoreError> {
        let meta = self.meta();
        let find = meta.find_one(doc! { "_id": VERSION_ID }).projection(doc! { "now": "$$NOW" });
        let found = within(what, async { find.await }).await?;
        let now = found.and_then(|document| document.get_datetime("now").ok().copied());
        now.ok_or_else(|| self.not_migrated(what))
    }

    pub(crate) fn not_migrated(&self, what: &str) -> StoreError {
        not_migrated(what, &self.names().database, &self.names().outbox)
    }
}

/// The index that a statement is to use.
pub(crate) fn index(name: &str) -> Hint {
    Hint::Name(name.to_owned())
}

/// The documents of a cursor, all of them.
pub(crate) async fn collect(mut cursor: mongodb::Cursor<Document>) -> Result<Vec<Document>, Error> {
    let mut documents = Vec::new();
    while cursor.advance().await? {
        documents.push(cursor.deserialize_current()?);
    }
    Ok(documents)
}
