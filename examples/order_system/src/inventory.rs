//! The inventory service: takes what was ordered from the stock, and puts back what was cancelled.

use outbox::{Receipt, ReceivedEvent, consume_once};
use sqlx::PgConnection;

use crate::{
    broker::message::Message,
    consumer::Service,
    error::Error,
    postgres_consumer::PostgresConsumer,
    shop::{ITEMS, Order, STOCK, Step},
};

/// Nothing in here keeps stock from being moved twice: that is the inbox's.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS stock (item text PRIMARY KEY, quantity bigint NOT NULL);
    CREATE TABLE IF NOT EXISTS movements (number bigserial PRIMARY KEY, order_id uuid NOT NULL, item text NOT NULL,
        quantity bigint NOT NULL);";

pub(crate) struct Inventory(PostgresConsumer);

impl Service for Inventory {
    const NAME: &'static str = "inventory";

    async fn open(database_url: &str) -> Result<Self, Error> {
        let database = PostgresConsumer::open(database_url, Self::NAME, TABLES).await?;
        for (item, _) in ITEMS {
            let insert = "INSERT INTO stock VALUES ($1, $2) ON CONFLICT DO NOTHING";
            sqlx::query(insert).bind(item).bind(STOCK).execute(&database.pool).await?;
        }
        Ok(Self(database))
    }

    async fn handle(&mut self, event: &ReceivedEvent, step: Step, order: &Order) -> Result<Receipt, Error> {
        let mut transaction = self.0.pool.begin().await?;
        let effect = async |transaction: &mut PgConnection| move_stock(transaction, step, order).await;
        let receipt = consume_once(&self.0.inbox, &mut *transaction, &event.identity, effect).await?;
        transaction.commit().await?;
        Ok(receipt)
    }

    async fn set_aside(&mut self, message: &Message, reason: &str) -> Result<(), Error> {
        self.0.set_aside(message, reason).await
    }
}

async fn move_stock(transaction: &mut PgConnection, step: Step, order: &Order) -> Result<(), Error> {
    let quantity = match step {
        Step::Placed => -order.quantity,
        Step::Cancelled => order.quantity,
        Step::Paid | Step::Shipped => return Ok(()),
    };
    sqlx::query("UPDATE stock SET quantity = quantity + $2 WHERE item = $1")
        .bind(&order.item)
        .bind(quantity)
        .execute(&mut *transaction)
        .await?;
    sqlx::query("INSERT INTO movements (order_id, item, quantity) VALUES ($1, $2, $3)")
        .bind(order.id)
        .bind(&order.item)
        .bind(quantity)
        .execute(transaction)
        .await?;
    Ok(())
}
