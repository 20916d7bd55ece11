//! PostgreSQL to Kafka to PostgreSQL.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use outbox::kafka::{KafkaConfig, KafkaPublisher};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
};

use crate::{
    PATIENCE, address,
    process::{ConsumerProcess, Stop, Told, serve},
    shop::Shop,
};

#[path = "../../examples/consumer_kafka.rs"]
#[allow(dead_code, unused_attributes)]
mod consumer_kafka;

use consumer_kafka::Settings;

const ORDERS: u32 = 60;

/// Not a test by itself: the other one starts it as the consumer. Without orders it has nothing to do.
#[test]
fn consumer_process() {
    serve::<Settings>(async |settings, teller| {
        consumer_kafka::run(&settings, async |step, event, receipt| {
            teller.tell(&format!("{step:?}"), event, receipt).await;
        })
        .await
    });
}

fn start(settings: &Settings, stop: Option<Stop>) -> ConsumerProcess {
    ConsumerProcess::start("kafka::consumer_process", settings, stop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_order_is_invoiced_once_though_the_consumer_is_killed_again_and_again() {
    let postgres = address("PostgreSQL", "postgres", "OUTBOX_TEST_POSTGRES_URL");
    let brokers = address("Apache Kafka", "kafka", "OUTBOX_TEST_KAFKA_BROKERS");
    let (Some(postgres), Some(brokers)) = (postgres, brokers) else { return };
    let shop = Shop::with_orders(&postgres, ORDERS).await;
    create_topic(&brokers, shop.topic()).await;
    let config = KafkaConfig::builder(&brokers).delivery_timeout(Duration::from_secs(4)).build().unwrap();
    shop.relay(Arc::new(KafkaPublisher::new(config).unwrap())).await;

    let topic = shop.topic().to_owned();
    let settings = Settings { postgres, schema: shop.billing(), brokers, topic };
    let mut told = Vec::new();
    let (mut committed, mut not_committed) = (BTreeSet::new(), BTreeSet::new());
    for (step, nth) in [("Committed", 3), ("Handled", 2), ("Committed", 1), ("Handled", 5), ("Committed", 20)]
    {
        let stop = Stop { step: step.to_owned(), nth };
        let seen = start(&settings, Some(stop.clone())).kill_at(&stop).await;
        let killed_at = seen.last().unwrap().event.clone();
        let kept = if step == "Committed" { &mut committed } else { &mut not_committed };
        assert!(kept.insert(killed_at), "an event that was committed is new again");
        told.extend(seen);
    }
    let mut acknowledged = BTreeSet::new();
    let mut last = start(&settings, None);
    told.extend(
        last.until("every event acknowledged", |told| {
            acknowledged.extend((told.step == "Acknowledged").then(|| told.event.clone()));
            acknowledged.len() == shop.events()
        })
        .await,
    );
    drop(last);
    shop.check().await;

    // What was committed and not acknowledged came again and was seen; what was not committed was new again.
    let of = |step: &str, receipt: &str| -> Vec<&String> {
        let is = |told: &&Told| told.step == step && told.receipt == receipt;
        told.iter().filter(is).map(|told| &told.event).collect()
    };
    let (seen, new) = (of("Committed", "Seen"), of("Handled", "New"));
    for event in &committed {
        assert!(seen.contains(&event), "{event} was committed, and its copy was not seen");
    }
    for event in not_committed.difference(&committed) {
        let times = new.iter().filter(|new| **new == event).count();
        assert!(times >= 2, "{event} was not committed, and was new {times} times");
    }
    eprintln!("{} events, {} duplicates", shop.events(), seen.len());
    delete_topic(&settings).await;
    shop.close().await;
}

fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap()
}

async fn create_topic(brokers: &str, name: &str) {
    let topic = NewTopic::new(name, 3, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    for created in admin(brokers).create_topics([&topic], &options).await.unwrap() {
        created.unwrap();
    }
}

async fn delete_topic(settings: &Settings) {
    admin(&settings.brokers).delete_topics(&[&settings.topic], &AdminOptions::new()).await.unwrap();
}
