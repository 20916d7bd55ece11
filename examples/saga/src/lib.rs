//! An order saga over three services, each with a database of its own: the README tells how it goes.

mod bus;
mod error;
pub mod messages;
mod orders;
mod payments;
mod service;
mod stock;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use outbox::{
    OutboxStore as _, Publisher, Relay, RelayConfig, RelayHandle, publisher::SharedPublisher,
    sqlite::SqliteStore,
};
use rusqlite::Connection;

pub use self::{error::Error, orders::Order};
use service::Service;

/// How long the sagas may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is in the databases when every saga has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Books {
    /// The state of each order, and why it is not confirmed.
    pub orders: BTreeMap<String, (String, Option<String>)>,
    /// What each customer has, in cents.
    pub accounts: BTreeMap<String, i64>,
    /// What is left of each item.
    pub stock: BTreeMap<String, i64>,
    /// What each service has handled, once each and in order, as `event type order`.
    pub handled: BTreeMap<&'static str, Vec<String>>,
    /// Messages that came again, and were recognised.
    pub duplicates: u64,
}

/// Runs a saga for each order, on databases in this folder, and returns what came of it. `broker` may put a
/// publisher around the one that is used.
///
/// # Errors
/// A database, or a saga that has not ended in a minute.
pub async fn run(
    folder: &Path,
    orders: &[Order],
    broker: impl FnOnce(SharedPublisher) -> Arc<dyn Publisher>,
) -> Result<Books, Error> {
    let services = [
        Arc::new(Service::open(folder, messages::ORDERS, orders::TABLES, orders::effect)?),
        Arc::new(Service::open(folder, messages::PAYMENTS, payments::TABLES, payments::effect)?),
        Arc::new(Service::open(folder, messages::STOCK, stock::TABLES, stock::effect)?),
    ];
    // One publisher for the relays of all three outboxes.
    let bus = SharedPublisher::new(broker(SharedPublisher::new(bus::Bus::new(&services))));
    let mut relays = Vec::new();
    for service in &services {
        // Each event names its topic; one that did not would be a mistake.
        let mut config = RelayConfig::default()
            .with_topic("unused".parse()?)
            .with_source(Arc::from(format!("/{}", service.name())));
        config.retry.delay_min = Duration::from_millis(5);
        let store = service.store()?;
        let relay = Relay::new(store.clone(), bus.clone(), config)?;
        service.relayed_by(relay.handle());
        relays.push((store, relay.handle(), tokio::spawn(relay.run())));
    }
    let [leader, payments, stock] = &services;
    for order in orders {
        orders::place(leader, order)?;
    }
    tokio::time::timeout(PATIENCE, leader.wait_until(orders::all_ended)).await??;
    for (store, mut handle, relay) in relays {
        tokio::time::timeout(PATIENCE, emptied(&store, &mut handle)).await??;
        handle.shutdown();
        relay.await?;
    }
    Ok(Books {
        orders: table(&leader.lock(), "SELECT id, state, why FROM orders", |row| {
            Ok((row.get(1)?, row.get(2)?))
        })?,
        accounts: table(&payments.lock(), "SELECT customer, cents FROM accounts", |row| row.get(1))?,
        stock: table(&stock.lock(), "SELECT item, quantity FROM stock", |row| row.get(1))?,
        handled: services.iter().map(|service| (service.name(), service.handled().new)).collect(),
        duplicates: services.iter().map(|service| service.handled().seen).sum(),
    })
}

/// Waits until nothing is pending any more, so that a message whose answer was lost has come again before the
/// books are read.
async fn emptied(store: &SqliteStore, handle: &mut RelayHandle) -> Result<(), Error> {
    loop {
        let sent = handle.status().sent;
        if store.stats().await?.pending == 0 {
            return Ok(());
        }
        handle.wait_for(|status| status.sent > sent).await?;
    }
}

fn table<T>(
    connection: &Connection,
    sql: &str,
    value: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> Result<BTreeMap<String, T>, Error> {
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, value(row)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
