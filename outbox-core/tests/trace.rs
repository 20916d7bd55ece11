//! The trace context of the current span, with a real layer of `tracing-opentelemetry`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use outbox_core::{Event, EventBuilder, check_traceparent};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;

fn builder() -> EventBuilder {
    Event::builder("order", "4711", "order.placed")
}

fn traceparent(event: &Event) -> &str {
    event.headers().get("traceparent").map(String::as_str).unwrap_or_default()
}

fn with_layer<T>(sampler: Sampler, test: impl FnOnce() -> T) -> T {
    let provider = SdkTracerProvider::builder().with_sampler(sampler).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), test)
}

#[test]
fn the_event_continues_the_trace_of_the_handler() {
    with_layer(Sampler::AlwaysOn, || {
        let request = tracing::info_span!("request");
        let inner = request.in_scope(|| tracing::info_span!("write"));
        let event = inner.in_scope(|| builder().trace_from_current().build().unwrap());
        let context = inner.context();
        let span = context.span().span_context().clone();
        let expected = format!("00-{}-{}-01", span.trace_id(), span.span_id());
        assert_eq!(traceparent(&event), expected);
        check_traceparent(traceparent(&event)).unwrap();
        assert_eq!(span.trace_id(), request.context().span().span_context().trace_id());
        assert_ne!(span.span_id(), request.context().span().span_context().span_id());
    });
}

#[test]
fn a_trace_that_is_not_sampled_says_so() {
    with_layer(Sampler::AlwaysOff, || {
        let span = tracing::info_span!("request");
        let event = span.in_scope(|| builder().trace_from_current().build().unwrap());
        assert!(traceparent(&event).ends_with("-00"), "{:?}", event.headers());
    });
}

#[test]
fn a_span_of_opentelemetry_alone_will_do() {
    let provider = SdkTracerProvider::builder().build();
    let tracer = provider.tracer("test");
    let (event, span) = tracer.in_span("request", |context| {
        (builder().trace_from_current().build().unwrap(), context.span().span_context().clone())
    });
    assert_eq!(traceparent(&event), format!("00-{}-{}-01", span.trace_id(), span.span_id()));
}

#[test]
fn without_a_span_the_event_goes_without() {
    let event = builder().trace_from_current().build().unwrap();
    assert!(event.headers().is_empty());
    with_layer(Sampler::AlwaysOn, || {
        assert!(builder().trace_from_current().build().unwrap().headers().is_empty());
    });
}
