//! Holds the state of a session, and the few values that a session copied from the table.

use std::net::SocketAddr;

use config_sync::table::routing::{
    BackendId, EndpointId, ListenerId, OnTruncation, Protocol, RouteId, SendProxy, SocketId,
    Timeouts,
};
use config_sync::table::source_limit::SourceRecord;

use crate::contract::{Kind, Side, Token};
use crate::proxy::cause::Cause;
use crate::proxy::held::Held;
use crate::proxy::slab::NONE;
use crate::proxy::tcp::direction::Half;
use crate::proxy::tcp::tls_relay::TlsRelay;
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;

#[derive(Debug)]
pub struct Session {
    pub token: Token,
    pub state: State,
    /// `Ready` events of the client before there was an endpoint.
    pub client_readable: bool,
    pub client_ending: bool,
    /// A `Peek` is under way, or waits for its turn.
    pub peeking: bool,
    pub socket: SocketId,
    pub protocol: Protocol,
    pub listener: Option<ListenerId>,
    pub entry: Entry,
    /// The record of the client's source, if the listener limits sources.
    pub source: Option<SourceRecord>,
    /// The places within the limits of process, listener, route and backend.
    pub held: Held,
    pub route: Option<RouteId>,
    pub backend: Option<BackendId>,
    /// Backends of the route that had no endpoint for this session.
    pub failed_backends: Box<[BackendId]>,
    /// The last endpoint tried.
    pub endpoint: Option<EndpointId>,
    /// Whether the endpoint counts this session as one of its own.
    pub counted: bool,
    pub ask: Ask,
    /// The client has sent PostgreSQL's StartupMessage without TLS, so it understands an
    /// ErrorResponse.
    pub startup: bool,
    /// The client has sent a ClientHello, so it understands alerts of TLS.
    pub greeted: bool,
    /// Whether the configuration leaves congestion control to the kernel: of client and endpoint.
    pub free: (bool, bool),
    pub client: SocketAddr,
    pub local: SocketAddr,
    pub server_name: Option<Box<str>>,
    pub timeouts: Timeouts,
    pub on_truncation: OnTruncation,
    pub opened: u64,
    /// The log has the line of the session's beginning.
    pub log_has_open: bool,
    /// When a byte last went either way.
    pub last_byte: u64,
    pub connect_micros: Option<u32>,
    /// Set if one side or both speak TLS with the gateway.
    pub tls: Option<Box<TlsRelay>>,
    /// The settings of the header that an endpoint gets first.
    pub send_proxy: Option<SendProxy>,
    pub proxied: Option<Box<HeaderFacts>>,
    /// Details about an endpoint that was given up, or about a side that has failed.
    pub detail: Option<Box<Detail>>,
}

/// What the client sends before its destination is known.
#[derive(Clone, Copy, Debug)]
pub struct First {
    /// Nothing counts: only proxies may come in, and the client is none.
    pub barred: bool,
    /// A PROXY header.
    pub header: bool,
    /// Behind the header, a request for TLS.
    pub request: bool,
    /// Behind the request, a ClientHello.
    pub hello: bool,
}

/// How the listener's `max_sessions` counts a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The session is not counted, because the client was not let in.
    None,
    Full,
    /// One side has ended, so a client that comes back has a place. A client could otherwise gain
    /// any number of places by closing only half of each session. So at most `max_sessions`
    /// sessions may be `Ending`, or `places::ENDING` if that is more.
    Ending,
}

#[derive(Debug)]
pub enum State {
    /// The session waits for the PROXY header.
    AwaitingProxyHeader(AwaitingProxyHeader),
    /// The session waits for the ClientHello.
    Opening {
        /// The session has asked for this many bytes.
        asked: u32,
        /// The client has found the listener full, and waits for a handshake to make room.
        again: bool,
    },
    /// The session waits for the client's request for TLS, or answers the request.
    Requesting(Requesting),
    /// The TLS handshake with the client is under way.
    Greeting,
    /// The listener's limit delays, and the session waits for a place.
    Delayed,
    /// Every endpoint is full, and the session waits for a place.
    Waiting(InLine),
    Connecting(Connecting),
    /// The endpoint is connected, and the session sends a PROXY header to the endpoint.
    SendingProxyHeader(SendingProxyHeader),
    /// The endpoint is connected, and the session asks the endpoint for TLS.
    Asking(Asking),
    /// The endpoint is connected, and the TLS handshake with the endpoint is under way.
    Securing(Connecting),
    Relaying(Relay),
    /// The session has told the ring to close, waits for `Closed`, and ignores all else.
    Closing,
}

impl State {
    pub const OPENING: Self = Self::Opening { asked: 1, again: false };
}

#[derive(Clone, Copy, Debug)]
pub struct InLine {
    pub connecting: Connecting,
    /// The session's ticket in the line of its backend.
    pub ticket: u64,
    pub since: u64,
    pub timeout: u32,
}

#[derive(Clone, Copy, Debug)]
pub struct Connecting {
    pub started: u64,
    pub timeout: u32,
    pub attempts_left: u8,
    /// The attempt was given up for this reason. The session waits for the attempt's
    /// `ConnectFailed`.
    pub given_up: Option<CloseReason>,
    /// Endpoints that failed for this client, and that need not be tried again.
    pub tried: [EndpointId; MAX_TRIED],
    pub tried_count: u8,
}

/// `connect_attempts` is at most 8, and the last failure needs no remembering.
pub const MAX_TRIED: usize = 7;

#[derive(Debug)]
pub struct Relay {
    pub up: Half,
    pub down: Half,
    /// The side that ended first.
    pub first_end: Option<Side>,
    /// Sides whose pacing may be changed, and was not looked at yet: client and endpoint.
    pub paced: (bool, bool),
    /// Set if the session is over and the earlier bytes are still being delivered.
    pub ending: Option<Box<Ending>>,
    /// By side: `Ready` has reported that it failed, so no end may look clean any more.
    pub failed: [bool; 2],
    /// How the session goes on if the endpoint refuses it. `None`: it has nothing to refuse.
    pub retry: Option<Box<Connecting>>,
    pub pause: Pause,
}

/// Whether a session moves no bytes because it goes from one process to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    No,
    /// By side: nothing new is received from it, because the other side does not take what is held.
    /// The other direction goes on.
    Emptying([bool; 2]),
    /// Nothing new is received, and what is held goes out.
    Begun,
    /// No byte is in the gateway. Two processes have the connections, and neither receives: this
    /// one may give them away.
    Offered,
    /// The same, and the session is another process's until that one has let go. It counts nowhere
    /// yet. `ending`: it has begun to end.
    Arrived {
        ending: bool,
    },
}

/// A session that will be reset when each side has received all bytes that the other side sent in
/// good order.
#[derive(Debug)]
pub struct Ending {
    pub cause: Cause,
    /// By side: the connection has failed, so the side takes no more bytes.
    pub gone: [bool; 2],
    /// By side: the bytes that the side had not acknowledged at the last look.
    pub unacked: [u32; 2],
    /// By side: a look is under way.
    pub looking: [bool; 2],
    /// When the next look is due, and the pause between that look and the one after; microseconds.
    pub next: u64,
    pub pause: u64,
    /// When a side last took a byte or acknowledged one.
    pub progress: u64,
}

/// The first pause between looks at unacknowledged bytes, in microseconds. Each pause is twice the
/// one before, up to `LAST_LOOK`.
pub const FIRST_LOOK: u64 = 1_000;

impl Session {
    pub fn new(
        (socket, protocol): (SocketId, Protocol),
        client: SocketAddr,
        local: SocketAddr,
        now: u64,
        timeouts: Timeouts,
    ) -> Self {
        Self {
            // The token is known when the session has a slot: see `begin`.
            token: Token { kind: Kind::Session, slot: NONE, generation: 0 },
            state: State::OPENING,
            client_readable: false,
            client_ending: false,
            peeking: false,
            socket,
            protocol,
            listener: None,
            entry: Entry::None,
            source: None,
            held: Held::default(),
            route: None,
            backend: None,
            failed_backends: Box::default(),
            endpoint: None,
            counted: false,
            ask: Ask::No,
            startup: false,
            greeted: false,
            free: (false, false),
            client,
            local,
            server_name: None,
            timeouts,
            on_truncation: OnTruncation::Reset,
            opened: now,
            log_has_open: false,
            last_byte: now,
            connect_micros: None,
            tls: None,
            send_proxy: None,
            proxied: None,
            detail: None,
        }
    }
}

impl Relay {
    pub fn new(up: Half, down: Half) -> Self {
        Self {
            up,
            down,
            first_end: None,
            paced: (false, false),
            ending: None,
            failed: [false; 2],
            retry: None,
            pause: Pause::No,
        }
    }

    /// Whether nothing new is received from a side.
    #[inline]
    pub fn is_paused(&self, from: Side) -> bool {
        match self.pause {
            Pause::No => false,
            Pause::Emptying(sides) => sides[from as usize],
            Pause::Begun | Pause::Offered | Pause::Arrived { .. } => true,
        }
    }

    /// Two processes have the connections, and it is not clear yet whose they are.
    pub fn is_shared(&self) -> bool {
        matches!(self.pause, Pause::Offered | Pause::Arrived { .. })
    }
}

impl Session {
    pub fn is_shared(&self) -> bool {
        matches!(&self.state, State::Relaying(relay) if relay.is_shared())
    }
}

impl Connecting {
    pub fn new(attempts: u8) -> Self {
        Self {
            started: 0,
            timeout: 0,
            attempts_left: attempts,
            given_up: None,
            tried: [EndpointId(u32::MAX); MAX_TRIED],
            tried_count: 0,
        }
    }
}

impl Ending {
    pub fn new(cause: Cause, now: u64) -> Self {
        Self {
            cause,
            gone: [false; 2],
            unacked: [0; 2],
            looking: [false; 2],
            next: u64::MAX,
            pause: FIRST_LOOK,
            progress: now,
        }
    }

    /// The sides that can still take bytes.
    pub fn left(&self) -> impl Iterator<Item = Side> + use<> {
        let gone = self.gone;
        [Side::Client, Side::Endpoint].into_iter().filter(move |side| !gone[*side as usize])
    }
}

/// The facts of a session that are about PROXY headers. Few sessions have such facts.
#[derive(Debug, Default)]
pub struct HeaderFacts {
    /// The sender of the client's header.
    pub peer: Option<SocketAddr>,
    /// The address that the client connected to, as the header says.
    pub destination: Option<SocketAddr>,
    /// The id that the gateway's header tells the endpoint.
    pub unique_id: Option<u128>,
}

/// The session waits for the client's header.
#[derive(Clone, Copy, Debug)]
pub struct AwaitingProxyHeader {
    /// The number of bytes asked for.
    pub asked: u32,
    /// Bytes of a read header that are still to be taken.
    pub left: u32,
    /// A `Take` is under way. A second one would take bytes behind the header.
    pub taking: bool,
    /// The client's bytes behind the header.
    pub then: First,
}

impl AwaitingProxyHeader {
    pub fn new(then: First) -> Self {
        Self { asked: 1, left: 0, taking: false, then }
    }

    /// How many bytes to peek at, if any.
    pub fn peeks(&self) -> Option<u32> {
        (self.left == 0).then_some(self.asked)
    }
}

/// The session sends a header to the endpoint.
#[derive(Debug)]
pub struct SendingProxyHeader {
    pub connecting: Connecting,
    /// Bytes that the endpoint's connection did not take yet.
    pub rest: Vec<u8>,
    /// News of the endpoint in the meantime.
    pub readable: bool,
    pub ending: bool,
}

/// The session waits for a client's request for TLS.
#[derive(Clone, Copy, Debug)]
pub struct Requesting {
    /// The number of bytes asked for.
    pub asked: u32,
    pub step: Step,
    /// The client has asked for GSSAPI encryption, and may not ask again.
    pub gss_refused: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Step {
    Awaited,
    /// This many bytes of the request are to be taken. Then the request is answered.
    Taking {
        left: u32,
        answer: u8,
        /// A `Take` is under way. A second one would take bytes behind the request.
        under_way: bool,
    },
    /// The answer is under way, or waits for the client's socket.
    Answering {
        answer: u8,
        blocked: bool,
    },
}

/// The session asks an endpoint for TLS.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    pub connecting: Connecting,
    /// Bytes of the request that the endpoint was given.
    pub given: usize,
    /// A `Take` is under way. A second one would take bytes behind the answer.
    pub taking: bool,
    pub blocked: bool,
    /// The endpoint has ended, so no handshake can follow any answer.
    pub ending: bool,
}

/// Whether the endpoint is asked for TLS before a handshake with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    No,
    /// Ask if the gateway speaks TLS with the endpoint.
    ToEncrypt,
    /// Ask in that case, and also if the client's TLS passes through, because the client has asked
    /// too.
    AsAsked,
}

impl Default for Requesting {
    fn default() -> Self {
        Self { asked: 1, step: Step::Awaited, gss_refused: false }
    }
}

impl Requesting {
    /// How many bytes to peek at, if any.
    pub fn peeks(&self) -> Option<u32> {
        matches!(self.step, Step::Awaited).then_some(self.asked)
    }
}
