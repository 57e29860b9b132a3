//! Counters of one worker. One writer each, so an addition is a load and a store, never a locked
//! instruction; the control thread reads them at scrape and sums over workers.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use config_sync::table::routing::{EndpointId, ListenerId, MAX_ENDPOINTS, MAX_LISTENERS};

use crate::stats::records::{CloseReason, DropReason};

/// One worker's counters; aligned so that two workers never share a cache line.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    /// TCP connections accepted, whatever became of them.
    pub accepted: Counter,
    /// Connections that their client reset before they could be given to the proxy.
    pub aborted: Counter,
    /// Sessions closed for which no listener was found, by `CloseReason`.
    pub unmatched: [Counter; CloseReason::COUNT],
    /// Accepting paused because files or memory ran out.
    pub accept_pauses: Counter,
    /// Receiving on a UDP socket paused because of an error of this machine.
    pub receive_pauses: Counter,
    /// Multishot accepts, polls and receives that ended by themselves and were armed again.
    pub rearms: Counter,
    /// Receives that ended because no buffer was free.
    pub buffer_shortages: Counter,
    /// Receive buffers for datagrams that the kernel holds now.
    pub buffers_free: Counter,
    /// Completions that did not fit the completion queue (the kernel keeps them; it costs time).
    pub cq_overflows: Counter,
    /// Directions that wanted a pipe when all were in use, and went on without.
    pub pipe_shortages: Counter,
    pub pipes_used: Counter,
    /// Times that a direction became bulk, and its wake-ups fewer and larger.
    pub bulk_runs: Counter,
    /// Connections that carry bulk to a near peer and were paced until then.
    pub unpaced: Counter,
    /// Streams begun, for directions that are busy with small messages.
    pub streams: Counter,
    /// Turns of the worker's loop.
    pub turns: Counter,
    /// How long one turn in `worker::SAMPLED` took, from waking up to waiting again. What is ready
    /// on one session waits as long for the others'.
    pub turn: Histogram,
    /// Log records that found the channel full.
    pub records_dropped: Counter,
    pub sessions: Counter,
    pub flows: Counter,
    /// Upstream UDP sockets: open, and of these resting in quarantine or free.
    pub upstreams: Counter,
    pub upstreams_resting: Counter,
    /// Addresses of flows on shared upstream sockets, in use or resting.
    pub pairs: Counter,
    /// Times that a source address had no UDP port.
    pub port_shortages: Counter,
    /// Datagrams on shared upstream sockets that did not come from a flow's endpoint.
    pub strangers: Counter,
    /// Generation of the table in force.
    pub generation: Counter,
    /// Microseconds that taking over a table took, with all that followed in that turn: the latest
    /// and the most. Sessions wait as long.
    pub table_micros: Counter,
    pub table_micros_most: Counter,
    listeners: Chunked<ListenerCounters>,
    endpoints: Chunked<EndpointCounters>,
}

#[derive(Debug, Default)]
pub struct ListenerCounters {
    /// Sessions or flows given to this listener.
    pub opened: Counter,
    /// Ended before there was an endpoint, by `CloseReason`.
    pub refused: ByReason<{ CloseReason::COUNT }>,
    /// Ended after, by `CloseReason`.
    pub closed: ByReason<{ CloseReason::COUNT }>,
    pub bytes_up: Counter,
    pub bytes_down: Counter,
    /// Datagrams: from clients, to endpoints, from endpoints, to clients.
    pub from_clients: Counter,
    pub to_endpoints: Counter,
    pub from_endpoints: Counter,
    pub to_clients: Counter,
    pub dropped: ByReason<{ DropReason::COUNT }>,
    /// Datagrams that fitted the path to their endpoint until a PROXY header was put before them.
    pub fragmented: Counter,
    /// How long sessions or flows lived that had an endpoint.
    pub duration: Histogram,
}

#[derive(Debug, Default)]
pub struct EndpointCounters {
    /// Sessions connected, or flows given to it.
    pub opened: Counter,
    pub closed: Counter,
    pub connect_failures: Counter,
    /// Sends refused by ICMP port unreachable.
    pub refusals: Counter,
    /// Replies that came after their flow was over.
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
    pub fn add(&self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }

    pub fn sub(&self, n: u64) {
        self.set(self.get().wrapping_sub(n));
    }

    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters by a word's index (`CloseReason as usize`, `DropReason as usize`).
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

/// Upper bounds of the buckets, in microseconds; one more bucket takes the rest.
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
    /// Not cumulative; the last takes what is above all bounds.
    pub buckets: [Counter; BUCKETS.len() + 1],
    /// Microseconds.
    pub sum: Counter,
}

impl Histogram {
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
            receive_pauses: Counter::default(),
            rearms: Counter::default(),
            bulk_runs: Counter::default(),
            unpaced: Counter::default(),
            streams: Counter::default(),
            buffer_shortages: Counter::default(),
            buffers_free: Counter::default(),
            cq_overflows: Counter::default(),
            pipe_shortages: Counter::default(),
            pipes_used: Counter::default(),
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
            generation: Counter::default(),
            table_micros: Counter::default(),
            table_micros_most: Counter::default(),
            listeners: Chunked::new(MAX_LISTENERS),
            endpoints: Chunked::new(MAX_ENDPOINTS),
        }
    }

    pub fn listener(&self, id: ListenerId) -> &ListenerCounters {
        self.listeners.get(id.index())
    }

    pub fn endpoint(&self, id: EndpointId) -> &EndpointCounters {
        self.endpoints.get(id.index())
    }

    /// The id is to be another listener's. Nothing may have counted by it for a while: this is the
    /// one place where another thread than the worker's writes.
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

    /// The same for an endpoint's.
    pub fn forget_endpoint(&self, id: EndpointId) {
        let EndpointCounters {
            opened,
            closed,
            connect_failures,
            refusals,
            late_replies,
            resets,
            bytes_up,
            bytes_down,
            connect,
        } = self.endpoint(id);
        let faults = [connect_failures, refusals, late_replies, resets];
        let all = [opened, closed, bytes_up, bytes_down].into_iter().chain(faults);
        all.chain(connect.all()).for_each(|counter| counter.set(0));
    }
}

impl ListenerCounters {
    /// Whether it has sessions or flows. Ends are read first, so that none is missed.
    pub fn is_live(&self) -> bool {
        let ended = |reasons: &[Counter]| reasons.iter().map(Counter::get).sum::<u64>();
        let ended = ended(&*self.closed) + ended(&*self.refused);
        self.opened.get() > ended
    }
}

impl EndpointCounters {
    pub fn is_live(&self) -> bool {
        let closed = self.closed.get();
        self.opened.get() > closed
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

/// An array whose memory comes a chunk at a time, when an id in it is first used (that is: when a
/// table with it is applied, or at the first scrape after), so that limits cost nothing.
#[derive(Debug)]
struct Chunked<T> {
    chunks: Box<[OnceLock<Box<[T]>>]>,
}

const CHUNK: usize = 32;

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
