//! Relays that are killed, frozen and restarted while the service works.

use nix::sys::signal::Signal;

use crate::{
    brokers, databases,
    relay::{RelayProcess, Settings, share_out},
    stage::Stage,
    turn::Turn,
    workload::{Workload, burst},
};

const KILLS: usize = 3;
const FREEZES: usize = 2;
const RESTARTS: usize = 4;
const NAMES: [&str; 2] = ["A", "B"];

pub(super) async fn killed(database: databases::Kind, broker: brokers::Kind) {
    kill(database, broker, KILLS).await;
}

pub(super) async fn killed_once(database: databases::Kind, broker: brokers::Kind) {
    kill(database, broker, 1).await;
}

async fn kill(database: databases::Kind, broker: brokers::Kind, kills: usize) {
    let Some(stage) = Stage::set(database, broker, Turn::shared).await else { return };
    let settings = stage.settings();
    let mut load = Workload::start(&stage);
    load.more(200).await;
    let mut relays = NAMES.map(|name| RelayProcess::start(name, &settings));
    for round in 0..kills {
        let victim = share_out(&mut relays, stage.partitions, round).await;
        tokio::join!(burst(&stage, 10), relays[victim].in_mid_batch());
        let started = RelayProcess::start(NAMES[victim], &settings);
        std::mem::replace(&mut relays[victim], started).kill().await;
    }
    load.more(200).await;
    load.end(&stage).await;
    stage.drain(relays).await;
    stage.check(&format!("{database:?} to {broker:?}, killed"), kills * settings.in_flight_max).await;
    stage.remove().await;
}

pub(super) async fn frozen(database: databases::Kind, broker: brokers::Kind) {
    let Some(stage) = Stage::set(database, broker, Turn::shared).await else { return };
    let settings = stage.settings();
    let mut load = Workload::start(&stage);
    let mut relays = NAMES.map(|name| RelayProcess::start(name, &settings));
    for round in 0..FREEZES {
        let frozen = share_out(&mut relays, stage.partitions, round).await;
        let other = 1 - frozen;
        let (_, before) = tokio::join!(burst(&stage, 10), relays[frozen].in_mid_batch());
        relays[frozen].signal(Signal::SIGSTOP);
        let all = stage.partitions;
        relays[other].wait_for("taking over all partitions", |seen| seen.partitions == all).await;
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
    let duplicates_max = FREEZES * settings.in_flight_max;
    stage.check(&format!("{database:?} to {broker:?}, frozen"), duplicates_max).await;
    stage.remove().await;
}

pub(super) async fn restarted(database: databases::Kind, broker: brokers::Kind) {
    let Some(stage) = Stage::set(database, broker, Turn::shared).await else { return };
    // A lease that no slow machine lets expire: what is shown is the hand-over.
    let settings = Settings { lease_ms: 30_000, ..stage.settings() };
    let mut load = Workload::start(&stage);
    let mut relays = NAMES.map(|name| RelayProcess::start(name, &settings));
    for round in 0..RESTARTS {
        let leaving = share_out(&mut relays, stage.partitions, round).await;
        tokio::join!(burst(&stage, 5), relays[leaving].in_mid_batch());
        let started = RelayProcess::start(NAMES[leaving], &settings);
        std::mem::replace(&mut relays[leaving], started).stop().await;
    }
    load.more(200).await;
    load.end(&stage).await;
    stage.drain(relays).await;
    stage.check(&format!("{database:?} to {broker:?}, restarted"), 0).await;
    stage.remove().await;
}
