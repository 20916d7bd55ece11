//! The producer's side: a shop with an outbox, and what the billing service made of its events.

use std::{collections::BTreeMap, sync::Arc};

use outbox::{
    Enqueue as _, Event, Publisher, Relay, RelayConfig,
    postgres::{PostgresConfig, PostgresOutbox, PostgresStore},
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

use crate::PATIENCE;

/// Where the events come from.
const SOURCE: &str = "/shop";

/// An invoice as the billing service wrote it: event, source, type, subject, sequence, traceparent, total.
type Invoice = (String, String, String, String, i64, String, i64);

/// A shop, and a billing service that is to write one invoice for each order.
pub(crate) struct Shop {
    postgres: String,
    /// The schema of the shop; the billing service has one of its own.
    name: String,
    /// What each event must have become.
    expected: BTreeMap<String, Invoice>,
}

impl Shop {
    /// A shop that has committed so many orders, and has rolled as many back.
    pub(crate) async fn with_orders(postgres: &str, orders: u32) -> Self {
        let name = format!("shop_{}", Uuid::now_v7().simple());
        let mut shop = Self { postgres: postgres.to_owned(), name, expected: BTreeMap::new() };
        shop.store().await.migrate().await.unwrap();
        let mut connection = PgConnection::connect(postgres).await.unwrap();
        let outbox = PostgresOutbox::new(&shop.config());
        for order in 0..orders {
            for commits in [false, true] {
                let (key, total) = (format!("{}/{order}", order % 7), i64::from(order) + 1);
                let traceparent = format!("00-{:032x}-{:016x}-01", order + 1, order + 1);
                let event = Event::builder("order", &key, "order.placed")
                    .json(&serde_json::json!({ "total": total }))
                    .header("traceparent", &traceparent)
                    .build()
                    .unwrap();
                let mut transaction = connection.begin().await.unwrap();
                let sequence = outbox.enqueue(&mut transaction, &event).await.unwrap();
                if !commits {
                    transaction.rollback().await.unwrap();
                    continue;
                }
                transaction.commit().await.unwrap();
                let invoice = (
                    event.id().to_string(),
                    SOURCE.to_owned(),
                    "order.placed".to_owned(),
                    format!("order/{key}"),
                    sequence,
                    traceparent,
                    total,
                );
                shop.expected.insert(invoice.0.clone(), invoice);
            }
        }
        // The billing service's own, which it does not make itself.
        run(&mut connection, &format!("CREATE SCHEMA {}", shop.billing())).await;
        shop
    }

    /// The schema of the billing service.
    pub(crate) fn billing(&self) -> String {
        self.name.replace("shop", "bill")
    }

    /// The name under which the shop's events are published.
    pub(crate) fn topic(&self) -> &str {
        &self.name
    }

    /// What a consumer of this shop's events is told, at this broker.
    pub(crate) fn settings(&self, broker: &str) -> serde_json::Value {
        serde_json::json!({
            "postgres": self.postgres, "schema": self.billing(), "broker": broker, "topic": self.topic(),
        })
    }

    /// How many events have committed.
    pub(crate) fn events(&self) -> usize {
        self.expected.len()
    }

    fn config(&self) -> PostgresConfig {
        PostgresConfig::builder().url(&self.postgres).schema(&self.name).build().unwrap()
    }

    async fn store(&self) -> PostgresStore {
        PostgresStore::connect_lazy(&self.config()).await.unwrap()
    }

    /// Publishes everything.
    pub(crate) async fn relay(&self, publisher: Arc<dyn Publisher>) {
        let config =
            RelayConfig::default().with_topic(self.topic().parse().unwrap()).with_source(Arc::from(SOURCE));
        let relay = Relay::new(self.store().await, publisher, config).unwrap();
        let mut handle = relay.handle();
        let running = tokio::spawn(relay.run());
        let events = self.events() as u64;
        tokio::time::timeout(PATIENCE, handle.wait_for(|status| status.sent == events))
            .await
            .unwrap()
            .unwrap();
        handle.shutdown();
        tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
    }

    /// Compares what the billing service wrote with what the shop committed.
    pub(crate) async fn check(&self) {
        let mut connection = PgConnection::connect(&self.postgres).await.unwrap();
        run(&mut connection, &format!("SET search_path = {}", self.billing())).await;
        let invoices: Vec<Invoice> =
            sqlx::query_as("SELECT * FROM invoices ORDER BY event").fetch_all(&mut connection).await.unwrap();
        assert_eq!(invoices, self.expected.values().cloned().collect::<Vec<_>>());
        let balance: i64 =
            sqlx::query_scalar("SELECT total FROM balance").fetch_one(&mut connection).await.unwrap();
        assert_eq!(balance, self.expected.values().map(|invoice| invoice.6).sum::<i64>());
        let aside: i64 =
            sqlx::query_scalar("SELECT count(*) FROM set_aside").fetch_one(&mut connection).await.unwrap();
        assert_eq!(aside, 0, "messages that were set aside");
    }

    /// Checks that the first effects of each aggregate were made in the order of its events.
    pub(crate) fn check_order<'a>(&self, effects: impl Iterator<Item = &'a str>) {
        let mut last = BTreeMap::new();
        for event in effects {
            let (_, _, _, subject, sequence, ..) = &self.expected[event];
            let before = last.insert(subject, sequence);
            assert!(before.is_none_or(|before| before < sequence), "{subject}: {sequence} after {before:?}");
        }
        assert!(!last.is_empty(), "no effects");
    }

    /// Takes the schemas away. A test that failed leaves them to be looked at.
    pub(crate) async fn close(self) {
        let mut connection = PgConnection::connect(&self.postgres).await.unwrap();
        run(&mut connection, &format!("DROP SCHEMA {}, {} CASCADE", self.name, self.billing())).await;
    }
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}
