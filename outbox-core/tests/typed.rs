//! Typed events, derived: what is written, and what is read back.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

use std::fmt::Display;

use outbox_core::{
    DecodeError, Event, EventKind, OutboxEvent, ReceivedEvent,
    store::{CONTENT_TYPE_DEFAULT, check_headers},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

#[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent)]
#[outbox(crate = outbox_core)]
#[outbox(aggregate_type = "order", event_type = "order.placed", version = 2)]
struct OrderPlaced {
    #[outbox(aggregate_id)]
    order: String,
    total: i64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent)]
#[serde(tag = "type", rename_all = "snake_case")]
#[outbox(crate = outbox_core, aggregate_type = "payment", version = 3, topic = "payments")]
enum Command {
    #[outbox(event_type = "payment.charge")]
    Charge {
        #[outbox(aggregate_id)]
        order: u64,
        cents: i64,
    },
    #[outbox(event_type = "payment.refund", version = 4, topic = "refunds")]
    Refund {
        cents: i64,
        #[outbox(aggregate_id)]
        r#order: u64,
    },
}

/// The id is made of two fields, in a type with a parameter and without names.
#[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent)]
#[outbox(crate = outbox_core, aggregate_type = "tenant", event_type = "tenant.noted", aggregate_id = Self::key)]
#[outbox(content_type = "application/vnd.shop+json")]
struct Noted<T: Serialize>(u8, u8, T);

impl<T: Serialize> Noted<T> {
    fn key(&self) -> impl Display + use<T> {
        format!("{}-{}", self.0, self.1)
    }
}

/// Serde's default of an enum, with a tuple and a unit.
#[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent)]
#[outbox(crate = outbox_core, aggregate_type = "clock", aggregate_id = Clock::name)]
enum Clock {
    #[outbox(event_type = "clock.set")]
    Set(u64),
    #[outbox(event_type = "clock.stopped")]
    Stopped,
}

impl Clock {
    fn name(&self) -> &'static str {
        "tower"
    }
}

fn placed() -> OrderPlaced {
    OrderPlaced { order: "7".to_owned(), total: 12 }
}

/// What a consumer reads of it.
fn received(event: &Event) -> ReceivedEvent {
    check_headers(event.headers()).unwrap();
    let version = event.version().to_string();
    ReceivedEvent::from_headers([
        ("content-type", event.content_type()),
        ("ce_specversion", "1.0"),
        ("ce_id", "1"),
        ("ce_source", "/shop"),
        ("ce_type", event.event_type()),
        ("ce_dataversion", &version),
    ])
    .unwrap()
}

#[test]
fn a_struct_is_one_event_type() {
    let event = placed().to_event().unwrap();
    assert_eq!(event.aggregate_type(), "order");
    assert_eq!(event.aggregate_id(), "7");
    assert_eq!((event.event_type(), event.version(), event.topic()), ("order.placed", 2, None));
    assert_eq!(event.content_type(), CONTENT_TYPE_DEFAULT);
    assert_eq!(event.payload().unwrap(), r#"{"order":"7","total":12}"#);
    assert_eq!(received(&event).decode::<OrderPlaced>(event.payload().unwrap()).unwrap(), placed());
}

#[test]
fn each_variant_of_an_enum_is_an_event_type() {
    assert_eq!(
        Command::KINDS,
        [EventKind::new("payment.charge", 3), EventKind::new("payment.refund", 4)],
        "in the order of the variants"
    );
    let charge = Command::Charge { order: 1, cents: 5 };
    let event = charge.to_event().unwrap();
    assert_eq!((event.event_type(), event.version(), event.topic()), ("payment.charge", 3, Some("payments")));
    assert_eq!(event.payload().unwrap(), r#"{"type":"charge","order":1,"cents":5}"#);
    assert_eq!(received(&event).decode::<Command>(event.payload().unwrap()).unwrap(), charge);
    let refund = Command::Refund { order: 2, cents: 6 };
    let event = refund.to_event().unwrap();
    assert_eq!((event.event_type(), event.version(), event.topic()), ("payment.refund", 4, Some("refunds")));
    assert_eq!(event.aggregate_id(), "2");
    assert_eq!(received(&event).decode::<Command>(event.payload().unwrap()).unwrap(), refund);
}

#[test]
fn an_id_is_given_by_a_function_where_no_field_is_it() {
    let noted = Noted(3, 4, vec!["x".to_owned()]);
    let event = noted.to_event().unwrap();
    assert_eq!((event.aggregate_id(), event.content_type()), ("3-4", "application/vnd.shop+json"));
    assert_eq!(received(&event).decode::<Noted<Vec<String>>>(event.payload().unwrap()).unwrap(), noted);
    for (clock, event_type) in [(Clock::Set(9), "clock.set"), (Clock::Stopped, "clock.stopped")] {
        let event = clock.to_event().unwrap();
        assert_eq!((event.aggregate_id(), event.event_type(), event.version()), ("tower", event_type, 1));
        assert_eq!(received(&event).decode::<Clock>(event.payload().unwrap()).unwrap(), clock);
    }
}

#[test]
fn a_builder_adds_what_the_type_does_not_say() {
    let id = Uuid::now_v7();
    let event = Event::of(&placed()).id(id).topic("elsewhere").header("tenant", "acme").build().unwrap();
    assert_eq!((event.id(), event.topic(), event.event_type()), (id, Some("elsewhere"), "order.placed"));
}

#[test]
fn a_message_of_another_kind_is_not_read() {
    let event = placed().to_event().unwrap();
    let message = received(&event);
    assert!(message.is::<OrderPlaced>() && !message.is::<Command>());
    let error = message.decode::<Command>(event.payload().unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the event type is \"order.placed\", and payment.charge or payment.refund is read here: ask `is` before `decode`"
    );

    let older = Event::builder("order", "1", "order.placed")
        .payload(event.payload().unwrap().clone())
        .build()
        .unwrap();
    let error = received(&older).decode::<OrderPlaced>(older.payload().unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "order.placed has version 1, and 2 is read here: add a type that reads version 1"
    );

    let protobuf = Event::of(&placed()).content_type("application/protobuf");
    let error =
        received(&protobuf.build().unwrap()).decode::<OrderPlaced>(event.payload().unwrap()).unwrap_err();
    assert!(matches!(error, DecodeError::ContentType { .. }), "{error}");
    let with_parameter = Event::of(&placed()).content_type("Application/JSON; charset=utf-8");
    received(&with_parameter.build().unwrap()).decode::<OrderPlaced>(event.payload().unwrap()).unwrap();
}

#[test]
fn a_payload_that_is_not_what_its_kind_promises_is_not_read() {
    let event = placed().to_event().unwrap();
    let error = received(&event).decode::<OrderPlaced>(b"{}").unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.starts_with("missing field `order`"), "{source}");

    // The header says one variant, the payload another.
    let charge = Command::Charge { order: 1, cents: 5 }.to_event().unwrap();
    let refund = Command::Refund { order: 1, cents: 5 }.to_event().unwrap();
    let error = received(&charge).decode::<Command>(refund.payload().unwrap()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(source, "its content is that of payment.refund, version 4");
}
