//! The samples of what the control thread knows of endpoints, their health, ejections and names,
//! and of the limits of parts.

use std::collections::BTreeMap;
use std::sync::Arc;

use config_sync::health::ejection::Figure;
use config_sync::health::{self, Tally};
use config_sync::resolve;
use config_sync::table::load::{Line, NO_LIMIT};
use config_sync::table::routing::EndpointId;

use crate::control::limited::Named;
use crate::control::metrics::exposition::{Merged, Page};
use crate::stats::counters::{Counter, Counters, EndpointCounters};

/// Endpoints whose counts are one series. Of each the id, and whether it is in force.
pub(super) struct Group<'a> {
    pub backend: &'a str,
    /// `None`: these are the endpoints of a backend.
    pub address: Option<&'a str>,
    pub endpoints: Vec<(EndpointId, bool)>,
}

impl<'a> Group<'a> {
    fn labels(&self) -> Vec<(&'static str, &'a str)> {
        let address = self.address.map(|address| ("endpoint", address));
        [("backend", self.backend)].into_iter().chain(address).collect()
    }

    fn counters(&self, workers: &'a [Arc<Counters>]) -> impl Iterator<Item = &'a EndpointCounters> {
        let ids: Vec<EndpointId> = self.endpoints.iter().map(|(id, _)| *id).collect();
        ids.into_iter().flat_map(|id| workers.iter().map(move |worker| worker.endpoint(id)))
    }

    fn sum(&self, workers: &[Arc<Counters>], pick: impl Fn(&EndpointCounters) -> &Counter) -> u64 {
        self.counters(workers).map(|of| pick(of).get()).sum()
    }

    fn in_force(&self) -> bool {
        self.endpoints.iter().any(|(_, in_force)| *in_force)
    }
}

pub(super) fn sessions(page: &Page, workers: &[Arc<Counters>], groups: &[Group<'_>]) {
    for group in groups {
        // Ends are read before openings, so that the active count never falls below 0.
        let closed = group.sum(workers, |of| &of.closed);
        let opened = group.sum(workers, |of| &of.opened);
        let active = opened.saturating_sub(closed);
        if !group.in_force() && active == 0 {
            continue;
        }
        let labels = group.labels();
        let total = |name, pick: fn(&EndpointCounters) -> &Counter| {
            page.set(name, &labels, group.sum(workers, pick));
        };
        page.set("ringway_endpoint_sessions_opened_total", &labels, opened);
        page.set("ringway_endpoint_sessions_active", &labels, active);
        total("ringway_endpoint_connect_failures_total", |endpoint| &endpoint.connect_failures);
        total("ringway_endpoint_refusals_total", |endpoint| &endpoint.refusals);
        total("ringway_endpoint_late_replies_total", |endpoint| &endpoint.late_replies);
        total("ringway_endpoint_resets_total", |endpoint| &endpoint.resets);
        for (side, bytes) in [
            ("client", group.sum(workers, |of| &of.bytes_up)),
            ("endpoint", group.sum(workers, |of| &of.bytes_down)),
        ] {
            let labels = [&labels[..], &[("side", side)]].concat();
            page.set("ringway_endpoint_relayed_bytes_total", &labels, bytes);
        }
    }
}

pub(super) fn connects(page: &Page, workers: &[Arc<Counters>], groups: &[Group<'_>]) {
    for group in groups.iter().filter(|group| group.in_force()) {
        let mut merged = Merged::default();
        group.counters(workers).for_each(|of| merged.add(&of.connect));
        // With thousands of endpoints, empty histograms would be most of the page, so they are left
        // out.
        if merged.count() > 0 {
            let name = "ringway_endpoint_connect_duration_seconds";
            page.histogram(name, &group.labels(), &merged);
        }
    }
}

/// Without labels of endpoints, the number of a backend's healthy endpoints.
pub(super) fn health(page: &Page, figures: &health::Figures, by_endpoint: bool) {
    let healthy = "ringway_endpoint_healthy";
    let mut backends: BTreeMap<&str, u64> = BTreeMap::new();
    for (backend, address, up) in &figures.endpoints {
        if by_endpoint {
            let address = address.to_string();
            let labels: &[_] = &[("backend", &**backend), ("endpoint", address.as_str())];
            page.set(healthy, labels, u64::from(*up));
        } else {
            *backends.entry(backend).or_default() += u64::from(*up);
        }
    }
    for (backend, up) in backends {
        page.set(healthy, &[("backend", backend)], up);
    }
    for (backend, Tally { ok, failed, not_made }) in &figures.checks {
        for (result, count) in [("ok", ok), ("failed", failed), ("not_made", not_made)] {
            let labels: &[_] = &[("backend", &**backend), ("result", result)];
            page.set("ringway_health_checks_total", labels, *count);
        }
    }
}

pub(super) fn ejections(page: &Page, figures: &[Figure]) {
    for Figure { backend, count, out } in figures {
        let labels: &[_] = &[("backend", &**backend)];
        page.set("ringway_ejections_total", labels, *count);
        page.set("ringway_endpoints_ejected", labels, *out as u64);
    }
}

pub(super) fn resolver(page: &Page, figures: resolve::Figures) {
    let resolve::Figures { lookups, names, kept, unresolved } = figures;
    for (result, count) in [("ok", lookups.ok), ("failed", lookups.failed)] {
        page.set("ringway_resolver_lookups_total", &[("result", result)], count);
    }
    let resolved = names - kept - unresolved;
    for (state, count) in [("resolved", resolved), ("kept", kept), ("unresolved", unresolved)] {
        page.set("ringway_resolver_names", &[("state", state)], count as u64);
    }
}

pub(super) fn limits(page: &Page, limits: &[Named]) {
    for Named { kind, name, limit } in limits {
        let labels: &[_] = &[("kind", *kind), ("name", &**name)];
        page.set("ringway_limit_sessions", labels, limit.usage.sessions.get().into());
        if limit.sessions != NO_LIMIT {
            page.set("ringway_limit_sessions_max", labels, limit.sessions.into());
        }
        page.set("ringway_limit_refused_total", labels, limit.usage.refused());
    }
}

pub(super) fn queues(page: &Page, lines: &[(Arc<str>, Arc<Line>)]) {
    for (backend, line) in lines {
        let labels: &[_] = &[("backend", &**backend)];
        page.set("ringway_backend_sessions_waiting", labels, line.waiting().into());
        page.set("ringway_backend_sessions_queued_total", labels, line.tickets());
    }
}
