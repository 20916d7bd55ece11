//! What a writer may rely on: atomicity, order and fidelity.

use std::time::Duration;

use chrono::TimeDelta;
use outbox_core::{
    AggregateKey, EnqueueError, Event, EventFilter,
    store::{CONTENT_TYPE_DEFAULT, Outcome, PAYLOAD_BYTES_MAX_DEFAULT, Row, StoredEvent},
};
use uuid::Uuid;

use crate::{
    store::relay::Relay,
    store::stage::{Stage, build, event},
    violation::{Verdict, Violation, equal, same_sequences, that},
};

pub(super) async fn a_committed_event_is_returned(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let event = event("a");
    let sequences = stage.commit_events(vec![event.clone()]).await?;
    let row = relay.expect_row("the committed event", sequences[0]).await?;
    equal("its id", event.id(), content(&row)?.id)
}

pub(super) async fn a_rolled_back_event_is_never_returned(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let events = vec![event("a"), event("b")];
    let ids = events.iter().map(Event::id).collect();
    stage.harness.begin(events).await.rollback().await;
    let after = stage.commit_one("a").await?;
    relay.expect_rows("what was committed after the roll-back", &[after]).await?;
    let listed = stage.admin.list(&EventFilter::default().with_ids(ids), 10).await?;
    equal("rows of the rolled back transaction", 0, listed.len())
}

pub(super) async fn an_open_transaction_is_invisible(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let transaction = stage.harness.begin(vec![event("a"), event("a"), event("b")]).await;
    let sequences = transaction.sequences();
    relay.expect_nothing("while the transaction is open").await?;
    transaction.commit().await;
    relay.expect_rows("after the commit", &sequences).await.map(drop)
}

pub(super) async fn sequences_ascend_in_the_order_given(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let mut events: Vec<Event> = (0..200).map(|number| event(&format!("k{}", number % 7))).collect();
    // Ids in descending order, so that nothing that sorts by id gets the order right by chance.
    events.sort_by_key(|event| std::cmp::Reverse(event.id()));
    let ids: Vec<Uuid> = events.iter().map(Event::id).collect();
    let together = stage.commit_events(events).await?;
    let one_by_one = stage.harness.begin(vec![event("k0"), event("k1"), event("k0")]).await;
    let sequences = [together.clone(), one_by_one.sequences()].concat();
    one_by_one.commit().await;

    that(sequences[0] > 0, "sequences above zero", sequences[0])?;
    that(sequences.is_sorted_by(|left, right| left < right), "ascending sequences", &sequences)?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    let found: Vec<Uuid> =
        rows[..together.len()].iter().filter_map(|row| Some(row.content.as_ref().ok()?.id)).collect();
    equal("the ids at the sequences that were returned for them", ids, found)
}

pub(super) async fn every_field_is_returned_as_written(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let every_byte: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
    let plain = build(Event::builder("order", "plain", "order.placed"));
    let rich = build(
        Event::builder("Ördér 'type' \"x\" \\ %_", "id/🦀 ?$1", "naïve.événement; --")
            .payload(every_byte)
            .version(2_147_483_647)
            .content_type("application/x-protobuf; charset=\"ü\"")
            .topic("topic.ñ/with-everything_1")
            .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .header("X-Mixed-Case", "Value with ünïcode 🦀, \"quotes\", {braces} and \\")
            .header("x-mixed-case", "another header")
            .header("empty", ""),
    );
    let long = build(
        Event::builder("t".repeat(255), "i".repeat(255), "e".repeat(255))
            .topic("o".repeat(255))
            .content_type("c".repeat(255))
            .header("h".repeat(255), "v".repeat(15_000)),
    );
    for event in [plain, rich, long] {
        let sequence = stage.commit_events(vec![event.clone()]).await?[0];
        let row = relay.expect_row("the event", sequence).await?;
        let found = content(&row)?;
        let wanted = AggregateKey::new(event.aggregate_type(), event.aggregate_id());
        equal("aggregate", &wanted, &row.key)?;
        equal("attempts", 0, row.attempts)?;
        equal("id", event.id(), found.id)?;
        equal("event_type", event.event_type(), &found.event_type)?;
        equal("version", event.version(), found.version)?;
        equal("payload", event.payload(), found.payload.as_ref())?;
        let content_type = found.content_type.as_deref().unwrap_or(CONTENT_TYPE_DEFAULT);
        equal("content_type", event.content_type(), content_type)?;
        equal("headers", event.headers(), &found.headers)?;
        equal("topic", event.topic(), found.topic.as_deref())?;

        let record = stage.record_of(sequence).await?;
        equal("the operator's id", Some(event.id()), record.id)?;
        equal("the operator's aggregate", &wanted, &record.key)?;
        equal("the operator's partition", row.partition, record.partition)?;
        equal("the operator's event_type", event.event_type(), &record.event_type)?;
        equal("the operator's version", event.version(), record.version)?;
        equal("the operator's payload", event.payload(), record.payload.as_ref())?;
        equal("the operator's headers", event.headers(), &record.headers)?;
        equal("the operator's topic", event.topic(), record.topic.as_deref())?;
    }
    Ok(())
}

pub(super) async fn a_payload_of_a_megabyte_is_returned_whole(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let payload: Vec<u8> = (0..PAYLOAD_BYTES_MAX_DEFAULT).map(|index| (index * 31 % 251) as u8).collect();
    let large = build(Event::builder("order", "a", "order.placed").payload(payload.clone()));
    let sequence = stage.commit_events(vec![large]).await?[0];
    let row = relay.expect_row("the large event", sequence).await?;
    that(content(&row)?.body() == payload, "the payload as it was written", content(&row)?.payload_len())
}

pub(super) async fn every_kind_of_payload_is_returned_as_written(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let payloads: [Option<&[u8]>; 9] = [
        None,
        Some(b""),
        Some(br#"{"path": "C:\\dir", "quote": "\"", "line": "a\nb", "name": "Jos\u00e9 \ud83e\udd80"}"#),
        Some("{\"name\": \"José 🦀\"}\r\n".as_bytes()),
        Some(br"\x7b7d"),
        Some(b"a\0b"),
        Some(b"\xff\xfe"),
        Some(b" \t "),
        Some(b"null"),
    ];
    for payload in payloads {
        let builder = match payload {
            Some(payload) => Event::builder("order", "a", "order.placed").payload(payload.to_vec()),
            None => Event::tombstone("order", "a", "order.deleted"),
        };
        let sequence = stage.commit_events(vec![build(builder)]).await?[0];
        let row = relay.expect_row("the event", sequence).await?;
        equal("payload", payload, content(&row)?.payload.as_deref())?;
        equal("the operator's payload", payload, stage.record_of(sequence).await?.payload.as_deref())?;
        relay.finish(&row, 1, Outcome::Sent).await?;
    }
    Ok(())
}

pub(super) async fn keys_that_look_alike_stay_apart(stage: &Stage<'_>) -> Verdict {
    // What the usual collations merge: case, accents, trailing blanks, width, ligatures, composed and
    // decomposed forms, and what a separator could confuse.
    let names = [
        "a",
        "A",
        "ä",
        "Ä",
        "a ",
        " a",
        "a\u{0308}",
        "\u{ff41}",
        "ß",
        "ss",
        "SS",
        "ﬁ",
        "fi",
        "1",
        "01",
        "1.0",
        "a/b",
        "a%",
        "a_",
        "ı",
        "i",
        "I",
        "İ",
        "e\u{301}",
        "é",
        "\u{200b}a",
        "🦀",
        "🦞",
    ];
    let mut keys: Vec<(&str, &str)> = names.iter().map(|name| ("order", *name)).collect();
    keys.extend([("ab", "c"), ("a", "bc"), ("Order", "a"), ("order ", "a"), ("a/b", "c"), ("a", "b/c")]);
    let mut relay = Relay::new(stage).await?;
    let events = keys.iter().map(|(kind, id)| build(Event::builder(*kind, *id, "order.placed"))).collect();
    let sequences = stage.commit_events(events).await?;
    let rows = relay.expect_rows("one event of each aggregate", &sequences).await?;
    for (row, (kind, id)) in rows.iter().zip(&keys) {
        equal("aggregate", &AggregateKey::new(kind, id), &row.key)?;
    }
    // A pause of one of them is a pause of that one alone.
    let paused = AggregateKey::new("order", "a");
    stage.admin.pause(&paused).await?;
    relay.renew_reader().await?;
    let others: Vec<_> = sequences.iter().copied().filter(|sequence| *sequence != sequences[0]).collect();
    relay.expect_rows("all aggregates but order/a, which is paused", &others).await?;
    let listed = stage.admin.list(&EventFilter::aggregate(&paused), 100).await?;
    let found: Vec<_> = listed.iter().map(|record| record.sequence).collect();
    same_sequences("the operator's list of order/a", &sequences[..1], &found)
}

pub(super) async fn a_duplicate_id_is_refused(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let first = event("a");
    let sequence = stage.commit_events(vec![first.clone()]).await?[0];
    let again = build(Event::builder("order", "b", "order.placed").id(first.id()));
    let answer = stage.harness.commit(vec![again.clone()]).await;
    that(
        matches!(&answer, Err(EnqueueError::Duplicate(id)) if *id == first.id()),
        format!("the error Duplicate({})", first.id()),
        &answer,
    )?;
    // Of many events the database may not say which one it was.
    let beside = event("c");
    let answer = stage.harness.commit(vec![beside.clone(), again]).await;
    that(answer.is_err(), "an error", &answer)?;
    relay.expect_rows("the first event and nothing of the refused transactions", &[sequence]).await?;
    equal(
        "rows of the second transaction",
        0,
        stage.admin.list(&EventFilter::id(beside.id()), 1).await?.len(),
    )
}

pub(super) async fn age_is_counted_by_the_stores_clock(stage: &Stage<'_>) -> Verdict {
    // A second of tolerance: a store may keep times in milliseconds, and ask for the time once in a
    // transaction.
    let tolerance = TimeDelta::seconds(1);
    let mut relay = Relay::new(stage).await?;
    let before = stage.harness.now().await;
    let sequence = stage.commit_one("a").await?;
    let after = stage.harness.now().await;
    stage.harness.advance(Duration::from_millis(200)).await;
    let row = relay.expect_row("the event", sequence).await?;
    let created_at = content(&row)?.created_at;
    let range = before - tolerance..=after + tolerance;
    that(range.contains(&created_at), format!("created_at in {range:?}"), created_at)?;
    let end = stage.harness.now().await;
    let age_max = (end - created_at + tolerance).to_std().unwrap_or_default();
    let ages = Duration::from_millis(190)..=age_max;
    that(ages.contains(&row.age), format!("an age in {ages:?}"), row.age)?;
    equal("the operator's created_at", created_at, stage.record_of(sequence).await?.created_at)
}

fn content(row: &Row) -> Verdict<&StoredEvent> {
    let sequence = row.sequence;
    row.content.as_ref().map_err(|error| Violation::new(format!("event {sequence} to be readable"), error))
}
