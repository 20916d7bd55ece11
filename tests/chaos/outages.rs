//! Servers that stop, crash and come back while the service works.

use crate::{
    relay::RelayProcess,
    servers::{Managed, Turn},
    stage::Stage,
    workload::{Workload, burst},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_stops_and_crashes_and_comes_back() {
    let Some(stage) = Stage::set(Turn::exclusive).await else { return };
    let Some(server) = Managed::find("postgres", &stage.servers.postgres) else { return };
    let settings = stage.settings();
    let mut load = Workload::start(&stage);
    let mut relays = ["A", "B"].map(|name| RelayProcess::start(name, &settings));
    for stop in [Managed::down, Managed::kill] {
        let before = relays[0].seen();
        for relay in &mut relays {
            relay.wait_for("its share of the partitions", |seen| seen.partitions == 32).await;
        }
        tokio::join!(burst(&stage, 10), relays[0].in_mid_batch());
        tokio::task::block_in_place(|| stop(&server));
        for relay in &mut relays {
            relay.wait_for("noticing the outage", |seen| seen.store_errors > before.store_errors).await;
        }
        tokio::task::block_in_place(|| server.up());
        load.more(200).await;
        let before = relays[0].seen().sent;
        relays[0].wait_for("going on", |seen| seen.sent > before + 50).await;
    }
    load.end(&stage).await;
    let relays_and_stops = 2 * 2;
    stage.drain(relays).await;
    stage.check("PostgreSQL restarted", relays_and_stops * settings.in_flight_max).await;
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_restarts_and_is_away_for_a_while() {
    let Some(stage) = Stage::set(Turn::exclusive).await else { return };
    let Some(server) = Managed::find("kafka", &stage.servers.brokers) else { return };
    let settings = stage.settings();
    let mut load = Workload::start(&stage);
    let mut relays = ["A", "B"].map(|name| RelayProcess::start(name, &settings));
    for is_crash in [false, true] {
        for relay in &mut relays {
            relay.wait_for("its share of the partitions", |seen| seen.partitions == 32).await;
        }
        tokio::join!(burst(&stage, 10), relays[0].in_mid_batch());
        tokio::task::block_in_place(|| if is_crash { server.kill() } else { server.down() });
        if is_crash {
            // The service does not notice, and goes on: several seconds' worth.
            load.more(2_000).await;
            for relay in &mut relays {
                relay.wait_for("finding the broker away", |seen| !seen.broker_available).await;
            }
        }
        tokio::task::block_in_place(|| server.up());
        for relay in &mut relays {
            let before = relay.seen().sent;
            relay.wait_for("going on", |seen| seen.broker_available && seen.sent > before + 50).await;
        }
    }
    load.end(&stage).await;
    let failed: u64 = relays.iter().map(|relay| relay.seen().failed).sum();
    assert_eq!(failed, 0, "an outage gives no event up");
    let relays_and_stops = 2 * 2;
    stage.drain(relays).await;
    stage.check("Kafka restarted", relays_and_stops * settings.in_flight_max).await;
    stage.strike().await;
}
