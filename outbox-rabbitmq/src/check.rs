//! What would keep messages from their queues, found out before the first one is sent.

use std::{sync::Arc, time::Duration};

use lapin::Connection;
use outbox_core::{Finding, publisher::PublishError};
use tokio::time::Instant;

use crate::{
    RabbitMqConfig,
    declare::{answers, exchange_exists, make_all, queue_exists},
    error::{Refusal, publish_error},
    line::Lines,
    producer::Producer,
    record,
};

/// How long the broker may take for all answers.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

/// Looks at the broker, makes what is declared, and looks at the exchange, or the queue, of each topic.
pub(crate) async fn check(producer: &Producer, topics: &[String]) -> Vec<Finding> {
    let deadline = Instant::now() + ANSWER_WAIT_MAX;
    let lines = match answering(producer, deadline).await {
        Ok(lines) => lines,
        Err(error) => return vec![connection_finding(&error)],
    };
    if lines.session.is_blocked() {
        return vec![Finding::warning(
            "broker-blocked",
            "rabbitmq takes no messages at the moment, and answers no question about topics",
            "see its memory and disk alarms (rabbitmq-diagnostics alarms)",
        )];
    }
    let mut findings = Vec::new();
    let connection = &lines.session.connection;
    let looked = tokio::time::timeout_at(deadline, async {
        let declarations = &producer.config().declarations;
        findings.extend(make_all(connection, declarations).await.into_iter().map(|(what, why)| {
            Finding::error(
                "not-declared",
                format!("rabbitmq does not make the {what}: {why}"),
                "let the user configure it, or make it by hand",
            )
        }));
        for topic in topics {
            findings.extend(look(producer.config(), connection, topic).await);
        }
    });
    if looked.await.is_err() {
        findings.push(Finding::error(
            "broker-unreachable",
            format!("rabbitmq has not answered within {ANSWER_WAIT_MAX:?}"),
            "see the broker's log",
        ));
    }
    findings
}

/// A connection on which the broker answers now, or has said that it is blocked. One that is there may be
/// lost without anybody having noticed.
async fn answering(producer: &Producer, deadline: Instant) -> Result<Arc<Lines>, PublishError> {
    loop {
        let (live, lines) = producer.live(deadline, true).await?;
        if lines.session.is_blocked() {
            return Ok(lines);
        }
        match tokio::time::timeout_at(deadline, answers(&lines.session.connection)).await {
            Ok(Ok(())) => return Ok(lines),
            Ok(Err(_)) => producer.retire(&live),
            Err(_) => {
                let detail = format!("no answer within {ANSWER_WAIT_MAX:?}");
                return Err(publish_error(Refusal::NobodyAnswers, detail));
            }
        }
    }
}

fn connection_finding(error: &PublishError) -> Finding {
    match &*error.code {
        "ACCESS_REFUSED" => Finding::error(
            "login-refused",
            error.detail.clone(),
            "check the user and the password in the URL, and that the user may log in from here (guest may only on \
             the broker's own machine)",
        ),
        "NOT_ALLOWED" => Finding::error(
            "login-refused",
            error.detail.clone(),
            "check the virtual host in the URL (%2f is the default one), and that the user may use it",
        ),
        _ => Finding::error(
            "broker-unreachable",
            format!("rabbitmq does not answer: {}", error.detail),
            "check the URL, the network, and for TLS the ca_file and the client_certificate",
        ),
    }
}

/// Looks at where one topic goes.
async fn look(config: &RabbitMqConfig, connection: &Connection, topic: &str) -> Option<Finding> {
    let (exchange, routing_key) = match record::address(config, topic) {
        Ok(address) => address,
        Err(error) => return Some(Finding::error("invalid-topic", error.detail, "choose another name")),
    };
    // The default exchange takes a routing key for the name of a queue.
    let (what, name, exists) = if exchange.as_str().is_empty() {
        ("queue", routing_key.as_str(), queue_exists(connection, routing_key.as_str()).await)
    } else {
        ("exchange", exchange.as_str(), exchange_exists(connection, exchange.as_str()).await)
    };
    match exists {
        Ok(true) => None,
        Ok(false) => Some(Finding::error(
            "unknown-topic",
            format!("rabbitmq has no {what} {name:?}, where topic {topic:?} goes"),
            format!("declare the {what}, or have it declared by the configuration"),
        )),
        Err(error) => Some(Finding::error(
            "topic-unavailable",
            format!("rabbitmq cannot serve {what} {name:?}, where topic {topic:?} goes: {error}"),
            "see the broker's log",
        )),
    }
}
