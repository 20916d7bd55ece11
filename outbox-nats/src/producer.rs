//! The client's side of a publish call: the connection in service ([`Producer`]), and one connection with
//! everything that belongs to it ([`Live`]).
//!
//! async-nats keeps what it is given in a queue and in a buffer, connects again by itself, and then sends
//! what is left; when its last handle is dropped it still does. Nothing in it can take a message back. So
//! each connection has a thread with a runtime of its own: ending that drops the client's tasks with all that
//! they hold.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc as blocking,
    },
    thread,
    time::Duration,
};

#[cfg(feature = "tls")]
use async_nats::rustls::crypto::{CryptoProvider, ring};
use async_nats::{
    ConnectError, ConnectErrorKind, Event,
    jetstream::{Context, context::ContextBuilder},
};
use futures::StreamExt as _;
use outbox_core::publisher::PublishError;
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    NatsConfig,
    error::{Refusal, publish_error},
};

/// Between two attempts to connect; it doubles from the first to the second of these.
const RECONNECT_DELAYS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How long to wait for a thread to confirm its end. It takes microseconds, unless the machine is overloaded.
const END_WAIT_MAX: Duration = Duration::from_millis(250);

/// Above what any publish call waits; the call's own timeout is what ends the wait.
const ACK_WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Acknowledgements to wait for at a time. Further messages wait in their call.
const ACKS_MAX: usize = 16 * 1024;

/// Denials that a call has not seen yet. Of more, the oldest are forgotten, and their messages time out.
const DENIALS_MAX: usize = 64;

/// Of what a server takes as one message, this is for the headers: the most that an event may have, with room
/// for the attributes. By default a server takes 1 MiB, which leaves more than an event's payload may have by
/// default.
const HEADERS_BYTES: usize = 32 * 1024;

/// The connection in service, which is made in the background at the first use, and anew when it is lost.
pub(crate) struct Producer {
    config: NatsConfig,
    /// None before the first use and after the end.
    current: Mutex<Option<Arc<Live>>>,
    /// By what the server said at the last connection; 0 before.
    payload_bytes_max: AtomicUsize,
}

/// A connection, from before it is made until it is lost or given up. Never connected twice.
pub(crate) struct Live {
    state: watch::Receiver<State>,
    /// Acknowledgements that have come.
    pub(crate) acknowledged: AtomicU64,
    /// Given up by this side, although it may have been well.
    retired: AtomicBool,
    hearing: Arc<Hearing>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    /// Closed once nothing of the client is left.
    ended: Mutex<blocking::Receiver<()>>,
}

/// What the server says without being asked.
struct Hearing {
    /// The last that concerned no single message.
    last: Mutex<Option<String>>,
    /// Subjects, each when the server says that this user may not send to it.
    denials: broadcast::Sender<String>,
}

#[derive(Clone)]
pub(crate) enum State {
    /// With why the last attempt failed.
    Connecting(Option<PublishError>),
    Ready(Context),
    Over,
}

impl Producer {
    pub(crate) fn new(config: NatsConfig) -> Self {
        Self { config, current: Mutex::new(None), payload_bytes_max: AtomicUsize::new(0) }
    }

    pub(crate) fn config(&self) -> &NatsConfig {
        &self.config
    }

    /// The largest payload that the server takes, in bytes, once it has said so.
    pub(crate) fn payload_bytes_max(&self) -> Option<usize> {
        Some(self.payload_bytes_max.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Live>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that is made, if that succeeds before the deadline; `first_attempt`: or at the first
    /// attempt.
    pub(crate) async fn live(
        &self,
        deadline: Instant,
        first_attempt: bool,
    ) -> Result<(Arc<Live>, Context), PublishError> {
        loop {
            let live = self.newest()?;
            if let Some(context) = live.ready(deadline, first_attempt).await? {
                let bytes_max = context.client().max_payload();
                let payload_bytes_max = bytes_max.saturating_sub(HEADERS_BYTES).max(bytes_max / 2);
                self.payload_bytes_max.store(payload_bytes_max, Ordering::Relaxed);
                return Ok((live, context));
            }
            if live.is_retired() && Instant::now() < deadline {
                continue;
            }
            let detail = "the nats connection was lost as soon as it was made".to_owned();
            return Err(publish_error(Refusal::ConnectionLostBefore, detail));
        }
    }

    fn newest(&self) -> Result<Arc<Live>, PublishError> {
        let mut current = self.current();
        if let Some(live) = current.as_ref().filter(|live| !live.is_over()) {
            return Ok(Arc::clone(live));
        }
        let live = Arc::new(Live::start(self.config.clone())?);
        *current = Some(Arc::clone(&live));
        Ok(live)
    }

    /// Takes a connection out of service and drops whatever is not sent.
    pub(crate) fn retire(&self, live: &Arc<Live>) {
        self.current().take_if(|current| Arc::ptr_eq(current, live));
        live.retire();
    }

    /// Takes the connection out of service, and waits until it has ended.
    pub(crate) async fn close(&self) {
        let live = self.current().take();
        if let Some(live) = live {
            let _ = tokio::task::spawn_blocking(move || live.retire()).await;
        }
    }
}

impl Live {
    pub(crate) fn start(config: NatsConfig) -> Result<Self, PublishError> {
        let (tell, state) = watch::channel(State::Connecting(None));
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = blocking::channel::<()>();
        let hearing =
            Arc::new(Hearing { last: Mutex::default(), denials: broadcast::channel(DENIALS_MAX).0 });
        let heard = Arc::clone(&hearing);
        let run = move || {
            run(&config, &tell, stopped, &heard);
            tell.send_replace(State::Over);
            drop(end);
        };
        let thread = thread::Builder::new().name("outbox-nats".to_owned()).spawn(run);
        thread.map_err(|error| {
            publish_error(Refusal::NotConnected, format!("a thread cannot be started: {error}"))
        })?;
        Ok(Self {
            state,
            acknowledged: AtomicU64::new(0),
            retired: AtomicBool::new(false),
            hearing,
            stop: Mutex::new(Some(stop)),
            ended: Mutex::new(ended),
        })
    }

    /// Waits until there is a connection, an attempt to make one has failed if `first_attempt`, or the
    /// deadline has passed. `Ok(None)`: the connection is over.
    pub(crate) async fn ready(
        &self,
        deadline: Instant,
        first_attempt: bool,
    ) -> Result<Option<Context>, PublishError> {
        let mut state = self.state.clone();
        let known = state.wait_for(|state| match state {
            State::Connecting(failure) => first_attempt && failure.is_some(),
            State::Ready(_) | State::Over => true,
        });
        let state = match tokio::time::timeout_at(deadline, known).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) => State::Over,
            Err(_) => self.state.borrow().clone(),
        };
        match state {
            State::Ready(context) => Ok(Some(context)),
            State::Over => Ok(None),
            State::Connecting(Some(failure)) => Err(failure),
            State::Connecting(None) => {
                let detail = "nats has not answered within the publish timeout".to_owned();
                Err(publish_error(Refusal::NotConnected, detail))
            }
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_retired() || matches!(*self.state.borrow(), State::Over)
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    pub(crate) fn heard(&self) -> Option<String> {
        self.hearing.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The subjects to which the server denies this user to send, each time that it says so from now on.
    pub(crate) fn denials(&self) -> broadcast::Receiver<String> {
        self.hearing.denials.subscribe()
    }

    /// Waits for an answer of the server; false if the connection is lost.
    pub(crate) async fn answers(&self, context: &Context) -> bool {
        let client = context.client();
        // It is never written to. It ends with the answer to a ping, or with the connection.
        let Ok(mut inbox) = client.subscribe(client.new_inbox()).await else { return false };
        let drained = inbox.drain().await;
        while inbox.next().await.is_some() {}
        drained.is_ok() && !self.is_over()
    }

    /// Ends the connection and drops whatever the client has not sent. Does not depend on the caller's
    /// runtime, since it is called from destructors.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        if let Some(stop) = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = stop.send(());
        }
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(END_WAIT_MAX);
    }
}

/// The life of a connection, on a thread of its own.
fn run(config: &NatsConfig, tell: &watch::Sender<State>, stopped: oneshot::Receiver<()>, hearing: &Hearing) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let detail = format!("a runtime cannot be started: {error}");
            tell.send_replace(State::Connecting(Some(publish_error(Refusal::NotConnected, detail))));
            return;
        }
    };
    runtime.block_on(async {
        tokio::select! {
            biased;
            // Also when the publisher itself is dropped.
            _ = stopped => {}
            () = live(config, tell, hearing) => {}
        }
    });
    // The client's tasks are dropped where they stand, and with them its connection.
    drop(runtime);
}

async fn live(config: &NatsConfig, tell: &watch::Sender<State>, hearing: &Hearing) {
    let (mut delay, delay_max) = RECONNECT_DELAYS;
    loop {
        match connect(config).await {
            Ok((context, events)) => {
                tell.send_replace(State::Ready(context));
                return lost(events, hearing).await;
            }
            Err(error) => {
                tracing::warn!(%error, "nats cannot be reached");
                tell.send_replace(State::Connecting(Some(error)));
            }
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(delay_max);
    }
}

async fn connect(config: &NatsConfig) -> Result<(Context, mpsc::UnboundedReceiver<Event>), PublishError> {
    #[cfg(feature = "tls")]
    if config.has_tls() && CryptoProvider::get_default().is_none() {
        // Where another provider is compiled in as well, the client would panic instead of choosing.
        let _ = ring::default_provider().install_default();
    }
    #[cfg(not(feature = "tls"))]
    if config.has_tls() {
        let why = "nats needs TLS, and this program was built without it; enable the feature tls";
        return Err(publish_error(Refusal::Connect(ConnectErrorKind::Tls), why.to_owned()));
    }
    let connected = Arc::new(AtomicBool::new(false));
    let (tell, events) = mpsc::unbounded_channel();
    let options = config.options(Arc::clone(&connected)).await.map_err(|error| {
        let detail = format!("the nats credentials file cannot be read: {error}");
        publish_error(Refusal::Connect(ConnectErrorKind::Authentication), detail)
    })?;
    let options = options.event_callback(move |event| {
        let _ = tell.send(event);
        std::future::ready(())
    });
    let client = options.connect(&config.servers[..]).await.map_err(|error| not_connected(&error))?;
    // Nothing has run on this thread since the connection was made.
    connected.store(true, Ordering::Release);
    let context = ContextBuilder::new().max_ack_inflight(ACKS_MAX).timeout(ACK_WAIT_MAX).build(client);
    if let Some(stream) = &config.stream {
        ensure_stream(&context, stream).await;
    }
    Ok((context, events))
}

/// Creates the configured stream if it is missing. That this failed is seen by the messages, and by `check`.
pub(crate) async fn ensure_stream(context: &Context, stream: &crate::NatsStream) -> Option<String> {
    let created = tokio::time::timeout(ANSWER_WAIT_MAX, context.get_or_create_stream(stream.config())).await;
    let problem = match created {
        Ok(Ok(_)) => return None,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {ANSWER_WAIT_MAX:?}"),
    };
    tracing::warn!(stream = stream.name(), problem, "the nats stream could not be created");
    Some(problem)
}

/// How long the server may take to answer one question.
pub(crate) const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);

fn not_connected(error: &ConnectError) -> PublishError {
    // The client's text has the kind and its cause; neither holds what the login was tried with.
    publish_error(Refusal::Connect(error.kind()), format!("nats cannot be reached: {error}"))
}

/// Returns when the connection is lost.
async fn lost(mut events: mpsc::UnboundedReceiver<Event>, hearing: &Hearing) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Disconnected | Event::Closed => break,
            Event::ServerError(error) => {
                tracing::warn!(%error, "nats reports an error");
                let text = error.to_string();
                if let Some(subject) = denied(&text) {
                    // The caller may not be waiting for it any more.
                    let _ = hearing.denials.send(subject.to_owned());
                }
                *hearing.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
            }
            _ => {}
        }
    }
    tracing::info!("the nats connection is lost");
}

/// The subject to which this user may not send, if that is what the server says.
fn denied(text: &str) -> Option<&str> {
    let (_, subject) = text.split_once("ermissions Violation for Publish to \"")?;
    subject.split_once('"').map(|(subject, _)| subject)
}
