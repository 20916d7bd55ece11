//! The plans of the relay's statements, on the real server: the same on an empty, a small and a huge
//! collection.
#![allow(clippy::print_stderr, reason = "a server that is not there is never passed by in silence")]

use mongodb::bson::{Bson, DateTime as BsonDateTime, Document, doc};
use outbox_core::{
    AggregateKey,
    store::{FetchRequest, Lease, Page},
};
use uuid::Uuid;

use super::{Snapshot, news, page::Rows, position::Position};
use crate::{
    MongoConfig, MongoStore,
    codec::sequence::{sequence_of, timestamp_of},
    schema::{FAILED, PENDING, PENDING_BY_KEY, SEQUENCE},
    store::among,
};

const VARIABLE: &str = "OUTBOX_TEST_MONGODB_URL";

async fn store() -> Option<MongoStore> {
    let url = outbox_conformance::testing::address("MongoDB", "mongodb", VARIABLE)?;
    let name = format!("p_{}", Uuid::now_v7().simple());
    let config = MongoConfig::builder().url(url).database(name).build().unwrap();
    let store = MongoStore::connect_lazy(&config).await.unwrap();
    store.migrate().await.unwrap();
    Some(store)
}

/// Events and holds without number; every hundredth is scheduled, every tenth was given up.
async fn insert(store: &MongoStore, from: usize, to: usize) {
    let database = store.database();
    let event = |n: usize| {
        let mut event = doc! {
            "sequence": timestamp_of(0), "aggregate_type": "order", "aggregate_id": (n % 1000).to_string(),
            "event_type": "e", "payload": "", "partition": (n % 64) as i32,
        };
        if n.is_multiple_of(100) {
            event.insert("available_at", BsonDateTime::from_millis(4_000_000_000_000 - n as i64));
        }
        if n.is_multiple_of(10) {
            event.extend(doc! { "status": 2, "failed_at": BsonDateTime::now() });
        }
        event
    };
    let outbox = database.majority.collection::<Document>(&database.names().outbox);
    let holds = database.majority.collection::<Document>(&database.names().holds);
    for from in (from..to).step_by(10_000) {
        let numbers = || from..to.min(from + 10_000);
        outbox.insert_many(numbers().map(event)).await.unwrap();
        let hold = |n: usize| {
            doc! {
                "_id": { "aggregate_type": "parked", "aggregate_id": n.to_string() }, "partition": (n % 64) as i32,
                "until": BsonDateTime::from_millis(4_000_000_000_000 + n as i64), "reason": "backoff",
            }
        };
        holds.insert_many(numbers().map(hold)).await.unwrap();
    }
}

/// The stages of a plan, the outermost first, each with its index.
fn stages(plan: &Document) -> Vec<String> {
    let mut found = Vec::new();
    let stage = plan.get_str("stage").unwrap_or_default();
    found.push(format!("{stage} {}", plan.get_str("indexName").unwrap_or_default()).trim().to_owned());
    for (name, inner) in plan {
        match inner {
            Bson::Document(inner) if name.ends_with("inputStage") => found.extend(stages(inner)),
            Bson::Array(inner) if name == "inputStages" => {
                found.extend(inner.iter().filter_map(Bson::as_document).flat_map(stages));
            }
            _ => {}
        }
    }
    found.dedup();
    found
}

async fn plan_of_find(store: &MongoStore, filter: Document, index: &str, sorted: bool) -> Vec<String> {
    let mut find =
        doc! { "find": &store.database().names().outbox, "filter": filter, "hint": index, "limit": 100 };
    if sorted {
        find.insert("sort", doc! { "sequence": 1 });
    }
    let explain = doc! { "explain": find, "verbosity": "queryPlanner" };
    let answer = store.database().majority.run_command(explain).await.unwrap();
    stages(answer.get_document("queryPlanner").unwrap().get_document("winningPlan").unwrap())
}

async fn check_finds(store: &MongoStore) {
    let database = store.database();
    let all: Vec<Lease> = (0..64).map(|partition| Lease { partition, epoch: 1 }).collect();
    for leases in [&all[..], &all[..20], &all[40..41]] {
        let request = FetchRequest::default()
            .with_leases(leases.to_vec())
            .with_known((1..2_000).map(|n| (1_795_000_000 << 31) + n).collect())
            .with_full(vec![AggregateKey::new("order", "7")]);
        let mut position = Position::new();
        position.lease(&request);
        let session = database.client.start_session().snapshot(true).await.unwrap();
        let (now, snapshot) = (BsonDateTime::now(), 1 << 40);
        let at = Snapshot { database, session, request: &request, now, moment: snapshot, any_hold: true };
        let scan = plan_of_find(store, position.filter(&at, 0, &[]), PENDING, true).await;
        assert_eq!(scan, ["LIMIT", "FETCH", "IXSCAN unsent"], "of {} leases", leases.len());

        let batch: Vec<_> = (0..32).map(|n| (AggregateKey::new("order", &n.to_string()), 0)).collect();
        let by_key = plan_of_find(store, position.of_batch(&batch, at.now), PENDING_BY_KEY, true).await;
        assert!(by_key.contains(&"IXSCAN unsent_by_key".to_owned()), "{by_key:?}");
        assert!(!by_key.iter().any(|stage| stage == "COLLSCAN" || stage == "SORT"), "{by_key:?}");
    }
    let settle = plan_of_find(store, among(&[timestamp_of(1 << 40)]), PENDING, false).await;
    assert_eq!(settle, ["LIMIT", "FETCH", "IXSCAN unsent"]);
    let sent = doc! { "status": 1, "sequence": { "$lt": timestamp_of(i64::MAX) } };
    assert_eq!(plan_of_find(store, sent, SEQUENCE, true).await, ["LIMIT", "FETCH", "IXSCAN sequence"]);
    let failed = doc! { "status": 2, "failed_at": { "$lt": BsonDateTime::now() } };
    assert_eq!(plan_of_find(store, failed, FAILED, true).await, ["LIMIT", "FETCH", "IXSCAN failed"]);
}

/// What the statement of the news reads, by list: documents examined, and the indexes used.
async fn check_news(store: &MongoStore) {
    let database = store.database();
    for partitions in [64, 20, 1] {
        let leases = (0..partitions).map(|partition| Lease { partition, epoch: 1 }).collect();
        let mut position = Position::new();
        position.lease(&FetchRequest::default().with_leases(leases));
        position.due = (BsonDateTime::now(), 7);
        check_lists(store, news::pipeline(database, &position, 256)).await;
    }
}

async fn check_lists(store: &MongoStore, pipeline: Vec<Document>) {
    let database = store.database();
    let aggregate = doc! {
        "aggregate": &database.names().meta, "pipeline": pipeline, "cursor": {},
    };
    let explain = doc! { "explain": aggregate, "verbosity": "executionStats" };
    let answer = database.majority.run_command(explain).await.unwrap();
    let mut lists = 0;
    for stage in answer.get_array("stages").unwrap().iter().filter_map(Bson::as_document) {
        let Ok(look_up) = stage.get_document("$lookup") else { continue };
        lists += 1;
        let name = look_up.get_str("as").unwrap();
        let examined = stage.get_i64("totalDocsExamined").unwrap();
        assert!(examined <= 2, "{name} examined {examined} documents: {stage}");
        let scans = stage.get_i64("collectionScans").unwrap();
        assert!(scans == 0 || name == "any_hold", "{name} scans its collection: {stage}");
    }
    assert_eq!(lists, 6);
}

#[tokio::test]
async fn all_statements_of_a_fetch_see_one_state() {
    let Some(store) = store().await else { return };
    insert(&store, 1, 3).await;
    let database = store.database();
    let leases = (0..64).map(|partition| Lease { partition, epoch: 1 }).collect();
    let request = FetchRequest::new(leases, 10, 1 << 20);
    let mut position = Position::new();
    position.lease(&request);
    let mut session = database.client.start_session().snapshot(true).await.unwrap();
    let news = news::News::read(database, &mut session, &position).await.unwrap().unwrap();
    // Both an event and a hold of another one.
    insert(&store, 3, 4).await;
    let hold = doc! { "_id": { "aggregate_type": "order", "aggregate_id": "1" }, "partition": 1, "reason": "paused" };
    database.majority.collection(&database.names().holds).insert_one(hold).await.unwrap();
    let snapshot = session.snapshot_time().and_then(sequence_of).unwrap();
    let mut at =
        Snapshot { database, session, request: &request, now: news.now, moment: snapshot, any_hold: true };
    let mut found = Rows { rows: Vec::new(), page: Page::new(&request) };
    position.scan(&mut at, &mut found).await.unwrap();
    let ids: Vec<&str> = found.rows.iter().map(|row| row.key.aggregate_id()).collect();
    assert_eq!(ids, ["1", "2"]);
    database.majority.drop().await.unwrap();
}

#[tokio::test]
async fn the_plans_are_right_on_an_empty_a_small_and_a_huge_collection() {
    let Some(store) = store().await else { return };
    for (from, to) in [(0, 0), (0, 50), (50, 60_000)] {
        insert(&store, from, to).await;
        check_finds(&store).await;
        check_news(&store).await;
    }
    store.database().majority.drop().await.unwrap();
}
