//! Every finding of `check`, each provoked.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::time::Duration;

use mongodb::bson::{Bson, Document, Timestamp, doc};
use outbox_conformance::testing::use_everything;
use outbox_core::{Enqueue as _, Finding, OutboxStore as _, Severity};
use outbox_mongo::{MongoConfig, MongoOutbox, MongoStore};
use support::{Place, account, event, remove_account};

fn expect(findings: &[Finding], code: &str, severity: Severity) {
    let found = findings.iter().find(|finding| finding.code == code);
    let found = found.unwrap_or_else(|| panic!("{code} is not among {findings:?}"));
    assert_eq!(found.severity, severity, "{found}");
    assert!(!found.remedy.is_empty(), "{found}");
}

/// Provokes a finding by commands, and looks for it.
async fn provoke(commands: Vec<Document>, code: &str, severity: Severity) {
    let Some(place) = Place::new().await else { return };
    assert_eq!(place.store.check().await.unwrap(), [], "a fresh outbox has no findings");
    for command in commands {
        place.database.run_command(command).await.unwrap();
    }
    expect(&place.store.check().await.unwrap(), code, severity);
    place.drop().await;
}

#[tokio::test]
async fn a_missing_collection() {
    provoke(vec![doc! { "drop": "outbox_holds" }], "missing-collection", Severity::Error).await;
}

#[tokio::test]
async fn no_collections_at_all() {
    let Some(place) = Place::empty().await else { return };
    let findings = place.store.check().await.unwrap();
    expect(&findings, "missing-collection", Severity::Error);
    assert_eq!(findings.len(), 1, "one remedy, so one finding: {findings:?}");
    place.drop().await;
}

#[tokio::test]
async fn another_programs_collection() {
    let Some(place) = Place::empty().await else { return };
    place.collection("outbox").insert_one(doc! { "_id": 1, "message": "mine" }).await.unwrap();
    expect(&place.store.check().await.unwrap(), "foreign-schema", Severity::Error);
    place.drop().await;
}

#[tokio::test]
async fn a_missing_index() {
    let command = doc! { "dropIndexes": "outbox", "index": "unsent" };
    provoke(vec![command], "missing-index", Severity::Error).await;
}

#[tokio::test]
async fn another_index_of_that_name() {
    let drop = doc! { "dropIndexes": "outbox", "index": "sequence" };
    let another = doc! { "key": { "sequence": 1 }, "name": "sequence" };
    let create = doc! { "createIndexes": "outbox", "indexes": [another] };
    provoke(vec![drop, create], "missing-index", Severity::Error).await;
}

#[tokio::test]
async fn a_missing_or_foreign_validator() {
    let none = doc! { "collMod": "outbox", "validator": {} };
    provoke(vec![none], "validator", Severity::Error).await;
    let foreign = doc! { "collMod": "outbox", "validator": { "total": { "$gt": 0 } } };
    provoke(vec![foreign], "validator", Severity::Error).await;
}

#[tokio::test]
async fn a_validator_that_refuses_nothing_or_too_much() {
    let warn = doc! { "collMod": "outbox", "validationAction": "warn" };
    provoke(vec![warn], "validation", Severity::Error).await;
    let strict = doc! { "collMod": "outbox", "validationLevel": "strict" };
    provoke(vec![strict], "validation", Severity::Error).await;
}

#[tokio::test]
async fn a_foreign_collection() {
    let view = doc! { "create": "outbox_topics", "viewOn": "outbox", "pipeline": [] };
    provoke(vec![doc! { "drop": "outbox_topics" }, view], "foreign-collection", Severity::Error).await;
    let capped = doc! { "create": "outbox_archive", "capped": true, "size": 1_000_000 };
    provoke(vec![doc! { "drop": "outbox_archive" }, capped], "foreign-collection", Severity::Error).await;
}

#[tokio::test]
async fn a_collation_that_merges_keys() {
    let create = doc! { "create": "outbox_holds", "collation": { "locale": "en", "strength": 1 } };
    provoke(vec![doc! { "drop": "outbox_holds" }, create], "collation", Severity::Error).await;
}

#[tokio::test]
async fn an_outbox_of_another_version() {
    let version = |value: Bson| {
        let update = doc! { "q": { "_id": "schema_version" }, "u": { "$set": { "value": value } } };
        vec![doc! { "update": "outbox_meta", "updates": [update] }]
    };
    provoke(version(Bson::Int32(99)), "schema-newer", Severity::Error).await;
    provoke(version(Bson::Int32(0)), "schema-older", Severity::Error).await;
    provoke(version("foreign".into()), "schema-older", Severity::Error).await;
}

#[tokio::test]
async fn missing_partitions() {
    let delete = doc! { "delete": "outbox_partitions", "deletes": [{ "q": { "_id": 63 }, "limit": 1 }] };
    provoke(vec![delete], "missing-partitions", Severity::Error).await;
}

#[tokio::test]
async fn a_document_that_nobody_reads() {
    let insert = doc! {
        "insert": "outbox", "documents": [{ "_id": "x", "total": 12 }], "bypassDocumentValidation": true,
    };
    provoke(vec![insert], "no-sequence", Severity::Warning).await;
    let update = doc! { "q": { "_id": "x" }, "u": { "$set": { "sequence": Timestamp { time: 0, increment: 0 } } }, "upsert": true };
    let upsert = doc! { "update": "outbox", "updates": [update], "bypassDocumentValidation": true };
    provoke(vec![upsert], "no-sequence", Severity::Warning).await;
}

#[tokio::test]
async fn a_transaction_may_stay_open_for_longer_than_the_relay_is_told() {
    let Some(place) = Place::new().await else { return };
    let config = MongoConfig::builder().url(&place.url).database(&place.name);
    let config = config.transaction_lifetime(Duration::from_secs(5)).build().unwrap();
    let findings = MongoStore::connect_lazy(&config).await.unwrap().check().await.unwrap();
    expect(&findings, "transaction-lifetime", Severity::Error);
    place.drop().await;
}

#[tokio::test]
async fn a_url_that_asks_for_less() {
    let Some(place) = Place::new().await else { return };
    for (option, code) in [
        ("w=1", "write-concern"),
        ("journal=false", "write-concern"),
        ("readPreference=secondaryPreferred", "read-preference"),
    ] {
        let url = format!("{}&{option}", place.url);
        let config = MongoConfig::builder().url(url).database(&place.name).build().unwrap();
        let store = MongoStore::connect_lazy(&config).await.unwrap();
        expect(&store.check().await.unwrap(), code, Severity::Warning);
    }
    let config = MongoConfig::builder().url(format!("{}&w=majority", place.url)).database(&place.name);
    let store = MongoStore::connect_lazy(&config.build().unwrap()).await.unwrap();
    assert_eq!(store.check().await.unwrap(), []);
    place.drop().await;
}

#[tokio::test]
async fn a_server_that_is_not_there() {
    let url = "mongodb://me:hush@127.0.0.1:1/nowhere?replicaSet=rs0&serverSelectionTimeoutMS=300";
    let config = MongoConfig::builder().url(url).build().unwrap();
    let findings = MongoStore::connect_lazy(&config).await.unwrap().check().await.unwrap();
    expect(&findings, "unreachable", Severity::Error);
    assert!(!format!("{findings:?}").contains("hush"));
}

#[tokio::test]
async fn a_wrong_password_and_none() {
    let Some(place) = Place::new().await else { return };
    for (from, to) in [(":outbox@", ":wrong@"), ("outbox:outbox@", "")] {
        let url = place
            .url
            .replace(from, to)
            .replace("&authSource=admin", if to.is_empty() { "" } else { "&authSource=admin" });
        let config = MongoConfig::builder().url(url).database(&place.name).build().unwrap();
        let findings = MongoStore::connect_lazy(&config).await.unwrap().check().await.unwrap();
        expect(&findings, "denied", Severity::Error);
    }
    place.drop().await;
}

/// What the README says a relay and its operator need.
const RELAY: [(&str, &[&str]); 8] = [
    ("", &["listCollections"]),
    ("outbox", &["find", "listIndexes", "update", "remove"]),
    ("outbox_relays", &["find", "listIndexes", "insert", "update", "remove"]),
    ("outbox_partitions", &["find", "listIndexes", "update"]),
    ("outbox_holds", &["find", "listIndexes", "insert", "update", "remove"]),
    ("outbox_archive", &["find", "listIndexes", "insert", "remove"]),
    ("outbox_topics", &["find", "listIndexes", "insert", "update", "remove"]),
    ("outbox_meta", &["find", "listIndexes"]),
];

#[tokio::test]
async fn an_account_without_privileges() {
    let Some(place) = Place::new().await else { return };
    let grants: Vec<(&str, &[&str])> =
        RELAY.iter().map(|(name, _)| (*name, &["find", "listIndexes"][..])).collect();
    let url = account(&place, "reader", &grants).await;
    let config = MongoConfig::builder().url(url).database(&place.name).build().unwrap();
    let findings = MongoStore::connect_lazy(&config).await.unwrap().check().await.unwrap();
    let refused: Vec<_> = findings.iter().filter(|finding| finding.code == "privilege").collect();
    assert_eq!(refused.len(), 7, "the list of collections, and all but the version: {findings:?}");
    expect(&findings, "privilege", Severity::Error);
    remove_account(&place, "reader").await;
    // Each privilege is asked for by name.
    for (collection, actions) in &RELAY[1..] {
        let lacking = actions.last().unwrap();
        let grants: Vec<(&str, Vec<&str>)> = RELAY
            .iter()
            .map(|(name, all)| {
                let all = all.iter().copied();
                (*name, all.filter(|action| name != collection || action != lacking).collect())
            })
            .collect();
        let grants: Vec<(&str, &[&str])> =
            grants.iter().map(|(name, actions)| (*name, &actions[..])).collect();
        let url = account(&place, "lacking", &grants).await;
        let config = MongoConfig::builder().url(url).database(&place.name).build().unwrap();
        let findings = MongoStore::connect_lazy(&config).await.unwrap().check().await.unwrap();
        assert_eq!(findings.len(), 1, "{findings:?}");
        let named = format!("may not {lacking} on {}.{collection}", place.name);
        assert!(findings[0].code == "privilege" && findings[0].problem.contains(&named), "{findings:?}");
        remove_account(&place, "lacking").await;
    }
    place.drop().await;
}

#[tokio::test]
async fn the_documented_privileges_are_enough_for_everything() {
    let Some(place) = Place::new().await else { return };
    let writer = account(&place, "writer", &[("outbox", &["find", "insert"])]).await;
    let client = mongodb::Client::with_uri_str(&writer).await.unwrap();
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let config = MongoConfig::builder().database(&place.name).build().unwrap();
    let outbox = MongoOutbox::new(&config);
    outbox.enqueue(&mut session, &event("1")).await.unwrap();
    let events: Vec<_> = (2..9).map(|n: u8| event(&n.to_string())).collect();
    outbox.enqueue_all(&mut session, &events).await.unwrap();
    session.commit_transaction().await.unwrap();

    let relay = account(&place, "relay", &RELAY).await;
    let config = MongoConfig::builder().url(relay).database(&place.name).build().unwrap();
    let store = MongoStore::connect_lazy(&config).await.unwrap();
    assert_eq!(store.check().await.unwrap(), []);
    use_everything(&store, &store).await;
    remove_account(&place, "writer").await;
    remove_account(&place, "relay").await;
    place.drop().await;
}

/// A server that answers the driver's greeting as it is told, and nothing else.
mod greeting {
    use mongodb::bson::{DateTime, Document, doc};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    pub(super) async fn serve(hello: Document) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(answer(connection, hello.clone()));
            }
        });
        port
    }

    async fn answer(mut connection: TcpStream, hello: Document) -> Option<()> {
        loop {
            // Length, id, id that is answered, opcode.
            let mut head = [0; 16];
            connection.read_exact(&mut head).await.ok()?;
            let word = |at: usize| i32::from_le_bytes(head[at..at + 4].try_into().unwrap());
            let mut body = vec![0; usize::try_from(word(0)).unwrap() - 16];
            connection.read_exact(&mut body).await.ok()?;
            let mut document = doc! {
                "ok": 1.0, "localTime": DateTime::now(), "maxBsonObjectSize": 16_777_216,
                "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000, "minWireVersion": 0,
            };
            document.extend(hello.clone());
            let document = document.to_vec().unwrap();
            // 2004 is a query, answered by 1; 2013 is a message.
            let (opcode, mut answer) = match word(12) {
                2004 => {
                    let mut reply = vec![0; 20];
                    reply[16] = 1;
                    (1, reply)
                }
                _ => (2013, vec![0; 5]),
            };
            answer.extend(document);
            let length = i32::try_from(answer.len() + 16).unwrap();
            for word in [length, 1, word(4), opcode] {
                connection.write_all(&word.to_le_bytes()).await.ok()?;
            }
            connection.write_all(&answer).await.ok()?;
        }
    }
}

#[tokio::test]
async fn servers_that_will_not_do() {
    let member = doc! { "setName": "rs0", "hosts": ["127.0.0.1:1"], "maxWireVersion": 17 };
    let with = |document: Document| {
        let mut hello = member.clone();
        hello.extend(document);
        hello
    };
    for (hello, code) in [
        (doc! { "isWritablePrimary": true, "ismaster": true, "maxWireVersion": 17 }, "no-replica-set"),
        (
            doc! { "isWritablePrimary": true, "ismaster": true, "msg": "isdbgrid", "maxWireVersion": 17 },
            "sharded",
        ),
        (with(doc! { "isWritablePrimary": false, "ismaster": false, "secondary": true }), "not-primary"),
        (with(doc! { "isWritablePrimary": true, "ismaster": true, "maxWireVersion": 13 }), "server-too-old"),
    ] {
        let port = greeting::serve(hello).await;
        let url =
            format!("mongodb://127.0.0.1:{port}/shop?directConnection=true&serverSelectionTimeoutMS=3000");
        let config = MongoConfig::builder().url(url).build().unwrap();
        let findings = MongoStore::connect_lazy(&config).await.unwrap().check().await.unwrap();
        expect(&findings, code, Severity::Error);
        assert_eq!(findings.len(), 1, "{findings:?}");
    }
}
