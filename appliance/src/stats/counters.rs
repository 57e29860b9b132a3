//! Counts the events of one worker. Each counter has one writer, so an addition is a load and a
//! store, never a locked instruction. The control thread reads the counters at a scrape, and sums
//! over the workers.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use config_sync::table::routing::{
    EndpointId, ListenerId, MAX_ENDPOINTS, MAX_LISTENERS, MAX_ROUTES, RouteId,
};

use crate::stats::records::{CloseReason, Demotion, DropReason};

/// The counters of one worker, aligned so that two workers never share a cache line.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    /// TCP connections accepted, however they ended.
    pub accepted: Counter,
    /// Connections that the client reset before the proxy got them.
    pub aborted: Counter,
    /// Closed sessions without a listener, by `CloseReason`.
    pub unmatched: [Counter; CloseReason::COUNT],
    /// Times that accepting paused because files or memory ran out.
    pub accept_pauses: Counter,
    /// Times that accepting stopped until the listener's limit had a place.
    pub accept_delays: Counter,
    /// Times that receiving on a UDP socket paused because of an error of this machine.
    pub receive_pauses: Counter,
    /// Multishot accepts, polls and receives that ended by themselves and were armed again.
    pub rearms: Counter,
    /// Receives that ended because no buffer was free.
    pub buffer_shortages: Counter,
    /// Sockets of sessions and flows to their endpoints for which no file was left.
    pub file_shortages: Counter,
    /// Sessions that were refused because the session table was full.
    pub session_shortages: Counter,
    /// New flows that were refused because the flow table was full.
    pub flow_shortages: Counter,
    /// Times that a direction of a TCP session had to wait for bytes that a limit allows.
    pub byte_delays: Counter,
    /// The control thread's word: 1 while nothing new may begin, because the memory is nearly used
    /// up.
    pub overloaded: Counter,
    /// Receive buffers for datagrams that the kernel holds now.
    pub buffers_free: Counter,
    /// Completions that did not fit the completion queue. The kernel keeps them, which costs time.
    pub cq_overflows: Counter,
    /// Directions that wanted a pipe when all pipes were in use, and went on without one.
    pub pipe_shortages: Counter,
    pub pipes_used: Counter,
    /// Bytes that splice(2) took from their source.
    pub spliced: Counter,
    /// Times that a direction became bulk. A bulk direction wakes less often, for more bytes each
    /// time.
    pub bulk_runs: Counter,
    /// Paced connections that carry bulk to a near peer, and that got congestion control without
    /// pacing.
    pub unpaced: Counter,
    /// Streams begun. A stream serves a direction that is busy with small messages.
    pub streams: Counter,
    /// Turns of the worker's loop.
    pub turns: Counter,
    /// Duration of one turn in `worker::SAMPLED`, from waking up to waiting again. A ready session
    /// waits up to this long for the other sessions.
    pub turn: Histogram,
    /// Log records that were dropped because the channel was full.
    pub records_dropped: Counter,
    pub sessions: Counter,
    pub flows: Counter,
    /// Upstream UDP sockets: all open ones, and the open ones that rest in quarantine or are free.
    pub upstreams: Counter,
    pub upstreams_resting: Counter,
    /// Addresses of flows on shared upstream sockets, in use or resting.
    pub pairs: Counter,
    /// Times that a source address had no UDP port.
    pub port_shortages: Counter,
    /// Datagrams on shared upstream sockets from senders that are not the endpoint of a flow.
    pub strangers: Counter,
    /// Flows that the kernel forwards now.
    pub promoted: Counter,
    /// Times that the kernel began to forward a flow.
    pub promotions: Counter,
    /// Times that the kernel could not begin to forward a flow.
    pub promotions_failed: Counter,
    /// Times that the kernel ceased to forward a flow, by `Demotion`.
    pub demotions: [Counter; Demotion::COUNT],
    /// Datagrams that the kernel has forwarded, both ways. Flows are asked once a second.
    pub carried: Counter,
    /// The generation of the table in force.
    pub generation: Counter,
    /// Microseconds for taking over a table, with the rest of the work that the table caused in
    /// that turn: the latest value and the greatest. Sessions wait that long.
    pub table_micros: Counter,
    pub table_micros_most: Counter,
    listeners: Chunked<ListenerCounters>,
    routes: Chunked<RouteCounters>,
    endpoints: Chunked<EndpointCounters>,
}

#[derive(Debug, Default)]
pub struct ListenerCounters {
    /// Sessions or flows given to this listener.
    pub opened: Counter,
    /// Sessions or flows that ended without an endpoint, by `CloseReason`.
    pub refused: ByReason<{ CloseReason::COUNT }>,
    /// Sessions or flows that ended after they had an endpoint, by `CloseReason`.
    pub closed: ByReason<{ CloseReason::COUNT }>,
    pub bytes_up: Counter,
    pub bytes_down: Counter,
    /// Datagrams: from clients, to endpoints, from endpoints, to clients.
    pub from_clients: Counter,
    pub to_endpoints: Counter,
    pub from_endpoints: Counter,
    pub to_clients: Counter,
    pub dropped: ByReason<{ DropReason::COUNT }>,
    /// Datagrams that fitted the path to their endpoint until the gateway put a PROXY header in
    /// front.
    pub fragmented: Counter,
    /// Lifetimes of the sessions or flows that had an endpoint.
    pub duration: Histogram,
}

/// A route counts a session or flow from the moment at which it is chosen.
#[derive(Debug, Default)]
pub struct RouteCounters {
    pub opened: Counter,
    /// Sessions or flows that ended without an endpoint.
    pub refused: Counter,
    /// Sessions or flows that ended after they had an endpoint.
    pub closed: Counter,
    /// Bytes of sessions and flows that have ended. Bytes are counted by listener and endpoint
    /// while they move, and a third count would cost time for each of them.
    pub bytes_up: Counter,
    pub bytes_down: Counter,
}

#[derive(Debug, Default)]
pub struct EndpointCounters {
    /// Sessions connected to the endpoint, or flows given to the endpoint.
    pub opened: Counter,
    pub closed: Counter,
    pub connect_failures: Counter,
    /// Failures that count for `eject`: connections that failed for the endpoint's sake, resets
    /// before the first byte of the endpoint, and refused datagrams.
    pub failures: Counter,
    /// Sends refused by ICMP port unreachable.
    pub refusals: Counter,
    /// Replies that came after the end of their flow.
    pub late_replies: Counter,
    /// Resets by the endpoint.
    pub resets: Counter,
    pub bytes_up: Counter,
    pub bytes_down: Counter,
    pub connect: Histogram,
}

/// A counter or gauge with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub fn add(&self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }

    #[inline]
    pub fn sub(&self, n: u64) {
        self.set(self.get().wrapping_sub(n));
    }

    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters by the index of a reason (`CloseReason as usize`, `DropReason as usize`).
#[derive(Debug)]
pub struct ByReason<const N: usize>([Counter; N]);

impl<const N: usize> Default for ByReason<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl<const N: usize> std::ops::Deref for ByReason<N> {
    type Target = [Counter; N];

    fn deref(&self) -> &[Counter; N] {
        &self.0
    }
}

/// Upper bounds of the buckets, in microseconds. One more bucket counts the values above all
/// bounds.
pub const BUCKETS: [u64; 15] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    50_000,
    100_000,
    500_000,
    1_000_000,
    10_000_000,
    60_000_000,
    600_000_000,
    3_600_000_000,
];

#[derive(Debug, Default)]
pub struct Histogram {
    /// Not cumulative. The last bucket counts the values above all bounds.
    pub buckets: [Counter; BUCKETS.len() + 1],
    /// Microseconds.
    pub sum: Counter,
}

impl Histogram {
    #[inline]
    pub fn record(&self, micros: u64) {
        self.buckets[BUCKETS.partition_point(|bound| *bound < micros)].add(1);
        self.sum.add(micros);
    }

    fn all(&self) -> impl Iterator<Item = &Counter> {
        self.buckets.iter().chain([&self.sum])
    }
}

impl Counters {
    pub fn new() -> Self {
        Self {
            accepted: Counter::default(),
            aborted: Counter::default(),
            unmatched: std::array::from_fn(|_| Counter::default()),
            accept_pauses: Counter::default(),
            accept_delays: Counter::default(),
            receive_pauses: Counter::default(),
            rearms: Counter::default(),
            bulk_runs: Counter::default(),
            unpaced: Counter::default(),
            streams: Counter::default(),
            buffer_shortages: Counter::default(),
            file_shortages: Counter::default(),
            session_shortages: Counter::default(),
            flow_shortages: Counter::default(),
            byte_delays: Counter::default(),
            overloaded: Counter::default(),
            buffers_free: Counter::default(),
            cq_overflows: Counter::default(),
            pipe_shortages: Counter::default(),
            pipes_used: Counter::default(),
            spliced: Counter::default(),
            turns: Counter::default(),
            turn: Histogram::default(),
            records_dropped: Counter::default(),
            sessions: Counter::default(),
            flows: Counter::default(),
            upstreams: Counter::default(),
            upstreams_resting: Counter::default(),
            pairs: Counter::default(),
            strangers: Counter::default(),
            port_shortages: Counter::default(),
            promoted: Counter::default(),
            promotions: Counter::default(),
            promotions_failed: Counter::default(),
            demotions: std::array::from_fn(|_| Counter::default()),
            carried: Counter::default(),
            generation: Counter::default(),
            table_micros: Counter::default(),
            table_micros_most: Counter::default(),
            listeners: Chunked::new(MAX_LISTENERS),
            routes: Chunked::new(MAX_ROUTES),
            endpoints: Chunked::new(MAX_ENDPOINTS),
        }
    }

    #[inline]
    pub fn listener(&self, id: ListenerId) -> &ListenerCounters {
        self.listeners.get(id.index())
    }

    #[inline]
    pub fn route(&self, id: RouteId) -> &RouteCounters {
        self.routes.get(id.index())
    }

    #[inline]
    pub fn endpoint(&self, id: EndpointId) -> &EndpointCounters {
        self.endpoints.get(id.index())
    }

    /// Sets a listener's counters to 0, because another listener gets the id. No worker may have
    /// counted by this id for a while: only this function writes counters on another thread than
    /// the worker's.
    pub fn forget_listener(&self, id: ListenerId) {
        let ListenerCounters {
            opened,
            refused,
            closed,
            bytes_up,
            bytes_down,
            from_clients,
            to_endpoints,
            from_endpoints,
            to_clients,
            dropped,
            fragmented,
            duration,
        } = self.listener(id);
        let traffic = [from_clients, to_endpoints, from_endpoints, to_clients, fragmented];
        let reasons = refused.iter().chain(closed.iter()).chain(dropped.iter());
        let all = reasons.chain([opened, bytes_up, bytes_down]).chain(traffic);
        all.chain(duration.all()).for_each(|counter| counter.set(0));
    }

    /// Sets a route's counters to 0, under the rule of `forget_listener`.
    pub fn forget_route(&self, id: RouteId) {
        let RouteCounters { opened, refused, closed, bytes_up, bytes_down } = self.route(id);
        let all = [opened, refused, closed, bytes_up, bytes_down];
        all.into_iter().for_each(|counter| counter.set(0));
    }

    /// Sets an endpoint's counters to 0, under the rule of `forget_listener`.
    pub fn forget_endpoint(&self, id: EndpointId) {
        let EndpointCounters {
            opened,
            closed,
            connect_failures,
            failures,
            refusals,
            late_replies,
            resets,
            bytes_up,
            bytes_down,
            connect,
        } = self.endpoint(id);
        let faults = [connect_failures, failures, refusals, late_replies, resets];
        let all = [opened, closed, bytes_up, bytes_down].into_iter().chain(faults);
        all.chain(connect.all()).for_each(|counter| counter.set(0));
    }
}

impl Counters {
    /// Bytes of the counters of so many listeners, routes and endpoints.
    pub const fn bytes(listeners: usize, routes: usize, endpoints: usize) -> usize {
        Chunked::<ListenerCounters>::bytes(listeners)
            + Chunked::<RouteCounters>::bytes(routes)
            + Chunked::<EndpointCounters>::bytes(endpoints)
    }
}

impl ListenerCounters {
    /// The sessions and flows that the listener has. Ends are read before openings, so a live
    /// session is never missed.
    pub fn live(&self) -> u64 {
        let ended = |reasons: &[Counter]| reasons.iter().map(Counter::get).sum::<u64>();
        let ended = ended(&*self.closed) + ended(&*self.refused);
        self.opened.get().saturating_sub(ended)
    }
}

impl RouteCounters {
    /// As [`ListenerCounters::live`].
    pub fn live(&self) -> u64 {
        let ended = self.closed.get() + self.refused.get();
        self.opened.get().saturating_sub(ended)
    }

    /// Counts the end of a session or flow that has carried these bytes.
    pub fn ended(&self, refused: bool, (up, down): (u64, u64)) {
        if refused { &self.refused } else { &self.closed }.add(1);
        self.bytes_up.add(up);
        self.bytes_down.add(down);
    }
}

impl EndpointCounters {
    /// As [`ListenerCounters::live`].
    pub fn live(&self) -> u64 {
        let closed = self.closed.get();
        self.opened.get().saturating_sub(closed)
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

/// An array that allocates its memory in chunks, so that high limits cost nothing. A chunk is
/// allocated at the first use of an id in the chunk: when a table with that id is applied, or at
/// the first scrape after.
#[derive(Debug)]
struct Chunked<T> {
    chunks: Box<[OnceLock<Box<[T]>>]>,
}

const CHUNK: usize = 32;

impl<T> Chunked<T> {
    /// Bytes of the chunks for so many ids.
    const fn bytes(ids: usize) -> usize {
        ids.div_ceil(CHUNK) * CHUNK * size_of::<T>()
    }
}

impl<T: Default> Chunked<T> {
    fn new(len: usize) -> Self {
        Self { chunks: (0..len.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect() }
    }

    fn get(&self, index: usize) -> &T {
        let chunk =
            self.chunks[index / CHUNK].get_or_init(|| (0..CHUNK).map(|_| T::default()).collect());
        &chunk[index % CHUNK]
    }
}
