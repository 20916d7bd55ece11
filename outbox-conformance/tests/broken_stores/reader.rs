//! The reader's faults.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use async_trait::async_trait;
use outbox_core::{
    AggregateKey, EventFilter, OutboxAdmin, StoreError,
    store::{
        DueHold, EventRecord, FetchRequest, Fetched, HoldRecord, Lease, OutboxReader, RelayId, Row, Sequence,
        Status, StoredEvent,
    },
};

use crate::{faults::Fault, store::Broken};

const PLENTY: usize = 1 << 30;

pub(crate) struct BrokenReader {
    broken: Broken,
    relay: RelayId,
    inner: Box<dyn OutboxReader>,
    /// What this reader has returned.
    returned: BTreeSet<Sequence>,
    /// Scheduled rows that this reader has passed by.
    passed_by: BTreeSet<Sequence>,
    /// The rows that were in the table at the previous fetch.
    table: BTreeSet<Sequence>,
    holds_returned: BTreeSet<AggregateKey>,
    holds_queued: VecDeque<DueHold>,
}

impl BrokenReader {
    pub(crate) fn new(broken: Broken, relay: RelayId, inner: Box<dyn OutboxReader>) -> Self {
        Self {
            broken,
            relay,
            inner,
            returned: BTreeSet::new(),
            passed_by: BTreeSet::new(),
            table: BTreeSet::new(),
            holds_returned: BTreeSet::new(),
            holds_queued: VecDeque::new(),
        }
    }

    async fn records(&mut self) -> Result<Vec<EventRecord>, StoreError> {
        self.broken.memory.list(&EventFilter::default(), u32::MAX).await
    }

    async fn holds(&mut self) -> Result<Vec<HoldRecord>, StoreError> {
        self.broken.memory.holds(u32::MAX).await
    }

    /// Pending rows, owned and not known, for which `also` is true, as if they belonged into the answer.
    async fn add_rows(
        &mut self,
        fetched: &mut Fetched,
        request: &FetchRequest,
        also: impl Fn(&EventRecord) -> bool + Send,
    ) -> Result<(), StoreError> {
        let owned: BTreeSet<_> = request.leases.iter().map(|lease| lease.partition).collect();
        let here: BTreeSet<_> = fetched.rows.iter().map(|row| row.sequence).collect();
        for record in self.records().await? {
            if record.status == Status::Pending
                && owned.contains(&record.partition)
                && !request.known.contains(&record.sequence)
                && !here.contains(&record.sequence)
                && also(&record)
            {
                fetched.rows.push(row_of(&record));
            }
        }
        fetched.rows.sort_by_key(|row| row.sequence);
        Ok(())
    }
}

#[async_trait]
impl OutboxReader for BrokenReader {
    async fn fetch(&mut self, request: FetchRequest) -> Result<Fetched, StoreError> {
        let mut asked = request.clone();
        match self.broken.fault {
            Fault::LastPageFirst | Fault::EventsMaxIgnored | Fault::DueHoldsReversed => {
                asked.events_max = PLENTY;
            }
            Fault::BytesMaxIgnored => asked.bytes_max = PLENTY,
            Fault::FullReturned | Fault::FullBlocks => asked.full.clear(),
            Fault::LeasesIgnored => {
                asked.leases = (0..64).map(|partition| Lease { partition, epoch: 0 }).collect();
            }
            _ => {}
        }
        let mut fetched = self.inner.fetch(asked).await?;
        self.spoil_page(&mut fetched, &request);
        self.spoil_rows(&mut fetched, &request).await?;
        self.spoil_holds(&mut fetched, &request).await?;
        fetched.rows.iter_mut().for_each(|row| spoil_row(self.broken.fault, row));
        self.returned.extend(fetched.rows.iter().map(|row| row.sequence));
        self.table = self.records().await?.iter().map(|record| record.sequence).collect();
        Ok(fetched)
    }
}

impl BrokenReader {
    fn spoil_page(&mut self, fetched: &mut Fetched, request: &FetchRequest) {
        match self.broken.fault {
            Fault::LastPageFirst => {
                let surplus = fetched.rows.len().saturating_sub(request.events_max);
                fetched.rows.drain(..surplus);
                fetched.more |= surplus > 0;
            }
            Fault::HugeRowsLost => fetched.rows.retain(|row| row.bytes() < request.bytes_max),
            Fault::NextDueWrong => {
                fetched.next_due = fetched.next_due.map(|_| Duration::from_secs(86_400));
            }
            Fault::UndecodableDropped => fetched.rows.retain(|row| row.content.is_ok()),
            Fault::PausesNotTold => fetched.paused.clear(),
            Fault::FullBlocks => fetched.rows.retain(|row| !request.full.contains(&row.key)),
            Fault::FullHoldsKeptBack => fetched.due_holds.retain(|hold| !request.full.contains(&hold.key)),
            _ => {}
        }
    }

    async fn spoil_rows(&mut self, fetched: &mut Fetched, request: &FetchRequest) -> Result<(), StoreError> {
        let now = self.broken.memory.now();
        match self.broken.fault {
            Fault::LateRowsLost => {
                let read = self.returned.last().copied().unwrap_or(0);
                let lost: BTreeSet<_> = fetched.rows.iter().map(|row| row.sequence).collect();
                let lost: BTreeSet<_> =
                    lost.into_iter().filter(|at| *at < read && !self.table.contains(at)).collect();
                self.passed_by.extend(&lost);
                fetched.rows.retain(|row| !self.passed_by.contains(&row.sequence));
            }
            Fault::FullLost | Fault::FullLateLost => {
                let late = self.broken.fault == Fault::FullLateLost;
                let read = self.returned.last().copied().unwrap_or(0);
                let passed = self.records().await?.into_iter().filter(|record| {
                    let is_late = record.sequence < read && !self.table.contains(&record.sequence);
                    request.full.contains(&record.key) && (is_late || !late)
                });
                self.passed_by.extend(passed.map(|record| record.sequence));
                fetched.rows.retain(|row| !self.passed_by.contains(&row.sequence));
            }
            Fault::FullOutlivesLease => {
                let returned = self.returned.iter().copied();
                if !request.full.is_empty() {
                    self.passed_by.extend(returned);
                }
                // What waited behind a hold is returned again.
                self.holds_returned.extend(request.ended_holds.iter().map(|end| end.key.clone()));
                let (passed, ended) = (&self.passed_by, &self.holds_returned);
                fetched.rows.retain(|row| !passed.contains(&row.sequence) || ended.contains(&row.key));
            }
            Fault::PositionShared => {
                let mut seen = self.broken.seen();
                fetched.rows.retain(|row| seen.returned.insert(row.sequence));
            }
            Fault::NewLeaseNotRead => {
                for end in &request.ended_holds {
                    self.holds_returned.insert(end.key.clone());
                }
                let (returned, ended) = (&self.returned, &self.holds_returned);
                fetched.rows.retain(|row| !returned.contains(&row.sequence) || ended.contains(&row.key));
            }
            Fault::ScheduledLost => {
                fetched.rows.retain(|row| !self.passed_by.contains(&row.sequence));
                let records = self.records().await?;
                let undue = records.iter().filter(|record| record.available_at.is_some_and(|at| at > now));
                self.passed_by.extend(undue.map(|record| record.sequence));
            }
            Fault::ScheduledEarly => {
                let undue = |record: &EventRecord| record.available_at.is_some_and(|at| at > now);
                self.add_rows(fetched, request, undue).await?;
            }
            Fault::ScheduledBlocks => {
                let records = self.records().await?;
                let undue = |record: &&EventRecord| record.available_at.is_some_and(|at| at > now);
                let undue: Vec<_> = records.iter().filter(undue).collect();
                fetched.rows.retain(|row| {
                    !undue.iter().any(|record| record.key == row.key && record.sequence < row.sequence)
                });
            }
            Fault::KeysFolded => {
                let holds = self.holds().await?;
                let folded = |key: &AggregateKey| key.to_string().to_lowercase();
                fetched.rows.retain(|row| !holds.iter().any(|hold| folded(&hold.key) == folded(&row.key)));
            }
            Fault::HeldReturned => {
                // The successors of what is held by a back-off that is not due.
                let holds = self.holds().await?;
                let held = |record: &EventRecord| {
                    holds.iter().any(|hold| {
                        hold.key == record.key
                            && hold.due_in.is_some_and(|due| !due.is_zero())
                            && hold.sequence != Some(record.sequence)
                    })
                };
                self.add_rows(fetched, request, held).await?;
            }
            Fault::DueReturned => {
                let holds = self.holds().await?;
                let due = |record: &EventRecord| {
                    holds.iter().any(|hold| hold.key == record.key && hold.due_in == Some(Duration::ZERO))
                };
                self.add_rows(fetched, request, due).await?;
            }
            Fault::PausedReturned => {
                let holds = self.holds().await?;
                let paused = |record: &EventRecord| {
                    holds.iter().any(|hold| hold.key == record.key && hold.paused && hold.sequence.is_none())
                };
                self.add_rows(fetched, request, paused).await?;
            }
            _ => {}
        }
        Ok(())
    }

    async fn spoil_holds(&mut self, fetched: &mut Fetched, request: &FetchRequest) -> Result<(), StoreError> {
        match self.broken.fault {
            Fault::DueHoldOnce => {
                fetched.due_holds.retain(|hold| self.holds_returned.insert(hold.key.clone()));
            }
            Fault::DueHoldsReversed => {
                let found = std::mem::take(&mut fetched.due_holds);
                self.holds_queued.extend(found.into_iter().rev());
                let room = request.events_max.min(self.holds_queued.len());
                fetched.due_holds = self.holds_queued.drain(..room).collect();
                fetched.more |=
                    fetched.rows.len() > request.events_max - room || !self.holds_queued.is_empty();
                fetched.rows.truncate(request.events_max - room);
            }
            Fault::HoldsOfOthersIgnored => {
                let seen = self.broken.seen();
                fetched
                    .due_holds
                    .retain(|hold| seen.held_by.get(&hold.key).is_none_or(|relay| *relay == self.relay));
            }
            _ => {}
        }
        Ok(())
    }
}

fn spoil_row(fault: Fault, row: &mut Row) {
    if fault == Fault::PartitionsMoved && row.sequence > 250 {
        row.partition = (row.partition + 1) % 64;
    }
    if fault == Fault::AgeOfAnotherClock {
        row.age += Duration::from_secs(3600);
    }
    let Ok(event) = &mut row.content else { return };
    match fault {
        Fault::IdsChanged => event.id = uuid::Uuid::from_u128(event.id.as_u128() ^ 1),
        Fault::PayloadTruncated => {
            event.payload.iter_mut().for_each(|payload| payload.truncate(65_535));
        }
        Fault::TombstoneEmpty => drop(event.payload.get_or_insert_default()),
        Fault::HeadersFolded => {
            let headers = std::mem::take(&mut event.headers);
            event.headers = headers.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect();
        }
        _ => {}
    }
}

fn row_of(record: &EventRecord) -> Row {
    Row::new(
        record.sequence,
        record.partition,
        record.key.clone(),
        Ok(StoredEvent::new(
            record.id.unwrap_or_default(),
            record.event_type.clone(),
            bytes::Bytes::new(),
            record.created_at,
        )
        .with_payload(record.payload.clone())
        .with_version(record.version)
        .with_content_type(record.content_type.clone())
        .with_headers(record.headers.clone())
        .with_topic(record.topic.clone())),
    )
    .with_attempts(record.attempts)
}
