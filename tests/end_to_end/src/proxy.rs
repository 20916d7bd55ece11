//! Stands between a relay and its database, and cuts all connections at a chosen moment of a settle.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

use crate::PATIENCE;

/// When to cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Moment {
    /// The request does not arrive.
    Before,
    /// Half of the request arrives.
    Within,
    /// The request arrives and is carried out; its answer is lost.
    After,
}

/// A proxy on a port of its own.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    shared: Arc<Shared>,
    cuts: watch::Receiver<usize>,
}

struct Shared {
    upstream: String,
    /// What tells the connection that settles from the others.
    settles: &'static [u8],
    /// The cut that is ordered, and how many requests of a settling connection pass before it.
    ordered: Mutex<Option<(Moment, usize)>>,
    cuts: watch::Sender<usize>,
}

impl Proxy {
    /// Starts one before the server at `upstream`, `host:port`.
    pub(crate) async fn start(upstream: String, settles: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, cuts) = watch::channel(0);
        let shared = Arc::new(Shared { upstream, settles, ordered: Mutex::new(None), cuts: tell });
        let serving = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, Arc::clone(&serving)));
            }
        });
        Self { port, shared, cuts }
    }

    /// Orders one cut, and waits until it has happened.
    pub(crate) async fn cut(&mut self, moment: Moment, requests_before: usize) {
        let wanted = *self.cuts.borrow() + 1;
        *self.shared.ordered.lock().unwrap() = Some((moment, requests_before));
        let cut = tokio::time::timeout(PATIENCE, self.cuts.wait_for(|cuts| *cuts >= wanted)).await;
        cut.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain for a settle to cut: {moment:?}"))
            .unwrap();
    }
}

impl Shared {
    /// The cut that is to happen at this request.
    fn due(&self) -> Option<Moment> {
        let mut ordered = self.ordered.lock().unwrap();
        match ordered.as_mut()? {
            (_, requests_before) if *requests_before > 0 => {
                *requests_before -= 1;
                None
            }
            (moment, _) => {
                let moment = *moment;
                *ordered = None;
                Some(moment)
            }
        }
    }

    fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn serve(client: TcpStream, shared: Arc<Shared>) {
    let mut cuts = shared.cuts.subscribe();
    let Ok(server) = TcpStream::connect(&shared.upstream).await else { return };
    let answer_is_lost = AtomicBool::new(false);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // Whatever ends first drops all four halves, and with them both connections.
    tokio::select! {
        () = requests(from_client, to_server, &shared, &answer_is_lost) => {}
        () = answers(from_server, to_client, &shared, &answer_is_lost) => {}
        _ = cuts.changed() => {}
    }
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    answer_is_lost: &AtomicBool,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut settles = false;
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let mut request = &buffer[..count];
        settles = settles || request.windows(shared.settles.len()).any(|window| window == shared.settles);
        let moment = if settles { shared.due() } else { None };
        match moment {
            Some(Moment::Before) => request = &[],
            Some(Moment::Within) => request = &request[..count / 2],
            Some(Moment::After) => answer_is_lost.store(true, Ordering::Relaxed),
            None => {}
        }
        if to.write_all(request).await.is_err() {
            return;
        }
        if matches!(moment, Some(Moment::Before | Moment::Within)) {
            return shared.cut();
        }
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    answer_is_lost: &AtomicBool,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if answer_is_lost.load(Ordering::Relaxed) {
            return shared.cut();
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
