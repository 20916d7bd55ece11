//! A receiver of webhooks: a real HTTP server.
#![allow(dead_code, unreachable_pub, reason = "a module that several test programs share")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse as _, Response},
    routing::post,
};
use bytes::Bytes;
use tokio::{net::TcpListener, task::JoinHandle};
use webhook::SigningKey;

pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What an endpoint with a limit takes.
pub const SMALL_BYTES_MAX: usize = 1000;

/// What an endpoint does.
#[derive(Debug, Clone)]
pub enum Behaviour {
    Takes,
    TakesSmall,
    /// Answers with this, and with `Retry-After` where it is given.
    Answers(StatusCode, Option<&'static str>),
    /// Never answers.
    Hangs,
}

/// A request that was taken.
#[derive(Debug, Clone)]
pub struct Taken {
    pub headers: HeaderMap,
    pub payload: Bytes,
}

/// Ends with its value.
pub struct Receiver {
    pub address: String,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

struct Shared {
    key: SigningKey,
    endpoints: Mutex<BTreeMap<String, (Behaviour, Vec<Taken>)>>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared { key: SigningKey::new(SECRET).unwrap(), endpoints: Mutex::default() });
        let routes =
            Router::new().route("/in/{*topic}", post(take).head(look)).with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { address, shared, serving }
    }

    pub fn endpoint(&self, topic: &str, behaviour: Behaviour) {
        self.shared.endpoints.lock().unwrap().insert(topic.to_owned(), (behaviour, Vec::new()));
    }

    pub fn taken(&self, topic: &str) -> Vec<Taken> {
        self.shared.endpoints.lock().unwrap().get(topic).map(|(_, taken)| taken.clone()).unwrap_or_default()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// An endpoint that is there takes no HEAD, and says so.
async fn look(State(shared): State<Arc<Shared>>, Path(topic): Path<String>) -> StatusCode {
    let is_there = shared.endpoints.lock().unwrap().contains_key(&topic);
    if is_there { StatusCode::METHOD_NOT_ALLOWED } else { StatusCode::NOT_FOUND }
}

async fn take(
    State(shared): State<Arc<Shared>>,
    Path(topic): Path<String>,
    request: Request<Body>,
) -> Response {
    let Some((behaviour, _)) = shared.endpoints.lock().unwrap().get(&topic).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let (head, body) = request.into_parts();
    let Ok(payload) = to_bytes(body, usize::MAX).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    match behaviour {
        Behaviour::TakesSmall if payload.len() > SMALL_BYTES_MAX => {
            return StatusCode::PAYLOAD_TOO_LARGE.into_response();
        }
        Behaviour::Answers(status, retry_after) => {
            let mut answer = status.into_response();
            if let Some(retry_after) = retry_after {
                answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(retry_after));
            }
            return answer;
        }
        Behaviour::Hangs => return std::future::pending().await,
        Behaviour::Takes | Behaviour::TakesSmall => {}
    }
    if !is_signed(&shared.key, &head.headers, &payload) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let taken = Taken { headers: head.headers, payload };
    shared.endpoints.lock().unwrap().get_mut(&topic).unwrap().1.push(taken);
    StatusCode::NO_CONTENT.into_response()
}

/// What every receiver does first.
fn is_signed(key: &SigningKey, headers: &HeaderMap, payload: &[u8]) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Ok(timestamp_s) = text("webhook-timestamp").parse::<i64>() else { return false };
    let age_s = chrono::Utc::now().timestamp() - timestamp_s;
    let signature = key.sign(text("webhook-id"), timestamp_s.unsigned_abs(), payload);
    age_s.abs() <= 300 && text("webhook-signature") == signature
}
