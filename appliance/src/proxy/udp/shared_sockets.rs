//! Keeps the shared upstream sockets: few sockets for all flows, which are told apart by endpoint
//! and local address.
//!
//! A pair of endpoint and local address carries one flow at a time, so each datagram from the
//! endpoint to the address belongs to that flow. `Flows` keeps a pair in a slot like a connected
//! socket, and the pair rests between two flows like a socket. This file has the rest of a pair:
//! its addresses, and the pools from which they come.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use config_sync::table::routing::{EndpointId, RoutingTable, Sources};
use hashbrown::HashTable;

use crate::proxy::slab::NONE;

#[derive(Debug)]
pub struct Pairs {
    /// By upstream slot. Only the slots in the index mean anything.
    pairs: Vec<Pair>,
    /// Upstream slots by endpoint and local address.
    index: HashTable<u32>,
    hasher: ahash::RandomState,
    /// By `EndpointId`. Empty where sockets are not shared.
    pools: Vec<Pool>,
    /// For IPv4 and IPv6.
    sockets: [SharedSocket; 2],
    limit: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub endpoint: SocketAddr,
    pub local: IpAddr,
}

/// The socket through which the pairs of one IP version go.
#[derive(Clone, Copy, Debug)]
struct SharedSocket {
    /// The socket's upstream slot. `NONE` while the socket is not open.
    slot: u32,
    pairs: u32,
    /// All datagrams that the socket had received by this time were read.
    read: u64,
    /// The socket stopped receiving in this turn.
    stopped: bool,
    /// Turns in a row in which the socket stopped.
    stops: u32,
    /// The socket is not receiving now.
    paused: bool,
}

const CLOSED: SharedSocket =
    SharedSocket { slot: NONE, pairs: 0, read: 0, stopped: false, stops: 0, paused: false };

/// After this many turns in a row with a stop, all datagrams from before the first stop were read,
/// because a socket's memory holds no more. Otherwise a worker that always lacks buffers, or a
/// stranger's empty datagrams, would keep each pair from its next flow.
const MOST_STOPS: u32 = 256;

/// The local addresses of one endpoint's pairs.
#[derive(Debug, Default)]
struct Pool {
    /// Only addresses of the endpoint's IP version.
    sources: Vec<Sources>,
    /// The first address that was never taken: the place among the sources, and the place within
    /// that source.
    fresh: (usize, u32),
    /// Addresses that came back, the longest unused first.
    back: VecDeque<IpAddr>,
}

impl Pairs {
    pub fn new(limit: u32, seed: u64) -> Self {
        Self {
            pairs: Vec::new(),
            index: HashTable::new(),
            hasher: ahash::RandomState::with_seeds(!seed, seed, seed >> 1, seed << 1),
            pools: Vec::new(),
            sockets: [CLOSED; 2],
            limit: limit as usize,
        }
    }

    /// Takes over which endpoints have which addresses. Taken addresses stay taken.
    pub fn table_applied(&mut self, table: &RoutingTable) {
        let shared = || table.backends.iter().filter(|backend| backend.shared_sockets);
        if shared().next().is_some() && self.index.capacity() == 0 {
            // Memory is not allocated at start, because most configurations share no sockets.
            self.pairs.reserve_exact(self.limit);
            self.index = HashTable::with_capacity(self.limit * 2);
        }
        let mut old = std::mem::take(&mut self.pools);
        for backend in shared() {
            for endpoint in &backend.endpoints {
                let at = endpoint.id.index();
                if self.pools.len() <= at {
                    self.pools.resize_with(at + 1, Pool::default);
                }
                let ipv4 = endpoint.address.ip().is_some_and(|ip| ip.is_ipv4());
                let sources = backend.source.iter().filter(|of| of.first.is_ipv4() == ipv4);
                self.pools[at] = match old.get_mut(at) {
                    Some(pool) if pool.sources.iter().eq(sources.clone()) => std::mem::take(pool),
                    _ => Pool { sources: sources.copied().collect(), ..Pool::default() },
                };
            }
        }
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn get(&self, slot: u32) -> Pair {
        self.pairs[slot as usize]
    }

    /// The pair's upstream slot.
    pub fn find(&self, endpoint: SocketAddr, local: IpAddr) -> Option<u32> {
        let pair = Pair { endpoint, local };
        let hash = self.hasher.hash_one((endpoint, local));
        self.index.find(hash, |slot| self.get(*slot) == pair).copied()
    }

    /// Takes a local address that has no pair with the endpoint.
    pub fn take(&mut self, id: EndpointId, endpoint: SocketAddr) -> Option<IpAddr> {
        // A pair from before a new configuration may hold an address that this pool never gave.
        // Where there are many such pairs, the next flow looks on from where this flow gives up.
        for _ in 0..MOST_TRIES {
            let local = self.pools.get_mut(id.index())?.take()?;
            if self.find(endpoint, local).is_none() {
                return Some(local);
            }
            self.give_back(id, local);
        }
        None
    }

    /// Makes `slot` a pair with an address that was taken.
    pub fn insert(&mut self, slot: u32, pair: Pair) {
        let at = slot as usize;
        if self.pairs.len() <= at {
            self.pairs.resize(at + 1, pair);
        }
        self.pairs[at] = pair;
        let (pairs, hasher) = (&self.pairs, &self.hasher);
        let hash = |pair: Pair| hasher.hash_one((pair.endpoint, pair.local));
        self.index.insert_unique(hash(pair), slot, |slot| hash(pairs[*slot as usize]));
        self.socket_of(pair.endpoint.is_ipv4()).pairs += 1;
    }

    /// Ends a pair, and returns its address to the pool that has the address. If the socket has no
    /// pairs any more, returns the socket's upstream slot. The caller must close that socket, which
    /// counts as closed here.
    pub fn remove(&mut self, slot: u32, id: EndpointId) -> Option<u32> {
        let Pair { endpoint, local } = self.get(slot);
        let hash = self.hasher.hash_one((endpoint, local));
        let entry = self.index.find_entry(hash, |other| *other == slot);
        entry.expect("a pair is in the index").remove();
        self.give_back(id, local);
        let socket = self.socket_of(endpoint.is_ipv4());
        socket.pairs -= 1;
        let unused = socket.pairs == 0 && socket.slot != NONE;
        unused.then(|| std::mem::replace(socket, CLOSED).slot)
    }

    /// Whether the pair may serve another flow: its address is still one of the endpoint's
    /// addresses.
    pub fn is_in_pool(&self, slot: u32, id: EndpointId) -> bool {
        self.pools.get(id.index()).is_some_and(|pool| pool.has(self.get(slot).local))
    }

    /// The upstream slot of the socket for endpoints of this IP version.
    pub fn socket(&self, ipv4: bool) -> Option<u32> {
        Some(self.sockets[usize::from(!ipv4)].slot).filter(|slot| *slot != NONE)
    }

    pub fn opened(&mut self, ipv4: bool, slot: u32) {
        self.socket_of(ipv4).slot = slot;
    }

    /// The socket in this slot could not be opened. Returns the slots of its pairs.
    pub fn failed(&mut self, slot: u32) -> Vec<u32> {
        let Some(at) = self.sockets.iter().position(|socket| socket.slot == slot) else {
            return Vec::new();
        };
        self.sockets[at].slot = NONE;
        let through_it = |slot: &&u32| self.get(**slot).endpoint.is_ipv4() == (at == 0);
        self.index.iter().filter(through_it).copied().collect()
    }

    /// The socket in this slot stopped receiving.
    pub fn stopped(&mut self, slot: u32) {
        for socket in self.sockets.iter_mut().filter(|socket| socket.slot == slot) {
            socket.stopped = true;
        }
    }

    /// The socket receives again only after a pause, and until then nothing is read.
    pub fn paused(&mut self, slot: u32) {
        self.set_paused(slot, true);
    }

    pub fn resumed(&mut self, slot: u32) {
        self.set_paused(slot, false);
        self.stopped(slot);
    }

    fn set_paused(&mut self, slot: u32, paused: bool) {
        for socket in self.sockets.iter_mut().filter(|socket| socket.slot == slot) {
            socket.paused = paused;
        }
    }

    /// Ends a turn: all datagrams that the sockets had received were read, unless a socket stopped
    /// meanwhile.
    pub fn turn_over(&mut self, now: u64) {
        for socket in &mut self.sockets {
            let stopped = std::mem::take(&mut socket.stopped);
            if socket.paused {
                continue;
            }
            if stopped && socket.stops < MOST_STOPS {
                socket.stops += 1;
            } else {
                (socket.stops, socket.read) = (0, now);
            }
        }
    }

    /// All datagrams that the pair's socket had received by this time were read.
    pub fn read_until(&self, slot: u32) -> u64 {
        self.sockets[usize::from(!self.get(slot).endpoint.is_ipv4())].read
    }

    fn give_back(&mut self, id: EndpointId, local: IpAddr) {
        if let Some(pool) = self.pools.get_mut(id.index())
            && pool.has(local)
        {
            pool.back.push_back(local);
        }
    }

    fn socket_of(&mut self, ipv4: bool) -> &mut SharedSocket {
        &mut self.sockets[usize::from(!ipv4)]
    }
}

/// The maximum number of addresses that are looked at for one flow.
const MOST_TRIES: u32 = 64;

impl Pool {
    fn take(&mut self) -> Option<IpAddr> {
        let (at, index) = self.fresh;
        let Some(sources) = self.sources.get(at) else { return self.back.pop_front() };
        let next = index + 1;
        self.fresh = if next == sources.count { (at + 1, 0) } else { (at, next) };
        Some(sources.at(index))
    }

    fn has(&self, address: IpAddr) -> bool {
        self.sources.iter().any(|sources| sources.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use config_sync::table::routing::{Backend, BackendId, Balance, Endpoint, SocketOptions};
    use config_sync::table::turns::turns;
    use proptest::prelude::*;

    use super::*;

    /// Endpoint `n` has the sources at index `n`. `None`: the sockets of that endpoint are not
    /// shared.
    fn table(sources: &[Option<Sources>]) -> RoutingTable {
        let backend = |(id, sources): (u32, &Option<Sources>)| Backend {
            id: BackendId(id),
            name: Arc::from("b"),
            balance: Balance::Random,
            endpoints: vec![Endpoint {
                id: EndpointId(id),
                address: endpoint(id).into(),
                weight: 1,
            }],
            turns: turns(&[1]),
            loads: Vec::new(),
            queue: None,
            limit: None,
            connect_timeout: 1,
            connect_attempts: 1,
            rest: 10_000,
            options: SocketOptions {
                nodelay: true,
                keepalive: 0,
                user_timeout: 0,
                congestion: [0; 16],
            },
            source: sources.iter().copied().collect(),
            interface: 0,
            shared_sockets: sources.is_some(),
            upstream_rest: 2_000,
            send_proxy: None,
            fast_path: false,
            fast_path_after: 16,
            transparent: false,
            tls: None,
        };
        let backends = (0..).zip(sources).map(backend).collect();
        RoutingTable { backends, ..RoutingTable::empty() }
    }

    fn endpoint(id: u32) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], u16::try_from(id).unwrap() + 1))
    }

    fn sources(first: u8, count: u32) -> Sources {
        Sources { first: [127, 1, 0, first].into(), count }
    }

    #[derive(Clone, Debug)]
    enum Act {
        Open(u32),
        End(prop::sample::Index),
        Sources(u32, Option<Sources>),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let endpoint = 0..2_u32;
        let some = (0..4_u8, 1..9_u32).prop_map(|(first, count)| sources(first, count));
        let act = prop_oneof![
            6 => endpoint.clone().prop_map(Act::Open),
            4 => any::<prop::sample::Index>().prop_map(Act::End),
            1 => (endpoint, prop::option::weighted(0.8, some))
                .prop_map(|(id, sources)| Act::Sources(id, sources)),
        ];
        prop::collection::vec(act, 1..200)
    }

    proptest! {
        /// Pairs come and go, and pools change: no address is given twice, and an address is given
        /// while there is one.
        #[test]
        fn an_address_is_given_while_there_is_one(acts in acts()) {
            let mut now = [Some(sources(0, 4)), None];
            let mut pairs = Pairs::new(64, 7);
            pairs.table_applied(&table(&now));
            let mut open: BTreeMap<u32, Pair> = BTreeMap::new();
            for act in acts {
                match act {
                    Act::Open(id) => {
                        let endpoint = endpoint(id);
                        let used = |local| open.values().any(|o| *o == Pair { endpoint, local });
                        let mut pool = now[id as usize].into_iter()
                            .flat_map(|pool| (0..pool.count).map(move |index| pool.at(index)));
                        let free = pool.any(|local| !used(local));
                        let taken = pairs.take(EndpointId(id), endpoint);
                        prop_assert_eq!(taken.is_some(), free);
                        if let Some(local) = taken {
                            prop_assert!(now[id as usize].unwrap().contains(local));
                            prop_assert!(!used(local));
                            let slot = (0..).find(|slot| !open.contains_key(slot)).unwrap();
                            pairs.insert(slot, Pair { endpoint, local });
                            open.insert(slot, Pair { endpoint, local });
                        }
                    }
                    Act::End(which) if !open.is_empty() => {
                        let slot = *which.get(&open.keys().copied().collect::<Vec<_>>());
                        let pair = open.remove(&slot).unwrap();
                        pairs.remove(slot, EndpointId(u32::from(pair.endpoint.port()) - 1));
                        prop_assert_eq!(pairs.find(pair.endpoint, pair.local), None);
                    }
                    Act::End(_) => {}
                    Act::Sources(id, sources) => {
                        now[id as usize] = sources;
                        pairs.table_applied(&table(&now));
                    }
                }
                prop_assert_eq!(pairs.len(), open.len());
                for (slot, pair) in &open {
                    prop_assert_eq!(pairs.find(pair.endpoint, pair.local), Some(*slot));
                }
            }
        }
    }

    #[test]
    fn what_was_longest_unused_is_taken_first() {
        let mut pairs = Pairs::new(8, 7);
        pairs.table_applied(&table(&[Some(sources(0, 3))]));
        let mut take = |slot| {
            let local = pairs.take(EndpointId(0), endpoint(0)).unwrap();
            pairs.insert(slot, Pair { endpoint: endpoint(0), local });
            pairs.remove(slot, EndpointId(0));
            local.to_string()
        };
        let taken: Vec<_> = (0..4).map(&mut take).collect();
        assert_eq!(taken, ["127.1.0.0", "127.1.0.1", "127.1.0.2", "127.1.0.0"]);
    }

    #[test]
    fn a_socket_goes_with_its_last_pair() {
        let mut pairs = Pairs::new(8, 7);
        pairs.table_applied(&table(&[Some(sources(0, 3))]));
        pairs.opened(true, 5);
        for slot in 0..2 {
            let local = pairs.take(EndpointId(0), endpoint(0)).unwrap();
            pairs.insert(slot, Pair { endpoint: endpoint(0), local });
        }
        assert_eq!((pairs.socket(true), pairs.socket(false)), (Some(5), None));
        assert_eq!(pairs.remove(0, EndpointId(0)), None);
        assert_eq!(pairs.remove(1, EndpointId(0)), Some(5));
        assert_eq!(pairs.socket(true), None);
        assert_eq!(pairs.failed(5), Vec::<u32>::new(), "it is nobody's any more");
    }

    #[test]
    fn a_socket_that_stopped_was_not_read() {
        let mut pairs = Pairs::new(8, 7);
        pairs.insert(0, Pair { endpoint: endpoint(0), local: [127, 1, 0, 0].into() });
        pairs.opened(true, 5);
        pairs.turn_over(10);
        assert_eq!(pairs.read_until(0), 10);
        for turn in 11..11 + u64::from(MOST_STOPS) {
            pairs.stopped(5);
            pairs.turn_over(turn);
            assert_eq!(pairs.read_until(0), 10);
        }
        // All datagrams from before the first stop have come by now.
        pairs.stopped(5);
        pairs.turn_over(500);
        assert_eq!(pairs.read_until(0), 500);
        pairs.turn_over(501);
        assert_eq!(pairs.read_until(0), 501);
    }
}
