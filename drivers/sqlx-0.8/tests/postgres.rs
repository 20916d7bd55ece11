//! Enqueue and inbox through sqlx 0.8, on a real server; and one statement, by hand.

use contract::{Harness, Place as _, PostgresPlace, driver_suite};
use outbox_core::{Enqueue, Event, Inbox, statement::Through};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};
use sqlx_0_8::{Sqlx08, bind};

struct OnConnection;

impl Harness for OnConnection {
    type Place = PostgresPlace;
    type Session = PgConnection;

    fn outbox(place: &PostgresPlace) -> impl Enqueue<PgConnection> + Send + Sync {
        Through::new(place.outbox(), Sqlx08)
    }

    fn inbox(place: &PostgresPlace) -> impl Inbox<PgConnection> + Send + Sync {
        Through::new(place.inbox(), Sqlx08)
    }

    async fn begin(place: &PostgresPlace) -> PgConnection {
        let mut connection = Self::outside(place).await;
        connection.execute("BEGIN").await.unwrap();
        connection
    }

    async fn outside(place: &PostgresPlace) -> PgConnection {
        PgConnection::connect(place.url()).await.unwrap()
    }

    async fn commit(mut connection: PgConnection) {
        connection.execute("COMMIT").await.unwrap();
    }

    async fn rollback(mut connection: PgConnection) {
        connection.execute("ROLLBACK").await.unwrap();
    }
}

driver_suite!(OnConnection);

#[tokio::test]
async fn one_statement_by_hand_answers_the_sequence_and_no_row_for_a_duplicate() {
    let Some(place) = PostgresPlace::fresh().await else { return };
    let mut connection = PgConnection::connect(place.url()).await.unwrap();
    let event = Event::builder("order", "1", "order.placed").build().unwrap();
    let (outbox, mut transaction) = (place.outbox(), connection.begin().await.unwrap());
    let statement = outbox.insert(&event).unwrap();
    let written = bind(&statement).unwrap().fetch_optional(&mut *transaction).await.unwrap();
    assert_eq!(written.unwrap().get::<i64, _>(0), 1);
    let again = bind(&statement).unwrap().fetch_optional(&mut *transaction).await.unwrap();
    assert!(again.is_none(), "the id is there already");
    transaction.commit().await.unwrap();
    assert_eq!(place.number("SELECT count(*) FROM outbox").await, 1);
    place.drop().await;
}
