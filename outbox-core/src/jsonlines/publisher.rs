//! The publisher itself: [`JsonLinesPublisher`].

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;

use crate::{
    Finding, Publisher, cloudevents,
    publisher::{Message, PublishError, Reporter, Stored},
};

/// How many bytes of whole lines are written at once; the call's end is looked at in between. A page of a
/// pipe, so that a reader which has stalled keeps at most this much of a call that has been given up.
const CHUNK_BYTES: usize = 4096;

/// Writes each message as one line in the CloudEvents JSON format ([`cloudevents::to_json`]), to the standard
/// output, a file, or any writer. The destination of a message is not written: it belongs to no attribute of
/// a CloudEvent.
///
/// A message counts as sent once its line has been written and flushed, and, of a file that asks for it,
/// synced. A file survives the end of the process without a sync, and a power failure only with one.
///
/// A line that was cut short (a full disk, a killed process) is ended by a line feed before the next one, so
/// that no good line is lost with it: a reader skips lines that are not JSON. A call that was given up stops
/// after the lines that it is just writing; those count as unknown.
pub struct JsonLinesPublisher {
    sink: Arc<Mutex<Sink>>,
}

struct Sink {
    out: Out,
    /// The last thing written is not the end of a line.
    torn: bool,
}

enum Out {
    Writer(Box<dyn Write + Send>),
    File { file: File, sync: bool },
}

impl JsonLinesPublisher {
    /// Writes to the standard output.
    pub fn stdout() -> Self {
        Self::writer(io::stdout())
    }

    /// Writes to `writer`, which is flushed before success is reported.
    pub fn writer(writer: impl Write + Send + 'static) -> Self {
        Self::new(Out::Writer(Box::new(writer)), false)
    }

    /// Appends to the file at `path`, which is created if need be. With `sync` the data is on the disk, as
    /// far as the operating system knows, before success is reported; one sync for each call of `publish`.
    ///
    /// # Errors
    /// What the operating system says when the file is opened.
    pub fn append(path: impl AsRef<Path>, sync: bool) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut torn = false;
        // A file that is not regular, such as a named pipe or /dev/stderr, has no last byte to look at.
        if file.metadata()?.is_file() && file.seek(SeekFrom::End(0))? > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            torn = last != *b"\n";
        }
        Ok(Self::new(Out::File { file, sync }, torn))
    }

    fn new(out: Out, torn: bool) -> Self {
        Self { sink: Arc::new(Mutex::new(Sink { out, torn })) }
    }
}

impl fmt::Debug for JsonLinesPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JsonLinesPublisher")
    }
}

#[async_trait]
impl Publisher for JsonLinesPublisher {
    async fn check(&self, _topics: &[String]) -> Vec<Finding> {
        Vec::new()
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, timeout: Duration, reporter: Reporter) {
        let given_up = GivenUp::default();
        let (sink, flag) = (Arc::clone(&self.sink), Arc::clone(&given_up.0));
        #[expect(clippy::disallowed_methods, reason = "a file is written on a thread that may wait")]
        let writing = tokio::task::spawn_blocking(move || write_lines(&sink, &messages, &flag, &reporter));
        // The thread reports; a panic in there has reported nothing, which counts as unknown.
        #[expect(clippy::disallowed_methods, reason = "a publisher has the real time, not the engine's")]
        let _ = tokio::time::timeout(timeout, writing).await;
    }
}

/// Tells the writing thread, when it is dropped, that no caller waits any more.
#[derive(Default)]
struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn write_lines(sink: &Mutex<Sink>, messages: &[Arc<Message>], given_up: &AtomicBool, reporter: &Reporter) {
    let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
    let mut started = 0;
    let mut result = Ok(());
    let mut chunk = Vec::with_capacity(CHUNK_BYTES * 2);
    for (index, message) in messages.iter().enumerate() {
        chunk.extend_from_slice(&cloudevents::to_json(message));
        chunk.push(b'\n');
        if chunk.len() < CHUNK_BYTES && index + 1 < messages.len() {
            continue;
        }
        if given_up.load(Ordering::Acquire) {
            break;
        }
        started = index + 1;
        result = sink.write(&chunk);
        if result.is_err() {
            break;
        }
        chunk.clear();
    }
    let result = result.and_then(|()| sink.flush());
    for index in 0..messages.len() {
        let stored = if index < started { Stored::Unknown } else { Stored::No };
        let outcome = match &result {
            Ok(()) if index < started => Ok(()),
            Ok(()) => Err(given_up_error()),
            Err(error) => Err(write_error(error).stored(stored)),
        };
        reporter.report(index, outcome);
    }
}

fn write_error(error: &io::Error) -> PublishError {
    PublishError::unavailable(error.kind().to_string(), format!("writing json lines failed: {error}"))
}

fn given_up_error() -> PublishError {
    PublishError::transient("given up", "the call ended before this line was written").stored(Stored::No)
}

impl Sink {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let out: &mut dyn Write = match &mut self.out {
            Out::Writer(writer) => writer,
            Out::File { file, .. } => file,
        };
        if self.torn {
            out.write_all(b"\n")?;
        }
        // Torn until proven otherwise: how much of it a failed write has written is not known.
        self.torn = true;
        out.write_all(lines)?;
        self.torn = false;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = match &mut self.out {
            Out::Writer(writer) => writer.flush(),
            Out::File { file, sync: true } => file.sync_data(),
            Out::File { file, sync: false } => file.flush(),
        };
        self.torn |= flushed.is_err();
        flushed
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test has the real time")]
mod tests {
    use std::{collections::BTreeMap, sync::mpsc as std_mpsc};

    use chrono::DateTime;
    use tokio::sync::mpsc;
    use uuid::Uuid;

    use super::*;
    use crate::{
        AggregateKey,
        publisher::{PublishErrorKind, PublishErrorScope, Report},
        store::StoredEvent,
    };

    /// A writer that takes `room` bytes, then fails; what it took can be read.
    #[derive(Clone, Default)]
    struct Limited {
        taken: Arc<Mutex<Vec<u8>>>,
        room: Arc<Mutex<usize>>,
        flush_fails: Arc<AtomicBool>,
    }

    impl Limited {
        fn new(room: usize) -> Self {
            let limited = Self::default();
            *limited.room.lock().unwrap() = room;
            limited
        }

        fn text(&self) -> String {
            String::from_utf8(self.taken.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Limited {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut room = self.room.lock().unwrap();
            let written = bytes.len().min(*room);
            if written == 0 {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "no room"));
            }
            *room -= written;
            self.taken.lock().unwrap().extend_from_slice(&bytes[..written]);
            Ok(written)
        }

        fn flush(&mut self) -> io::Result<()> {
            if self.flush_fails.load(Ordering::Relaxed) { Err(io::Error::other("flush")) } else { Ok(()) }
        }
    }

    fn messages(count: u32) -> Vec<Arc<Message>> {
        let message = |i: u32| Message {
            topic: Arc::from("t"),
            key: AggregateKey::new("order", &i.to_string()),
            sequence: i64::from(i) + 1,
            attempt: 1,
            source: Arc::from("/test"),
            event: StoredEvent {
                id: Uuid::from_u128(u128::from(i)),
                event_type: "e".to_owned(),
                version: 1,
                payload: Some(format!("{{\"i\":{i}}}").into()),
                content_type: None,
                headers: BTreeMap::new(),
                topic: None,
                created_at: DateTime::UNIX_EPOCH,
            },
        };
        (0..count).map(|i| Arc::new(message(i))).collect()
    }

    async fn publish(publisher: &JsonLinesPublisher, count: u32) -> Vec<Report> {
        let (sender, mut reports) = mpsc::unbounded_channel();
        publisher.publish(messages(count), Duration::from_secs(60), Reporter::new(7, sender)).await;
        let mut seen = Vec::new();
        while let Some(report) = reports.recv().await {
            seen.push(report);
        }
        assert_eq!(
            seen.iter().map(|report| report.index).collect::<Vec<_>>(),
            (0..count).collect::<Vec<_>>()
        );
        seen
    }

    fn data(text: &str) -> Vec<Option<u64>> {
        let read = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["data"]["i"].as_u64();
        text.lines().map(read).collect()
    }

    #[tokio::test]
    async fn every_message_is_a_line_in_order() {
        let writer = Limited::new(usize::MAX);
        let publisher = JsonLinesPublisher::writer(writer.clone());
        let reports = publish(&publisher, 1000).await;
        assert!(reports.iter().all(|report| report.call == 7 && report.result.is_ok()));
        assert_eq!(data(&writer.text()), (0..1000).map(Some).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_write_that_fails_makes_the_destination_unavailable_and_the_torn_line_costs_no_other() {
        let writer = Limited::new(3 * CHUNK_BYTES);
        let publisher = JsonLinesPublisher::writer(writer.clone());
        let reports = publish(&publisher, 1000).await;
        for report in &reports {
            let error = report.result.as_ref().unwrap_err();
            assert_eq!((error.kind, error.scope), (PublishErrorKind::Unavailable, PublishErrorScope::Broker));
            assert!(error.detail.contains("no room"), "{error}");
        }
        // What lies behind the failure is certainly not there, what came before it may be.
        let stored = |index: usize| reports[index].result.as_ref().unwrap_err().stored;
        assert_eq!((stored(0), stored(999)), (Stored::Unknown, Stored::No));

        *writer.room.lock().unwrap() = usize::MAX;
        assert!(publish(&publisher, 2).await.iter().all(|report| report.result.is_ok()));
        let lines = data(&writer.text());
        assert_eq!(lines[lines.len() - 3..], [None, Some(0), Some(1)], "the torn line, then good ones");
    }

    #[tokio::test]
    async fn success_waits_for_the_flush() {
        let writer = Limited::new(usize::MAX);
        writer.flush_fails.store(true, Ordering::Relaxed);
        let reports = publish(&JsonLinesPublisher::writer(writer), 1).await;
        let error = reports[0].result.as_ref().unwrap_err();
        assert_eq!((error.kind, error.stored), (PublishErrorKind::Unavailable, Stored::Unknown));
    }

    #[tokio::test]
    async fn a_file_is_appended_to_and_a_torn_end_is_closed() {
        let path = std::env::temp_dir().join(format!("outbox-{}.jsonl", Uuid::now_v7()));
        std::fs::write(&path, b"{\"data\":{\"i\":1}}\n{\"dat").unwrap();
        for sync in [true, false] {
            let publisher = JsonLinesPublisher::append(&path, sync).unwrap();
            assert!(publish(&publisher, 2).await.iter().all(|report| report.result.is_ok()));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(data(&text), [Some(1), None, Some(0), Some(1), Some(0), Some(1)]);
    }

    /// A writer that says when it is entered and waits to be let go.
    struct Gate {
        entered: std_mpsc::Sender<()>,
        open: std_mpsc::Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.entered.send(()).unwrap();
            self.open.recv().unwrap();
            self.taken.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_writes_no_more_than_it_was_writing() {
        let (entered, was_entered) = std_mpsc::channel();
        let (let_go, open) = std_mpsc::channel();
        let taken = Arc::default();
        let publisher =
            Arc::new(JsonLinesPublisher::writer(Gate { entered, open, taken: Arc::clone(&taken) }));
        let (sender, mut reports) = mpsc::unbounded_channel();
        let call = tokio::spawn({
            let publisher = Arc::clone(&publisher);
            async move {
                publisher.publish(messages(1000), Duration::from_secs(60), Reporter::new(1, sender)).await;
            }
        });
        tokio::task::spawn_blocking(move || (was_entered.recv().unwrap(), was_entered)).await.unwrap();
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        let_go.send(()).unwrap();
        let mut written = 0;
        while let Some(report) = reports.recv().await {
            match report.result {
                Ok(()) => written += 1,
                Err(error) => assert_eq!(error.stored, Stored::No),
            }
        }
        assert_eq!(data(std::str::from_utf8(&taken.lock().unwrap()).unwrap()).len(), written);
        assert!((1..1000).contains(&written), "{written}");
    }
}
