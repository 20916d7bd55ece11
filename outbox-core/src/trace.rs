//! The writer's trace context in an event's headers, by W3C Trace Context.

use crate::{EventBuilder, EventError};

/// The header of the trace and its parent span, as [W3C Trace Context](https://www.w3.org/TR/trace-context/)
/// names it.
const TRACEPARENT: &str = "traceparent";
/// The header of what vendors add.
const TRACESTATE: &str = "tracestate";

/// The longest `tracestate` that is taken along, in bytes: what the standard asks every party to pass on
/// (section 3.3.1.5). A longer one is dropped alone, which the standard allows.
const TRACESTATE_BYTES_MAX: usize = 512;

impl EventBuilder {
    /// Takes a trace context along, such as that of an incoming request: the consumer's `traceparent`, whose
    /// spans then belong to the same trace. The relay passes both headers through as they are.
    ///
    /// An invalid `traceparent` is dropped, and `tracestate` with it; an invalid or overlong `tracestate` is
    /// dropped alone. Both are logged at level debug, with the reason. The context often comes from outside,
    /// the standard asks for just this, and a stranger's broken header must not refuse the writer's
    /// transaction. Where it must, ask [`check_traceparent`] before.
    ///
    /// ```
    /// use outbox_core::Event;
    ///
    /// let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    /// let event = Event::builder("order", "4711", "order.placed").trace_context(parent, Some("vendor=1")).build()?;
    /// assert_eq!(event.headers()["traceparent"], parent);
    /// let event = Event::builder("order", "4711", "order.placed").trace_context("garbage", None).build()?;
    /// assert!(event.headers().is_empty());
    /// # Ok::<(), outbox_core::EventError>(())
    /// ```
    pub fn trace_context(self, traceparent: &str, tracestate: Option<&str>) -> Self {
        if let Err(error) = check_traceparent(traceparent) {
            tracing::debug!(traceparent, %error, "the event goes without a trace context");
            return self;
        }
        let event = self.header(TRACEPARENT, traceparent);
        match tracestate {
            None | Some("") => event,
            Some(state) if is_tracestate(state) => event.header(TRACESTATE, state),
            Some(state) => {
                tracing::debug!(
                    bytes = state.len(),
                    "the event goes without a tracestate: it is invalid or overlong"
                );
                event
            }
        }
    }

    /// Takes the trace context of the current span along: that of `tracing`, if a `tracing-opentelemetry`
    /// layer is installed, else OpenTelemetry's own. Without either, the event goes without (feature `otel`).
    ///
    /// Call it where the span is current: in the handler, not in a task that was spawned from it.
    #[cfg(feature = "otel")]
    pub fn trace_from_current(self) -> Self {
        use opentelemetry::trace::TraceContextExt as _;
        use tracing_opentelemetry::OpenTelemetrySpanExt as _;

        let context = tracing::Span::current().context();
        let context = if context.span().span_context().is_valid() {
            context
        } else {
            opentelemetry::Context::current()
        };
        let span = context.span();
        let span = span.span_context();
        if !span.is_valid() {
            return self;
        }
        let flags = span.trace_flags().to_u8();
        let traceparent = format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id());
        self.trace_context(&traceparent, Some(&span.trace_state().header()))
    }
}

/// Checks a `traceparent` as W3C Trace Context, section 3.2, has it: version, trace id, parent id and flags
/// in lower-case hexadecimal digits, neither id all zeros. A later version than 00 may have more behind the
/// flags.
///
/// # Errors
/// [`EventError::Header`], which says what is wrong with it.
pub fn check_traceparent(traceparent: &str) -> Result<(), EventError> {
    let problem = |problem| Err(EventError::Header { name: TRACEPARENT.to_owned(), problem });
    let fields: Vec<&str> = traceparent.splitn(5, '-').collect();
    let [version, trace, parent, flags, ..] = fields[..] else {
        return problem("has not the four fields version-trace-parent-flags: pass on what the caller sent");
    };
    if !is_hex(version, 2) || version == "ff" {
        return problem("has a version that is not two hexadecimal digits in lower case below ff");
    }
    if version == "00" && fields.len() > 4 {
        return problem("has more than four fields, which version 00 has not");
    }
    if !is_hex(trace, 32) || trace.bytes().all(|digit| digit == b'0') {
        return problem("has a trace id that is not 32 hexadecimal digits in lower case, or is zero");
    }
    if !is_hex(parent, 16) || parent.bytes().all(|digit| digit == b'0') {
        return problem("has a parent id that is not 16 hexadecimal digits in lower case, or is zero");
    }
    if !is_hex(flags, 2) {
        return problem("has flags that are not two hexadecimal digits in lower case");
    }
    Ok(())
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Printable ASCII with a key before each value; what vendors write between is theirs.
fn is_tracestate(state: &str) -> bool {
    state.len() <= TRACESTATE_BYTES_MAX
        && state.bytes().all(|b| matches!(b, b' '..=b'~'))
        && state.split(',').all(|member| member.trim().is_empty() || member.contains('='))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Event;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(traceparent: &str, tracestate: Option<&str>) -> Vec<String> {
        let event = Event::builder("t", "1", "e").trace_context(traceparent, tracestate).build().unwrap();
        event.headers().keys().cloned().collect()
    }

    #[test]
    fn what_the_standard_allows_is_taken_along() {
        assert_eq!(headers(PARENT, None), ["traceparent"]);
        assert_eq!(headers(PARENT, Some("rojo=00f067,congo=t61")), ["traceparent", "tracestate"]);
        assert_eq!(headers(&format!("cc{}-more", &PARENT[2..]), None), ["traceparent"], "a later version");
    }

    #[test]
    fn what_it_does_not_is_dropped_and_the_event_is_still_good() {
        let broken = [
            "",
            "garbage",
            &PARENT[..54],
            &format!("{PARENT}-more"),
            &format!("{PARENT}0"),
            &format!("ff{}", &PARENT[2..]),
            &PARENT.to_uppercase(),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333\n-01",
        ];
        for traceparent in broken {
            assert!(check_traceparent(traceparent).is_err(), "{traceparent:?}");
            assert_eq!(headers(traceparent, Some("rojo=1")), [""; 0], "{traceparent:?}");
        }
        let long = format!("rojo={}", "x".repeat(TRACESTATE_BYTES_MAX));
        for tracestate in ["", "no value", "rojo=\u{e4}", "rojo=\n", "rojo=\t", &long] {
            assert_eq!(headers(PARENT, Some(tracestate)), ["traceparent"], "{tracestate:?}");
        }
    }
}
