//! The text of the page at /metrics: the list of metrics, and the text format of Prometheus.
//!
//! The exporter's crate writes the lines. The crate's recorder is not used: the recorder's
//! histograms take single samples, and the histograms here are buckets that each core has counted.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;

use indexmap::IndexMap;
use metrics::{Key, Label};
use metrics_exporter_prometheus::LabelSet;
use metrics_exporter_prometheus::formatting::{
    write_help_line, write_metric_line, write_type_line,
};

use crate::stats::counters::{BUCKETS, Histogram};

/// Every metric and its meaning.
const METRICS: &[(&str, Type, &str)] = &[
    ("process_cpu_seconds_total", Type::Counter, "CPU time of all threads, user and system."),
    ("process_resident_memory_bytes", Type::Gauge, "Memory in use."),
    ("process_virtual_memory_bytes", Type::Gauge, "Address space in use."),
    (
        "process_open_fds",
        Type::Gauge,
        "Open files. A TCP session takes two; upstream UDP sockets are not among them where the \
         kernel keeps them in the ring's table.",
    ),
    ("process_max_fds", Type::Gauge, "The soft limit of open files."),
    ("process_start_time_seconds", Type::Gauge, "Unix time at which the process began."),
    ("ringway_build_info", Type::Gauge, "Always 1; the version is in the label."),
    ("ringway_ready", Type::Gauge, "1 while /readyz says yes."),
    (
        "ringway_process_generation",
        Type::Gauge,
        "How many processes have served one after the other by upgrades, with this one.",
    ),
    (
        "ringway_upgrade_listeners",
        Type::Gauge,
        "Listening addresses that this process has taken over from the one before.",
    ),
    (
        "ringway_upgrade_sessions_taken_over_total",
        Type::Counter,
        "TCP sessions that came from the process before and went on here.",
    ),
    (
        "ringway_upgrade_draining_processes",
        Type::Gauge,
        "Earlier processes that still live, because sessions or flows of theirs do.",
    ),
    ("ringway_upgrade_draining_sessions", Type::Gauge, "Sessions in earlier processes."),
    ("ringway_upgrade_draining_flows", Type::Gauge, "UDP flows in earlier processes."),
    (
        "ringway_upgrade_failures_total",
        Type::Counter,
        "Upgrades that came to nothing: this process went on.",
    ),
    ("ringway_workers", Type::Gauge, "Worker threads, one per core."),
    (
        "ringway_source_ports",
        Type::Gauge,
        "Size of net.ipv4.ip_local_port_range. Upstream UDP sockets take one port each per local \
         address: compare with ringway_upstream_sockets_open, summed.",
    ),
    ("ringway_reloads_total", Type::Counter, "Configurations that were put in force."),
    (
        "ringway_reload_failures_total",
        Type::Counter,
        "Configurations that were refused; the one before stayed in force.",
    ),
    (
        "ringway_configuration_refused",
        Type::Gauge,
        "1 while the latest configuration is refused, and the one before in force.",
    ),
    (
        "ringway_log_lines_dropped_total",
        Type::Counter,
        "Access-log lines lost because the control thread (channel_full) or what the log is \
         written to (writer_slow) was too slow, or refused them (write_failed): a full disk.",
    ),
    (
        "ringway_connections_accepted_total",
        Type::Counter,
        "TCP connections accepted, whatever became of them.",
    ),
    (
        "ringway_connections_aborted_total",
        Type::Counter,
        "TCP connections that their client reset before they could be looked at: not accepted, \
         not logged.",
    ),
    (
        "ringway_accept_pauses_total",
        Type::Counter,
        "Times that accepting paused because files or memory ran out.",
    ),
    (
        "ringway_receive_pauses_total",
        Type::Counter,
        "Times that receiving on a UDP socket paused, because memory ran out or the like.",
    ),
    (
        "ringway_spliced_bytes_total",
        Type::Counter,
        "Bytes of bulk traffic that were moved between sockets by splice(2), without a copy.",
    ),
    (
        "ringway_bulk_runs_total",
        Type::Counter,
        "Times that one direction of a session became bulk: fewer and larger wake-ups.",
    ),
    (
        "ringway_unpaced_total",
        Type::Counter,
        "Connections with bulk to a near peer whose congestion control was changed to one that \
         does not pace.",
    ),
    (
        "ringway_streams_total",
        Type::Counter,
        "Times that one direction of a session became busy with small messages.",
    ),
    (
        "ringway_rearms_total",
        Type::Counter,
        "Multishot operations that the kernel ended and that were started again.",
    ),
    (
        "ringway_buffer_shortages_total",
        Type::Counter,
        "Times that a receive ended because no buffer was free.",
    ),
    (
        "ringway_pipe_shortages_total",
        Type::Counter,
        "Times that bulk traffic was copied because all pipes were in use.",
    ),
    (
        "ringway_cq_overflows_total",
        Type::Counter,
        "Completions that did not fit the completion queue (none is lost; it costs time).",
    ),
    (
        "ringway_kubernetes_kind_served",
        Type::Gauge,
        "1 if the cluster serves the kind in a version that is known; 0: its CRD is missing.",
    ),
    (
        "ringway_kubernetes_kind_followed",
        Type::Gauge,
        "1 while the objects of the kind are followed; 0: what was known stays in force.",
    ),
    ("ringway_kubernetes_objects", Type::Gauge, "Objects of the kind that are known."),
    ("ringway_kubernetes_connected", Type::Gauge, "1 while every kind that is served is followed."),
    ("ringway_kubernetes_leader", Type::Gauge, "1 on the replica that writes statuses."),
    ("ringway_kubernetes_replicas", Type::Gauge, "Replicas that live, this one included."),
    (
        "ringway_kubernetes_replicas_behind",
        Type::Gauge,
        "1 on the leader while a replica has not applied what it has: Programmed waits for it.",
    ),
    (
        "ringway_kubernetes_watch_errors_total",
        Type::Counter,
        "Lists and watches of the API server that have failed.",
    ),
    ("ringway_kubernetes_status_writes_total", Type::Counter, "Statuses written."),
    (
        "ringway_kubernetes_status_conflicts_total",
        Type::Counter,
        "Writes of statuses done again because somebody else had written the object.",
    ),
    (
        "ringway_kubernetes_write_errors_total",
        Type::Counter,
        "Writes of statuses, ServiceAccounts and Leases that have failed.",
    ),
    (
        "ringway_kubernetes_translate_seconds",
        Type::Gauge,
        "Seconds that the latest translation of all objects took.",
    ),
    (
        "ringway_kubernetes_last_heard_seconds",
        Type::Gauge,
        "Seconds since the API server last answered or told something.",
    ),
    ("ringway_worker_turns_total", Type::Counter, "Turns of the worker's loop."),
    (
        "ringway_worker_turn_seconds",
        Type::Histogram,
        "Seconds that a turn of the worker's loop took, of one turn in 8: what is ready on one \
         session waits as long for the others.",
    ),
    (
        "ringway_table_compile_seconds",
        Type::Gauge,
        "Seconds that reading, checking and compiling the latest configuration took.",
    ),
    (
        "ringway_table_publish_seconds",
        Type::Gauge,
        "Seconds that opening the latest table's new sockets and handing it out took.",
    ),
    (
        "ringway_table_apply_seconds",
        Type::Gauge,
        "Seconds for which the worker did nothing else when it took over the latest table.",
    ),
    ("ringway_table_apply_seconds_max", Type::Gauge, "The longest of these since the start."),
    ("ringway_table_generation", Type::Gauge, "Generation of the routing table in force."),
    (
        "ringway_certificate_expiry_timestamp_seconds",
        Type::Gauge,
        "When the certificate of a listener or backend ends, in seconds of Unix time.",
    ),
    (
        "ringway_crl_expiry_timestamp_seconds",
        Type::Gauge,
        "When a listener's list of revoked certificates ends, in seconds of Unix time.",
    ),
    ("ringway_session_slots_used", Type::Gauge, "TCP sessions alive on the worker."),
    ("ringway_session_slots", Type::Gauge, "TCP sessions that the worker has room for."),
    ("ringway_flow_slots_used", Type::Gauge, "UDP flows alive on the worker."),
    ("ringway_flow_slots", Type::Gauge, "UDP flows that the worker has room for."),
    ("ringway_upstream_sockets_open", Type::Gauge, "UDP sockets towards endpoints."),
    (
        "ringway_upstream_sockets_resting",
        Type::Gauge,
        "Of these, the ones that serve no flow now and wait for their next.",
    ),
    (
        "ringway_upstream_pairs",
        Type::Gauge,
        "Pairs of endpoint and local address on shared upstream sockets, in use or resting: each \
         endpoint has as many as its backend has addresses in `source`.",
    ),
    (
        "ringway_source_port_shortages_total",
        Type::Counter,
        "Times that a local address had no UDP port free: for 10 to 100 ms no new flow is given a \
         socket from there.",
    ),
    (
        "ringway_upstream_strangers_total",
        Type::Counter,
        "Datagrams on shared upstream sockets that came from no flow's endpoint, or to an address \
         that it has no flow from: dropped.",
    ),
    (
        "ringway_fast_path_flows",
        Type::Gauge,
        "UDP flows that the kernel forwards now (`fast_path`).",
    ),
    (
        "ringway_fast_path_promotions_total",
        Type::Counter,
        "Times that the kernel began to forward a UDP flow.",
    ),
    (
        "ringway_fast_path_failures_total",
        Type::Counter,
        "Times that the kernel could not begin to forward a UDP flow: the worker forwards it.",
    ),
    (
        "ringway_fast_path_datagrams_total",
        Type::Counter,
        "Datagrams that the kernel forwarded, both ways, of those that the listener counts too.",
    ),
    ("ringway_receive_buffers_free", Type::Gauge, "Receive buffers that the kernel can fill."),
    ("ringway_receive_buffers", Type::Gauge, "Receive buffers of the worker."),
    ("ringway_pipes_used", Type::Gauge, "Pipes that carry bulk traffic now."),
    ("ringway_pipes", Type::Gauge, "Pipes that the worker may use."),
    ("ringway_sessions_opened_total", Type::Counter, "TCP sessions given to the listener."),
    ("ringway_sessions_active", Type::Gauge, "TCP sessions alive."),
    (
        "ringway_sessions_closed_total",
        Type::Counter,
        "TCP sessions that ended after they had an endpoint, by reason.",
    ),
    (
        "ringway_sessions_refused_total",
        Type::Counter,
        "TCP sessions that ended before they had an endpoint, by reason; without a listener where \
         none was found.",
    ),
    ("ringway_flows_created_total", Type::Counter, "UDP flows begun."),
    ("ringway_flows_active", Type::Gauge, "UDP flows alive."),
    (
        "ringway_flows_closed_total",
        Type::Counter,
        "UDP flows that ended, by reason; those that expired are flow_timeout.",
    ),
    ("ringway_flows_refused_total", Type::Counter, "UDP flows that got no endpoint, by reason."),
    (
        "ringway_relayed_bytes_total",
        Type::Counter,
        "Payload bytes delivered, by the side that they came from.",
    ),
    ("ringway_tcp_resets_total", Type::Counter, "Sessions ended by a reset, by who sent it."),
    ("ringway_datagrams_received_total", Type::Counter, "Datagrams, by the side they came from."),
    ("ringway_datagrams_sent_total", Type::Counter, "Datagrams, by the side they went to."),
    ("ringway_datagrams_dropped_total", Type::Counter, "Datagrams not forwarded, by reason."),
    (
        "ringway_datagrams_fragmented_total",
        Type::Counter,
        "Datagrams that fitted the path to their endpoint until a PROXY header was put before \
         them: sent in fragments.",
    ),
    (
        "ringway_endpoint_sessions_opened_total",
        Type::Counter,
        "Sessions connected, or flows given, to the endpoint.",
    ),
    ("ringway_endpoint_sessions_active", Type::Gauge, "Sessions and flows of the endpoint."),
    (
        "ringway_backend_sessions_waiting",
        Type::Gauge,
        "Sessions in the backend's queue, because every endpoint has its max_sessions.",
    ),
    (
        "ringway_backend_sessions_queued_total",
        Type::Counter,
        "Sessions that joined the backend's queue.",
    ),
    (
        "ringway_endpoint_connect_failures_total",
        Type::Counter,
        "Connection attempts that failed or took too long.",
    ),
    (
        "ringway_endpoint_refusals_total",
        Type::Counter,
        "Datagrams that the endpoint's host refused (ICMP port unreachable).",
    ),
    (
        "ringway_endpoint_late_replies_total",
        Type::Counter,
        "Datagrams of the endpoint that came when their flow was over.",
    ),
    ("ringway_endpoint_resets_total", Type::Counter, "Connections that the endpoint reset."),
    (
        "ringway_endpoint_relayed_bytes_total",
        Type::Counter,
        "Payload bytes delivered, by the side that they came from.",
    ),
    (
        "ringway_endpoint_healthy",
        Type::Gauge,
        "1 if the endpoint may be picked, 0 while its health checks keep it out; none without.",
    ),
    (
        "ringway_health_checks_total",
        Type::Counter,
        "Health checks by how they ended; not_made: this machine had no file or port for it.",
    ),
    (
        "ringway_resolver_lookups_total",
        Type::Counter,
        "Lookups of endpoints' names by how they ended.",
    ),
    (
        "ringway_resolver_names",
        Type::Gauge,
        "Names of endpoints by state; kept: the last lookup failed, the last addresses stay.",
    ),
    (
        "ringway_ejections_total",
        Type::Counter,
        "Endpoints of the backend left out because sessions or flows failed with them (`eject`).",
    ),
    (
        "ringway_endpoints_ejected",
        Type::Gauge,
        "Endpoints of the backend that are left out so now.",
    ),
    (
        "ringway_overrides",
        Type::Gauge,
        "What operators have said about endpoints (drain, disable, weight) and is in force.",
    ),
    (
        "ringway_session_duration_seconds",
        Type::Histogram,
        "How long TCP sessions lived that had an endpoint.",
    ),
    (
        "ringway_flow_duration_seconds",
        Type::Histogram,
        "How long UDP flows lived that had an endpoint.",
    ),
    (
        "ringway_endpoint_connect_duration_seconds",
        Type::Histogram,
        "How long successful connection attempts took.",
    ),
];

#[derive(Clone, Copy)]
enum Type {
    Counter,
    Gauge,
    Histogram,
}

impl Type {
    fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The metrics of one scrape.
#[derive(Default)]
pub(super) struct Page {
    /// The lines of each series, by the metric's name and the written form of the labels.
    metrics: RefCell<BTreeMap<&'static str, BTreeMap<String, String>>>,
}

impl Page {
    pub(super) fn set(&self, name: &'static str, labels: &[(&'static str, &str)], value: u64) {
        self.value(name, labels, value);
    }

    pub(super) fn seconds(&self, name: &'static str, labels: &[(&'static str, &str)], micros: u64) {
        self.value(name, labels, Seconds(micros));
    }

    fn value(&self, name: &'static str, labels: &[(&'static str, &str)], value: impl Display) {
        let labels = label_set(name, labels);
        let mut line = String::new();
        write_metric_line(&mut line, name, None, &labels, NO_LABEL, value, None);
        self.add(name, &labels, line);
    }

    pub(super) fn histogram(
        &self,
        name: &'static str,
        labels: &[(&'static str, &str)],
        merged: &Merged,
    ) {
        let labels = label_set(name, labels);
        let mut lines = String::new();
        let mut bucket = |bound: &dyn Display, count: u64| {
            let bound = Some(("le", bound));
            write_metric_line(&mut lines, name, Some("bucket"), &labels, bound, count, None);
        };
        let mut cumulative = 0;
        for (count, bound) in merged.buckets.iter().zip(BUCKETS) {
            cumulative += count;
            bucket(&Seconds(bound), cumulative);
        }
        let count = merged.count();
        bucket(&"+Inf", count);
        let sum = Seconds(merged.sum);
        write_metric_line(&mut lines, name, Some("sum"), &labels, NO_LABEL, sum, None);
        write_metric_line(&mut lines, name, Some("count"), &labels, NO_LABEL, count, None);
        self.add(name, &labels, lines);
    }

    fn add(&self, name: &'static str, labels: &LabelSet, lines: String) {
        let labels: Vec<_> = labels.to_strings().collect();
        self.metrics.borrow_mut().entry(name).or_default().insert(labels.join(","), lines);
    }

    /// The text, sorted by names and labels, so that two scrapes can be compared.
    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        for (name, series) in self.metrics.borrow().iter() {
            let described = METRICS.iter().find(|metric| metric.0 == *name);
            let (_, kind, help) = described.expect("every metric is described");
            write_help_line(&mut text, name, None, None, help);
            write_type_line(&mut text, name, None, None, kind.word());
            series.values().for_each(|lines| text.push_str(lines));
        }
        text
    }
}

const NO_LABEL: Option<(&str, &str)> = None;

fn label_set(name: &'static str, labels: &[(&'static str, &str)]) -> LabelSet {
    let label = |(key, value): &(&'static str, &str)| Label::new(*key, (*value).to_owned());
    let key = Key::from_parts(name, labels.iter().map(label).collect::<Vec<_>>());
    LabelSet::from_key_and_global(&key, &IndexMap::new())
}

/// A histogram summed over workers.
#[derive(Default)]
pub(super) struct Merged {
    buckets: [u64; BUCKETS.len() + 1],
    sum: u64,
}

impl Merged {
    pub(super) fn add(&mut self, histogram: &Histogram) {
        self.sum += histogram.sum.get();
        for (total, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *total += bucket.get();
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// Microseconds, written as seconds without rounding and without trailing zeros.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, fraction) = (self.0 / 1_000_000, self.0 % 1_000_000);
        if fraction == 0 {
            return write!(f, "{whole}");
        }
        let digits = format!("{fraction:06}");
        write!(f, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As OpenMetrics demands.
    #[test]
    fn counters_and_only_counters_end_in_total() {
        for (name, kind, _) in METRICS {
            assert_eq!(name.ends_with("_total"), matches!(kind, Type::Counter), "{name}");
        }
    }

    #[test]
    fn seconds_are_exact() {
        let shown = [0, 1, 100, 2_500_000, 3_600_000_000].map(|micros| Seconds(micros).to_string());
        assert_eq!(shown, ["0", "0.000001", "0.0001", "2.5", "3600"]);
    }
}
