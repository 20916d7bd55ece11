//! What is the same for every broker: a consumer that is killed again and again, and what came of it.

use std::collections::BTreeSet;

use crate::{
    process::{ConsumerProcess, Stop, Told},
    shop::Shop,
};

/// How many orders the shop has for one such test.
pub(crate) const ORDERS: u32 = 60;

/// Lets the consumer process `test` work off what the shop has published at the broker, and kills it before
/// commits, and between commits and acknowledgements. Then each order must have been invoiced once.
pub(crate) async fn each_order_is_invoiced_once(shop: &Shop, test: &str, broker: &str) {
    let settings = shop.settings(broker);
    let mut told = Vec::new();
    let (mut committed, mut not_committed) = (BTreeSet::new(), BTreeSet::new());
    for (step, nth) in [("Committed", 3), ("Handled", 2), ("Committed", 1), ("Handled", 5), ("Committed", 20)]
    {
        let stop = Stop { step: step.to_owned(), nth };
        let seen = ConsumerProcess::start(test, &settings, Some(stop.clone())).kill_at(&stop).await;
        let killed_at = seen.last().unwrap().event.clone();
        let kept = if step == "Committed" { &mut committed } else { &mut not_committed };
        assert!(kept.insert(killed_at), "an event that was committed is new again");
        told.extend(seen);
    }
    // Kafka forgets acknowledgements that a killed consumer had not told it yet: those come again as well.
    let is_acknowledged = |told: &Told| told.step == "Acknowledged";
    let mut acknowledged: BTreeSet<_> =
        told.iter().filter(|told| is_acknowledged(told)).map(|told| told.event.clone()).collect();
    let mut last = ConsumerProcess::start(test, &settings, None);
    told.extend(
        last.until("every event acknowledged", |told| {
            acknowledged.extend(is_acknowledged(told).then(|| told.event.clone()));
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
    shop.check_order(of("Committed", "New").into_iter().map(String::as_str));
    eprintln!("{} events, {} duplicates", shop.events(), seen.len());
}
