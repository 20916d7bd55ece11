//! The collections: printed for one's own migration tool, or made.

use mongodb::{
    Database,
    bson::{Bson, Document, Timestamp, doc},
};
use outbox_core::{
    StoreError,
    store::{NAME_BYTES_MAX, PARTITIONS, Schema},
};

use crate::{
    MongoConfig,
    codec::document::{pending, whole},
    config::Names,
    database::transaction::check_writes,
    error::{Fault, code_of, store_error},
};

/// What each version of the collections brought, the first one first. A version that was released is never
/// changed: a change is a further entry, with its commands among those of the migration such that they do
/// nothing where they were done.
const MIGRATIONS: &[&str] =
    &["the collections of the outbox", "tombstones, names of at most 255 bytes, and no relays of version 1"];

/// The one command that fails where there is nothing to do, and the server's codes of that: no such index, no
/// such collection.
const DROP_INDEX: &str = "dropIndexes";
const MISSING: [i32; 2] = [27, 26];

/// The version of the collections that this program reads and writes.
pub(crate) const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// The remedy for what a migration puts right.
pub(crate) const MIGRATE: &str = "run `outbox migrate`, or `MongoStore::migrate` in a program; \
    `outbox migrate --print` and `migration_script` give the commands";

/// The document of the collection `outbox_meta` that holds the version.
pub(crate) const VERSION_ID: &str = "schema_version";

/// The indexes that the reader names.
pub(crate) const PENDING: &str = "unsent";
pub(crate) const PENDING_BY_KEY: &str = "unsent_by_key";
pub(crate) const SCHEDULED: &str = "scheduled";
pub(crate) const SEQUENCE: &str = "sequence";
pub(crate) const FAILED: &str = "failed";

/// The same as a relay of version 1 names them. It takes a tombstone for an error, and is refused by the
/// server at its next fetch.
const OF_VERSION_1: [&str; 2] = ["pending", "pending_by_key"];

/// The indexes of the collections beside their `_id`, by collection.
pub(crate) fn indexes(names: &Names) -> Vec<(&str, Vec<Document>)> {
    let mut scheduled = doc! { "available_at": { "$exists": true } };
    scheduled.extend(pending());
    vec![
        (
            &names.outbox,
            vec![
                doc! { "key": { "sequence": 1 }, "name": SEQUENCE, "unique": true },
                // The partition stands behind the sequence, so that those of others are passed by within the
                // index.
                doc! {
                    "key": { "sequence": 1, "partition": 1 }, "name": PENDING, "partialFilterExpression": pending(),
                },
                doc! {
                    "key": { "aggregate_type": 1, "aggregate_id": 1, "sequence": 1 }, "name": PENDING_BY_KEY,
                    "partialFilterExpression": pending(),
                },
                doc! {
                    "key": { "available_at": 1, "sequence": 1 }, "name": SCHEDULED,
                    "partialFilterExpression": scheduled,
                },
                doc! {
                    "key": { "status": 1, "sequence": 1 }, "name": FAILED,
                    "partialFilterExpression": { "status": 2 },
                },
            ],
        ),
        (
            &names.holds,
            vec![
                // The partition stands behind for the same reason as above.
                doc! { "key": { "until": 1, "partition": 1 }, "name": "until" },
                doc! { "key": { "paused_at": 1 }, "name": "paused_at", "sparse": true },
            ],
        ),
        (&names.archive, vec![doc! { "key": { "sequence": 1 }, "name": SEQUENCE }]),
        // An index that every collection has creates those that need no other.
        (&names.relays, vec![doc! { "key": { "_id": 1 }, "name": "_id_" }]),
        (&names.topics, vec![doc! { "key": { "_id": 1 }, "name": "_id_" }]),
    ]
}

/// A document that a validator would not take is changed all the same, if it was there before: a relay
/// records that it cannot be read, and no settle is refused for it.
pub(crate) const VALIDATION_LEVEL: &str = "moderate";
pub(crate) const VALIDATION_ACTION: &str = "error";

/// What a document must have to be inserted: without a sequence that the server has filled no relay would
/// ever read it, and names have a limit. A tombstone has no payload.
pub(crate) fn validator() -> Document {
    // The server has no length in bytes for a value that is not a string.
    let fits = |field: &str| {
        let is_text = doc! { "$eq": [{ "$type": format!("${field}") }, "string"] };
        let bytes = doc! { "$cond": [is_text, { "$strLenBytes": format!("${field}") }, 0] };
        doc! { "$lte": [bytes, NAME_BYTES_MAX as i32] }
    };
    let names = ["aggregate_type", "aggregate_id", "event_type", "content_type", "topic"];
    let text = doc! { "bsonType": "string", "minLength": 1 };
    doc! {
        "$jsonSchema": {
            "required": ["sequence", "aggregate_type", "aggregate_id", "event_type"],
            "properties": {
                "sequence": { "bsonType": "timestamp" },
                "aggregate_type": text.clone(),
                "aggregate_id": text.clone(),
                "event_type": text,
                "payload": { "bsonType": ["binData", "string", "null"] },
                "status": { "enum": [0, 1, 2] },
                "attempts": { "minimum": 0 },
                "partition": { "bsonType": ["int", "long", "double"], "minimum": 0, "maximum": i32::from(PARTITIONS) - 1 },
            },
        },
        "sequence": { "$gt": Timestamp { time: 0, increment: 0 } },
        "$expr": { "$and": names.map(fits).to_vec() },
    }
}

/// The commands of the migration, in order. Each may be run again at any time, and by two processes at once.
fn commands(names: &Names) -> Vec<Document> {
    let majority = doc! { "w": "majority" };
    // The server has no two indexes of the same fields and options, so the old names go first.
    let drop = |index| doc! { DROP_INDEX: &names.outbox, "index": index, "writeConcern": majority.clone() };
    let mut commands: Vec<Document> = OF_VERSION_1.map(drop).to_vec();
    for (collection, indexes) in indexes(names) {
        commands
            .push(doc! { "createIndexes": collection, "indexes": indexes, "writeConcern": majority.clone() });
    }
    commands.push(doc! {
        "collMod": &names.outbox, "validator": validator(), "validationLevel": VALIDATION_LEVEL,
        "validationAction": VALIDATION_ACTION, "writeConcern": majority.clone(),
    });
    let free = || doc! { "owner": Bson::Null, "epoch": 0_i64, "settles": 0_i64 };
    let partitions: Vec<_> =
        (0..i32::from(PARTITIONS)).map(|partition| upsert(partition.into(), free())).collect();
    commands
        .push(doc! { "update": &names.partitions, "updates": partitions, "writeConcern": majority.clone() });
    commands.push(say_version(&names.meta, SCHEMA_VERSION));
    // Relays of version 1 say none. Without its document such a relay has to join again, which it does not
    // where the version is a newer one, so that its partitions are free.
    let buried = doc! { "q": { "schema": { "$exists": false } }, "limit": 0 };
    commands.push(doc! { "delete": &names.relays, "deletes": [buried], "writeConcern": majority });
    commands
}

/// Inserts a document that is not there.
fn upsert(id: Bson, fields: Document) -> Document {
    doc! { "q": { "_id": id }, "u": { "$setOnInsert": fields }, "upsert": true }
}

/// A command that comes when the others have made what they make, so that a version says that everything is
/// there. It lowers none.
pub(crate) fn say_version(meta: &str, version: i64) -> Document {
    let value = doc! { "value": version };
    doc! {
        "update": meta,
        "updates": [
            upsert(VERSION_ID.into(), value.clone()),
            { "q": { "_id": VERSION_ID, "value": { "$lt": version } }, "u": { "$set": value } },
        ],
        "writeConcern": { "w": "majority" },
    }
}

/// The commands that create the collections, for one's own migration tool: a script for `mongosh`, to be run
/// on the database that the outbox is to be in. They may be run again at any time and change nothing then.
///
/// ```
/// let config = outbox_mongo::MongoConfig::builder().database("shop").table("billing").build()?;
/// let script = outbox_mongo::migration_script(&config);
/// assert!(script.contains(r#"db.runCommand({ "createIndexes": "billing", "#));
/// # Ok::<(), outbox_core::StoreError>(())
/// ```
pub fn migration_script(config: &MongoConfig) -> String {
    let title = format!("The outbox {:?}, version {SCHEMA_VERSION}.", config.names.outbox);
    script(&title, &config.names.database, commands(&config.names))
}

/// Commands as the shell reads them.
pub(crate) fn script(title: &str, database: &str, commands: Vec<Document>) -> String {
    let mut script = format!("// {title}\ndb = db.getSiblingDB({database:?});\n");
    for command in commands {
        let drops = command.contains_key(DROP_INDEX);
        let run = format!("db.runCommand({});", literal(&Bson::Document(command)));
        let line = if drops {
            let [index, collection] = MISSING;
            let unless = format!("if (![{index}, {collection}].includes(error.code)) throw error;");
            format!("try {{ {run} }} catch (error) {{ {unless} }}\n")
        } else {
            format!("{run}\n")
        };
        script.push_str(&line);
    }
    script
}

/// A value as the shell reads it.
fn literal(value: &Bson) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value {
        Bson::Document(document) => {
            let fields = document.iter().map(|(name, value)| format!("{name:?}: {}", literal(value)));
            format!("{{ {} }}", list(fields.collect()))
        }
        Bson::Array(items) => format!("[{}]", list(items.iter().map(literal).collect())),
        Bson::String(text) => format!("{text:?}"),
        Bson::Int64(number) => format!("NumberLong({number})"),
        Bson::Timestamp(at) => format!("Timestamp({}, {})", at.time, at.increment),
        // Numbers, truth and nothing are written alike everywhere.
        other => other.to_string(),
    }
}

/// Creates what is missing. Refuses collections of a newer version.
pub(crate) async fn migrate(database: &Database, names: &Names) -> Result<(), StoreError> {
    let what = format!("migrate the outbox {}", names.outbox);
    let version = version(database, &names.meta).await.map_err(|error| store_error(&what, error))?;
    schema(names).refuse_newer(version)?;
    apply(database, commands(names)).await.map_err(|fault| store_error(&what, fault))
}

/// Runs the commands of a migration.
pub(crate) async fn apply(database: &Database, commands: Vec<Document>) -> Result<(), Fault> {
    for command in commands {
        run(database, &command).await?;
    }
    Ok(())
}

/// Runs one; again, when another process is in the way with the same one.
async fn run(database: &Database, command: &Document) -> Result<(), Fault> {
    const TRIES_MAX: u32 = 20;
    for _ in 1..TRIES_MAX {
        let result = run_once(database, command).await;
        // Two processes that insert the same document: the second finds it there.
        if !matches!(&result, Err(fault) if fault.is_conflict()) {
            return result;
        }
    }
    run_once(database, command).await
}

async fn run_once(database: &Database, command: &Document) -> Result<(), Fault> {
    match database.run_command(command.clone()).await {
        Err(error)
            if command.contains_key(DROP_INDEX)
                && code_of(&error).is_some_and(|code| MISSING.contains(&code)) =>
        {
            Ok(())
        }
        answer => check_writes(&answer?),
    }
}

/// What is known of the collections.
pub(crate) fn schema(names: &Names) -> Schema {
    Schema::new(format!("the outbox {}", names.outbox), MIGRATIONS, MIGRATE)
}

/// The version that the collection `meta` says; `None` where there is none.
pub(crate) async fn version(database: &Database, meta: &str) -> Result<Option<i64>, mongodb::error::Error> {
    let meta = database.collection::<mongodb::bson::RawDocumentBuf>(meta);
    let found = meta.find_one(doc! { "_id": VERSION_ID }).await?;
    let value = found.as_ref().and_then(|document| document.get("value").ok().flatten());
    // A document without a number was written by another program.
    Ok(found.is_some().then(|| value.and_then(whole).unwrap_or_default()))
}
