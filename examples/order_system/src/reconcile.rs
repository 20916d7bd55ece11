//! The reconciliation: what the client was told, beside the books of all four services.

use std::{collections::BTreeMap, fmt::Debug, str::FromStr as _};

use rusqlite::OpenFlags;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::{
    client::Promises,
    error::Error,
    shop::{ITEMS, STOCK, Step},
    stage::Stage,
};

/// What the databases say. What a service did comes in the order in which it did it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Books {
    pub(crate) orders: BTreeMap<Uuid, String>,
    /// Events in the outbox that were not sent: they wait, or were given up.
    pub(crate) unsent: i64,
    pub(crate) sent: i64,
    pub(crate) stock: BTreeMap<String, i64>,
    pub(crate) movements: Vec<(Uuid, (String, i64))>,
    pub(crate) turnover: i64,
    pub(crate) invoices: Vec<(Uuid, i64)>,
    pub(crate) letters: Vec<(Uuid, String)>,
    /// Messages that a service could not handle.
    pub(crate) set_aside: i64,
}

impl Books {
    pub(crate) async fn read(stage: &Stage) -> Result<Self, Error> {
        let mut books = Self::default();
        let mut orders = PgConnection::connect(&stage.orders).await?;
        let rows: Vec<(Uuid, String)> =
            sqlx::query_as("SELECT id, step FROM orders").fetch_all(&mut orders).await?;
        books.orders = rows.into_iter().collect();
        let unsent =
            "SELECT count(*) FILTER (WHERE status <> 1), count(*) FILTER (WHERE status = 1) FROM outbox";
        (books.unsent, books.sent) = sqlx::query_as(unsent).fetch_one(&mut orders).await?;

        const SET_ASIDE: &str = "SELECT count(*) FROM set_aside";
        let mut inventory = PgConnection::connect(&stage.inventory).await?;
        let rows = sqlx::query_as("SELECT item, quantity FROM stock").fetch_all(&mut inventory).await?;
        books.stock = rows.into_iter().collect();
        let movements = "SELECT order_id, item, quantity FROM movements ORDER BY number";
        let rows: Vec<(Uuid, String, i64)> = sqlx::query_as(movements).fetch_all(&mut inventory).await?;
        books.movements = rows.into_iter().map(|(id, item, quantity)| (id, (item, quantity))).collect();
        books.set_aside += sqlx::query_scalar::<_, i64>(SET_ASIDE).fetch_one(&mut inventory).await?;

        let mut billing = PgConnection::connect(&stage.billing).await?;
        let invoices = "SELECT order_id, amount FROM invoices ORDER BY number";
        books.invoices = sqlx::query_as(invoices).fetch_all(&mut billing).await?;
        books.turnover = sqlx::query_scalar("SELECT amount FROM turnover").fetch_one(&mut billing).await?;
        books.set_aside += sqlx::query_scalar::<_, i64>(SET_ASIDE).fetch_one(&mut billing).await?;

        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let notification = rusqlite::Connection::open_with_flags(&stage.notification, flags)?;
        let mut letters = notification.prepare("SELECT order_id, step FROM letters ORDER BY number")?;
        let letters = letters.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
        for letter in letters {
            let (id, step) = letter?;
            books.letters.push((Uuid::from_str(&id)?, step));
        }
        books.set_aside += notification.query_row(SET_ASIDE, [], |row| row.get::<_, i64>(0))?;
        Ok(books)
    }
}

/// Everything that is not as it was promised; nothing, if all is well.
pub(crate) fn reconcile(promises: &Promises, books: &Books) -> Vec<String> {
    let mut problems = Vec::new();
    let (mut steps, mut movements) = (BTreeMap::new(), BTreeMap::new());
    let (mut invoices, mut letters) = (BTreeMap::new(), BTreeMap::new());
    for (id, (order, gone)) in &promises.orders {
        let price = ITEMS.iter().find(|(item, _)| *item == order.item).map_or(0, |(_, price)| *price);
        let total = price * order.quantity;
        let cancelled = gone.contains(&Step::Cancelled);
        // There and, of an order that was cancelled, back again.
        let both = |first: i64| if cancelled { vec![first, -first] } else { vec![first] };
        let moved = both(-order.quantity).into_iter().map(|quantity| (order.item.clone(), quantity));
        steps.insert(*id, gone.last().map(ToString::to_string).into_iter().collect());
        movements.insert(*id, moved.collect());
        invoices.insert(*id, both(total));
        letters.insert(*id, gone.iter().map(ToString::to_string).collect());
    }
    let orders: Vec<_> = books.orders.iter().map(|(id, step)| (*id, step.clone())).collect();
    compare("the order service", &steps, &orders, &mut problems);
    compare("inventory", &movements, &books.movements, &mut problems);
    compare("billing", &invoices, &books.invoices, &mut problems);
    compare("notification", &letters, &books.letters, &mut problems);

    for (item, _) in ITEMS {
        let moved: i64 =
            movements.values().flatten().filter(|(of, _)| of == item).map(|(_, moved)| moved).sum();
        let stock = books.stock.get(item).copied().unwrap_or_default();
        if stock != STOCK + moved {
            problems.push(format!("inventory has {stock} of {item}, and {} are right", STOCK + moved));
        }
    }
    let turnover: i64 = invoices.values().flatten().sum();
    if books.turnover != turnover {
        problems.push(format!("billing has a turnover of {}, and {turnover} is right", books.turnover));
    }
    let events: usize = letters.values().map(Vec::len).sum();
    if usize::try_from(books.sent) != Ok(events) {
        problems.push(format!("{} events were sent, and {events} are right", books.sent));
    }
    for (count, what) in
        [(books.unsent, "events were not sent"), (books.set_aside, "messages were set aside")]
    {
        if count > 0 {
            problems.push(format!("{count} {what}"));
        }
    }
    problems
}

/// Compares by order: everything that was promised, once and in its order, and nothing else.
fn compare<T: PartialEq + Clone + Debug>(
    service: &str,
    promised: &BTreeMap<Uuid, Vec<T>>,
    done: &[(Uuid, T)],
    problems: &mut Vec<String>,
) {
    let mut by_order: BTreeMap<Uuid, Vec<T>> = BTreeMap::new();
    for (id, what) in done {
        by_order.entry(*id).or_default().push(what.clone());
    }
    for (id, promised) in promised {
        let done = by_order.remove(id).unwrap_or_default();
        if done != *promised {
            problems.push(format!("{service}: order {id}: {done:?}, and {promised:?} is right"));
        }
    }
    for (id, done) in by_order {
        problems.push(format!("{service}: order {id}, which was never accepted: {done:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order_service::NewOrder;

    const CANCELLED: Uuid = Uuid::from_u128(1);
    const SHIPPED: Uuid = Uuid::from_u128(2);

    /// Two orders, and books in which both are right.
    fn story() -> (Promises, Books) {
        let order =
            |item: &str, quantity| NewOrder { customer: "bob".to_owned(), item: item.to_owned(), quantity };
        let mut promises = Promises::default();
        promises.orders.insert(CANCELLED, (order("lamp", 2), vec![Step::Placed, Step::Cancelled]));
        promises.orders.insert(SHIPPED, (order("desk", 1), vec![Step::Placed, Step::Paid, Step::Shipped]));
        let text = |text: &str| text.to_owned();
        let books = Books {
            orders: BTreeMap::from([(CANCELLED, text("cancelled")), (SHIPPED, text("shipped"))]),
            unsent: 0,
            sent: 5,
            stock: BTreeMap::from([(text("lamp"), STOCK), (text("chair"), STOCK), (text("desk"), STOCK - 1)]),
            movements: vec![
                (CANCELLED, (text("lamp"), -2)),
                (SHIPPED, (text("desk"), -1)),
                (CANCELLED, (text("lamp"), 2)),
            ],
            turnover: 250,
            invoices: vec![(CANCELLED, 60), (SHIPPED, 250), (CANCELLED, -60)],
            letters: vec![
                (CANCELLED, text("placed")),
                (SHIPPED, text("placed")),
                (CANCELLED, text("cancelled")),
                (SHIPPED, text("paid")),
                (SHIPPED, text("shipped")),
            ],
            set_aside: 0,
        };
        (promises, books)
    }

    /// Changes the books, and expects that just this is found.
    fn finds(change: impl FnOnce(&mut Books), expected: &[&str]) {
        let (promises, mut books) = story();
        change(&mut books);
        let problems = reconcile(&promises, &books);
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.contains(expected), "{problem:?} does not say {expected:?}");
        }
    }

    #[test]
    fn books_that_are_right_have_no_problems() {
        finds(|_| {}, &[]);
    }

    #[test]
    fn an_invoice_that_is_missing_or_written_twice_is_found() {
        finds(
            |books| _ = books.invoices.pop(),
            &["billing: order 00000000-0000-0000-0000-000000000001: [60]"],
        );
        finds(|books| books.invoices.push((SHIPPED, 250)), &["[250, 250], and [250] is right"]);
        // Made twice and written once: the sums tell.
        finds(|books| books.turnover += 250, &["billing has a turnover of 500, and 250 is right"]);
    }

    #[test]
    fn stock_that_was_moved_twice_or_not_is_found() {
        finds(|books| _ = books.movements.remove(1), &["inventory: order"]);
        finds(|books| *books.stock.get_mut("desk").unwrap() -= 1, &["inventory has 9998 of desk"]);
    }

    #[test]
    fn letters_out_of_order_are_found() {
        finds(
            |books| books.letters.swap(3, 4),
            &[r#"notification: order 00000000-0000-0000-0000-000000000002"#],
        );
    }

    #[test]
    fn what_was_rolled_back_and_happened_all_the_same_is_found() {
        let refused = Uuid::from_u128(3);
        finds(|books| _ = books.orders.insert(refused, "placed".to_owned()), &["which was never accepted"]);
        finds(
            |books| books.invoices.push((refused, 1)),
            &["billing: order 00000000-0000-0000-0000-000000000003"],
        );
    }

    #[test]
    fn an_order_that_was_lost_is_found() {
        finds(|books| _ = books.orders.remove(&SHIPPED), &[r#"[], and ["shipped"] is right"#]);
    }

    #[test]
    fn what_is_left_behind_is_found() {
        finds(|books| books.sent = 4, &["4 events were sent, and 5 are right"]);
        finds(|books| books.unsent = 1, &["1 events were not sent"]);
        finds(|books| books.set_aside = 1, &["1 messages were set aside"]);
    }
}
