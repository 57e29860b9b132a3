//! Says why a session ends: the reason, which log, metrics and API share, and its detail.

use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub reason: CloseReason,
    pub detail: Option<Detail>,
}

impl CloseReason {
    pub fn because(self, detail: impl Into<Option<Detail>>) -> Cause {
        Cause { reason: self, detail: detail.into() }
    }
}

impl From<CloseReason> for Cause {
    fn from(reason: CloseReason) -> Self {
        reason.because(None)
    }
}
