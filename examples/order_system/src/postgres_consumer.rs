//! A consumer's PostgreSQL database: the service's own tables, and the inbox beside them.

use outbox::{
    Inbox as _, Severity,
    postgres::{PostgresConfig, PostgresInbox},
};
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};

use crate::{broker::message::Message, consumer::RECEIPTS_KEPT, error::Error};

const SET_ASIDE: &str = "CREATE TABLE IF NOT EXISTS set_aside (reason text, headers text, payload bytea);";

pub(crate) struct PostgresConsumer {
    pub(crate) pool: PgPool,
    pub(crate) inbox: PostgresInbox,
}

impl PostgresConsumer {
    /// Opens the database of the service `name`, with these tables.
    pub(crate) async fn open(database_url: &str, name: &str, tables: &str) -> Result<Self, Error> {
        let pool = PgPoolOptions::new().max_connections(2).connect(database_url).await?;
        let inbox = PostgresInbox::new(&PostgresConfig::builder().build()?, name)?;
        let mut connection = pool.acquire().await?;
        inbox.migrate(&mut connection).await?;
        let findings = inbox.check(&mut connection).await?;
        if let Some(finding) = findings.iter().find(|finding| finding.severity == Severity::Error) {
            return Err(finding.to_string().into());
        }
        sqlx::raw_sql(AssertSqlSafe(format!("{SET_ASIDE}{tables}"))).execute(&mut *connection).await?;
        drop(connection);
        // A service that runs for long forgets old receipts from time to time, and goes on while there are
        // more.
        let mut transaction = pool.begin().await?;
        inbox.purge(&mut transaction, RECEIPTS_KEPT, 1_000).await?;
        transaction.commit().await?;
        Ok(Self { pool, inbox })
    }

    pub(crate) async fn set_aside(&self, message: &Message, reason: &str) -> Result<(), Error> {
        sqlx::query("INSERT INTO set_aside VALUES ($1, $2, $3)")
            .bind(reason)
            .bind(message.headers_text())
            .bind(&message.payload)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
