//! The samples of what the control thread knows of endpoints: their health, ejections and names.

use std::sync::Arc;

use config_sync::health::ejection::Figure;
use config_sync::health::{self, Tally};
use config_sync::resolve;
use config_sync::table::load::Line;

use crate::control::metrics::exposition::Page;

pub(super) fn health(page: &Page, figures: &health::Figures) {
    for (backend, address, up) in &figures.endpoints {
        let address = address.to_string();
        let labels: &[_] = &[("backend", &**backend), ("endpoint", address.as_str())];
        page.set("ringway_endpoint_healthy", labels, u64::from(*up));
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

pub(super) fn queues(page: &Page, lines: &[(Arc<str>, Arc<Line>)]) {
    for (backend, line) in lines {
        let labels: &[_] = &[("backend", &**backend)];
        page.set("ringway_backend_sessions_waiting", labels, line.waiting().into());
        page.set("ringway_backend_sessions_queued_total", labels, line.tickets());
    }
}
