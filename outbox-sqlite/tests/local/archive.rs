//! The archive takes what comes twice.

use std::time::Duration;

use outbox_core::{
    Disposal, EventFilter, OutboxAdmin as _, OutboxStore as _, WhenSent,
    store::{
        EventRecord, FailureCause, Outcome, PurgeRequest, Sequence, SettleRequest, Settlement, Successors,
    },
};
use uuid::Uuid;

use crate::common::{TestDatabase, TestRelay, event};

async fn archive_all(database: &TestDatabase) {
    // A relay that begins now, as after a restore.
    let mut relay = TestRelay::new(database.store()).await;
    let rows = relay.fetch().await.rows;
    let settlements = rows
        .iter()
        .map(|row| Settlement::new(row.sequence, row.partition, row.key.clone(), 1, Outcome::Sent));
    let request = SettleRequest::new(relay.id, vec![relay.lease])
        .with_settlements(settlements.collect())
        .with_when_sent(WhenSent::Archive);
    assert!(relay.store.settle(&request).await.unwrap().fenced.is_empty());
    relay.store.leave(relay.id).await.unwrap();
}

fn write(database: &TestDatabase, count: usize) -> Vec<Uuid> {
    let mut connection = database.connect();
    let events: Vec<_> = (0..count).map(|n| event(&n.to_string())).collect();
    let transaction = connection.transaction().unwrap();
    database.store().outbox().enqueue_all(&transaction, &events).unwrap();
    transaction.commit().unwrap();
    events.iter().map(outbox_core::Event::id).collect()
}

fn shown(records: &[EventRecord]) -> Vec<(Sequence, Uuid)> {
    let mut shown: Vec<_> = records.iter().map(|record| (record.sequence, record.id.unwrap())).collect();
    shown.sort();
    shown
}

#[tokio::test]
async fn an_event_with_a_number_that_the_archive_has_is_archived_beside_it() {
    let database = TestDatabase::new();
    let mut expected = Vec::new();
    for _ in 0..3 {
        let ids = write(&database, 4);
        expected.extend((1..).zip(ids));
        archive_all(&database).await;
        // The numbers begin again.
        database.connect().execute("DELETE FROM sqlite_sequence WHERE name = 'outbox'", []).unwrap();
    }
    // Retention moves them as well.
    let ids = write(&database, 2);
    expected.extend((1..).zip(ids));
    let mut relay = TestRelay::new(database.store()).await;
    let rows = relay.fetch().await.rows;
    let (cause, successors) = (FailureCause::Permanent, Successors::Release);
    relay.settle(&rows, Outcome::Failed { cause, error: "no".to_owned(), successors }).await;
    let failed = relay.store.list(&EventFilter::default(), 10).await.unwrap();
    let all = PurgeRequest::new(10).with_failed(Some((Duration::ZERO, Disposal::Archive)));
    while relay.store.purge(all).await.unwrap().failed == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    expected.sort();
    let filter = EventFilter::default().in_archive();
    let listed = relay.store.list(&filter, 100).await.unwrap();
    assert_eq!(shown(&listed), expected);
    assert!(listed.is_sorted_by_key(|record| record.sequence));
    // An event that failed says since when, in the archive too.
    let archived = listed.iter().filter(|record| record.cause.is_some()).map(|record| record.failed_at);
    assert_eq!(
        archived.collect::<Vec<_>>(),
        failed.iter().map(|record| record.failed_at).collect::<Vec<_>>()
    );
    assert!(failed.len() == 2 && failed.iter().all(|record| record.failed_at.is_some()));
    // Page by page, whatever their size: no event is missing and none comes twice.
    for rows_max in 1..=14 {
        let (mut paged, mut filter) = (Vec::new(), filter.clone());
        loop {
            let page = relay.store.list(&filter, rows_max).await.unwrap();
            let Some(last) = page.last() else { break };
            filter = filter.after(last.sequence);
            paged.extend(page);
        }
        assert_eq!(shown(&paged), expected, "{rows_max} at a time");
    }
    assert_eq!(relay.store.list(&filter, 0).await.unwrap(), []);
    let (sequence, id) = expected[6];
    let found = relay.store.list(&EventFilter::id(id).in_archive(), 10).await.unwrap();
    assert_eq!(shown(&found), [(sequence, id)]);
}

#[tokio::test]
async fn the_same_event_again_is_archived_once() {
    let database = TestDatabase::new();
    let connection = database.connect();
    let mut expected: Vec<(Sequence, Uuid)> = Vec::new();
    for _ in 0..2 {
        expected.extend((1..).zip(write(&database, 2)));
        archive_all(&database).await;
        connection.execute("DELETE FROM sqlite_sequence WHERE name = 'outbox'", []).unwrap();
    }
    expected.sort();
    // A backup of the table, from before they were sent, is restored: first of one time, then of the other.
    for table in ["outbox_archive", "outbox_archive_again"] {
        let columns = "sequence, id, aggregate_type, aggregate_id, event_type";
        let restore = format!("INSERT INTO outbox ({columns}) SELECT {columns} FROM {table}");
        assert_eq!(connection.execute(&restore, []).unwrap(), 2);
        archive_all(&database).await;
    }
    let listed = database.store().list(&EventFilter::default().in_archive(), 100).await.unwrap();
    assert_eq!(shown(&listed), expected);
    assert!(listed.iter().all(|record| record.payload.is_none()), "the newer one is kept");
}
