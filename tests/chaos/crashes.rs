//! Relays that are killed, frozen and restarted while the service works.

use nix::sys::signal::Signal;

use crate::{
    relay::RelayProcess,
    servers::Turn,
    stage::Stage,
    workload::{Workload, burst},
};

const KILLS: usize = 3;
const FREEZES: usize = 2;
const RESTARTS: usize = 4;
const NAMES: [&str; 2] = ["A", "B"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_killed_in_mid_batch_loses_nothing() {
    let Some(stage) = Stage::set(Turn::shared).await else { return };
    let settings = stage.settings();
    let mut load = Workload::start(&stage);
    load.more(200).await;
    let mut relays = NAMES.map(|name| RelayProcess::start(name, &settings));
    for round in 0..KILLS {
        let victim = round % 2;
        for relay in &mut relays {
            relay.wait_for("its share of the partitions", |seen| seen.partitions == 32).await;
        }
        tokio::join!(burst(&stage, 10), relays[victim].in_mid_batch());
        let started = RelayProcess::start(NAMES[victim], &settings);
        std::mem::replace(&mut relays[victim], started).kill().await;
    }
    load.more(200).await;
    load.end(&stage).await;
    stage.drain(relays).await;
    stage.check("killed relays", KILLS * settings.in_flight_max).await;
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_frozen_past_its_lease_finds_itself_buried_and_starts_anew() {
    let Some(stage) = Stage::set(Turn::shared).await else { return };
    let settings = stage.settings();
    let mut load = Workload::start(&stage);
    let mut relays = NAMES.map(|name| RelayProcess::start(name, &settings));
    for round in 0..FREEZES {
        let (frozen, other) = (round % 2, 1 - round % 2);
        for relay in &mut relays {
            relay.wait_for("its share of the partitions", |seen| seen.partitions == 32).await;
        }
        let (_, before) = tokio::join!(burst(&stage, 10), relays[frozen].in_mid_batch());
        relays[frozen].signal(Signal::SIGSTOP);
        relays[other].wait_for("taking over all partitions", |seen| seen.partitions == 64).await;
        // What the frozen one held is delivered by the other, and new events of the same aggregates after it.
        let (_, _) = tokio::join!(burst(&stage, 2), relays[other].in_mid_batch());
        relays[frozen].signal(Signal::SIGCONT);
        let buried = before.buried;
        relays[frozen].wait_for("finding itself buried", |seen| seen.buried > buried).await;
        relays[frozen].wait_for("partitions under a new id", |seen| seen.partitions > 0).await;
    }
    load.more(200).await;
    load.end(&stage).await;
    stage.drain(relays).await;
    stage.check("frozen relays", FREEZES * settings.in_flight_max).await;
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_duplicates_nothing() {
    let Some(stage) = Stage::set(Turn::shared).await else { return };
    // A lease that no slow machine lets expire: what is shown is the hand-over.
    let settings = crate::relay::Settings { lease_ms: 30_000, ..stage.settings() };
    let mut load = Workload::start(&stage);
    let mut relays = NAMES.map(|name| RelayProcess::start(name, &settings));
    for round in 0..RESTARTS {
        let (leaving, staying) = (round % 2, 1 - round % 2);
        for relay in &mut relays {
            relay.wait_for("its share of the partitions", |seen| seen.partitions == 32).await;
        }
        tokio::join!(burst(&stage, 5), relays[leaving].in_mid_batch());
        let started = RelayProcess::start(NAMES[leaving], &settings);
        std::mem::replace(&mut relays[leaving], started).stop().await;
        relays[staying].wait_for("more to send", |seen| seen.in_flight > 0).await;
    }
    load.more(200).await;
    load.end(&stage).await;
    stage.drain(relays).await;
    stage.check("rolling restart", 0).await;
    stage.strike().await;
}
