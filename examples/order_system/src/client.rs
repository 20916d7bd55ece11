//! A client that places orders, and remembers what it was told. What it was told is what must have happened.
//!
//! Its requests fail when the order service is killed, and some answers are lost on the way. It asks again
//! then, with the same id, until it knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use axum::http::{Request, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper_util::{client::legacy::Client as HttpClient, rt::TokioExecutor};
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use crate::{
    error::Error,
    order_service::NewOrder,
    process::PATIENCE,
    shop::{ITEMS, Step},
};

/// One answer in so many is lost.
const LOST_EVERY: u64 = 7;

/// The pause between two requests of a customer.
const THINKING: Duration = Duration::from_millis(15);

/// What the order service has promised by its answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Promises {
    /// Orders that it has accepted, with the steps that they have gone.
    pub(crate) orders: BTreeMap<Uuid, (NewOrder, Vec<Step>)>,
    /// Orders that it has refused: their transaction was rolled back, their event with it.
    pub(crate) refused: BTreeSet<Uuid>,
    /// Requests that were sent again, because there was no answer or it was lost.
    pub(crate) asked_again: u64,
}

pub(crate) struct Client {
    http: HttpClient<hyper_util::client::legacy::connect::HttpConnector, Full<axum::body::Bytes>>,
    /// Where the order service is: elsewhere, when it was started again.
    address: watch::Receiver<SocketAddr>,
    promises: Promises,
    requests: u64,
}

impl Client {
    pub(crate) fn new(address: watch::Receiver<SocketAddr>) -> Self {
        let http = HttpClient::builder(TokioExecutor::new()).build_http();
        Self { http, address, promises: Promises::default(), requests: 0 }
    }

    /// Places so many orders, of which two thirds are paid and shipped and the others cancelled, and counts
    /// them.
    pub(crate) async fn run(mut self, orders: u32, progress: watch::Sender<u32>) -> Result<Promises, Error> {
        for n in 0..orders {
            let (id, order) = (Uuid::now_v7(), order(n));
            match self.put(&format!("/orders/{id}"), serde_json::to_vec(&order)?).await? {
                StatusCode::PAYMENT_REQUIRED => _ = self.promises.refused.insert(id),
                StatusCode::OK | StatusCode::CREATED => {
                    let mut steps = vec![Step::Placed];
                    for &step in
                        if n % 3 == 0 { &[Step::Cancelled][..] } else { &[Step::Paid, Step::Shipped] }
                    {
                        tokio::time::sleep(THINKING).await;
                        match self.put(&format!("/orders/{id}/{step}"), Vec::new()).await? {
                            StatusCode::OK => steps.push(step),
                            other => return Err(format!("order {id} was not {step}: {other}").into()),
                        }
                    }
                    self.promises.orders.insert(id, (order, steps));
                }
                other => return Err(format!("order {id} was not placed: {other}").into()),
            }
            progress.send_modify(|orders| *orders += 1);
            tokio::time::sleep(THINKING).await;
        }
        Ok(self.promises)
    }

    /// Asks until there is an answer that tells whether it was done.
    async fn put(&mut self, path: &str, body: Vec<u8>) -> Result<StatusCode, Error> {
        self.requests += 1;
        let mut answer_is_lost = self.requests.is_multiple_of(LOST_EVERY);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let uri = format!("http://{}{path}", *self.address.borrow());
            let request = Request::put(uri).header(CONTENT_TYPE, "application/json");
            let request = request.body(Full::from(body.clone()))?;
            match self.http.request(request).await {
                Ok(answer) if !answer.status().is_server_error() => {
                    if !std::mem::take(&mut answer_is_lost) {
                        return Ok(answer.status());
                    }
                }
                _ if Instant::now() > deadline => {
                    return Err(format!("no answer to PUT {path} in {PATIENCE:?}").into());
                }
                _ => tokio::time::sleep(THINKING).await,
            }
            self.promises.asked_again += 1;
        }
    }
}

/// Every fourth order is one of Carl's, who has little credit.
fn order(n: u32) -> NewOrder {
    let customer = ["alice", "bob", "alice", "carl"][n as usize % 4];
    let (item, _) = ITEMS[n as usize / 4 % ITEMS.len()];
    NewOrder { customer: customer.to_owned(), item: item.to_owned(), quantity: i64::from(n % 5) + 1 }
}
