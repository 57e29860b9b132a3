//! Decides which endpoints are left out because sessions and flows fail with them (`eject`).
//!
//! Workers only count failures. [`Ejections`] does no I/O: the caller says how many failures each
//! endpoint has had in all, and asks which endpoints are out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::config::Config;
use crate::model::eject::Eject;
use crate::model::endpoint::Standing;
use crate::table::address::EndpointAddress;
use crate::table::routing::{EndpointId, RoutingTable};

/// The endpoints of all backends with `eject`.
#[derive(Clone, Debug, Default)]
pub struct Ejections(BTreeMap<Arc<str>, Pool>);

#[derive(Clone, Debug)]
struct Pool {
    asked: Eject,
    endpoints: BTreeMap<EndpointAddress, Watched>,
    /// Ejections so far.
    count: u64,
}

#[derive(Clone, Debug)]
struct Watched {
    id: EndpointId,
    /// The configured weight.
    weight: u32,
    /// The failures in all, at the latest look. `None` before the first look: what was before does
    /// not count.
    seen: Option<u64>,
    /// Failures within the window, and when they were seen: no more entries than `failures`.
    recent: VecDeque<(Instant, u64)>,
    out_until: Option<Instant>,
    /// Ejections in a row.
    times: u32,
    /// If no failure is seen until then, the next ejection is the first in a row again.
    forgets: Option<Instant>,
}

/// Figures for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figure {
    pub backend: Arc<str>,
    /// Ejections so far.
    pub count: u64,
    /// Endpoints that are out now.
    pub out: usize,
}

impl Ejections {
    /// The ejections of another configuration's endpoints. Known endpoints stay out, or stay in.
    #[must_use]
    pub fn following(&self, config: &Config, whole: &RoutingTable) -> Self {
        let mut next = Self::default();
        let asked: BTreeMap<&str, Eject> = config
            .backends
            .iter()
            .filter_map(|of| Some((of.name.value.as_str(), of.eject.as_ref()?.value)))
            .collect();
        for backend in &whole.backends {
            let Some(asked) = asked.get(&*backend.name).copied() else { continue };
            let before = self.0.get(&backend.name);
            let endpoints = backend.endpoints.iter().map(|endpoint| {
                let known = before.and_then(|before| before.endpoints.get(&endpoint.address));
                let known = known.filter(|known| known.id == endpoint.id).cloned();
                let watched = known.unwrap_or_else(|| Watched::new(endpoint.id));
                (endpoint.address, Watched { weight: endpoint.weight, ..watched })
            });
            let pool = Pool {
                asked,
                endpoints: endpoints.collect(),
                count: before.map_or(0, |before| before.count),
            };
            next.0.insert(Arc::clone(&backend.name), pool);
        }
        next
    }

    /// Looks at the failures of all endpoints. True if an endpoint is out now or is back.
    pub fn look(&mut self, failures: &dyn Fn(EndpointId) -> u64, now: Instant) -> bool {
        let mut changed = false;
        for (name, pool) in &mut self.0 {
            changed |= pool.look(name, failures, now);
        }
        changed
    }

    /// Whether the endpoint is left out. If no endpoint would be left that is in and takes
    /// sessions, all are in: a doubtful endpoint is better than none. Without `fail_open` those
    /// that are out stay out. `takes` is given an endpoint's address and its configured weight.
    pub fn is_out(
        &self,
        backend: &str,
        endpoint: EndpointAddress,
        takes: &dyn Fn(EndpointAddress, u32) -> bool,
    ) -> bool {
        let Some(pool) = self.0.get(backend) else { return false };
        let is_out = |watched: &Watched| watched.out_until.is_some();
        let is_left = || pool.endpoints.iter().any(|(at, of)| !is_out(of) && takes(*at, of.weight));
        pool.endpoints.get(&endpoint).is_some_and(is_out) && (!pool.asked.fail_open || is_left())
    }

    /// The time until the endpoint's ejection ends. `None`: the endpoint is not ejected.
    pub(crate) fn left(
        &self,
        backend: &str,
        endpoint: EndpointAddress,
        now: Instant,
    ) -> Option<Duration> {
        let until = self.0.get(backend)?.endpoints.get(&endpoint)?.out_until?;
        Some(until.saturating_duration_since(now))
    }

    /// The standing of the endpoint, if nobody is ejected, and down if the endpoint is.
    pub(crate) fn standing(
        &self,
        others: &dyn Fn(&str, EndpointAddress) -> Standing,
        backend: &str,
        endpoint: EndpointAddress,
    ) -> Standing {
        let takes = |other, weight| others(backend, other).takes(weight);
        match self.is_out(backend, endpoint, &takes) {
            true => Standing::DOWN,
            false => others(backend, endpoint),
        }
    }

    pub fn figures(&self) -> Vec<Figure> {
        let figure = |(backend, pool): (&Arc<str>, &Pool)| Figure {
            backend: Arc::clone(backend),
            count: pool.count,
            out: pool.out(),
        };
        self.0.iter().map(figure).collect()
    }
}

impl Pool {
    fn look(&mut self, name: &str, failures: &dyn Fn(EndpointId) -> u64, now: Instant) -> bool {
        let (asked, all) = (self.asked, self.endpoints.len());
        let mut out = self.out();
        let mut changed = false;
        for (address, watched) in &mut self.endpoints {
            if watched.returns(now) {
                out -= 1;
                changed = true;
                tracing::info!("endpoint {address} of backend {name} is no longer ejected");
            }
            let recent = watched.count(failures(watched.id), &asked, now);
            let has_room = (out + 1) * 100 <= all * usize::from(asked.max_share);
            if watched.out_until.is_none() && recent >= u64::from(asked.failures) && has_room {
                let lasts = watched.eject(&asked, now);
                out += 1;
                self.count += 1;
                changed = true;
                tracing::warn!(
                    "endpoint {address} of backend {name} is ejected for {} s: {recent} failures \
                     within {} s",
                    lasts.as_secs_f64(),
                    Duration::from_millis(asked.window.into()).as_secs_f64()
                );
            }
        }
        changed
    }

    fn out(&self) -> usize {
        self.endpoints.values().filter(|watched| watched.out_until.is_some()).count()
    }
}

impl Watched {
    fn new(id: EndpointId) -> Self {
        Self {
            id,
            weight: 1,
            seen: None,
            recent: VecDeque::new(),
            out_until: None,
            times: 0,
            forgets: None,
        }
    }

    /// Ends the ejection, if its time is over.
    fn returns(&mut self, now: Instant) -> bool {
        let is_over = self.out_until.take_if(|until| now >= *until).is_some();
        if is_over {
            // Failures of sessions that had begun before do not count.
            self.recent.clear();
        }
        is_over
    }

    /// The failures within the window. `total`: the failures so far.
    fn count(&mut self, total: u64, asked: &Eject, now: Instant) -> u64 {
        let new = total.saturating_sub(self.seen.replace(total).unwrap_or(total));
        if new > 0 {
            self.recent.push_back((now, new));
        }
        let window = Duration::from_millis(asked.window.into());
        while self.recent.front().is_some_and(|(at, _)| *at + window <= now)
            || self.recent.len() > asked.failures as usize
        {
            self.recent.pop_front();
        }
        if new == 0 && self.out_until.is_none() && self.forgets.is_some_and(|at| now >= at) {
            (self.times, self.forgets) = (0, None);
        }
        self.recent.iter().map(|(_, count)| count).sum()
    }

    /// Leaves the endpoint out, and returns for how long.
    fn eject(&mut self, asked: &Eject, now: Instant) -> Duration {
        self.times = self.times.saturating_add(1);
        let lasts = asked.base.saturating_mul(self.times).min(asked.max);
        let lasts = Duration::from_millis(lasts.into());
        self.recent.clear();
        self.out_until = Some(now + lasts);
        // As long again in use, and no failure within the window.
        self.forgets = Some(now + 2 * lasts + Duration::from_millis(asked.window.into()));
        lasts
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::check::parse;
    use crate::compile::names::Names;
    use crate::compile::whole;
    use crate::model::endpoint::Resolved;

    /// A backend of endpoints 10.0.0.1, ports from 1 on.
    struct World {
        ejections: Ejections,
        failures: RefCell<BTreeMap<u32, u64>>,
        start: Instant,
    }

    impl World {
        fn new(count: u16, keys: &str) -> Self {
            #[expect(clippy::disallowed_methods, reason = "any time will do")]
            let start = Instant::now();
            let ejections = follow(&Ejections::default(), count, keys);
            let mut world = Self { ejections, failures: RefCell::default(), start };
            world.at(0);
            world
        }

        fn fail(&self, port: u16, times: u64) {
            *self.failures.borrow_mut().entry(u32::from(port) - 1).or_default() += times;
        }

        /// Looks at this many milliseconds. The ports that are out, where `sick` are not healthy.
        fn out(&mut self, millis: u64, sick: &[u16]) -> Vec<u16> {
            self.at(millis);
            let port = |of: EndpointAddress| of.socket_address().map_or(0, |at| at.port());
            let is_healthy = |at: EndpointAddress, _| !sick.contains(&port(at));
            let all = self.ejections.0["b"].endpoints.keys();
            let out = all.filter(|at| self.ejections.is_out("b", **at, &is_healthy));
            out.copied().map(port).collect()
        }

        fn at(&mut self, millis: u64) -> bool {
            let failures = |id: EndpointId| self.failures.borrow().get(&id.0).copied().unwrap_or(0);
            self.ejections.look(&failures, self.start + Duration::from_millis(millis))
        }
    }

    fn follow(before: &Ejections, count: u16, keys: &str) -> Ejections {
        let endpoints: Vec<_> = (1..=count).map(|port| format!("\"10.0.0.1:{port}\"")).collect();
        let endpoints = endpoints.join(", ");
        let text = format!("[[backends]]\nname = \"b\"\nendpoints = [{endpoints}]\n{keys}\n");
        let config = parse("test", &text).unwrap_or_else(|problems| panic!("{problems}"));
        let whole = whole(&config, &Resolved::default(), &mut Names::new()).expect("it fits");
        before.following(&config, &whole.table)
    }

    const NOBODY: [u16; 0] = [];
    const KEYS: &str = "eject = { failures = 3, window = \"1s\", base = \"10s\", max = \"25s\" }";

    #[test]
    fn so_many_failures_within_the_window_take_an_endpoint_out_for_a_while() {
        let mut world = World::new(4, KEYS);
        world.fail(1, 2);
        assert_eq!(world.out(100, &[]), NOBODY);
        world.fail(1, 1);
        assert_eq!(world.out(1_100, &[]), NOBODY, "two of them are too old");
        world.fail(1, 2);
        assert_eq!(world.out(1_200, &[]), [1]);
        world.fail(1, 9);
        assert!(!world.at(11_100), "nothing changes");
        assert_eq!(world.out(11_200, &[]), NOBODY, "and what failed meanwhile does not count");
        let figure = Figure { backend: "b".into(), count: 1, out: 0 };
        assert_eq!(world.ejections.figures(), [figure]);
    }

    #[test]
    fn each_ejection_in_a_row_lasts_longer() {
        let mut world = World::new(4, KEYS);
        let mut now = 0;
        let mut lasts = |world: &mut World, pause: u64| {
            now += pause;
            world.at(now);
            world.fail(1, 3);
            assert_eq!(world.out(now, &[]), [1]);
            let began = now;
            while world.out(now, &[]) == [1] {
                now += 100;
            }
            now - began
        };
        let mut seen = [0, 100, 100, 100].map(|pause| lasts(&mut world, pause)).to_vec();
        seen.push(lasts(&mut world, 60_000));
        assert_eq!(seen, [10_000, 20_000, 25_000, 25_000, 10_000]);
    }

    #[test]
    fn only_a_share_is_out_and_never_all() {
        let mut world = World::new(4, KEYS);
        (1..=4).for_each(|port| world.fail(port, 5));
        assert_eq!(world.out(100, &[]), [1, 2]);
        assert_eq!(world.out(200, &[3]), [1, 2]);
        assert_eq!(world.out(200, &[3, 4]), NOBODY, "all others are down, so all are in");
        let keys = KEYS.replace("failures", "max_share = 100, failures");
        let mut world = World::new(4, &keys);
        (1..=3).for_each(|port| world.fail(port, 5));
        assert_eq!(world.out(100, &[]), [1, 2, 3]);
        world.fail(4, 5);
        assert_eq!(world.out(200, &[]), NOBODY, "all would be out, so all are in");
        let mut alone = World::new(1, KEYS);
        alone.fail(1, 100);
        assert_eq!(alone.out(100, &[]), NOBODY);
    }

    #[test]
    fn without_fail_open_none_may_be_left() {
        let keys = KEYS.replace("failures", "fail_open = false, max_share = 100, failures");
        let mut world = World::new(2, &keys);
        world.fail(1, 3);
        assert_eq!(world.out(100, &[2]), [1], "the other is down");
        world.fail(2, 3);
        assert_eq!(world.out(200, &[]), [1, 2]);
        assert_eq!(world.out(10_150, &[]), [2], "each returns after its own time");
        let mut half = World::new(2, &keys.replace("100", "50"));
        (1..=2).for_each(|port| half.fail(port, 3));
        assert_eq!(half.out(100, &[]), [1], "the share still holds");
    }

    #[test]
    fn a_reload_keeps_what_is_known_and_failures_of_before_do_not_count() {
        let mut world = World::new(4, KEYS);
        world.fail(1, 3);
        assert_eq!(world.out(100, &[]), [1]);
        world.fail(5, 100);
        world.ejections = follow(&world.ejections, 6, KEYS);
        assert_eq!(world.out(200, &[]), [1], "who is new is in");
        world.ejections = follow(&world.ejections, 4, "");
        assert!(world.ejections.figures().is_empty());
        assert!(!world.ejections.is_out(
            "b",
            std::net::SocketAddr::from(([10, 0, 0, 1], 1)).into(),
            &|_, _| true
        ));
    }
    /// The share is the most that is out, also of few endpoints, where a share is no whole number
    /// of them: envoyproxy/envoy issues 3263 (one was always ejected), 26877 and 27066 (one more
    /// than the share was).
    #[test]
    fn no_more_than_the_share_is_out_of_few_endpoints() {
        for (count, share, most) in
            [(2, 10, 0), (3, 10, 0), (3, 33, 0), (3, 34, 1), (3, 50, 1), (3, 67, 2), (3, 99, 2)]
        {
            let keys = KEYS.replace("failures", &format!("max_share = {share}, failures"));
            let mut world = World::new(count, &keys);
            (1..=count).for_each(|port| world.fail(port, 9));
            let out = world.out(100, &[]);
            assert_eq!(out.len(), most, "{share} % of {count}: {out:?}");
        }
    }

    /// An endpoint that gets no sessions anyway is nobody's stand-in: nginx-proxy/nginx-proxy issue
    /// 1495 (beside a server that is marked down, the only other one was taken out).
    #[test]
    fn the_only_endpoint_with_a_weight_stays_in() {
        let text = |weight: u32| {
            format!(
                "[[backends]]\nname = \"b\"\nendpoints = [\"10.0.0.1:1\", {{ address = \
                 \"10.0.0.1:2\", weight = {weight} }}]\n{KEYS}\n"
            )
        };
        let at = |port: u16| std::net::SocketAddr::from(([10, 0, 0, 1], port)).into();
        for (configured, asked, is_up) in
            [(0, None, true), (1, Some(0), true), (1, None, false), (0, Some(1), false)]
        {
            let config = parse("test", &text(configured)).expect("a configuration");
            let whole = whole(&config, &Resolved::default(), &mut Names::new()).expect("it fits");
            let mut world = World::new(2, KEYS);
            world.ejections = Ejections::default().following(&config, &whole.table);
            world.at(0);
            world.fail(1, 3);
            world.at(100);
            let others = |_: &str, of: EndpointAddress| Standing {
                weight: asked.filter(|_| of == at(2)),
                ..Standing::UP
            };
            let standing = world.ejections.standing(&others, "b", at(1));
            assert_eq!(standing.is_up, is_up, "weight {configured}, {asked:?} is asked for");
        }
    }
}
