//! Decides which part of its weight an endpoint gets that is new or has returned (`slow_start`).
//!
//! [`Warming`] does no I/O: the caller says which endpoints may be picked, and asks for their
//! shares. A share grows in few steps, because each step is a table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::config::Config;
use crate::model::endpoint::Standing;
use crate::table::address::EndpointAddress;
use crate::table::routing::RoutingTable;

/// The steps from a tenth of the weight to the whole.
const STEPS: u32 = 9;

/// The least time from one table to a table that is made for a step. Steps of endpoints that have
/// returned one after another are gathered so.
const PAUSE: Duration = Duration::from_millis(250);

/// The endpoints of all backends with `slow_start`.
#[derive(Clone, Debug, Default)]
pub struct Warming {
    backends: BTreeMap<Arc<str>, Pool>,
    /// When a table for the next step is due.
    next: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Pool {
    lasts: Duration,
    endpoints: BTreeMap<EndpointAddress, State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The endpoint may not be picked, or has never been.
    Out,
    /// The endpoint may be picked since this time, and has not its whole weight yet.
    Warming(Instant),
    Warm,
}

impl Warming {
    /// The shares of another configuration's endpoints. Known endpoints go on as they are. All
    /// endpoints of a new backend are warm, because no other endpoint could have their part
    /// meanwhile.
    #[must_use]
    pub fn following(&self, config: &Config, whole: &RoutingTable) -> Self {
        let mut next = Self { next: self.next, ..Self::default() };
        let asked: BTreeMap<&str, u32> = config
            .backends
            .iter()
            .filter(|of| of.slow_start > 0)
            .map(|of| (of.name.value.as_str(), of.slow_start))
            .collect();
        for backend in &whole.backends {
            let Some(asked) = asked.get(&*backend.name) else { continue };
            let before = self.backends.get(&backend.name);
            let state = |at: &EndpointAddress| {
                let known = |before: &Pool| before.endpoints.get(at).copied().unwrap_or(State::Out);
                before.map_or(State::Warm, known)
            };
            let endpoints = backend.endpoints.iter().map(|of| (of.address, state(&of.address)));
            let lasts = Duration::from_millis((*asked).into());
            let pool = Pool { lasts, endpoints: endpoints.collect() };
            next.backends.insert(Arc::clone(&backend.name), pool);
        }
        next
    }

    /// Looks which endpoints may be picked in the table that is made now.
    pub fn look(&mut self, standing: &dyn Fn(&str, EndpointAddress) -> Standing, now: Instant) {
        let mut steps = Vec::new();
        for (name, pool) in &mut self.backends {
            for (at, state) in &mut pool.endpoints {
                *state = match (*state, standing(name, *at).may_be_picked()) {
                    (_, false) => State::Out,
                    (State::Out, true) => State::Warming(now),
                    (State::Warming(since), true) if now >= since + pool.lasts => State::Warm,
                    (state, true) => state,
                };
                if let State::Warming(since) = *state {
                    steps.push(since + after(step(since, pool.lasts, now) + 1, pool.lasts));
                }
            }
        }
        self.next = steps.into_iter().min().map(|at| at.max(now + PAUSE));
    }

    /// Whether a table is to be made, because a share has grown.
    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_some_and(|at| now >= at)
    }

    /// The time until an endpoint that warms up has its whole weight. `None`: it has.
    pub fn left(&self, backend: &str, endpoint: EndpointAddress, now: Instant) -> Option<Duration> {
        let pool = self.backends.get(backend)?;
        let State::Warming(since) = pool.endpoints.get(&endpoint)? else { return None };
        Some((*since + pool.lasts).saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// What remains of the standing of an endpoint while it warms up.
    pub fn standing(
        &self,
        backend: &str,
        endpoint: EndpointAddress,
        standing: Standing,
        now: Instant,
    ) -> Standing {
        let Some(pool) = self.backends.get(backend) else { return standing };
        let Some(State::Warming(since)) = pool.endpoints.get(&endpoint) else { return standing };
        let tenths = 1 + step(*since, pool.lasts, now).min(STEPS);
        let share = u32::from(standing.share) * tenths;
        // No share above 0 becomes 0: the endpoint may be the only one.
        let share = u8::try_from(share.div_ceil(STEPS + 1)).unwrap_or(standing.share);
        Standing { share, ..standing }
    }
}

/// The steps so far.
fn step(since: Instant, lasts: Duration, now: Instant) -> u32 {
    let passed = now.saturating_duration_since(since).as_nanos() * u128::from(STEPS);
    u32::try_from(passed / lasts.as_nanos()).unwrap_or(u32::MAX)
}

/// The time from the beginning to this step.
fn after(step: u32, lasts: Duration) -> Duration {
    // Rounded up: at this time the step has been made.
    (lasts * step + Duration::from_nanos((STEPS - 1).into())) / STEPS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::parse;
    use crate::compile::names::Names;
    use crate::compile::whole;
    use crate::compile::whole::Whole;
    use crate::model::endpoint::Resolved;

    /// A backend of endpoints 10.0.0.1, ports from 1 on.
    fn follow(before: &Warming, count: u16, slow_start: &str) -> Warming {
        follow_whole(before, count, slow_start).0
    }

    fn follow_whole(before: &Warming, count: u16, slow_start: &str) -> (Warming, Whole) {
        let endpoints: Vec<_> = (1..=count).map(|port| format!("\"10.0.0.1:{port}\"")).collect();
        let text = format!(
            "[[backends]]\nname = \"b\"\nendpoints = [{}]\nslow_start = \"{slow_start}\"\n",
            endpoints.join(", ")
        );
        let config = parse("test", &text).unwrap_or_else(|problems| panic!("{problems}"));
        let whole = whole(&config, &Resolved::default(), &mut Names::new()).expect("it fits");
        (before.following(&config, &whole.table), whole)
    }

    #[expect(clippy::disallowed_methods, reason = "any time will do")]
    fn start() -> Instant {
        Instant::now()
    }

    fn at(port: u16) -> EndpointAddress {
        std::net::SocketAddr::from(([10, 0, 0, 1], port)).into()
    }

    fn look(warming: &mut Warming, down: &[u16], now: Instant) {
        let down: Vec<_> = down.iter().copied().map(at).collect();
        let standing = |_: &str, at| match down.contains(&at) {
            true => Standing::DOWN,
            false => Standing::UP,
        };
        warming.look(&standing, now);
    }

    /// The shares of the endpoints 1 and 2.
    fn shares(warming: &Warming, now: Instant) -> [u8; 2] {
        [1, 2].map(|port| warming.standing("b", at(port), Standing::UP, now).share)
    }

    #[test]
    fn an_endpoint_that_returns_gets_a_tenth_and_then_more() {
        let start = start();
        let second = |count: u64| start + Duration::from_secs(count);
        let mut warming = follow(&Warming::default(), 2, "9s");
        look(&mut warming, &[], start);
        assert_eq!(shares(&warming, start), [100, 100], "at the beginning all are new");
        assert!(!warming.is_due(second(3_600)), "nothing warms up");
        look(&mut warming, &[1], second(10));
        look(&mut warming, &[], second(20));
        let mut seen = Vec::new();
        for now in 20..=29 {
            let just_before = second(now + 1) - Duration::from_nanos(1);
            assert!(!warming.is_due(just_before), "{now}");
            seen.push(shares(&warming, second(now))[0]);
            assert_eq!(warming.is_due(second(now + 1)), now < 29, "{now}");
            look(&mut warming, &[], second(now + 1));
        }
        assert_eq!(seen, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]);
        assert_eq!(shares(&warming, second(25)), [100, 100], "it is warm for good");
        // What the endpoint asks for itself counts too, and is never lost.
        look(&mut warming, &[1], second(40));
        look(&mut warming, &[], second(50));
        for (own, left) in [(50, 5), (1, 1), (0, 0)] {
            let own = Standing { is_up: true, share: own, weight: None };
            assert_eq!(warming.standing("b", at(1), own, second(50)).share, left);
        }
        look(&mut warming, &[1], second(51));
        look(&mut warming, &[], second(58));
        assert_eq!(shares(&warming, second(58)), [10, 100], "it begins anew");
    }

    #[test]
    fn a_new_endpoint_warms_up_beside_others_and_a_reload_goes_on() {
        let start = start();
        let second = |count: u64| start + Duration::from_secs(count);
        let mut warming = follow(&Warming::default(), 1, "9s");
        look(&mut warming, &[], start);
        warming = follow(&warming, 2, "9s");
        look(&mut warming, &[], second(1));
        assert_eq!(shares(&warming, second(1)), [100, 10]);
        warming = follow(&warming, 2, "18s");
        look(&mut warming, &[], second(5));
        assert_eq!(shares(&warming, second(5)), [100, 30], "the new time counts");
        warming = follow(&warming, 2, "0s");
        look(&mut warming, &[], second(6));
        assert_eq!(shares(&warming, second(6)), [100, 100]);
        assert!(!warming.is_due(second(60)));
    }

    #[test]
    fn each_step_gives_more_turns() {
        let start = start();
        let second = |count: u64| start + Duration::from_secs(count);
        let (mut warming, whole) = follow_whole(&Warming::default(), 2, "9s");
        look(&mut warming, &[2], start);
        look(&mut warming, &[], start);
        let turns = |now: u64| {
            let standing = |name: &str, at| warming.standing(name, at, Standing::UP, second(now));
            let table = whole.pickable(1, &standing, None);
            let turns = table.backends[0].turns.iter();
            [0, 1].map(|of| turns.clone().filter(|turn| **turn == of).count())
        };
        assert_eq!([0, 1, 4, 9].map(turns), [[10, 1], [5, 1], [2, 1], [1, 1]]);
    }

    #[test]
    fn steps_of_many_endpoints_make_few_tables() {
        let start = start();
        let mut warming = follow(&Warming::default(), 100, "10s");
        let all: Vec<u16> = (1..=100).collect();
        look(&mut warming, &all, start);
        for back in 1..=100u16 {
            let now = start + Duration::from_millis(back.into());
            look(&mut warming, &all[usize::from(back)..], now);
        }
        let mut tables = 0;
        for milli in 101..=20_000 {
            let now = start + Duration::from_millis(milli);
            if warming.is_due(now) {
                look(&mut warming, &[], now);
                tables += 1;
            }
        }
        assert!((9..=18).contains(&tables), "{tables}");
        assert!(!warming.is_due(start + Duration::from_secs(60)), "all are warm");
    }
    /// An endpoint that warms up goes on as it was when another one is added: envoyproxy/envoy
    /// issue 29008 (the window of the first was over at once).
    #[test]
    fn an_endpoint_that_is_added_ends_nobody_elses_slow_start() {
        let start = start();
        let second = |count: u64| start + Duration::from_secs(count);
        let mut warming = follow(&Warming::default(), 1, "9s");
        look(&mut warming, &[], start);
        warming = follow(&warming, 2, "9s");
        look(&mut warming, &[], second(0));
        look(&mut warming, &[], second(3));
        assert_eq!(shares(&warming, second(3)), [100, 40]);
        warming = follow(&warming, 3, "9s");
        look(&mut warming, &[], second(3));
        assert_eq!(shares(&warming, second(3)), [100, 40]);
        let third = warming.standing("b", at(3), Standing::UP, second(3)).share;
        assert_eq!(third, 10);
        look(&mut warming, &[], second(5));
        assert_eq!(shares(&warming, second(5)), [100, 60]);
    }
}
