//! What would break a guarantee: looked for at start, named all at once. Changes nothing.

use mongodb::{
    bson::{Bson, Document, Timestamp, doc},
    error::Error,
    options::{Acknowledgment, ReadPreference, SelectionCriteria},
};
use outbox_core::{Finding, PARTITIONS, StoreError, StoreErrorKind};

use super::{Inner, collect};
use crate::{
    error::{Fault, classify, code_of, within},
    schema::{self, SCHEMA_VERSION, SEQUENCE, newer_version},
};

/// The wire version of MongoDB 6.0, the first release that takes a partial index by `$in`.
const WIRE_VERSION_MIN: i32 = 17;

const MIGRATE: &str = "run the migration: `MongoStore::migrate`, or the script of `migration_script`";

pub(super) async fn check(inner: &Inner) -> Result<Vec<Finding>, StoreError> {
    let mut findings = Vec::new();
    client(inner, &mut findings);
    let what = "check the outbox";
    let hello =
        match within(what, async { Ok::<_, Fault>(command(inner, doc! { "hello": 1 }).await) }).await? {
            Ok(hello) => hello,
            Err(error) => {
                findings.push(unreachable(inner, &error));
                return Ok(findings);
            }
        };
    if !server(&hello, &mut findings) {
        return Ok(findings);
    }
    // A greeting is answered to anybody; this is refused to who is nobody.
    let who = doc! { "connectionStatus": 1, "showPrivileges": true };
    let status = within(what, async { Ok::<_, Fault>(identify(inner, who).await) }).await?;
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            findings.push(unreachable(inner, &error));
            return Ok(findings);
        }
    };
    within(what, lifetime(inner, &mut findings)).await?;
    let may_look = privileges(inner, &status, &mut findings);
    if may_look && within(what, collections(inner, &mut findings)).await? {
        within(what, documents(inner, &mut findings)).await?;
    }
    Ok(findings)
}

/// What the server knows of the account. Without one, a server that knows accounts refuses the first look.
async fn identify(inner: &Inner, who: Document) -> Result<Document, Error> {
    let status = command(inner, who).await?;
    let info = status.get_document("authInfo").cloned().unwrap_or_default();
    if info.get_array("authenticatedUsers").is_ok_and(|users| users.is_empty()) {
        inner.database.run_command(doc! { "listCollections": 1, "nameOnly": true }).await?;
    }
    Ok(info)
}

async fn command(inner: &Inner, command: Document) -> Result<Document, Error> {
    inner.client.database("admin").run_command(command).await
}

/// What the url says of reads and writes. The relay does not heed it, but a service that uses the same url does.
fn client(inner: &Inner, findings: &mut Vec<Finding>) {
    let Some(options) = &inner.options else { return };
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

fn unreachable(inner: &Inner, error: &Error) -> Finding {
    let hosts = inner
        .options
        .as_ref()
        .map(|options| options.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    let place = format!(
        "MongoDB at {}, database {:?}",
        hosts.as_deref().unwrap_or("the client's hosts"),
        inner.names().database
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

/// False if it is no use to look further.
fn server(hello: &Document, findings: &mut Vec<Finding>) -> bool {
    let found = findings.len();
    let wire_version = hello.get_i32("maxWireVersion").unwrap_or_default();
    if wire_version < WIRE_VERSION_MIN {
        findings.push(Finding::error(
            "server-too-old",
            format!("the server speaks wire version {wire_version}, that of a release before MongoDB 6.0"),
            "upgrade it to 6.0 or newer",
        ));
    }
    if hello.get_str("msg").is_ok_and(|message| message == "isdbgrid") {
        findings.push(Finding::error(
            "sharded",
            "the server is a router of a sharded cluster, where each shard counts for itself: sequences would not be \
             unique",
            "put the outbox, and the data of the services that write to it, into a replica set",
        ));
    } else if !hello.contains_key("setName") {
        findings.push(Finding::error(
            "no-replica-set",
            "the server is not a member of a replica set, and so has no transactions",
            "start it with --replSet and run rs.initiate(), a single member will do",
        ));
    } else if !hello.get_bool("isWritablePrimary").unwrap_or_default() {
        findings.push(Finding::error(
            "not-primary",
            "the server is a secondary, which only reads",
            "list all members in the url, with replicaSet and without directConnection",
        ));
    }
    findings.len() == found
}

/// The server's limit of a transaction, where the account may ask for it.
async fn lifetime(inner: &Inner, findings: &mut Vec<Finding>) -> Result<(), Fault> {
    const NAME: &str = "transactionLifetimeLimitSeconds";
    let answer = command(inner, doc! { "getParameter": 1, NAME: 1 }).await;
    let Ok(seconds) = answer.as_ref().map(|answer| number(answer, NAME)) else { return Ok(()) };
    let configured = inner.config.transaction_lifetime.as_secs();
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
fn needed(inner: &Inner) -> [(&str, &'static str); 7] {
    let names = inner.names();
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

/// False if the account may not even look.
fn privileges(inner: &Inner, info: &Document, findings: &mut Vec<Finding>) -> bool {
    let list = |name: &str| info.get_array(name).cloned().unwrap_or_default();
    // A server without accounts refuses nobody.
    if list("authenticatedUsers").is_empty() {
        return true;
    }
    let granted: Vec<Document> = list("authenticatedUserPrivileges")
        .into_iter()
        .filter_map(
            |privilege| if let Bson::Document(privilege) = privilege { Some(privilege) } else { None },
        )
        .collect();
    let database = &inner.names().database;
    let has = |collection: &str, action: &str| {
        granted.iter().any(|privilege| {
            let Ok(resource) = privilege.get_document("resource") else { return false };
            let covers = |name: &str, wanted: &str| {
                resource.get_str(name).is_ok_and(|given| given.is_empty() || given == wanted)
            };
            let is_covered = resource.get_bool("anyResource").unwrap_or_default()
                || (covers("db", database) && covers("collection", collection));
            let mut actions = privilege.get_array("actions").into_iter().flatten();
            is_covered && actions.any(|given| matches!(given.as_str(), Some(given) if given == action))
        })
    };
    let mut may_look = has("", "listCollections");
    if !may_look {
        findings.push(Finding::error(
            "privilege",
            format!("the account of the relay may not list the collections of the database {database}"),
            format!("grant its role listCollections on {database}"),
        ));
    }
    for (collection, actions) in needed(inner) {
        let lacking: Vec<&str> = actions.split(' ').filter(|action| !has(collection, action)).collect();
        if lacking.is_empty() {
            continue;
        }
        may_look &= !lacking.iter().any(|action| ["find", "listIndexes"].contains(action));
        let lacking = lacking.join(", ");
        findings.push(Finding::error(
            "privilege",
            format!("the account of the relay may not {lacking} on {database}.{collection}"),
            format!("grant its role {lacking} on {database}.{collection}"),
        ));
    }
    may_look
}

/// Collections, their options and indexes; true if everything is there.
async fn collections(inner: &Inner, findings: &mut Vec<Finding>) -> Result<bool, Fault> {
    let names = inner.names();
    let command = doc! { "listCollections": 1, "cursor": { "batchSize": 10_000 } };
    let answer = inner.database.run_command(command).await?;
    let batch = answer.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch").cloned());
    let listed: Vec<Document> = batch
        .unwrap_or_default()
        .into_iter()
        .filter_map(|entry| if let Bson::Document(entry) = entry { Some(entry) } else { None })
        .collect();
    let entry =
        |name: &str| listed.iter().find(|entry| entry.get_str("name").is_ok_and(|found| found == name));
    let needed = needed(inner).map(|(collection, _)| collection);
    let missing: Vec<&str> = needed.iter().copied().filter(|name| entry(name).is_none()).collect();
    if !missing.is_empty() {
        findings.push(Finding::error(
            "missing-collection",
            format!("there is no {} in the database {}", missing.join(", "), names.database),
            MIGRATE,
        ));
        return Ok(false);
    }
    version(inner, findings).await?;
    for (name, entry) in needed.iter().filter_map(|name| Some((*name, entry(name)?))) {
        options(name, entry, findings);
    }
    let options = entry(&names.outbox).and_then(|entry| entry.get_document("options").ok());
    if options.and_then(|options| options.get_document("validator").ok()) != Some(&schema::validator()) {
        findings.push(Finding::error(
            "validator",
            format!(
                "{} does not refuse what has no sequence by the server, or refuses something else: an event without \
                 one would never be read",
                names.outbox
            ),
            MIGRATE,
        ));
    }
    for (collection, wanted) in schema::indexes(names) {
        indexes(inner, collection, &wanted, findings).await?;
    }
    Ok(true)
}

async fn version(inner: &Inner, findings: &mut Vec<Finding>) -> Result<(), Fault> {
    match schema::version(&inner.database, inner.names()).await? {
        Some(found) if found > SCHEMA_VERSION => findings.push(Finding::error(
            "schema-newer",
            newer_version(inner.names(), found).to_string(),
            "upgrade the program, or connect it to another outbox",
        )),
        Some(SCHEMA_VERSION) => {}
        found => findings.push(Finding::error(
            "schema-older",
            format!(
                "the outbox {} has version {}, older than {SCHEMA_VERSION}",
                inner.names().outbox,
                found.unwrap_or_default()
            ),
            MIGRATE,
        )),
    }
    Ok(())
}

fn options(name: &str, entry: &Document, findings: &mut Vec<Finding>) {
    let options = entry.get_document("options").cloned().unwrap_or_default();
    let kind = entry.get_str("type").unwrap_or_default();
    if kind != "collection" || options.get_bool("capped").unwrap_or_default() {
        findings.push(Finding::error(
            "foreign-collection",
            format!("{name} is a {kind}, or capped, and not a plain collection"),
            "choose another table prefix, or rename what is there and run the migration",
        ));
    }
    if options.contains_key("collation") {
        findings.push(Finding::error(
            "collation",
            format!("{name} has a collation, by which different keys can be equal"),
            "make it again without one and copy the documents",
        ));
    }
}

async fn indexes(
    inner: &Inner,
    collection: &str,
    wanted: &[Document],
    findings: &mut Vec<Finding>,
) -> Result<(), Fault> {
    let command = doc! { "listIndexes": collection, "cursor": { "batchSize": 10_000 } };
    let answer = match inner.database.run_command(command).await {
        // A view has none.
        Err(error) if code_of(&error) == Some(166) => return Ok(()),
        answer => answer?,
    };
    let batch = answer.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch").cloned());
    let listed = batch.unwrap_or_default();
    for index in wanted {
        let is_it = |found: &Bson| {
            let Some(found) = found.as_document() else { return false };
            index.iter().all(|(option, value)| found.get(option) == Some(value))
        };
        if !listed.iter().any(is_it) {
            let name = index.get_str("name").unwrap_or_default();
            findings.push(Finding::error(
                "missing-index",
                format!("{collection} has no index {name}, or another one of that name"),
                format!("drop an index of that name, then {MIGRATE}"),
            ));
        }
    }
    Ok(())
}

async fn documents(inner: &Inner, findings: &mut Vec<Finding>) -> Result<(), Fault> {
    let partitions = inner.partitions();
    let found = collect(partitions.find(doc! {}).await?).await?;
    let whole = (0..i32::from(PARTITIONS)).all(|partition| {
        found.iter().any(|row| row.get_i32("_id").ok() == Some(partition) && row.get_i64("epoch").is_ok())
    });
    if !whole {
        findings.push(Finding::error(
            "missing-partitions",
            format!("{} does not hold the partitions 0 to {}", inner.names().partitions, PARTITIONS - 1),
            MIGRATE,
        ));
    }
    // Written past the validator, or before there was one.
    let unfilled = doc! { "$or": [
        { "sequence": Bson::Null }, { "sequence": { "$lte": Timestamp { time: 0, increment: 0 } } },
    ] };
    let found = inner.outbox().find_one(unfilled).hint(super::index(SEQUENCE)).await;
    if matches!(found, Ok(Some(_))) {
        findings.push(Finding::warning(
            "no-sequence",
            format!("{} holds a document without a sequence, which no relay reads", inner.names().outbox),
            "insert it anew, with sequence: Timestamp(0, 0) on its first level, and delete it",
        ));
    }
    Ok(())
}
