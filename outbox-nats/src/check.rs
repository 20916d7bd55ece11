//! What would keep messages from their streams, found out before the first one is sent.

use async_nats::jetstream::{
    Context,
    context::GetStreamByNameErrorKind,
    stream::{Config as StreamConfig, DiscardPolicy, RetentionPolicy, StorageType},
};
use outbox_core::{Finding, publisher::PublishError};
use tokio::time::Instant;

use crate::{
    error::{Refusal, publish_error},
    producer::{ANSWER_WAIT_MAX, Producer, ensure_stream},
    record::subject_problem,
};

/// Looks at the server, at JetStream, and at the stream of each topic.
pub(crate) async fn check(producer: &Producer, topics: &[String]) -> Vec<Finding> {
    let context = match answering(producer).await {
        Ok(context) => context,
        Err(error) => return vec![connection_finding(&error)],
    };
    let mut findings = Vec::new();
    let info = context.client().server_info();
    if !info.jetstream {
        findings.push(Finding::error(
            "jetstream-disabled",
            format!("the nats server {:?} runs without JetStream", info.server_name),
            "start it with JetStream (-js, or a jetstream block in its configuration)",
        ));
        return findings;
    }
    if let Some(stream) = &producer.config().stream
        && let Some(problem) = ensure_stream(&context, stream).await
    {
        findings.push(Finding::error(
            "stream-not-created",
            format!("nats does not create the stream {:?}: {problem}", stream.name()),
            "create it by hand, or correct its subjects and replicas",
        ));
    }
    for topic in topics {
        if let Some(problem) = subject_problem(topic) {
            findings.push(Finding::error("invalid-topic", problem, "choose another name"));
        } else {
            findings.extend(look(&context, topic).await);
        }
    }
    findings
}

/// A connection on which the server answers now. One that is there may be lost without anybody having
/// noticed.
async fn answering(producer: &Producer) -> Result<Context, PublishError> {
    let deadline = Instant::now() + ANSWER_WAIT_MAX;
    loop {
        let (live, context) = producer.live(deadline, true).await?;
        match tokio::time::timeout_at(deadline, live.answers(&context)).await {
            Ok(true) => return Ok(context),
            Ok(false) => producer.retire(&live),
            Err(_) => {
                let detail = format!("no answer within {ANSWER_WAIT_MAX:?}");
                return Err(publish_error(Refusal::NobodyAnswers, detail));
            }
        }
    }
}

fn connection_finding(error: &PublishError) -> Finding {
    match &*error.code {
        "AuthorizationViolation" | "Authentication" => Finding::error(
            "login-refused",
            format!("nats refuses the login: {}", error.detail),
            "check the user and password, the token, or the credentials file",
        ),
        _ => Finding::error(
            "broker-unreachable",
            format!("nats does not answer: {}", error.detail),
            "check the server addresses, the network, and for TLS the ca_file and the client_certificate",
        ),
    }
}

/// Looks at the stream of one topic.
async fn look(context: &Context, topic: &str) -> Vec<Finding> {
    let unavailable = |problem: String| {
        vec![Finding::error(
            "topic-unavailable",
            format!("nats does not say which stream has the subject {topic:?}: {problem}"),
            "see the server's log, and whether the user may use $JS.API.STREAM.>",
        )]
    };
    let asked = async {
        let name = match context.stream_by_subject(topic).await {
            Ok(name) => name,
            Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let stream = context.get_stream(name).await.map_err(|error| error.to_string())?;
        Ok(Some(stream.cached_info().config.clone()))
    };
    match tokio::time::timeout(ANSWER_WAIT_MAX, asked).await {
        Ok(Ok(Some(stream))) => stream_findings(topic, &stream),
        Ok(Ok(None)) => vec![Finding::error(
            "unknown-topic",
            format!("nats has no stream with the subject {topic:?}"),
            "create a stream with that subject (nats stream add), or have it created by the configuration's stream",
        )],
        Ok(Err(problem)) => unavailable(problem),
        Err(_) => unavailable(format!("no answer within {ANSWER_WAIT_MAX:?}")),
    }
}

fn stream_findings(topic: &str, stream: &StreamConfig) -> Vec<Finding> {
    let name = &stream.name;
    let mut findings = Vec::new();
    if stream.no_ack {
        findings.push(Finding::error(
            "no-acknowledgements",
            format!("stream {name:?} of subject {topic:?} acknowledges nothing (no_ack), so nothing would count as sent"),
            "switch no_ack off",
        ));
    }
    if stream.sealed {
        findings.push(Finding::error(
            "stream-sealed",
            format!("stream {name:?} of subject {topic:?} is sealed and takes no messages"),
            "send to another subject",
        ));
    }
    if stream.storage == StorageType::Memory {
        findings.push(Finding::warning(
            "volatile-stream",
            format!("stream {name:?} of subject {topic:?} is kept in memory: a restart loses acknowledged messages"),
            "use a stream with file storage",
        ));
    }
    if stream.num_replicas < 2 {
        findings.push(Finding::warning(
            "single-copy",
            format!(
                "an acknowledged message of stream {name:?} is on one server only (replicas {})",
                stream.num_replicas
            ),
            "use three replicas where a lost disk must lose no message",
        ));
    }
    if stream.retention == RetentionPolicy::Interest {
        findings.push(Finding::warning(
            "kept-for-consumers-only",
            format!(
                "stream {name:?} of subject {topic:?} acknowledges a message and drops it at once while it has no \
                 consumer for it (retention interest)"
            ),
            "make the consumers before the relay starts, or use retention limits",
        ));
    }
    let limited = stream.max_messages > 0 || stream.max_bytes > 0 || stream.max_messages_per_subject > 0;
    if limited && stream.discard == DiscardPolicy::Old {
        findings.push(Finding::warning(
            "discards-old",
            format!("stream {name:?} of subject {topic:?} drops old messages when it is full, read or not (discard old)"),
            "use discard new, or limits that are never reached",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(change: impl FnOnce(&mut StreamConfig)) -> Vec<&'static str> {
        let mut stream = StreamConfig {
            name: "s".to_owned(),
            num_replicas: 3,
            max_messages: -1,
            max_bytes: -1,
            ..Default::default()
        };
        change(&mut stream);
        stream_findings("t", &stream).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn settings_that_break_or_weaken_something_are_named() {
        assert!(codes(|_| {}).is_empty());
        assert_eq!(codes(|s| s.no_ack = true), ["no-acknowledgements"]);
        assert_eq!(codes(|s| s.sealed = true), ["stream-sealed"]);
        assert_eq!(codes(|s| s.storage = StorageType::Memory), ["volatile-stream"]);
        assert_eq!(codes(|s| s.num_replicas = 1), ["single-copy"]);
        assert_eq!(codes(|s| s.retention = RetentionPolicy::Interest), ["kept-for-consumers-only"]);
        assert_eq!(codes(|s| s.max_bytes = 1), ["discards-old"]);
        assert!(
            codes(|s| {
                s.max_bytes = 1;
                s.discard = DiscardPolicy::New;
            })
            .is_empty()
        );
    }
}
