//! The tables, and the changes that keep them in step with each other.

use outbox_core::{
    AggregateKey,
    store::{Schema, Sequence, Status},
};
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use crate::record::{Hold, KeptHold, PARTITION, Record, from_bytes, to_bytes};

/// What each version of the tables brought.
const MIGRATIONS: &[&str] = &["the tables of the outbox"];

pub(crate) type Bytes = &'static [u8];
pub(crate) type Names = (&'static str, &'static str);

/// By sequence.
pub(crate) const EVENTS: TableDefinition<'_, i64, Bytes> = TableDefinition::new("outbox");
/// By sequence, of the events and of the archive.
pub(crate) const PAYLOADS: TableDefinition<'_, i64, Bytes> = TableDefinition::new("outbox_payloads");
/// The sequence by id.
pub(crate) const IDS: TableDefinition<'_, u128, i64> = TableDefinition::new("outbox_ids");
pub(crate) const PENDING: TableDefinition<'_, i64, ()> = TableDefinition::new("outbox_pending");
/// By status, the time since when, and sequence.
pub(crate) const DONE: TableDefinition<'_, (i16, i64, i64), ()> = TableDefinition::new("outbox_done");
/// By aggregate.
pub(crate) const HOLDS: TableDefinition<'_, Names, Bytes> = TableDefinition::new("outbox_holds");
/// When a relay expires.
pub(crate) const RELAYS: TableDefinition<'_, u128, i64> = TableDefinition::new("outbox_relays");
/// Epoch and owner, who is 0 where there is none.
pub(crate) const PARTITIONS: TableDefinition<'_, u16, (i64, u128)> =
    TableDefinition::new("outbox_partitions");
/// Those that are paused.
pub(crate) const TOPICS: TableDefinition<'_, &str, ()> = TableDefinition::new("outbox_topics");
pub(crate) const ARCHIVE: TableDefinition<'_, i64, Bytes> = TableDefinition::new("outbox_archive");
/// The last sequence, and the version of the tables.
pub(crate) const META: TableDefinition<'_, &str, i64> = TableDefinition::new("outbox_meta");

/// Makes what is missing.
pub(crate) fn create(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    Tables::open(transaction)?;
    transaction.open_table(IDS)?;
    transaction.open_table(RELAYS)?;
    transaction.open_table(TOPICS)?;
    transaction.open_table(META)?;
    let mut partitions = transaction.open_table(PARTITIONS)?;
    if partitions.get(PARTITION)?.is_none() {
        partitions.insert(PARTITION, (0, 0))?;
    }
    Ok(())
}

/// What is known of these tables.
pub(crate) fn schema() -> Schema {
    Schema::new("the outbox", MIGRATIONS, "run the migration of the program that is to open it")
}

/// Writes the version beside tables that were made just now, and says which one the tables have.
pub(crate) fn version(transaction: &WriteTransaction) -> Result<Option<i64>, redb::Error> {
    let mut meta = transaction.open_table(META)?;
    if number(&meta, "version")?.is_none() {
        meta.insert("version", schema().version())?;
    }
    number(&meta, "version")
}

pub(crate) fn number(
    meta: &impl ReadableTable<&'static str, i64>,
    name: &str,
) -> Result<Option<i64>, redb::Error> {
    Ok(meta.get(name)?.map(|number| number.value()))
}

pub(crate) fn event(
    events: &impl ReadableTable<i64, Bytes>,
    sequence: Sequence,
) -> Result<Option<Record>, redb::Error> {
    events.get(sequence)?.map(|bytes| from_bytes(bytes.value())).transpose()
}

/// The payload; a tombstone has none.
pub(crate) fn payload(
    payloads: &impl ReadableTable<i64, Bytes>,
    sequence: Sequence,
) -> Result<Option<bytes::Bytes>, redb::Error> {
    Ok(payloads.get(sequence)?.map(|payload| bytes::Bytes::copy_from_slice(payload.value())))
}

/// All holds. There are as many as aggregates that wait, which is few.
pub(crate) fn holds(
    holds: &impl ReadableTable<Names, Bytes>,
) -> Result<Vec<(AggregateKey, Hold)>, redb::Error> {
    let mut found = Vec::new();
    for entry in holds.iter()? {
        let (key, bytes) = entry?;
        let (aggregate_type, aggregate_id) = key.value();
        let hold: KeptHold = from_bytes(bytes.value())?;
        found.push((AggregateKey::new(aggregate_type, aggregate_id), hold.into()));
    }
    Ok(found)
}

/// The tables that change together.
pub(crate) struct Tables<'t> {
    pub(crate) events: Table<'t, i64, Bytes>,
    payloads: Table<'t, i64, Bytes>,
    pending: Table<'t, i64, ()>,
    pub(crate) done: Table<'t, (i16, i64, i64), ()>,
    pub(crate) holds: Table<'t, Names, Bytes>,
    archive: Table<'t, i64, Bytes>,
}

impl<'t> Tables<'t> {
    pub(crate) fn open(transaction: &'t WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            events: transaction.open_table(EVENTS)?,
            payloads: transaction.open_table(PAYLOADS)?,
            pending: transaction.open_table(PENDING)?,
            done: transaction.open_table(DONE)?,
            holds: transaction.open_table(HOLDS)?,
            archive: transaction.open_table(ARCHIVE)?,
        })
    }

    pub(crate) fn insert(
        &mut self,
        sequence: Sequence,
        record: &Record,
        payload: Option<&[u8]>,
    ) -> Result<(), redb::Error> {
        if let Some(payload) = payload {
            self.payloads.insert(sequence, payload)?;
        }
        self.put(sequence, record)
    }

    /// Writes an event with its indexes.
    pub(crate) fn put(&mut self, sequence: Sequence, record: &Record) -> Result<(), redb::Error> {
        if let Some(before) = event(&self.events, sequence)? {
            self.unindex(sequence, &before)?;
        }
        match record.status {
            Status::Pending => _ = self.pending.insert(sequence, ())?,
            status => {
                _ = self.done.insert((status.code(), record.done_at.unwrap_or_default(), sequence), ())?;
            }
        }
        self.events.insert(sequence, to_bytes(record)?.as_slice())?;
        Ok(())
    }

    /// Takes an event out, for good or to the archive. Its id is free again.
    pub(crate) fn remove(
        &mut self,
        ids: &mut Table<'_, u128, i64>,
        sequence: Sequence,
        record: &Record,
        to_archive: bool,
    ) -> Result<(), redb::Error> {
        self.unindex(sequence, record)?;
        self.events.remove(sequence)?;
        if let Some(id) = record.id() {
            ids.remove(id.as_u128())?;
        }
        if to_archive {
            self.archive.insert(sequence, to_bytes(record)?.as_slice())?;
        } else {
            self.payloads.remove(sequence)?;
        }
        Ok(())
    }

    fn unindex(&mut self, sequence: Sequence, record: &Record) -> Result<(), redb::Error> {
        match record.status {
            Status::Pending => _ = self.pending.remove(sequence)?,
            status => _ = self.done.remove((status.code(), record.done_at.unwrap_or_default(), sequence))?,
        }
        Ok(())
    }

    pub(crate) fn hold(&self, key: &AggregateKey) -> Result<Option<Hold>, redb::Error> {
        let bytes = self.holds.get((key.aggregate_type(), key.aggregate_id()))?;
        let kept = bytes.map(|bytes| from_bytes::<KeptHold>(bytes.value())).transpose()?;
        Ok(kept.map(Hold::from))
    }

    /// Puts what a rule makes of an aggregate's hold in its place.
    pub(crate) fn change_hold(
        &mut self,
        key: &AggregateKey,
        rule: impl FnOnce(Option<Hold>) -> Option<Hold>,
    ) -> Result<(), redb::Error> {
        let names = (key.aggregate_type(), key.aggregate_id());
        match rule(self.hold(key)?) {
            Some(hold) => _ = self.holds.insert(names, to_bytes(&KeptHold::from(hold))?.as_slice())?,
            None => _ = self.holds.remove(names)?,
        }
        Ok(())
    }
}
