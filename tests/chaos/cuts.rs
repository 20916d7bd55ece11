//! Connections to PostgreSQL that are cut while a settle is on its way.

use crate::{
    proxy::{Moment, Proxy},
    relay::{RelayProcess, Settings},
    servers::Turn,
    stage::Stage,
    workload::{Workload, burst},
};

const CUTS: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_in_mid_settle_loses_nothing_and_duplicates_nothing() {
    let Some(stage) = Stage::set(Turn::shared).await else { return };
    let (upstream, through) = addresses(&stage.servers.postgres);
    let mut proxy = Proxy::start(upstream).await;
    // A lease that outlives the reconnecting: an outcome that is not recorded at once is recorded later.
    let settings = Settings { postgres: through(proxy.port), lease_ms: 30_000, ..stage.settings() };
    let mut load = Workload::start(&stage);
    let mut relay = RelayProcess::start("A", &settings);
    relay.wait_for("all partitions", |seen| seen.partitions == 64).await;
    for cut in 0..CUTS {
        let moment = [Moment::Before, Moment::Within, Moment::After][cut % 3];
        let before = relay.seen();
        // The first request of a settling connection prepares its statement; later ones are the settles.
        tokio::join!(burst(&stage, 3), proxy.cut(moment, cut / 3));
        relay.wait_for("noticing the cut", |seen| seen.store_errors > before.store_errors).await;
        relay.wait_for("going on", |seen| seen.sent > before.sent + 100).await;
    }
    load.more(200).await;
    load.end(&stage).await;
    assert_eq!(relay.seen().buried, 0, "the lease outlives every cut");
    stage.drain([relay]).await;
    stage.check("cut connections", 0).await;
    stage.strike().await;
}

/// The server's `host:port`, and its address with another one.
fn addresses(url: &str) -> (String, impl Fn(u16) -> String + use<>) {
    let (start, rest) = url.rsplit_once('@').expect("an address with a user");
    let (place, end) = rest.split_once('/').expect("an address with a database");
    let (start, end) = (start.to_owned(), end.to_owned());
    (place.to_owned(), move |port| format!("{start}@127.0.0.1:{port}/{end}"))
}
