//! The handlers, and the event that they write.

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use outbox::{Enqueue as _, Event, OutboxEvent, RelayHandle, postgres::PostgresOutbox};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use uuid::Uuid;

pub(crate) const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS orders (id uuid PRIMARY KEY, item text NOT NULL, quantity integer NOT NULL)";

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Shop {
    pub(crate) pool: PgPool,
    pub(crate) outbox: PostgresOutbox,
    pub(crate) relay: RelayHandle,
}

/// The event. The consumers' side reads it with `received.decode::<OrderPlaced>(payload)`.
#[derive(Serialize, Deserialize, OutboxEvent)]
#[outbox(aggregate_type = "order", event_type = "order.placed", version = 1)]
struct OrderPlaced {
    #[outbox(aggregate_id)]
    id: Uuid,
    item: String,
    quantity: i32,
}

#[derive(Deserialize)]
struct NewOrder {
    item: String,
    quantity: i32,
}

pub(crate) fn routes(shop: Shop) -> Router {
    Router::new().route("/orders", post(place)).route("/ready", get(ready)).with_state(shop)
}

async fn place(
    State(shop): State<Shop>,
    headers: HeaderMap,
    Json(new): Json<NewOrder>,
) -> Result<(StatusCode, Json<Uuid>), Failure> {
    let placed = OrderPlaced { id: Uuid::now_v7(), item: new.item, quantity: new.quantity };
    // The trace of the request goes on in the consumer of the event. With OpenTelemetry in the service, this
    // is `.trace_from_current()` (feature `otel`).
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let mut event = Event::of(&placed);
    if let Some(traceparent) = header("traceparent") {
        event = event.trace_context(traceparent, header("tracestate"));
    }

    let mut transaction = shop.pool.begin().await?;
    sqlx::query("INSERT INTO orders VALUES ($1, $2, $3)")
        .bind(placed.id)
        .bind(&placed.item)
        .bind(placed.quantity)
        .execute(&mut *transaction)
        .await?;
    shop.outbox.enqueue(&mut transaction, &event.build()?).await?;
    transaction.commit().await?;
    // It saves the rest of a poll interval, and may be left out.
    shop.relay.wake();
    Ok((StatusCode::CREATED, Json(placed.id)))
}

/// Whether this process can take orders and relay their events. A broker that is away is not a reason to say
/// no: orders are taken all the same, and their events wait.
async fn ready(State(shop): State<Shop>) -> (StatusCode, String) {
    match shop.relay.ready() {
        Ok(()) => (StatusCode::OK, "ready".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why.to_string()),
    }
}

/// What went wrong. The transaction is dropped, and that rolls back the order and its event.
struct Failure(crate::error::Error);

impl<E: Into<crate::error::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        eprintln!("the order was not placed: {}", self.0);
        (StatusCode::INTERNAL_SERVER_ERROR, "the order was not placed: try again").into_response()
    }
}
