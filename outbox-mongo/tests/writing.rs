//! The writer's side and the collections: what is MongoDB's own.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use futures::TryStreamExt as _;
use mongodb::{
    Client,
    bson::{Binary, Bson, Document, Timestamp, doc, spec::BinarySubtype},
    error::TRANSIENT_TRANSACTION_ERROR,
};
use outbox_core::{
    Enqueue as _, EnqueueError, Event, EventFilter, OutboxAdmin as _, OutboxStore as _, StoreErrorKind,
};
use outbox_mongo::migration_script;
use support::{Place, event, request, sequences};
use uuid::Uuid;

#[tokio::test]
async fn outside_a_transaction_nothing_is_written() {
    let Some(place) = Place::new().await else { return };
    let mut session = place.client.start_session().await.unwrap();
    let one = place.outbox.enqueue(&mut session, &event("1")).await;
    assert!(matches!(one, Err(EnqueueError::NoTransaction)), "{one:?}");
    let many = place.outbox.enqueue_all(&mut session, &[event("1")]).await;
    assert!(matches!(many, Err(EnqueueError::NoTransaction)), "{many:?}");
    // The session is as good as before.
    session.start_transaction().await.unwrap();
    place.outbox.enqueue(&mut session, &event("1")).await.unwrap();
    session.commit_transaction().await.unwrap();
    // After the commit there is no transaction any more.
    let after = place.outbox.enqueue(&mut session, &event("1")).await;
    assert!(matches!(after, Err(EnqueueError::NoTransaction)), "{after:?}");
    session.start_transaction().await.unwrap();
    session.abort_transaction().await.unwrap();
    let after = place.outbox.enqueue(&mut session, &event("1")).await;
    assert!(matches!(after, Err(EnqueueError::NoTransaction)), "{after:?}");
    assert_eq!(place.count("outbox").await, 1);
    place.drop().await;
}

#[tokio::test]
async fn a_snapshot_session_is_refused() {
    let Some(place) = Place::new().await else { return };
    let mut session = place.client.start_session().snapshot(true).await.unwrap();
    let refused = place.outbox.enqueue(&mut session, &event("1")).await;
    assert!(matches!(refused, Err(EnqueueError::Store(_))), "{refused:?}");
    assert_eq!(place.count("outbox").await, 0);
    place.drop().await;
}

#[tokio::test]
async fn an_event_and_its_change_are_written_together_or_not_at_all() {
    let Some(place) = Place::new().await else { return };
    let orders = place.collection("orders");
    orders.insert_one(doc! { "_id": "1", "state": "new" }).await.unwrap();
    let place_order = doc! { "$set": { "state": "placed" } };
    let mut session = place.begin().await;
    orders.update_one(doc! { "_id": "1" }, place_order.clone()).session(&mut session).await.unwrap();
    place.outbox.enqueue(&mut session, &event("1")).await.unwrap();
    session.abort_transaction().await.unwrap();
    // A session that is dropped rolls back as well.
    let mut session = place.begin().await;
    orders.update_one(doc! { "_id": "1" }, place_order.clone()).session(&mut session).await.unwrap();
    place.outbox.enqueue_all(&mut session, &[event("1"), event("1")]).await.unwrap();
    drop(session);
    // It does so in its own time, and no other writer changes the order before.
    orders.update_one(doc! { "_id": "1" }, doc! { "$set": { "seen": true } }).await.unwrap();
    assert_eq!(place.count("outbox").await, 0);
    assert_eq!(orders.count_documents(doc! { "state": "new" }).await.unwrap(), 1);
    let mut session = place.begin().await;
    orders.update_one(doc! { "_id": "1" }, place_order).session(&mut session).await.unwrap();
    place.outbox.enqueue(&mut session, &event("1")).await.unwrap();
    session.commit_transaction().await.unwrap();
    assert_eq!(place.count("outbox").await, 1);
    assert_eq!(orders.count_documents(doc! { "state": "placed" }).await.unwrap(), 1);
    place.drop().await;
}

/// Several at once change one order, each in the driver's own loop, which runs a transaction again that is in
/// another one's way: what was written by a try that was given up must not be there, and versions must ascend
/// as sequences do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_that_are_run_again_write_their_event_once_and_in_order() {
    const WRITERS: usize = 4;
    const CHANGES: usize = 25;
    let Some(place) = Place::new().await else { return };
    place.collection("orders").insert_one(doc! { "_id": "1", "version": 0 }).await.unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (client, name, outbox) = (place.client.clone(), place.name.clone(), place.outbox.clone());
            tokio::spawn(async move {
                let mut tries = 0;
                for _ in 0..CHANGES {
                    tries += change_order(&client, &name, &outbox).await;
                }
                tries
            })
        })
        .collect();
    let mut tries = 0;
    for writer in writers {
        tries += writer.await.unwrap();
    }
    assert!(tries > WRITERS * CHANGES, "no writer was in another's way, and nothing was shown");
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let versions: Vec<i32> = rows.iter().map(|row| row.content.as_ref().unwrap().version).collect();
    let all: Vec<i32> = (1..=i32::try_from(WRITERS * CHANGES).unwrap()).collect();
    assert_eq!(versions, all);
    place.drop().await;
}

/// How many tries it took.
async fn change_order(client: &Client, database: &str, outbox: &outbox_mongo::MongoOutbox) -> usize {
    let orders = client.database(database).collection::<Document>("orders");
    for tries in 1.. {
        let mut session = client.start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        let result = async {
            let inc = orders.find_one_and_update(doc! { "_id": "1" }, doc! { "$inc": { "version": 1 } });
            let before = inc.session(&mut session).await.map_err(Some)?.unwrap();
            let version = before.get_i32("version").unwrap() + 1;
            let event = Event::builder("order", "1", "changed").version(version).build().unwrap();
            match outbox.enqueue(&mut session, &event).await {
                Ok(_) => Ok(()),
                Err(EnqueueError::Store(error)) if error.kind() == StoreErrorKind::Conflict => Err(None),
                Err(error) => panic!("{error}"),
            }
        };
        let result = match result.await {
            Ok(()) => session.commit_transaction().await.map_err(Some),
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => return tries,
            Err(Some(error)) => assert!(error.contains_label(TRANSIENT_TRANSACTION_ERROR), "{error}"),
            Err(None) => {}
        }
        let _ = session.abort_transaction().await;
    }
    unreachable!("the loop has no end")
}

#[tokio::test]
async fn a_duplicate_is_named_and_nothing_is_written() {
    let Some(place) = Place::new().await else { return };
    let id = Uuid::now_v7();
    let twice = || Event::builder("order", "1", "order.placed").id(id).build().unwrap();
    place.commit(&[twice()]).await;
    let mut session = place.begin().await;
    let one = place.outbox.enqueue(&mut session, &twice()).await;
    assert!(matches!(one, Err(EnqueueError::Duplicate(found)) if found == id), "{one:?}");
    session.abort_transaction().await.unwrap();
    let mut session = place.begin().await;
    let events: Vec<Event> = (0..6_000).map(|_| event("2")).chain([twice()]).collect();
    let many = place.outbox.enqueue_all(&mut session, &events).await;
    assert!(matches!(many, Err(EnqueueError::Duplicate(found)) if found == id), "{many:?}");
    drop(session);
    assert_eq!(place.count("outbox").await, 1);
    place.drop().await;
}

#[tokio::test]
async fn many_events_get_their_sequences_in_the_order_given() {
    let Some(place) = Place::new().await else { return };
    let events: Vec<Event> = (0..12_000).map(|n| event(&n.to_string())).collect();
    let numbers = place.commit(&events).await;
    assert_eq!(numbers.len(), events.len());
    assert!(numbers.is_sorted_by(|a, b| a < b));
    let filter = EventFilter::default();
    let listed = place.store.list(&filter, 20_000).await.unwrap();
    let ids: Vec<Uuid> = listed.iter().filter_map(|record| record.id).collect();
    assert_eq!(ids, events.iter().map(Event::id).collect::<Vec<_>>());
    assert_eq!(listed.iter().map(|record| record.sequence).collect::<Vec<_>>(), numbers);
    place.drop().await;
}

#[tokio::test]
async fn a_payload_over_the_limit_is_refused_before_anything_is_sent() {
    let Some(place) = Place::new().await else { return };
    let large = Event::builder("order", "1", "e").payload(vec![0; 1_000_001]).build().unwrap();
    let mut session = place.begin().await;
    let refused = place.outbox.enqueue(&mut session, &large).await;
    assert!(matches!(refused, Err(EnqueueError::Event(_))), "{refused:?}");
    place.outbox.enqueue(&mut session, &event("1")).await.unwrap();
    session.commit_transaction().await.unwrap();
    assert_eq!(place.count("outbox").await, 1);
    place.drop().await;
}

/// A document as a service in another language writes it.
fn plain(id: &str, payload: impl Into<Bson>) -> Document {
    doc! {
        "sequence": Timestamp { time: 0, increment: 0 }, "aggregate_type": "order", "aggregate_id": id,
        "event_type": "order.changed", "payload": payload.into(),
    }
}

#[tokio::test]
async fn a_plain_insert_from_any_language_is_complete_and_in_order() {
    let Some(place) = Place::new().await else { return };
    let outbox = place.collection("outbox");
    for n in 0..3 {
        let mut session = place.begin().await;
        let payload = format!("{{\"path\": \"C:\\new\", \"n\": {n}}}");
        outbox.insert_one(plain("7", payload)).session(&mut session).await.unwrap();
        session.commit_transaction().await.unwrap();
    }
    let bytes = Binary { subtype: BinarySubtype::Generic, bytes: vec![0, 255] };
    let mut last = plain("8", bytes);
    last.extend(doc! { "_id": "0193bb0c-0000-7000-8000-000000000001", "version": 3.0, "status": 0 });
    outbox.insert_many([plain("7", "{}"), last]).await.unwrap();

    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    assert_eq!(rows.len(), 5);
    assert!(sequences(&rows).is_sorted_by(|a, b| a < b));
    let event = rows[2].content.as_ref().unwrap();
    assert_eq!(event.body(), br#"{"path": "C:\new", "n": 2}"#);
    assert_eq!((event.version, event.headers.len(), event.topic.as_deref()), (1, 0, None));
    let event = rows[4].content.as_ref().unwrap();
    assert_eq!((event.version, event.body()), (3, &[0, 255][..]));
    assert_eq!(event.id.to_string(), "0193bb0c-0000-7000-8000-000000000001");
    // Whatever the id was made of, an operator finds the event by it.
    for row in &rows {
        let filter = EventFilter::id(row.content.as_ref().unwrap().id);
        let found = place.store.list(&filter, 10).await.unwrap();
        assert_eq!(found.iter().map(|record| record.sequence).collect::<Vec<_>>(), [row.sequence]);
    }
    // The partition is that of the library's own events of the same aggregate, by whichever relay it is read.
    let sequence = place.commit(&[support::event("7")]).await[0];
    let listed = place.store.list(&EventFilter::aggregate(&support::key("7")), 10).await.unwrap();
    let of_library = listed.iter().find(|record| record.sequence == sequence).unwrap().partition;
    assert!(listed.iter().all(|record| record.partition == of_library), "{listed:?}");
    for lease in &leases {
        let mut reader = place.store.reader(relay).await.unwrap();
        let rows = reader.fetch(request(&[*lease])).await.unwrap().rows;
        assert!(rows.iter().all(|row| row.partition == lease.partition), "{rows:?}");
        if lease.partition == of_library {
            assert_eq!(rows.iter().filter(|row| row.key == support::key("7")).count(), 5);
        }
    }
    place.drop().await;
}

#[tokio::test]
async fn what_nobody_could_read_is_refused_when_it_is_written() {
    let Some(place) = Place::new().await else { return };
    let outbox = place.collection("outbox");
    let without = |field: &str| {
        let mut document = plain("1", "{}");
        document.remove(field);
        document
    };
    let with = |field: &str, value: Bson| {
        let mut document = plain("1", "{}");
        document.insert(field, value);
        document
    };
    // Of 255 characters and 256 bytes.
    let long = Bson::from(format!("é{}", "x".repeat(254)));
    for document in [
        without("sequence"),
        without("aggregate_type"),
        without("aggregate_id"),
        without("event_type"),
        with("sequence", Bson::Int64(1)),
        with("aggregate_id", Bson::Int32(1)),
        with("aggregate_id", "".into()),
        with("payload", doc! { "total": 12 }.into()),
        with("payload", 12.into()),
        with("status", Bson::Int32(7)),
        with("attempts", Bson::Int32(-1)),
        with("aggregate_type", long.clone()),
        with("aggregate_id", long.clone()),
        with("event_type", long.clone()),
        with("content_type", long.clone()),
        with("topic", long),
        with("partition", Bson::Int32(64)),
    ] {
        let refused = outbox.insert_one(document.clone()).await;
        assert!(refused.is_err(), "{document} was taken");
    }
    // The server fills what is inserted, and not what an upsert makes.
    let upsert = outbox.update_one(doc! { "_id": "x" }, doc! { "$set": plain("1", "{}") }).upsert(true).await;
    assert!(upsert.is_err());
    assert_eq!(place.count("outbox").await, 0);
    // What can be a name is one, and what is odd in another way fails alone.
    let fits = Bson::from(format!("é{}", "x".repeat(253)));
    for document in [with("aggregate_id", fits.clone()), with("topic", fits), with("topic", Bson::Int32(1))] {
        outbox.insert_one(document).await.unwrap();
    }
    place.drop().await;
}

#[tokio::test]
async fn a_payload_is_a_text_or_binary_as_it_was_written_and_none_is_a_tombstone() {
    let Some(place) = Place::new().await else { return };
    let json = r#"{"path": "C:\\new \\u00e9 \"ä\" 🦀"}"#;
    let binary =
        |bytes: &[u8]| Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() });
    let mut absent = plain("1", Bson::Null);
    absent.remove("payload");
    let documents =
        [plain("1", json), plain("1", binary(&[0, 255])), plain("1", ""), plain("1", Bson::Null), absent];
    place.collection("outbox").insert_many(documents).await.unwrap();
    let of = |payload: &[u8]| Event::builder("order", "1", "e").payload(payload.to_vec()).build().unwrap();
    let tombstone = Event::tombstone("order", "1", "e").build().unwrap();
    place.commit(&[of(json.as_bytes()), of(&[0xff]), of(b"a\0b"), tombstone]).await;
    let written = place.collection("outbox").find(doc! {}).sort(doc! { "sequence": 1 }).await.unwrap();
    let written: Vec<Document> = written.try_collect().await.unwrap();
    let written: Vec<_> = written.iter().map(|document| document.get("payload").cloned()).collect();
    let (text, bytes) = (Some(Bson::from(json)), |bytes: &[u8]| Some(binary(bytes)));
    assert_eq!(written[5..], [text, bytes(&[0xff]), bytes(b"a\0b"), Some(Bson::Null)]);
    let (relay, leases) = place.relay().await;
    let rows = place.store.reader(relay).await.unwrap().fetch(request(&leases)).await.unwrap().rows;
    let read: Vec<Option<&[u8]>> =
        rows.iter().map(|row| row.content.as_ref().unwrap().payload.as_deref()).collect();
    let (json, bytes) = (Some(json.as_bytes()), Some(&[0, 255][..]));
    let expected = [json, bytes, Some(b""), None, None, json, Some(&[0xff]), Some(b"a\0b"), None];
    assert_eq!(read, expected);
    place.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_may_migrate_at_once_and_again() {
    let Some(place) = Place::empty().await else { return };
    let stores = [place.store.clone(), place.store.clone(), place.store.clone(), place.store.clone()];
    let migrations = stores.map(|store| tokio::spawn(async move { store.migrate().await }));
    for migration in migrations {
        migration.await.unwrap().unwrap();
    }
    place.commit(&[event("1")]).await;
    place.store.migrate().await.unwrap();
    assert_eq!(place.store.check().await.unwrap(), []);
    assert_eq!(place.count("outbox_partitions").await, 64);
    assert_eq!(place.count("outbox").await, 1);
    place.drop().await;
}

#[tokio::test]
async fn events_that_were_written_before_the_migration_are_read_after_it() {
    let Some(place) = Place::empty().await else { return };
    // MongoDB makes a collection when it is first written to.
    let sequence = place.commit(&[event("1")]).await;
    place.store.migrate().await.unwrap();
    assert_eq!(place.store.check().await.unwrap(), []);
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    assert_eq!(sequences(&reader.fetch(request(&leases)).await.unwrap().rows), sequence);
    place.drop().await;
}

#[tokio::test]
async fn the_printed_script_has_a_line_for_every_command() {
    let config = outbox_mongo::MongoConfig::builder().database("shop").build().unwrap();
    let script = migration_script(&config);
    let lines: Vec<&str> = script.lines().collect();
    assert_eq!(lines[1], r#"db = db.getSiblingDB("shop");"#);
    let commands: Vec<&str> = lines[2..].to_vec();
    // The shell throws the error of a command, and these two fail where there is nothing to do.
    for (index, line) in ["pending", "pending_by_key"].iter().zip(&commands) {
        let drop = format!(
            "try {{ db.runCommand({{ \"dropIndexes\": \"outbox\", \"index\": \"{index}\", \"writeConcern\": \
             {{ \"w\": \"majority\" }} }}); }} catch (error) {{ if (![27, 26].includes(error.code)) throw error; }}"
        );
        assert_eq!(**line, drop);
    }
    let commands = &commands[2..];
    assert!(
        commands.iter().all(|line| line.starts_with("db.runCommand({ ") && line.ends_with(" });")),
        "{script}"
    );
    for (index, start) in [
        r#""createIndexes": "outbox", "indexes": [{ "key": { "sequence": 1 }, "name": "sequence", "unique": true }"#,
        r#""createIndexes": "outbox_holds""#,
        r#""createIndexes": "outbox_archive""#,
        r#""createIndexes": "outbox_relays""#,
        r#""createIndexes": "outbox_topics""#,
        r#""collMod": "outbox", "validator": { "$jsonSchema": "#,
        r#""update": "outbox_partitions", "updates": [{ "q": { "_id": 0 }, "u": { "$setOnInsert": { "owner": null, "epoch": NumberLong(0), "#,
        r#""update": "outbox_meta""#,
        r#""delete": "outbox_relays", "deletes": [{ "q": { "schema": { "$exists": false } }, "limit": 0 }]"#,
    ]
    .iter()
    .enumerate()
    {
        assert!(commands[index].contains(start), "{}", commands[index]);
    }
    assert_eq!(commands.len(), 9);
    assert!(script.contains(r#""sequence": { "$gt": Timestamp(0, 0) }"#), "{script}");
    assert!(script.contains(r#""status": { "$in": [0, null] }"#), "{script}");
}

#[tokio::test]
async fn a_newer_schema_is_refused_by_its_version_and_an_older_one_is_upgraded() {
    let Some(place) = Place::new().await else { return };
    let meta = place.collection("outbox_meta");
    let set = |version: i64| doc! { "$set": { "value": version } };
    meta.update_one(doc! { "_id": "schema_version" }, set(7)).await.unwrap();
    let error = place.store.migrate().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Schema);
    assert!(error.to_string().contains("version 7, newer than 2"), "{error}");
    let error = place.store.join(std::time::Duration::from_secs(1)).await.unwrap_err();
    assert!(error.to_string().contains("version 7, newer than 2"), "{error}");
    meta.update_one(doc! { "_id": "schema_version" }, set(0)).await.unwrap();
    place.store.migrate().await.unwrap();
    assert_eq!(place.store.check().await.unwrap(), []);
    place.drop().await;
}

#[tokio::test]
async fn without_collections_the_error_says_what_to_do() {
    let Some(place) = Place::empty().await else { return };
    let error = place.store.join(std::time::Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Schema);
    assert!(error.to_string().contains("run the migration"), "{error}");
    let relay = outbox_core::store::RelayId(Uuid::now_v7());
    let error = place.store.membership(relay).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Schema, "{error}");
    let lease = outbox_core::store::Lease { partition: 0, epoch: 1 };
    let error = place.store.reader(relay).await.unwrap().fetch(request(&[lease])).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Schema, "{error}");
    place.drop().await;
}

#[tokio::test]
async fn two_outboxes_in_one_database_know_nothing_of_each_other() {
    let Some(place) = Place::new().await else { return };
    let other = outbox_mongo::MongoConfig::builder().url(&place.url).database(&place.name).table("billing");
    let other = other.build().unwrap();
    let store = outbox_mongo::MongoStore::connect_lazy(&other).await.unwrap();
    store.migrate().await.unwrap();
    place.commit(&[event("1")]).await;
    let mut session = place.begin().await;
    let sequence = store.outbox().enqueue(&mut session, &event("1")).await.unwrap();
    session.commit_transaction().await.unwrap();
    assert_eq!(store.check().await.unwrap(), []);
    let listed = store.list(&EventFilter::default(), 10).await.unwrap();
    assert_eq!(listed.iter().map(|record| record.sequence).collect::<Vec<_>>(), [sequence]);
    place.drop().await;
}
