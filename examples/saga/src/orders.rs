//! The order service: it leads the saga. The state of each is a row, moved on by each reply.

use outbox::{Event, OutboxEvent as _, ReceivedEvent};
use rusqlite::{Connection, Transaction};

use crate::{
    error::Error,
    messages::{PaymentCommand, Reply, Reserve},
    service::Service,
};

/// What a customer orders.
#[derive(Debug, Clone)]
pub struct Order {
    /// Its id.
    pub id: String,
    /// Who pays.
    pub customer: String,
    /// What.
    pub item: String,
    /// How many.
    pub quantity: i64,
    /// For how much.
    pub cents: i64,
}

impl Order {
    /// An order from its parts.
    pub fn new(id: &str, customer: &str, item: &str, quantity: i64, cents: i64) -> Self {
        Self { id: id.to_owned(), customer: customer.to_owned(), item: item.to_owned(), quantity, cents }
    }
}

pub(crate) const TABLES: &str = "
    CREATE TABLE orders (id TEXT PRIMARY KEY, item TEXT NOT NULL, quantity INTEGER NOT NULL,
        state TEXT NOT NULL, why TEXT);";

/// Begins a saga: the order, and the first command with it.
pub(crate) fn place(service: &Service, order: &Order) -> Result<(), Error> {
    service.change(|transaction| {
        let insert = "INSERT INTO orders VALUES (?1, ?2, ?3, 'placed', NULL)";
        transaction.execute(insert, (&order.id, &order.item, order.quantity))?;
        let charge = PaymentCommand::Charge {
            order: order.id.clone(),
            customer: order.customer.clone(),
            cents: order.cents,
        };
        Ok((vec![charge.to_event()?], ()))
    })
}

/// A reply moves the saga on: the next command, a compensation, or the end.
pub(crate) fn effect(
    transaction: &Transaction<'_>,
    event: &ReceivedEvent,
    payload: &[u8],
) -> Result<Vec<Event>, Error> {
    Ok(match event.decode::<Reply>(payload)? {
        Reply::Charged { order } => {
            advance(transaction, &order, "placed", "paid", None)?;
            let select = "SELECT item, quantity FROM orders WHERE id = ?1";
            let (item, quantity) =
                transaction.query_row(select, [&order], |row| Ok((row.get(0)?, row.get(1)?)))?;
            vec![Reserve { order, item, quantity }.to_event()?]
        }
        // Nothing has been done that would have to be undone.
        Reply::ChargeRefused { order, why } => {
            advance(transaction, &order, "placed", "rejected", Some(&why))?;
            vec![]
        }
        Reply::Reserved { order } => {
            advance(transaction, &order, "paid", "confirmed", None)?;
            vec![]
        }
        // The charge has to be taken back.
        Reply::ReserveRefused { order, why } => {
            advance(transaction, &order, "paid", "refunding", Some(&why))?;
            vec![PaymentCommand::Refund { order }.to_event()?]
        }
        Reply::Refunded { order } => {
            advance(transaction, &order, "refunding", "cancelled", None)?;
            vec![]
        }
    })
}

/// From one state to the next. A reply that does not fit the state is a mistake of its sender, and changes
/// nothing.
fn advance(
    transaction: &Transaction<'_>,
    order: &str,
    from: &str,
    to: &str,
    why: Option<&str>,
) -> Result<(), Error> {
    let update = "UPDATE orders SET state = ?3, why = coalesce(?4, why) WHERE id = ?1 AND state = ?2";
    match transaction.execute(update, (order, from, to, why))? {
        1 => Ok(()),
        _ => Err(format!("order {order} is not {from}, so it cannot become {to}").into()),
    }
}

/// Whether every saga has come to its end.
pub(crate) fn all_ended(connection: &Connection) -> Result<bool, Error> {
    let open = "SELECT count(*) FROM orders WHERE state NOT IN ('confirmed', 'rejected', 'cancelled')";
    Ok(connection.query_row(open, [], |row| row.get::<_, i64>(0))? == 0)
}
