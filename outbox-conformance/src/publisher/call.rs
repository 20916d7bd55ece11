//! A call of `publish` as a relay makes it: [`Call`].

use std::{sync::Arc, time::Duration};

use outbox_core::{
    Publisher,
    publisher::{Message, PublishError, PublishErrorKind, PublishErrorScope, Report, Reporter, Stored},
};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use crate::violation::{Verdict, Violation, that};

pub(crate) type Outcome = Result<(), PublishError>;

/// What came of one call.
#[derive(Debug)]
pub(crate) struct Call {
    /// The reports of each message, in the order in which they came.
    pub(crate) reports: Vec<Vec<Outcome>>,
    /// Indexes of reports of no message, or of another call.
    pub(crate) strays: Vec<u32>,
    /// It returned by itself; else it was dropped.
    pub(crate) returned: bool,
}

impl Call {
    /// Publishes, tells the publisher that it has `timeout`, and drops the call after `patience`.
    pub(crate) async fn make(
        publisher: &dyn Publisher,
        number: u64,
        messages: &[Arc<Message>],
        timeout: Duration,
        patience: Duration,
    ) -> Self {
        let (reporter, mut reports) = reporter(number);
        let publish = publisher.publish(messages.to_vec(), timeout, reporter);
        let returned = tokio::time::timeout(patience, publish).await.is_ok();
        let mut call = Self { reports: vec![Vec::new(); messages.len()], strays: Vec::new(), returned };
        while let Ok(Report { call: of, index, result }) = reports.try_recv() {
            match call.reports.get_mut(index as usize) {
                Some(reports) if of == number => reports.push(result),
                _ => call.strays.push(index),
            }
        }
        call
    }

    /// The one outcome of each message.
    pub(crate) fn outcomes(self, what: &str) -> Verdict<Vec<Outcome>> {
        let expected =
            |more: &str| format!("{what}: one outcome for each of {} messages{more}", self.reports.len());
        that(self.returned, expected(", and the call to return in its time"), "it had to be dropped")?;
        that(self.strays.is_empty(), expected(" and of nothing else"), self.strays)?;
        let wrong: Vec<_> = (0_u32..).zip(&self.reports).filter(|(_, reports)| reports.len() != 1).collect();
        that(wrong.is_empty(), expected(""), wrong)?;
        Ok(self.reports.into_iter().flatten().collect())
    }
}

pub(crate) fn reporter(number: u64) -> (Reporter, UnboundedReceiver<Report>) {
    let (sender, reports) = mpsc::unbounded_channel();
    (Reporter::new(number, sender), reports)
}

/// The error of a message that must have failed.
pub(crate) fn error_of(what: &str, outcome: Outcome) -> Verdict<PublishError> {
    match outcome {
        Err(error) => Ok(error),
        Ok(()) => Err(Violation::new(format!("{what}: an error"), "it was reported as a success")),
    }
}

/// Holds if the error is of this kind, scope and certainty.
pub(crate) fn is(
    what: &str,
    error: &PublishError,
    expected: (PublishErrorKind, PublishErrorScope, Stored),
) -> Verdict {
    let found = (error.kind, error.scope, error.stored);
    that(found == expected, format!("{what}: {expected:?}"), format!("{found:?}, {error}"))
}
