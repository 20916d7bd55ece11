//! Three orders: one goes well, one is taken back, one is refused.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::sync::Arc;

use saga::{Error, Order, run};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let folder = tempfile::tempdir()?;
    let orders = [
        Order::new("order-1", "alice", "tea", 2, 800),
        Order::new("order-2", "bob", "cake", 1, 300),
        Order::new("order-3", "carl", "tea", 1, 400),
    ];
    let books = run(folder.path(), &orders, |bus| Arc::new(bus)).await?;
    for (service, messages) in &books.handled {
        println!("{service} handled:");
        messages.iter().for_each(|message| println!("  {message}"));
    }
    println!("in the end:");
    for (order, (state, why)) in &books.orders {
        println!("  {order} is {state}{}", why.as_ref().map(|why| format!(": {why}")).unwrap_or_default());
    }
    books.accounts.iter().for_each(|(customer, cents)| println!("  {customer} has {cents} cents"));
    books.stock.iter().for_each(|(item, quantity)| println!("  {quantity} of {item} are left"));
    Ok(())
}
