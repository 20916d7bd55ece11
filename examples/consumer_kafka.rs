//! A consumer that makes each effect once: a billing service with a PostgreSQL database reads orders from Kafka.
//!
//! ```sh
//! scripts/services.sh up postgres kafka
//! eval "$(scripts/services.sh env)"
//! cargo run --example consumer_kafka --features postgres,kafka -- orders
//! ```
//!
//! It reads the topic `orders` until it is interrupted, and tells what it does. The order is what matters: begin, ask the
//! inbox, make the effect, commit, and only then let Kafka know. Killed at any point and started again, it writes each
//! invoice once.
//!
//! An error ends the process. Nothing was acknowledged then, and when it is started again, the message comes again.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::time::Duration;

use outbox::{
    Inbox as _, PURGE_AGE_MIN, Receipt, ReceivedEvent, Severity, consume_once,
    postgres::{PostgresConfig, PostgresInbox},
};
use rdkafka::{
    ClientConfig, Message,
    consumer::{Consumer, StreamConsumer},
    message::{BorrowedMessage, Headers},
};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, postgres::PgPoolOptions};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Who reads. The receipts are kept under this name, so it never changes.
const CONSUMER: &str = "billing";

/// How long receipts are kept: longer than the topic keeps messages (seven days by default), and longer than an event
/// can wait in the shop's outbox.
const RECEIPTS_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where the service finds what it needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) postgres: String,
    pub(crate) schema: String,
    pub(crate) brokers: String,
    pub(crate) topic: String,
}

/// How far a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// The transaction has asked the inbox and, if the event is new, made the effect.
    Handled,
    /// It has committed.
    Committed,
    /// Kafka will be told.
    Acknowledged,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let variable = |name| std::env::var(name).map_err(|_| format!("set {name}: see the top of this example"));
    let settings = Settings {
        postgres: variable("OUTBOX_TEST_POSTGRES_URL")?,
        schema: "billing".to_owned(),
        brokers: variable("OUTBOX_TEST_KAFKA_BROKERS")?,
        topic: std::env::args().nth(1).ok_or("name the topic")?,
    };
    tokio::select! {
        ended = run(&settings, async |step, event, receipt| println!("{event}: {receipt:?}, {step:?}")) => ended,
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

/// Reads the topic without end, and tells how far each message has come.
pub(crate) async fn run(settings: &Settings, tell: impl AsyncFn(Step, &str, Receipt)) -> Result<(), Error> {
    let billing = Billing::open(settings).await?;
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.brokers)
        .set("group.id", &settings.schema)
        // A process that is started again takes the place of the one that died, at once.
        .set("group.instance.id", format!("{}-1", settings.schema))
        .set("auto.offset.reset", "earliest")
        // Offsets are stored below, after the commit. What is stored, Kafka is told from time to time: telling it
        // after each message would be dear, and what it does not know when the process dies comes again, and is seen.
        .set("enable.auto.offset.store", "false")
        .create()?;
    consumer.subscribe(&[&settings.topic])?;
    loop {
        let message = consumer.recv().await?;
        let event = match read(&message) {
            Ok(event) => event,
            Err(error) => {
                billing.set_aside(&message, &error.to_string()).await?;
                consumer.store_offset_from_message(&message)?;
                continue;
            }
        };
        let id = event.identity.id();
        let mut transaction = billing.pool.begin().await?;
        let effect = async |transaction: &mut PgConnection| {
            billing.invoice(transaction, &event, message.payload().unwrap_or_default()).await
        };
        let receipt = consume_once(&billing.inbox, &mut *transaction, &event.identity, effect).await?;
        tell(Step::Handled, id, receipt).await;
        transaction.commit().await?;
        tell(Step::Committed, id, receipt).await;
        if receipt == Receipt::TooOld {
            billing.set_aside(&message, "older than the receipts that are kept").await?;
        }
        consumer.store_offset_from_message(&message)?;
        tell(Step::Acknowledged, id, receipt).await;
    }
}

fn read(message: &BorrowedMessage<'_>) -> Result<ReceivedEvent, Error> {
    let headers = message.headers().ok_or("the message has no headers")?;
    let pairs = headers.iter().map(|header| (header.key, header.value.unwrap_or_default()));
    Ok(ReceivedEvent::from_headers(pairs)?)
}

/// A service with a database. Its own tables are `invoices` and `balance`; the inbox stands beside them.
struct Billing {
    pool: PgPool,
    inbox: PostgresInbox,
}

impl Billing {
    async fn open(settings: &Settings) -> Result<Self, Error> {
        let path = format!("SET search_path = {}", settings.schema);
        let pool = PgPoolOptions::new()
            .after_connect(move |connection, _| {
                let path = path.clone();
                Box::pin(
                    async move { sqlx::raw_sql(AssertSqlSafe(path)).execute(connection).await.map(drop) },
                )
            })
            .connect(&settings.postgres)
            .await?;
        let inbox =
            PostgresInbox::new(&PostgresConfig::builder().schema(&settings.schema).build()?, CONSUMER)?;
        let mut connection = pool.acquire().await?;
        inbox.migrate(&mut connection).await?;
        let findings = inbox.check(&mut connection).await?;
        if let Some(finding) = findings.iter().find(|finding| finding.severity == Severity::Error) {
            return Err(finding.to_string().into());
        }
        sqlx::raw_sql(
            "CREATE TABLE IF NOT EXISTS invoices (event text, source text, type text, subject text, sequence bigint, \
               traceparent text, total bigint);
             CREATE TABLE IF NOT EXISTS balance (one boolean PRIMARY KEY CHECK (one), total bigint NOT NULL);
             INSERT INTO balance VALUES (true, 0) ON CONFLICT DO NOTHING;
             CREATE TABLE IF NOT EXISTS set_aside (topic text, partition integer, at bigint, reason text, \
               PRIMARY KEY (topic, partition, at));",
        )
        .execute(&mut *connection)
        .await?;
        drop(connection);
        let billing = Self { pool, inbox };
        billing.purge().await?;
        Ok(billing)
    }

    /// The effect. Made twice, it would be wrong twice: nothing in it knows whether it was made before.
    async fn invoice(
        &self,
        transaction: &mut PgConnection,
        event: &ReceivedEvent,
        payload: &[u8],
    ) -> Result<(), Error> {
        let order: serde_json::Value = serde_json::from_slice(payload)?;
        let total = order["total"].as_i64().ok_or("the order has no total")?;
        sqlx::query("INSERT INTO invoices VALUES ($1, $2, $3, $4, $5, $6, $7)")
            .bind(event.identity.id())
            .bind(event.identity.source())
            .bind(&event.event_type)
            .bind(&event.subject)
            .bind(event.sequence)
            // The parent of whatever this service does next on behalf of the order.
            .bind(event.traceparent())
            .bind(total)
            .execute(&mut *transaction)
            .await?;
        sqlx::query("UPDATE balance SET total = total + $1").bind(total).execute(transaction).await?;
        Ok(())
    }

    /// Keeps the place of a message that cannot be handled, for somebody to look at.
    async fn set_aside(&self, message: &BorrowedMessage<'_>, reason: &str) -> Result<(), Error> {
        sqlx::query("INSERT INTO set_aside VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING")
            .bind(message.topic())
            .bind(message.partition())
            .bind(message.offset())
            .bind(reason)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Forgets old receipts. A service that runs for long does it from time to time, not only at its start.
    async fn purge(&self) -> Result<(), Error> {
        const ROWS: u32 = 1_000;
        const { assert!(RECEIPTS_KEPT.as_secs() >= PURGE_AGE_MIN.as_secs()) };
        loop {
            let mut transaction = self.pool.begin().await?;
            let purged = self.inbox.purge(&mut transaction, RECEIPTS_KEPT, ROWS).await?;
            transaction.commit().await?;
            if purged < u64::from(ROWS) {
                return Ok(());
            }
        }
    }
}
