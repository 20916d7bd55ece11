//! What a consumer may rely on.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use outbox_core::{
    AggregateKey,
    cloudevents::{self, TOMBSTONE},
    publisher::Message,
    store::PAYLOAD_BYTES_MAX_DEFAULT,
};

use crate::{
    publisher::stage::Stage,
    violation::{Verdict, equal, that},
};

pub(super) async fn a_message_is_stored_once(stage: &Stage<'_>) -> Verdict {
    let destination = stage.harness.destination().await;
    let mut all = Vec::new();
    for count in [1, 3, 500] {
        let messages = stage.messages(&destination, count);
        stage.publish(&format!("a call with {count} messages"), &messages).await?;
        all.extend(messages);
    }
    stage.expect_stored("what was published", &destination, &all).await.map(drop)
}

pub(super) async fn a_message_goes_to_its_destination(stage: &Stage<'_>) -> Verdict {
    if !stage.harness.routes() {
        stage.not_asked("this publisher has one place for all destinations");
        return Ok(());
    }
    let (left, right) = (stage.harness.destination().await, stage.harness.destination().await);
    let (to_left, to_right) = (stage.messages(&left, 5), stage.messages(&right, 3));
    let mixed: Vec<_> = to_left.iter().rev().chain(&to_right).rev().cloned().collect();
    stage.publish("messages to two destinations in one call", &mixed).await?;
    stage.expect_stored("messages to the one", &left, &to_left).await?;
    stage.expect_stored("messages to the other", &right, &to_right).await.map(drop)
}

pub(super) async fn an_aggregate_keeps_its_order(stage: &Stage<'_>) -> Verdict {
    let destination = stage.harness.destination().await;
    let mut of_one = Vec::new();
    for _ in 0..10 {
        let mut message = stage.message(&destination);
        message.key = AggregateKey::new("order", "one");
        let mut messages = stage.messages(&destination, 2);
        of_one.push(message.sequence);
        messages.insert(1, Arc::new(message));
        stage.publish("a call with one message of an aggregate", &messages).await?;
    }
    let stored = stage.stored(&destination).await;
    let found: Vec<_> = stored
        .iter()
        .map(|stored| stage.sequence_of(stored))
        .filter(|found| of_one.contains(found))
        .collect();
    equal("the order of the messages of an aggregate", of_one, found)
}

pub(super) async fn an_aggregate_has_one_key(stage: &Stage<'_>) -> Verdict {
    let destination = stage.harness.destination().await;
    let mut keys = Vec::new();
    for id in ["one", "two", "one"] {
        let mut message = stage.message(&destination);
        message.key = AggregateKey::new("order", id);
        keys.push(stage.store_one("a message", message).await?.key);
    }
    if keys.iter().all(Option::is_none) {
        stage.not_asked("the harness reads no keys");
        return Ok(());
    }
    that(keys.iter().all(Option::is_some), "a key with every message", &keys)?;
    that(keys[0] == keys[2], "one key for two messages of an aggregate", &keys)?;
    that(keys[0] != keys[1], "different keys for aggregates with different ids", &keys)
}

pub(super) async fn every_byte_of_a_payload_is_stored(stage: &Stage<'_>) -> Verdict {
    let every_byte: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
    for (content_type, payload) in [
        (Some("application/octet-stream"), every_byte.clone()),
        (None, every_byte),
        (Some("text/plain; charset=utf-8"), "ä 🦀\r\n\t\0".as_bytes().to_vec()),
        (None, b"{\"a\" : 1.10,\t\"a\":2}".to_vec()),
    ] {
        let mut message = stage.message(&stage.harness.destination().await);
        message.event.payload = Some(payload.clone().into());
        message.event.content_type = content_type.map(str::to_owned);
        let stored = stage.store_one("a message with odd bytes", message).await?;
        equal("the payload", payload, stored.payload.to_vec())?;
    }
    Ok(())
}

pub(super) async fn an_empty_payload_is_stored(stage: &Stage<'_>) -> Verdict {
    let mut message = stage.message(&stage.harness.destination().await);
    message.event.payload = Some(Bytes::new());
    let stored = stage.store_one("a message with an empty payload", message).await?;
    equal("its payload in bytes", 0, stored.payload.len())?;
    equal("its attribute tombstone", None, stored.attributes.get(TOMBSTONE).map(String::as_str))
}

pub(super) async fn a_tombstone_is_marked(stage: &Stage<'_>) -> Verdict {
    let mut message = stage.message(&stage.harness.destination().await);
    message.event.payload = None;
    let stored = stage.store_one("a message without a payload", message).await?;
    equal("its payload in bytes", 0, stored.payload.len())?;
    equal("its attribute tombstone", Some("true"), stored.attributes.get(TOMBSTONE).map(String::as_str))
}

pub(super) async fn a_large_payload_is_stored_whole(stage: &Stage<'_>) -> Verdict {
    let limit = stage.publisher.capabilities().payload_bytes_max.unwrap_or(PAYLOAD_BYTES_MAX_DEFAULT);
    let bytes = limit.min(PAYLOAD_BYTES_MAX_DEFAULT);
    let payload: Vec<u8> = (0..bytes).map(|index| (index * 31 % 251) as u8).collect();
    let mut message = stage.message(&stage.harness.destination().await);
    message.event.payload = Some(payload.clone().into());
    let stored = stage.store_one("a large message", message).await?;
    equal("its payload in bytes", bytes, stored.payload.len())?;
    that(payload == stored.payload, "the payload as it was", "other bytes")
}

pub(super) async fn headers_are_stored_as_written(stage: &Stage<'_>) -> Verdict {
    let keeps_case = stage.harness.header_names_keep_their_case();
    let mut headers = BTreeMap::from(
        [
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("X-Mixed-Case", "Value with ünïcode 🦀, \"quotes\", {braces}, 100 % and \\"),
            ("empty", ""),
            ("!#$%&'*+-.^_`|~09az", "a name of every kind of character"),
            ("id", "a name that is an attribute's elsewhere"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    headers.insert("h".repeat(255), "v".repeat(8_000));
    if keeps_case {
        headers.insert("x-mixed-case".to_owned(), "another header".to_owned());
    }
    let mut message = stage.message(&stage.harness.destination().await);
    message.event.headers = headers.clone();
    let stored = stage.store_one("a message with odd headers", message).await?;
    let name = |name: &str| if keeps_case { name.to_owned() } else { name.to_ascii_lowercase() };
    for (wanted, value) in &headers {
        let found = stored.headers.iter().find(|(found, _)| name(found) == name(wanted));
        equal(&format!("the value of header {wanted:?}"), Some(value), found.map(|(_, value)| value))?;
    }
    Ok(())
}

pub(super) async fn the_event_is_a_cloudevent(stage: &Stage<'_>) -> Verdict {
    let destination = stage.harness.destination().await;
    let plain = stage.message(&destination);
    let mut rich = stage.message(&destination);
    rich.key = AggregateKey::new("Ördér 'type' %", "id/🦀 \"?$1\"");
    rich.event.event_type = "naïve.événement; --".to_owned();
    rich.event.version = 3;
    rich.event.content_type = Some("application/x-protobuf; v=\"1\"".to_owned());
    rich.attempt = 2;
    for message in [plain, rich] {
        let expected = attributes(&message);
        let content_type = cloudevents::content_type(&message).to_owned();
        let stored = stage.store_one("a CloudEvent", message).await?;
        for (name, value) in expected {
            equal(&format!("the attribute {name}"), Some(&value), stored.attributes.get(name))?;
        }
        equal("the content type", Some(content_type), stored.content_type)?;
    }
    Ok(())
}

fn attributes(message: &Message) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    cloudevents::attributes(message, &mut String::new(), |name, value| all.push((name, value.to_owned())));
    all
}
