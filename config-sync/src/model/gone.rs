//! What becomes of an endpoint's sessions and flows when the endpoint goes down or is removed.

use crate::model::place::At;
use crate::model::time::SECOND;

#[derive(Clone, Debug, PartialEq)]
pub struct WhenGone {
    /// A failed health check, or an ejection, took the endpoint out. `None`: [`OnGone::Keep`].
    pub on_down: Option<At<OnGone>>,
    /// The configuration, or the name's addresses, no longer have the endpoint. `None`:
    /// [`OnGone::Keep`].
    pub on_removed: Option<At<OnGone>>,
    /// Milliseconds from when the endpoint is gone until its sessions and flows are closed.
    pub close_after: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnGone {
    /// Sessions and flows stay as long as both sides want.
    Keep,
    Close,
}

pub(crate) const CLOSE_AFTER: u32 = 10 * SECOND;

impl Default for WhenGone {
    fn default() -> Self {
        Self { on_down: None, on_removed: None, close_after: CLOSE_AFTER }
    }
}

impl WhenGone {
    pub(crate) fn closes_down(&self) -> bool {
        self.on_down.as_ref().is_some_and(|asked| asked.value == OnGone::Close)
    }

    pub(crate) fn closes_removed(&self) -> bool {
        self.on_removed.as_ref().is_some_and(|asked| asked.value == OnGone::Close)
    }
}
