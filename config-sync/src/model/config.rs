//! A configuration: what was asked for, by a TOML file or by Kubernetes objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::machine::Machine;
use crate::model::backend::Backend;
use crate::model::limit::SharedLimit;
use crate::model::listener::{Listener, bound_to};
use crate::model::place::{At, Problem};
use crate::model::resolver::Resolver;
use crate::model::route::Route;
use crate::model::time::SECOND;
use crate::model::tls::{Origination, Pem, Termination};
use crate::table::address::UnixPath;
use crate::table::routing::Limits;

/// The TLS of the admin API's address. The files are PEM.
#[derive(Clone, Debug, PartialEq)]
pub struct AdminTls {
    pub cert: At<PathBuf>,
    pub key: At<PathBuf>,
    /// Who has signed the certificates of clients that may change things. `None`: clients are not
    /// asked for certificates.
    pub client_ca: Option<At<PathBuf>>,
}

/// A configuration. Every value has the right form and is within its range. `compile` finds out
/// whether the parts fit together. Durations are in milliseconds unless a field says otherwise; 0
/// is off.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How many workers there are, and on which cores. A reload does not change this.
    pub cores: Cores,
    /// Where the admin API listens. `None`: the admin API is off. A reload does not change this.
    pub admin: Option<SocketAddr>,
    /// Where else the admin API listens: a Unix socket, whose clients may change things. A reload
    /// does not change this.
    pub admin_socket: Option<At<UnixPath>>,
    /// The file with the token that lets clients of `admin` change things. A reload does not change
    /// this.
    pub admin_token_file: Option<At<PathBuf>>,
    /// How clients of `admin` speak TLS. `None`: they speak plain HTTP. A reload does not change
    /// this.
    pub admin_tls: Option<AdminTls>,
    /// The file with the overrides that hold from the start. Read once, with the first table.
    pub admin_overrides_file: Option<At<PathBuf>>,
    /// The name or number of the user that a process of root becomes. A reload does not change
    /// this.
    pub user: Option<At<String>>,
    /// Whether the process takes from itself what it does not need. A reload does not change this.
    pub sandbox: bool,
    /// Whether metrics of endpoints have the endpoint's address, or are sums of a backend.
    pub endpoint_labels: bool,
    /// How long sessions may live after SIGTERM before they are closed.
    pub drain_timeout: u32,
    /// How long readiness fails before the drain begins, so that load balancers notice in time.
    pub drain_grace: u32,
    /// How long a UDP flow stays with an endpoint that has left the table.
    pub lame_duck: u32,
    /// A reload changes only `open` and `sample`.
    pub access_log: AccessLog,
    /// The limits that were asked for. 0: [`limits`] chooses. A reload does not change this.
    pub limits: Limits,
    /// The most sessions and flows of all workers together. 0: no such limit.
    pub total_sessions: u32,
    /// When so many per cent of the memory that the process may use are in use, nothing new begins.
    /// 0: whatever is in use.
    pub memory_percent: u8,
    /// The process is not ready meanwhile.
    pub memory_readiness: bool,
    /// When so many per cent of a limit of the process are in use, the process is not ready. 0:
    /// whatever is in use.
    pub readiness_percent: u8,
    pub resolver: Resolver,
    pub listeners: Vec<Listener>,
    pub routes: Vec<Route>,
    pub backends: Vec<Backend>,
    pub shared_limits: Vec<SharedLimit>,
    /// Problems of the keys above `listeners`: values that can be put in force but are hardly
    /// meant.
    pub doubts: Vec<Problem>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cores {
    /// One worker on each core that the process may use.
    Auto,
    /// One worker on each of these, in this order.
    List(Vec<At<usize>>),
}

impl Cores {
    /// Cores of the list that this machine does not have, or that this process may not use. This is
    /// no fault of the file: the file may be meant for another machine.
    pub fn unusable(&self, machine: &Machine) -> Vec<Problem> {
        let Self::List(cores) = self else { return Vec::new() };
        let usable = machine.cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let message = |core| format!("core {core} is not usable; this process may use {usable}");
        let unusable = cores.iter().filter(|core| !machine.cores.contains(&core.value));
        unusable.map(|core| core.problem(message(core.value))).collect()
    }

    /// The numbers of the cores, without their places. `None`: automatic.
    pub(crate) fn numbers(&self) -> Option<Vec<usize>> {
        match self {
            Self::Auto => None,
            Self::List(cores) => Some(cores.iter().map(|core| core.value).collect()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    pub target: LogTarget,
    pub format: LogFormat,
    /// The log has the beginning of sessions and flows too, not only the end.
    pub open: bool,
    /// By the word of a close reason: of this many lines with the reason one is written. 0: none. A
    /// reason that is not here has all its lines.
    pub sample: BTreeMap<&'static str, u32>,
}

/// The `memory_percent` of a configuration that gives none. Below it there is room for what live
/// sessions may still need.
pub(crate) const MEMORY_PERCENT: u8 = 95;

/// The words of all close reasons.
pub const CLOSE_REASONS: &[&str] = &[
    "client_fin",
    "endpoint_fin",
    "client_reset",
    "endpoint_reset",
    "client_timed_out",
    "endpoint_timed_out",
    "client_error",
    "endpoint_error",
    "idle_timeout",
    "half_close_timeout",
    "client_stalled",
    "endpoint_stalled",
    "max_lifetime",
    "proxy_timeout",
    "proxy_invalid",
    "proxy_missing",
    "hello_timeout",
    "hello_invalid",
    "hello_too_large",
    "starttls_missing",
    "starttls_cancel",
    "starttls_early",
    "handshake_timeout",
    "client_tls_failed",
    "endpoint_tls_failed",
    "endpoint_starttls_failed",
    "client_truncated",
    "endpoint_truncated",
    "tls_keys_exhausted",
    "no_certificate",
    "source_denied",
    "client_gone",
    "unknown_server_name",
    "no_route",
    "no_backend",
    "no_endpoint",
    "endpoints_full",
    "queue_timeout",
    "connect_failed",
    "connect_timeout",
    "session_limit",
    "listener_limit",
    "limit",
    "overload",
    "crowded_out",
    "source_limit",
    "local_limit",
    "drained",
    "stopped",
    "killed",
    "flow_timeout",
    "flow_answered",
    "flow_unanswered",
    "endpoint_down",
    "endpoint_removed",
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    Off,
    Stdout,
    Stderr,
    File(PathBuf),
    /// The Unix socket of a syslog daemon.
    Syslog(PathBuf),
}

/// Where syslog daemons listen.
pub const SYSLOG: &str = "/dev/log";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

impl Config {
    /// The address of `admin.socket`.
    pub fn admin_socket(&self) -> Option<UnixPath> {
        self.admin_socket.as_ref().map(|at| at.value)
    }

    /// Files that the configuration names and the compiler reads: certificates, keys, lists.
    pub fn files(&self) -> BTreeSet<PathBuf> {
        let listeners = self.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let backends = self.backends.iter().filter_map(|backend| backend.tls.as_ref());
        let checks = self.backends.iter().filter_map(|backend| backend.health_check.as_ref());
        let pems = listeners
            .flat_map(Termination::pems)
            .chain(backends.flat_map(Origination::pems))
            .chain(checks.filter_map(|check| check.value.ca.as_ref()));
        let file = |pem: &Pem| match pem {
            Pem::File(path) => Some(path.value.clone()),
            Pem::Inline { .. } => None,
        };
        let listeners = self.listeners.iter().flat_map(|listener| listener.admission.files());
        let ranges = listeners.chain(self.routes.iter().flat_map(|route| route.admission.files()));
        pems.filter_map(file).chain(ranges).collect()
    }

    /// The number of listening sockets that each worker has.
    pub fn listening_sockets(&self) -> usize {
        self.listeners.iter().flat_map(bound_to).collect::<BTreeSet<_>>().len()
    }
}

/// The limits asked for, with values for the limits that were left open. There are `workers`
/// workers, each with `sockets` listening sockets. The process may have `nofile` files open
/// (`RLIMIT_NOFILE`).
///
/// Each flow takes a source port. Each local address has `ports` source ports
/// (`net.ipv4.ip_local_port_range`).
///
/// A session takes two files, and a pipe takes two. The admin API, the log and listeners of later
/// configurations have 512 files. Where a flow takes a file too (`descriptors`), flows get at most
/// a quarter of the files that remain.
pub fn limits(
    asked: Limits,
    sockets: usize,
    workers: usize,
    nofile: u64,
    ports: u64,
    descriptors: bool,
) -> Limits {
    let sockets = u32::try_from(sockets).unwrap_or(u32::MAX);
    let workers = u32::try_from(workers.max(1)).unwrap_or(u32::MAX);
    let nofile = u32::try_from(nofile).unwrap_or(u32::MAX);
    let ports = u32::try_from(ports).unwrap_or(u32::MAX);
    let or = |asked: u32, automatic: u32| if asked == 0 { automatic } else { asked };
    let pipes = or(asked.pipes, 64);
    let each = pipes.saturating_mul(2).saturating_add(sockets);
    let reserved = each.saturating_mul(workers).saturating_add(512);
    let left = nofile.saturating_sub(reserved);
    let most = if descriptors { left / 4 / workers } else { nofile };
    let flows = or(asked.flows, most.min((ports / workers).max(4_096)).clamp(1, 65_536));
    let taken = if descriptors { flows.saturating_mul(workers) } else { 0 };
    let sessions = left.saturating_sub(taken) / 2 / workers;
    let buffers = or(asked.buffers.into(), 256).next_power_of_two().clamp(2, MAX_BUFFERS.into());
    Limits {
        sessions: or(asked.sessions, sessions.clamp(1, 65_536)),
        flows,
        buffers: u16::try_from(buffers).unwrap_or(MAX_BUFFERS),
        pipes,
        turn_bytes: or(asked.turn_bytes, 1 << 18),
        bulk_bytes: or(asked.bulk_bytes, 8 << 20),
    }
}

/// The values of keys that are not given.
pub(crate) const DRAIN_TIMEOUT: u32 = 30 * SECOND;
pub(crate) const LAME_DUCK: u32 = 5 * SECOND;
pub(crate) const ADMIN_ADDRESS: Option<SocketAddr> =
    Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9900));

/// The largest size of a provided-buffer ring (`io_uring_register_buf_ring(3)`).
pub(crate) const MAX_BUFFERS: u16 = 32_768;

/// The most sessions of one worker. A listener may set no larger limit for itself.
pub(crate) const MAX_SESSIONS: u32 = 1 << 20;

/// Names of the parts of a file that have faults of their own. Nothing else is known of these
/// parts, but references to the names are not wrong.
#[derive(Debug, Default)]
pub(crate) struct Broken {
    pub(crate) listeners: Vec<At<String>>,
    pub(crate) routes: Vec<At<String>>,
    pub(crate) backends: Vec<At<String>>,
    pub(crate) shared_limits: Vec<At<String>>,
}
