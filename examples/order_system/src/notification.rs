//! The notification service: a letter for each step of an order. Its database is a SQLite file: a consumer's
//! database is its own business.

use outbox::{
    Receipt, ReceivedEvent, Severity,
    sqlite::{SqliteConfig, SqliteInbox},
};
use rusqlite::{Connection, TransactionBehavior};

use crate::{
    broker::message::Message,
    consumer::{RECEIPTS_KEPT, Service},
    error::Error,
    shop::{Order, Step},
};

/// Nothing in here keeps a letter from being written twice: that is the inbox's.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS letters (number INTEGER PRIMARY KEY AUTOINCREMENT, order_id TEXT NOT NULL,
        customer TEXT NOT NULL, step TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS set_aside (reason TEXT, headers TEXT, payload BLOB);";

pub(crate) struct Notification {
    connection: Connection,
    inbox: SqliteInbox,
}

impl Service for Notification {
    const NAME: &'static str = "notification";

    /// Opens the file of this path.
    async fn open(path: &str) -> Result<Self, Error> {
        let mut connection = Connection::open(path)?;
        // What was acknowledged must have survived a power failure.
        connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")?;
        connection.execute_batch(TABLES)?;
        let inbox = SqliteInbox::new(&SqliteConfig::builder(path).build()?, Self::NAME)?;
        inbox.migrate(&mut connection)?;
        let findings = inbox.check(&connection)?;
        if let Some(finding) = findings.iter().find(|finding| finding.severity == Severity::Error) {
            return Err(finding.to_string().into());
        }
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        inbox.purge(&transaction, RECEIPTS_KEPT, 1_000)?;
        transaction.commit()?;
        Ok(Self { connection, inbox })
    }

    async fn handle(&mut self, event: &ReceivedEvent, step: Step, order: &Order) -> Result<Receipt, Error> {
        // The driver blocks; the broker's client goes on meanwhile in other threads.
        tokio::task::block_in_place(|| self.write_letter(event, step, order))
    }

    async fn set_aside(&mut self, message: &Message, reason: &str) -> Result<(), Error> {
        let insert = "INSERT INTO set_aside VALUES (?1, ?2, ?3)";
        self.connection.execute(insert, (reason, message.headers_text(), &message.payload))?;
        Ok(())
    }
}

impl Notification {
    fn write_letter(&mut self, event: &ReceivedEvent, step: Step, order: &Order) -> Result<Receipt, Error> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let receipt = self.inbox.receive(&transaction, &event.identity)?;
        if receipt == Receipt::New {
            let letter = "INSERT INTO letters (order_id, customer, step) VALUES (?1, ?2, ?3)";
            transaction.execute(letter, (order.id.to_string(), &order.customer, step.as_str()))?;
        }
        transaction.commit()?;
        Ok(receipt)
    }
}
