//! Short ways that the tests of stores, publishers and inboxes share, beside the suite: for what one of them
//! does in its own way. They panic where what they ask for fails, as a test does.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "helpers of tests, in which a panic is a failure"
)]

use std::{sync::Arc, time::Duration};

use outbox_core::{
    AggregateKey, Disposal, Event, EventFilter, OutboxAdmin, OutboxStore, Relay, RelayConfig, WhenSent,
    memory::MemoryPublisher,
    publisher::Message,
    store::{
        FailureCause, FetchRequest, HoldReason, Lease, Outcome, PurgeRequest, RelayId, Row, Sequence,
        SettleRequest, Settlement, Status, Successors,
    },
};

/// Says in one line on stderr what a test goes without, so that none is skipped in silence.
///
/// # Panics
/// With the same line if `OUTBOX_REQUIRE_SERVERS` is `1`, as it is where everything is meant to be there.
#[allow(clippy::print_stderr, reason = "a test that asks nothing is never silent about it")]
pub fn absent(what: &str) {
    assert!(std::env::var("OUTBOX_REQUIRE_SERVERS").as_deref() != Ok("1"), "{what}");
    eprintln!("{what}");
}

/// The value of an environment variable, which says where a server is. `None`, after [`absent`], if it is not
/// set. `service` is the server's name in `scripts/services.sh`.
pub fn address(server: &str, service: &str, variable: &str) -> Option<String> {
    let address = std::env::var(variable).ok();
    if address.is_none() {
        absent(&format!(
            "{server} is not there: {variable} is not set; run `scripts/services.sh up {service}` and \
             `eval \"$(scripts/services.sh env)\"`"
        ));
    }
    address
}

/// An event of an order.
pub fn event(id: &str) -> Event {
    Event::builder("order", id, "order.placed").payload("{}").build().unwrap()
}

/// The aggregate of [`event`].
pub fn key(id: &str) -> AggregateKey {
    AggregateKey::new("order", id)
}

/// A request for everything of these leases.
pub fn request(leases: &[Lease]) -> FetchRequest {
    FetchRequest::new(leases.to_vec(), 1000, 64 << 20)
}

/// The sequences of rows.
pub fn sequences(rows: &[Row]) -> Vec<Sequence> {
    rows.iter().map(|row| row.sequence).collect()
}

/// The same outcome for all these rows, at their first attempt.
pub fn settle(relay: RelayId, leases: &[Lease], rows: &[Row], outcome: &Outcome) -> SettleRequest {
    let settlement =
        |row: &Row| Settlement::new(row.sequence, row.partition, row.key.clone(), 1, outcome.clone());
    let mut request = SettleRequest::new(relay, leases.to_vec());
    request.settlements = rows.iter().map(settlement).collect();
    request
}

/// Claims every partition that is free.
pub async fn claim_all(store: &dyn OutboxStore, relay: RelayId) -> Vec<Lease> {
    let seen = store.membership(relay).await.unwrap().partitions;
    let seen: Vec<_> = seen.iter().map(|view| (view.partition, view.epoch)).collect();
    store.claim(relay, &seen).await.unwrap().into_iter().map(|claimed| claimed.lease).collect()
}

/// Calls every method of a store, and has each do what it is for, so that a login whose rights do not suffice
/// is found out. The store has eight plain events, of the aggregates 1 to 8 in this order, and nothing else.
pub async fn use_everything(store: &dyn OutboxStore, admin: &dyn OutboxAdmin) {
    let id = store.join(Duration::from_secs(60)).await.unwrap();
    assert!(store.beat(id, Duration::from_secs(60)).await.unwrap());
    let leases = claim_all(store, id).await;
    let mut reader = store.reader(id).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    assert_eq!(rows.len(), 8);
    let lease = *leases.iter().find(|lease| lease.partition == rows[0].partition).unwrap();
    assert!(store.begin_attempt(id, lease, rows[0].sequence, 1).await.unwrap());
    let error = || "no".to_owned();
    let (after, cause) = (Duration::ZERO, FailureCause::Exhausted);
    for (row, (outcome, when_sent)) in rows.chunks(1).zip([
        (Outcome::Sent, WhenSent::Keep),
        (Outcome::Sent, WhenSent::Delete),
        (Outcome::Sent, WhenSent::Archive),
        (Outcome::Retry { after, error: error(), reason: HoldReason::Topic }, WhenSent::Keep),
        (Outcome::Failed { cause, error: error(), successors: Successors::Park }, WhenSent::Keep),
        (Outcome::Failed { cause, error: error(), successors: Successors::Release }, WhenSent::Keep),
    ]) {
        let request = settle(id, &leases, row, &outcome).with_when_sent(when_sent);
        assert!(store.settle(&request).await.unwrap().fenced.is_empty());
    }
    let due = reader.fetch(request(&leases)).await.unwrap().due_holds.remove(0).row.unwrap();
    let archive = settle(id, &leases, &[due], &Outcome::Sent).with_when_sent(WhenSent::Archive);
    store.settle(&archive).await.unwrap();
    operate(admin).await;
    for disposal in [Disposal::Archive, Disposal::Delete] {
        let age = Some((Duration::ZERO, disposal));
        store.purge(PurgeRequest::new(1).with_sent(age).with_failed(age)).await.unwrap();
    }
    assert_eq!(store.stats().await.unwrap().pending, 2);
    store.quick_stats().await.unwrap();
    store.release(id, &leases).await.unwrap();
    store.leave(id).await.unwrap();
}

/// The operator's half of [`use_everything`].
async fn operate(admin: &dyn OutboxAdmin) {
    let all = EventFilter::default();
    assert_eq!(admin.list(&EventFilter::status(Status::Failed), 10).await.unwrap().len(), 2);
    assert_eq!(admin.requeue(&all).await.unwrap(), 2);
    assert_eq!(admin.discard(&all).await.unwrap(), 2);
    admin.pause(&key("8")).await.unwrap();
    assert!(admin.resume(&key("8")).await.unwrap());
    assert_eq!(admin.holds(10).await.unwrap().len(), 3);
    admin.pause_topic("t").await.unwrap();
    assert_eq!(admin.paused_topics().await.unwrap(), ["t"]);
    assert!(admin.resume_topic("t").await.unwrap());
}

/// What the suite looks for in a table that an earlier release wrote: [`expect_upgraded`].
#[derive(Debug, Clone, Copy)]
pub struct Written {
    /// When its second event was written, in microseconds since 1970.
    pub created_micros: i64,
    /// The number of an event, from 1 on, where its sequence is more than that.
    pub number: fn(Sequence) -> Sequence,
}

/// Looks for everything that the fixture of an earlier release has, and then delivers it: events of every
/// status, one that cannot be read, the archive, holds and a paused topic. Every store's fixture says the
/// same in its own way.
pub async fn expect_upgraded<S: OutboxStore + OutboxAdmin + Clone>(store: &S, written: Written) {
    expect_written(store, written).await;
    let number = written.number;
    let publisher = Arc::new(MemoryPublisher::new());
    let relay = Relay::new(store.clone(), publisher.clone(), RelayConfig::default()).unwrap();
    assert!(relay.check().await.is_empty());
    let mut handle = relay.handle();
    let running = tokio::spawn(relay.run());
    tokio::time::timeout(Duration::from_secs(60), publisher.delivered_at_least(3)).await.unwrap();
    let permanent = EventFilter::default().with_cause(FailureCause::Permanent);
    assert_eq!(store.requeue(&permanent).await.unwrap(), 1);
    tokio::time::timeout(Duration::from_secs(60), publisher.delivered_at_least(5)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), handle.caught_up()).await.unwrap().unwrap();
    handle.shutdown();
    running.await.unwrap();
    let arrived = |id: &str| -> Vec<i64> {
        let of = |message: &&Arc<Message>| message.key.aggregate_id() == id;
        publisher.delivered().iter().filter(of).map(|message| number(message.sequence)).collect()
    };
    assert_eq!(
        [arrived("a"), arrived("b"), arrived("c"), arrived("d")],
        [vec![2, 6], vec![3], vec![4, 5], vec![]]
    );
    let undecodable = EventFilter::default().with_cause(FailureCause::Undecodable);
    assert_eq!(number(store.list(&undecodable, 10).await.unwrap()[0].sequence), 7);
}

async fn expect_written(admin: &impl OutboxAdmin, Written { created_micros, number }: Written) {
    let listed = admin.list(&EventFilter::default(), 100).await.unwrap();
    let shown: Vec<_> = listed
        .iter()
        .map(|event| (number(event.sequence), event.status, event.attempts, event.key.aggregate_id()))
        .collect();
    let (pending, sent, failed) = (Status::Pending, Status::Sent, Status::Failed);
    let expected = [
        (1, sent, 1, "a"),
        (2, pending, 2, "a"),
        (3, pending, 0, "b"),
        (4, failed, 3, "c"),
        (5, pending, 0, "c"),
        (6, pending, 0, "a"),
        (7, pending, 0, "d"),
    ];
    assert_eq!(shown, expected);
    let second = &listed[1];
    assert_eq!(
        (second.version, second.payload.as_deref(), second.topic.as_deref()),
        (2, Some(&[0, 255][..]), Some("special"))
    );
    assert_eq!(second.headers["tenant"], "ä");
    assert_eq!(second.created_at.timestamp_micros(), created_micros);
    assert_eq!(
        (listed[3].cause, listed[3].last_error.as_deref()),
        (Some(FailureCause::Permanent), Some("TooLarge: no"))
    );
    let archived = admin.list(&EventFilter::default().in_archive(), 100).await.unwrap();
    let shown: Vec<_> = archived.iter().map(|event| (number(event.sequence), event.status)).collect();
    assert_eq!(shown, [(100, sent)]);
    let holds = admin.holds(10).await.unwrap();
    let shown: Vec<_> = holds
        .iter()
        .map(|hold| (hold.key.aggregate_id(), hold.sequence.map(number), hold.reason, hold.due_in))
        .collect();
    let expected =
        [("a", Some(2), HoldReason::Backoff, Some(Duration::ZERO)), ("c", Some(4), HoldReason::Parked, None)];
    assert_eq!(shown, expected);
    assert_eq!(admin.paused_topics().await.unwrap(), ["paused"]);
}

/// What must not be shown of any of [`malformed_urls`].
pub const URL_SECRET: &str = "hush4711canary";

/// Some hundred URLs whose password, [`URL_SECRET`] with something beside it, was not percent-encoded, or
/// whose end got lost. Whatever a program makes of them, it must not show the secret: not in an error, and
/// not in the `Debug` of what it accepts.
pub fn malformed_urls(scheme: &str) -> Vec<String> {
    let marks = [
        "", "/", "?", "#", "@", ":", "%", "%zz", "%4", "[", "]", " ", "&", ";", "\\", "\n", "ä", "\"", "=",
        ",",
    ];
    let ends =
        ["@host/db", "@host:5432/db", "@host", "@host:no/db", "@[::1/db", "@", "", "@host/db?x=@", "/@h"];
    let mut urls = Vec::new();
    for mark in marks {
        for password in [
            format!("{URL_SECRET}{mark}1"),
            format!("77{mark}{URL_SECRET}"),
            format!("77{mark}{URL_SECRET}{mark}{mark}77"),
        ] {
            for end in ends {
                // Without an @ behind it, this is a right URL: with a port and a path, or of another host.
                let right = password == format!("77@{URL_SECRET}") || password.starts_with("77/");
                if end.contains('@') || !right {
                    urls.push(format!("{scheme}://me:{password}{end}"));
                }
            }
        }
    }
    urls
}
