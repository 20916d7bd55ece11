//! The process on a real server: it is told to end while clients order, and nothing is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "these are tests")]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    str::FromStr as _,
    time::Duration,
};

use axum::{
    body::Bytes,
    http::{Request, StatusCode, header::CONTENT_TYPE},
};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, postgres::PgConnectOptions};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);
const CLIENTS: u32 = 8;
/// So many events are seen before the process is told to end.
const EVENTS_BEFORE_THE_END: usize = 40;
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// The process, and what it writes to its standard output: the broker.
struct Service {
    child: Child,
    address: SocketAddr,
    published: watch::Receiver<Vec<Value>>,
    reader: JoinHandle<()>,
}

impl Service {
    async fn start(database_url: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_axum_orders"))
            .env("DATABASE_URL", database_url)
            .env("LISTEN", "127.0.0.1:0")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = said.next_line().await.unwrap().expect("it says where it listens");
            eprintln!("{line}");
            if let Some(address) = line.strip_prefix("listening on ") {
                break address.parse().unwrap();
            }
        };
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, published) = watch::channel(Vec::new());
        let reader = tokio::spawn(async move {
            // Read on, so that it is never refused for a full pipe.
            let listener = tokio::spawn(async move {
                while let Ok(Some(line)) = said.next_line().await {
                    eprintln!("{line}");
                }
            });
            while let Ok(Some(line)) = lines.next_line().await {
                tell.send_modify(|seen| seen.push(serde_json::from_str(&line).expect("a line is an event")));
            }
            listener.await.unwrap();
        });
        Self { child, address, published, reader }
    }

    async fn has_published(&mut self, count: usize) {
        let seen = self.published.wait_for(|events| events.len() >= count);
        tokio::time::timeout(PATIENCE, seen).await.expect("events are published").unwrap();
    }

    fn terminate(&self) {
        let id = i32::try_from(self.child.id().expect("it is alive")).unwrap();
        kill(Pid::from_raw(id), Signal::SIGTERM).unwrap();
    }

    async fn ended(mut self) -> (ExitStatus, Vec<Value>) {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap();
        self.reader.await.unwrap();
        (status, self.published.borrow().clone())
    }
}

type Http = Client<HttpConnector, Full<Bytes>>;

async fn request(
    http: &Http,
    address: SocketAddr,
    path: &str,
    body: Option<&str>,
) -> Option<(StatusCode, Bytes)> {
    let request = Request::builder()
        .method(if body.is_some() { "POST" } else { "GET" })
        .uri(format!("http://{address}{path}"))
        .header(CONTENT_TYPE, "application/json")
        .header("traceparent", TRACEPARENT);
    let body = Full::from(body.unwrap_or_default().to_owned());
    let answer = http.request(request.body(body).unwrap()).await.ok()?;
    let status = answer.status();
    Some((status, answer.into_body().collect().await.ok()?.to_bytes()))
}

/// Orders until the service answers no more; the orders that it has confirmed.
async fn order_on(address: SocketAddr) -> BTreeSet<Uuid> {
    let http: Http = Client::builder(TokioExecutor::new()).build_http();
    let mut confirmed = BTreeSet::new();
    while let Some((status, body)) =
        request(&http, address, "/orders", Some(r#"{"item": "tea", "quantity": 2}"#)).await
    {
        assert_eq!(status, StatusCode::CREATED, "{body:?}");
        confirmed.insert(serde_json::from_slice(&body).unwrap());
    }
    confirmed
}

/// A database of its own on the server, if there is one.
async fn database() -> Option<(PgConnectOptions, String)> {
    let Ok(server) = std::env::var("OUTBOX_TEST_POSTGRES_URL") else {
        let text = "PostgreSQL is not there: OUTBOX_TEST_POSTGRES_URL is not set; run `scripts/services.sh up postgres` and \
                    `eval \"$(scripts/services.sh env)\"`";
        assert!(std::env::var("OUTBOX_REQUIRE_SERVERS").as_deref() != Ok("1"), "{text}");
        eprintln!("{text}");
        return None;
    };
    let server = PgConnectOptions::from_str(&server).unwrap();
    let name = format!("axum_orders_{}", Uuid::now_v7().simple());
    execute(&server, &format!("CREATE DATABASE {name} TEMPLATE template0")).await;
    Some((server, name))
}

async fn execute(server: &PgConnectOptions, sql: &str) {
    let mut connection = PgConnection::connect_with(server).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_told_to_end_while_clients_order_loses_nothing() {
    let Some((server, name)) = database().await else { return };
    let options = server.clone().database(&name);
    let mut service = Service::start(options.to_url_lossy().as_str()).await;
    let address = service.address;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(order_on(address));
    }
    service.has_published(EVENTS_BEFORE_THE_END).await;
    // It relays, so it is ready.
    let http: Http = Client::builder(TokioExecutor::new()).build_http();
    assert_eq!(request(&http, address, "/ready", None).await.unwrap().0, StatusCode::OK);
    // An idle connection would be waited for.
    drop(http);

    service.terminate();
    let confirmed: BTreeSet<Uuid> = clients.join_all().await.into_iter().flatten().collect();
    let (status, published) = service.ended().await;
    assert!(status.success(), "{status}");

    let mut connection = PgConnection::connect_with(&options).await.unwrap();
    let number = async |connection: &mut PgConnection, sql: &'static str| {
        sqlx::query_scalar::<_, i64>(sql).fetch_one(connection).await.unwrap()
    };
    assert_eq!(number(&mut connection, "SELECT count(*) FROM outbox WHERE status = 0").await, 0, "pending");
    assert_eq!(number(&mut connection, "SELECT count(*) FROM outbox_relays").await, 0, "the relay has left");
    let orders: Vec<Uuid> =
        sqlx::query_scalar("SELECT id FROM orders").fetch_all(&mut connection).await.unwrap();
    let orders: BTreeSet<Uuid> = orders.into_iter().collect();
    connection.close().await.unwrap();

    assert!(confirmed.len() >= EVENTS_BEFORE_THE_END);
    assert!(confirmed.is_subset(&orders), "confirmed, and not there: {:?}", confirmed.difference(&orders));
    let of_events: BTreeSet<Uuid> =
        published.iter().map(|event| event["data"]["id"].as_str().unwrap().parse().unwrap()).collect();
    assert_eq!(of_events, orders, "each order has its event, and each event its order");
    let first = &published[0];
    assert_eq!(
        (first["type"].as_str(), first["traceparent"].as_str()),
        (Some("order.placed"), Some(TRACEPARENT))
    );
    execute(&server, &format!("DROP DATABASE {name}")).await;
}
