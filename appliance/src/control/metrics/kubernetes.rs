//! The samples of the cluster that is followed.

use config_sync::gateway::follow::cluster::Figures;

use crate::control::metrics::exposition::Page;

pub(super) fn set(page: &Page, figures: &Figures) {
    for (kind, progress) in &figures.kinds {
        let labels: &[_] = &[("kind", *kind)];
        let served = u64::from(progress.version.is_some());
        page.set("ringway_kubernetes_kind_served", labels, served);
        page.set("ringway_kubernetes_kind_followed", labels, u64::from(progress.following));
        page.set("ringway_kubernetes_objects", labels, progress.objects as u64);
    }
    page.set("ringway_kubernetes_connected", &[], u64::from(figures.connected));
    page.set("ringway_kubernetes_leader", &[], u64::from(figures.leads));
    page.set("ringway_kubernetes_replicas", &[], figures.replicas as u64);
    page.set("ringway_kubernetes_replicas_behind", &[], u64::from(figures.behind));
    page.set("ringway_kubernetes_watch_errors_total", &[], figures.watch_errors);
    page.set("ringway_kubernetes_status_writes_total", &[], figures.status_writes);
    page.set("ringway_kubernetes_status_conflicts_total", &[], figures.status_conflicts);
    page.set("ringway_kubernetes_write_errors_total", &[], figures.errors);
    let translated = figures.translate_micros;
    page.seconds("ringway_kubernetes_translate_seconds", &[], translated);
    if let Some(millis) = figures.heard_millis {
        page.seconds("ringway_kubernetes_last_heard_seconds", &[], millis.saturating_mul(1_000));
    }
}
