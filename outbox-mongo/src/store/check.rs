//! What would break a guarantee: looked for at start, named all at once. Changes nothing.

mod collections;
mod server;

pub(crate) use collections::inspect;
pub(crate) use server::{identify, privileges, server};

use mongodb::{
    bson::{Bson, Document, Timestamp, doc},
    error::Error,
    options::{Acknowledgment, ReadPreference, SelectionCriteria},
};
use outbox_core::{Finding, StoreError, StoreErrorKind, store::PARTITIONS};

use self::collections::entry;
use crate::{
    database::{Database, collect, index},
    error::{Fault, classify, within},
    schema::{self, MIGRATE, SEQUENCE, VALIDATION_ACTION, VALIDATION_LEVEL, schema},
};

pub(super) async fn check(database: &Database) -> Result<Vec<Finding>, StoreError> {
    let mut findings = Vec::new();
    client(database, &mut findings);
    let what = "check the outbox";
    let hello =
        match within(what, async { Ok::<_, Fault>(command(database, doc! { "hello": 1 }).await) }).await? {
            Ok(hello) => hello,
            Err(error) => {
                findings.push(unreachable(database, &error));
                return Ok(findings);
            }
        };
    if !server(&hello, &mut findings) {
        return Ok(findings);
    }
    let status = within(what, async { Ok::<_, Fault>(identify(&database.majority).await) }).await?;
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            findings.push(unreachable(database, &error));
            return Ok(findings);
        }
    };
    within(what, lifetime(database, &mut findings)).await?;
    let may_look =
        privileges(&database.names().database, ("relay", &needed(database)), &status, &mut findings);
    if may_look && within(what, collections(database, &mut findings)).await? {
        within(what, documents(database, &mut findings)).await?;
    }
    Ok(findings)
}

async fn command(database: &Database, command: Document) -> Result<Document, Error> {
    database.client.database("admin").run_command(command).await
}

/// What the url says of reads and writes. The relay does not heed it, but a service that uses the same url
/// does.
fn client(database: &Database, findings: &mut Vec<Finding>) {
    let Some(options) = &database.options else { return };
    let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
    if options.selection_criteria.as_ref().is_some_and(|criteria| *criteria != primary) {
        findings.push(Finding::warning(
            "read-preference",
            "the url asks to read from a secondary; the relay reads from the primary all the same, since a secondary \
             may not show yet what was settled",
            "leave readPreference out of the url",
        ));
    }
    let concern = options.write_concern.as_ref();
    let acknowledged = concern.and_then(|concern| concern.w.as_ref());
    let unsafe_journal = concern.is_some_and(|concern| concern.journal == Some(false));
    if acknowledged.is_some_and(|w| *w != Acknowledgment::Majority) || unsafe_journal {
        findings.push(Finding::warning(
            "write-concern",
            "the url asks for less than a journalled majority to acknowledge a write; the relay waits for a majority \
             all the same, but a service with this url can lose an event together with the change it tells of, after it \
             was published",
            "leave w and journal out of the url, or set w=majority",
        ));
    }
}

fn unreachable(database: &Database, error: &Error) -> Finding {
    let hosts = database
        .options
        .as_ref()
        .map(|options| options.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    let place = format!(
        "MongoDB at {}, database {:?}",
        hosts.as_deref().unwrap_or("the client's hosts"),
        database.names().database
    );
    // The driver's own words for what it found at each host, without the account.
    let problem = format!("{place}: {}", error.kind);
    match classify(error) {
        StoreErrorKind::Denied => Finding::error(
            "denied",
            problem,
            "correct the account, its authSource and the certificates of the url",
        ),
        _ => Finding::error(
            "unreachable",
            problem,
            "start the server, open the way to it, correct the hosts or the replicaSet of the url, or give tls=true \
             where the server demands it",
        ),
    }
}

/// The server's limit of a transaction, where the account may ask for it.
async fn lifetime(database: &Database, findings: &mut Vec<Finding>) -> Result<(), Fault> {
    const NAME: &str = "transactionLifetimeLimitSeconds";
    let answer = command(database, doc! { "getParameter": 1, NAME: 1 }).await;
    let Ok(seconds) = answer.as_ref().map(|answer| number(answer, NAME)) else { return Ok(()) };
    let configured = database.config.transaction_lifetime.as_secs();
    if seconds.is_some_and(|seconds| u64::try_from(seconds).is_ok_and(|seconds| seconds > configured)) {
        findings.push(Finding::error(
            "transaction-lifetime",
            format!(
                "the server lets a transaction stay open for {} s, and the relay is told {configured} s: an event that \
                 commits later would be found late, after its successors",
                seconds.unwrap_or_default()
            ),
            format!("set transaction_lifetime to at least the server's {NAME}"),
        ));
    }
    Ok(())
}

fn number(document: &Document, name: &str) -> Option<i64> {
    match document.get(name)? {
        Bson::Int32(number) => Some((*number).into()),
        Bson::Int64(number) => Some(*number),
        Bson::Double(number) => Some(*number as i64),
        _ => None,
    }
}

/// What a relay and its operator do, by collection.
fn needed(database: &Database) -> [(&str, &'static str); 7] {
    let names = database.names();
    [
        (&names.outbox, "find listIndexes update remove"),
        (&names.relays, "find listIndexes insert update remove"),
        (&names.partitions, "find listIndexes update"),
        (&names.holds, "find listIndexes insert update remove"),
        (&names.archive, "find listIndexes insert remove"),
        (&names.topics, "find listIndexes insert update remove"),
        (&names.meta, "find listIndexes"),
    ]
}

/// Collections, their options and indexes; true if everything is there.
async fn collections(database: &Database, findings: &mut Vec<Finding>) -> Result<bool, Fault> {
    let names = database.names();
    let needed = needed(database).map(|(collection, _)| collection);
    let wanted = (&needed[..], schema::indexes(names));
    let (listed, complete) = inspect(&database.majority, wanted, MIGRATE, findings).await?;
    if !complete {
        if entry(&listed, &names.outbox).is_some() && entry(&listed, &names.meta).is_none() {
            findings.push(Finding::error(
                "foreign-schema",
                format!("{} is there, but says no version: it may be another program's", names.outbox),
                "give the outbox another name by `table`, or run the migration if it is this one's",
            ));
        }
        return Ok(false);
    }
    findings.extend(schema(names).check(schema::version(&database.majority, &names.meta).await?));
    let options = entry(&listed, &names.outbox).and_then(|entry| entry.get_document("options").ok());
    let option = |name: &str| options.and_then(|options| options.get_str(name).ok()).unwrap_or_default();
    let (level, action) = (option("validationLevel"), option("validationAction"));
    if (level, action) != (VALIDATION_LEVEL, VALIDATION_ACTION) {
        findings.push(Finding::error(
            "validation",
            format!(
                "{} is validated with the level {level:?} and the action {action:?}, and not with \
                 {VALIDATION_LEVEL:?} and {VALIDATION_ACTION:?}: what no relay could read is taken, or what it \
                 records of an older document is refused",
                names.outbox
            ),
            MIGRATE,
        ));
    }
    if options.and_then(|options| options.get_document("validator").ok()) != Some(&schema::validator()) {
        findings.push(Finding::error(
            "validator",
            format!(
                "the validator of {} is not that of the migration: an event without a sequence by the server would \
                 never be read, and a tombstone or a settle may be refused",
                names.outbox
            ),
            MIGRATE,
        ));
    }
    Ok(true)
}

async fn documents(database: &Database, findings: &mut Vec<Finding>) -> Result<(), Fault> {
    let partitions = database.partitions();
    let found = collect(partitions.find(doc! {}).await?).await?;
    let whole = (0..i32::from(PARTITIONS)).all(|partition| {
        found.iter().any(|row| row.get_i32("_id").ok() == Some(partition) && row.get_i64("epoch").is_ok())
    });
    if !whole {
        findings.push(Finding::error(
            "missing-partitions",
            format!("{} does not hold the partitions 0 to {}", database.names().partitions, PARTITIONS - 1),
            MIGRATE,
        ));
    }
    // Written past the validator, or before there was one.
    let unfilled = doc! { "$or": [
        { "sequence": Bson::Null }, { "sequence": { "$lte": Timestamp { time: 0, increment: 0 } } },
    ] };
    let found = database.outbox().find_one(unfilled).hint(index(SEQUENCE)).await;
    if matches!(found, Ok(Some(_))) {
        findings.push(Finding::warning(
            "no-sequence",
            format!("{} holds a document without a sequence, which no relay reads", database.names().outbox),
            "insert it anew, with sequence: Timestamp(0, 0) on its first level, and delete it",
        ));
    }
    Ok(())
}
