//! Outcomes: what the broker said of each message, and what follows from it.

use std::{sync::Arc, time::Duration};

use super::Engine;
use crate::relay::{
    flights::Flight,
    lanes::{Item, LaneState},
};
use crate::{
    clock::Monotonic,
    publisher::{PublishError, PublishErrorKind, PublishErrorScope, Report},
    retry::RetryDecision,
    store::{FailureCause, HoldReason, Outcome},
};

impl Engine {
    /// One message of a call has an outcome.
    pub(crate) fn reported(&mut self, now: Monotonic, report: Report) {
        let Report { call, index, result } = report;
        if let Some((flight, began_at)) = self.flights.landed(call, index as usize) {
            self.outcome(now, flight, now.saturating_sub(began_at), result);
        }
    }

    /// The call has ended: whatever was not reported has an unknown outcome.
    pub(crate) fn call_ended(&mut self, now: Monotonic, call: u64, why: &'static str) {
        let (flights, began_at) = self.flights.ended(call);
        for flight in flights {
            let unknown = Err(PublishError::transient("NoOutcome", why));
            self.outcome(now, flight, now.saturating_sub(began_at), unknown);
        }
    }

    fn outcome(&mut self, now: Monotonic, flight: Flight, took: Duration, result: Result<(), PublishError>) {
        self.probe_ended(&flight.item);
        let owned = self.leases.owns(flight.lease());
        let Flight { item, alone, .. } = flight;
        if !owned {
            self.stray_ended(&item);
            return;
        }
        self.account.published(item.content.as_ref().ok(), took, &result);
        match result {
            Ok(()) => self.acknowledged(now, item),
            Err(error) => self.refused(now, item, alone, &error),
        }
    }

    pub(super) fn acknowledged(&mut self, now: Monotonic, item: Item) {
        self.scopes.broker_succeeded();
        self.account.broker_available(now);
        if let Ok(message) = &item.content
            && self.scopes.topic_succeeded(&message.topic)
        {
            self.account.topic_available(now, Arc::clone(&message.topic));
        }
        let key = item.key.clone();
        let attempts = item.attempts.saturating_add(1);
        if let Some(lane) = self.lanes.get_mut(&key) {
            // The successors of a held event come by a read that needs the hold to be gone first.
            let held = lane.hold.as_ref().is_some_and(|hold| hold.sequence == Some(item.sequence));
            lane.state = if held { LaneState::Settling } else { LaneState::Open };
        }
        self.settle_later(item, attempts, Outcome::Sent);
        self.lanes.offer(&key);
    }

    pub(super) fn refused(&mut self, now: Monotonic, item: Item, alone: bool, error: &PublishError) {
        match (error.kind, error.scope) {
            (PublishErrorKind::Unavailable, PublishErrorScope::Broker | PublishErrorScope::Batch) => {
                self.scopes.broker_failed(now, self.rng.f64());
                self.account.broker_unavailable(now, error);
                self.put_back(item, false);
            }
            (PublishErrorKind::Unavailable, PublishErrorScope::Destination) => {
                let random = self.rng.f64();
                let topic =
                    item.content.as_ref().map(|message| Arc::clone(&message.topic)).unwrap_or_default();
                if !self.scopes.is_shut(&topic) {
                    self.account.topic_unavailable(now, Arc::clone(&topic), error);
                }
                let after = self.scopes.topic_failed(now, topic, error.to_string(), random);
                let attempts = item.attempts;
                let outcome = Outcome::Retry { after, error: error.to_string(), reason: HoldReason::Topic };
                self.fail(item, attempts, outcome);
            }
            (PublishErrorKind::Permanent, PublishErrorScope::Batch) if !alone => self.put_back(item, true),
            (PublishErrorKind::Permanent, _) => {
                let attempts = item.attempts.saturating_add(1);
                let outcome = self.given_up(FailureCause::Permanent, error.to_string());
                self.fail(item, attempts, outcome);
            }
            (PublishErrorKind::Transient, _)
            | (PublishErrorKind::Unavailable, PublishErrorScope::Message) => {
                let attempts = item.attempts.saturating_add(1);
                let age = item.age + now.saturating_sub(item.fetched_at);
                let outcome = match self.config.retry.decide(attempts, age, self.rng.f64()) {
                    RetryDecision::After(after) => {
                        Outcome::Retry { after, error: error.to_string(), reason: HoldReason::Backoff }
                    }
                    RetryDecision::GiveUp(cause) => self.given_up(cause, error.to_string()),
                };
                self.fail(item, attempts, outcome);
            }
        }
    }

    /// Back to the head of its lane, with nothing recorded: no attempt was spent.
    pub(super) fn put_back(&mut self, item: Item, alone: bool) {
        let partition = item.partition;
        self.leases.deactivate(partition);
        if self.leases.is_draining(partition) || self.stopping {
            self.lanes.forget(item.sequence, item.bytes);
            self.release_lane(&item.key, false);
        } else {
            self.lanes.restore(item, alone);
        }
    }

    pub(super) fn fail(&mut self, item: Item, attempts: u32, outcome: Outcome) {
        self.set_state(&item.key, LaneState::Settling);
        self.settle_later(item, attempts, outcome);
    }
}
