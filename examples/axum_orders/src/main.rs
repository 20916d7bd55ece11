//! An axum service with the relay in the same process: its README tells how to run it.
#![allow(clippy::print_stderr, reason = "an example talks to its reader; its standard output is the broker")]

mod orders;

use std::{future::Future, sync::Arc, time::Duration};

use outbox::{
    JsonLinesPublisher, Relay, RelayConfig, Severity,
    postgres::{PostgresConfig, PostgresOutbox, PostgresStore},
};
use sqlx::postgres::PgPoolOptions;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// How long the relay may take at the end to send what is pending. Less than what the platform waits before
/// it kills.
const DRAIN: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url =
        std::env::var("DATABASE_URL").map_err(|_| "set DATABASE_URL to that of a PostgreSQL database")?;
    let listen = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let ended = ended()?;

    let pool = PgPoolOptions::new().max_connections(10).connect(&url).await?;
    let config = PostgresConfig::builder().build()?;
    // The outbox's tables stand beside the service's own, in the same database: hence one transaction for
    // both.
    let store = PostgresStore::new(pool.clone(), &config);
    store.migrate().await?;
    sqlx::raw_sql(orders::TABLE).execute(&pool).await?;

    let settings = RelayConfig::default().with_topic("orders".parse()?).with_source(Arc::from("/orders"));
    let relay = Relay::new(store, JsonLinesPublisher::stdout(), settings)?;
    for finding in relay.check().await {
        eprintln!("{finding}");
        if finding.severity == Severity::Error {
            return Err("the relay cannot work: see above".into());
        }
    }
    let mut handle = relay.handle();
    let relay = tokio::spawn(relay.run());

    let shop =
        orders::Shop { pool: pool.clone(), outbox: PostgresOutbox::new(&config), relay: handle.clone() };
    let listener = TcpListener::bind(listen).await?;
    eprintln!("listening on {}", listener.local_addr()?);

    // The end, in this order. First HTTP: no new order comes, and those under way get their answer.
    axum::serve(listener, orders::routes(shop)).with_graceful_shutdown(ended).await?;
    // Then the relay: it sends what they have left, gives its leases back and ends.
    match tokio::time::timeout(DRAIN, handle.caught_up()).await {
        Ok(caught_up) => _ = caught_up?,
        Err(_) => eprintln!("the broker is away: what is pending goes out at the next start"),
    }
    handle.shutdown();
    let status = relay.await?;
    // Then the pool, which both have used.
    pool.close().await;
    eprintln!("ended: {} events sent", status.sent);
    Ok(())
}

/// Ready at SIGTERM, as a platform sends it, or at SIGINT: Ctrl-C.
fn ended() -> Result<impl Future<Output = ()> + Send + 'static, Error> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
