//! Connections to the database that are cut while a settle is on its way.

use crate::{
    brokers, databases,
    proxy::{Moment, Proxy},
    relay::{RelayProcess, Settings},
    stage::Stage,
    turn::Turn,
    workload::{Workload, burst},
};

const CUTS: usize = 12;

pub(super) async fn cut(database: databases::Kind, broker: brokers::Kind) {
    let Some(stage) = Stage::set(database, broker, Turn::shared).await else { return };
    let at = stage.database.store_at();
    let mut proxy = Proxy::start(at.server(), stage.database.settles()).await;
    // A lease that outlives the reconnecting: an outcome that is not recorded at once is recorded later.
    let settings = Settings { store: at.through(proxy.port), lease_ms: 30_000, ..stage.settings() };
    let mut load = Workload::start(&stage);
    let mut relay = RelayProcess::start("A", &settings);
    relay.wait_for("all partitions", |seen| seen.partitions == stage.partitions).await;
    for cut in 0..CUTS {
        let moment = [Moment::Before, Moment::Within, Moment::After][cut % 3];
        let before = relay.seen();
        // The first request of a settling connection prepares its statement; later ones are the settles.
        // The relay need not notice, since some drivers repeat a request by themselves.
        tokio::join!(burst(&stage, 3), proxy.cut(moment, cut / 3));
        relay.wait_for("going on", |seen| seen.sent > before.sent + 100).await;
    }
    load.more(200).await;
    load.end(&stage).await;
    assert_eq!(relay.seen().buried, 0, "the lease outlives every cut");
    stage.drain([relay]).await;
    stage.check(&format!("{database:?} to {broker:?}, connections cut"), 0).await;
    stage.remove().await;
}
