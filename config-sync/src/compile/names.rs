//! Ids that stay the same from table to table, and the names behind the ids.
//!
//! An id goes to another name only when nothing can refer to the old name any more. Sessions
//! outlive the tables in which they were opened, workers keep state by id, and counters and log
//! lines use ids. So the id of a name that has left the tables is free once:
//!
//! 1. every worker has applied a table without the name,
//! 2. no worker keeps an older table because a listening socket drains,
//! 3. the workers' counters show no session or flow of the name,
//! 4. and ten minutes have passed since the name left. Within ten minutes everything ends that the
//!    other rules do not cover: upstream sockets at rest, connections in the making, log lines on
//!    their way.
//!
//! Backends have to wait for their endpoints.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ahash::RandomState;

use crate::compile::tls::cache::Cache;
use crate::compile::tls::expiry::Expiry;
use crate::compile::tls::tickets::Tickets;
use crate::model::place::Problem;
use crate::table::address::EndpointAddress;
use crate::table::limit::Usage;
use crate::table::load::{Line, SharedCount, Taken};
use crate::table::routing::{
    BackendId, Bound, EndpointId, ListenerId, MAX_ENDPOINTS, MAX_LISTENERS, MAX_ROUTES,
    MAX_SOCKETS, RouteId, RoutingTable, SocketId,
};
use crate::table::source_limit::{MOST_SOURCES, SourceRecords};

/// The ten minutes of the module's fourth rule.
const REST: Duration = Duration::from_secs(600);

/// Gives every name an id. The id stays the same while the name is in the tables, and for some time
/// after.
#[derive(Clone, Debug)]
pub struct Names {
    pub(crate) sockets: Ids<Bound>,
    pub(crate) listeners: Ids<String>,
    pub(crate) routes: Ids<String>,
    pub(crate) backends: Ids<String>,
    pub(crate) endpoints: Ids<(BackendId, EndpointAddress)>,
    /// The sessions of endpoints, over all workers. Endpoints that nobody asked for are not there.
    sessions: BTreeMap<EndpointId, Arc<SharedCount>>,
    /// The names that the configuration gives to endpoints. Few endpoints have one.
    called: BTreeMap<EndpointId, Arc<str>>,
    lines: BTreeMap<BackendId, Arc<Line>>,
    /// The sessions of listeners that have a limit.
    taken: BTreeMap<ListenerId, Arc<Taken>>,
    /// What is in use of the limits of parts, for as long as a table or session has it.
    usages: BTreeMap<LimitKey, Weak<Usage>>,
    /// `None`: no listener or route has limited its sources so far.
    sources: Option<Arc<SourceRecords>>,
    pub(crate) tickets: Tickets,
    pub(crate) loaded: Cache,
    /// `latest` is of the table that was compiled last, which may be refused; `expiries` is of the
    /// table in force.
    pub(crate) latest: Vec<Expiry>,
    expiries: Vec<Expiry>,
    pub(crate) doubts: Vec<Problem>,
}

/// Whose limit it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum LimitKey {
    Process,
    Listener(String),
    Route(String),
    Backend(String),
    Endpoint(EndpointId),
    Shared(String),
}

/// Says who may still refer to ids that have left the tables.
pub struct InUse<'a> {
    /// The generation that every worker has reached.
    pub applied: u64,
    /// Ranges of generations. A worker may keep a table of such a range because a socket drains. A
    /// range begins after the first generation and ends before the second.
    pub kept: &'a BTreeSet<(u64, u64)>,
    /// Whether some worker has not yet closed this listening socket.
    pub closing: &'a dyn Fn(SocketId) -> bool,
    /// Whether the listener, route or endpoint has sessions or flows.
    pub listener: &'a dyn Fn(ListenerId) -> bool,
    pub route: &'a dyn Fn(RouteId) -> bool,
    pub endpoint: &'a dyn Fn(EndpointId) -> bool,
}

/// Ids that have lost their names. Other names may get these ids.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Retired {
    pub listeners: Vec<ListenerId>,
    pub routes: Vec<RouteId>,
    pub endpoints: Vec<EndpointId>,
}

impl Names {
    pub fn new() -> Self {
        Self {
            sockets: Ids::below(MAX_SOCKETS),
            listeners: Ids::below(MAX_LISTENERS),
            routes: Ids::below(MAX_ROUTES),
            backends: Ids::below(u32::MAX as usize),
            endpoints: Ids::below(MAX_ENDPOINTS),
            sessions: BTreeMap::new(),
            called: BTreeMap::new(),
            lines: BTreeMap::new(),
            taken: BTreeMap::new(),
            usages: BTreeMap::new(),
            sources: None,
            tickets: Tickets::default(),
            loaded: Cache::default(),
            latest: Vec::new(),
            expiries: Vec::new(),
            doubts: Vec::new(),
        }
    }

    /// Notes that a table has been given out with this generation. Names that are not in the table
    /// have left.
    pub fn published(&mut self, table: &RoutingTable, generation: u64, now: Instant) {
        self.expiries.clone_from(&self.latest);
        let at = (generation, now);
        self.sockets.published(at, table.sockets.iter().map(|socket| socket.id.0));
        self.listeners.published(at, table.listeners.iter().map(|listener| listener.id.0));
        self.routes.published(at, table.routes.iter().map(|route| route.id.0));
        self.backends.published(at, table.backends.iter().map(|backend| backend.id.0));
        let endpoints = table.backends.iter().flat_map(|backend| &backend.endpoints);
        self.endpoints.published(at, endpoints.map(|endpoint| endpoint.id.0));
    }

    /// Takes the names from ids that nothing can refer to any more.
    pub fn retire(&mut self, in_use: &InUse<'_>, now: Instant) -> Retired {
        let endpoints =
            self.endpoints.retire(in_use, now, |id, _| (in_use.endpoint)(EndpointId(id)));
        let endpoints: Vec<_> = endpoints.into_iter().map(EndpointId).collect();
        for id in &endpoints {
            self.sessions.remove(id);
            self.called.remove(id);
        }
        let listeners =
            self.listeners.retire(in_use, now, |id, _| (in_use.listener)(ListenerId(id)));
        for id in &listeners {
            self.taken.remove(&ListenerId(*id));
        }
        self.tickets.retain(|listener| self.listeners.ids.contains_key(listener));
        self.sockets.retire(in_use, now, |id, _| (in_use.closing)(SocketId(id)));
        let named: BTreeSet<u32> =
            self.endpoints.ids.keys().map(|(backend, _)| backend.0).collect();
        for id in self.backends.retire(in_use, now, |id, _| named.contains(&id)) {
            self.lines.remove(&BackendId(id));
        }
        self.usages.retain(|_, usage| usage.strong_count() > 0);
        let routes = self.routes.retire(in_use, now, |id, _| (in_use.route)(RouteId(id)));
        Retired {
            listeners: listeners.into_iter().map(ListenerId).collect(),
            routes: routes.into_iter().map(RouteId).collect(),
            endpoints,
        }
    }

    /// The count of the endpoint's sessions. The count is the same while the endpoint has its id.
    pub(crate) fn sessions(&mut self, id: EndpointId) -> Arc<SharedCount> {
        Arc::clone(self.sessions.entry(id).or_default())
    }

    /// The places of the listener that are taken. The count is the same while the listener has its
    /// id.
    pub(crate) fn taken(&mut self, id: ListenerId) -> Arc<Taken> {
        Arc::clone(self.taken.entry(id).or_default())
    }

    /// What is in use of a limit. It is the same while anybody has it.
    pub(crate) fn usage(&mut self, key: LimitKey) -> Arc<Usage> {
        let known = self.usages.entry(key).or_default();
        known.upgrade().unwrap_or_else(|| {
            let usage = Arc::default();
            *known = Arc::downgrade(&usage);
            usage
        })
    }

    /// The line of the backend's waiting sessions. The line is the same while the backend has its
    /// id.
    pub(crate) fn line(&mut self, id: BackendId) -> Arc<Line> {
        Arc::clone(self.lines.entry(id).or_default())
    }

    /// The records of clients' sources, made when the first listener or route limits them.
    pub(crate) fn sources(&mut self) -> Arc<SourceRecords> {
        #[expect(clippy::disallowed_methods, reason = "drawn once; nobody outside may know it")]
        let made = || Arc::new(SourceRecords::new(MOST_SOURCES, RandomState::new().hash_one(0)));
        Arc::clone(self.sources.get_or_insert_with(made))
    }

    /// The records of clients' sources, if a listener or route has limited them.
    pub(crate) fn known_sources(&self) -> Option<&Arc<SourceRecords>> {
        self.sources.as_ref()
    }

    /// The certificates of the latest table that was given out.
    pub fn expiries(&self) -> &[Expiry] {
        &self.expiries
    }

    /// Oddities of the certificates, except for their ends.
    pub(crate) fn doubts(&self) -> &[Problem] {
        &self.doubts
    }

    pub fn socket(&self, id: SocketId) -> Option<&Bound> {
        self.sockets.name(id.0)
    }

    pub fn listener(&self, id: ListenerId) -> Option<&str> {
        self.listeners.name(id.0).map(String::as_str)
    }

    pub fn route(&self, id: RouteId) -> Option<&str> {
        self.routes.name(id.0).map(String::as_str)
    }

    pub fn backend(&self, id: BackendId) -> Option<&str> {
        self.backends.name(id.0).map(String::as_str)
    }

    /// The name of the endpoint's backend, and the endpoint's address.
    pub fn endpoint(&self, id: EndpointId) -> Option<(&str, EndpointAddress)> {
        let (backend, address) = *self.endpoints.name(id.0)?;
        Some((self.backend(backend)?, address))
    }

    /// Every listener that has an id, in a table or not.
    /// The endpoint's own name, if the configuration that had it last gave it one.
    pub fn endpoint_name(&self, id: EndpointId) -> Option<&str> {
        self.called.get(&id).map(|name| &**name)
    }

    pub(crate) fn call(&mut self, id: EndpointId, name: Option<&Arc<str>>) {
        match name {
            Some(name) => _ = self.called.insert(id, Arc::clone(name)),
            None => _ = self.called.remove(&id),
        }
    }

    pub fn listeners(&self) -> impl Iterator<Item = (ListenerId, &str)> {
        self.listeners.all().map(|(id, name)| (ListenerId(id), name.as_str()))
    }

    /// Every route that has an id, in a table or not.
    pub fn routes(&self) -> impl Iterator<Item = (RouteId, &str)> {
        self.routes.all().map(|(id, name)| (RouteId(id), name.as_str()))
    }

    /// Every backend that has an id, in a table or not.
    pub fn backends(&self) -> impl Iterator<Item = (BackendId, &str)> {
        self.backends.all().map(|(id, name)| (BackendId(id), name.as_str()))
    }

    /// Every endpoint that has an id, in a table or not, with its backend's name.
    pub fn endpoints(&self) -> impl Iterator<Item = (EndpointId, &str, EndpointAddress)> {
        self.endpoints.all().filter_map(|(id, (backend, address))| {
            Some((EndpointId(id), self.backend(*backend)?, *address))
        })
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::new()
    }
}

/// The fault of a name for which no id is left.
pub(crate) fn too_many(what: &str) -> String {
    format!("too many {what}: every number is in use, or was within the last ten minutes")
}

/// Gives ids from 0 up, in the order in which names are first seen. When all ids were given once,
/// free ids are given again, the longest free id first.
#[derive(Clone, Debug)]
pub(crate) struct Ids<K> {
    ids: BTreeMap<K, u32>,
    names: Vec<Option<Named<K>>>,
    free: VecDeque<u32>,
    limit: usize,
}

#[derive(Clone, Debug)]
struct Named<K> {
    name: K,
    /// The generation of the first table with the name. `u64::MAX` before that.
    born: u64,
    /// The generation of the first table without the name, and when that table was given out.
    left: Option<(u64, Instant)>,
}

impl<K: Ord + Clone> Ids<K> {
    fn below(limit: usize) -> Self {
        Self { ids: BTreeMap::new(), names: Vec::new(), free: VecDeque::new(), limit }
    }

    /// The id of `name`, which may be new. `None`: no id is left.
    pub(crate) fn id(&mut self, name: K) -> Option<u32> {
        if let Some(id) = self.ids.get(&name) {
            return Some(*id);
        }
        let named = Some(Named { name: name.clone(), born: u64::MAX, left: None });
        let next = u32::try_from(self.names.len()).ok();
        let id = match next.filter(|id| (*id as usize) < self.limit) {
            Some(id) => {
                self.names.push(named);
                id
            }
            None => {
                let id = self.free.pop_front()?;
                self.names[id as usize] = named;
                id
            }
        };
        self.ids.insert(name, id);
        Some(id)
    }

    /// The id of `name`, if it has one.
    pub(crate) fn known(&self, name: &K) -> Option<u32> {
        self.ids.get(name).copied()
    }

    pub(crate) fn name(&self, id: u32) -> Option<&K> {
        self.names.get(id as usize)?.as_ref().map(|named| &named.name)
    }

    fn all(&self) -> impl Iterator<Item = (u32, &K)> {
        let named = (0u32..).zip(&self.names);
        named.filter_map(|(id, named)| Some((id, &named.as_ref()?.name)))
    }

    /// A name of a table that was never given out has left as well.
    fn published(&mut self, (generation, now): (u64, Instant), present: impl Iterator<Item = u32>) {
        let mut here = vec![false; self.names.len()];
        present.for_each(|id| here[id as usize] = true);
        for (named, here) in self.names.iter_mut().zip(here) {
            let Some(named) = named else { continue };
            if here {
                named.born = named.born.min(generation);
                named.left = None;
            } else {
                named.left.get_or_insert((generation, now));
            }
        }
    }

    fn retire(
        &mut self,
        in_use: &InUse<'_>,
        now: Instant,
        lives: impl Fn(u32, &K) -> bool,
    ) -> Vec<u32> {
        let mut retired = Vec::new();
        for (id, slot) in (0u32..).zip(&mut self.names) {
            let Some(named) = slot else { continue };
            let Some((left, since)) = named.left else { continue };
            let kept = |(after, before): &(u64, u64)| named.born < *before && left > *after + 1;
            let free = left <= in_use.applied
                && now.saturating_duration_since(since) >= REST
                && !in_use.kept.iter().any(kept)
                && !lives(id, &named.name);
            if free && let Some(named) = slot.take() {
                self.ids.remove(&named.name);
                self.free.push_back(id);
                retired.push(id);
            }
        }
        retired
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn an_id_stays_and_no_two_names_have_the_same() {
        let mut ids = Ids::below(2);
        assert_eq!(ids.id("a"), Some(0));
        assert_eq!(ids.id("b"), Some(1));
        assert_eq!(ids.id("a"), Some(0));
        assert_eq!(ids.id("c"), None);
        assert_eq!(ids.name(1), Some(&"b"));
        assert_eq!(ids.name(2), None);
    }

    /// Two ids. `b` has left with table 2. The test asks which ids are free after `seconds`.
    struct World {
        ids: Ids<&'static str>,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            let mut ids = Ids::below(2);
            #[expect(clippy::disallowed_methods, reason = "any time will do")]
            let start = Instant::now();
            assert_eq!((ids.id("a"), ids.id("b")), (Some(0), Some(1)));
            ids.published((1, start), [0, 1].into_iter());
            ids.published((2, start), [0].into_iter());
            Self { ids, start }
        }

        fn retire(&mut self, applied: u64, kept: &[(u64, u64)], lives: bool, seconds: u64) -> bool {
            let in_use = InUse {
                applied,
                kept: &kept.iter().copied().collect(),
                closing: &|_| false,
                listener: &|_| false,
                route: &|_| false,
                endpoint: &|_| false,
            };
            let now = self.start + Duration::from_secs(seconds);
            let retired = self.ids.retire(&in_use, now, |_, _| lives);
            assert!(retired.is_empty() || retired == [1]);
            !retired.is_empty()
        }
    }

    #[test]
    fn an_id_is_free_when_nobody_can_speak_of_it() {
        let mut world = World::new();
        assert!(!world.retire(1, &[], false, 601), "a worker still has table 1");
        assert!(!world.retire(2, &[], true, 601), "a session lives");
        assert!(!world.retire(2, &[], false, 599), "it may still be on its way to the log");
        assert!(!world.retire(2, &[(0, 2)], false, 601), "a draining socket keeps table 1");
        assert!(!world.retire(3, &[(0, 9)], false, 601));
        assert_eq!(world.ids.id("c"), None);
        assert!(world.retire(2, &[(1, 3)], false, 601), "a socket keeps table 2, which has it not");
        assert_eq!(world.ids.name(1), None);
        assert_eq!(world.ids.id("c"), Some(1));
        assert_eq!(world.ids.id("b"), None, "it is as any other name now");
        assert_eq!(world.ids.all().collect::<Vec<_>>(), [(0, &"a"), (1, &"c")]);
    }

    #[test]
    fn a_name_that_comes_back_has_its_id_and_its_rest_begins_anew() {
        let mut world = World::new();
        let at = |seconds| world.start + Duration::from_secs(seconds);
        let (back, gone) = (at(300), at(400));
        assert_eq!(world.ids.id("b"), Some(1));
        world.ids.published((3, back), [0, 1].into_iter());
        assert!(!world.retire(3, &[], false, 900), "it is in the table");
        world.ids.published((4, gone), [0].into_iter());
        assert!(!world.retire(4, &[], false, 999));
        assert!(world.retire(4, &[], false, 1_000));
    }

    #[test]
    fn a_route_keeps_its_id_while_it_has_sessions() {
        let mut names = Names::new();
        #[expect(clippy::disallowed_methods, reason = "any time will do")]
        let start = Instant::now();
        let id = names.routes.id("web".into()).map(RouteId).expect("the first");
        names.published(&RoutingTable::empty(), 1, start);
        let mut retire = |lives: bool| {
            let in_use = InUse {
                applied: 1,
                kept: &BTreeSet::new(),
                closing: &|_| false,
                listener: &|_| false,
                route: &|of| of == id && lives,
                endpoint: &|_| false,
            };
            names.retire(&in_use, start + REST).routes
        };
        assert_eq!(retire(true), []);
        assert_eq!(retire(false), [id]);
        assert_eq!(names.route(id), None);
    }

    #[test]
    fn a_cluster_may_churn_for_ever() {
        let mut names = Names::new();
        #[expect(clippy::disallowed_methods, reason = "any time will do")]
        let start = Instant::now();
        let backend = BackendId(names.backends.id("b".into()).expect("the first"));
        for round in 0..40u16 {
            let now = start + REST * u32::from(round);
            for port in 0..5_000u16 {
                let address =
                    SocketAddr::from(([10, 0, 0, u8::try_from(round).expect("few")], port));
                assert!(names.endpoints.id((backend, address.into())).is_some(), "{round}");
            }
            let generation = u64::from(round) + 1;
            names.published(&RoutingTable::empty(), generation, now);
            let in_use = InUse {
                applied: generation,
                kept: &BTreeSet::new(),
                closing: &|_| false,
                listener: &|_| false,
                route: &|_| false,
                endpoint: &|_| false,
            };
            let before = names.retire(&in_use, now).endpoints.len();
            assert_eq!(before, if round == 0 { 0 } else { 5_000 });
        }
        assert_eq!(names.endpoints().count(), 5_000, "the last have not rested yet");
    }
}
