//! The main job in a minute: a shop with a PostgreSQL database, and Kafka beside it.
//!
//! ```sh
//! scripts/services.sh up postgres kafka
//! eval "$(scripts/services.sh env)"
//! cargo run -p postgres_kafka
//! ```
//!
//! Orders are placed in transactions, and one of them rolls back. A relay runs beside the shop; half-way it
//! is asked to end, and another takes over while the shop goes on. A consumer reads the topic. At the end the
//! program compares what was committed with what arrived, and exits with 1 if a guarantee did not hold.
//!
//! It makes a schema and a topic of its own, and takes both away again.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to its reader")]

use std::{process::ExitCode, sync::Arc, time::Duration};

use outbox::{
    Enqueue, Event, OutboxStore, Relay, RelayConfig, RelayHandle, RelayStatus,
    kafka::{KafkaConfig, KafkaPublisher},
    postgres::{PostgresConfig, PostgresOutbox, PostgresStore},
};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::{BorrowedMessage, Headers},
};
use shop::{Arrivals, Promises, chapter, compare, say, verdict};
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};
use tokio::task::JoinHandle;
use uuid::Uuid;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const TOPIC_PARTITIONS: i32 = 3;

#[tokio::main]
async fn main() -> Result<ExitCode, Error> {
    let postgres = std::env::var("OUTBOX_TEST_POSTGRES_URL");
    let brokers = std::env::var("OUTBOX_TEST_KAFKA_BROKERS");
    let (Ok(postgres), Ok(brokers)) = (postgres, brokers) else {
        return Err(
            "set OUTBOX_TEST_POSTGRES_URL and OUTBOX_TEST_KAFKA_BROKERS: `scripts/services.sh up postgres \
                    kafka` starts both servers, and `eval \"$(scripts/services.sh env)\"` sets both"
                .into(),
        );
    };
    Ok(verdict(&run(&postgres, &brokers).await?))
}

/// Runs the shop, and returns what was not as promised.
async fn run(postgres: &str, brokers: &str) -> Result<Vec<String>, Error> {
    let name = format!("shop_{}", Uuid::now_v7().simple());
    create_topic(brokers, &name).await?;
    let config = PostgresConfig::builder().url(postgres).schema(&name).build()?;
    let store = PostgresStore::connect_lazy(&config).await?;
    store.migrate().await?;
    let mut shop = Shop::open(postgres, &name, &config).await?;

    chapter("1. The shop places orders. Each order and its events are written in one transaction.");
    shop.place("order-1", &["placed", "paid", "shipped"], End::Commit).await?;
    shop.place("order-2", &["placed", "paid"], End::RollBack).await?;
    shop.place("order-3", &["placed"], End::Commit).await?;

    chapter("2. A relay publishes what has committed, to Kafka.");
    let (mut handle, relay) = start_relay(&store, brokers, &name).await?;
    shop.place("order-4", &["placed", "cancelled"], End::Commit).await?;
    caught_up(&mut handle).await?;

    chapter("3. The relay is asked to end, another takes over, and the shop does not notice.");
    handle.shutdown();
    shop.place("order-3", &["paid"], End::Commit).await?;
    let first = tokio::time::timeout(PATIENCE, relay).await??;
    say("relay", &format!("ends with {} events sent and nothing in flight", first.sent));
    let (mut handle, relay) = start_relay(&store, brokers, &name).await?;
    shop.place("order-3", &["shipped"], End::Commit).await?;
    caught_up(&mut handle).await?;
    handle.shutdown();
    let second = tokio::time::timeout(PATIENCE, relay).await??;
    say("relay", &format!("ends with {} events sent and nothing in flight", second.sent));

    chapter("4. A consumer reads the topic from its beginning.");
    let arrivals = consume(brokers, &name).await?;

    chapter("5. What was promised, and what arrived.");
    let problems = compare(&shop.promised, &arrivals, store.stats().await?.pending);
    shop.close(&name).await?;
    delete_topic(brokers, &name).await?;
    Ok(problems)
}

/// How a transaction of the shop ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Commit,
    RollBack,
}

/// A service with a database. Its own table is `orders`; the outbox stands beside it.
struct Shop {
    pool: PgPool,
    outbox: PostgresOutbox,
    /// What has committed, by order.
    promised: Promises,
}

impl Shop {
    async fn open(url: &str, schema: &str, config: &PostgresConfig) -> Result<Self, Error> {
        let path = format!("SET search_path = {schema}");
        let pool = PgPoolOptions::new()
            .after_connect(move |connection, _| {
                let path = path.clone();
                Box::pin(
                    async move { sqlx::raw_sql(AssertSqlSafe(path)).execute(connection).await.map(drop) },
                )
            })
            .connect(url)
            .await?;
        sqlx::raw_sql("CREATE TABLE orders (id text PRIMARY KEY, state text NOT NULL)")
            .execute(&pool)
            .await?;
        Ok(Self { pool, outbox: PostgresOutbox::new(config), promised: Promises::new() })
    }

    /// Changes an order and tells of it, both or neither.
    async fn place(&mut self, order: &str, states: &[&str], end: End) -> Result<(), Error> {
        let mut transaction = self.pool.begin().await?;
        for state in states {
            // The row is locked from here on: the next transaction that changes this order writes its events
            // after these.
            let upsert = "INSERT INTO orders VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET state = $2";
            sqlx::query(upsert).bind(order).bind(state).execute(&mut *transaction).await?;
            let event = Event::builder("order", order, format!("order.{state}"))
                .json(&serde_json::json!({ "order": order, "state": state }))
                .build()?;
            self.outbox.enqueue(&mut transaction, &event).await?;
        }
        match end {
            End::Commit => transaction.commit().await?,
            End::RollBack => transaction.rollback().await?,
        }
        say("shop", &format!("{order}: {}: {end:?}", states.join(", ")));
        if end == End::Commit {
            let promised = self.promised.entry(order.to_owned()).or_default();
            promised.extend(states.iter().map(|state| format!("order.{state}")));
        }
        Ok(())
    }

    async fn close(self, schema: &str) -> Result<(), Error> {
        let sql = format!("DROP SCHEMA {schema} CASCADE");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.pool).await?;
        self.pool.close().await;
        Ok(())
    }
}

async fn start_relay(
    store: &PostgresStore,
    brokers: &str,
    topic: &str,
) -> Result<(RelayHandle, JoinHandle<RelayStatus>), Error> {
    let publisher =
        KafkaPublisher::new(KafkaConfig::builder(brokers).delivery_timeout(Duration::from_secs(4)).build()?)?;
    let config = RelayConfig::default().with_topic(topic.parse()?).with_source(Arc::from("/shop"));
    let relay = Relay::new(store.clone(), publisher, config)?;
    for finding in relay.check().await {
        say("relay", &format!("check: {finding}"));
    }
    let handle = relay.handle();
    say("relay", "starts");
    Ok((handle, tokio::spawn(relay.run())))
}

async fn caught_up(handle: &mut RelayHandle) -> Result<(), Error> {
    // Before it owns partitions, a relay sees nothing that could be left to do.
    tokio::time::timeout(PATIENCE, handle.wait_for(|status| status.partitions == 64)).await??;
    tokio::time::timeout(PATIENCE, handle.caught_up()).await??;
    Ok(())
}

/// Everything on the topic, in the order of its partitions.
async fn consume(brokers: &str, topic: &str) -> Result<Arrivals, Error> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &brokers).set("group.id", &topic).create()?;
        let mut from = TopicPartitionList::new();
        let mut left = 0;
        for partition in 0..TOPIC_PARTITIONS {
            let (low, high) = consumer.fetch_watermarks(&topic, partition, PATIENCE)?;
            from.add_partition_offset(&topic, partition, Offset::Offset(low))?;
            left += high - low;
        }
        consumer.assign(&from)?;
        let mut arrivals = Arrivals::new();
        for _ in 0..left {
            let record = consumer.poll(PATIENCE).ok_or("the topic ended before its end")??;
            let (order, what) = read(&record).ok_or("a record without key or type")?;
            say("consumer", &format!("partition {}: {order}: {what}", record.partition()));
            arrivals.push((order, what));
        }
        Ok(arrivals)
    })
    .await?
}

/// The order and the event type of a record.
fn read(record: &BorrowedMessage<'_>) -> Option<(String, String)> {
    let order = String::from_utf8(record.key()?.to_vec()).ok()?;
    let kind = record.headers()?.iter().find(|header| header.key == "ce_type")?.value?;
    Some((order, String::from_utf8(kind.to_vec()).ok()?))
}

fn admin(brokers: &str) -> Result<AdminClient<DefaultClientContext>, Error> {
    Ok(ClientConfig::new().set("bootstrap.servers", brokers).create()?)
}

async fn create_topic(brokers: &str, name: &str) -> Result<(), Error> {
    let topic = NewTopic::new(name, TOPIC_PARTITIONS, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    for created in admin(brokers)?.create_topics([&topic], &options).await? {
        created.map_err(|(topic, code)| format!("cannot make topic {topic}: {code}"))?;
    }
    Ok(())
}

async fn delete_topic(brokers: &str, name: &str) -> Result<(), Error> {
    for deleted in admin(brokers)?.delete_topics(&[name], &AdminOptions::new()).await? {
        deleted.map_err(|(topic, code)| format!("cannot delete topic {topic}: {code}"))?;
    }
    Ok(())
}
