//! A place of its own for each scenario: a fresh database with the outbox and the service's tables, and a
//! topic.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use outbox::{
    EventFilter,
    store::{EventRecord, Status},
};
use uuid::Uuid;

use crate::{
    brokers::{self, Broker},
    checker,
    databases::{self, Database},
    relay::{RelayProcess, Settings},
    turn::Turn,
    until,
};

/// Where one scenario plays.
pub(crate) struct Stage {
    pub(crate) database: Arc<dyn Database>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) topic: String,
    /// How many partitions the store has.
    pub(crate) partitions: usize,
    _turn: Turn,
}

impl Stage {
    /// A stage, or nothing where a server is missing.
    pub(crate) async fn set(
        database: databases::Kind,
        broker: brokers::Kind,
        turn: fn() -> Turn,
    ) -> Option<Self> {
        let turn = tokio::task::spawn_blocking(turn).await.unwrap();
        let broker = broker.find()?;
        let database = database.fresh().await?;
        let topic = brokers::topic();
        broker.create(&topic).await;
        let partitions = usize::from(database.store().capabilities().partitions);
        Some(Self { database, broker, topic, partitions, _turn: turn })
    }

    /// What a relay of this stage is told.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            store: self.database.store_at(),
            broker: self.broker.broker_at(),
            topic: self.topic.clone(),
            lease_ms: 3_000,
            in_flight_max: 64,
        }
    }

    /// Events of this status.
    pub(crate) async fn events(&self, status: Status) -> Vec<EventRecord> {
        self.database.admin().list(&EventFilter::status(status), 1_000).await.unwrap()
    }

    /// How many aggregates are held.
    pub(crate) async fn holds(&self) -> usize {
        self.database.admin().holds(1_000).await.unwrap().len()
    }

    /// Waits until nothing is pending, and ends the relays.
    pub(crate) async fn drain(&self, relays: impl IntoIterator<Item = RelayProcess>) {
        until("the last pending event", async || {
            self.database.store().stats().await.is_ok_and(|stats| stats.pending == 0)
        })
        .await;
        for relay in relays {
            relay.stop().await;
        }
    }

    /// Compares what was committed with what was delivered, which allows so many duplicates.
    pub(crate) async fn check(&self, scenario: &str, duplicates_max: usize) {
        assert_eq!(self.events(Status::Pending).await, [], "pending");
        assert_eq!(self.events(Status::Failed).await, [], "failed");
        assert_eq!(self.holds().await, 0, "held");
        self.check_topic(scenario, None, duplicates_max).await;
    }

    /// The same for one topic: the relay's, or one that events name themselves.
    pub(crate) async fn check_topic(&self, scenario: &str, topic: Option<&str>, duplicates_max: usize) {
        self.check_without(scenario, topic, &HashSet::new(), duplicates_max).await;
    }

    /// The same, where these events were given up.
    pub(crate) async fn check_without(
        &self,
        scenario: &str,
        topic: Option<&str>,
        given_up: &HashSet<Uuid>,
        duplicates_max: usize,
    ) {
        let mut committed: BTreeMap<String, Vec<Uuid>> = BTreeMap::new();
        for (account, event) in self.database.committed(topic).await {
            if !given_up.contains(&event) {
                committed.entry(account).or_default().push(event);
            }
        }
        let deliveries = self.broker.read(topic.unwrap_or(&self.topic)).await;
        let verdict = checker::compare(&committed, &deliveries);
        let events: usize = committed.values().map(Vec::len).sum();
        eprintln!(
            "{scenario}: {events} events committed, {} delivered, {} duplicates of at most {duplicates_max}",
            deliveries.len(),
            verdict.duplicates
        );
        assert!(verdict.problems.is_empty(), "{scenario}: {:#?}", verdict.problems);
        assert!(events > 0, "{scenario}: nothing was committed, so nothing was shown");
        assert!(
            verdict.duplicates <= duplicates_max,
            "{scenario}: {} duplicates, at most {duplicates_max} are explained",
            verdict.duplicates
        );
    }

    /// Takes everything away. A scenario that failed leaves it to be looked at.
    pub(crate) async fn remove(self) {
        self.broker.remove(&self.topic).await;
        self.database.remove().await;
    }
}
