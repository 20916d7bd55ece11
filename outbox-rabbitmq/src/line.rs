//! A channel for the messages of one exchange, and the task that alone uses it.
//!
//! One exchange, because a broker closes the channel of what it finds wrong: an exchange that is gone fails
//! its own messages then, and no others.
//!
//! One task, for two reasons. lapin counts a message before it queues it, so that two tasks could have their
//! messages confirmed for each other. And lapin hands a message that came back to whatever is confirmed next,
//! which need not be the one that came back: only who sees all that is confirmed knows which one was not
//! taken.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::{Stream, StreamExt as _, stream::FuturesUnordered};
use lapin::{
    Channel, Confirmation, ErrorKind,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use outbox_core::publisher::{PublishError, Reporter};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
};

use crate::{
    declare,
    error::{NO_ROUTE, NOT_FOUND, Refusal, publish_error, reply_code, unconfirmed},
    record::Record,
    session::Session,
};

/// How many messages of a channel may be unconfirmed. Further ones wait.
const UNCONFIRMED_MAX: usize = 4096;

/// How many exchanges have a channel at a time. A further one takes the place of another.
const LINES_MAX: usize = 256;

/// The channels of a connection, one for each exchange that has messages.
pub(crate) struct Lines {
    pub(crate) session: Arc<Session>,
    /// That of the connection, which ends with it.
    runtime: Handle,
    lines: Mutex<HashMap<ShortString, mpsc::UnboundedSender<Job>>>,
}

impl Lines {
    /// Those of a connection, to be called within its runtime.
    pub(crate) fn new(session: Session) -> Self {
        Self { session: Arc::new(session), runtime: Handle::current(), lines: Mutex::default() }
    }

    /// Gives a message to the channel of its exchange, which is opened if there is none.
    pub(crate) fn send(&self, job: Job) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let job = match lines.get(job.exchange()) {
            Some(line) => match line.send(job) {
                Ok(()) => return,
                // The channel has ended.
                Err(mpsc::error::SendError(job)) => job,
            },
            None => job,
        };
        if lines.len() >= LINES_MAX
            && let Some(exchange) = lines.keys().next().cloned()
        {
            // Its channel is closed when all that it has is confirmed.
            lines.remove(&exchange);
        }
        let exchange = job.exchange().clone();
        let (line, jobs) = mpsc::unbounded_channel();
        let _ = line.send(job);
        lines.insert(exchange.clone(), line);
        self.runtime.spawn(run(Arc::clone(&self.session), exchange, jobs));
    }
}

/// One call of `publish`, shared with the tasks of the channels.
pub(crate) struct Call {
    reporter: Reporter,
    /// Messages without an outcome.
    open: Mutex<BTreeSet<usize>>,
    /// Messages that are with a channel.
    flying: AtomicUsize,
    /// Nothing is flying any more.
    landed: Notify,
    /// Those of them that are not with the operating system yet.
    unwritten: AtomicUsize,
}

/// A message of a call, on its way.
pub(crate) struct Job {
    call: Arc<Call>,
    index: usize,
    record: Record,
    written: bool,
}

impl Call {
    /// A call of this many messages.
    pub(crate) fn new(reporter: Reporter, messages: usize) -> Self {
        Self {
            reporter,
            open: Mutex::new((0..messages).collect()),
            flying: AtomicUsize::new(0),
            landed: Notify::new(),
            unwritten: AtomicUsize::new(0),
        }
    }

    /// The messages without an outcome. While none is flying, those whose channel or connection has ended.
    pub(crate) fn open(&self) -> Vec<usize> {
        self.lock().iter().copied().collect()
    }

    pub(crate) fn job(self: &Arc<Self>, index: usize, record: Record) -> Job {
        self.flying.fetch_add(1, Ordering::Relaxed);
        self.unwritten.fetch_add(1, Ordering::Relaxed);
        Job { call: Arc::clone(self), index, record, written: false }
    }

    /// Reports an outcome, unless the message has one.
    pub(crate) fn report(&self, index: usize, result: Result<(), PublishError>) {
        if self.lock().remove(&index) {
            self.reporter.report(index, result);
        }
    }

    pub(crate) fn is_flying(&self) -> bool {
        self.flying.load(Ordering::Acquire) > 0
    }

    /// The client has nothing of the call: it only waits for confirms.
    pub(crate) fn is_written(&self) -> bool {
        self.unwritten.load(Ordering::Acquire) == 0
    }

    pub(crate) async fn landed(&self) {
        while self.is_flying() {
            self.landed.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    pub(crate) fn exchange(&self) -> &ShortString {
        &self.record.exchange
    }

    fn done(self, result: Result<(), PublishError>) {
        self.call.report(self.index, result);
    }

    fn written(&mut self) {
        if !std::mem::replace(&mut self.written, true) {
            self.call.unwritten.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn refuse(self, session: &Session, refusal: Refusal, why: impl std::fmt::Display) {
        if matches!(
            refusal,
            Refusal::Returned(_) | Refusal::NotOpened(NOT_FOUND) | Refusal::Closed(NOT_FOUND)
        ) {
            session.missing.store(true, Ordering::Relaxed);
        }
        let Record { exchange, routing_key, .. } = &self.record;
        let detail = format!(
            "the message to exchange {:?} with routing key {:?} {why}",
            exchange.as_str(),
            routing_key.as_str()
        );
        self.done(Err(publish_error(refusal, detail)));
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.written();
        if self.call.flying.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.call.landed.notify_one();
        }
    }
}

/// Sends the jobs and reports their outcomes, until there are no more or the channel has ended.
async fn run(session: Arc<Session>, exchange: ShortString, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let channel = match open(&session, &exchange).await {
        Ok(channel) => channel,
        Err(error) => {
            jobs.close();
            while let Some(job) = jobs.recv().await {
                let refusal = reply_code(&error).map_or(Refusal::ConnectionLostBefore, Refusal::NotOpened);
                job.refuse(&session, refusal, format_args!("was not sent: {error}"));
            }
            return;
        }
    };
    let mut flying = FuturesUnordered::new();
    let mut returned = HashSet::new();
    let mut more = true;
    while (more || !flying.is_empty()) && channel.status().connected() {
        tokio::select! {
            job = jobs.recv(), if more && flying.len() < UNCONFIRMED_MAX => match job {
                Some(job) => flying.push(send(&session, &channel, job)),
                None => more = false,
            },
            answers = ready(&mut flying), if !flying.is_empty() => settle(&session, answers, &mut returned),
        }
    }
    // What was sent is answered by the error that ended the channel; what was not yet is lost to its call,
    // which sends it again on a new one.
    while let Some(answer) = flying.next().await {
        settle(&session, vec![answer], &mut returned);
    }
    if channel.status().connected() {
        let _ = channel.close(200, "".into()).await;
    }
}

async fn open(session: &Session, exchange: &ShortString) -> lapin::Result<Channel> {
    let channel = session.connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    if !exchange.as_str().is_empty() {
        declare::ask_for_exchange(&channel, exchange.as_str()).await?;
    }
    Ok(channel)
}

type Answer = (Job, lapin::Result<Confirmation>);

/// Its first poll counts the message and queues it, in one piece.
async fn send(session: &Session, channel: &Channel, mut job: Job) -> Answer {
    let Record { exchange, routing_key, properties, payload, .. } = &job.record;
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let sent = channel
        .basic_publish(exchange.clone(), routing_key.clone(), options, payload, properties.clone())
        .await;
    let answer = match sent {
        Ok(confirm) => {
            if session.writes_through {
                job.written();
            }
            confirm.await
        }
        Err(error) => Err(error),
    };
    (job, answer)
}

/// Reports what has been answered. A message that came back is known by its id, which may have come with the
/// confirm of another one, at the same time or before.
fn settle(session: &Session, answers: Vec<Answer>, returned: &mut HashSet<ShortString>) {
    let ids = |answer: &Answer| match &answer.1 {
        Ok(Confirmation::Ack(Some(back)) | Confirmation::Nack(Some(back))) => {
            back.properties.message_id().clone()
        }
        _ => None,
    };
    returned.extend(answers.iter().filter_map(ids));
    for (job, answer) in answers {
        let came_back = returned.remove(&job.record.id);
        match answer {
            Ok(Confirmation::Ack(_) | Confirmation::Nack(_)) if came_back => {
                let why = "came back: no queue is there to take it";
                job.refuse(session, Refusal::Returned(NO_ROUTE), why);
            }
            Ok(Confirmation::Ack(_)) => {
                session.confirmed.fetch_add(1, Ordering::Relaxed);
                job.done(Ok(()));
            }
            Ok(Confirmation::Nack(_)) => {
                session.confirmed.fetch_add(1, Ordering::Relaxed);
                job.refuse(session, Refusal::Nack, "was not taken: a queue is full or has failed");
            }
            // Confirms were asked for when the channel was opened, so this does not come.
            Ok(Confirmation::NotRequested) => {
                job.refuse(session, Refusal::ConnectionLost, "was not confirmed");
            }
            // The channel had ended before it was sent.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidChannelState(..)) => drop(job),
            Err(error) => {
                job.refuse(session, unconfirmed(&error), format_args!("was not confirmed: {error}"));
            }
        }
    }
}

/// Everything that is ready by now; at least one.
///
/// All of it, because what is confirmed at once must be seen at once. A stream may say that nothing is ready
/// and ask to be polled again at once, which is why this listens for it.
async fn ready<S: Stream + Unpin>(stream: &mut S) -> Vec<S::Item> {
    poll_fn(|cx| {
        let asked = Arc::new(Asked { again: AtomicBool::new(false), task: cx.waker().clone() });
        let waker = Waker::from(Arc::clone(&asked));
        let mut items = Vec::new();
        loop {
            match stream.poll_next_unpin(&mut Context::from_waker(&waker)) {
                Poll::Ready(Some(item)) => items.push(item),
                Poll::Ready(None) => break,
                Poll::Pending if asked.again.swap(false, Ordering::AcqRel) => {}
                Poll::Pending => break,
            }
        }
        if items.is_empty() { Poll::Pending } else { Poll::Ready(items) }
    })
    .await
}

struct Asked {
    again: AtomicBool,
    task: Waker,
}

impl Wake for Asked {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.again.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}
