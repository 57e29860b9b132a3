//! What a session is: its state, and the few values that it copied from the table.

use std::net::SocketAddr;

use config_sync::table::routing::{
    BackendId, EndpointId, ListenerId, OnTruncation, Protocol, RouteId, SendProxy, SocketId,
    Timeouts,
};

use crate::contract::{Kind, Side, Token};
use crate::proxy::cause::Cause;
use crate::proxy::slab::NONE;
use crate::proxy::tcp::direction::Half;
use crate::proxy::tcp::tls_relay::TlsRelay;
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;

#[derive(Debug)]
pub struct Session {
    pub token: Token,
    pub state: State,
    /// What `Ready` said of the client before there was an endpoint.
    pub client_readable: bool,
    pub client_ending: bool,
    /// A `Peek` is under way, or waits for its turn.
    pub peeking: bool,
    pub socket: SocketId,
    pub protocol: Protocol,
    pub listener: Option<ListenerId>,
    pub entry: Entry,
    pub route: Option<RouteId>,
    pub backend: Option<BackendId>,
    /// The last endpoint tried.
    pub endpoint: Option<EndpointId>,
    /// It counts this session as one of its own.
    pub counted: bool,
    pub ask: Ask,
    /// The configuration leaves their congestion control to the kernel: client and endpoint.
    pub free: (bool, bool),
    pub client: SocketAddr,
    pub local: SocketAddr,
    pub server_name: Option<Box<str>>,
    pub timeouts: Timeouts,
    pub on_truncation: OnTruncation,
    pub opened: u64,
    /// When a byte last went either way.
    pub last_byte: u64,
    pub connect_micros: Option<u32>,
    /// One side or both speak TLS with the gateway.
    pub tls: Option<Box<TlsRelay>>,
    /// The header that an endpoint is sent first.
    pub send_proxy: Option<SendProxy>,
    pub proxied: Option<Box<HeaderFacts>>,
    /// What there is to say of an endpoint that was given up, or of a side that has failed.
    pub detail: Option<Box<Detail>>,
}

/// What the client sends before it is known where to.
#[derive(Clone, Copy, Debug)]
pub struct First {
    /// A PROXY header.
    pub header: bool,
    /// Behind that, what asks for TLS.
    pub request: bool,
    /// Behind that, a ClientHello.
    pub hello: bool,
}

/// How the listener's `max_sessions` counts a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Not: it was not let in.
    None,
    Full,
    /// One side has ended, so a client that comes back has a place. Who only half-closes could
    /// have any number of places then: of these there may be as many again, or [`ENDING`].
    Ending,
}

#[derive(Debug)]
pub enum State {
    /// The PROXY header is awaited.
    AwaitingProxyHeader(AwaitingProxyHeader),
    /// The ClientHello is awaited; so many bytes were asked for.
    Opening {
        asked: u32,
    },
    /// The client's request for TLS is awaited, or being answered.
    Requesting(Requesting),
    /// The TLS handshake with the client is under way.
    Greeting,
    Connecting(Connecting),
    /// The endpoint is connected, and is being sent a PROXY header.
    SendingProxyHeader(SendingProxyHeader),
    /// The endpoint is connected, and is asked for TLS.
    Asking(Asking),
    /// The endpoint is connected, and the TLS handshake with it is under way.
    Securing(Connecting),
    Relaying(Relay),
    /// The ring was told to close; `Closed` is awaited, and nothing else matters.
    Closing,
}

#[derive(Clone, Copy, Debug)]
pub struct Connecting {
    pub started: u64,
    pub timeout: u32,
    pub attempts_left: u8,
    /// The attempt was given up for this reason; its `ConnectFailed` is awaited.
    pub given_up: Option<CloseReason>,
    /// Endpoints that this client need not be sent to again.
    pub tried: [EndpointId; MAX_TRIED],
    pub tried_count: u8,
}

/// `connect_attempts` is at most 8: the last failure needs no remembering.
pub const MAX_TRIED: usize = 7;

#[derive(Debug)]
pub struct Relay {
    pub up: Half,
    pub down: Half,
    /// Who ended first.
    pub first_end: Option<Side>,
    /// Sides whose pacing has not been looked at, and may be changed: client and endpoint.
    pub paced: (bool, bool),
    /// The session is over; what was sent before is being delivered.
    pub ending: Option<Box<Ending>>,
    /// `Ready` has said that a side failed: no end may look clean any more.
    pub broken: bool,
}

/// A session that will be reset once all that its sides sent in good order has reached the other.
#[derive(Debug)]
pub struct Ending {
    pub cause: Cause,
    /// By side: its connection has failed, so it takes nothing more.
    pub gone: [bool; 2],
    /// By side: what it has not acknowledged, by the last look...
    pub unacked: [u32; 2],
    /// ...which is under way.
    pub looking: [bool; 2],
    /// When the next look is due, and how long after it another; microseconds.
    pub next: u64,
    pub pause: u64,
    /// When a side last took something.
    pub progress: u64,
}

/// Pauses between looks at what a side has not acknowledged, microseconds: each twice the one
/// before, up to the longest.
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
            // Known once the session has a slot: see `begin`.
            token: Token { kind: Kind::Session, slot: NONE, generation: 0 },
            state: State::Opening { asked: 1 },
            client_readable: false,
            client_ending: false,
            peeking: false,
            socket,
            protocol,
            listener: None,
            entry: Entry::None,
            route: None,
            backend: None,
            endpoint: None,
            counted: false,
            ask: Ask::No,
            free: (false, false),
            client,
            local,
            server_name: None,
            timeouts,
            on_truncation: OnTruncation::Reset,
            opened: now,
            last_byte: now,
            connect_micros: None,
            tls: None,
            send_proxy: None,
            proxied: None,
            detail: None,
        }
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

    /// Sides that can still be given something.
    pub fn left(&self) -> impl Iterator<Item = Side> + use<> {
        let gone = self.gone;
        [Side::Client, Side::Endpoint].into_iter().filter(move |side| !gone[*side as usize])
    }
}

/// What headers have to do with a session; few sessions have one.
#[derive(Debug, Default)]
pub struct HeaderFacts {
    /// Who sent the header.
    pub peer: Option<SocketAddr>,
    /// What the client connected to, as the header says.
    pub destination: Option<SocketAddr>,
    /// What the endpoint is told.
    pub unique_id: Option<u128>,
}

/// The client's header is awaited.
#[derive(Clone, Copy, Debug)]
pub struct AwaitingProxyHeader {
    /// So many bytes were asked for.
    pub asked: u32,
    /// Of a header that was read: what is to be taken yet.
    pub left: u32,
    /// A `Take` is under way: a second one would take what is not the header's.
    pub taking: bool,
    /// What follows.
    pub then: First,
}

impl AwaitingProxyHeader {
    pub fn new(then: First) -> Self {
        Self { asked: 1, left: 0, taking: false, then }
    }

    /// How many bytes are to be peeked at, if any.
    pub fn peeks(&self) -> Option<u32> {
        (self.left == 0).then_some(self.asked)
    }
}

/// The endpoint is being sent its header.
#[derive(Debug)]
pub struct SendingProxyHeader {
    pub connecting: Connecting,
    /// What its connection did not take yet.
    pub rest: Vec<u8>,
    /// What it has said of itself meanwhile.
    pub readable: bool,
    pub ending: bool,
}

/// A client's first words.
#[derive(Clone, Copy, Debug)]
pub struct Requesting {
    /// So many bytes were asked for.
    pub asked: u32,
    pub step: Step,
    /// It has asked for GSSAPI encryption, and may not once more.
    pub gss_refused: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Step {
    Awaited,
    /// So many bytes of the request are to be taken; then it is answered.
    Taking {
        left: u32,
        answer: u8,
        /// A `Take` is under way: a second one would take what is not the request's.
        under_way: bool,
    },
    /// The answer is under way, or waits for the client's socket.
    Answering {
        answer: u8,
        blocked: bool,
    },
}

/// An endpoint that is asked for TLS.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    pub connecting: Connecting,
    /// Bytes of the request that it was given.
    pub given: usize,
    /// A `Take` is under way: a second one would take what comes behind the answer.
    pub taking: bool,
    pub blocked: bool,
    /// It has ended: whatever it answers, no handshake can follow.
    pub ending: bool,
}

/// Whether the endpoint is asked for TLS before it is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    No,
    /// If the gateway speaks TLS with it.
    ToEncrypt,
    /// Then, and if the client's TLS passes through: the client has asked as well.
    AsAsked,
}

impl Requesting {
    pub fn new() -> Self {
        Self { asked: 1, step: Step::Awaited, gss_refused: false }
    }

    /// How many bytes are to be peeked at, if any.
    pub fn peeks(&self) -> Option<u32> {
        matches!(self.step, Step::Awaited).then_some(self.asked)
    }
}
