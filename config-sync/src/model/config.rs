//! A configuration: what was asked for, whether a TOML file or Kubernetes objects said so.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::machine::Machine;
use crate::model::backend::Backend;
use crate::model::listener::Listener;
use crate::model::place::{At, Problem};
use crate::model::route::Route;
use crate::model::tls::{Origination, Pem, Termination};
use crate::table::routing::Limits;

/// A configuration whose every value is of the right form and within its range. Whether its parts
/// fit together is said by `compile`. Durations are in milliseconds unless said otherwise; 0: off.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How many workers there are, and where. Not reloadable.
    pub cores: Cores,
    /// Where the admin API listens; `None`: nowhere. Not reloadable.
    pub admin: Option<SocketAddr>,
    /// How long sessions may live on after SIGTERM before they are closed.
    pub drain_timeout: u32,
    /// How long readiness fails before the drain begins, so that load balancers have looked.
    pub drain_grace: u32,
    /// How long a UDP flow stays with an endpoint that has left the table.
    pub lame_duck: u32,
    /// Not reloadable, but for `open`.
    pub access_log: AccessLog,
    /// As asked for, 0 where it is left to [`limits`]. Not reloadable.
    pub limits: Limits,
    pub listeners: Vec<Listener>,
    pub routes: Vec<Route>,
    pub backends: Vec<Backend>,
    /// What can be in force and is hardly meant, of the keys above `listeners`.
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
    /// Those that this machine does not have, or that this process may not use. No fault of a file:
    /// it may be meant for another machine.
    pub fn unusable(&self, machine: &Machine) -> Vec<Problem> {
        let Self::List(cores) = self else { return Vec::new() };
        let usable = machine.cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let message = |core| format!("core {core} is not usable; this process may use {usable}");
        let unusable = cores.iter().filter(|core| !machine.cores.contains(&core.value));
        unusable.map(|core| core.problem(message(core.value))).collect()
    }

    /// Their numbers, wherever they stand; `None`: automatic.
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
    /// Log the beginning of sessions and flows too, not only their end.
    pub open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    Off,
    Stdout,
    Stderr,
    File(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

impl Config {
    /// Files that it names and that are read when it is compiled: certificates, keys, lists.
    pub fn files(&self) -> BTreeSet<PathBuf> {
        let listeners = self.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let backends = self.backends.iter().filter_map(|backend| backend.tls.as_ref());
        let pems =
            listeners.flat_map(Termination::pems).chain(backends.flat_map(Origination::pems));
        let file = |pem: &Pem| match pem {
            Pem::File(path) => Some(path.value.clone()),
            Pem::Inline { .. } => None,
        };
        let listeners = self.listeners.iter().flat_map(|listener| listener.admission.files());
        let ranges = listeners.chain(self.routes.iter().flat_map(|route| route.admission.files()));
        pems.filter_map(file).chain(ranges).collect()
    }
}

/// The limits asked for, with those that are left open filled in: for `workers` workers in a
/// process that may have `nofile` files open (`RLIMIT_NOFILE`).
///
/// A flow takes a source port, of which there are `ports` for each local address
/// (`net.ipv4.ip_local_port_range`).
///
/// A session takes two files, a pipe two; 512 are left for listeners, the admin API and the log.
/// Where a flow takes one too (`descriptors`), a quarter of what is left is for flows at the most.
pub fn limits(asked: Limits, workers: usize, nofile: u64, ports: u64, descriptors: bool) -> Limits {
    let workers = u32::try_from(workers.max(1)).unwrap_or(u32::MAX);
    let nofile = u32::try_from(nofile).unwrap_or(u32::MAX);
    let ports = u32::try_from(ports).unwrap_or(u32::MAX);
    let or = |asked: u32, automatic: u32| if asked == 0 { automatic } else { asked };
    let pipes = or(asked.pipes, 64);
    let reserved = pipes.saturating_mul(2).saturating_mul(workers).saturating_add(512);
    let left = nofile.saturating_sub(reserved);
    let most = if descriptors { left / 4 / workers } else { nofile };
    let flows = or(asked.flows, most.min((ports / workers).max(4_096)).clamp(1, 65_536));
    let taken = if descriptors { flows.saturating_mul(workers) } else { 0 };
    let sessions = left.saturating_sub(taken) / 2 / workers;
    let buffers = or(asked.buffers.into(), 256).next_power_of_two().min(MAX_BUFFERS.into());
    Limits {
        sessions: or(asked.sessions, sessions.clamp(1, 65_536)),
        flows,
        buffers: u16::try_from(buffers).unwrap_or(MAX_BUFFERS),
        pipes,
        turn_bytes: or(asked.turn_bytes, 1 << 18),
        bulk_bytes: or(asked.bulk_bytes, 8 << 20),
    }
}

/// Of a provided-buffer ring (`io_uring_register_buf_ring(3)`).
pub(crate) const MAX_BUFFERS: u16 = 32_768;

/// Of one worker; also the most that a listener may set for itself.
pub(crate) const MAX_SESSIONS: u32 = 1 << 20;

/// Names of those parts of a file that have faults of their own: they are there, and that is all
/// that is known of them.
#[derive(Debug, Default)]
pub(crate) struct Broken {
    pub(crate) listeners: Vec<At<String>>,
    pub(crate) routes: Vec<At<String>>,
    pub(crate) backends: Vec<At<String>>,
}
