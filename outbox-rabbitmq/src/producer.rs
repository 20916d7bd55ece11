//! The client's side of a publish call: the connection in service ([`Producer`]), and one connection with
//! everything that belongs to it ([`Live`]).
//!
//! lapin queues what it is given and writes it when the broker lets it; nothing takes a message back. So each
//! connection has a thread with a runtime of its own, in which lapin's tasks and its socket live: ending that
//! ends the connection with all that it holds.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc as blocking,
    },
    thread,
    time::Duration,
};

use futures::StreamExt as _;
use lapin::{
    Connection, ConnectionProperties, Event,
    tcp::AMQPUriTcpExt as _,
    uri::{AMQPScheme, AMQPUri},
};
use outbox_core::publisher::PublishError;
use tokio::{
    runtime::Builder,
    sync::{oneshot, watch},
    time::Instant,
};

use crate::{
    RabbitMqConfig, declare,
    error::{ACCESS_REFUSED, NOT_ALLOWED, Refusal, publish_error, reply_code},
    line::Lines,
    session::Session,
    tls,
};

/// How long one attempt to connect may take, with all that TLS and a login need.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);

/// Between two attempts to connect; it doubles from the first to the second of these.
const RECONNECT_DELAYS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How long to wait for a thread to confirm its end. It takes microseconds, unless the machine is overloaded.
const END_WAIT_MAX: Duration = Duration::from_millis(250);

/// The connection in service, which is made in the background at the first use, and anew when it is lost.
pub(crate) struct Producer {
    config: RabbitMqConfig,
    /// None before the first use and after the end.
    current: Mutex<Option<Arc<Live>>>,
}

/// A connection, from before it is made until it is lost or given up. Never connected twice.
pub(crate) struct Live {
    state: watch::Receiver<State>,
    /// Given up by this side, although it may have been well.
    retired: AtomicBool,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    /// Closed once nothing of the client is left.
    ended: Mutex<blocking::Receiver<()>>,
}

#[derive(Clone)]
pub(crate) enum State {
    /// With why the last attempt failed.
    Connecting(Option<PublishError>),
    Ready(Arc<Lines>),
    Over,
}

impl Producer {
    pub(crate) fn new(config: RabbitMqConfig) -> Self {
        Self { config, current: Mutex::new(None) }
    }

    pub(crate) fn config(&self) -> &RabbitMqConfig {
        &self.config
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
    ) -> Result<(Arc<Live>, Arc<Lines>), PublishError> {
        loop {
            let live = self.newest()?;
            if let Some(lines) = live.ready(deadline, first_attempt).await? {
                return Ok((live, lines));
            }
            if live.is_retired() && Instant::now() < deadline {
                continue;
            }
            let detail = "the rabbitmq connection was lost as soon as it was made".to_owned();
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
    pub(crate) fn start(config: RabbitMqConfig) -> Result<Self, PublishError> {
        let (tell, state) = watch::channel(State::Connecting(None));
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = blocking::channel::<()>();
        let run = move || {
            run(&config, &tell, stopped);
            tell.send_replace(State::Over);
            drop(end);
        };
        let thread = thread::Builder::new().name("outbox-rabbitmq".to_owned()).spawn(run);
        thread.map_err(|error| not_connected(format_args!("a thread cannot be started: {error}")))?;
        Ok(Self {
            state,
            retired: AtomicBool::new(false),
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
    ) -> Result<Option<Arc<Lines>>, PublishError> {
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
            State::Ready(lines) => Ok(Some(lines)),
            State::Over => Ok(None),
            State::Connecting(Some(failure)) => Err(failure),
            State::Connecting(None) => {
                Err(not_connected("rabbitmq has not answered within the publish timeout"))
            }
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_retired() || matches!(*self.state.borrow(), State::Over)
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
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

/// The life of a connection, on a thread of its own. Each attempt has a runtime of its own, since what is
/// left of one that failed ends with its runtime.
fn run(config: &RabbitMqConfig, tell: &watch::Sender<State>, mut stopped: oneshot::Receiver<()>) {
    let (delay_min, delay_max) = RECONNECT_DELAYS;
    let mut delay = Duration::ZERO;
    loop {
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let error = not_connected(format_args!("a runtime cannot be started: {error}"));
                tell.send_replace(State::Connecting(Some(error)));
                return;
            }
        };
        let end = runtime.block_on(async {
            tokio::select! {
                biased;
                // Also when the publisher itself is dropped.
                _ = &mut stopped => None,
                attempt = live(config, tell, delay) => Some(attempt),
            }
        });
        // lapin's tasks are dropped where they stand; its socket fails, which ends its own thread.
        drop(runtime);
        match end {
            Some(Err(error)) => {
                tracing::warn!(%error, "rabbitmq cannot be reached");
                tell.send_replace(State::Connecting(Some(error)));
                delay = (delay * 2).clamp(delay_min, delay_max);
            }
            Some(Ok(())) | None => return,
        }
    }
}

/// One connection, after a delay. Returns when it is lost; an error is that it was not made.
async fn live(
    config: &RabbitMqConfig,
    tell: &watch::Sender<State>,
    delay: Duration,
) -> Result<(), PublishError> {
    tokio::time::sleep(delay).await;
    let connected = tokio::time::timeout(CONNECT_WAIT_MAX, connect(config)).await;
    let connection = connected.map_err(|_| {
        not_connected(format_args!("rabbitmq has not answered within {CONNECT_WAIT_MAX:?}"))
    })??;
    let mut events = connection.events_listener();
    declare::make_all(&connection, &config.declarations).await;
    let lines = Arc::new(Lines::new(Session::new(connection, config)));
    tell.send_replace(State::Ready(Arc::clone(&lines)));
    while lines.session.connection.status().connected() {
        match events.next().await {
            // Of a channel or of the connection, which the loop's condition tells apart.
            Some(Event::Error(error)) => {
                tracing::warn!(%error, "rabbitmq has closed a channel or the connection");
            }
            Some(Event::ConnectionBlocked(reason)) => tracing::warn!(reason, "rabbitmq takes no messages"),
            Some(Event::ConnectionUnblocked) => tracing::info!("rabbitmq takes messages again"),
            Some(_) => {}
            None => break,
        }
    }
    Ok(())
}

async fn connect(config: &RabbitMqConfig) -> Result<Connection, PublishError> {
    let tls = match config.has_tls() {
        true => Some(tls::connector(config).map_err(|error| not_connected(format_args!("TLS: {error}")))?),
        false => None,
    };
    let transport = async move |uri: AMQPUri, runtime| {
        let plain = AMQPUri { scheme: AMQPScheme::AMQP, ..uri.clone() };
        let connected = async {
            let stream = plain.connect_async(&runtime).await?;
            match &tls {
                #[cfg(feature = "tls")]
                Some(tls) => stream.into_rustls(tls, &uri.authority.host).await,
                #[cfg(not(feature = "tls"))]
                Some(never) => match *never {},
                None => Ok::<_, std::io::Error>(stream),
            }
        };
        // lapin's thread ends with this attempt, however long the operating system would go on.
        match tokio::time::timeout(CONNECT_WAIT_MAX, connected).await {
            Ok(stream) => stream.map_err(lapin::Error::from),
            Err(elapsed) => Err(std::io::Error::from(elapsed).into()),
        }
    };
    let runtime = lapin::runtime::default_runtime().map_err(|error| refused(&error))?;
    let properties = ConnectionProperties::default().with_connection_name(config.name.as_str().into());
    Connection::connector(config.uri.clone(), runtime, transport, properties)
        .await
        .map_err(|error| refused(&error))
}

fn refused(error: &lapin::Error) -> PublishError {
    match reply_code(error) {
        Some(code @ (ACCESS_REFUSED | NOT_ALLOWED)) => {
            publish_error(Refusal::NotLoggedIn(code), format!("rabbitmq refuses the login: {error}"))
        }
        _ => not_connected(format_args!("rabbitmq cannot be reached: {error}")),
    }
}

fn not_connected(why: impl std::fmt::Display) -> PublishError {
    publish_error(Refusal::NotConnected, why.to_string())
}
