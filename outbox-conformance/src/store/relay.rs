//! A relay as the suite plays it: it keeps the promises that a reader relies on, and nothing more.

use std::collections::{BTreeMap, BTreeSet};

use outbox_core::{
    AggregateKey, WhenSent,
    store::{
        DueHold, FailureCause, FetchRequest, Fetched, HoldEnd, HoldReason, Lease, OutboxReader, Outcome,
        RelayId, Row, Sequence, SettleRequest, Settled, Settlement, Successors, Unhold,
    },
};

use crate::{
    store::stage::{HOUR, SHORT, Stage},
    violation::{Verdict, Violation, same_sequences},
};

/// How often a relay asks for what must come sooner or later; with [`PAUSE`] between, ten seconds.
const POLLS_MAX: u32 = 200;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// How often a relay asks again to see that nothing more comes.
const POLLS_QUIET: u32 = 3;

pub(crate) struct Relay<'a> {
    stage: &'a Stage<'a>,
    pub(crate) id: RelayId,
    pub(crate) leases: Vec<Lease>,
    pub(crate) when_sent: WhenSent,
    /// The aggregates that it has enough of.
    pub(crate) full: Vec<AggregateKey>,
    /// The aggregates that the store said were paused.
    pub(crate) paused: BTreeSet<AggregateKey>,
    reader: Box<dyn OutboxReader>,
    known: BTreeMap<Sequence, AggregateKey>,
    due: BTreeSet<AggregateKey>,
    ended: Vec<HoldEnd>,
}

impl<'a> Relay<'a> {
    /// A relay that owns every partition that is free.
    pub(crate) async fn new(stage: &'a Stage<'a>) -> Verdict<Self> {
        let mut relay = Self::without_leases(stage).await?;
        relay.claim_all().await?;
        Ok(relay)
    }

    pub(crate) async fn without_leases(stage: &'a Stage<'a>) -> Verdict<Self> {
        let id = stage.store.join(HOUR).await?;
        let reader = stage.store.reader(id).await?;
        Ok(Self {
            stage,
            id,
            leases: Vec::new(),
            when_sent: WhenSent::Keep,
            full: Vec::new(),
            paused: BTreeSet::new(),
            reader,
            known: BTreeMap::new(),
            due: BTreeSet::new(),
            ended: Vec::new(),
        })
    }

    /// Claims whatever is free.
    pub(crate) async fn claim_all(&mut self) -> Verdict {
        let membership = self.stage.store.membership(self.id).await?;
        let seen: Vec<_> = membership.partitions.iter().map(|view| (view.partition, view.epoch)).collect();
        let claimed = self.stage.store.claim(self.id, &seen).await?;
        self.leases.extend(claimed.iter().map(|claimed| claimed.lease));
        self.leases.sort_unstable();
        Ok(())
    }

    /// Ends the relay's life without a word to anybody: its row expires.
    pub(crate) async fn expire(&mut self) -> Verdict {
        self.stage.store.beat(self.id, SHORT).await?;
        self.stage.wait_short().await;
        Ok(())
    }

    pub(crate) fn lease_of(&self, row: &Row) -> Verdict<Lease> {
        let lease = self.leases.iter().find(|lease| lease.partition == row.partition);
        lease.copied().ok_or_else(|| {
            Violation::new(
                format!("rows of the partitions {:?}", self.partitions()),
                format!("event {} of partition {}", row.sequence, row.partition),
            )
        })
    }

    pub(crate) fn partitions(&self) -> Vec<u16> {
        self.leases.iter().map(|lease| lease.partition).collect()
    }

    /// Forgets the reader and all that it returned, as after an error or a start.
    pub(crate) async fn renew_reader(&mut self) -> Verdict {
        self.reader = self.stage.store.reader(self.id).await?;
        self.known.clear();
        self.due.clear();
        self.ended.clear();
        Ok(())
    }

    /// One fetch. Rows that the relay holds already, and due holds that it has not answered, are left out.
    pub(crate) async fn fetch(&mut self, events_max: usize, bytes_max: usize) -> Verdict<Fetched> {
        let request = FetchRequest::new(self.leases.clone(), events_max, bytes_max)
            .with_known(self.known.keys().copied().collect())
            .with_ended_holds(std::mem::take(&mut self.ended))
            .with_full(self.full.clone());
        let mut fetched = self.reader.fetch(request).await?;
        fetched.rows.retain(|row| !self.known.contains_key(&row.sequence));
        fetched.due_holds.retain(|hold| self.due.insert(hold.key.clone()));
        self.known.extend(fetched.rows.iter().map(|row| (row.sequence, row.key.clone())));
        self.paused.extend(fetched.paused.iter().cloned());
        Ok(fetched)
    }

    /// One fetch, and a pause if it was empty, so that what takes its time can come.
    pub(crate) async fn fetch_page(&mut self, events_max: usize, bytes_max: usize) -> Verdict<Fetched> {
        let fetched = self.fetch(events_max, bytes_max).await?;
        if fetched.rows.is_empty() && fetched.due_holds.is_empty() {
            self.stage.harness.advance(SHORT).await;
        }
        Ok(fetched)
    }

    pub(crate) async fn fetch_all(&mut self) -> Verdict<Fetched> {
        self.fetch(10_000, 64 << 20).await
    }

    /// Asks until all the rows have come, and a little longer, and returns them as the sequences were given.
    /// Any other row and any due hold is a violation, and so is a descending order within an aggregate.
    pub(crate) async fn expect_rows(&mut self, what: &str, sequences: &[Sequence]) -> Verdict<Vec<Row>> {
        let (mut rows, due) = self.poll(|rows, _| rows.len() >= sequences.len()).await?;
        let found: Vec<_> = rows.iter().map(|row| row.sequence).collect();
        same_sequences(what, sequences, &found)?;
        if let Some(hold) = due.first() {
            return Err(Violation::new(format!("{what}: no due hold"), format!("{hold:?}")));
        }
        let mut last: BTreeMap<&AggregateKey, Sequence> = BTreeMap::new();
        for row in &rows {
            if let Some(before) = last.insert(&row.key, row.sequence).filter(|before| *before > row.sequence)
            {
                let expected = format!("{what}: event {} of {} before {before}", row.sequence, row.key);
                return Err(Violation::new(expected, format!("{found:?}")));
            }
        }
        rows.sort_by_key(|row| sequences.iter().position(|sequence| *sequence == row.sequence));
        Ok(rows)
    }

    pub(crate) async fn expect_row(&mut self, what: &str, sequence: Sequence) -> Verdict<Row> {
        Ok(self.expect_rows(what, &[sequence]).await?.remove(0))
    }

    /// Asks a few times, and neither a row nor a due hold may come.
    pub(crate) async fn expect_nothing(&mut self, what: &str) -> Verdict {
        self.expect_rows(what, &[]).await.map(drop)
    }

    /// Asks until the due hold of an aggregate has come, and a little longer. No row may come, and no other
    /// hold.
    pub(crate) async fn expect_due(&mut self, what: &str, key: &AggregateKey) -> Verdict<DueHold> {
        let (rows, mut due) = self.poll(|_, due| !due.is_empty()).await?;
        let found: Vec<_> = rows.iter().map(|row| row.sequence).collect();
        same_sequences(&format!("{what}: no row beside the due hold"), &[], &found)?;
        match due.pop() {
            Some(hold) if due.is_empty() && hold.key == *key => Ok(hold),
            last => {
                due.extend(last);
                Err(Violation::new(format!("{what}: the due hold of {key}, alone"), format!("{due:?}")))
            }
        }
    }

    /// The same, of a hold whose event must come with it.
    pub(crate) async fn expect_due_row(
        &mut self,
        what: &str,
        key: &AggregateKey,
        sequence: Sequence,
    ) -> Verdict<(DueHold, Row)> {
        let hold = self.expect_due(what, key).await?;
        match &hold.row {
            Some(row) if row.sequence == sequence && hold.sequence == Some(sequence) => {
                let row = row.clone();
                Ok((hold, row))
            }
            _ => {
                Err(Violation::new(format!("{what}: a due hold with event {sequence}"), format!("{hold:?}")))
            }
        }
    }

    /// Asks until `enough` is true of all that came, at most for ten seconds, and then a little longer.
    pub(crate) async fn poll(
        &mut self,
        enough: impl Fn(&[Row], &[DueHold]) -> bool,
    ) -> Verdict<(Vec<Row>, Vec<DueHold>)> {
        let (mut rows, mut due) = (Vec::new(), Vec::new());
        let mut quiet = 0;
        for _ in 0..POLLS_MAX {
            let fetched = self.fetch_all().await?;
            rows.extend(fetched.rows);
            due.extend(fetched.due_holds);
            if enough(&rows, &due) {
                quiet += 1;
                if quiet > POLLS_QUIET {
                    break;
                }
                self.stage.harness.advance(SHORT / 2).await;
            } else {
                self.stage.harness.advance(PAUSE).await;
            }
        }
        Ok((rows, due))
    }

    /// Records outcomes and unholds under all leases of the relay.
    pub(crate) async fn settle(
        &mut self,
        settlements: Vec<Settlement>,
        unholds: Vec<Unhold>,
    ) -> Verdict<Settled> {
        for settlement in &settlements {
            self.known.remove(&settlement.sequence);
            let held = match &settlement.outcome {
                Outcome::Retry { .. } => true,
                Outcome::Failed { successors, .. } => *successors == Successors::Park,
                Outcome::Sent => false,
            };
            if held {
                self.known.retain(|_, key| *key != settlement.key);
            }
        }
        let request = SettleRequest::new(self.id, self.leases.clone())
            .with_settlements(settlements)
            .with_unholds(unholds)
            .with_when_sent(self.when_sent);
        Ok(self.stage.store.settle(&request).await?)
    }

    /// Records one outcome as attempt number `attempts`; it must not be fenced.
    pub(crate) async fn finish(&mut self, row: &Row, attempts: u32, outcome: Outcome) -> Verdict {
        let settled = self.settle(vec![settlement(row, attempts, outcome)], Vec::new()).await?;
        crate::violation::equal("a settle under valid leases", Settled::default(), settled)
    }

    /// Removes a hold that holds nothing, or tries to.
    pub(crate) async fn unhold(&mut self, hold: &DueHold) -> Verdict<Settled> {
        let unhold = Unhold::new(hold.key.clone(), hold.partition, hold.sequence);
        self.settle(Vec::new(), vec![unhold]).await
    }

    /// Tells the reader with the next fetch what became of a due hold.
    pub(crate) fn end(&mut self, hold: &DueHold, removed: bool) {
        self.due.remove(&hold.key);
        self.ended.push(HoldEnd::new(hold.key.clone(), hold.partition, removed));
    }

    /// Drops rows of an aggregate that has a hold by now, as a relay does when an operator pauses it.
    pub(crate) fn drop_rows_of(&mut self, key: &AggregateKey) {
        self.known.retain(|_, known| known != key);
    }
}

pub(crate) fn settlement(row: &Row, attempts: u32, outcome: Outcome) -> Settlement {
    Settlement::new(row.sequence, row.partition, row.key.clone(), attempts, outcome)
}

pub(crate) fn retry(after: std::time::Duration) -> Outcome {
    Outcome::Retry { after, error: "refused for now".to_owned(), reason: HoldReason::Backoff }
}

pub(crate) fn failed(successors: Successors) -> Outcome {
    Outcome::Failed { cause: FailureCause::Permanent, error: "refused for good".to_owned(), successors }
}
