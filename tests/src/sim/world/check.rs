//! What the proxy says of itself, against what the kernel has seen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::AddAssign as _;
use std::sync::Arc;

use config_sync::table::address::UNIX_CLIENT;
use config_sync::table::request::Handle;
use config_sync::table::routing::{
    Absence, EndpointId, GoneEndpoint, Limits, Listener, ListenerId, Protocol, RouteId,
    RoutingTable, SocketId,
};
use ringway::contract::Event;
use ringway::stats::counters::{Counter, Counters};
use ringway::stats::records::{CloseReason, Record, Reply, SessionRecord};

use crate::sim::coverage::Fault;
use crate::sim::endpoints::backend_of;
use crate::sim::kernel::{Kernel, Turn};
use crate::sim::world::asked::Asked;
use crate::sim::world::clients::{Clients, check_client, check_reason};

#[derive(Debug)]
pub struct Check {
    /// Sockets that the proxy has reported closed since this was last drained.
    pub unlistened: Vec<SocketId>,
    /// Datagram batches that clients got.
    pub replies: u64,
    pub asked: Asked,
    /// The slot from which the list that was asked for goes on.
    pub page: Option<u32>,
    limits: Limits,
    tables: Vec<Arc<RoutingTable>>,
    applied: usize,
    /// Sessions and flows whose beginning was logged.
    begun: BTreeSet<Handle>,
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

/// Requests about sessions that move have numbers from here on.
pub const FIRST_NUMBER: u64 = 1 << 63;

/// Fewer rejections than this are all logged.
const ALL_LOGGED: u64 = 200;

impl Check {
    pub fn new(limits: Limits) -> Self {
        Self {
            unlistened: Vec::new(),
            replies: 0,
            asked: Asked::default(),
            page: None,
            limits,
            tables: vec![],
            applied: 0,
            begun: BTreeSet::new(),
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

    pub fn table_applied(&mut self, table: &Arc<RoutingTable>, clients: &mut Clients) {
        // A copy: at the end it is checked that nobody holds a table any more.
        clients.tables.push(Arc::new(RoutingTable::clone(table)));
        let mut limits = table.listeners.iter().filter_map(|listener| listener.limit.as_ref());
        self.may_delay |= limits.any(|limit| limit.delays);
        self.tables.push(Arc::clone(table));
    }

    pub fn turn_begins(&mut self, turn: &Turn, kernel: &Kernel) {
        self.sessions_before = kernel.has().0 as u32;
        let accepted = |event: &Event| matches!(event, Event::Accepted { .. } | Event::Closed);
        self.accepted = turn.events.iter().filter(|(_, event)| accepted(event)).count() as u32;
    }

    /// What is in use, by the proxy's count and by the kernel's.
    pub fn gauges(&self, kernel: &Kernel, counters: &Counters) {
        let (sessions, upstreams) = kernel.has();
        let own = kernel.own();
        let (said, seen) = (counters.sessions.get(), sessions);
        assert_eq!(said, seen, "sessions by the proxy's count and by the kernel's");
        let (said, seen) = (counters.upstreams.get(), upstreams);
        assert_eq!(said, seen, "upstream sockets by the proxy's count and by the kernel's");
        let (said, seen) = (counters.strangers.get(), own.strangers);
        assert!(said >= seen, "strangers' datagrams: {said} counted, {seen} received");
        assert_eq!(counters.accepted.get(), own.accepted, "accepted connections");
    }

    /// Returns the answers about what moves.
    pub fn records(
        &mut self,
        records: &mut Vec<Record>,
        kernel: &mut Kernel,
        clients: &mut Clients,
    ) -> Vec<Reply> {
        let mut replies = Vec::new();
        for record in records.drain(..) {
            match record {
                Record::Opened(record) => {
                    assert_eq!(record.reason, None, "an opening has no reason");
                    let handle = record.handle.expect("it is a session or flow");
                    assert!(self.begun.insert(handle), "it begins again: {record:?}");
                }
                Record::Closed(record) => self.closed(&record, kernel, clients),
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
                    replies.push(reply);
                }
                Record::Reply(reply) => {
                    clients.check_listed(&reply, kernel);
                    let all_logged = self.refused_lines < ALL_LOGGED;
                    self.page = self.asked.replied(&reply, kernel.now, all_logged);
                }
            }
        }
        replies
    }

    fn closed(&mut self, record: &SessionRecord, kernel: &mut Kernel, clients: &mut Clients) {
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
        clients.check_socket(record);
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
            self.session_closed(record, reason, kernel, clients);
        }
        self.check_gone(record, reason);
        clients.check_source(record, reason, kernel);
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

    fn session_closed(
        &mut self,
        record: &SessionRecord,
        reason: CloseReason,
        kernel: &Kernel,
        clients: &mut Clients,
    ) {
        let peer = record.peer.unwrap_or(record.client);
        let Some(id) = clients.client_of(record, kernel) else {
            return assert!(record.refused, "a session without a handle: {record:?}");
        };
        let before = clients.logged.insert(id, record.closed);
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
        clients.ended.push((reason, id, partner));
    }

    /// The process was killed: what it had logged was counted before.
    pub fn killed(&self, counters: &Counters, clients: &mut Clients) {
        self.add_bytes(counters, clients);
        clients.is_any_killed = true;
    }

    /// Those of the tables, and of what has come from another process.
    fn listeners(&self) -> BTreeSet<ListenerId> {
        let ids = self.tables.iter().flat_map(|t| &t.listeners).map(|l| l.id);
        ids.chain(self.sums.keys().copied()).collect()
    }

    /// What the process has counted of bytes, and logged.
    fn add_bytes(&self, counters: &Counters, clients: &mut Clients) {
        let all = clients.tables.iter().flat_map(|table| &table.listeners);
        let all: BTreeSet<_> = all.map(|listener| listener.id).collect();
        for id in all {
            let (listener, [counted, logged]) =
                (counters.listener(id), clients.bytes.entry(id).or_default());
            let sums = self.sums.get(&id);
            let of_sums = sums.map_or([0; 2], |sums| [sums.bytes_up, sums.bytes_down]);
            for (way, bytes) in
                [listener.bytes_up.get(), listener.bytes_down.get()].iter().enumerate()
            {
                counted[way] += bytes;
                logged[way] += of_sums[way];
            }
        }
    }

    /// Everything of the process is closed: its sums.
    pub fn at_the_end(&self, kernel: &Kernel, counters: &Counters, clients: &mut Clients) {
        self.add_bytes(counters, clients);
        assert_eq!(self.applied, self.tables.len(), "a table was not reported as applied");
        for table in &self.tables[..self.tables.len().saturating_sub(1)] {
            assert_eq!(Arc::strong_count(table), 1, "a table was not handed back");
        }
        let listeners = self.tables.iter().flat_map(|table| &table.listeners);
        for Listener { id, taken, .. } in listeners {
            let places = taken.as_ref().map_or(0, |taken| taken.full.get() + taken.ending.get());
            assert_eq!(places, 0, "{id:?}: places after the end");
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
        assert_eq!(counters.carried.get(), kernel.own().carried, "what the kernel has forwarded");
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
        for id in self.listeners() {
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
        let ids = self.listeners();
        for id in ids {
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
        // Routes of sessions that came from another process may be in no table.
        let ids = self.tables.iter().flat_map(|t| &t.routes).map(|route| route.id);
        let ids = ids.chain(self.by_route.keys().copied());
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
