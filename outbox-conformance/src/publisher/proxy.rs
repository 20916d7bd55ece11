//! A broker's connections in the suite's hand: [`Proxy`].

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{RwLock, watch},
    task::JoinSet,
};

use crate::Outage;

const BUFFER_BYTES: usize = 64 * 1024;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// How long a change waits for bytes that are just passing. They are gone within microseconds, unless who is
/// to get them does not read.
const PASSING_MAX: Duration = Duration::from_secs(1);

/// How often a port that is not free yet is asked for, with [`PORT_PAUSE`] between.
const PORT_ATTEMPTS_MAX: u32 = 100;
const PORT_PAUSE: Duration = Duration::from_millis(50);

/// A TCP proxy on a loopback port of its own, which can cut, freeze and restore the connections that go
/// through it.
///
/// It lives in the runtime that it was started in, until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    change: watch::Sender<State>,
    /// The number of the last change that has been carried out.
    done: watch::Receiver<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Passing,
    Cut,
    Frozen,
    Deaf,
}

#[derive(Debug, Clone, Copy)]
struct State {
    mode: Mode,
    change: u64,
}

#[derive(Debug)]
struct Shared {
    upstream: String,
    rewrites: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
    /// Held for reading while bytes pass, and for writing while the mode changes.
    gate: RwLock<()>,
}

impl Proxy {
    /// Starts a proxy before the server at `upstream`, which is `host:port`.
    ///
    /// # Errors
    /// What the operating system says if there is no port.
    pub async fn start(upstream: impl Into<String>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream: upstream.into(),
            rewrites: Mutex::default(),
            gate: RwLock::default(),
        });
        let (change, changes) = watch::channel(State { mode: Mode::Passing, change: 0 });
        let (tell, done) = watch::channel(0);
        tokio::spawn(serve(listener, address, Arc::clone(&shared), changes, tell));
        Ok(Self { address, shared, change, done })
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces `from` by `to` in what the server answers, from now on. For a broker that tells its clients
    /// where to connect, as Kafka does; both are as long, so that no frame changes its length. Found only in
    /// one piece.
    pub fn rewrite_answers(&self, from: impl Into<Vec<u8>>, to: impl Into<Vec<u8>>) {
        let (from, to) = (from.into(), to.into());
        assert_eq!(from.len(), to.len(), "what replaces something in a stream must be as long");
        self.shared.rewrites.lock().unwrap_or_else(PoisonError::into_inner).push((from, to));
    }

    async fn become_(&self, mode: Mode) {
        let gate = tokio::time::timeout(PASSING_MAX, self.shared.gate.write()).await;
        let mut number = 0;
        self.change.send_modify(|state| {
            number = state.change + 1;
            *state = State { mode, change: number };
        });
        drop(gate);
        // An error means that the runtime of the proxy is gone, and every connection with it.
        let _ = self.done.clone().wait_for(|done| *done >= number).await;
    }
}

#[async_trait]
impl Outage for Proxy {
    async fn cut(&self) {
        self.become_(Mode::Cut).await;
    }

    async fn freeze(&self) {
        self.become_(Mode::Frozen).await;
    }

    async fn lose_answers(&self) {
        self.become_(Mode::Deaf).await;
    }

    async fn restore(&self) {
        self.become_(Mode::Passing).await;
    }
}

/// Accepts connections, and carries out the changes of mode. Ends with the proxy.
async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    mut changes: watch::Receiver<State>,
    done: watch::Sender<u64>,
) {
    let mut connections = JoinSet::new();
    let mut listener = Some(listener);
    loop {
        tokio::select! {
            biased;
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                let State { mode, change } = *changes.borrow_and_update();
                if matches!(mode, Mode::Cut | Mode::Passing) {
                    connections.shutdown().await;
                    // The listener's end refuses connections, those that wait to be accepted included.
                    drop(listener.take());
                }
                if mode == Mode::Passing {
                    listener = Some(listen_again(address).await);
                }
                done.send_replace(change);
            }
            Some(_) = connections.join_next() => {}
            Some(client) = accept(listener.as_ref()) => {
                connections.spawn(pass(client, Arc::clone(&shared), changes.clone()));
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.ok().map(|(client, _)| client),
        None => std::future::pending().await,
    }
}

async fn listen_again(address: SocketAddr) -> TcpListener {
    let listen = || {
        let socket = TcpSocket::new_v4()?;
        // Connections that were closed here linger for a minute.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    for _ in 0..PORT_ATTEMPTS_MAX {
        if let Ok(listener) = listen() {
            return listener;
        }
        tokio::time::sleep(PORT_PAUSE).await;
    }
    panic!("the proxy's port {address} was taken by another process during an outage: run the test again");
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Requests,
    Answers,
}

/// One connection. Whatever ends first ends all of it.
async fn pass(client: TcpStream, shared: Arc<Shared>, changes: watch::Receiver<State>) {
    let accepted = *changes.borrow();
    if accepted.mode == Mode::Frozen {
        return std::future::pending().await;
    }
    let Ok(server) = TcpStream::connect(&shared.upstream).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let pipe = Pipe { shared: &shared, changes: &changes, accepted };
    tokio::select! {
        () = pipe.pump(from_client, to_server, Direction::Requests) => {}
        () = pipe.pump(from_server, to_client, Direction::Answers) => {}
    }
}

struct Pipe<'a> {
    shared: &'a Shared,
    changes: &'a watch::Receiver<State>,
    /// The state in which the connection was accepted.
    accepted: State,
}

impl Pipe<'_> {
    async fn pump(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, direction: Direction) {
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let bytes = &mut buffer[..count];
            if direction == Direction::Answers {
                rewrite(bytes, &self.shared.rewrites.lock().unwrap_or_else(PoisonError::into_inner));
            }
            let _passing = self.shared.gate.read().await;
            let State { mode, change } = *self.changes.borrow();
            let passes = match mode {
                // What is left of an outage is about to be closed.
                Mode::Passing => change == self.accepted.change,
                Mode::Deaf => direction == Direction::Requests,
                Mode::Cut | Mode::Frozen => false,
            };
            // What does not pass is taken from the sender all the same, so that it does not wait.
            if passes && to.write_all(bytes).await.is_err() {
                return;
            }
        }
        if self.changes.borrow().mode == Mode::Frozen {
            // One side has closed, and the other does not hear of it.
            std::future::pending::<()>().await;
        }
    }
}

fn rewrite(bytes: &mut [u8], rewrites: &[(Vec<u8>, Vec<u8>)]) {
    for (from, to) in rewrites {
        let mut start = 0;
        while let Some(found) = bytes[start..].windows(from.len()).position(|window| window == from) {
            let at = start + found;
            bytes[at..at + to.len()].copy_from_slice(to);
            start = at + to.len();
        }
    }
}
