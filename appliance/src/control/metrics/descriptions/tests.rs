//! The list keeps the rules of names, and the page of metrics is made of it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::*;

/// As OpenMetrics demands.
#[test]
fn counters_and_only_counters_end_in_total() {
    for Metric { name, kind, .. } in METRICS {
        assert_eq!(name.ends_with("_total"), matches!(kind, Counter), "{name}");
    }
}

/// `RINGWAY_UPDATE_GOLDEN=1 cargo test --workspace --lib metrics` writes the page anew.
#[test]
fn the_page_of_metrics_is_made_of_this_list() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/docs/metrics.md");
    let there = std::fs::read_to_string(path).unwrap_or_default();
    let head = there.split_once(BEGIN).map_or(there.as_str(), |(head, _)| head);
    let page = format!("{head}{BEGIN}{}", tables());
    if std::env::var_os("RINGWAY_UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &page).expect("the page can be written");
    }
    assert!(there == page, "images/docs/metrics.md is not made of this list");
}

const BEGIN: &str = "<!-- made of appliance/src/control/metrics/descriptions.rs -->\n";

/// The parts of the page, by how the names begin.
const PARTS: &[(&str, &[&str])] = &[
    ("Sessions", &["ringway_session", "ringway_relayed", "ringway_tcp", "ringway_connections"]),
    ("Flows and datagrams", &["ringway_flow", "ringway_datagrams", "ringway_upstream"]),
    ("Backends and endpoints", &["ringway_endpoint", "ringway_backend", "ringway_eject"]),
    ("Health and names", &["ringway_health", "ringway_resolver", "ringway_overrides"]),
    (
        "Configuration",
        &["ringway_reload", "ringway_conf", "ringway_table", "ringway_cert", "ringway_crl"],
    ),
    ("Kubernetes", &["ringway_kubernetes"]),
    ("Upgrades", &["ringway_upgrade", "ringway_process_generation"]),
    ("Workers and the process", &["ringway_", "process_"]),
];

fn tables() -> String {
    let mut text = String::new();
    let mut told = BTreeSet::new();
    for (title, begins) in PARTS {
        let _ = write!(text, "\n## {title}\n\n");
        text.push_str("| metric | type | labels | unit | meaning |\n|---|---|---|---|---|\n");
        for metric in METRICS {
            let is_here = begins.iter().any(|begin| metric.name.starts_with(begin));
            if is_here && told.insert(metric.name) {
                let labels: Vec<_> =
                    metric.labels.iter().map(|label| format!("`{label}`")).collect();
                let (kind, labels) = (metric.kind.word(), labels.join(", "));
                let Metric { name, help, .. } = metric;
                let _ =
                    writeln!(text, "| `{name}` | {kind} | {labels} | {} | {help} |", unit(name));
            }
        }
    }
    assert_eq!(told.len(), METRICS.len());
    text
}

/// Names of Prometheus say the unit.
fn unit(name: &str) -> &'static str {
    let name = name.trim_end_matches("_total").trim_end_matches("_max");
    match name.rsplit('_').next() {
        Some("seconds") if name.ends_with("timestamp_seconds") => "Unix time, s",
        Some("seconds") if name.ends_with("start_time_seconds") => "Unix time, s",
        Some("seconds") => "s",
        Some("bytes") => "bytes",
        _ => "",
    }
}
