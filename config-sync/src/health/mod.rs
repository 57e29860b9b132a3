//! Decides which endpoints may be picked: checks endpoints on a schedule, and takes the results
//! into the table.
//!
//! [`Health`] does no I/O: the caller asks which checks are due, gives the findings, and gets the
//! table without the endpoints that are down. [`Checks`] makes the checks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::backoff::Backoff;
use crate::model::backend::Backend;
use crate::model::config::Config;
use crate::model::health_check::HealthCheck;
use crate::table::maglev;
use crate::table::routing::{Balance, RoutingTable};

/// The most checks that are under way at once; each check has a file open. Beyond this number, only
/// a backend with no check under way may begin one, up to `MOST_IN_ALL`.
const MOST_UNDER_WAY: usize = 256;
const MOST_IN_ALL: usize = 512;

/// The most checks of one backend that are under way at once. An endpoint that does not answer
/// holds a place until the timeout, and one backend must not hold up the checks of all others.
const MOST_OF_ONE: usize = 64;

/// How long changes of endpoints are gathered into one table. A rack that fails then makes a few
/// tables, not hundreds.
const GATHER: Duration = Duration::from_millis(100);

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
}

/// All endpoints that are checked.
#[derive(Clone, Debug, Default)]
pub struct Health {
    backends: BTreeMap<Arc<str>, Checked>,
    /// When each backend has its next check. `idle` has the backends with no check under way;
    /// `busy` has the backends that may have one more.
    idle: BTreeSet<(Instant, Arc<str>)>,
    busy: BTreeSet<(Instant, Arc<str>)>,
    /// When an endpoint's state first changed without a table that has the change.
    changed: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Checked {
    check: HealthCheck,
    /// Local addresses to connect from, as for sessions: one of each IP version, if any are given.
    sources: Vec<IpAddr>,
    tally: Tally,
    endpoints: BTreeMap<SocketAddr, Known>,
    /// Endpoints with no check under way.
    due: BTreeSet<(Instant, SocketAddr)>,
    under_way: usize,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    state: State,
    /// When the next check begins, or when the check that is under way should have begun.
    due: Instant,
    under_way: bool,
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
    pub endpoints: Vec<(Arc<str>, SocketAddr, bool)>,
    pub checks: Vec<(Arc<str>, Tally)>,
}

/// A check to be made.
#[derive(Clone, Debug)]
pub struct Probe {
    pub backend: Arc<str>,
    pub endpoint: SocketAddr,
    check: HealthCheck,
    source: Option<IpAddr>,
    due: Instant,
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Good,
    Bad(String),
    /// This machine could not make the check: no file or no port was free.
    NotMade(String),
}

impl Health {
    /// The health of another configuration's endpoints. Known endpoints keep their states, so a
    /// reload brings no endpoint back.
    #[must_use]
    pub fn following(&self, config: &Config, now: Instant) -> Self {
        let mut next = Self::default();
        for backend in &config.backends {
            let Some(check) = backend.health_check.as_ref().map(|check| check.value) else {
                continue;
            };
            let name: Arc<str> = backend.name.value.as_str().into();
            let before = self.backends.get(&name);
            let changed = before.is_some_and(|before| before.check != check);
            let (mut endpoints, mut due, mut under_way) = (BTreeMap::new(), BTreeSet::new(), 0);
            for endpoint in backend.endpoints.iter().map(|at| at.value) {
                let first = now + spread(endpoint, check.interval);
                let new = Known { state: State::new(&check), due: first, under_way: false };
                let known = before.and_then(|before| before.endpoints.get(&endpoint));
                let mut known = known.copied().unwrap_or(new);
                if changed && !known.under_way {
                    known.due = known.due.min(first);
                }
                if known.under_way {
                    under_way += 1;
                } else {
                    due.insert((known.due, endpoint));
                }
                endpoints.insert(endpoint, known);
            }
            let tally = before.map(|before| before.tally).unwrap_or_default();
            let sources = sources(backend);
            let checked = Checked { check, sources, tally, endpoints, due, under_way };
            next.backends.insert(Arc::clone(&name), checked);
            next.list(&name);
        }
        next
    }

    /// A check to make now, if a check is due and may begin while `under_way` checks are under way.
    /// Backends with no check under way come first; of these, the check that is latest.
    pub fn due(&mut self, under_way: usize, now: Instant) -> Option<Probe> {
        let first = |set: &BTreeSet<(Instant, Arc<str>)>| {
            set.first().filter(|(due, _)| *due <= now).map(|(_, backend)| Arc::clone(backend))
        };
        let idle = first(&self.idle).filter(|_| under_way < MOST_IN_ALL);
        let busy = || first(&self.busy).filter(|_| under_way < MOST_UNDER_WAY);
        let backend = idle.or_else(busy)?;
        self.unlist(&backend);
        let checked = self.backends.get_mut(&backend)?;
        let (due, endpoint) = checked.due.pop_first()?;
        checked.under_way += 1;
        checked.endpoints.get_mut(&endpoint)?.under_way = true;
        self.list(&backend);
        let checked = self.backends.get(&backend)?;
        let same = |source: &&IpAddr| source.is_ipv4() == endpoint.is_ipv4();
        let source = checked.sources.iter().find(same).copied();
        Some(Probe { check: checked.check, source, due, backend, endpoint })
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
        endpoint: SocketAddr,
        due: Instant,
        finding: &Finding,
        now: Instant,
    ) {
        let Some(checked) = self.backends.get_mut(backend) else { return };
        let Checked { check, tally, endpoints, .. } = checked;
        let known = endpoints.get_mut(&endpoint);
        let Some(known) = known.filter(|known| known.under_way && known.due == due) else {
            return;
        };
        known.under_way = false;
        known.due = due + after(now.saturating_duration_since(due), check.interval);
        checked.under_way -= 1;
        checked.due.insert((known.due, endpoint));
        let (count, good) = match finding {
            Finding::Good => (&mut tally.ok, true),
            Finding::Bad(_) => (&mut tally.failed, false),
            Finding::NotMade(why) => {
                tally.not_made += 1;
                tracing::debug!("no check of endpoint {endpoint} of backend {backend}: {why}");
                return;
            }
        };
        *count += 1;
        let before = known.state;
        known.state = before.after(good, check);
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

    /// Puts the next check of a backend into the sets that [`Self::due`] reads.
    fn list(&mut self, backend: &Arc<str>) {
        let Some(checked) = self.backends.get(backend) else { return };
        let Some((due, _)) = checked.due.first() else { return };
        match checked.under_way {
            0 => _ = self.idle.insert((*due, Arc::clone(backend))),
            1..MOST_OF_ONE => _ = self.busy.insert((*due, Arc::clone(backend))),
            // The backend is listed again when one of its checks has ended.
            _ => {}
        }
    }

    fn unlist(&mut self, backend: &Arc<str>) {
        let Some(checked) = self.backends.get(backend) else { return };
        let Some((due, _)) = checked.due.first() else { return };
        let listed = (*due, Arc::clone(backend));
        if !self.idle.remove(&listed) {
            self.busy.remove(&listed);
        }
    }

    /// The table without the endpoints that are down. `whole` is the table with all endpoints.
    pub fn table(&self, whole: &Arc<RoutingTable>, generation: u64) -> Arc<RoutingTable> {
        let all_up =
            self.backends.values().all(|checked| checked.endpoints.values().all(Known::up));
        if all_up && whole.generation == generation {
            return Arc::clone(whole);
        }
        let mut table = RoutingTable { generation, ..RoutingTable::clone(whole) };
        for backend in &mut table.backends {
            let Some(checked) = self.backends.get(&backend.name) else { continue };
            let had = backend.endpoints.len();
            backend
                .endpoints
                .retain(|endpoint| checked.endpoints.get(&endpoint.address).is_none_or(Known::up));
            if backend.endpoints.len() == had {
                continue;
            }
            if let Balance::SourceHash(slots) | Balance::SourcePortHash(slots) =
                &mut backend.balance
            {
                let addresses: Vec<_> = backend.endpoints.iter().map(|at| at.address).collect();
                *slots = maglev::table(&addresses);
            }
        }
        Arc::new(table)
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

impl Known {
    fn up(&self) -> bool {
        self.state.is_up()
    }
}

/// When in the interval an endpoint has its checks. The checks must not all come at once. An
/// endpoint's time in the interval is the same after a restart.
fn spread(endpoint: SocketAddr, interval: u32) -> Duration {
    let share = maglev::hash(endpoint) % u64::from(interval.max(1));
    Duration::from_millis(share)
}

/// The time from one check's due time to the next check's due time. This is one interval; a check
/// that took the whole interval makes the next check late. Checks that were missed are not made up
/// for, and checks stay spread.
fn after(passed: Duration, interval: u32) -> Duration {
    let interval = Duration::from_millis(interval.max(1).into());
    let whole = passed.as_nanos() / interval.as_nanos();
    let intervals = if whole < 2 { 1 } else { whole + 1 };
    interval * u32::try_from(intervals).unwrap_or(u32::MAX)
}

fn sources(backend: &Backend) -> Vec<IpAddr> {
    let first = |v4: bool| backend.source.iter().find(|at| at.value.first.is_ipv4() == v4);
    [first(true), first(false)].into_iter().flatten().map(|at| at.value.first).collect()
}

/// Makes the checks that are due.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) health: Health,
    under_way: JoinSet<(Probe, Finding)>,
    /// When a table that could not be given out is tried again.
    again: Backoff,
}

impl Checks {
    /// Starts and ends checks. The caller calls this repeatedly, on a tokio runtime. True if a new
    /// table is to be made.
    pub(crate) fn tick(&mut self, now: Instant) -> bool {
        while let Some(ended) = self.under_way.try_join_next() {
            if let Ok((probe, finding)) = ended {
                self.health.found(&probe, &finding, now);
            }
        }
        while let Some(probe) = self.health.due(self.under_way.len(), now) {
            self.under_way.spawn(async move {
                let finding = probe.make().await;
                (probe, finding)
            });
        }
        let changed = self.health.changed.take_if(|since| now >= *since + GATHER).is_some();
        changed || self.again.is_due(now)
    }

    /// Notes whether the table was published that was made after the latest [`Self::tick`].
    pub(crate) fn given_out(&mut self, is_published: bool, now: Instant) {
        if is_published {
            self.again = Backoff::default();
        } else {
            self.again.failed(now);
        }
    }
}

impl Probe {
    async fn make(&self) -> Finding {
        let port = if self.check.port == 0 { self.endpoint.port() } else { self.check.port };
        let address = SocketAddr::new(self.endpoint.ip(), port);
        let socket = match self.socket() {
            Ok(socket) => socket,
            Err(error) => return Finding::NotMade(error.to_string()),
        };
        let within = Duration::from_millis(self.check.timeout.into());
        match timeout(within, socket.connect(address)).await {
            Ok(Ok(stream)) => {
                // A reset closes the connection. A reset leaves no TIME_WAIT on either side, where
                // each check would hold a port for a minute. Nothing was sent, so nothing is lost.
                _ = stream.set_zero_linger();
                Finding::Good
            }
            Ok(Err(error)) if is_own(&error) => Finding::NotMade(error.to_string()),
            Ok(Err(error)) => Finding::Bad(format!("connecting to {address}: {error}")),
            Err(_) => Finding::Bad(format!(
                "connecting to {address}: no answer within {} ms",
                self.check.timeout
            )),
        }
    }

    fn socket(&self) -> io::Result<TcpSocket> {
        let socket =
            if self.endpoint.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(source) = self.source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        Ok(socket)
    }
}

/// Whether this machine lacks something for the connection: ports or memory.
fn is_own(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, OutOfMemory};
    matches!(error.kind(), AddrNotAvailable | OutOfMemory)
        || error.raw_os_error() == Some(nix::libc::ENOBUFS)
}

#[cfg(test)]
mod tests;
