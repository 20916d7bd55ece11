//! Servers that stop, crash and come back while the service works.

use crate::{
    brokers, databases,
    relay::{RelayProcess, share_out},
    servers::Managed,
    stage::Stage,
    turn::Turn,
    workload::{Workload, burst},
};

const RELAYS_AND_STOPS: usize = 2 * 2;

pub(super) async fn database_restarted(database: databases::Kind, broker: brokers::Kind) {
    let Some(stage) = Stage::set(database, broker, Turn::exclusive).await else { return };
    let (name, address) = stage.database.server().expect("a database with a server");
    let Some(server) = Managed::find(name, &address) else { return };
    let settings = stage.settings();
    let mut load = Workload::start(&stage);
    let mut relays = ["A", "B"].map(|name| RelayProcess::start(name, &settings));
    for stop in [Managed::down, Managed::kill] {
        let before = relays[0].seen();
        share_out(&mut relays, stage.partitions, 0).await;
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
    stage.drain(relays).await;
    let duplicates_max = RELAYS_AND_STOPS * settings.in_flight_max;
    stage.check(&format!("{database:?} restarted, to {broker:?}"), duplicates_max).await;
    stage.remove().await;
}

pub(super) async fn broker_restarted(database: databases::Kind, broker: brokers::Kind) {
    let Some(stage) = Stage::set(database, broker, Turn::exclusive).await else { return };
    let (name, address) = stage.broker.server();
    let Some(server) = Managed::find(name, &address) else { return };
    let settings = stage.settings();
    let mut load = Workload::start(&stage);
    let mut relays = ["A", "B"].map(|name| RelayProcess::start(name, &settings));
    for is_crash in [false, true] {
        share_out(&mut relays, stage.partitions, 0).await;
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
    stage.drain(relays).await;
    let duplicates_max = RELAYS_AND_STOPS * settings.in_flight_max;
    stage.check(&format!("{database:?} to {broker:?}, which restarted"), duplicates_max).await;
    stage.remove().await;
}
