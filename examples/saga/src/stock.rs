//! The stock service: reserves goods, or refuses.

use outbox::{Event, OutboxEvent as _, ReceivedEvent};
use rusqlite::Transaction;

use crate::{
    Error,
    messages::{Reply, Reserve},
};

pub(crate) const TABLES: &str = "
    CREATE TABLE stock (item TEXT PRIMARY KEY, quantity INTEGER NOT NULL);
    INSERT INTO stock VALUES ('tea', 10), ('cake', 0);";

pub(crate) fn effect(
    transaction: &Transaction<'_>,
    event: &ReceivedEvent,
    payload: &[u8],
) -> Result<Vec<Event>, Error> {
    let Reserve { order, item, quantity } = event.decode(payload)?;
    let reserve = "UPDATE stock SET quantity = quantity - ?2 WHERE item = ?1 AND quantity >= ?2";
    let reply = match transaction.execute(reserve, (&item, quantity))? {
        0 => Reply::ReserveRefused { order, why: format!("{item} is sold out") },
        _ => Reply::Reserved { order },
    };
    Ok(vec![reply.to_event()?])
}
