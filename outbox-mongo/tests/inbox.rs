//! The inbox: the contract that all of them share, and what is MongoDB's own.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use mongodb::{
    ClientSession,
    bson::{Bson, doc},
    error::TRANSIENT_TRANSACTION_ERROR,
};
use outbox_conformance::{InboxHarness, InboxTransaction};
use outbox_core::{
    Inbox as _, InboxError, Receipt, StoreErrorKind, consume_once,
    inbox::{EventIdentity, PURGE_AGE_MIN},
};
use outbox_mongo::{MongoConfig, MongoInbox, inbox_migration_script};

use support::{Place, account, remove_account};

struct Inboxes(Place);

impl Inboxes {
    async fn new() -> Option<Self> {
        let place = Place::empty().await?;
        inbox(&place.config, "any").migrate(&place.client).await.unwrap();
        Some(Self(place))
    }
}

fn inbox(config: &MongoConfig, consumer: &str) -> MongoInbox {
    MongoInbox::new(config, consumer).unwrap()
}

#[async_trait]
impl InboxHarness for Inboxes {
    async fn fresh() -> Option<Self> {
        Self::new().await
    }

    async fn cleanup(self) {
        self.0.drop().await;
    }

    async fn begin(&self) -> Box<dyn InboxTransaction> {
        Box::new(Open { place: self.0.clone(), session: self.0.begin().await })
    }

    async fn receive_outside(
        &self,
        consumer: &str,
        event: &EventIdentity,
    ) -> Option<Result<Receipt, InboxError>> {
        let mut session = self.0.client.start_session().await.unwrap();
        Some(inbox(&self.0.config, consumer).receive(&mut session, event).await)
    }

    async fn effects(&self, name: &str) -> u64 {
        self.0.collection("effects").count_documents(doc! { "name": name }).await.unwrap()
    }

    async fn receipts(&self) -> u64 {
        self.0.count("outbox_inbox").await
    }

    async fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.0.now().await.timestamp_millis()).unwrap()
    }
}

struct Open {
    place: Place,
    session: ClientSession,
}

#[async_trait]
impl InboxTransaction for Open {
    async fn receive(&mut self, consumer: &str, event: &EventIdentity) -> Result<Receipt, InboxError> {
        inbox(&self.place.config, consumer).receive(&mut self.session, event).await
    }

    async fn purge(
        &mut self,
        consumer: &str,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, InboxError> {
        inbox(&self.place.config, consumer).purge(&mut self.session, older_than, rows_max).await
    }

    async fn effect(&mut self, name: &str) {
        let effects = self.place.collection("effects");
        effects.insert_one(doc! { "name": name }).session(&mut self.session).await.unwrap();
    }

    async fn commit(mut self: Box<Self>) -> Result<(), InboxError> {
        self.session.commit_transaction().await.map_err(|error| {
            assert!(error.contains_label(TRANSIENT_TRANSACTION_ERROR), "{error}");
            outbox_core::StoreError::new(StoreErrorKind::Conflict, "commit").into()
        })
    }

    async fn rollback(mut self: Box<Self>) {
        self.session.abort_transaction().await.unwrap();
    }
}

outbox_conformance::inbox_suite!(Inboxes);

/// An event that happened so long ago.
fn event(id: &str, age: Duration) -> EventIdentity {
    EventIdentity::new("/shop", id, Some(Utc::now() - age)).unwrap()
}

const OLD: Duration = Duration::from_secs(3 * 3600);

async fn handle(place: &Place, events: &[&EventIdentity]) {
    let mut session = place.begin().await;
    for event in events {
        let receipt = inbox(&place.config, "billing").receive(&mut session, event).await.unwrap();
        assert_eq!(receipt, Receipt::New, "{event:?}");
    }
    session.commit_transaction().await.unwrap();
}

async fn purge(place: &Place, rows_max: u32) -> u64 {
    let mut session = place.begin().await;
    let purged = inbox(&place.config, "billing").purge(&mut session, PURGE_AGE_MIN, rows_max).await.unwrap();
    session.commit_transaction().await.unwrap();
    purged
}

/// The first copy is handled and purged after the transaction has its snapshot and before it asks: what it
/// sees is from before both. The server has to find the conflict though nothing of the document is left.
#[tokio::test]
async fn a_snapshot_from_before_receipt_and_purge_does_not_make_an_event_new() {
    for checkpoint in [false, true] {
        let Some(Inboxes(place)) = Inboxes::new().await else { return };
        let copied = event("1", OLD);
        let mut late = place.begin().await;
        place.collection("outbox_inbox_meta").find_one(doc! {}).session(&mut late).await.unwrap();
        handle(&place, &[&copied]).await;
        if checkpoint {
            place.client.database("admin").run_command(doc! { "fsync": 1 }).await.unwrap();
        }
        assert_eq!(purge(&place, 10).await, 1);
        if checkpoint {
            place.client.database("admin").run_command(doc! { "fsync": 1 }).await.unwrap();
        }
        match inbox(&place.config, "billing").receive(&mut late, &copied).await {
            Err(InboxError::Store(error)) => assert_eq!(error.kind(), StoreErrorKind::Conflict, "{error}"),
            answer => panic!("{answer:?}, checkpoint: {checkpoint}"),
        }
        late.abort_transaction().await.unwrap();
        place.drop().await;
    }
}

/// The same where the snapshot has the receipt.
#[tokio::test]
async fn a_snapshot_from_before_the_purge_does_not_make_an_old_event_new() {
    let Some(Inboxes(place)) = Inboxes::new().await else { return };
    let copied = event("1", OLD);
    handle(&place, &[&copied]).await;
    let mut late = place.begin().await;
    place.collection("outbox_inbox_meta").find_one(doc! {}).session(&mut late).await.unwrap();
    assert_eq!(purge(&place, 10).await, 1);
    let receipt = inbox(&place.config, "billing").receive(&mut late, &copied).await.unwrap();
    assert_eq!(receipt, Receipt::Seen);
    late.abort_transaction().await.unwrap();
    place.drop().await;
}

#[tokio::test]
async fn the_inbox_needs_no_outbox_and_the_printed_script_names_all_that_is_made() {
    let Some(place) = Place::empty().await else { return };
    let inbox = inbox(&place.config, "billing");
    let missing = inbox.check(&place.client).await.unwrap();
    assert_eq!(missing.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["missing-collection"]);
    assert!(missing[0].problem.contains("outbox_inbox_horizons"), "all are named: {missing:?}");
    let mut session = place.begin().await;
    let refused = inbox.purge(&mut session, PURGE_AGE_MIN, 10).await.unwrap_err();
    assert!(
        matches!(&refused, InboxError::Store(error) if error.kind() == StoreErrorKind::Schema),
        "{refused}"
    );
    session.abort_transaction().await.unwrap();
    for _ in 0..2 {
        inbox.migrate(&place.client).await.unwrap();
    }
    assert_eq!(inbox.check(&place.client).await.unwrap(), []);
    let script = inbox_migration_script(&place.config);
    let made = place.database.list_collection_names().await.unwrap();
    assert_eq!(made.len(), 3, "{made:?}");
    assert!(made.iter().all(|name| script.contains(&format!("{name:?}"))), "{made:?}: {script}");
    place.drop().await;
}

#[tokio::test]
async fn two_processes_may_migrate_at_once() {
    let Some(place) = Place::empty().await else { return };
    let migrations = [(); 4].map(|()| {
        let (client, inbox) = (place.client.clone(), inbox(&place.config, "billing"));
        tokio::spawn(async move { inbox.migrate(&client).await })
    });
    for migration in migrations {
        migration.await.unwrap().unwrap();
    }
    assert_eq!(inbox(&place.config, "billing").check(&place.client).await.unwrap(), []);
    place.drop().await;
}

#[tokio::test]
async fn findings_name_what_is_wrong_and_a_newer_version_is_left_alone() {
    let Some(Inboxes(place)) = Inboxes::new().await else { return };
    handle(&place, &[&EventIdentity::new("/legacy", "17", None).unwrap()]).await;
    let inbox = inbox(&place.config, "billing");
    let codes = async || -> Vec<&str> {
        inbox.check(&place.client).await.unwrap().iter().map(|finding| finding.code).collect()
    };
    let say = async |value: i32| {
        let meta = place.collection("outbox_inbox_meta");
        meta.update_one(doc! {}, doc! { "$set": { "value": value } }).await.unwrap();
    };
    assert_eq!(codes().await, ["events-without-time"]);
    say(0).await;
    assert_eq!(codes().await, ["schema-older", "events-without-time"]);
    say(2).await;
    assert_eq!(codes().await, ["schema-newer", "events-without-time"]);
    let error = inbox.migrate(&place.client).await.unwrap_err();
    assert!(error.kind() == StoreErrorKind::Schema && error.to_string().contains("version 2"), "{error}");
    say(1).await;
    place.collection("outbox_inbox").drop_index("time").await.unwrap();
    assert_eq!(codes().await, ["missing-index"]);
    place.collection("outbox_inbox_horizons").drop().await.unwrap();
    let collation = doc! { "locale": "en", "strength": 1 };
    let create = doc! { "create": "outbox_inbox_horizons", "collation": collation };
    place.database.run_command(create).await.unwrap();
    assert!(codes().await.contains(&"collation"));
    place.collection("outbox_inbox_horizons").drop().await.unwrap();
    assert_eq!(codes().await, ["missing-collection"]);
    place.drop().await;
}

#[tokio::test]
async fn the_documented_privileges_are_enough_and_missing_ones_are_named() {
    const CONSUMER: [(&str, &[&str]); 4] = [
        ("", &["listCollections"]),
        ("outbox_inbox", &["find", "insert", "update", "remove", "listIndexes"]),
        ("outbox_inbox_horizons", &["find", "insert", "update", "listIndexes"]),
        ("outbox_inbox_meta", &["find"]),
    ];
    let Some(Inboxes(place)) = Inboxes::new().await else { return };
    let inbox = inbox(&place.config, "billing");
    let reads: Vec<(&str, &[&str])> =
        CONSUMER.iter().map(|(name, _)| (*name, &["find", "listCollections"][..])).collect();
    let url = account(&place, "reader", &reads).await;
    let findings = inbox.check(&mongodb::Client::with_uri_str(&url).await.unwrap()).await.unwrap();
    assert_eq!(findings.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["privilege", "privilege"]);
    assert!(findings[0].problem.contains("the consumer may not listIndexes, insert"), "{findings:?}");
    remove_account(&place, "reader").await;

    let url = account(&place, "consumer", &CONSUMER).await;
    let client = mongodb::Client::with_uri_str(&url).await.unwrap();
    assert_eq!(inbox.check(&client).await.unwrap(), []);
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let old = event("1", OLD);
    assert_eq!(inbox.receive(&mut session, &old).await.unwrap(), Receipt::New);
    assert_eq!(inbox.purge(&mut session, PURGE_AGE_MIN, 10).await.unwrap(), 1);
    assert_eq!(inbox.receive(&mut session, &old).await.unwrap(), Receipt::TooOld);
    session.commit_transaction().await.unwrap();
    remove_account(&place, "consumer").await;
    place.drop().await;
}

/// A handler on a task of its own, which begins again as MongoDB asks.
#[tokio::test]
async fn an_effect_is_made_once_on_any_task() {
    let Some(Inboxes(place)) = Inboxes::new().await else { return };
    place.database.create_collection("effects").await.unwrap();
    let copies = [(); 4].map(|()| {
        let (place, inbox) = (place.clone(), inbox(&place.config, "billing"));
        tokio::spawn(async move {
            let event = EventIdentity::new("/shop", "1", None).unwrap();
            loop {
                let mut session = place.begin().await;
                let effect = async |session: &mut ClientSession| -> Result<(), InboxError> {
                    let effects = place.collection("effects");
                    effects.insert_one(doc! { "name": "invoice" }).session(session).await.unwrap();
                    Ok(())
                };
                match consume_once(&inbox, &mut session, &event, effect).await {
                    Ok(receipt) => {
                        session.commit_transaction().await.unwrap();
                        return receipt;
                    }
                    Err(InboxError::Store(error)) if error.kind() == StoreErrorKind::Conflict => {
                        session.abort_transaction().await.unwrap();
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    let receipts = futures::future::join_all(copies).await;
    assert_eq!(receipts.into_iter().filter(|receipt| matches!(receipt, Ok(Receipt::New))).count(), 1);
    assert_eq!(place.count("effects").await, 1);
    place.drop().await;
}

/// Events within one millisecond are apart, and names that look like expressions are names.
#[tokio::test]
async fn times_are_kept_to_the_microsecond_and_names_as_they_are() {
    let Some(Inboxes(place)) = Inboxes::new().await else { return };
    let at = DateTime::from_timestamp_micros(1_760_000_000_000_001).unwrap();
    let of = |id: &str, micros: i64| {
        EventIdentity::new("$$NOW", id, Some(at + chrono::TimeDelta::microseconds(micros))).unwrap()
    };
    handle(&place, &[&of("$source", 5)]).await;
    assert_eq!(purge(&place, 10).await, 1);
    for (micros, expected) in [(4, Receipt::TooOld), (5, Receipt::TooOld), (6, Receipt::New)] {
        let mut session = place.begin().await;
        let receipt = inbox(&place.config, "billing").receive(&mut session, &of("$id", micros)).await;
        assert_eq!(receipt.unwrap(), expected, "{micros}");
        session.abort_transaction().await.unwrap();
    }
    place.drop().await;
}

/// Few receipts of many are old: the purge looks at no others, and at no other consumer's.
#[tokio::test]
async fn a_purge_reads_only_what_it_removes() {
    let Some(Inboxes(place)) = Inboxes::new().await else { return };
    let now = Utc::now().timestamp_micros();
    let receipts = (0..20_000_i64).map(|n| {
        let consumer = if n % 2 == 0 { "billing" } else { "shipping" };
        doc! { "_id": { "consumer": consumer, "source": "/shop", "id": n.to_string() }, "time_us": now - n * 1_000_000 }
    });
    place.collection("outbox_inbox").insert_many(receipts).await.unwrap();
    let latest = now - i64::try_from(PURGE_AGE_MIN.as_micros()).unwrap();
    let find = doc! {
        "find": "outbox_inbox", "filter": { "_id.consumer": "billing", "time_us": { "$lt": latest } },
        "hint": "time", "sort": { "time_us": 1 }, "limit": 100,
    };
    let explain = doc! { "explain": find, "verbosity": "executionStats" };
    let plan = place.database.run_command(explain).await.unwrap();
    let stats = plan.get_document("executionStats").unwrap();
    let examined = ["totalKeysExamined", "totalDocsExamined"].map(|name| stats.get(name).cloned());
    assert_eq!(examined, [Some(Bson::Int32(100)), Some(Bson::Int32(100))]);
    assert_eq!(purge(&place, 100).await, 100);
    assert_eq!(place.count("outbox_inbox").await, 19_900);
    place.drop().await;
}
