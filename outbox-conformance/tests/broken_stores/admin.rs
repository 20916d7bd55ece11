//! The operator's faults.

use async_trait::async_trait;
use chrono::TimeDelta;
use outbox_core::{
    AggregateKey, EventFilter, OutboxAdmin, OutboxStore, StoreError, WhenSent,
    store::{EventRecord, FailureCause, HoldRecord, Outcome, Status, Successors},
};

use crate::{faults::Fault, store::Broken};

#[async_trait]
impl OutboxAdmin for Broken {
    async fn list(&self, filter: &EventFilter, rows_max: u32) -> Result<Vec<EventRecord>, StoreError> {
        let rows_max = if self.is(Fault::RowsMaxIgnored) { u32::MAX } else { rows_max };
        let mut filter = filter.clone();
        match self.fault {
            Fault::TimesIgnored => (filter.created_from, filter.created_before) = (None, None),
            Fault::EndIncluded => {
                filter.created_before =
                    filter.created_before.map(|before| before + TimeDelta::microseconds(1));
            }
            Fault::ArchiveNotListed => filter.archived = false,
            Fault::ArchiveUnfiltered if filter.archived => {
                filter = EventFilter::default().in_archive().after(filter.after);
            }
            _ => {}
        }
        let mut records = self.memory.list(&filter, rows_max).await?;
        if self.is(Fault::FailedAtForgotten) {
            records.iter_mut().for_each(|record| record.failed_at = None);
        }
        Ok(records)
    }

    async fn holds(&self, rows_max: u32) -> Result<Vec<HoldRecord>, StoreError> {
        let mut holds = self.memory.holds(u32::MAX).await?;
        holds.retain(|hold| !self.seen().holds_forgotten.contains(&hold.key));
        for hold in &mut holds {
            let kept = self.seen().reasons_kept.get(&hold.key).copied();
            hold.reason = kept.unwrap_or(hold.reason);
        }
        if self.is(Fault::HoldsByKey) {
            holds.sort_by(|left, right| left.key.cmp(&right.key));
        }
        holds.truncate(rows_max as usize);
        Ok(holds)
    }

    async fn requeue(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        let mut filter = filter.clone();
        if self.is(Fault::ArchiveIsTheTable) {
            filter.archived = false;
        }
        if filter.status.is_none() && !self.is(Fault::RequeueCountsPending) {
            filter.status = Some(Status::Failed);
        }
        let matching = self.memory.list(&filter, u32::MAX).await?;
        if self.is(Fault::RequeueFirstOnly) {
            filter.ids = matching.iter().take(1).filter_map(|record| record.id).collect();
        }
        let count = self.memory.requeue(&filter).await?;
        for record in &matching {
            match (self.fault, self.owner_of(record.partition)) {
                (Fault::RequeueKeepsAttempts, Some((relay, lease))) => {
                    self.memory.begin_attempt(relay, lease, record.sequence, record.attempts).await?;
                }
                (Fault::RequeueResumes, _) => drop(self.memory.resume(&record.key).await?),
                _ => {}
            }
        }
        Ok(if self.is(Fault::RequeueCountsPending) { matching.len() as u64 } else { count })
    }

    async fn discard(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        let mut filter = filter.clone();
        if self.is(Fault::DiscardFailedOnly) {
            filter.status = Some(Status::Failed);
        }
        let mut count = self.memory.discard(&filter).await?;
        if self.is(Fault::DiscardPending) {
            for record in self.memory.list(&filter, u32::MAX).await? {
                let outcome = Outcome::Failed {
                    cause: FailureCause::Discarded,
                    error: String::new(),
                    successors: Successors::Release,
                };
                if record.status == Status::Pending {
                    self.settle_as_owner(&record, outcome, WhenSent::Keep).await?;
                    count += 1;
                }
            }
        }
        Ok(count)
    }

    async fn pause(&self, key: &AggregateKey) -> Result<(), StoreError> {
        let is_held = self.memory.holds(u32::MAX).await?.iter().any(|hold| hold.key == *key);
        if self.is(Fault::PauseForgetsHold) && is_held {
            return Ok(());
        }
        self.memory.pause(key).await
    }

    async fn resume(&self, key: &AggregateKey) -> Result<bool, StoreError> {
        let was_held = self.memory.resume(key).await?;
        Ok(was_held || self.is(Fault::ResumeAlwaysTrue))
    }

    async fn pause_topic(&self, topic: &str) -> Result<(), StoreError> {
        self.memory.pause_topic(topic).await
    }

    async fn resume_topic(&self, topic: &str) -> Result<bool, StoreError> {
        let was_paused = self.memory.resume_topic(topic).await?;
        if self.is(Fault::ResumeTopicResumesAll) {
            for hold in self.memory.holds(u32::MAX).await? {
                self.memory.resume(&hold.key).await?;
            }
        }
        Ok(was_paused)
    }

    async fn paused_topics(&self) -> Result<Vec<String>, StoreError> {
        self.memory.paused_topics().await
    }
}
