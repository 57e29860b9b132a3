//! Whether endpoints may be picked: checks on a schedule, and what follows from them.
//!
//! [`Health`] is values in, values out: it says which checks are due, is told what they found, and
//! gives the table without the endpoints that are down. [`Checks`] makes the checks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;
use toml::de::DeValue;

use crate::config::{Backend, Config, any, or};
use crate::problem::At;
use crate::puts::Backoff;
use crate::reader::{Read, Reader, Section, Table, integer};
use crate::table::maglev;
use crate::table::routing::{Balance, RoutingTable};
use crate::values::{duration, duration_from};

/// Checks that are under way at once: each has a file open. Beyond so many, only backends begin one
/// that have none under way, up to `MOST_IN_ALL`.
const MOST_UNDER_WAY: usize = 256;
const MOST_IN_ALL: usize = 512;

/// Of one backend. Endpoints that do not answer hold a place until the timeout: those of one
/// backend must not hold up the checks of all others.
const MOST_OF_ONE: usize = 64;

/// For which endpoints that go down or come back are gathered into one table, so that a rack that
/// fails is a few tables and not hundreds.
const GATHER: Duration = Duration::from_millis(100);

/// How the endpoints of a backend are checked: by a TCP connection, opened and closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Milliseconds from one check of an endpoint to its next, at least 100.
    pub interval: u32,
    /// Milliseconds within which it must be connected, `interval` at the most.
    pub timeout: u32,
    /// Good checks in a row that bring an endpoint back, 1 to 100.
    pub rise: u8,
    /// Failed checks in a row that take it out, 1 to 100.
    pub fall: u8,
    /// Where to connect; 0: to the endpoint's own port.
    pub port: u16,
}

pub(crate) static HEALTH_CHECK: Section = Section {
    name: "backends.health_check",
    keys: &[any("interval"), any("timeout"), any("rise"), any("fall"), any("port")],
};

/// What holds where nothing is said.
pub(crate) const DEFAULT: HealthCheck =
    HealthCheck { interval: 5_000, timeout: 2_000, rise: 2, fall: 3, port: 0 };

/// Of `rise` and `fall`.
pub(crate) const TIMES: RangeInclusive<u8> = 1..=100;

/// `None`: the endpoints are not checked.
pub(crate) fn read<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<At<HealthCheck>> {
    let place = reader.peek(table, "health_check", |_| Ok(()))?.place;
    let given = &reader.table(table, "health_check", &HEALTH_CHECK)?;
    let asked = reader.get(given, "interval", interval);
    // A bad interval is not compared with: that would only lead to a second fault.
    let most = if asked.is_none() && given.has("interval") { u32::MAX } else { DEFAULT.interval };
    let interval = or(asked, most);
    let value = HealthCheck {
        interval,
        timeout: or(reader.get(given, "timeout", timeout_within(interval)), timeout_of(interval)),
        rise: or(reader.get(given, "rise", integer(TIMES)), DEFAULT.rise),
        fall: or(reader.get(given, "fall", integer(TIMES)), DEFAULT.fall),
        port: or(reader.get(given, "port", integer(0..=u16::MAX)), DEFAULT.port),
    };
    Some(At { value, place })
}

pub(crate) fn interval(value: &DeValue<'_>) -> Read<u32> {
    duration_from(Duration::from_millis(100))(value)
}

/// An endpoint has one check at a time.
pub(crate) fn timeout_within(interval: u32) -> impl Fn(&DeValue<'_>) -> Read<u32> {
    move |value| match duration(value)? {
        0 => Err("must be at least \"1ms\"; it can't be off".to_owned()),
        millis if millis > interval => {
            Err(format!("must be at most the interval, which is {interval} ms"))
        }
        millis => Ok(millis),
    }
}

/// Where only the interval is given.
pub(crate) fn timeout_of(interval: u32) -> u32 {
    DEFAULT.timeout.min(interval)
}

/// Whether an endpoint may be picked, and how near it is to the opposite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// `failed`: checks in a row, at the end of all there were.
    Up { failed: u8 },
    /// `passed`: likewise.
    Down { passed: u8 },
}

impl State {
    /// Before the first check: up, because a new endpoint must not wait for it, but one failure is
    /// enough.
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

/// Every endpoint that is checked.
#[derive(Clone, Debug, Default)]
pub struct Health {
    backends: BTreeMap<Arc<str>, Checked>,
    /// When each backend has its next check: those that have none under way, and those that may
    /// have one more.
    idle: BTreeSet<(Instant, Arc<str>)>,
    busy: BTreeSet<(Instant, Arc<str>)>,
    /// Since when there is an endpoint whose state no table says.
    changed: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Checked {
    check: HealthCheck,
    /// To connect from, as sessions do: one of each IP version, if any are given.
    sources: Vec<IpAddr>,
    tally: Tally,
    endpoints: BTreeMap<SocketAddr, Known>,
    /// Those that no check is under way of.
    due: BTreeSet<(Instant, SocketAddr)>,
    under_way: usize,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    state: State,
    /// When its next check begins, or the one that is under way should have.
    due: Instant,
    under_way: bool,
}

/// How the checks of a backend have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub ok: u64,
    pub failed: u64,
    /// Those that say nothing of the endpoint, because this machine could not make them.
    pub not_made: u64,
}

/// What can be seen from outside.
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

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Good,
    Bad(String),
    /// It could not be made here: no file, no port.
    NotMade(String),
}

impl Health {
    /// The same for another configuration. Who was known is known: a reload brings nobody back.
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

    /// A check that is to be made now, if one is due and may begin beside the `under_way` ones: of
    /// the backends that have none under way first, and of these the one that is late the most.
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

    /// Takes what a check has found. Of an endpoint that is no longer asked for it means nothing.
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

    /// The next check of a backend, where [`Self::due`] looks for it.
    fn list(&mut self, backend: &Arc<str>) {
        let Some(checked) = self.backends.get(backend) else { return };
        let Some((due, _)) = checked.due.first() else { return };
        match checked.under_way {
            0 => _ = self.idle.insert((*due, Arc::clone(backend))),
            1..MOST_OF_ONE => _ = self.busy.insert((*due, Arc::clone(backend))),
            // It is listed again when one of its checks has ended.
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

    /// Of a table that has every endpoint, one with those that may be picked.
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

/// When in the interval an endpoint has its checks: they must not come all at once, and it is the
/// same after a restart.
fn spread(endpoint: SocketAddr, interval: u32) -> Duration {
    let share = maglev::hash(endpoint) % u64::from(interval.max(1));
    Duration::from_millis(share)
}

/// From when a check should have begun to when the next should: an interval, which a check that
/// took all of it makes late. Of more that were missed none is made up for, and checks stay spread.
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
    /// A table that could not be given out is tried again.
    again: Backoff,
}

impl Checks {
    /// To be called now and then, on a tokio runtime. True if a new table is to be made.
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

    /// What became of the table that was made at the latest [`Self::tick`].
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
                // Closed by a reset: it leaves no TIME_WAIT on either side, where each check would
                // hold a port for a minute. Nothing was sent that could be lost by it.
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

/// Whether it is this machine that lacks something: ports, or memory for a connection.
fn is_own(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, OutOfMemory};
    matches!(error.kind(), AddrNotAvailable | OutOfMemory)
        || error.raw_os_error() == Some(nix::libc::ENOBUFS)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::compile::compile;
    use crate::config::parse;
    use crate::names::Names;

    const CHECK: HealthCheck = HealthCheck { rise: 2, fall: 3, ..DEFAULT };

    fn states(mut state: State, findings: &[bool]) -> Vec<bool> {
        let next = findings.iter().map(|good| {
            state = state.after(*good, &CHECK);
            state.is_up()
        });
        next.collect()
    }

    #[test]
    fn so_many_in_a_row_take_an_endpoint_out_and_bring_it_back() {
        let new = State::new(&CHECK);
        assert!(new.is_up(), "nothing waits for the first check");
        assert_eq!(states(new, &[false]), [false], "but that one decides");
        let fails = [true, false, false, true, false, false, false];
        assert_eq!(states(new, &fails), [true, true, true, true, true, true, false]);
        let comes_back = [true, false, true, true, false];
        let down = State::Down { passed: 0 };
        assert_eq!(states(down, &comes_back), [false, false, false, true, true]);
    }

    #[test]
    fn fewer_that_are_allowed_by_a_new_configuration_count_at_the_next_check() {
        let strict = HealthCheck { rise: 1, fall: 1, ..CHECK };
        assert!(!State::Up { failed: 2 }.after(false, &strict).is_up());
        assert!(State::Down { passed: 1 }.after(true, &strict).is_up());
    }

    /// Endpoints 1 to `count` of `b`, known since `start`.
    struct World {
        config: Config,
        health: Health,
        start: Instant,
    }

    impl World {
        fn new(count: u16, options: &str) -> Self {
            #[expect(clippy::disallowed_methods, reason = "any time will do")]
            let start = Instant::now();
            let config = config(count, options);
            Self { health: Health::default().following(&config, start), config, start }
        }

        fn at(&self, millis: u64) -> Instant {
            self.start + Duration::from_millis(millis)
        }

        /// Makes all checks that are due; those of the ports `bad` fail.
        fn run(&mut self, millis: u64, bad: &[u16]) -> Vec<u16> {
            let now = self.at(millis);
            let mut ports = Vec::new();
            while let Some(probe) = self.health.due(0, now) {
                let port = probe.endpoint.port();
                let bad = bad.contains(&port);
                let finding = if bad { Finding::Bad("refused".into()) } else { Finding::Good };
                self.health.found(&probe, &finding, now);
                ports.push(port);
            }
            ports
        }

        /// The ports of the endpoints in the table.
        fn table(&self) -> Vec<u16> {
            let whole = compile(&self.config, &mut Names::new(), 1).expect("its parts fit");
            let table = self.health.table(&Arc::new(whole), 2);
            assert_eq!(table.generation, 2);
            table.backends[0].endpoints.iter().map(|endpoint| endpoint.address.port()).collect()
        }
    }

    fn config(count: u16, options: &str) -> Config {
        let endpoints: Vec<_> = (1..=count).map(|port| format!("\"10.0.0.1:{port}\"")).collect();
        let text = format!(
            "[[backends]]\nname = \"b\"\nendpoints = [{}]\n{options}\n",
            endpoints.join(", ")
        );
        parse("test", &text).unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[test]
    fn checks_are_spread_over_the_interval_and_stay_so() {
        let mut world = World::new(1000, "health_check = { interval = \"1s\" }");
        let rounds = |world: &mut World, from: u64| -> Vec<_> {
            let rounds = (1..=10u64).map(|tenth| {
                let mut round = world.run(from + tenth * 100 - 1, &[]);
                round.sort_unstable();
                round
            });
            rounds.collect()
        };
        let first = rounds(&mut world, 0);
        assert_eq!(first.iter().map(Vec::len).sum::<usize>(), 1000, "each once");
        assert!(first.iter().all(|round| (50..=150).contains(&round.len())), "{first:?}");
        assert_eq!(rounds(&mut world, 1_000), first);
        // As after a time in which nothing was checked: each once, and then as before.
        assert_eq!(world.run(60_999, &[]).len(), 1000);
        assert_eq!(rounds(&mut world, 61_000), first);
    }

    #[test]
    fn an_endpoint_has_one_check_at_a_time() {
        let mut world = World::new(1, "health_check = { interval = \"1s\", timeout = \"1s\" }");
        let probe = world.health.due(0, world.at(1_000)).expect("it is due");
        assert!(world.health.due(0, world.at(60_000)).is_none(), "it is under way");
        world.health.found(&probe, &Finding::Good, world.at(2_010));
        world.health.found(&probe, &Finding::Bad("twice".into()), world.at(2_010));
        assert_eq!(world.health.figures().checks[0].1, Tally { ok: 1, failed: 0, not_made: 0 });
        assert!(world.health.due(0, world.at(2_010)).is_some(), "late by less than an interval");
    }

    #[test]
    fn endpoints_that_do_not_answer_hold_up_those_of_their_own_backend_only() {
        let backend = |name: &str, count: u16| {
            let endpoints: Vec<_> =
                (1..=count).map(|port| format!("\"10.0.0.1:{port}\"")).collect();
            format!(
                "[[backends]]\nname = \"{name}\"\nendpoints = [{}]\nhealth_check = {{}}\n",
                endpoints.join(", ")
            )
        };
        let mut text = backend("healthy", 3);
        (0..20).for_each(|dead| text += &backend(&format!("dead-{dead:02}"), 1_000));
        let mut world = World::new(0, "");
        world.config = parse("test", &text).unwrap_or_else(|problems| panic!("{problems}"));
        world.health = Health::default().following(&world.config, world.start);
        let (mut under_way, mut checked) = (0, BTreeSet::new());
        for millis in 0..10_000 {
            let now = world.at(millis);
            while let Some(probe) = world.health.due(under_way, now) {
                if &*probe.backend == "healthy" {
                    let late = now.saturating_duration_since(probe.due);
                    assert!(late <= Duration::from_millis(1), "{probe:?}: {late:?}");
                    checked.insert((probe.endpoint, probe.due));
                    world.health.found(&probe, &Finding::Good, now);
                } else {
                    under_way += 1;
                }
            }
        }
        assert_eq!(checked.len(), 6, "three endpoints, twice in ten seconds");
        assert!((MOST_UNDER_WAY..=MOST_UNDER_WAY + 20).contains(&under_way), "{under_way}");
        for checked in world.health.backends.values() {
            assert!(checked.under_way <= MOST_OF_ONE, "{}", checked.under_way);
        }
    }

    #[test]
    fn the_table_has_what_is_up_and_hashes_over_that() {
        let options = "balance = \"source-hash\"\nhealth_check = { fall = 1, rise = 1 }";
        let mut world = World::new(3, options);
        assert_eq!(world.table(), [1, 2, 3]);
        world.run(5_000, &[2]);
        assert_eq!(world.table(), [1, 3]);
        let whole = Arc::new(compile(&world.config, &mut Names::new(), 1).expect("it fits"));
        let table = world.health.table(&whole, 1);
        let Balance::SourceHash(slots) = &table.backends[0].balance else { panic!("{table:?}") };
        assert!(slots.iter().all(|slot| *slot < 2), "{slots:?}");
        world.run(10_000, &[1, 2, 3]);
        assert_eq!(world.table(), [0u16; 0], "nothing is left, and nothing is made up");
        world.run(15_000, &[]);
        assert_eq!(world.table(), [1, 2, 3]);
        assert!(Arc::ptr_eq(&world.health.table(&whole, 1), &whole), "nothing is copied");
    }

    #[test]
    fn a_reload_keeps_what_is_known_and_forgets_who_is_not_asked_for() {
        let checked = "health_check = { fall = 1 }";
        let mut world = World::new(2, checked);
        world.run(5_000, &[1, 2]);
        let follow = |world: &mut World, count, options: &str| {
            world.config = config(count, options);
            world.health = world.health.following(&world.config, world.at(6_000));
        };
        follow(&mut world, 3, "health_check = { fall = 2, interval = \"1s\" }");
        assert_eq!(world.table(), [3], "who is new is up");
        assert_eq!(world.run(7_000, &[]).len(), 3, "a shorter interval counts at once");
        follow(&mut world, 1, checked);
        follow(&mut world, 2, checked);
        assert_eq!(world.table(), [2], "who was gone is new");
        follow(&mut world, 2, "");
        assert_eq!(world.table(), [1, 2], "nobody is checked");
        assert!(world.run(60_000, &[1, 2]).is_empty());
        assert!(world.health.figures().endpoints.is_empty());
    }

    #[test]
    fn a_check_that_a_reload_overtakes_means_nothing() {
        let mut world = World::new(1, "health_check = { fall = 1 }");
        let probe = world.health.due(0, world.at(5_000)).expect("it is due");
        let checked = world.config.clone();
        world.health = world.health.following(&config(1, ""), world.at(5_100));
        world.health = world.health.following(&checked, world.at(5_200));
        world.health.found(&probe, &Finding::Bad("old".into()), world.at(5_300));
        assert_eq!(world.table(), [1]);
        assert_eq!(world.run(11_000, &[]), [1], "it has one of its own");
    }

    #[test]
    fn a_check_that_could_not_be_made_says_nothing() {
        let mut world = World::new(1, "health_check = { fall = 1 }");
        let probe = world.health.due(0, world.at(5_000)).expect("it is due");
        world.health.found(&probe, &Finding::NotMade("no file".into()), world.at(5_000));
        assert_eq!(world.table(), [1]);
        assert_eq!(world.health.figures().checks[0].1, Tally { ok: 0, failed: 0, not_made: 1 });
    }

    /// A probe of `address` from `source`.
    fn probe(address: SocketAddr, port: u16, source: &str) -> Probe {
        let options = format!("source = [\"{source}\"]\nhealth_check = {{ port = {port} }}");
        let mut world = World::new(0, &options);
        let place = world.config.backends[0].name.place.clone();
        world.config.backends[0].endpoints.push(At { value: address, place });
        world.health = world.health.following(&world.config, world.start);
        world.health.due(0, world.at(5_000)).expect("it is due")
    }

    #[test]
    fn what_this_machine_lacks_is_no_fault_of_the_endpoint() {
        use nix::libc::{EADDRNOTAVAIL, ECONNREFUSED, EHOSTUNREACH, ENOBUFS, ENOMEM};
        let is_own = |code| is_own(&io::Error::from_raw_os_error(code));
        assert!([EADDRNOTAVAIL, ENOBUFS, ENOMEM].into_iter().all(is_own));
        assert!(![ECONNREFUSED, EHOSTUNREACH].into_iter().any(is_own));
    }

    #[tokio::test]
    async fn a_check_connects_as_sessions_do() {
        let listener =
            tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("its address");
        assert_eq!(probe(address, 0, "127.0.0.9").make().await, Finding::Good);
        let (_, peer) = listener.accept().await.expect("it has connected");
        assert_eq!(peer.ip().to_string(), "127.0.0.9");
        let elsewhere = SocketAddr::new(address.ip(), 1);
        assert_eq!(probe(elsewhere, address.port(), "127.0.0.9").make().await, Finding::Good);
        let found = probe(address, 0, "192.0.2.1").make().await;
        assert!(matches!(found, Finding::NotMade(_)), "it is not this machine's: {found:?}");
        drop(listener);
        let Finding::Bad(why) = probe(address, 0, "127.0.0.9").make().await else { panic!("good") };
        assert!(why.contains("refused"), "{why}");
    }
}
