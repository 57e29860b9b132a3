//! Tells the control thread about a worker: one record per session or flow, and records about
//! tables and listening sockets.

use std::net::SocketAddr;
use std::sync::Arc;

use config_sync::table::moving::{FlowFigures, Moving, MovingFlow};
use config_sync::table::request::Handle;
use config_sync::table::routing::{
    BackendId, EndpointId, ListenerId, Protocol, RouteId, RoutingTable, SocketId,
};

use crate::contract::Token;
use crate::stats::detail::Detail;
use crate::stats::tls_facts::TlsFacts;

#[derive(Debug)]
pub enum Record {
    Opened(SessionRecord),
    Closed(SessionRecord),
    /// The worker has applied the table of this generation. The worker hands back the previous
    /// table, and the control thread drops that table.
    Applied {
        generation: u64,
        previous: Arc<RoutingTable>,
    },
    /// A table that a leaving socket kept alive. The control thread drops this table.
    Retired(Arc<RoutingTable>),
    /// This worker has closed its socket of a listener that left the table.
    Unlistened(SocketId),
    /// The answer to a request.
    Reply(Reply),
}

/// One access-log line. Times are microseconds of the worker's clock.
#[derive(Clone, Debug)]
pub struct SessionRecord {
    /// `None`: the client was turned away before there was a session or flow.
    pub handle: Option<Handle>,
    /// The protocol of the listening socket, which is known for each session.
    pub protocol: Protocol,
    pub socket: SocketId,
    /// `None`: no listener matched the server name, or the client sent no server name yet.
    pub listener: Option<ListenerId>,
    pub route: Option<RouteId>,
    pub backend: Option<BackendId>,
    pub endpoint: Option<EndpointId>,
    /// The client's address. A PROXY header overrides the address of the connection.
    pub client: SocketAddr,
    /// The sender of the PROXY header.
    pub peer: Option<SocketAddr>,
    /// The id that the gateway's own PROXY header told the endpoint.
    pub unique_id: Option<u128>,
    pub local: SocketAddr,
    pub server_name: Option<Box<str>>,
    /// Of a client's TLS that ends here.
    pub tls: Option<Box<TlsFacts>>,
    /// Bytes from the client that the endpoint's socket took, and bytes the other way.
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub opened: u64,
    pub closed: u64,
    /// Microseconds that the connection to the endpoint took. `None`: there was no connection.
    pub connect: Option<u32>,
    /// Whether the session ended without an endpoint.
    pub refused: bool,
    /// `None` in `Record::Opened`.
    pub reason: Option<CloseReason>,
    pub detail: Option<Detail>,
    /// Rejections of this worker for this reason that were counted but not logged since the last
    /// line of such a rejection.
    pub suppressed: u32,
}

impl SessionRecord {
    /// Makes a record with the facts that are known of each connection and datagram.
    pub fn new(
        protocol: Protocol,
        socket: SocketId,
        (client, local): (SocketAddr, SocketAddr),
        opened: u64,
        now: u64,
    ) -> Self {
        Self {
            handle: None,
            protocol,
            socket,
            listener: None,
            route: None,
            backend: None,
            endpoint: None,
            client,
            peer: None,
            unique_id: None,
            local,
            server_name: None,
            tls: None,
            bytes_up: 0,
            bytes_down: 0,
            opened,
            closed: now,
            connect: None,
            refused: false,
            reason: None,
            detail: None,
            suppressed: 0,
        }
    }

    /// Adds this many microseconds to each time.
    pub fn shift(&mut self, by: u64) {
        self.opened += by;
        self.closed += by;
    }
}

/// The answer to one request.
#[derive(Debug, Default)]
pub struct Reply {
    /// The request's number.
    pub number: u64,
    pub entries: Vec<Entry>,
    /// How the client's and the endpoint's connection fare, if that was asked: the bytes that
    /// `wire::tcp_info` reads.
    pub sides: [Option<Box<[u8]>>; 2],
    /// The number of sessions or flows that were closed.
    pub killed: u32,
    /// Endpoints that come last, each with the microseconds for which it does.
    pub resting: Vec<(EndpointId, u64)>,
    /// The slot from which the list goes on. `None`: the list is at its end.
    pub next: Option<u32>,
    /// Still sessions, for another process.
    pub offered: Vec<Offered>,
    /// The number of sessions that pause, and will be still or go on.
    pub pausing: u32,
    /// Flows, for another process.
    pub flows: Vec<OfferedFlow>,
    /// Still flows, and what they have carried.
    pub settled: Vec<(Handle, FlowFigures)>,
    /// Sessions or flows of another process, in their order: those that were adopted.
    pub adopted: Vec<Option<Handle>>,
}

/// A still session, which another process may go on with.
#[derive(Debug)]
pub struct Offered {
    pub handle: Handle,
    pub moving: Moving,
}

/// A flow that another process may go on with.
#[derive(Debug)]
pub struct OfferedFlow {
    pub handle: Handle,
    pub moving: MovingFlow,
    /// The flow's socket.
    pub upstream: Token,
}

/// A session or flow that lived when the worker looked at its slot.
#[derive(Debug)]
pub struct Entry {
    pub handle: Handle,
    /// `closed` is when the worker looked.
    pub record: SessionRecord,
    pub state: &'static str,
    /// When a byte or datagram last went either way, in microseconds of the worker's clock.
    pub last: u64,
}

/// The words of all states of [`Entry`]: of sessions, and of flows.
pub const SESSION_STATES: &[&str] = &[
    "awaiting_proxy_header",
    "awaiting_hello",
    "awaiting_starttls",
    "tls_handshake",
    "delayed",
    "queued",
    "connecting",
    "sending_proxy_header",
    "asking_starttls",
    "endpoint_tls_handshake",
    "relaying",
    "half_closed",
    "ending",
];
pub const FLOW_STATES: &[&str] = &["unanswered", "answered", "in_kernel"];

/// Declares each reason once: the variant, the one word for the reason everywhere, the meaning.
macro_rules! words {
    ($(#[$enum_doc:meta])* $name:ident { $($variant:ident = $word:literal: $doc:literal,)* }) => {
        $(#[$enum_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $(#[doc = $doc] $variant,)*
        }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            pub const COUNT: usize = Self::ALL.len();

            /// The word that log, metrics and API use.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }

            /// The meaning of the reason, for help texts and documentation.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $doc,)*
                }
            }
        }
    };
}

words! {
    /// Why a session or flow ended, or was never begun. Every close has exactly one.
    CloseReason {
        ClientFin = "client_fin": "Both directions ended cleanly; the client ended first.",
        EndpointFin = "endpoint_fin": "Both directions ended cleanly; the endpoint ended first.",
        ClientReset = "client_reset": "The client reset the connection.",
        EndpointReset = "endpoint_reset": "The endpoint reset the connection.",
        ClientTimedOut = "client_timed_out":
            "The kernel gave the client up (keepalive, user timeout, retransmission).",
        EndpointTimedOut = "endpoint_timed_out":
            "The kernel gave the endpoint up (keepalive, user timeout, retransmission).",
        ClientError = "client_error": "Another error on the client's connection.",
        EndpointError = "endpoint_error": "Another error on the endpoint's connection.",
        IdleTimeout = "idle_timeout": "No byte either way for `idle_timeout`.",
        HalfCloseTimeout = "half_close_timeout":
            "One direction had ended, and no byte came the other way for `half_close_timeout`.",
        ClientStalled = "client_stalled":
            "The client took no byte for `write_stall_timeout` while some waited for it.",
        EndpointStalled = "endpoint_stalled":
            "The endpoint took no byte for `write_stall_timeout` while some waited for it.",
        MaxLifetime = "max_lifetime": "The session reached `max_lifetime`.",
        ProxyTimeout = "proxy_timeout":
            "No whole PROXY header from a source in `accept_proxy` within `hello_timeout`.",
        ProxyInvalid = "proxy_invalid":
            "What a source in `accept_proxy` sent first is no valid PROXY header.",
        ProxyMissing = "proxy_missing":
            "With `accept_proxy.only`: the connection came from no source in `accept_proxy`.",
        HelloTimeout = "hello_timeout":
            "No whole ClientHello came within `hello_timeout`. A listener with `silent` gives this \
             reason only if a ClientHello had begun.",
        HelloInvalid = "hello_invalid":
            "The client sent no TLS ClientHello. A listener with `not_tls` gives this reason only \
             if the first bytes were those of one.",
        HelloTooLarge = "hello_too_large": "The ClientHello is larger than 64 KiB.",
        StarttlsMissing = "starttls_missing":
            "With `starttls` and without `not_tls`: the client went on without TLS.",
        StarttlsCancel = "starttls_cancel":
            "A PostgreSQL CancelRequest, which has no server name, and there are several listeners \
             or routes that it may mean; or the listener wants clients' certificates.",
        StarttlsEarly = "starttls_early":
            "Bytes came behind the client's request for TLS before it was answered.",
        HandshakeTimeout = "handshake_timeout":
            "The client's TLS handshake was not over within `hello_timeout`.",
        ClientTlsFailed = "client_tls_failed":
            "The client's TLS handshake failed, or what it sent later is no valid TLS.",
        EndpointTlsFailed = "endpoint_tls_failed":
            "The TLS handshake failed with every endpoint that was tried (certificates, say), or \
             what one sent later is no valid TLS.",
        EndpointStarttlsFailed = "endpoint_starttls_failed":
            "The last endpoint that was tried was asked for TLS (SSLRequest), and did not answer \
             with `S` alone.",
        ClientTruncated = "client_truncated":
            "The client ended its connection without the end of TLS (close_notify).",
        EndpointTruncated = "endpoint_truncated":
            "The endpoint ended its connection without the end of TLS (close_notify).",
        TlsKeysExhausted = "tls_keys_exhausted":
            "A connection of TLS 1.2 was sent as many records as its keys are good for (2^24 with \
             AES-GCM).",
        NoCertificate = "no_certificate":
            "The listener has no certificate for the client's server name, and no default.",
        SourceDenied = "source_denied":
            "The listener or route does not admit the client's address (`allow`, `deny`).",
        ClientGone = "client_gone": "The client left before there was an endpoint for it.",
        UnknownServerName = "unknown_server_name":
            "No listener or route has the client's server name, or it sent none.",
        NoRoute = "no_route":
            "The listener has no route, or none for the client's address or protocols (`alpn`).",
        NoBackend = "no_backend": "The route has no backend with a weight above 0.",
        NoEndpoint = "no_endpoint":
            "The backend whose turn it was has no endpoint (`on_unavailable` of the route).",
        EndpointsFull = "endpoints_full":
            "Every endpoint of the backend that could be picked has its `max_sessions`, or gets \
             sessions as fast as its limit allows.",
        QueueTimeout = "queue_timeout":
            "The session waited for a place at an endpoint for `queue_timeout`.",
        ConnectFailed = "connect_failed":
            "No endpoint of the backend could be connected to within `connect_attempts`.",
        ConnectTimeout = "connect_timeout":
            "The last connection attempt took longer than `connect_timeout`.",
        SessionLimit = "session_limit": "The worker's session or flow table is full.",
        ListenerLimit = "listener_limit": "The listener has reached `max_sessions`.",
        Limit = "limit":
            "The listener, route or backend has as many sessions as its `limit` allows, or gets \
             them too fast; or the process has `limits.total_sessions`. The detail says which.",
        Overload = "overload":
            "The memory that the process may use is nearly used up (`limits.memory_percent`).",
        CrowdedOut = "crowded_out":
            "The client had not said where to go (ClientHello, PROXY header, handshake), and made \
             room for a new one. (1) The worker's session table, or `limits.total_sessions`, was \
             nearly full, and this client had waited longest. (2) Such clients of this address had \
             half of the worker's session table, and this client had waited longest of them. (3) \
             The listener had nearly all its sessions, and this handshake had taken longest. (4) \
             The client's source had more such clients than it may have sessions. With `over = \
             \"delay\"`: (5) as (1), but nobody had been silent for long, and this client came \
             last of those who waited for their listener's limit.",
        SourceLimit = "source_limit":
            "The client's source has as many sessions as it may have, or opens them too fast \
             (`limit_source`).",
        LocalLimit = "local_limit":
            "This machine had no source port or address, file or memory for the connection.",
        Drained = "drained":
            "Closed at shutdown after `drain_timeout`, or a flow that was silent while draining.",
        Stopped = "stopped": "Closed at once by a second SIGTERM.",
        Killed = "killed": "Closed by an operator (`ringway kill`).",
        FlowTimeout = "flow_timeout": "No datagram either way for `flow_timeout`.",
        FlowAnswered = "flow_answered": "The flow had its `responses` for every datagram.",
        FlowUnanswered = "flow_unanswered":
            "No answer ever came, the client was silent for 2 s, and flows or sockets were nearly \
             used up.",
        EndpointDown = "endpoint_down": "The endpoint went down, with `on_down = \"close\"`.",
        EndpointRemoved = "endpoint_removed":
            "The endpoint is no longer configured, with `on_removed = \"close\"`; or a flow's \
             endpoint left the table and there was no other.",
    }
}

words! {
    /// Why the kernel forwards a flow no longer.
    Demotion {
        Configuration = "configuration":
            "A new configuration has turned `fast_path` off, or asks for something that only \
             workers do, as a limit of bytes.",
        Draining = "draining": "The listener has left the table.",
        EndpointGone = "endpoint_gone": "The endpoint has left the table.",
        EndpointRefused = "endpoint_refused":
            "The endpoint's port is closed (ICMP port unreachable).",
        OneSided = "one_sided": "One side went on for seconds while the other was silent.",
        Upgrade = "upgrade": "The flow goes to another process.",
        Ended = "ended": "The flow has ended.",
    }
}

words! {
    /// Why a datagram was not forwarded.
    DropReason {
        NoRoute = "no_route":
            "The listener has no route, none for the client's address, or no backend with a weight \
             above 0.",
        SourceDenied = "source_denied":
            "The listener or route does not admit the client's address (`allow`, `deny`).",
        NoEndpoint = "no_endpoint": "The backend whose turn it was has no endpoint.",
        EndpointsFull = "endpoints_full":
            "Every endpoint of the backend that could be picked has its `max_sessions`, or gets \
             flows as fast as its limit allows.",
        SourceLimit = "source_limit":
            "The client's source has as many flows as it may have, or opens them, sends or is sent \
             too fast (`limit_source`).",
        FlowLimit = "flow_limit":
            "The worker's flow table or the listener's `max_sessions` is full.",
        Limit = "limit":
            "The listener, route or backend has as many flows as its `limit` allows, or gets them \
             or bytes too fast; or the process has `limits.total_sessions`.",
        Overload = "overload":
            "The memory that the process may use is nearly used up (`limits.memory_percent`), and \
             the datagram would have begun a flow.",
        NewFlows = "new_flows":
            "More flows were to begin than the worker can begin beside its work for those that \
             live, in a flood that lasts.",
        NoSocket = "no_socket":
            "No upstream socket: source ports, files or resting sockets ran out.",
        NoSource = "no_source":
            "Shared upstream sockets: the endpoint has a flow from every address of `source`.",
        ProxyInvalid = "proxy_invalid":
            "What a source in `accept_proxy` sent does not begin with a valid PROXY header.",
        ProxyMissing = "proxy_missing":
            "With `accept_proxy.only`: the datagram came from no source in `accept_proxy`.",
        DnsInvalid = "dns_invalid":
            "With `dns_guard`: the datagram is a response, or is no whole query of DNS.",
        DnsAny = "dns_any": "With `dns_guard`: a question for all types of records (ANY).",
        DnsTruncated = "dns_truncated":
            "With `dns_guard`: the client's source is over its `limit_source`, and was answered \
             that it should come over TCP.",
        Truncated = "truncated": "The kernel cut the datagram or train.",
        EndpointRefused = "endpoint_refused":
            "The endpoint's port is closed (ICMP port unreachable).",
        Blocked = "blocked": "A send buffer was full.",
        TooBig = "too_big": "Larger than the path takes.",
        BadSource = "bad_source":
            "The address to send it from is not one of this machine's, or has no route.",
        SendFailed = "send_failed": "Another send error.",
        Draining = "draining":
            "A new client of a listener that has left the table; in an upgrade to another number \
             of workers, also a datagram that waited.",
    }
}
