//! Enqueue and inbox through tokio-postgres, on a real server.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

use contract::{Harness, Place as _, PostgresPlace, driver_suite};
use outbox_core::{Enqueue, Event, Inbox};
use outbox_tokio_postgres::through;
use tokio_postgres::{Client, NoTls};

struct OnClient;

async fn connect(place: &PostgresPlace) -> Client {
    let (client, connection) = tokio_postgres::connect(place.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A client with a transaction that was begun by hand, which is what outlives a function.
impl Harness for OnClient {
    type Place = PostgresPlace;
    type Session = Client;

    fn outbox(place: &PostgresPlace) -> impl Enqueue<Client> + Send + Sync {
        through(place.outbox())
    }

    fn inbox(place: &PostgresPlace) -> impl Inbox<Client> + Send + Sync {
        through(place.inbox())
    }

    async fn begin(place: &PostgresPlace) -> Client {
        let client = connect(place).await;
        client.batch_execute("BEGIN").await.unwrap();
        client
    }

    async fn outside(place: &PostgresPlace) -> Client {
        connect(place).await
    }

    async fn commit(client: Client) {
        client.batch_execute("COMMIT").await.unwrap();
    }

    async fn rollback(client: Client) {
        client.batch_execute("ROLLBACK").await.unwrap();
    }
}

driver_suite!(OnClient);

/// The driver's own type, and what is an event outside it.
#[tokio::test]
async fn a_transaction_of_the_driver_commits_and_rolls_back() {
    let Some(place) = PostgresPlace::fresh().await else { return };
    let (mut client, outbox) = (connect(&place).await, through(place.outbox()));
    let event = || Event::builder("order", "1", "order.placed").build().unwrap();
    let mut transaction = client.transaction().await.unwrap();
    outbox.enqueue(&mut transaction, &event()).await.unwrap();
    transaction.rollback().await.unwrap();
    let mut transaction = client.transaction().await.unwrap();
    let mut nested = transaction.transaction().await.unwrap();
    outbox.enqueue_all(&mut nested, &[event(), event()]).await.unwrap();
    nested.commit().await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(place.number("SELECT count(*) FROM outbox").await, 2);
    place.drop().await;
}
