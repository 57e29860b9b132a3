//! What the ring has of a session.

use std::net::SocketAddr;

use ringway::contract::{Side, Token};

use crate::sim::bytes::Bytes;
use crate::sim::coverage::State;
use crate::sim::tcp::conn::ConnId;

/// What the ring has of one session.
#[derive(Debug)]
pub struct Session {
    pub token: Token,
    pub client: ConnId,
    pub endpoint: Option<ConnId>,
    pub(crate) connecting: Option<Attempt>,
    /// `Abandon` was asked for and its `ConnectFailed` has not been given out.
    pub(super) abandoning: bool,
    /// The turn in which the last `Connected` or `ConnectFailed` was given out.
    pub(super) answered: Option<u64>,
    /// Taken and not yet given, by the side that they came from.
    pub(crate) held: [Bytes; 2],
    /// Directions that the proxy was told are blocked.
    pub(crate) blocked: [bool; 2],
    pub(crate) streams: [Stream; 2],
    /// Whether the direction has a pipe.
    pub(super) pipes: [bool; 2],
    pub(crate) shut: [bool; 2],
    /// The endpoint has not taken all of its header.
    pub(crate) introducing: bool,
    /// The session is over, and is waiting for what is not acknowledged.
    pub(super) delivering: bool,
    pub(crate) closing: bool,
}

impl Session {
    /// A session without an endpoint.
    pub(super) fn new(token: Token, client: ConnId) -> Self {
        Self {
            token,
            client,
            endpoint: None,
            connecting: None,
            abandoning: false,
            answered: None,
            held: Default::default(),
            blocked: [false; 2],
            streams: [Stream::Off; 2],
            pipes: [false; 2],
            shut: [false; 2],
            introducing: false,
            delivering: false,
            closing: false,
        }
    }

    pub fn state(&self) -> State {
        if self.closing {
            State::Closing
        } else if self.endpoint.is_none() {
            if self.connecting.is_some() { State::Connecting } else { State::Opening }
        } else if self.shut[0] || self.shut[1] {
            State::HalfClosed
        } else {
            State::Relaying
        }
    }

    pub(crate) fn conn(&self, side: Side) -> Option<ConnId> {
        match side {
            Side::Client => Some(self.client),
            Side::Endpoint => self.endpoint,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Attempt {
    pub(super) number: u32,
    /// Microseconds.
    pub(super) began: u64,
    pub(super) address: SocketAddr,
    pub(crate) established: Option<ConnId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Off,
    On,
    /// Its cancellation was asked for.
    Ending,
    /// The same, and the proxy knows that it has failed.
    Failed,
}

impl Stream {
    /// As far as the proxy knows.
    pub(crate) fn is_over(self) -> bool {
        matches!(self, Self::Off | Self::Failed)
    }

    pub(crate) fn is_ending(self) -> bool {
        matches!(self, Self::Ending | Self::Failed)
    }
}
