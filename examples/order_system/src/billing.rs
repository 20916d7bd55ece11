//! The billing service: an invoice for each order that is placed, a credit note for each that is cancelled.

use outbox::{Receipt, ReceivedEvent, consume_once};
use sqlx::PgConnection;

use crate::{
    broker::message::Message,
    consumer::Service,
    error::Error,
    postgres_consumer::PostgresConsumer,
    shop::{Order, Step},
};

/// Nothing in here keeps an invoice from being written twice: that is the inbox's.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS invoices (number bigserial PRIMARY KEY, order_id uuid NOT NULL, amount bigint NOT NULL);
    CREATE TABLE IF NOT EXISTS turnover (one boolean PRIMARY KEY CHECK (one), amount bigint NOT NULL);
    INSERT INTO turnover VALUES (true, 0) ON CONFLICT DO NOTHING;";

pub(crate) struct Billing(PostgresConsumer);

impl Service for Billing {
    const NAME: &'static str = "billing";

    async fn open(database_url: &str) -> Result<Self, Error> {
        Ok(Self(PostgresConsumer::open(database_url, Self::NAME, TABLES).await?))
    }

    async fn handle(&mut self, event: &ReceivedEvent, step: Step, order: &Order) -> Result<Receipt, Error> {
        let mut transaction = self.0.pool.begin().await?;
        let effect = async |transaction: &mut PgConnection| bill(transaction, step, order).await;
        let receipt = consume_once(&self.0.inbox, &mut *transaction, &event.identity, effect).await?;
        transaction.commit().await?;
        Ok(receipt)
    }

    async fn set_aside(&mut self, message: &Message, reason: &str) -> Result<(), Error> {
        self.0.set_aside(message, reason).await
    }
}

async fn bill(transaction: &mut PgConnection, step: Step, order: &Order) -> Result<(), Error> {
    let amount = match step {
        Step::Placed => order.total,
        Step::Cancelled => -order.total,
        Step::Paid | Step::Shipped => return Ok(()),
    };
    sqlx::query("INSERT INTO invoices (order_id, amount) VALUES ($1, $2)")
        .bind(order.id)
        .bind(amount)
        .execute(&mut *transaction)
        .await?;
    sqlx::query("UPDATE turnover SET amount = amount + $1").bind(amount).execute(transaction).await?;
    Ok(())
}
