//! The values that the control thread gives to the admin API, including all that /metrics is made
//! of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use std::time::Duration;

use axum::body::Bytes;
use parking_lot::{Mutex, MutexGuard};
use schemars::JsonSchema;
use serde::Serialize;

use config_sync::compile::tls::expiry::Expiry;
use config_sync::gateway::follow::cluster::Figures;
use config_sync::health::ejection::Figure;
use config_sync::sync::{InForce, Timing};
use config_sync::table::routing::Limits;
use config_sync::{health, resolve};

use tokio::sync::Mutex as AsyncMutex;

use crate::control::admin::rates::{Rates, Totals};
use crate::control::admin::tls::Tls;
use crate::control::admin::viewers::Viewers;
use crate::control::closes::{Closes, totals};
use crate::control::memory::Reading;
use crate::control::metrics::process::Upgrades;
use crate::control::metrics::samples::{Scrape, Series};
use crate::control::own_memory::Start;
use crate::control::pulse::Hang;
use crate::control::timestamp::Timestamp;
use crate::control::top::Clients;
use tokio::time::Instant;

use crate::stats::counters::Counters;

/// The values that the control thread gives to the admin API. Each thread holds a lock only for as
/// long as copying some values takes.
pub struct Board {
    workers: Vec<Arc<Counters>>,
    limits: Limits,
    /// The limits that the configuration at the start asked for. 0: the amount is automatic.
    pub asked: Limits,
    pub features: String,
    pub ready: AtomicBool,
    /// New sessions and flows are refused, because the memory is nearly used up.
    pub overloaded: AtomicBool,
    /// The process is overloaded, and is not ready meanwhile.
    pub hides: AtomicBool,
    /// What was read last. `None`: the memory has no limit.
    pub memory: Mutex<Option<Reading>>,
    /// What the process used at its start, and what tables have needed since. `None`: the kernel
    /// does not tell.
    pub start: Mutex<Option<Start>>,
    /// No session will begin after the grace, or none does now.
    pub draining: AtomicBool,
    /// A worker that makes no turn any more.
    pub hang: Mutex<Option<Hang>>,
    /// Another process goes on with the sockets.
    pub handed_over: AtomicBool,
    pub upgrade: Mutex<Upgrades>,
    pub lines_dropped: AtomicU64,
    pub lines_failed: AtomicU64,
    /// Requests to the admin API beyond the rate of an address.
    pub requests_refused: AtomicU64,
    /// The number that was last read. The file can't be read when no file is left to open.
    source_ports: AtomicU64,
    latest: Mutex<Latest>,
    rates: Mutex<Rates>,
    started: Instant,
    /// The generation of the newest table.
    pub newest: AtomicU64,
    /// When the control thread last beat, in milliseconds since `started`.
    beat: AtomicU64,
    /// The clients with the most to do.
    pub clients: Mutex<Clients>,
    pub page: AsyncMutex<Option<MetricsPage>>,
    pub closes: Mutex<Closes>,
    pub viewers: Viewers,
    /// Whoever sets it has the access log's file opened again. `None`: there is no such file.
    pub reopen_log: Option<Arc<AtomicBool>>,
    /// How clients of `admin.address` speak TLS. `None`: they speak plain HTTP.
    pub tls: Option<Tls>,
}

/// The text of /metrics, for all requests that came before the page was begun.
pub struct MetricsPage {
    pub begun: Instant,
    pub text: Bytes,
}

/// Where the configuration comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    #[default]
    Files,
    Cluster,
}

/// The values that change with the configuration.
#[derive(Clone, Default)]
pub struct Latest {
    /// `None` before the first table.
    pub in_force: Option<Arc<InForce>>,
    /// A page that is being made shares these.
    pub series: Arc<Series>,
    pub reloads_ok: u64,
    pub reloads_failed: u64,
    /// Why the latest configuration was refused. `None` if it was not.
    pub refused: Option<String>,
    /// When the last configuration that was refused was refused, and why. It stays when a later
    /// configuration is put in force.
    pub last_refused: Option<(Timestamp, String)>,
    /// The generation of the table that the configuration in force came with, and when.
    pub generation: u64,
    pub since: Option<Timestamp>,
    pub source: Source,
    pub timing: Timing,
    pub health: health::Figures,
    pub resolver: resolve::Figures,
    pub ejections: Vec<Figure>,
    /// The number of overrides in force.
    pub overrides: u64,
    /// `Some` if a cluster is followed.
    pub kubernetes: Option<Figures>,
}

impl Board {
    /// `limits` are of one worker: those in force, and those that were asked for. `features` has
    /// the text of `ringway features`.
    pub fn new(
        workers: Vec<Arc<Counters>>,
        (limits, asked): (Limits, Limits),
        features: String,
    ) -> Self {
        Self {
            workers,
            limits,
            asked,
            features,
            ready: AtomicBool::default(),
            overloaded: AtomicBool::default(),
            hides: AtomicBool::default(),
            memory: Mutex::default(),
            start: Mutex::default(),
            draining: AtomicBool::default(),
            hang: Mutex::default(),
            handed_over: AtomicBool::default(),
            upgrade: Mutex::default(),
            rates: Mutex::default(),
            viewers: Viewers::default(),
            reopen_log: None,
            tls: None,
            lines_dropped: AtomicU64::default(),
            lines_failed: AtomicU64::default(),
            requests_refused: AtomicU64::default(),
            source_ports: AtomicU64::default(),
            latest: Mutex::default(),
            started: Instant::now(),
            newest: AtomicU64::default(),
            beat: AtomicU64::default(),
            clients: Mutex::new(Clients::new(Instant::now())),
            page: AsyncMutex::default(),
            closes: Mutex::new(Closes::new(Instant::now())),
        }
    }

    /// Notes that the control thread is alive.
    pub fn beat(&self) {
        self.beat.store(self.millis(), Ordering::Relaxed);
    }

    /// The milliseconds since the start.
    pub fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The time since the control thread last beat.
    pub fn silence(&self) -> Duration {
        let beat = self.beat.load(Ordering::Relaxed);
        Duration::from_millis(self.millis().saturating_sub(beat))
    }

    /// What /readyz says.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
            && !self.hides.load(Ordering::Relaxed)
            && self.hang.lock().is_none()
    }

    pub fn latest(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock()
    }

    pub fn workers(&self) -> &[Arc<Counters>] {
        &self.workers
    }

    /// Of one worker.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The end of the admin API's certificate.
    pub fn admin_certificate(&self) -> Option<Expiry> {
        self.tls.as_ref().and_then(Tls::expiry)
    }

    /// The ends of all certificates and revocation lists in use.
    pub fn expiries(&self) -> Vec<Expiry> {
        let series = Arc::clone(&self.latest().series);
        series.expiries().iter().cloned().chain(self.admin_certificate()).collect()
    }

    /// Notes what the counters say now, for rates and for the closes of each minute.
    pub fn sample(&self) {
        let series = Arc::clone(&self.latest().series);
        let (mut closes, now) = (self.closes.lock(), Instant::now());
        if closes.is_due(now) {
            closes.tick(&totals(&self.workers, series.listeners()), now);
        }
        drop(closes);
        let mut totals = Totals::default();
        for id in series.listeners() {
            for worker in &self.workers {
                let listener = worker.listener(id);
                totals.opened += listener.opened.get();
                totals.bytes_up += listener.bytes_up.get();
                totals.bytes_down += listener.bytes_down.get();
            }
        }
        self.rates.lock().learn(self.started.elapsed(), totals);
    }

    pub fn per_second(&self) -> Totals {
        self.rates.lock().per_second()
    }

    pub fn metrics(&self) -> String {
        let latest = self.latest().clone();
        if let Some(ports) = source_ports() {
            self.source_ports.store(ports, Ordering::Relaxed);
        }
        let scrape = Scrape {
            workers: &self.workers,
            limits: self.limits,
            ready: self.is_ready(),
            reloads_ok: latest.reloads_ok,
            reloads_failed: latest.reloads_failed,
            refused: latest.refused.is_some(),
            compile_micros: latest.timing.compile_micros,
            publish_micros: latest.timing.publish_micros,
            lines_dropped: self.lines_dropped.load(Ordering::Relaxed),
            lines_failed: self.lines_failed.load(Ordering::Relaxed),
            requests_refused: self.requests_refused.load(Ordering::Relaxed),
            source_ports: self.source_ports.load(Ordering::Relaxed),
            kubernetes: latest.kubernetes.as_ref(),
            health: &latest.health,
            resolver: latest.resolver,
            ejections: &latest.ejections,
            overrides: latest.overrides,
            upgrade: *self.upgrade.lock(),
            overloaded: self.overloaded.load(Ordering::Relaxed),
            memory: *self.memory.lock(),
            admin_certificate: self.admin_certificate(),
            endpoint_labels: latest.in_force.as_ref().is_none_or(|of| of.config.endpoint_labels),
        };
        scrape.render(&latest.series)
    }
}

/// The number of ports in `net.ipv4.ip_local_port_range`. `None` if the range can't be read.
pub fn source_ports() -> Option<u64> {
    size(&std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?)
}

fn size(range: &str) -> Option<u64> {
    let mut bounds = range.split_whitespace().map(str::parse::<u64>);
    let (first, last) = (bounds.next()?.ok()?, bounds.next()?.ok()?);
    Some((last + 1).saturating_sub(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_range_counts_both_ends() {
        assert_eq!(size("32768\t60999\n"), Some(28_232));
        assert_eq!(size("x 1"), None);
    }
}
