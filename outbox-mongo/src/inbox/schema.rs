//! The inbox's collections, which need no outbox beside them: printed, made, and looked at.

use mongodb::{
    Client, Database,
    bson::{Bson, Document, doc},
    options::{DatabaseOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern},
};
use outbox_core::{Finding, StoreError, store::Schema};

use crate::{
    MongoConfig,
    config::Names,
    database::index,
    error::{Fault, store_error, within},
    schema::{apply, say_version, script, version},
    store::{identify, inspect, privileges, server},
};

/// What each version of the collections brought, the first one first.
const MIGRATIONS: &[&str] = &["the collections of the inbox"];

/// The version of the collections that this program reads and writes.
const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// The index by which old receipts are found.
pub(super) const TIME: &str = "time";

const MIGRATE: &str = "run `MongoInbox::migrate`, or the script of `inbox_migration_script`";

/// The commands that create the inbox's collections, for one's own migration tool: a script for `mongosh`.
/// They may be run again at any time and change nothing then. They need none of the outbox's collections.
///
/// ```
/// let config = outbox_mongo::MongoConfig::builder().database("billing").build()?;
/// let script = outbox_mongo::inbox_migration_script(&config);
/// assert!(script.contains(r#"db.runCommand({ "createIndexes": "outbox_inbox", "#));
/// # Ok::<(), outbox_core::StoreError>(())
/// ```
pub fn inbox_migration_script(config: &MongoConfig) -> String {
    let title = format!("The inbox {:?}, version {SCHEMA_VERSION}.", config.names.inbox);
    script(&title, &config.names.database, commands(&config.names))
}

fn indexes(names: &Names) -> Vec<(&str, Vec<Document>)> {
    let by_time = doc! { "key": { "_id.consumer": 1, "time_us": 1 }, "name": TIME };
    vec![
        (&names.inbox, vec![by_time]),
        // An index that every collection has creates the one that needs no other.
        (&names.inbox_horizons, vec![doc! { "key": { "_id": 1 }, "name": "_id_" }]),
    ]
}

/// The commands of the migration, in order. Each may be run again at any time, and by two processes at once.
fn commands(names: &Names) -> Vec<Document> {
    let create = |(collection, indexes)| doc! { "createIndexes": collection, "indexes": indexes, "writeConcern": { "w": "majority" } };
    let mut commands: Vec<_> = indexes(names).into_iter().map(create).collect();
    commands.push(say_version(&names.inbox_meta, SCHEMA_VERSION));
    commands
}

/// The database as a majority of its members has it.
fn database(client: &Client, names: &Names) -> Database {
    let options = DatabaseOptions::builder()
        .read_concern(ReadConcern::majority())
        .write_concern(WriteConcern::majority())
        .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
        .build();
    client.database_with_options(&names.database, options)
}

/// Creates what is missing. Refuses collections of a newer version.
pub(super) async fn migrate(client: &Client, names: &Names) -> Result<(), StoreError> {
    let what = format!("migrate the inbox {}", names.inbox);
    let database = database(client, names);
    let found = version(&database, &names.inbox_meta).await.map_err(|error| store_error(&what, error))?;
    schema(names).refuse_newer(found)?;
    apply(&database, commands(names)).await.map_err(|fault| store_error(&what, fault))
}

fn schema(names: &Names) -> Schema {
    Schema::new(format!("the inbox {}", names.inbox), MIGRATIONS, MIGRATE)
}

/// Looks for whatever would break a guarantee, and names all of it at once. Changes nothing.
pub(super) async fn check(
    client: &Client,
    names: &Names,
    consumer: &str,
) -> Result<Vec<Finding>, StoreError> {
    let database = database(client, names);
    within("check the inbox", look(&database, names, consumer)).await
}

async fn look(database: &Database, names: &Names, consumer: &str) -> Result<Vec<Finding>, Fault> {
    let mut findings = Vec::new();
    let hello = database.client().database("admin").run_command(doc! { "hello": 1 }).await?;
    if !server(&hello, &mut findings) {
        return Ok(findings);
    }
    let info = identify(database).await?;
    let needed: [(&str, &str); 3] = [
        (&names.inbox, "find listIndexes insert update remove"),
        (&names.inbox_horizons, "find listIndexes insert update"),
        (&names.inbox_meta, "find"),
    ];
    if !privileges(&names.database, ("consumer", &needed), &info, &mut findings) {
        return Ok(findings);
    }
    let collections = needed.map(|(collection, _)| collection);
    let (_, complete) = inspect(database, (&collections, indexes(names)), MIGRATE, &mut findings).await?;
    if !complete {
        return Ok(findings);
    }
    findings.extend(schema(names).check(version(database, &names.inbox_meta).await?));
    receipts(database, names, consumer, &mut findings).await?;
    Ok(findings)
}

async fn receipts(
    database: &Database,
    names: &Names,
    consumer: &str,
    findings: &mut Vec<Finding>,
) -> Result<(), Fault> {
    // Without its index, which is another finding, nothing is looked for.
    if findings.iter().any(|finding| finding.code == "missing-index") {
        return Ok(());
    }
    let receipts = database.collection::<Document>(&names.inbox);
    let timeless = doc! { "_id.consumer": consumer, "time_us": Bson::Null };
    if receipts.find_one(timeless).hint(index(TIME)).await?.is_some() {
        findings.push(Finding::warning(
            "events-without-time",
            format!(
                "{} has receipts of {consumer:?} for events without a time, which cannot be purged",
                names.inbox
            ),
            "let their producer set the CloudEvents attribute time, or give them UUIDv7 ids",
        ));
    }
    Ok(())
}
