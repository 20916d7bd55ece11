//! What the quickstart shows holds. That it would notice if it did not is shown in `shop`.
#![cfg(feature = "sqlite")]

#[path = "../examples/quickstart.rs"]
#[allow(dead_code, unused_attributes)]
mod quickstart;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quickstart_keeps_its_promises() {
    let problems = quickstart::run().await.expect("the quickstart runs");
    assert!(problems.is_empty(), "{problems:?}");
}
