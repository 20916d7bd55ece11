//! A saga ends as it should: what was done is undone when a later step is refused, and nothing is done twice.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

use std::{collections::BTreeMap, sync::Arc};

use outbox::{publisher::PublishError, testing::ScriptedPublisher};
use saga::{
    Books, Order,
    messages::{ORDERS, PAYMENTS, STOCK},
    run,
};

fn orders() -> [Order; 3] {
    [
        Order::new("good", "alice", "tea", 2, 800),
        Order::new("sold-out", "bob", "cake", 1, 300),
        Order::new("poor", "carl", "tea", 1, 400),
    ]
}

/// The messages of one order that a service has handled, by event type.
fn of<'a>(books: &'a Books, service: &str, order: &str) -> Vec<&'a str> {
    let of_order = |message: &'a String| message.strip_suffix(&format!(" {order}"));
    books.handled[service].iter().filter_map(of_order).collect()
}

fn assert_as_it_should_be(books: &Books) {
    let state = |order: &str| (books.orders[order].0.as_str(), books.orders[order].1.as_deref());
    assert_eq!(state("good"), ("confirmed", None));
    assert_eq!(of(books, PAYMENTS, "good"), ["payment.charge"]);
    assert_eq!(of(books, STOCK, "good"), ["stock.reserve"]);

    // It was paid, and the refusal of a later step took the payment back.
    assert_eq!(state("sold-out"), ("cancelled", Some("cake is sold out")));
    assert_eq!(of(books, PAYMENTS, "sold-out"), ["payment.charge", "payment.refund"]);
    assert_eq!(of(books, STOCK, "sold-out"), ["stock.reserve"]);
    assert_eq!(
        of(books, ORDERS, "sold-out"),
        ["payment.charged", "stock.refused", "payment.refunded"],
        "in the order in which it happened"
    );

    // It was never paid: there is nothing to reserve and nothing to take back.
    assert_eq!(state("poor"), ("rejected", Some("carl has not 400 cents")));
    assert_eq!(of(books, PAYMENTS, "poor"), ["payment.charge"]);
    assert_eq!(of(books, STOCK, "poor"), [""; 0]);

    let own = |pairs: &[(&str, i64)]| -> BTreeMap<String, i64> {
        pairs.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect()
    };
    assert_eq!(books.accounts, own(&[("alice", 10_000 - 800), ("bob", 10_000), ("carl", 50)]));
    assert_eq!(books.stock, own(&[("tea", 10 - 2), ("cake", 0)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_compensated() {
    let folder = tempfile::tempdir().unwrap();
    let books = run(folder.path(), &orders(), |bus| Arc::new(bus)).await.unwrap();
    assert_as_it_should_be(&books);
    assert_eq!(books.duplicates, 0);
}

/// The broker loses answers, so that commands and replies come again, and is away for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_charged_or_refunded_twice() {
    const LOST: u32 = 5;
    let folder = tempfile::tempdir().unwrap();
    let books = run(folder.path(), &orders(), |bus| {
        let publisher = ScriptedPublisher::around(bus);
        publisher.lose_answer_next(LOST);
        publisher.fail_next(PublishError::unavailable("Down", "the broker is away"), 2);
        Arc::new(publisher)
    })
    .await
    .unwrap();
    assert_as_it_should_be(&books);
    assert_eq!(books.duplicates, u64::from(LOST), "each that was sent again was recognised");
}
