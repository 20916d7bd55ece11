//! The order service: takes orders over HTTP, and writes each with its event in one PostgreSQL transaction.
//! It knows no broker.
//!
//! | request | what it does |
//! |---|---|
//! | `PUT /orders/{id}` with `{"customer", "item", "quantity"}` | places an order |
//! | `PUT /orders/{id}/paid`, `…/shipped`, `…/cancelled` | the order's next step |
//!
//! The client chooses the id, so a request that is sent again does nothing twice: a client that hears no
//! answer does not know whether its order was placed, and asks again until it knows.

use std::{future::Future, net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::put,
};
use outbox::{
    Enqueue as _, Event,
    postgres::{PostgresConfig, PostgresOutbox, PostgresStore},
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, postgres::PgPoolOptions};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::{
    error::Error,
    shop::{ITEMS, Order, Step},
};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS customers (name text PRIMARY KEY, credit bigint NOT NULL);
    INSERT INTO customers VALUES ('alice', 1000000), ('bob', 1000000), ('carl', 500) ON CONFLICT DO NOTHING;
    CREATE TABLE IF NOT EXISTS orders (id uuid PRIMARY KEY, customer text NOT NULL REFERENCES customers,
        item text NOT NULL, quantity bigint NOT NULL, total bigint NOT NULL, step text NOT NULL);";

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewOrder {
    pub(crate) customer: String,
    pub(crate) item: String,
    pub(crate) quantity: i64,
}

/// Serves until `ended`.
pub(crate) async fn run(
    database_url: &str,
    listen: SocketAddr,
    ended: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Error> {
    let pool = PgPoolOptions::new().max_connections(8).connect(database_url).await?;
    let config = PostgresConfig::builder().build()?;
    // The tables of the outbox stand beside the service's own, in the same database: hence one transaction
    // for both.
    PostgresStore::new(pool.clone(), &config).migrate().await?;
    sqlx::raw_sql(TABLES).execute(&pool).await?;
    let shop = Arc::new(Shop { pool, outbox: PostgresOutbox::new(&config) });
    let routes = Router::new()
        .route("/orders/{id}", put(place))
        .route("/orders/{id}/{step}", put(advance))
        .with_state(shop);
    let listener = TcpListener::bind(listen).await?;
    println!("listening on {}", listener.local_addr()?);
    Ok(axum::serve(listener, routes).with_graceful_shutdown(ended).await?)
}

struct Shop {
    pool: PgPool,
    outbox: PostgresOutbox,
}

async fn place(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<Uuid>,
    Json(new): Json<NewOrder>,
) -> Result<StatusCode, Refusal> {
    let price = ITEMS.iter().find(|(item, _)| *item == new.item).map(|(_, price)| price);
    let Some(price) = price.filter(|_| (1..=100).contains(&new.quantity)) else {
        return Err(Refusal::NotSold);
    };
    let NewOrder { customer, item, quantity } = new;
    let order = Order { id, customer, item, quantity, total: price * quantity };

    let mut transaction = shop.pool.begin().await?;
    // A request that was sent again waits here for the end of the first, and finds what that has written.
    let insert = "INSERT INTO orders VALUES ($1, $2, $3, $4, $5, 'placed') ON CONFLICT (id) DO NOTHING";
    let inserted = sqlx::query(insert)
        .bind(order.id)
        .bind(&order.customer)
        .bind(&order.item)
        .bind(order.quantity)
        .bind(order.total)
        .execute(&mut *transaction)
        .await?;
    if inserted.rows_affected() == 0 {
        let same = find(&mut transaction, id).await?.is_some_and(|(there, _)| there == order);
        return if same { Ok(StatusCode::OK) } else { Err(Refusal::Conflict) };
    }
    shop.outbox.enqueue(&mut transaction, &event(&order, Step::Placed)?).await?;
    // Whatever fails from here on takes the order and its event with it: neither has happened.
    let pay = "UPDATE customers SET credit = credit - $2 WHERE name = $1 AND credit >= $2";
    let paid = sqlx::query(pay).bind(&order.customer).bind(order.total).execute(&mut *transaction).await?;
    if paid.rows_affected() == 0 {
        transaction.rollback().await?;
        return Err(Refusal::OutOfCredit);
    }
    transaction.commit().await?;
    Ok(StatusCode::CREATED)
}

async fn advance(
    State(shop): State<Arc<Shop>>,
    Path((id, step)): Path<(Uuid, Step)>,
) -> Result<StatusCode, Refusal> {
    let from = match step {
        Step::Placed => return Err(Refusal::Conflict),
        Step::Paid | Step::Cancelled => Step::Placed,
        Step::Shipped => Step::Paid,
    };
    let mut transaction = shop.pool.begin().await?;
    // This locks the order until the commit, before its event is written: so the events of one order get
    // their sequence in the order in which its changes commit, and that is the order in which they are
    // delivered.
    let update = "UPDATE orders SET step = $2 WHERE id = $1 AND step = $3";
    let updated = sqlx::query(update)
        .bind(id)
        .bind(step.as_str())
        .bind(from.as_str())
        .execute(&mut *transaction)
        .await?;
    let (order, is) = find(&mut transaction, id).await?.ok_or(Refusal::Unknown)?;
    if updated.rows_affected() == 0 {
        return if is == step.as_str() { Ok(StatusCode::OK) } else { Err(Refusal::Conflict) };
    }
    shop.outbox.enqueue(&mut transaction, &event(&order, step)?).await?;
    if step == Step::Cancelled {
        let refund = "UPDATE customers SET credit = credit + $2 WHERE name = $1";
        sqlx::query(refund).bind(&order.customer).bind(order.total).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(StatusCode::OK)
}

/// The order is the aggregate: events of one order stay in order, events of different orders need not wait
/// for each other.
fn event(order: &Order, step: Step) -> Result<Event, Error> {
    Ok(Event::builder("order", order.id.to_string(), step.event_type()).json(order).build()?)
}

async fn find(connection: &mut PgConnection, id: Uuid) -> Result<Option<(Order, String)>, sqlx::Error> {
    let select = "SELECT customer, item, quantity, total, step FROM orders WHERE id = $1";
    let row: Option<(String, String, i64, i64, String)> =
        sqlx::query_as(select).bind(id).fetch_optional(connection).await?;
    Ok(row
        .map(|(customer, item, quantity, total, step)| (Order { id, customer, item, quantity, total }, step)))
}

/// Why a request is refused. Its transaction is dropped, and that rolls it back.
enum Refusal {
    NotSold,
    OutOfCredit,
    Unknown,
    Conflict,
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, why) = match self {
            Self::NotSold => (StatusCode::UNPROCESSABLE_ENTITY, "the item is not sold, or not so many of it"),
            Self::OutOfCredit => (StatusCode::PAYMENT_REQUIRED, "the customer's credit does not suffice"),
            Self::Unknown => (StatusCode::NOT_FOUND, "there is no such order"),
            Self::Conflict => (StatusCode::CONFLICT, "the order is another one, or in another step"),
            Self::Failed(error) => {
                eprintln!("order-service: {}", outbox::chain(&*error));
                (StatusCode::INTERNAL_SERVER_ERROR, "the order service has failed: ask again")
            }
        };
        (status, why).into_response()
    }
}
