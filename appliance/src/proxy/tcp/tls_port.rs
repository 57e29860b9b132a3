//! Holds one side of a session with rustls in the middle: its `Take`s, and the bytes for it.

use crate::contract::{Side, Stop, Why};
use crate::proxy::cause::Cause;
use crate::proxy::tcp::tls_connection::Conn;
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;

/// One side.
#[derive(Debug, Default)]
pub struct Port {
    /// `None`: this side speaks without TLS.
    pub conn: Option<Conn>,
    /// A `Take` is under way, or waits for its turn.
    pub taking: bool,
    /// `Ready` has reported bytes to take since the last `Take`.
    pub news: bool,
    /// The end of this side has come, and all bytes before that end.
    pub end: Option<End>,
    /// The `Move` that is under way from this side.
    pub moving: Option<Moving>,
    /// Bytes that came with the end of this side's handshake, and that the other side could not get
    /// yet.
    pub early: Vec<u8>,
    /// A `Give` to this side is under way, or waits for its turn.
    pub giving: bool,
    /// How many steps of this side wait for their turn.
    pub postponed: u8,
    /// Bytes for this side, to be given behind the bytes under way.
    pub held: Vec<u8>,
    /// How many unencrypted bytes `held` and the bytes under way stand for.
    pub plain: u32,
    /// How many of those were given since the session was last told.
    pub unreported: u32,
}

/// How a side has ended. In each case, the bytes before the end are delivered first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By close_notify, or by a FIN where a FIN is the end.
    Clean,
    /// By a FIN without close_notify, which the other side must not take for a clean end.
    Truncated,
    /// The bytes of this side are no TLS, or the other side can't be sent them any more.
    Broken,
    /// The connection of this side has failed.
    Lost(Why),
}

/// The result that the session must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Nothing,
    /// The handshake that was under way is over.
    Greeted,
    /// As `Event::Moved`. Bytes given are counted unencrypted.
    Moved {
        from: Side,
        read: u32,
        sent: u32,
        held: u32,
        stop: Stop,
    },
    /// The `Move` and the session are over, and all bytes that came before were given. After
    /// `Truncated` the other direction can still be moved. After `Broken` nothing can.
    Truncated {
        from: Side,
        read: u32,
        sent: u32,
    },
    Broken {
        from: Side,
        read: u32,
        sent: u32,
        cause: Cause,
    },
    /// A handshake has failed.
    Failed(Cause),
}

#[derive(Clone, Copy, Debug)]
pub struct Moving {
    pub left: u32,
    pub to_eof: bool,
    pub read: u32,
    /// Why no more bytes are taken. All bytes before that were taken.
    pub stop: Option<Stop>,
}

impl Port {
    /// Whether a record has begun to come.
    pub fn has_begun(&self) -> bool {
        self.conn.as_ref().is_some_and(|conn| conn.carried() > 0)
    }
}

/// Details for a handshake that the peer leaves, and for a resumed session that comes too late.
pub const CUT_SHORT: &str = "the connection ended within the handshake";
pub const STALE: &str =
    "the certificate of the session that it resumes, or a revocation list, has ended";

/// The cause when a side breaks TLS.
pub fn broken(side: Side, error: &rustls::Error) -> Cause {
    reasons(side).0.because(Detail::tls(error))
}

/// The reasons of a session in which a side breaks TLS, or ends without close_notify.
pub fn reasons(side: Side) -> (CloseReason, CloseReason) {
    match side {
        Side::Client => (CloseReason::ClientTlsFailed, CloseReason::ClientTruncated),
        Side::Endpoint => (CloseReason::EndpointTlsFailed, CloseReason::EndpointTruncated),
    }
}
