//! The metrics of the process that every exporter has, by the names that Prometheus' client
//! libraries give them.

use procfs::process::{LimitValue, Process};
use procfs::{CurrentSI as _, KernelStats, ProcResult, page_size, ticks_per_second};

use schemars::JsonSchema;
use serde::Serialize;

use crate::control::memory::Reading;
use crate::control::metrics::exposition::Page;

/// Figures of upgrades.
#[derive(Clone, Copy, Debug, Default, JsonSchema, Serialize)]
pub struct Upgrades {
    /// 1: this process has taken nothing over.
    pub generation: u64,
    /// The number of listening addresses that came from the process before.
    pub listeners: u64,
    /// Sessions that came from the process before and go on here.
    pub taken_over: u64,
    /// UDP flows that came from the process before and go on here.
    pub flows_taken_over: u64,
    /// Earlier processes that still have sessions or flows, and how many.
    pub processes: u64,
    pub sessions: u64,
    pub flows: u64,
    /// Upgrades that came to nothing in this process.
    pub failures: u64,
}

/// Sets the metrics of this process. A value that the kernel does not tell is left out.
pub(super) fn set(page: &Page, upgrades: Upgrades) {
    let Upgrades { generation, listeners, taken_over, flows_taken_over, .. } = upgrades;
    let Upgrades { processes, sessions, flows, failures, .. } = upgrades;
    for (name, value) in [
        ("ringway_process_generation", generation),
        ("ringway_upgrade_listeners", listeners),
        ("ringway_upgrade_sessions_taken_over_total", taken_over),
        ("ringway_upgrade_flows_taken_over_total", flows_taken_over),
        ("ringway_upgrade_draining_processes", processes),
        ("ringway_upgrade_draining_sessions", sessions),
        ("ringway_upgrade_draining_flows", flows),
        ("ringway_upgrade_failures_total", failures),
    ] {
        page.set(name, &[], value);
    }
    // Only a machine without /proc has no values.
    let _ = values(page);
}

/// Sets the metrics of the memory that the process may use.
pub(super) fn memory(page: &Page, reading: Option<Reading>, overloaded: bool) {
    page.set("ringway_overloaded", &[], u64::from(overloaded));
    if let Some(Reading { used, most }) = reading {
        page.set("ringway_memory_used_bytes", &[], used);
        page.set("ringway_memory_limit_bytes", &[], most);
    }
}

/// The files that this process has open, and the most that it may have. `None`: the kernel does not
/// tell.
pub fn files() -> Option<(u64, u64)> {
    let process = Process::myself().ok()?;
    let LimitValue::Value(most) = process.limits().ok()?.max_open_files.soft_limit else {
        return None;
    };
    Some((process.fd_count().ok()? as u64, most))
}

fn values(page: &Page) -> ProcResult<()> {
    let process = Process::myself()?;
    let stat = process.stat()?;
    let micros = |ticks: u64| ticks * 1_000_000 / ticks_per_second().max(1);
    page.seconds("process_cpu_seconds_total", &[], micros(stat.utime + stat.stime));
    page.set("process_resident_memory_bytes", &[], stat.rss * page_size());
    page.set("process_virtual_memory_bytes", &[], stat.vsize);
    page.set("process_open_fds", &[], process.fd_count()? as u64);
    if let LimitValue::Value(most) = process.limits()?.max_open_files.soft_limit {
        page.set("process_max_fds", &[], most);
    }
    let booted = KernelStats::current()?.btime;
    let start = booted * 1_000_000 + micros(stat.starttime);
    page.seconds("process_start_time_seconds", &[], start);
    Ok(())
}
