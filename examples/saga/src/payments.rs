//! The payment service: charges a customer, and takes a charge back.

use outbox::{Event, OutboxEvent as _, ReceivedEvent};
use rusqlite::{OptionalExtension as _, Transaction};

use crate::{
    Error,
    messages::{PaymentCommand, Reply},
};

pub(crate) const TABLES: &str = "
    CREATE TABLE accounts (customer TEXT PRIMARY KEY, cents INTEGER NOT NULL);
    CREATE TABLE charges (order_id TEXT PRIMARY KEY, customer TEXT NOT NULL, cents INTEGER NOT NULL);
    INSERT INTO accounts VALUES ('alice', 10000), ('bob', 10000), ('carl', 50);";

pub(crate) fn effect(
    transaction: &Transaction<'_>,
    event: &ReceivedEvent,
    payload: &[u8],
) -> Result<Vec<Event>, Error> {
    let reply = match event.decode::<PaymentCommand>(payload)? {
        PaymentCommand::Charge { order, customer, cents } => charge(transaction, order, &customer, cents)?,
        PaymentCommand::Refund { order } => refund(transaction, order)?,
    };
    Ok(vec![reply.to_event()?])
}

fn charge(transaction: &Transaction<'_>, order: String, customer: &str, cents: i64) -> Result<Reply, Error> {
    let take = "UPDATE accounts SET cents = cents - ?2 WHERE customer = ?1 AND cents >= ?2";
    if transaction.execute(take, (customer, cents))? == 0 {
        // A refusal is an answer. An error would bring the command again, for ever.
        return Ok(Reply::ChargeRefused { order, why: format!("{customer} has not {cents} cents") });
    }
    transaction.execute("INSERT INTO charges VALUES (?1, ?2, ?3)", (&order, customer, cents))?;
    Ok(Reply::Charged { order })
}

fn refund(transaction: &Transaction<'_>, order: String) -> Result<Reply, Error> {
    let take_back = "DELETE FROM charges WHERE order_id = ?1 RETURNING customer, cents";
    let charge: Option<(String, i64)> =
        transaction.query_row(take_back, [&order], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let (customer, cents) = charge.ok_or_else(|| format!("order {order} was never charged"))?;
    transaction.execute("UPDATE accounts SET cents = cents + ?2 WHERE customer = ?1", (customer, cents))?;
    Ok(Reply::Refunded { order })
}
