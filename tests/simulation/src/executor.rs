//! A world with one thread, its own time, and a seed that decides who runs next.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures::future::BoxFuture;
use outbox::relay::{Clock, Monotonic, Task};

/// What is killed and frozen as one: a relay's process, or the world's own part of the simulation.
pub(crate) type Process = u32;

/// The process of servers, writers and operators: never killed, never frozen.
pub(crate) const WORLD: Process = 0;

#[derive(Clone)]
pub(crate) struct Sim(Arc<Mutex<Inner>>);

struct Inner {
    now: Duration,
    rng: fastrand::Rng,
    tasks: BTreeMap<u64, Slot>,
    tasks_made: u64,
    ready: BTreeSet<u64>,
    timers: BTreeMap<(Duration, u64), Waker>,
    timers_made: u64,
    frozen: BTreeMap<Process, Duration>,
    dead: BTreeSet<Process>,
    /// What happened, in order, if asked for.
    trace: Option<Vec<String>>,
    /// A digest of what happened, so that a replay can be compared.
    digest: u64,
}

struct Slot {
    process: Process,
    /// Taken out while it is polled.
    future: Option<BoxFuture<'static, ()>>,
}

struct TaskWaker {
    sim: Sim,
    task: u64,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut inner = self.sim.lock();
        if inner.tasks.contains_key(&self.task) {
            inner.ready.insert(self.task);
        }
    }
}

impl Sim {
    pub(crate) fn new(seed: u64, trace: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            now: Duration::ZERO,
            rng: fastrand::Rng::with_seed(seed),
            tasks: BTreeMap::new(),
            tasks_made: 0,
            ready: BTreeSet::new(),
            timers: BTreeMap::new(),
            timers_made: 0,
            frozen: BTreeMap::new(),
            dead: BTreeSet::new(),
            trace: trace.then(Vec::new),
            digest: 0xcbf2_9ce4_8422_2325,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no task panics while it holds the world")
    }

    pub(crate) fn now(&self) -> Duration {
        self.lock().now
    }

    /// True with this probability.
    pub(crate) fn chance(&self, probability: f64) -> bool {
        self.lock().rng.f64() < probability
    }

    /// A number of the range.
    pub(crate) fn pick(&self, range: std::ops::Range<u64>) -> u64 {
        self.lock().rng.u64(range)
    }

    /// A time of the range, in milliseconds.
    pub(crate) fn millis(&self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_micros(self.pick(range.start * 1000..range.end * 1000))
    }

    /// Notes what happened, for the digest and the printed schedule.
    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        let mut inner = self.lock();
        let what = format!("{:>9.3} {}", inner.now.as_secs_f64(), what());
        for byte in what.bytes() {
            inner.digest = (inner.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some(trace) = &mut inner.trace {
            trace.push(what);
        }
    }

    pub(crate) fn digest(&self) -> u64 {
        self.lock().digest
    }

    pub(crate) fn trace(&self) -> Vec<String> {
        self.lock().trace.clone().unwrap_or_default()
    }

    pub(crate) fn sleep(&self, duration: Duration) -> Sleep {
        Sleep { sim: self.clone(), at: self.now() + duration, key: None }
    }

    pub(crate) fn spawn(&self, process: Process, future: impl Future<Output = ()> + Send + 'static) -> u64 {
        let mut inner = self.lock();
        inner.tasks_made += 1;
        let task = inner.tasks_made;
        inner.tasks.insert(task, Slot { process, future: Some(Box::pin(future)) });
        inner.ready.insert(task);
        task
    }

    /// The task is dropped, as its future can be while the process goes on.
    pub(crate) fn end_task(&self, task: u64) {
        let slot = {
            let mut inner = self.lock();
            inner.ready.remove(&task);
            inner.tasks.remove(&task)
        };
        // Dropped without the lock: what a future holds may end further tasks.
        drop(slot);
    }

    /// The process is gone at once: what its tasks were about to do is never done.
    pub(crate) fn kill(&self, process: Process) {
        let slots: Vec<Slot> = {
            let mut inner = self.lock();
            inner.dead.insert(process);
            inner.frozen.remove(&process);
            let tasks: Vec<u64> = inner
                .tasks
                .iter()
                .filter(|(_, slot)| slot.process == process)
                .map(|(task, _)| *task)
                .collect();
            for task in &tasks {
                inner.ready.remove(task);
            }
            tasks.iter().filter_map(|task| inner.tasks.remove(task)).collect()
        };
        drop(slots);
    }

    pub(crate) fn is_dead(&self, process: Process) -> bool {
        self.lock().dead.contains(&process)
    }

    /// The process stands still, while time goes on.
    pub(crate) fn freeze(&self, process: Process, duration: Duration) {
        let mut inner = self.lock();
        let until = inner.now + duration;
        inner.frozen.insert(process, until);
    }

    /// Runs until `done`, or until nothing can happen any more, or until `limit`. True if done.
    pub(crate) fn run(&self, limit: Duration, done: impl Fn() -> bool) -> bool {
        loop {
            if done() {
                return true;
            }
            match self.next() {
                Some((task, future)) => self.poll(task, future),
                None if self.advance(limit) => {}
                None => return done(),
            }
        }
    }

    fn next(&self) -> Option<(u64, BoxFuture<'static, ()>)> {
        let inner = &mut *self.lock();
        let now = inner.now;
        inner.frozen.retain(|_, until| *until > now);
        let candidates: Vec<u64> = if inner.frozen.is_empty() {
            inner.ready.iter().copied().collect()
        } else {
            let runs = |task: &u64| {
                inner.tasks.get(task).is_some_and(|slot| !inner.frozen.contains_key(&slot.process))
            };
            inner.ready.iter().copied().filter(runs).collect()
        };
        if candidates.is_empty() {
            return None;
        }
        let task = candidates[inner.rng.usize(..candidates.len())];
        inner.ready.remove(&task);
        let future = inner.tasks.get_mut(&task)?.future.take()?;
        Some((task, future))
    }

    fn poll(&self, task: u64, mut future: BoxFuture<'static, ()>) {
        let waker = Waker::from(Arc::new(TaskWaker { sim: self.clone(), task }));
        let ready = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        if ready {
            self.end_task(task);
            return;
        }
        let mut inner = self.lock();
        match inner.tasks.get_mut(&task) {
            Some(slot) => slot.future = Some(future),
            // It was killed while it ran.
            None => {
                drop(inner);
                drop(future);
            }
        }
    }

    /// Lets time pass until something can happen. False if that is never, or beyond the limit.
    fn advance(&self, limit: Duration) -> bool {
        let due: Vec<Waker> = {
            let inner = &mut *self.lock();
            let timer = inner.timers.keys().next().map(|(at, _)| *at);
            let thaw = inner.frozen.values().min().copied();
            let next = match (timer, thaw) {
                (Some(timer), Some(thaw)) => timer.min(thaw),
                (timer, thaw) => match timer.or(thaw) {
                    Some(next) => next,
                    None => return false,
                },
            };
            if next > limit {
                return false;
            }
            inner.now = inner.now.max(next);
            let later = inner.timers.split_off(&(inner.now + Duration::from_nanos(1), 0));
            std::mem::replace(&mut inner.timers, later).into_values().collect()
        };
        for waker in due {
            waker.wake();
        }
        true
    }
}

/// Completes when its time has come.
pub(crate) struct Sleep {
    sim: Sim,
    at: Duration,
    key: Option<(Duration, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let sim = self.sim.clone();
        let mut inner = sim.lock();
        if let Some(key) = self.key.take() {
            inner.timers.remove(&key);
        }
        if inner.now >= self.at {
            return Poll::Ready(());
        }
        inner.timers_made += 1;
        let key = (self.at, inner.timers_made);
        inner.timers.insert(key, context.waker().clone());
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            // The waker holds the world; it is dropped after the lock is free.
            let waker = self.sim.lock().timers.remove(&key);
            drop(waker);
        }
    }
}

/// A process's view of time: the world's, from an origin of its own, an hour or so off.
pub(crate) struct SimClock {
    pub sim: Sim,
    pub process: Process,
    pub offset: Duration,
}

impl Clock for SimClock {
    fn now(&self) -> Monotonic {
        self.sim.now() + self.offset
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(self.sim.sleep(duration))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Task {
        let (done, ended) = tokio::sync::oneshot::channel();
        let task = self.sim.spawn(self.process, async move {
            task.await;
            let _ = done.send(());
        });
        let handle = EndOnDrop { sim: self.sim.clone(), task };
        Task::new(async move {
            let _handle = handle;
            let _ = ended.await;
        })
    }

    fn detach(&self, task: BoxFuture<'static, ()>) {
        // What a killed process would still have done is not done.
        if !self.sim.is_dead(self.process) {
            self.sim.spawn(self.process, task);
        }
    }
}

struct EndOnDrop {
    sim: Sim,
    task: u64,
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.sim.end_task(self.task);
    }
}

/// The database's clock, which an administrator may set.
pub(crate) struct StoreClock {
    pub sim: Sim,
    pub ahead: Arc<Mutex<Duration>>,
}

impl Clock for StoreClock {
    fn now(&self) -> Monotonic {
        self.sim.now() + *self.ahead.lock().expect("the clock's offset")
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(self.sim.sleep(duration))
    }

    fn spawn(&self, _task: BoxFuture<'static, ()>) -> Task {
        unreachable!("a store runs no tasks")
    }
}
