//! Says why a session ends: the reason, which log, metrics and API share, and its detail.

use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;
use crate::wire::alert::Alert;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub reason: CloseReason,
    pub detail: Option<Detail>,
    /// What a client is told that has sent a ClientHello and got no byte yet.
    pub alert: Option<Alert>,
}

impl Cause {
    pub fn telling(self, alert: Alert) -> Self {
        Self { alert: Some(alert), ..self }
    }
}

impl CloseReason {
    pub fn because(self, detail: impl Into<Option<Detail>>) -> Cause {
        Cause { reason: self, detail: detail.into(), alert: None }
    }
}

impl From<CloseReason> for Cause {
    fn from(reason: CloseReason) -> Self {
        reason.because(None)
    }
}
