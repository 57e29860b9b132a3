//! Defines the whole contract between the proxy, which decides, and the ring, which makes the
//! system calls.
//!
//! The proxy pushes `(Token, Op)`. The ring (or the simulated kernel) carries ops out in the order
//! in which the proxy pushed them, and answers with `(Token, Event)`. The contract has no
//! descriptor, no pointer and no buffer: an op names things by index, and only the ring turns an
//! index into one of these.
//!
//! An op marked *direct* below completes at once, and the proxy gets its event within the same
//! turn. Any other op leads to events in later turns. An event with a token of an ended generation
//! must change nothing.

use std::net::{IpAddr, SocketAddr};

use config_sync::table::address::Address;
use config_sync::table::routing::{SocketId, SocketOptions};

/// The subject of an op or event: a kind, a slot of that kind, and the slot's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    pub kind: Kind,
    pub slot: u32,
    /// 24 bits. Counts the uses of the slot. Always 0 for `Kind::Socket`.
    pub generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A listening socket. The slot is the socket's `SocketId`.
    Socket,
    /// A TCP session: up to two connections, and the pipes between them.
    Session,
    /// A UDP socket towards one endpoint, or towards all endpoints; or a flow through a shared
    /// socket.
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

/// The address from which the gateway connects to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The kernel chooses.
    Any,
    /// One of this machine's own addresses.
    Local(IpAddr),
    /// A client's address (IP_TRANSPARENT, ip(7); IPV6_TRANSPARENT, ipv6(7)). The kernel chooses
    /// the port, because the client's own port may be in use towards this endpoint. Another session
    /// of this port to another listener may use the port, or a session that has just ended.
    Client(IpAddr),
}

/// How a `Move` carries bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// recv and send through the worker's scratch memory. Cheaper up to some 16 KiB a wake-up.
    Copy,
    /// splice(2) through a pooled pipe. Cheaper above some 16 KiB a wake-up.
    Splice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    // ---- Kind::Socket, TCP ----
    /// Accept until further notice. `Accepted` comes for each connection. `Stopped` comes when
    /// accepting ends by itself; the ring then accepts nothing until the next `Accept`.
    Accept,
    /// Set options that connections accepted later inherit.
    Configure(SocketOptions),
    /// TCP: turn new connections away without a reset of a connection whose handshake has begun.
    /// Hand over the waiting connections (`Accepted`), close the socket, and say `Unlistened`, the
    /// last event of this socket.
    ///
    /// UDP: stop receiving, close the socket, and say `Unlistened`. If the socket was handed over
    /// anew in the meantime, the new socket takes the place of the old one, and `Stopped` comes
    /// instead.
    Unlisten,
    /// Another process has this socket too, and goes on with it: stop accepting or receiving, and
    /// leave what comes from now on to the other process.
    ///
    /// TCP: hand over the connections that wait at this moment (`Accepted`), close the descriptor,
    /// and say `Unlistened`, the last event of this socket.
    ///
    /// UDP: say `Stopped`, and keep the socket for `SendDown` until `Unlisten`.
    Release,
    /// Close an accepted connection (`Accepted{incoming}`) with a reset. The token is that of the
    /// listening socket. *Direct*, no event.
    Refuse { incoming: u32 },

    // ---- Kind::Session ----
    /// Take an accepted connection as this session's client side, and watch that side: `Ready` from
    /// now on.
    Adopt { incoming: u32 },
    /// Take both connections of a session that another process has too, and watch both sides:
    /// `Ready` from now on. As long as this process only watches, the other one can go on. What
    /// arrived and is not attached in the same turn is closed here, without a word to the peers.
    Attach { incoming: u32 },
    /// Look at the client's bytes without taking them, at `at_least` bytes if so many have come.
    /// *Direct*: `Peeked`. Afterwards fewer than `at_least` bytes cause no `Ready`, until the first
    /// `Move` from the client.
    Peek { at_least: u32 },
    /// Connect the endpoint side, and watch that side: `Connected` or `ConnectFailed`, then
    /// `Ready`.
    ///
    /// `interface`: the number of the network interface to go through. 0: the machine's routes
    /// decide. A Unix socket has none.
    Connect { address: Address, source: Origin, interface: u32, options: SocketOptions },
    /// Give up a `Connect` that is under way. `ConnectFailed` follows, even if the connection came
    /// about.
    Abandon,
    /// Move bytes from one side to the other until would-block, budget, end or failure. *Direct*:
    /// `Moved`. Bytes held from the last `Move` of this direction go first.
    Move {
        from: Side,
        mode: Mode,
        /// Read at most this many bytes.
        budget: u32,
        /// The source has announced its end, so a short read does not mean that no byte is left.
        to_eof: bool,
    },
    /// Receive from one side into the worker's small buffers as bytes come, and give these bytes to
    /// the other side at once. `Moved` with `Stop::Drained` comes for each arrival.
    ///
    /// The ring does not watch the side during a `Stream`, so the other direction must not be
    /// blocked. A `Ready` that is on its way may still come.
    ///
    /// A `Moved` with any other stop is the end of the stream. The stream ends by itself when
    /// either direction is blocked, no buffer is free, or the source ends or fails; and it ends
    /// soon after `Unstream`. Until then, this direction gets no `Move`.
    Stream { from: Side },
    /// End a `Stream`. Has no effect on a stream that has ended.
    Unstream { from: Side },
    /// Fewer than `at_least` bytes from this side cause no `Ready`, until another `Mark`. An end or
    /// a failure always causes one. If enough bytes wait already, `Ready` comes again. *Direct*, no
    /// event.
    Mark { from: Side, at_least: u32 },
    /// A long run of bytes goes to `side`. If the congestion control of `side` paces and the peer
    /// is near, choose a congestion control that does not pace. *Direct*, no event.
    Unpace { side: Side },
    /// Receive the waiting bytes of one side, for a session that reads these bytes. *Direct*:
    /// `Taken`. Ends the raised mark of a `Peek`.
    Take {
        from: Side,
        /// Take at most this many bytes.
        at_most: u32,
        /// As in `Move`.
        to_eof: bool,
    },
    /// Send `len` bytes of the proxy's output, from `start` on, to a side. *Direct*: `Given`. This
    /// side gets no other `Give` before that event.
    Give { to: Side, start: u32, len: u32 },
    /// Ask how many bytes sent to `side` its peer's kernel has not acknowledged, because a reset
    /// may overtake these bytes. *Direct*: `Unacked`.
    Unacked { side: Side },
    /// Ask the kernel how the connection of `side` fares. *Direct*: `Inspected`.
    Inspect { side: Side },
    /// Shut down the sending half towards `side` (a FIN after the bytes sent). *Direct*, no event.
    Shutdown { side: Side },
    /// Close all connections and pipes of the session: with a reset on each side if `reset`, and
    /// otherwise with a FIN to each side that has had none.
    /// `Closed` comes when nothing is in flight, and is the last event of this token.
    Close { reset: bool },

    // ---- Kind::Socket (UDP) and Kind::Upstream ----
    /// Receive until further notice: `Datagrams`. `Stopped` comes when receiving ends by itself.
    Receive,
    /// Open an upstream socket and connect the socket. `Receive` starts receiving. *Direct*: no
    /// event, or `OpenFailed` if the socket could not be opened. The token is then free at once.
    Open { address: SocketAddr, source: Origin, interface: u32 },
    /// Open an upstream socket for all endpoints of an IP version, on a port of its own and all
    /// local addresses. Otherwise like `Open`.
    OpenShared { ipv4: bool },
    /// Send the bytes of `buffer` in as many datagrams as were received, and give the buffer back.
    /// On an upstream socket, the datagrams go to the endpoint. `SendFailed` comes for unsent
    /// datagrams.
    SendUp { buffer: BufferId, part: Part },
    /// Like `SendUp`, but on a listening socket, to a client, from `local` where that address is
    /// known. `from` is the upstream slot that received the datagrams.
    SendDown { buffer: BufferId, from: u32, peer: SocketAddr, local: Option<IpAddr> },
    /// Answer a client's own datagram: send what `part` has in its place to the client, from
    /// `local` where that address is known. The token is that of the listening socket.
    Answer { buffer: BufferId, part: Part, peer: SocketAddr, local: Option<IpAddr> },
    /// Like `SendUp`, but through the shared upstream socket in slot `via`, to an endpoint, from
    /// `local`. The token is that of the flow, in a slot that no socket has.
    SendVia { buffer: BufferId, part: Part, via: u32, peer: SocketAddr, local: IpAddr },
    /// Give a buffer back unsent. The token is the one that received the buffer. *Direct*, no
    /// event.
    Recycle { buffer: BufferId },
    /// Forward the flow of this connected socket in the kernel from now on: datagrams between
    /// `client` and `listener`, which is the address that the client sends to. Datagrams that the
    /// kernel can't forward still come as `Datagrams`. *Direct*: `Promoted`.
    Promote { client: SocketAddr, listener: SocketAddr },
    /// Ask how much the kernel has forwarded since `Promote`. *Direct*: `Carried`.
    Tally,
    /// Forward the flow in the kernel no longer. *Direct*: `Demoted`.
    Demote,
    /// Close an upstream socket. `Closed` comes when nothing is in flight, and is the last event of
    /// this token.
    CloseUpstream,
}

/// The maximum number of shared sockets, beside the upstream slots of as many flows as the limit
/// allows. All slots are below the sum.
pub const SHARED_SOCKETS: u32 = 2;

/// The datagrams of a buffer to send, and the change of each on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The datagrams before `first` already have their answer.
    pub first: u16,
    /// 0: all datagrams from `first` on.
    pub count: u16,
    /// Take this many bytes off the front of each datagram.
    pub strip: u16,
    /// Put these bytes of the turn's output in front of each datagram: start and length.
    pub head: (u32, u16),
    /// Do not give the buffer back yet, because another answer follows.
    pub more: bool,
}

/// A receive buffer of this worker, from `Datagrams` until the buffer is sent or recycled. Each
/// buffer gets exactly one of these answers. Any number of sends of parts may come before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    // ---- Kind::Socket ----
    /// A connection was accepted. The proxy must answer with `Adopt` or `Refuse` in this turn. On a
    /// Unix socket, both addresses are `UNIX_CLIENT`.
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
    /// News about one side. `ending`: the peer has sent its FIN (or worse). `failed`: the
    /// connection is broken. The flags are edges, not levels: each is said once.
    Ready {
        side: Side,
        readable: bool,
        writable: bool,
        ending: bool,
        failed: bool,
    },
    /// The first `len` waiting bytes are `bytes[start..start + len]` of the turn's byte arena. If
    /// `len` is as many as were asked for, more bytes may wait. `end`: no more bytes wait, and none
    /// will come.
    Peeked {
        start: u32,
        len: u32,
        end: bool,
    },
    /// The endpoint side is connected. The side counts as writable.
    Connected,
    /// The session has no endpoint side now. Another `Connect` may follow.
    ConnectFailed {
        why: Why,
    },
    Moved {
        from: Side,
        /// Bytes taken from the source.
        read: u32,
        /// Bytes given to the destination.
        sent: u32,
        /// Bytes taken and not yet given. The next `Move` sends these bytes first.
        held: u32,
        stop: Stop,
    },
    /// `len` bytes were taken from this side: `bytes[start..start + len]` of the turn's byte arena.
    Taken {
        from: Side,
        start: u32,
        len: u32,
        /// `Drained`, `Budget`, `Eof` (with no bytes) or `Failed`.
        stop: Stop,
    },
    /// The result of a `Give`.
    Given {
        to: Side,
        /// Bytes that the side took.
        sent: u32,
        /// Bytes that the side did not take, in the turn's byte arena as in `Taken`. The proxy
        /// keeps them.
        start: u32,
        len: u32,
        /// `Drained`: all bytes were given. Otherwise `Blocked` or `Failed`.
        stop: Stop,
    },
    /// The peer has not acknowledged `bytes` bytes. A FIN counts as one byte. Also 0 if the
    /// connection is gone.
    Unacked {
        side: Side,
        bytes: u32,
    },
    /// `bytes[start..start + len]` of the turn's byte arena are what `wire::tcp_info` reads.
    /// No bytes: the side is gone, or is no TCP connection.
    Inspected {
        side: Side,
        start: u32,
        len: u32,
    },
    Closed,

    // ---- Kind::Socket (UDP) and Kind::Upstream ----
    /// One buffer with one datagram, or with a train of datagrams of one sender. All datagrams of a
    /// train but the last have one size.
    Datagrams {
        buffer: BufferId,
        /// The sender. `None` on a connected upstream socket, where the endpoint is the sender.
        peer: Option<SocketAddr>,
        /// The destination address, on sockets bound to a wildcard address. Shared sockets are
        /// bound so.
        local: Option<IpAddr>,
        /// Payload bytes in all.
        bytes: u32,
        /// Bytes of each datagram but the last, which may be shorter.
        size: u32,
        /// Datagrams, at least 1.
        count: u32,
        /// The kernel cut the datagram or train, so the proxy must not forward it.
        truncated: bool,
    },
    /// An upstream socket could not be opened. The token is free.
    OpenFailed {
        why: Why,
    },
    /// `count` datagrams were not sent. `Why::Refused` on an upstream socket: an earlier datagram
    /// has shown that the endpoint's port is closed, and the ring tried the send again before this
    /// event.
    SendFailed {
        why: Why,
        count: u32,
    },
    /// The answer to `Promote`. `done`: the kernel forwards the flow.
    Promoted {
        done: bool,
    },
    /// The answer to `Tally`.
    Carried(Carried),
    /// The answer to `Demote`: all that the kernel has forwarded since `Promote`.
    Demoted(Carried),
    /// `count` datagrams to an endpoint go in fragments because of the head in front of each
    /// (`Part`). Without the head, each datagram would have fitted the path whole.
    Fragmented {
        count: u32,
    },
}

/// How much of a flow the kernel has forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Datagrams to the endpoint.
    pub up: u64,
    /// Payload bytes to the endpoint.
    pub bytes_up: u64,
    /// Datagrams to the client.
    pub down: u64,
    pub bytes_down: u64,
}

/// Why a `Move` stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The source has no more bytes for now. A `Ready` will come; of a `Stream`, another `Moved`.
    Drained,
    /// The destination takes no more bytes for now. A `Ready` will come.
    Blocked,
    /// The budget was used up, or a `Stream` is over. More bytes may wait.
    Budget,
    /// The source has ended, and the destination took all bytes of the source: no bytes are held.
    Eof,
    /// One side has failed. If that is the destination, the held bytes can't be delivered.
    Failed { side: Side, why: Why },
}

/// A length, or a place in a turn's bytes, as ops and events state it.
pub fn size(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a turn has less than 4 GiB")
}

impl Why {
    /// Whether the error was about a peer. Such an error is over once it was reported. An error of
    /// this machine comes again if the system call is repeated at once.
    pub fn is_of_peer(self) -> bool {
        matches!(self, Self::Refused | Self::Reset | Self::TimedOut | Self::Unreachable(_))
    }
}

/// An error of the kernel, as far as a decision depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    /// ECONNREFUSED
    Refused,
    /// ECONNRESET, EPIPE
    Reset,
    /// ETIMEDOUT
    TimedOut,
    /// ENETUNREACH, EHOSTUNREACH, ...: the errno says which
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
    /// machine does not have the address, or has no route from the address. Kernels differ in which
    /// errno means which.
    BadSource,
    /// `Abandon` was asked for
    Abandoned,
    /// Any other errno
    Other(i32),
}
