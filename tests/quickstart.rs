//! What the quickstart shows holds, and it would notice if it did not.
#![cfg(feature = "sqlite")]

#[path = "../examples/quickstart.rs"]
#[allow(dead_code, unused_attributes)]
mod quickstart;

use quickstart::shop::{Promises, compare};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quickstart_keeps_its_promises() {
    let problems = quickstart::run().await.expect("the quickstart runs");
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn a_shop_notices_what_is_lost_invented_out_of_order_or_left_behind() {
    let pair = |order: &str, what: &str| (order.to_owned(), what.to_owned());
    let promised = Promises::from([("a".to_owned(), vec!["placed".to_owned(), "paid".to_owned()])]);
    let problems = |arrived: &[(String, String)], pending| compare(&promised, arrived, pending).len();
    let good = [pair("a", "placed"), pair("a", "placed"), pair("a", "paid")];
    assert_eq!(problems(&good, 0), 0, "duplicates are allowed");
    assert_eq!(problems(&good[..1], 0), 1, "an event is lost");
    assert_eq!(problems(&[pair("a", "paid"), pair("a", "placed")], 0), 1, "out of order");
    assert_eq!(problems(&[good.as_slice(), &[pair("b", "placed")]].concat(), 0), 1, "an event is invented");
    assert_eq!(problems(&good, 1), 1, "an event is left behind");
}
