//! What the consumers have in common: a billing service with a PostgreSQL database, which writes one invoice
//! for each order, whatever broker brings it.

use std::time::Duration;

use outbox::{
    Inbox as _, Receipt, ReceivedEvent, Severity, consume_once,
    inbox::PURGE_AGE_MIN,
    postgres::{PostgresConfig, PostgresInbox},
};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, postgres::PgPoolOptions};

/// Whatever ends a consumer.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Who reads. The receipts are kept under this name, so it never changes.
const CONSUMER: &str = "billing";

/// How long receipts are kept: longer than the broker keeps messages, and longer than an event can wait in
/// the shop's outbox.
const RECEIPTS_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where the service finds what it needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// The URL of the database.
    pub postgres: String,
    /// The schema of the service, which must be there.
    pub schema: String,
    /// The address of the broker.
    pub broker: String,
    /// The topic, queue or subject that is read.
    pub topic: String,
}

/// How far a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The transaction has asked the inbox and, if the event is new, made the effect.
    Handled,
    /// It has committed.
    Committed,
    /// The broker is told.
    Acknowledged,
}

impl Settings {
    /// The servers that `scripts/services.sh` starts: `broker` is the variable with the broker's address.
    ///
    /// # Errors
    ///
    /// If a variable is not set.
    pub fn from_environment(broker: &str, topic: &str) -> Result<Self, Error> {
        let variable = |name| {
            std::env::var(name)
                .map_err(|_| format!("{name} is not set; run `eval \"$(scripts/services.sh env)\"`"))
        };
        Ok(Self {
            postgres: variable("OUTBOX_TEST_POSTGRES_URL")?,
            schema: "billing".to_owned(),
            broker: variable(broker)?,
            topic: topic.to_owned(),
        })
    }
}

/// A service with a database. Its own tables are `invoices` and `balance`; the inbox stands beside them.
pub struct Billing {
    pool: PgPool,
    inbox: PostgresInbox,
}

impl Billing {
    /// Makes the tables of the service, and the inbox.
    ///
    /// # Errors
    ///
    /// If the database refuses, or the inbox is not as it must be.
    pub async fn open(settings: &Settings) -> Result<Self, Error> {
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
             CREATE TABLE IF NOT EXISTS set_aside (place text PRIMARY KEY, reason text, payload bytea);",
        )
        .execute(&mut *connection)
        .await?;
        drop(connection);
        let billing = Self { pool, inbox };
        billing.purge().await?;
        Ok(billing)
    }

    /// Begins, asks the inbox, makes the effect if the event is new, and commits. Only when this has returned
    /// may the broker be told that the message at `place` is done with. After an error nothing has happened.
    ///
    /// # Errors
    ///
    /// If the database or the effect fails.
    pub async fn handle(
        &self,
        event: &ReceivedEvent,
        payload: &[u8],
        place: &str,
        tell: &impl AsyncFn(Step, &str, Receipt),
    ) -> Result<Receipt, Error> {
        let mut transaction = self.pool.begin().await?;
        let effect = async |transaction: &mut PgConnection| self.invoice(transaction, event, payload).await;
        let receipt = consume_once(&self.inbox, &mut *transaction, &event.identity, effect).await?;
        tell(Step::Handled, event.identity.id(), receipt).await;
        transaction.commit().await?;
        tell(Step::Committed, event.identity.id(), receipt).await;
        if receipt == Receipt::TooOld {
            self.set_aside(place, "older than the receipts that are kept", payload).await?;
        }
        Ok(receipt)
    }

    /// Keeps a message that cannot be handled, for an operator to look at.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn set_aside(&self, place: &str, reason: &str, payload: &[u8]) -> Result<(), Error> {
        sqlx::query("INSERT INTO set_aside VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(place)
            .bind(reason)
            .bind(payload)
            .execute(&self.pool)
            .await?;
        Ok(())
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
