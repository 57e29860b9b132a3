//! What the proxy says of itself, against what the kernel has seen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::AddAssign as _;
use std::sync::Arc;

use config_sync::table::address::UNIX_CLIENT;
use config_sync::table::request::{Handle, Of};
use config_sync::table::routing::{
    Absence, EndpointId, Fallback, GoneEndpoint, Limits, Listener, ListenerId, Protocol, RouteId,
    RoutingTable, SocketId, Transport,
};
use ringway::contract::{Event, Why};
use ringway::stats::counters::{Counter, Counters};
use ringway::stats::records::{CloseReason, Record, SessionRecord};
use ringway::stats::records::{Entry, Reply};
use ringway::wire::proxy_header::read::{Header, read};

use crate::sim::coverage::Fault;
use crate::sim::endpoints::backend_of;
use crate::sim::kernel::{Kernel, Turn};
use crate::sim::model::{FIRST_ALPN, FIRST_FALLBACK};
use crate::sim::protocols::value_for;
use crate::sim::tcp::conn::{Conn, ConnId};
use crate::sim::world::asked::Asked;
use crate::sim::world::under_way::{FIRST_NUMBER, Moves};

#[derive(Debug)]
pub struct Check {
    /// Sockets that the proxy has reported closed since this was last drained.
    pub unlistened: Vec<SocketId>,
    /// Datagram batches that clients got.
    pub replies: u64,
    pub asked: Asked,
    pub moves: Moves,
    /// The slot from which the list that was asked for goes on.
    pub page: Option<u32>,
    limits: Limits,
    tables: Vec<Arc<RoutingTable>>,
    applied: usize,
    clients: BTreeMap<SocketAddr, ConnId>,
    /// Clients that offer `PROTOCOL`.
    offers: BTreeSet<ConnId>,
    /// Sessions and flows whose beginning was logged.
    begun: BTreeSet<Handle>,
    /// When clients' sessions ended.
    logged: BTreeMap<ConnId, u64>,
    /// Sessions that are checked once everything is over.
    ended: Vec<(CloseReason, ConnId, ConnId)>,
    sums: BTreeMap<ListenerId, Sums>,
    by_route: BTreeMap<RouteId, OfRoute>,
    endpoints: BTreeSet<EndpointId>,
    unmatched: BTreeMap<CloseReason, u64>,
    refused_lines: u64,
    suppressed: u64,
    /// A listener of some table had a limit that delays.
    pub may_delay: bool,
    /// Sessions when the turn began, and connections accepted in it.
    sessions_before: u32,
    accepted: u32,
}

/// The access log, added up.
#[derive(Debug, Default)]
struct Sums {
    closed: BTreeMap<CloseReason, u64>,
    refused: BTreeMap<CloseReason, u64>,
    bytes_up: u64,
    bytes_down: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct OfRoute {
    closed: u64,
    refused: u64,
    bytes_up: u64,
    bytes_down: u64,
}

/// Fewer rejections than this are all logged.
const ALL_LOGGED: u64 = 200;

impl Check {
    pub fn new(limits: Limits) -> Self {
        Self {
            unlistened: Vec::new(),
            replies: 0,
            asked: Asked::default(),
            moves: Moves::default(),
            page: None,
            limits,
            tables: vec![],
            applied: 0,
            clients: BTreeMap::new(),
            offers: BTreeSet::new(),
            begun: BTreeSet::new(),
            logged: BTreeMap::new(),
            ended: Vec::new(),
            sums: BTreeMap::new(),
            by_route: BTreeMap::new(),
            endpoints: BTreeSet::new(),
            unmatched: BTreeMap::new(),
            refused_lines: 0,
            suppressed: 0,
            may_delay: false,
            sessions_before: 0,
            accepted: 0,
        }
    }

    pub fn client_connects(&mut self, address: SocketAddr, conn: ConnId, offers: bool) {
        if address != UNIX_CLIENT {
            self.clients.insert(address, conn);
        }
        if offers {
            self.offers.insert(conn);
        }
    }

    /// The client of a session. Clients of Unix sockets have no addresses, so their sessions'
    /// handles tell them apart. `None`: such a client was turned away before it had a session.
    fn client_of(&self, record: &SessionRecord, kernel: &Kernel) -> Option<ConnId> {
        let peer = record.peer.unwrap_or(record.client);
        if peer != UNIX_CLIENT {
            return Some(*self.clients.get(&peer).expect("a client that connected"));
        }
        let handle = record.handle?;
        Some(*kernel.adopted.get(&(handle.slot, handle.generation)).expect("an adopted client"))
    }

    pub fn table_applied(&mut self, table: &Arc<RoutingTable>) {
        let mut limits = table.listeners.iter().filter_map(|listener| listener.limit.as_ref());
        self.may_delay |= limits.any(|limit| limit.delays);
        self.tables.push(Arc::clone(table));
    }

    pub fn turn_begins(&mut self, turn: &Turn, kernel: &Kernel) {
        self.sessions_before = kernel.sessions.len() as u32;
        let accepted = |event: &Event| matches!(event, Event::Accepted { .. } | Event::Closed);
        self.accepted = turn.events.iter().filter(|(_, event)| accepted(event)).count() as u32;
    }

    /// What is in use, by the proxy's count and by the kernel's.
    pub fn gauges(&self, kernel: &Kernel, counters: &Counters) {
        let (said, seen) = (counters.sessions.get(), kernel.sessions.len() as u64);
        assert_eq!(said, seen, "sessions by the proxy's count and by the kernel's");
        let (said, seen) = (counters.upstreams.get(), kernel.upstreams.len() as u64);
        assert_eq!(said, seen, "upstream sockets by the proxy's count and by the kernel's");
        let (said, seen) = (counters.strangers.get(), kernel.strangers);
        assert!(said >= seen, "strangers' datagrams: {said} counted, {seen} received");
        assert_eq!(counters.accepted.get(), kernel.accepted, "accepted connections");
    }

    pub fn records(&mut self, records: &mut Vec<Record>, kernel: &mut Kernel) {
        for record in records.drain(..) {
            match record {
                Record::Opened(record) => {
                    assert_eq!(record.reason, None, "an opening has no reason");
                    let handle = record.handle.expect("it is a session or flow");
                    assert!(self.begun.insert(handle), "it begins again: {record:?}");
                }
                Record::Closed(record) => self.closed(&record, kernel),
                Record::Applied { generation, previous } => {
                    assert_eq!(generation, self.tables[self.applied].generation);
                    let expected = self.applied.checked_sub(1).map(|i| &self.tables[i]);
                    assert!(
                        expected.is_none_or(|table| Arc::ptr_eq(table, &previous)),
                        "not the table before is handed back"
                    );
                    self.applied += 1;
                }
                Record::Retired(_) => {}
                Record::Unlistened(id) => {
                    assert!(!kernel.is_listening(id), "Unlistened, but still open");
                    self.unlistened.push(id);
                }
                Record::Reply(reply) if reply.number >= FIRST_NUMBER => {
                    self.moves.replies.push(reply);
                }
                Record::Reply(reply) => {
                    self.check_listed(&reply, kernel);
                    let all_logged = self.refused_lines < ALL_LOGGED;
                    self.page = self.asked.replied(&reply, kernel.now, all_logged);
                }
            }
        }
    }

    /// Every session that is listed has a client that connected, and that had no end in the log
    /// when the worker looked.
    fn check_listed(&self, reply: &Reply, kernel: &Kernel) {
        let sessions = reply.entries.iter().filter(|entry| entry.handle.of == Of::Sessions);
        for Entry { record, .. } in sessions {
            let client = self.client_of(record, kernel).expect("a session has a handle");
            let ended = self.logged.get(&client);
            assert!(ended.is_none_or(|ended| record.closed <= *ended), "it had ended: {record:?}");
        }
    }

    fn closed(&mut self, record: &SessionRecord, kernel: &mut Kernel) {
        let reason = record.reason.expect("a close has a reason");
        self.suppressed += u64::from(record.suppressed);
        self.refused_lines += u64::from(record.refused);
        self.endpoints.extend(record.endpoint);
        assert!(record.opened <= record.closed, "closed before it opened");
        assert_eq!(record.closed, kernel.now, "logged at another time than it happened");
        if reason == CloseReason::SessionLimit {
            kernel.hit_all(Fault::SlabFull);
        }
        assert!(record.refused || reason != CloseReason::Overload, "it lived: {record:?}");
        self.check_socket(record);
        self.asked.ended(record, reason);
        let has_cause = [
            CloseReason::ProxyInvalid,
            CloseReason::HelloInvalid,
            CloseReason::ConnectFailed,
            CloseReason::LocalLimit,
        ];
        if has_cause.contains(&reason) && record.protocol != Protocol::Udp {
            assert!(record.detail.is_some(), "{reason:?} without its cause: {record:?}");
        }
        if let (Some(backend), Some(endpoint)) = (record.backend, record.endpoint) {
            assert_eq!(backend_of(endpoint), backend, "an endpoint of another backend: {record:?}");
        }
        if record.protocol == Protocol::Udp {
            if !record.refused {
                kernel.flow_is_over(record.client);
            }
            let behind = matches!(record.client.ip(), IpAddr::V4(ip) if ip.octets()[0] == 100);
            assert_eq!(record.peer.is_some(), behind, "whose proxy is it: {record:?}");
        } else {
            self.session_closed(record, reason, kernel);
        }
        self.check_gone(record, reason);
        self.check_source(record, reason, kernel);
        if let Some(route) = record.route {
            let sums = self.by_route.entry(route).or_default();
            if record.refused { &mut sums.refused } else { &mut sums.closed }.add_assign(1);
            sums.bytes_up += record.bytes_up;
            sums.bytes_down += record.bytes_down;
        }
        let Some(listener) = record.listener else {
            *self.unmatched.entry(reason).or_default() += 1;
            return;
        };
        let sums = self.sums.entry(listener).or_default();
        let by = if record.refused { &mut sums.refused } else { &mut sums.closed };
        *by.entry(reason).or_default() += 1;
        sums.bytes_up += record.bytes_up;
        sums.bytes_down += record.bytes_down;
    }

    /// Sessions and flows are closed for the absence of an endpoint only if the table in force says
    /// so. A flow also ends if no other endpoint is there.
    fn check_gone(&self, record: &SessionRecord, reason: CloseReason) {
        let absence = match reason {
            CloseReason::EndpointDown => Absence::Down,
            CloseReason::EndpointRemoved if record.protocol != Protocol::Udp => Absence::Removed,
            _ => return,
        };
        assert!(!record.refused, "a session without an endpoint: {record:?}");
        let gone = self.tables.last().map(|table| &table.gone[..]).unwrap_or_default();
        let is_its = |gone: &GoneEndpoint| Some(gone.id) == record.endpoint;
        let said = gone.iter().find(|gone| is_its(gone)).map(|gone| gone.absence);
        assert_eq!(said, Some(absence), "not an endpoint to leave: {record:?}");
    }

    /// However a session ended, its record says its protocol, and its listener unless only a server
    /// name could tell.
    fn check_socket(&self, record: &SessionRecord) {
        let mut sockets = self.tables.iter().rev().flat_map(|table| &table.sockets);
        let socket = sockets.find(|socket| socket.id == record.socket).expect("a socket");
        let protocol = match socket.transport {
            Transport::Udp => Protocol::Udp,
            Transport::Tcp if socket.reads_hello => Protocol::Tls,
            Transport::Tcp => Protocol::Tcp,
        };
        assert_eq!(record.protocol, protocol, "{record:?}");
        let known = record.listener.is_some() || protocol == Protocol::Tls;
        assert!(known, "a session that nobody's listener had: {record:?}");
    }

    /// Whom a listener denies does not come in, and who comes in has the route of its source.
    fn check_source(&self, record: &SessionRecord, reason: CloseReason, kernel: &Kernel) {
        let client = record.client.ip();
        let listeners = || {
            let all = self.tables.iter().flat_map(|t| t.listeners.iter().map(move |l| (t, l)));
            all.filter(|(_, listener)| Some(listener.id) == record.listener)
        };
        let admits = |listener: &Listener| {
            listener.access.as_ref().is_none_or(|access| access.admits(client))
        };
        if reason == CloseReason::SourceDenied {
            assert!(record.refused && record.route.is_none(), "a denied client: {record:?}");
            let denies = |(_, listener): (_, &Listener)| !admits(listener);
            assert!(listeners().any(denies), "nobody denies this client: {record:?}");
        }
        self.check_proxies(record, reason);
        if let Some(route) = record.route {
            let offers = record.protocol == Protocol::Tls
                && self.client_of(record, kernel).is_some_and(|of| self.offers.contains(&of));
            let is_its = |(table, listener): (&Arc<RoutingTable>, &Listener)| {
                let found = value_for(listener, offers);
                let found = found.and_then(|found| listener.route(found, client));
                found.is_some_and(|at| table.routes[at].id == route)
            };
            let falls_back = (FIRST_FALLBACK..FIRST_ALPN).contains(&route.0);
            assert!(
                if falls_back { self.falls_back(record) } else { listeners().any(is_its) },
                "not the route of its source and protocols: {record:?}"
            );
            let admits = |(_, listener): (_, &Listener)| admits(listener);
            assert!(listeners().any(admits), "a client that was always denied: {record:?}");
        }
    }

    /// Whether clients of this socket could do without a ClientHello, and the client did.
    fn falls_back(&self, record: &SessionRecord) -> bool {
        let leads = |table: &RoutingTable, fallback: Fallback| {
            Some(table.routes[fallback.route].id) == record.route
                && Some(table.listeners[fallback.listener].id) == record.listener
        };
        let mut found = self.tables.iter().flat_map(|table| {
            let sockets = table.sockets.iter().filter(|socket| socket.id == record.socket);
            sockets.flat_map(|socket| [socket.not_tls, socket.silent]).map(move |to| (table, to))
        });
        record.server_name.is_none()
            && found.any(|(table, to)| to.is_some_and(|to| leads(table, to)))
    }

    /// Where only proxies may come in, nobody else gets further than the accept.
    fn check_proxies(&self, record: &SessionRecord, reason: CloseReason) {
        let sender = record.peer.unwrap_or(record.client).ip();
        let mut sockets = self.tables.iter().flat_map(|table| &table.sockets);
        let bars =
            sockets.any(|socket| socket.id == record.socket && !socket.accept_proxy.admits(sender));
        assert!(bars || reason != CloseReason::ProxyMissing, "nobody bars this client: {record:?}");
        let full = [CloseReason::SessionLimit, CloseReason::Limit, CloseReason::Overload];
        let full = full.contains(&reason);
        assert!(!bars || full || reason == CloseReason::ProxyMissing, "barred: {record:?}");
    }

    fn session_closed(&mut self, record: &SessionRecord, reason: CloseReason, kernel: &Kernel) {
        let peer = record.peer.unwrap_or(record.client);
        let Some(id) = self.client_of(record, kernel) else {
            return assert!(record.refused, "a session without a handle: {record:?}");
        };
        let before = self.logged.insert(id, record.closed);
        assert!(before.is_none(), "a session is logged twice: {record:?}");
        let client = kernel.conn(id);
        check_client(client, peer, record, reason);
        if reason == CloseReason::SessionLimit {
            assert!(
                self.sessions_before + self.accepted >= self.limits.sessions,
                "refused as full with {} of {} sessions",
                self.sessions_before,
                self.limits.sessions
            );
        }
        if record.refused {
            assert_eq!((record.bytes_up, record.bytes_down), (0, 0), "bytes without an endpoint");
            return;
        }
        let partner = client.partner.expect("a session that had an endpoint");
        let endpoint = kernel.conn(partner);
        // What streams carried in the turn in which it was closed may not be in the log.
        if let Some(introduced) = endpoint.proxied.introduced() {
            let named = Some(record.client).filter(|client| *client != UNIX_CLIENT);
            assert_eq!(introduced, named, "an endpoint was told of another client");
        }
        for (logged, conn) in [(record.bytes_up, endpoint), (record.bytes_down, client)] {
            let took = conn.outbound.written - conn.proxied.told();
            assert!(
                logged <= took && took <= logged + conn.untold,
                "the log's bytes are not those that the sockets took: {took}, {record:?}"
            );
        }
        check_reason(reason, client, endpoint, record);
        self.ended.push((reason, id, partner));
    }

    /// Everything is closed: sums, and how peers saw their sessions end.
    pub fn at_the_end(&self, kernel: &Kernel, counters: &Counters) {
        for (reason, client, endpoint) in &self.ended {
            check_ends(*reason, kernel.conn(*client), kernel.conn(*endpoint));
        }
        assert_eq!(self.applied, self.tables.len(), "a table was not reported as applied");
        for table in &self.tables[..self.tables.len().saturating_sub(1)] {
            assert_eq!(Arc::strong_count(table), 1, "a table was not handed back");
        }
        let gauges = [
            ("sessions", &counters.sessions),
            ("flows", &counters.flows),
            ("upstreams", &counters.upstreams),
            ("upstreams_resting", &counters.upstreams_resting),
            ("pairs", &counters.pairs),
            ("promoted", &counters.promoted),
        ];
        for (name, gauge) in gauges {
            assert_eq!(gauge.get(), 0, "{name} after the end");
        }
        assert_eq!(counters.carried.get(), kernel.carried, "what the kernel has forwarded");
        let demotions: u64 = counters.demotions.iter().map(Counter::get).sum();
        assert_eq!(counters.promotions.get(), demotions, "promotions and demotions");
        self.asked.at_the_end();
        self.check_sums(counters);
        self.check_datagrams(counters, kernel);
        for id in &self.endpoints {
            let counters = counters.endpoint(*id);
            assert_eq!(counters.opened.get(), counters.closed.get(), "{id:?} opened and closed");
        }
    }

    /// Every datagram that came has gone on, or was dropped for a reason.
    fn check_datagrams(&self, counters: &Counters, kernel: &Kernel) {
        let mut fragmented = 0;
        let ids = self.tables.iter().flat_map(|t| &t.listeners).map(|l| l.id);
        for id in ids.collect::<BTreeSet<_>>() {
            let listener = counters.listener(id);
            let came = listener.from_clients.get() + listener.from_endpoints.get();
            let went = listener.to_clients.get() + listener.to_endpoints.get();
            let dropped: u64 = listener.dropped.iter().map(Counter::get).sum();
            assert_eq!(came, went + dropped, "{id:?}: datagrams that came and went");
            fragmented += listener.fragmented.get();
        }
        // Of flows that ended in the same turn nobody is told.
        assert!(fragmented <= kernel.fragmented, "{fragmented} of {}", kernel.fragmented);
    }

    /// Counters equal the sum of the access log.
    fn check_sums(&self, counters: &Counters) {
        let mut unlogged = 0;
        let mut refusal = |counted: u64, logged: u64, what: &str| {
            assert!(counted >= logged, "{what}: counted {counted}, logged {logged}");
            unlogged += counted - logged;
        };
        let none = Sums::default();
        let ids = self.tables.iter().flat_map(|t| &t.listeners).map(|l| l.id);
        for id in ids.collect::<BTreeSet<_>>() {
            let (listener, sums) = (counters.listener(id), self.sums.get(&id).unwrap_or(&none));
            let (mut ended, mut lived) = (0, 0);
            for reason in CloseReason::ALL {
                let of = |by: &BTreeMap<_, _>| by.get(reason).copied().unwrap_or(0);
                let closed = listener.closed[*reason as usize].get();
                assert_eq!(closed, of(&sums.closed), "{id:?}: closed by {reason:?}, and logged");
                let refused = listener.refused[*reason as usize].get();
                refusal(refused, of(&sums.refused), reason.word());
                ended += closed + refused;
                lived += closed;
            }
            let durations: u64 = listener.duration.buckets.iter().map(Counter::get).sum();
            assert_eq!(durations, lived, "{id:?}: durations, and ended with an endpoint");
            assert_eq!(listener.opened.get(), ended, "{id:?}: opened, and ended");
            let said = (listener.bytes_up.get(), listener.bytes_down.get());
            assert_eq!(said, (sums.bytes_up, sums.bytes_down), "{id:?}: bytes, and logged");
        }
        self.check_routes(counters);
        for reason in CloseReason::ALL {
            let logged = self.unmatched.get(reason).copied().unwrap_or(0);
            refusal(counters.unmatched[*reason as usize].get(), logged, reason.word());
        }
        if self.refused_lines < ALL_LOGGED {
            assert_eq!(unlogged, 0, "rejections were neither logged nor suppressed");
        }
        assert!(self.refused_lines >= ALL_LOGGED || self.suppressed == 0);
    }
}

impl Check {
    /// What routes count is what is logged of them.
    fn check_routes(&self, counters: &Counters) {
        let ids = self.tables.iter().flat_map(|t| &t.routes).map(|route| route.id);
        let mut of_routes = 0;
        for id in ids.collect::<BTreeSet<_>>() {
            let route = counters.route(id);
            let (closed, refused) = (route.closed.get(), route.refused.get());
            let sums = self.by_route.get(&id).copied().unwrap_or_default();
            assert_eq!(route.opened.get(), closed + refused, "{id:?}: opened, and ended");
            assert_eq!(closed, sums.closed, "{id:?}: closed, and logged");
            let said = (route.bytes_up.get(), route.bytes_down.get());
            assert_eq!(said, (sums.bytes_up, sums.bytes_down), "{id:?}: bytes, and logged");
            let all_logged = self.refused_lines < ALL_LOGGED;
            assert!(refused == sums.refused || refused > sums.refused && !all_logged, "{id:?}");
            of_routes += closed;
        }
        // Whatever had an endpoint had a route.
        let of_listeners: u64 = self.sums.values().flat_map(|sums| sums.closed.values()).sum();
        assert_eq!(of_routes, of_listeners, "closed by routes, and by listeners");
    }
}

/// The client is who its header says, if that is right; without one it gets nowhere.
fn check_client(client: &Conn, peer: SocketAddr, record: &SessionRecord, reason: CloseReason) {
    let says = client.proxied.says.unwrap_or(peer);
    match record.peer {
        Some(_) => assert!(client.proxied.header > 0 && record.client == says, "{record:?}"),
        None if client.proxied.must => assert!(record.refused, "relayed without a header"),
        None => {
            let of_header = [CloseReason::ProxyInvalid, CloseReason::ProxyTimeout];
            assert!(!of_header.contains(&reason), "a header was waited for: {record:?}");
        }
    }
    // What no byte can make right any more is not waited for.
    if reason == CloseReason::ProxyTimeout && !client.has_news() {
        let sent = client.prefix.len().min(client.inbound.written as usize);
        let header = read(&client.prefix[..sent]);
        assert!(matches!(header, Header::NeedMore { .. }), "{header:?}: {record:?}");
    }
}

/// The reason is what happened.
fn check_reason(reason: CloseReason, client: &Conn, endpoint: &Conn, record: &SessionRecord) {
    use CloseReason as R;
    let truth = match reason {
        R::ClientFin | R::EndpointFin => {
            assert_eq!(
                (client.inbound.written - client.proxied.away, endpoint.inbound.written),
                (endpoint.outbound.written - endpoint.proxied.told(), client.outbound.written),
                "bytes were lost between clean ends: {record:?}"
            );
            client.inbound.finished() && endpoint.inbound.finished()
        }
        R::ClientReset => client.error.is_some(),
        R::EndpointReset => endpoint.error.is_some(),
        R::ClientTimedOut => client.error == Some(Why::TimedOut),
        R::EndpointTimedOut => endpoint.error == Some(Why::TimedOut),
        R::ClientError | R::EndpointError => false,
        R::HalfCloseTimeout => client.inbound.fin_seen || endpoint.inbound.fin_seen,
        _ => true,
    };
    assert!(truth, "{reason:?} is not what happened: {client:?} {endpoint:?}");
}

/// What was clean for one side was clean for the other, and so with resets.
fn check_ends(reason: CloseReason, client: &Conn, endpoint: &Conn) {
    use CloseReason as R;
    match reason {
        R::ClientFin | R::EndpointFin => {
            for conn in [client, endpoint] {
                assert!(!conn.reset_seen, "a clean end became a reset: {conn:?}");
                let gone = conn.error.is_some() || conn.peer_closed;
                assert!(gone || conn.outbound.fin, "a clean end was not passed on: {conn:?}");
            }
        }
        R::ClientReset | R::ClientTimedOut => {
            is_reset(endpoint);
            is_delivered(client, endpoint);
        }
        R::EndpointReset | R::EndpointTimedOut => {
            is_reset(client);
            is_delivered(endpoint, client);
        }
        _ => {}
    }
}

/// What a side sent before it broke has reached the other, unless that is gone.
fn is_delivered(from: &Conn, to: &Conn) {
    if to.error.is_some() || to.peer_closed {
        return;
    }
    let sent = from.inbound.written - from.proxied.away;
    let reached = to.outbound.taken + to.outbound.queue.len() - to.proxied.told();
    assert_eq!(sent, reached, "bytes sent before a reset were lost: {from:?} {to:?}");
}

fn is_reset(conn: &Conn) {
    let reset = conn.reset_seen || conn.error.is_some() || conn.peer_closed;
    assert!(reset, "a reset of one side did not reset the other: {conn:?}");
}
