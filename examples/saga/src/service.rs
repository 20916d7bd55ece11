//! A service: a database with tables of its own, an inbox, an outbox, and an effect for each message.

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use outbox::{
    Event, Receipt, ReceivedEvent, RelayHandle, cloudevents,
    publisher::Message,
    sqlite::{SqliteConfig, SqliteInbox, SqliteOutbox, SqliteStore, migrate},
};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::watch;

use crate::error::Error;

/// What a message does, in the transaction that it is given, and the events that follow.
type Effect = fn(&Transaction<'_>, &ReceivedEvent, &[u8]) -> Result<Vec<Event>, Error>;

/// A service with a database of its own.
pub(crate) struct Service {
    name: &'static str,
    config: SqliteConfig,
    connection: Mutex<Connection>,
    outbox: SqliteOutbox,
    inbox: SqliteInbox,
    effect: Effect,
    relay: OnceLock<RelayHandle>,
    /// Messages that had their effect, and deliveries of one that had it before.
    handled: watch::Sender<Handled>,
}

/// What a service has done.
#[derive(Debug, Clone, Default)]
pub(crate) struct Handled {
    /// The messages, as `event type order`.
    pub(crate) new: Vec<String>,
    /// How many came again.
    pub(crate) seen: u64,
}

impl Service {
    /// Opens the service's database in this folder, and makes its tables.
    pub(crate) fn open(
        folder: &Path,
        name: &'static str,
        tables: &str,
        effect: Effect,
    ) -> Result<Self, Error> {
        let path = folder.join(format!("{name}.sqlite3"));
        let config = SqliteConfig::builder(&path).build()?;
        migrate(&config)?;
        let mut connection = Connection::open(&path)?;
        connection.busy_timeout(config.busy_timeout())?;
        connection.execute_batch(tables)?;
        let inbox = SqliteInbox::new(&config, name)?;
        inbox.migrate(&mut connection)?;
        Ok(Self {
            name,
            outbox: SqliteOutbox::new(&config),
            config,
            connection: Mutex::new(connection),
            inbox,
            effect,
            relay: OnceLock::new(),
            handled: watch::Sender::default(),
        })
    }

    /// The outbox, for the relay.
    pub(crate) fn store(&self) -> Result<SqliteStore, Error> {
        Ok(SqliteStore::open(self.config.clone())?)
    }

    /// The relay to wake after a commit.
    pub(crate) fn relayed_by(&self, handle: RelayHandle) {
        // There is one relay for each service, and it is told once.
        _ = self.relay.set(handle);
    }

    /// Handles a message once, however often it comes: the receipt, the effect and the events that follow are
    /// one transaction. After `Ok` the message may be acknowledged; after an error it must come again.
    pub(crate) fn handle(&self, message: &Message) -> Result<(), Error> {
        let event = received(message)?;
        let receipt = self.change(|transaction| {
            let receipt = self.inbox.receive(transaction, &event.identity)?;
            let follow = match receipt {
                Receipt::New => (self.effect)(transaction, &event, message.event.body())?,
                Receipt::Seen => Vec::new(),
                Receipt::TooOld => return Err("the message is older than the receipts that are kept".into()),
            };
            Ok((follow, receipt))
        })?;
        self.handled.send_modify(|handled| match receipt {
            Receipt::New => handled.new.push(format!("{} {}", event.event_type, message.key.aggregate_id())),
            _ => handled.seen += 1,
        });
        Ok(())
    }

    /// A change of the service's own, with the events that tell of it: both or neither.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<(Vec<Event>, T), Error>,
    ) -> Result<T, Error> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (events, answer) = change(&transaction)?;
        self.outbox.enqueue_all(&transaction, &events)?;
        transaction.commit()?;
        if let Some(relay) = self.relay.get() {
            relay.wake();
        }
        Ok(answer)
    }

    /// Waits until a message was handled whereupon the database is as wanted.
    pub(crate) async fn wait_until(
        &self,
        wanted: impl Fn(&Connection) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let mut handled = self.handled.subscribe();
        while !wanted(&self.lock())? {
            handled.changed().await?;
        }
        Ok(())
    }

    /// What it has done.
    pub(crate) fn handled(&self) -> Handled {
        self.handled.borrow().clone()
    }

    /// The database, to be looked at.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name, which is its topic too.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}

/// The message as a consumer of a broker reads it: by its headers.
fn received(message: &Message) -> Result<ReceivedEvent, Error> {
    let mut headers = vec![("content-type".to_owned(), cloudevents::content_type(message).to_owned())];
    cloudevents::attributes(message, &mut String::new(), |name, value| {
        headers.push((format!("ce_{name}"), value.to_owned()));
    });
    Ok(ReceivedEvent::from_headers(headers)?)
}
