//! The most memory of its own that the process may come to use, and how much it uses. Its own are
//! the anonymous pages. What the kernel has for the process (sockets and their buffers, what is in
//! pipes, the rings, page tables) and the program's file are not. `images/OPERATING.md` ("Memory of
//! its own") also names what may come on top.

use config_sync::table::limit::Limit;
use config_sync::table::load::NO_LIMIT;
use config_sync::table::routing::{AcceptProxy, Limits, Listener, RoutingTable};
use procfs::process::Process;

use crate::control::memory::Reading;
use crate::proxy::memory::of_tls;
use crate::proxy::places::ENDING;
use crate::stats::counters::Counters;
use crate::worker;

/// What is known once the first configuration is in force and the workers run.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// What the process has written so far, in bytes.
    anonymous: u64,
    /// What of that are records of sources, which grow no more.
    sources: u64,
    /// What the control thread and its helpers may have in queues, in bytes.
    queues: u64,
    needs: Needs,
}

/// The most that the tables since the start need, of each. Sessions outlive the table that they
/// began with, counters are never freed, and the heap keeps pages of what was freed.
#[derive(Clone, Debug, Default)]
struct Needs {
    /// By the listener's id: the most sessions that speak TLS with the gateway at one time.
    tls: Vec<u64>,
    /// All sessions may speak TLS, with endpoints.
    originates: bool,
    /// Workers look into bytes of some clients.
    reads: bool,
    /// The ids of listeners, routes and endpoints are below these.
    ids: [usize; 3],
    /// Bytes of the records of sources.
    sources: u64,
    /// The listeners, routes, backends and endpoints.
    parts: u64,
}

impl Start {
    /// `None`: the kernel does not tell.
    pub fn now(table: &RoutingTable, queues: u64) -> Option<Self> {
        let sources = of_sources(table);
        let mut start = Self { anonymous: used()?, sources, queues, needs: Needs::default() };
        start.note(table);
        Some(start)
    }

    /// Notes what a table needs that goes in force. `table`: with all endpoints.
    pub fn note(&mut self, table: &RoutingTable) {
        self.needs.note(table);
    }
}

impl Needs {
    fn note(&mut self, table: &RoutingTable) {
        self.originates |= table.backends.iter().any(|backend| backend.tls.is_some());
        self.reads |= reads(table);
        self.sources = self.sources.max(of_sources(table));
        self.parts = self.parts.max(parts(table));
        for (most, now) in self.ids.iter_mut().zip(ids(table)) {
            *most = now.max(*most);
        }
        for listener in table.listeners.iter().filter(|listener| listener.tls.is_some()) {
            let at = listener.id.index();
            self.tls.resize(self.tls.len().max(at + 1), 0);
            self.tls[at] = self.tls[at].max(most_sessions(listener));
        }
    }

    /// The most sessions that speak TLS with the gateway at one time, on at least one side.
    /// `places`: in the tables of all workers.
    fn with_tls(&self, places: u64) -> u64 {
        if self.originates {
            return places;
        }
        let all = self.tls.iter().fold(0, |all: u64, most| all.saturating_add(*most));
        all.min(places)
    }

    /// Bytes of the counters of one worker.
    fn counters(&self) -> u64 {
        let [listeners, routes, endpoints] = self.ids;
        Counters::bytes(listeners, routes, endpoints) as u64
    }
}

/// The anonymous memory in use. `None`: the kernel does not tell.
fn used() -> Option<u64> {
    let status = Process::myself().and_then(|own| own.status()).ok()?;
    Some(status.rssanon? * 1_024)
}

/// What is in use, and the most that may be.
pub fn read(start: &Start, workers: usize, limits: &Limits) -> Option<Reading> {
    Some(Reading { used: used()?, most: most(start, workers, limits) })
}

fn most(start: &Start, workers: usize, limits: &Limits) -> u64 {
    let (workers, needs) = (workers as u64, &start.needs);
    let places = workers * u64::from(limits.sessions);
    start.anonymous
        + workers * (worker::growth(limits, needs.reads) + needs.counters())
        + needs.with_tls(places) * of_tls() as u64
        + needs.sources.saturating_sub(start.sources)
        + start.queues
        + SERVING
        + needs.parts * RELOADED
}

/// The control thread, its helpers and the admin API, in bytes: stacks, figures of the last hour,
/// and pages that are being made. Measured: with five listeners, 16 readers of the stream and 8
/// clients that asked for each list and /metrics all the time, the process had 11.3 MiB at first
/// and 14.7 MiB at the most in 40 s.
const SERVING: u64 = 8 << 20;

/// What a listener, a route, a backend or an endpoint takes in a reload, in bytes: while it is read
/// and compiled, and until workers have let the table before go. Measured: five reloads took up to
/// 10 KiB for each of 4,000 of these, and up to 7 KiB for each of 12,000.
const RELOADED: u64 = 16 << 10;

/// The listeners, routes, backends and endpoints.
fn parts(table: &RoutingTable) -> u64 {
    let endpoints = table.backends.iter().map(|backend| backend.endpoints.len()).sum::<usize>();
    let named = table.listeners.len() + table.routes.len() + table.backends.len();
    (named + endpoints) as u64
}

/// The ids of listeners, routes and endpoints are below these.
fn ids(table: &RoutingTable) -> [usize; 3] {
    let listeners = table.listeners.iter().map(|listener| listener.id.index()).max();
    let routes = table.routes.iter().map(|route| route.id.index()).max();
    let endpoints = table.backends.iter().flat_map(|backend| &backend.endpoints);
    let endpoints = endpoints.map(|endpoint| endpoint.id.index()).max();
    [listeners, routes, endpoints].map(|last| last.map_or(0, |last| last + 1))
}

/// Whether workers look into bytes of some clients.
fn reads(table: &RoutingTable) -> bool {
    let socket = table.sockets.iter().any(|of| {
        of.reads_hello || of.starttls.is_some() || of.accept_proxy != AcceptProxy::default()
    });
    let listener = table.listeners.iter().any(|of| of.tls.is_some() || of.dns_guard.is_some());
    let backend = table.backends.iter().any(|of| of.tls.is_some() || of.send_proxy.is_some());
    socket || listener || backend
}

/// The most sessions of a listener. Beside `max_sessions`, as many may be ending. `u64::MAX`: the
/// listener has no limit of its own.
fn most_sessions(listener: &Listener) -> u64 {
    let by_count = match listener.max_sessions {
        0 => u64::MAX,
        most => u64::from(most) + u64::from(most.max(ENDING)),
    };
    let by_limit = listener.limit.as_deref().filter(|limit| limit.sessions != NO_LIMIT);
    let by_limit = by_limit.map_or(u64::MAX, |limit: &Limit| limit.sessions.into());
    by_count.min(by_limit)
}

fn of_sources(table: &RoutingTable) -> u64 {
    table.sources.as_ref().map_or(0, |sources| sources.bytes_of_memory() as u64)
}

#[cfg(test)]
mod tests {
    use config_sync::check::parse_for;
    use config_sync::compile::compile;
    use config_sync::compile::names::Names;
    use config_sync::machine::Machine;
    use config_sync::model::config::Config;
    use config_sync::model::tls::Termination;
    use config_sync::table::routing::ListenerId;

    use super::*;

    const LIMITS: Limits = Limits {
        sessions: 1_000,
        flows: 1_000,
        buffers: 64,
        pipes: 16,
        turn_bytes: 262_144,
        bulk_bytes: 8 << 20,
    };

    /// A listener for TCP or TLS, with these keys, and a backend with some more.
    fn config(protocol: &str, keys: &str, of_backend: &str) -> Config {
        let machine = Machine { cores: vec![0], congestion: Vec::new() };
        let text = format!(
            "[[listeners]]\nname = \"l\"\nprotocol = \"{protocol}\"\n\
             address = \"127.0.0.1:80\"\n{keys}\n\
             [[routes]]\nname = \"r\"\nlisteners = [\"l\"]\nbackends = [{{ name = \"b\" }}]\n\
             [[backends]]\nname = \"b\"\nendpoints = [\"10.0.0.1:80\"]\n{of_backend}\n"
        );
        parse_for("f", &text, &machine).unwrap_or_else(|why| panic!("{why}"))
    }

    fn compiled(config: &Config) -> RoutingTable {
        compile(config, &mut Names::new(), 1).unwrap_or_else(|why| panic!("{why}"))
    }

    fn table(protocol: &str, keys: &str, of_backend: &str) -> RoutingTable {
        compiled(&config(protocol, keys, of_backend))
    }

    /// The table of a listener where TLS ends.
    fn terminating(keys: &str) -> RoutingTable {
        let mut config = config("TLS", keys, "");
        config.listeners[0].tls = Some(Termination::default());
        compiled(&config)
    }

    fn noted(table: &RoutingTable) -> Start {
        let mut start = Start::default();
        start.note(table);
        start
    }

    fn bytes(limits: &Limits, table: &RoutingTable) -> u64 {
        most(&Start { anonymous: 10 << 20, ..noted(table) }, 2, limits)
    }

    #[test]
    fn the_bound_grows_with_each_limit() {
        let table = table("TCP", "", "");
        let least = bytes(&LIMITS, &table);
        for (more, each) in [
            (Limits { sessions: 2_000, ..LIMITS }, 500..4_000),
            (Limits { flows: 2_000, ..LIMITS }, 500..4_000),
            (Limits { buffers: 1_064, ..LIMITS }, 72_000..80_000),
            (Limits { pipes: 1_016, ..LIMITS }, 8..64),
        ] {
            // A thousand more, on each of two workers.
            let grown = (bytes(&more, &table) - least) / 2_000;
            assert!(each.contains(&grown), "{grown} bytes for one of {more:?}");
        }
        let start = Start { anonymous: 11 << 20, ..noted(&table) };
        assert_eq!(most(&start, 2, &LIMITS) - least, 1 << 20);
    }

    #[test]
    fn what_the_configuration_asks_of_workers_counts() {
        let plain = table("TCP", "", "");
        let passes = table("TLS", "", "");
        assert!(reads(&passes) && !reads(&plain));
        assert!(bytes(&LIMITS, &passes) > bytes(&LIMITS, &plain));
        let sources = table("TCP", "limit_source = { sessions = 5 }", "");
        let room = sources.sources.as_ref().expect("records").bytes_of_memory() as u64;
        assert_eq!(bytes(&LIMITS, &sources) - bytes(&LIMITS, &plain), room);
        let start = Start { sources: room, ..noted(&sources) };
        assert_eq!(
            most(&start, 2, &LIMITS),
            most(&noted(&plain), 2, &LIMITS),
            "they were there at the start"
        );
    }

    #[test]
    fn sessions_with_tls_are_those_that_the_listeners_let_in() {
        let all = u64::from(2 * LIMITS.sessions);
        let with_tls = |table: &RoutingTable| noted(table).needs.with_tls(all);
        let passes = table("TLS", "max_sessions = 100", "");
        assert_eq!(with_tls(&passes), 0, "TLS passes through");
        let mut table = terminating("max_sessions = 100");
        assert_eq!(with_tls(&table), 200);
        table.listeners[0].max_sessions = 10;
        assert_eq!(with_tls(&table), 10 + u64::from(ENDING));
        table.listeners[0].max_sessions = 0;
        assert_eq!(with_tls(&table), all);
        let without = bytes(&Limits { sessions: 999, ..LIMITS }, &table);
        let one_more = bytes(&LIMITS, &table) - without;
        assert!(one_more > 2 * of_tls() as u64, "each session of both workers may speak TLS");
    }

    #[test]
    fn what_a_table_before_needed_stays_in_the_bound() {
        let (mut ends, plain) = (terminating("max_sessions = 100"), table("TCP", "", ""));
        let mut start = noted(&ends);
        let before = most(&start, 2, &LIMITS);
        assert!(before > most(&noted(&plain), 2, &LIMITS) + 200 * of_tls() as u64);
        // Its sessions live on, and its counters stay.
        start.note(&plain);
        start.note(&RoutingTable::empty());
        assert_eq!(most(&start, 2, &LIMITS), before);
        ends.listeners[0].max_sessions = 10;
        start.note(&ends);
        assert_eq!(most(&start, 2, &LIMITS), before);
        // Another listener has its sessions beside them.
        ends.listeners[0].id = ListenerId(1);
        start.note(&ends);
        let more = u64::from(10 + ENDING) * of_tls() as u64;
        assert_eq!(most(&start, 2, &LIMITS) - before, more);
        // A higher id needs more counters.
        ends.listeners[0].id = ListenerId(63);
        start.note(&ends);
        let counters = 2 * (Counters::bytes(64, 0, 0) - Counters::bytes(1, 0, 0)) as u64;
        assert_eq!(most(&start, 2, &LIMITS) - before, 2 * more + counters);
    }
}
