//! One side of a session with rustls in the middle: what it takes, and what is held for it.

use crate::contract::{Side, Stop, Why};
use crate::proxy::cause::Cause;
use crate::proxy::tcp::tls_connection::Conn;
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;

/// One side.
#[derive(Debug, Default)]
pub struct Port {
    /// `None`: it speaks as it is.
    pub conn: Option<Conn>,
    /// A `Take` is under way, or waits for its turn.
    pub taking: bool,
    /// `Ready` has said that there is something to take since the last `Take`.
    pub news: bool,
    /// Its end has come, and everything before it.
    pub end: Option<End>,
    /// The `Move` that is under way from this side.
    pub moving: Option<Moving>,
    /// What it said along with its handshake's end, and the other side could not be told yet.
    pub early: Vec<u8>,
    /// A `Give` to this side is under way, or waits for its turn.
    pub giving: bool,
    /// How much of those waits for its turn.
    pub postponed: u8,
    /// To be given to this side, behind what is.
    pub held: Vec<u8>,
    /// How many bytes, unencrypted, those and what is under way stand for.
    pub plain: u32,
    /// What of that was given since the session was last told.
    pub unreported: u32,
}

/// How a side has ended. What it said before that is delivered first, whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By close_notify, or by a FIN where that is the end.
    Clean,
    /// By a FIN without close_notify, which the other side must not take for a clean end.
    Truncated,
    /// What it said is no TLS, or can't be said to the other side any more.
    Broken,
    /// Its connection has failed.
    Lost(Why),
}

#[derive(Clone, Copy, Debug)]
pub struct Moving {
    pub left: u32,
    pub to_eof: bool,
    pub read: u32,
    /// Why nothing more is taken; all was taken before that.
    pub stop: Option<Stop>,
}

impl Port {
    /// A record has begun to come.
    pub fn has_begun(&self) -> bool {
        self.conn.as_ref().is_some_and(|conn| conn.carried() > 0)
    }
}

/// A side has broken TLS.
pub fn broken(side: Side, error: &rustls::Error) -> Cause {
    reasons(side).0.because(Detail::tls(error))
}

/// Why a session ends when a side breaks TLS, and when it ends without close_notify.
pub fn reasons(side: Side) -> (CloseReason, CloseReason) {
    match side {
        Side::Client => (CloseReason::ClientTlsFailed, CloseReason::ClientTruncated),
        Side::Endpoint => (CloseReason::EndpointTlsFailed, CloseReason::EndpointTruncated),
    }
}
