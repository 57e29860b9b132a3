//! The binary and what stands around it: servers, clients, real programs, an own network.
//!
//! A test here starts `ringway run` with a file, talks to it as anyone would, and reads what it
//! says: bytes, the access log, `/metrics`, its exit code. Nothing is asserted on time; waits end
//! with the event that they wait for, and a deadline only turns a hang into a failure.

mod cgroup;
mod clients;
pub mod config;
mod gateway;
mod imposter;
pub mod in_kernel;
mod mariadb;
mod namespace;
mod nsd;
mod player;
mod postgres;
mod servers;

pub use cgroup::Cgroup;
pub use clients::{
    Lines, Pattern, alert, client_hello, closed_without_a_byte, connect, connect_from, exchange,
    has_answer, limited, program, session, udp_client, udp_from, was_reset, was_reset_after,
};
pub use gateway::{Gateway, Launch, LogLine, Metrics, run_verb};
pub use imposter::Imposter;
pub use mariadb::MariaDb;
pub use namespace::Namespace;
pub use nsd::Nsd;
pub use player::{Player, play, witness};
pub use postgres::Postgres;
pub use servers::{Daemon, Server, accept_full, echo, parrot};

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

/// How long a wait may last before it counts as a hang: `RINGWAY_PATIENCE` seconds, where all is
/// slower than on a real machine, or a minute.
pub fn deadline() -> Duration {
    let patience = std::env::var("RINGWAY_PATIENCE").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(patience.unwrap_or(60))
}

/// Waits until `condition` has a value, and returns it. Panics with `what` after
/// [`deadline`].
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < deadline(), "waited too long for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Sets the flag when dropped: also if the test fails, so that threads that go on until then end.
#[derive(Debug)]
pub struct SetWhenDropped<'a>(pub &'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[expect(clippy::disallowed_methods, reason = "tests of the real program live in real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Seconds that a long test runs: `RINGWAY_SECONDS`, or `default`.
pub fn seconds(default: u64) -> u64 {
    std::env::var("RINGWAY_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// How much a test does that can do any amount: as much as an environment variable says, or `long`
/// in `tests/run --long`, or `short`.
pub fn amount(variable: &str, short: u64, long: u64) -> u64 {
    let said = std::env::var(variable).ok().and_then(|text| text.parse().ok());
    let usual = if std::env::var_os("RINGWAY_LONG").is_some() { long } else { short };
    said.unwrap_or(usual)
}

/// The seed that an environment variable says, or another one each time. It is printed, so that a
/// run can be repeated.
pub fn seed(variable: &str) -> u64 {
    let said = std::env::var(variable).ok().and_then(|text| text.parse().ok());
    let seed = said.unwrap_or_else(|| {
        let random = std::fs::read("/proc/sys/kernel/random/uuid").expect("it is mounted");
        random.iter().fold(0, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(*byte))
            % 1_000_000
    });
    eprintln!("{variable}={seed}");
    seed
}

/// The binary under test.
pub fn binary() -> PathBuf {
    std::env::var_os("RINGWAY_BIN").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debug/ringway")),
        PathBuf::from,
    )
}

/// A port that nobody has, for TCP and UDP, IPv4 and IPv6, below the range from which the kernel
/// takes ports for clients; so it stays free until it is bound. None is given out twice.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (std::process::id().wrapping_mul(331) + step) % COUNT;
        let port = u16::try_from(port).expect("below 30,000");
        let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let free = |address: SocketAddr| {
            TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
        };
        if free(v4) && free(v6) {
            return port;
        }
    }
}

/// An address for a gateway, with a port that nobody has. It is of the loopback interface, except
/// where gateways have another network.
pub fn free_address() -> SocketAddr {
    SocketAddr::from((in_kernel::gateway_ip(), free_port()))
}

/// Runs `test` on a thread in a network namespace of its own, with nothing but a loopback
/// interface that is up. Threads and programs started there are in it too. Needs root.
pub fn in_own_network(test: impl FnOnce() + Send + 'static) {
    let inside = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (needs root)");
        in_kernel::stay_apart();
        program("ip", &["link", "set", "lo", "up"]);
        test();
    });
    if let Err(panic) = inside.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Whether this runs with all rights.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A folder that is gone when this is dropped. Everyone may write there: some programs give up
/// root before they open their files.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;

        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ringway-{}-{count}", std::process::id()));
        // One may be left of a process that had this id before and was killed.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).expect("a temporary folder");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).expect("its mode");
        Self(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file, whole or not at all: readers see the old one or the new one.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let (new, path) = (self.file(&format!("{name}.new")), self.file(name));
        std::fs::write(&new, text).expect("writing a temporary file");
        std::fs::rename(&new, &path).expect("renaming it into place");
        path
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What another user made in there may stay; the next start of the machine takes it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
