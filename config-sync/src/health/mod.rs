//! Decides which endpoints may be picked: checks endpoints on a schedule, and takes the results
//! into the table.
//!
//! [`Health`] does no I/O: the caller asks which checks are due, gives the findings, and asks for
//! the standing of each endpoint. `checks.rs` makes the checks, by `probe/`. `ejection.rs` decides
//! by the failures of sessions and flows. `warming.rs` gives endpoints that return less at first.

pub(crate) mod checks;
pub mod ejection;
mod plan;
pub mod probe;
mod queue;
mod unverified;
pub mod warming;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::health::plan::Plan;
use crate::health::queue::{Line, Pace, Queue};
use crate::model::config::Config;
use crate::model::endpoint::Standing;
use crate::model::health_check::HealthCheck;
use crate::table::address::EndpointAddress;
use crate::table::maglev;
use crate::table::routing::{Backend, RoutingTable};
use crate::table::terminator::Originator;

/// The most checks that may be under way at once in a process with this limit of open files. Each
/// check has a file open, and sessions need most of the files.
pub(crate) fn places(files: u64) -> usize {
    usize::try_from(files / 16).unwrap_or(usize::MAX).clamp(512, 4_096)
}

/// The share of an endpoint that does not ask for another, in percent.
const FULL: u16 = 100;

/// Whether an endpoint may be picked, and how near the endpoint is to the opposite state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// `failed`: the number of failed checks since the last good one.
    Up { failed: u8 },
    /// `passed`: the number of good checks since the last failed one.
    Down { passed: u8 },
}

impl State {
    /// The state before the first check: up, because a new endpoint must not wait for its first
    /// check. One failed check is enough to take the endpoint down.
    pub fn new(check: &HealthCheck) -> Self {
        Self::Up { failed: check.fall.saturating_sub(1) }
    }

    pub fn after(self, good: bool, check: &HealthCheck) -> Self {
        match (self, good) {
            (Self::Up { .. }, true) => Self::Up { failed: 0 },
            (Self::Up { failed }, false) if failed.saturating_add(1) < check.fall => {
                Self::Up { failed: failed + 1 }
            }
            (Self::Up { .. }, false) | (Self::Down { .. }, false) => Self::Down { passed: 0 },
            (Self::Down { passed }, true) if passed.saturating_add(1) < check.rise => {
                Self::Down { passed: passed + 1 }
            }
            (Self::Down { .. }, true) => Self::Up { failed: 0 },
        }
    }

    pub fn is_up(self) -> bool {
        matches!(self, Self::Up { .. })
    }

    /// Milliseconds to the next check.
    fn pause(self, check: &HealthCheck) -> u32 {
        match self {
            Self::Up { failed: 0 } => check.interval,
            Self::Down { passed: 0 } => check.down_interval,
            Self::Up { .. } | Self::Down { .. } => check.fast_interval,
        }
    }
}

/// All endpoints that are checked.
#[derive(Clone, Debug, Default)]
pub struct Health {
    backends: BTreeMap<Arc<str>, Checked>,
    /// By [`Pace`].
    queues: [Queue; 2],
    /// When an endpoint's state first changed without a table that has the change.
    changed: Option<Instant>,
    /// The most checks that are under way at once.
    places: usize,
    /// For random delays. Gateways must not have the same delays, or `jitter` would not keep their
    /// checks apart.
    seed: u64,
}

#[derive(Clone, Debug)]
struct Checked {
    plan: Arc<Plan>,
    tally: Tally,
    endpoints: BTreeMap<EndpointAddress, Known>,
    /// Why endpoints are down: the latest failed check of each.
    reasons: BTreeMap<EndpointAddress, String>,
    /// By [`Pace`].
    lines: [Line; 2],
}

#[derive(Clone, Copy, Debug)]
struct Known {
    state: State,
    /// The share of its weight that the endpoint asks for, in percent.
    share: u16,
    /// When the next check begins, or when the check that is under way should have begun.
    due: Instant,
    /// The same without the random delay.
    slot: Instant,
    /// When the check that is under way began.
    began: Option<Instant>,
    pace: Pace,
    /// The number of checks so far, for random delays.
    nth: u32,
}

/// The numbers of a backend's checks, by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub ok: u64,
    pub failed: u64,
    /// Checks that this machine could not make, and that say nothing about the endpoint.
    pub not_made: u64,
}

/// Figures for operators.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Each endpoint by its backend and address, and whether it is up.
    pub endpoints: Vec<(Arc<str>, EndpointAddress, bool)>,
    pub checks: Vec<(Arc<str>, Tally)>,
}

/// A check to be made.
#[derive(Clone, Debug)]
pub struct Probe {
    pub backend: Arc<str>,
    pub endpoint: EndpointAddress,
    plan: Arc<Plan>,
    source: Option<IpAddr>,
    due: Instant,
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Good,
    /// The endpoint is well, and asks for this share of its weight, in percent.
    Share(u16),
    Bad(String),
    /// This machine could not make the check: no file or no port was free.
    NotMade(String),
}

/// The TLS of health checks that do not verify as sessions do, by backend.
pub type OwnTls = BTreeMap<String, Arc<Originator>>;

impl Health {
    /// `places` is the most checks that are under way at once; `seed` is for random delays.
    pub fn new(places: usize, seed: u64) -> Self {
        Self { places, seed, ..Self::default() }
    }

    /// The health of another configuration's endpoints. Known endpoints keep their states, so a
    /// reload brings no endpoint back. `whole` is the compiled table with all endpoints.
    #[must_use]
    pub fn following(
        &self,
        config: &Config,
        (whole, own): (&RoutingTable, &OwnTls),
        now: Instant,
    ) -> Self {
        let mut next = Self::new(self.places, self.seed);
        let compiled: BTreeMap<&str, &Backend> =
            whole.backends.iter().map(|backend| (&*backend.name, backend)).collect();
        for backend in &config.backends {
            let Some(check) = &backend.health_check else { continue };
            let name: Arc<str> = backend.name.value.as_str().into();
            let Some(compiled) = compiled.get(&*name) else { continue };
            let originator = own.get(&*name).or(compiled.tls.as_ref()).map(|of| &**of);
            let plan = Plan::new(backend, check.value.clone(), originator);
            let before = self.backends.get(&name);
            let changed = before.is_some_and(|before| before.plan.check != plan.check);
            let tally = before.map(|before| before.tally).unwrap_or_default();
            let mut reasons = before.map(|before| before.reasons.clone()).unwrap_or_default();
            reasons.retain(|at, _| compiled.endpoints.iter().any(|of| of.address == *at));
            let (endpoints, lines) = (BTreeMap::new(), Default::default());
            let mut checked = Checked { plan: Arc::new(plan), tally, endpoints, reasons, lines };
            for endpoint in compiled.endpoints.iter().map(|endpoint| endpoint.address) {
                let known = before.and_then(|before| before.endpoints.get(&endpoint)).copied();
                checked.add(endpoint, known, changed, now);
            }
            next.add(name, checked);
        }
        next
    }

    fn add(&mut self, name: Arc<str>, checked: Checked) {
        for pace in Pace::ALL {
            self.queues[pace as usize].under_way += checked.lines[pace as usize].under_way;
        }
        self.backends.insert(Arc::clone(&name), checked);
        self.list(&name);
    }

    /// A check to make now, if a check is due and may begin while `under_way` checks are under way.
    /// `queue.rs` says which check is first.
    pub fn due(&mut self, under_way: usize, now: Instant) -> Option<Probe> {
        let free = self.places.saturating_sub(under_way);
        let slow = (self.places / 2).saturating_sub(self.queues[Pace::Slow as usize].under_way);
        let quick = self.queues[Pace::Quick as usize].next(free, now);
        let (backend, pace) = quick.map(|backend| (backend, Pace::Quick)).or_else(|| {
            let backend = self.queues[Pace::Slow as usize].next(free.min(slow), now)?;
            Some((backend, Pace::Slow))
        })?;
        self.unlist(&backend);
        let probe = self.begin(&backend, pace, now);
        self.list(&backend);
        probe
    }

    fn begin(&mut self, backend: &Arc<str>, pace: Pace, now: Instant) -> Option<Probe> {
        let checked = self.backends.get_mut(backend)?;
        let line = &mut checked.lines[pace as usize];
        let (due, endpoint) = line.due.pop_first()?;
        line.under_way += 1;
        self.queues[pace as usize].under_way += 1;
        checked.endpoints.get_mut(&endpoint)?.began = Some(now);
        let ip = endpoint.ip();
        let same = |source: &&IpAddr| ip.is_some_and(|ip| ip.is_ipv4() == source.is_ipv4());
        let source = checked.plan.sources.iter().find(same).copied();
        let (backend, plan) = (Arc::clone(backend), Arc::clone(&checked.plan));
        Some(Probe { backend, endpoint, plan, source, due })
    }

    /// Takes the finding of a check. The finding is ignored if the endpoint is no longer
    /// configured.
    pub fn found(&mut self, probe: &Probe, finding: &Finding, now: Instant) {
        let Probe { backend, endpoint, due, .. } = probe;
        self.unlist(backend);
        self.take(backend, *endpoint, *due, finding, now);
        self.list(backend);
    }

    fn take(
        &mut self,
        backend: &str,
        endpoint: EndpointAddress,
        due: Instant,
        finding: &Finding,
        now: Instant,
    ) {
        let Some(checked) = self.backends.get_mut(backend) else { return };
        let Checked { plan, tally, endpoints, reasons, lines } = checked;
        let check = &plan.check;
        let known = endpoints.get_mut(&endpoint).filter(|known| known.due == due);
        let Some(known) = known else { return };
        let Some(began) = known.began.take() else { return };
        lines[known.pace as usize].under_way -= 1;
        self.queues[known.pace as usize].under_way -= 1;
        known.pace = Pace::of(now.saturating_duration_since(began));
        let (count, good) = match finding {
            Finding::Good | Finding::Share(_) => (&mut tally.ok, true),
            Finding::Bad(_) => (&mut tally.failed, false),
            Finding::NotMade(why) => {
                tally.not_made += 1;
                tracing::debug!("no check of endpoint {endpoint} of backend {backend}: {why}");
                known.wait(endpoint, check, self.seed, now);
                lines[known.pace as usize].due.insert((known.due, endpoint));
                return;
            }
        };
        *count += 1;
        let before = known.state;
        known.state = before.after(good, check);
        known.wait(endpoint, check, self.seed, now);
        lines[known.pace as usize].due.insert((known.due, endpoint));
        match finding {
            Finding::Bad(why) if !known.up() => _ = reasons.insert(endpoint, why.clone()),
            _ if known.up() => _ = reasons.remove(&endpoint),
            _ => {}
        }
        if known.ask_for(finding) {
            let share = known.share;
            tracing::info!(
                "endpoint {endpoint} of backend {backend} asks for {share} % of its weight"
            );
            self.changed.get_or_insert(now);
        }
        if known.state.is_up() == before.is_up() {
            return;
        }
        match finding {
            Finding::Bad(why) => {
                tracing::warn!("endpoint {endpoint} of backend {backend} is down: {why}");
            }
            _ => tracing::info!(
                "endpoint {endpoint} of backend {backend} is up again: good checks in a row: {}",
                check.rise
            ),
        }
        self.changed.get_or_insert(now);
    }

    /// Puts a backend's lines into the queues that [`Self::due`] reads.
    fn list(&mut self, backend: &Arc<str>) {
        let Some(checked) = self.backends.get(backend) else { return };
        for (queue, line) in self.queues.iter_mut().zip(&checked.lines) {
            queue.add(backend, line);
        }
    }

    /// Takes a backend's lines out of the queues, so that the lines may change.
    fn unlist(&mut self, backend: &Arc<str>) {
        let Some(checked) = self.backends.get(backend) else { return };
        for (queue, line) in self.queues.iter_mut().zip(&checked.lines) {
            queue.remove(backend, line);
        }
    }

    /// Whether the endpoint may be picked. An endpoint that is not checked may.
    pub fn standing(&self, backend: &str, endpoint: EndpointAddress) -> Standing {
        let checked = self.backends.get(backend);
        let known = checked.and_then(|checked| checked.endpoints.get(&endpoint));
        known.map_or(Standing::UP, |known| {
            let share = u8::try_from(known.share.min(FULL)).unwrap_or(100);
            Standing { is_up: known.up(), share, weight: None }
        })
    }

    /// What the latest failed check of an endpoint that is down has found.
    pub(crate) fn why_down(&self, backend: &str, endpoint: EndpointAddress) -> Option<&str> {
        self.backends.get(backend)?.reasons.get(&endpoint).map(String::as_str)
    }

    pub fn figures(&self) -> Figures {
        let mut figures = Figures::default();
        for (backend, checked) in &self.backends {
            let endpoints = checked.endpoints.iter();
            let endpoints = endpoints.map(|(at, known)| (Arc::clone(backend), *at, known.up()));
            figures.endpoints.extend(endpoints);
            figures.checks.push((Arc::clone(backend), checked.tally));
        }
        figures
    }
}

impl Checked {
    /// Adds an endpoint. `known` is what was known of it. `changed`: the check has other settings
    /// than before.
    fn add(
        &mut self,
        endpoint: EndpointAddress,
        known: Option<Known>,
        changed: bool,
        now: Instant,
    ) {
        let check = &self.plan.check;
        let first = now + spread(endpoint, check.interval);
        let mut known = known.unwrap_or_else(|| Known::new(check, first));
        if changed && known.began.is_none() {
            known.due = known.due.min(first);
            known.slot = known.due;
        }
        let line = &mut self.lines[known.pace as usize];
        if known.began.is_some() {
            line.under_way += 1;
        } else {
            line.due.insert((known.due, endpoint));
        }
        self.endpoints.insert(endpoint, known);
    }
}

impl Known {
    fn new(check: &HealthCheck, first: Instant) -> Self {
        let (state, pace) = (State::new(check), Pace::Quick);
        Self { state, share: FULL, due: first, slot: first, began: None, pace, nth: 0 }
    }

    fn up(&self) -> bool {
        self.state.is_up()
    }

    /// Takes the share that a good check names. True if the share has changed.
    fn ask_for(&mut self, finding: &Finding) -> bool {
        let share = match finding {
            Finding::Good => FULL,
            Finding::Share(share) => *share,
            Finding::Bad(_) | Finding::NotMade(_) => return false,
        };
        std::mem::replace(&mut self.share, share) != share
    }

    /// Sets the time of the next check.
    fn wait(&mut self, endpoint: EndpointAddress, check: &HealthCheck, seed: u64, now: Instant) {
        let passed = now.saturating_duration_since(self.slot);
        self.slot += after(passed, self.state.pause(check));
        self.nth = self.nth.wrapping_add(1);
        let random = mixed(maglev::hash(endpoint) ^ seed ^ u64::from(self.nth));
        self.due = self.slot + Duration::from_millis(random % (u64::from(check.jitter) + 1));
    }
}

/// A number in which every bit hangs on every bit of `number` (the finalizer of SplitMix64).
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// When in the interval an endpoint has its checks. The checks must not all come at once. An
/// endpoint's time in the interval is the same after a restart.
fn spread(endpoint: EndpointAddress, interval: u32) -> Duration {
    let share = maglev::hash(endpoint) % u64::from(interval.max(1));
    Duration::from_millis(share)
}

/// The time from one check's due time to the due time of the next check. This is one `pause`; a
/// check that took longer makes the next check late. Checks that were missed are not made up for,
/// and checks stay spread.
fn after(passed: Duration, pause: u32) -> Duration {
    let pause = Duration::from_millis(pause.max(1).into());
    let whole = passed.as_nanos() / pause.as_nanos();
    let pauses = if whole < 2 { 1 } else { whole + 1 };
    pause * u32::try_from(pauses).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
