//! The whole contract between the proxy, which decides, and the ring, which does.
//!
//! The proxy pushes `(Token, Op)`; the ring (or the simulated kernel) carries ops out in the order
//! in which they were pushed, and answers with `(Token, Event)`. Nothing in here is a descriptor, a
//! pointer or a buffer: an op names things by index, and only the ring turns an index into them.
//!
//! An op either completes at once, and its event is handed to the proxy within the same turn
//! (marked *direct* below), or it leads to events in later turns. An event whose token carries a
//! generation that is over must change nothing.

use std::net::{IpAddr, SocketAddr};

use config_sync::table::routing::{SocketId, SocketOptions};

/// What an op or event is about: a kind, a slot of that kind, and the slot's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    pub kind: Kind,
    pub slot: u32,
    /// 24 bits; counts the uses of the slot. Always 0 for `Kind::Socket`.
    pub generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A listening socket; the slot is its `SocketId`.
    Socket,
    /// A TCP session: up to two connections and the pipes between them.
    Session,
    /// A UDP socket towards an endpoint, or towards all; or a flow that goes through one of these.
    Upstream,
}

impl Token {
    pub const MAX_GENERATION: u32 = (1 << 24) - 1;

    pub fn socket(id: SocketId) -> Self {
        Self { kind: Kind::Socket, slot: id.0, generation: 0 }
    }
}

/// The two connections of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    Client,
    Endpoint,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Endpoint,
            Self::Endpoint => Self::Client,
        }
    }
}

/// The address from which an endpoint is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The kernel chooses.
    Any,
    /// One of this machine's own.
    Local(IpAddr),
    /// A client's (IP_TRANSPARENT, ip(7); IPV6_TRANSPARENT, ipv6(7)). The port is the kernel's to
    /// choose: the client's own may be in use towards this endpoint, by another session of the same
    /// port to another listener, or by one that has just ended.
    Client(IpAddr),
}

/// How a `Move` carries bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// recv and send through the worker's scratch memory: cheaper up to some 16 KiB a wake-up.
    Copy,
    /// splice(2) through a pooled pipe: cheaper above.
    Splice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    // ---- Kind::Socket, TCP ----
    /// Accept until further notice. `Accepted` for each connection; `Stopped` when it ends by
    /// itself, after which nothing is accepted until `Accept` is given again.
    Accept,
    /// Set options that connections accepted later inherit.
    Configure(SocketOptions),
    /// TCP: turn new connections away without resetting any whose handshake has begun, hand over
    /// those that wait (`Accepted`), close, and say `Unlistened`, the last event of this socket.
    /// UDP: stop receiving, close, and say `Unlistened`; unless the socket was handed over anew in
    /// the meantime, which takes its place and says `Stopped`.
    Unlisten,
    /// Close a connection that was accepted (`Accepted{incoming}`) with a reset. Its token is the
    /// listening socket's. *Direct*, no event.
    Refuse { incoming: u32 },

    // ---- Kind::Session ----
    /// Take an accepted connection as this session's client side and watch it: `Ready` from now on.
    Adopt { incoming: u32 },
    /// Look at what the client has sent without taking it, at `at_least` bytes if there are so
    /// many. *Direct*: `Peeked`. Fewer than `at_least` bytes wake nobody afterwards, until the
    /// first `Move` from the client.
    Peek { at_least: u32 },
    /// Connect the endpoint side and watch it: `Connected` or `ConnectFailed`, then `Ready`.
    Connect { address: SocketAddr, source: Origin, options: SocketOptions },
    /// Give up a `Connect` that is under way. Its `ConnectFailed` follows, whatever it had become.
    Abandon,
    /// Move bytes from one side to the other until would-block, budget, end or failure. *Direct*:
    /// `Moved`. Bytes held from the last `Move` of this direction go first.
    Move {
        from: Side,
        mode: Mode,
        /// Bytes to read at the most.
        budget: u32,
        /// The source has announced its end, so a short read is not the last word.
        to_eof: bool,
    },
    /// Receive from one side into the worker's small buffers as bytes come, and give them to the
    /// other at once: `Moved` with `Stop::Drained` for each arrival. The side is not watched
    /// meanwhile (a `Ready` that is on its way may come): so not while the other direction is
    /// blocked. Ends with a `Moved` with any other stop: by itself when either direction is
    /// blocked, no buffer is free, or the source ends or fails, and soon after `Unstream`. No
    /// `Move` of this direction until then.
    Stream { from: Side },
    /// End a `Stream`. Without effect on one that has ended.
    Unstream { from: Side },
    /// Fewer than `at_least` bytes from this side wake nobody, until another `Mark`; its end, or a
    /// failure, always does. What waits already is said again if it is enough. *Direct*, no event.
    Mark { from: Side, at_least: u32 },
    /// A long run of bytes goes to `side`: if its congestion control paces and it is near, give it
    /// one that does not. *Direct*, no event.
    Unpace { side: Side },
    /// Receive what has come from one side, for a session that reads it. *Direct*: `Taken`. Ends
    /// the raised mark of a `Peek`.
    Take {
        from: Side,
        /// Bytes at the most.
        at_most: u32,
        /// As in `Move`.
        to_eof: bool,
    },
    /// Send `len` bytes of the proxy's output, from `start` on, to a side. *Direct*: `Given`. No
    /// other `Give` to this side before that.
    Give { to: Side, start: u32, len: u32 },
    /// Say how much of what `side` was sent its peer's kernel has not acknowledged: a reset may
    /// overtake that. *Direct*: `Unacked`.
    Unacked { side: Side },
    /// Shut down the sending half towards `side` (a FIN after what was sent). *Direct*, no event.
    Shutdown { side: Side },
    /// Close whatever the session has, with a reset on each side if `reset`; `Closed` once nothing
    /// is in flight: the last event of this token.
    Close { reset: bool },

    // ---- Kind::Socket (UDP) and Kind::Upstream ----
    /// Receive until further notice: `Datagrams`; `Stopped` when it ends by itself.
    Receive,
    /// Open an upstream socket and connect it; receiving is asked for with `Receive`. *Direct*:
    /// `OpenFailed` if that was not possible (the token is then free at once), else no event.
    Open { address: SocketAddr, source: Origin },
    /// Open an upstream socket for all endpoints of an IP version, on a port of its own and all
    /// local addresses; else like `Open`.
    OpenShared { ipv4: bool },
    /// Send what `buffer` holds, as as many datagrams as were received, and give the buffer back.
    /// On an upstream socket: to its endpoint. `SendFailed` for what was not sent.
    SendUp { buffer: BufferId, part: Part },
    /// The same on a listening socket, to a client, from `local` where that is known. `from` is the
    /// upstream slot that the datagrams came from.
    SendDown { buffer: BufferId, from: u32, peer: SocketAddr, local: Option<IpAddr> },
    /// The same through the shared upstream socket in slot `via`, to an endpoint, from `local`. The
    /// token is the flow's, a slot that no socket has.
    SendVia { buffer: BufferId, part: Part, via: u32, peer: SocketAddr, local: IpAddr },
    /// Give a buffer back unsent. *Direct*, no event. The token is the one it was received on.
    Recycle { buffer: BufferId },
    /// Close an upstream socket; `Closed` once nothing is in flight: the last event of this token.
    CloseUpstream,
}

/// Shared sockets that may be open beside the upstream slots of as many flows as the limit allows:
/// slots are below the sum.
pub const SHARED_SOCKETS: u32 = 2;

/// Which datagrams of a buffer are sent, and what becomes of each on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Those before it have had their answer.
    pub first: u16,
    /// 0: all that follow.
    pub count: u16,
    /// So many bytes are taken off the front of each.
    pub strip: u16,
    /// These bytes of the turn's output go in front of each: start and length.
    pub head: (u32, u16),
    /// The buffer is not given back yet: there is another answer.
    pub more: bool,
}

/// A receive buffer of this worker, from `Datagrams` until it is sent or recycled: each buffer is
/// answered with exactly one of these, and before it with any number of sends of parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    // ---- Kind::Socket ----
    /// A connection was accepted. It must be answered with `Adopt` or `Refuse` in the same turn.
    Accepted {
        incoming: u32,
        peer: SocketAddr,
        local: SocketAddr,
    },
    /// Accepting or receiving has ended by itself. `None`: the kernel gave no reason (a multishot
    /// that ran out, a zero-length datagram).
    Stopped {
        why: Option<Why>,
    },
    Unlistened,

    // ---- Kind::Session ----
    /// News about one side. `ending`: the peer has sent its FIN (or worse); `failed`: the
    /// connection is broken. Edges, not levels: each is said once.
    Ready {
        side: Side,
        readable: bool,
        writable: bool,
        ending: bool,
        failed: bool,
    },
    /// The first `len` bytes that wait are `bytes[start..start + len]` of the turn's byte arena;
    /// there may be more if these are as many as were asked for. `end`: there are not, and no more
    /// will come.
    Peeked {
        start: u32,
        len: u32,
        end: bool,
    },
    /// The endpoint side is there; it counts as writable.
    Connected,
    /// There is no endpoint side now; another `Connect` may follow.
    ConnectFailed {
        why: Why,
    },
    Moved {
        from: Side,
        /// Bytes taken from the source.
        read: u32,
        /// Bytes given to the destination.
        sent: u32,
        /// Bytes taken and not yet given: they go first in the next `Move`.
        held: u32,
        stop: Stop,
    },
    /// `len` bytes were taken from this side: `bytes[start..start + len]` of the turn's byte arena.
    Taken {
        from: Side,
        start: u32,
        len: u32,
        /// `Drained`, `Budget`, `Eof` (then there are no bytes) or `Failed`.
        stop: Stop,
    },
    /// What a `Give` has done.
    Given {
        to: Side,
        /// Bytes that the side took.
        sent: u32,
        /// Those that it did not take, in the turn's byte arena as above: they are the proxy's.
        start: u32,
        len: u32,
        /// `Drained`: all were given. Else `Blocked` or `Failed`.
        stop: Stop,
    },
    /// `bytes`, and one more for a FIN, are not acknowledged yet; 0 too if the connection is gone.
    Unacked {
        side: Side,
        bytes: u32,
    },
    Closed,

    // ---- Kind::Socket (UDP) and Kind::Upstream ----
    /// One buffer with one datagram, or with a train of datagrams of one sender of which all but
    /// the last have one size.
    Datagrams {
        buffer: BufferId,
        /// The sender; `None` on a connected upstream socket (it is the endpoint).
        peer: Option<SocketAddr>,
        /// The address it was sent to, on sockets bound to a wildcard address: shared ones are.
        local: Option<IpAddr>,
        /// Payload bytes in all.
        bytes: u32,
        /// Bytes of each datagram but the last, which may be shorter.
        size: u32,
        /// Datagrams, at least 1.
        count: u32,
        /// The kernel cut it: not to be forwarded.
        truncated: bool,
    },
    /// An upstream socket could not be had; its token is free.
    OpenFailed {
        why: Why,
    },
    /// `count` datagrams were not sent. `Why::Refused` on an upstream socket: the endpoint's port
    /// is closed, as an earlier datagram has shown; the send was tried again before this was said.
    SendFailed {
        why: Why,
        count: u32,
    },
    /// `count` datagrams to an endpoint go in fragments because of the head that was put before
    /// each (`Part`): without it, the path would have taken them whole.
    Fragmented {
        count: u32,
    },
}

/// Why a `Move` stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The source has no more for now; a `Ready` will come, or, of a `Stream`, more of the same.
    Drained,
    /// The destination takes no more for now; a `Ready` will come.
    Blocked,
    /// The budget was used up, or a `Stream` is over; there may be more.
    Budget,
    /// The source has ended, and all that it sent was given to the destination: nothing is held.
    Eof,
    /// One side has failed. What is held can't be delivered if that is the destination.
    Failed { side: Side, why: Why },
}

impl Why {
    /// Whether it was about a peer, and is over when it was said. What is about this machine is
    /// the same when it is asked again at once.
    pub fn is_of_peer(self) -> bool {
        matches!(self, Self::Refused | Self::Reset | Self::TimedOut | Self::Unreachable(_))
    }
}

/// What the kernel said, as far as anyone decides by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    /// ECONNREFUSED
    Refused,
    /// ECONNRESET, EPIPE
    Reset,
    /// ETIMEDOUT
    TimedOut,
    /// ENETUNREACH, EHOSTUNREACH, ...: which of them
    Unreachable(i32),
    /// EADDRNOTAVAIL, or EAGAIN where a source port was to be chosen
    NoPorts,
    /// EMFILE, ENFILE, or the table of registered files is full
    NoFiles,
    /// ENOBUFS, ENOMEM
    NoMemory,
    /// EAGAIN of a datagram
    Blocked,
    /// EMSGSIZE, EINVAL of a datagram
    TooBig,
    /// EINVAL, EADDRNOTAVAIL, ENETUNREACH of a datagram that states its source address: this
    /// machine does not have it, or no route from it. Kernels differ in which errno is which.
    BadSource,
    /// `Abandon` was asked for
    Abandoned,
    /// Any other errno
    Other(i32),
}
