//! What a check finds: [`Finding`].

use std::fmt;

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Works, but not as well or as safely as it could.
    Warning,
    /// A guarantee would not hold, or nothing would work. `outbox relay` refuses to start;
    /// [`Relay::run`](crate::Relay::run) does not ask, so that a service decides itself what it does about
    /// it.
    Error,
}

/// One thing that `check` found wrong, with its remedy. All findings are reported at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A stable word for programs, such as `missing-table`.
    pub code: &'static str,
    /// What is wrong, with which object.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    /// A finding of [`Severity::Error`].
    pub fn error(code: &'static str, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code, problem: problem.into(), remedy: remedy.into() }
    }

    /// A finding of [`Severity::Warning`].
    pub fn warning(code: &'static str, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, code, problem: problem.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity} [{}]: {}; {}", self.code, self.problem, self.remedy)
    }
}
