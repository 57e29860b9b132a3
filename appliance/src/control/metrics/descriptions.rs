//! What each metric is: its name, type, labels and meaning. The page `ringway docs metrics` is made
//! of this list.

use Type::{Counter, Gauge, Histogram};

/// One metric.
pub(super) struct Metric {
    pub name: &'static str,
    pub kind: Type,
    /// A series may have fewer: `admin.endpoint_labels` takes `endpoint` away, and a session that
    /// found no listener has none.
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

#[derive(Clone, Copy)]
pub(super) enum Type {
    Counter,
    Gauge,
    Histogram,
}

impl Type {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

pub(super) fn of(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

const fn metric(
    name: &'static str,
    kind: Type,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, help }
}

const WORKER: &[&str] = &["worker"];
const KIND: &[&str] = &["kind"];
const LISTENER: &[&str] = &["listener"];
const LISTENER_REASON: &[&str] = &["listener", "reason"];
const LISTENER_SIDE: &[&str] = &["listener", "side"];
const BACKEND: &[&str] = &["backend"];
const LIMIT: &[&str] = &["kind", "name"];
const ENDPOINT: &[&str] = &["backend", "endpoint"];

pub(super) const METRICS: &[Metric] = &[
    metric("process_cpu_seconds_total", Counter, &[], "CPU time of all threads, user and system."),
    metric("process_resident_memory_bytes", Gauge, &[], "Memory in use."),
    metric("process_virtual_memory_bytes", Gauge, &[], "Address space in use."),
    metric(
        "process_open_fds",
        Gauge,
        &[],
        "Open files. A TCP session takes two; upstream UDP sockets are not among them where the \
         kernel keeps them in the ring's table.",
    ),
    metric("process_max_fds", Gauge, &[], "The soft limit of open files."),
    metric("process_start_time_seconds", Gauge, &[], "Unix time at which the process began."),
    metric("ringway_build_info", Gauge, &["version"], "Always 1; the version is in the label."),
    metric("ringway_ready", Gauge, &[], "1 while /readyz says yes."),
    metric(
        "ringway_overloaded",
        Gauge,
        &[],
        "1 while new sessions and flows are refused, by limits.memory_percent.",
    ),
    metric(
        "ringway_memory_used_bytes",
        Gauge,
        &[],
        "Memory in use, without caches, of the cgroup nearest its limit. Absent: it has none.",
    ),
    metric("ringway_memory_limit_bytes", Gauge, &[], "The limit of that cgroup."),
    metric(
        "ringway_process_generation",
        Gauge,
        &[],
        "How many processes have served one after the other by upgrades, with this one.",
    ),
    metric(
        "ringway_upgrade_listeners",
        Gauge,
        &[],
        "Listening addresses that this process has taken over from the one before.",
    ),
    metric(
        "ringway_upgrade_sessions_taken_over_total",
        Counter,
        &[],
        "TCP sessions that came from the process before and went on here.",
    ),
    metric(
        "ringway_upgrade_flows_taken_over_total",
        Counter,
        &[],
        "UDP flows that came from the process before and went on here.",
    ),
    metric(
        "ringway_upgrade_draining_processes",
        Gauge,
        &[],
        "Earlier processes that still live, because sessions or flows of theirs do.",
    ),
    metric("ringway_upgrade_draining_sessions", Gauge, &[], "Sessions in earlier processes."),
    metric("ringway_upgrade_draining_flows", Gauge, &[], "UDP flows in earlier processes."),
    metric(
        "ringway_upgrade_failures_total",
        Counter,
        &[],
        "Upgrades that came to nothing: this process went on.",
    ),
    metric("ringway_workers", Gauge, &[], "Worker threads, one per core."),
    metric(
        "ringway_source_ports",
        Gauge,
        &[],
        "Size of net.ipv4.ip_local_port_range. Upstream UDP sockets take one port each per local \
         address: compare with ringway_upstream_sockets_open, summed.",
    ),
    metric("ringway_reloads_total", Counter, &[], "Configurations that were put in force."),
    metric(
        "ringway_reload_failures_total",
        Counter,
        &[],
        "Configurations that were refused; the one before stayed in force.",
    ),
    metric(
        "ringway_configuration_refused",
        Gauge,
        &[],
        "1 while the latest configuration is refused, and the one before in force.",
    ),
    metric(
        "ringway_log_lines_dropped_total",
        Counter,
        &["reason"],
        "Access-log lines lost because the control thread (channel_full) or what the log is \
         written to (writer_slow) was too slow, or refused them (write_failed): a full disk.",
    ),
    metric(
        "ringway_connections_accepted_total",
        Counter,
        &[],
        "TCP connections accepted, whatever became of them.",
    ),
    metric(
        "ringway_connections_aborted_total",
        Counter,
        &[],
        "TCP connections that their client reset before they were accepted: not logged.",
    ),
    metric(
        "ringway_accept_pauses_total",
        Counter,
        &[],
        "Times that accepting paused because files or memory ran out.",
    ),
    metric(
        "ringway_receive_pauses_total",
        Counter,
        &[],
        "Times that receiving on a UDP socket paused, because memory ran out or the like.",
    ),
    metric(
        "ringway_spliced_bytes_total",
        Counter,
        &[],
        "Bytes of bulk traffic that were moved between sockets by splice(2), without a copy.",
    ),
    metric(
        "ringway_bulk_runs_total",
        Counter,
        &[],
        "Times that one direction of a session became bulk: fewer and larger wake-ups.",
    ),
    metric(
        "ringway_unpaced_total",
        Counter,
        &[],
        "Connections with bulk to a near peer that got a congestion control without pacing.",
    ),
    metric(
        "ringway_streams_total",
        Counter,
        &[],
        "Times that one direction of a session became busy with small messages.",
    ),
    metric(
        "ringway_rearms_total",
        Counter,
        &[],
        "Multishot operations that the kernel ended and that were started again.",
    ),
    metric(
        "ringway_buffer_shortages_total",
        Counter,
        &[],
        "Times that a receive ended because no buffer was free.",
    ),
    metric(
        "ringway_shortages_total",
        Counter,
        &["of"],
        "Sockets to endpoints without a file; refusals because a worker's table was full.",
    ),
    metric(
        "ringway_pipe_shortages_total",
        Counter,
        &[],
        "Times that bulk traffic was copied because all pipes were in use.",
    ),
    metric(
        "ringway_cq_overflows_total",
        Counter,
        &[],
        "Completions that did not fit the completion queue (none is lost; it costs time).",
    ),
    metric(
        "ringway_kubernetes_kind_served",
        Gauge,
        KIND,
        "1 if the cluster serves the kind in a version that is known; 0: its CRD is missing.",
    ),
    metric(
        "ringway_kubernetes_kind_followed",
        Gauge,
        KIND,
        "1 while the objects of the kind are followed; 0: what was known stays in force.",
    ),
    metric("ringway_kubernetes_objects", Gauge, KIND, "Objects of the kind that are known."),
    metric(
        "ringway_kubernetes_connected",
        Gauge,
        &[],
        "1 while every kind that is served is followed.",
    ),
    metric("ringway_kubernetes_leader", Gauge, &[], "1 on the replica that writes statuses."),
    metric("ringway_kubernetes_replicas", Gauge, &[], "Replicas that live, this one included."),
    metric(
        "ringway_kubernetes_replicas_behind",
        Gauge,
        &[],
        "1 on the leader while a replica has not applied what it has: Programmed waits for it.",
    ),
    metric(
        "ringway_kubernetes_watch_errors_total",
        Counter,
        &[],
        "Lists and watches of the API server that have failed.",
    ),
    metric("ringway_kubernetes_status_writes_total", Counter, &[], "Statuses written."),
    metric(
        "ringway_kubernetes_status_conflicts_total",
        Counter,
        &[],
        "Writes of statuses done again because somebody else had written the object.",
    ),
    metric(
        "ringway_kubernetes_write_errors_total",
        Counter,
        &[],
        "Writes of statuses, ServiceAccounts and Leases that have failed.",
    ),
    metric(
        "ringway_kubernetes_translate_seconds",
        Gauge,
        &[],
        "Seconds that the latest translation of all objects took.",
    ),
    metric(
        "ringway_kubernetes_last_heard_seconds",
        Gauge,
        &[],
        "Seconds since the API server last answered or told something.",
    ),
    metric("ringway_worker_turns_total", Counter, WORKER, "Turns of the worker's loop."),
    metric(
        "ringway_worker_turn_seconds",
        Histogram,
        WORKER,
        "Seconds that a turn of the worker's loop took, of one turn in 8: what is ready on one \
         session waits as long for the others.",
    ),
    metric(
        "ringway_table_compile_seconds",
        Gauge,
        &[],
        "Seconds that reading, checking and compiling the latest configuration took.",
    ),
    metric(
        "ringway_table_publish_seconds",
        Gauge,
        &[],
        "Seconds that opening the latest table's new sockets and handing it out took.",
    ),
    metric(
        "ringway_table_apply_seconds",
        Gauge,
        WORKER,
        "Seconds for which the worker did nothing else when it took over the latest table.",
    ),
    metric("ringway_table_apply_seconds_max", Gauge, WORKER, "The longest since the start."),
    metric("ringway_table_generation", Gauge, WORKER, "Generation of the routing table in force."),
    metric(
        "ringway_certificate_expiry_timestamp_seconds",
        Gauge,
        &["owner", "certificate"],
        "When the certificate of a listener or backend ends, in seconds of Unix time.",
    ),
    metric(
        "ringway_crl_expiry_timestamp_seconds",
        Gauge,
        &["owner", "crl"],
        "When a listener's list of revoked certificates ends, in seconds of Unix time.",
    ),
    metric("ringway_session_slots_used", Gauge, WORKER, "TCP sessions alive on the worker."),
    metric("ringway_session_slots", Gauge, WORKER, "TCP sessions that the worker has room for."),
    metric("ringway_flow_slots_used", Gauge, WORKER, "UDP flows alive on the worker."),
    metric("ringway_flow_slots", Gauge, WORKER, "UDP flows that the worker has room for."),
    metric("ringway_upstream_sockets_open", Gauge, WORKER, "UDP sockets towards endpoints."),
    metric(
        "ringway_upstream_sockets_resting",
        Gauge,
        WORKER,
        "Of these, the ones that serve no flow now and wait for their next.",
    ),
    metric(
        "ringway_upstream_pairs",
        Gauge,
        WORKER,
        "Pairs of endpoint and local address on shared upstream sockets, in use or resting: each \
         endpoint has as many as its backend has addresses in `source`.",
    ),
    metric(
        "ringway_source_port_shortages_total",
        Counter,
        &[],
        "Times that a local address had no UDP port free: for 10 to 100 ms no new flow is given a \
         socket from there.",
    ),
    metric(
        "ringway_upstream_strangers_total",
        Counter,
        &[],
        "Datagrams on shared upstream sockets that came from no flow's endpoint, or to an address \
         that it has no flow from: dropped.",
    ),
    metric("ringway_fast_path_flows", Gauge, WORKER, "UDP flows that the kernel forwards now."),
    metric(
        "ringway_fast_path_promotions_total",
        Counter,
        &[],
        "Times that the kernel began to forward a UDP flow.",
    ),
    metric(
        "ringway_fast_path_failures_total",
        Counter,
        &[],
        "Times that the kernel could not begin to forward a UDP flow: the worker forwards it.",
    ),
    metric(
        "ringway_fast_path_demotions_total",
        Counter,
        &["reason"],
        "Times that the kernel ceased to forward a UDP flow, by reason.",
    ),
    metric(
        "ringway_fast_path_datagrams_total",
        Counter,
        &[],
        "Datagrams that the kernel forwarded, both ways, of those that the listener counts too.",
    ),
    metric("ringway_receive_buffers_free", Gauge, WORKER, "Receive buffers that can be filled."),
    metric("ringway_receive_buffers", Gauge, WORKER, "Receive buffers of the worker."),
    metric("ringway_pipes_used", Gauge, WORKER, "Pipes that carry bulk traffic now."),
    metric("ringway_pipes", Gauge, WORKER, "Pipes that the worker may use."),
    metric(
        "ringway_sessions_opened_total",
        Counter,
        LISTENER,
        "TCP sessions given to the listener.",
    ),
    metric("ringway_sessions_active", Gauge, LISTENER, "TCP sessions alive."),
    metric(
        "ringway_sessions_closed_total",
        Counter,
        LISTENER_REASON,
        "TCP sessions that ended after they had an endpoint, by reason.",
    ),
    metric(
        "ringway_sessions_refused_total",
        Counter,
        LISTENER_REASON,
        "TCP sessions that ended before they had an endpoint. No listener: none was found.",
    ),
    metric("ringway_flows_created_total", Counter, LISTENER, "UDP flows begun."),
    metric("ringway_flows_active", Gauge, LISTENER, "UDP flows alive."),
    metric(
        "ringway_flows_closed_total",
        Counter,
        LISTENER_REASON,
        "UDP flows that ended, by reason; those that expired are flow_timeout.",
    ),
    metric(
        "ringway_flows_refused_total",
        Counter,
        LISTENER_REASON,
        "UDP flows that got no endpoint, by reason.",
    ),
    metric(
        "ringway_relayed_bytes_total",
        Counter,
        LISTENER_SIDE,
        "Payload bytes delivered, by the side that they came from.",
    ),
    metric(
        "ringway_tcp_resets_total",
        Counter,
        LISTENER_SIDE,
        "Sessions ended by a reset, by who sent it.",
    ),
    metric(
        "ringway_datagrams_received_total",
        Counter,
        LISTENER_SIDE,
        "Datagrams, by the side they came from.",
    ),
    metric(
        "ringway_datagrams_sent_total",
        Counter,
        LISTENER_SIDE,
        "Datagrams, by the side they went to.",
    ),
    metric(
        "ringway_datagrams_dropped_total",
        Counter,
        LISTENER_REASON,
        "Datagrams not forwarded, by reason.",
    ),
    metric(
        "ringway_datagrams_fragmented_total",
        Counter,
        LISTENER,
        "Datagrams that fitted the path to their endpoint until a PROXY header was put before \
         them: sent in fragments.",
    ),
    metric(
        "ringway_endpoint_sessions_opened_total",
        Counter,
        ENDPOINT,
        "Sessions connected, or flows given, to the endpoint.",
    ),
    metric(
        "ringway_endpoint_sessions_active",
        Gauge,
        ENDPOINT,
        "Sessions and flows of the endpoint.",
    ),
    metric(
        "ringway_backend_sessions_waiting",
        Gauge,
        BACKEND,
        "Sessions in the backend's queue, because every endpoint has its max_sessions.",
    ),
    metric(
        "ringway_backend_sessions_queued_total",
        Counter,
        BACKEND,
        "Sessions that joined the backend's queue.",
    ),
    metric("ringway_accept_delays_total", Counter, &[], "Times that a limit put accepting off."),
    metric(
        "ringway_byte_delays_total",
        Counter,
        &[],
        "Times that a direction of a TCP session waited for bytes_per_second of a limit.",
    ),
    metric(
        "ringway_limit_sessions",
        Gauge,
        LIMIT,
        "Sessions and flows that count in a limit. The kind says whose it is: process \
         (limits.total_sessions), listener, route, backend, or shared.",
    ),
    metric("ringway_limit_sessions_max", Gauge, LIMIT, "The most of them; absent: any number."),
    metric(
        "ringway_limit_refused_total",
        Counter,
        LIMIT,
        "Sessions and flows that were refused because of the limit.",
    ),
    metric(
        "ringway_endpoint_connect_failures_total",
        Counter,
        ENDPOINT,
        "Connection attempts that failed or took too long.",
    ),
    metric(
        "ringway_endpoint_refusals_total",
        Counter,
        ENDPOINT,
        "Datagrams that the endpoint's host refused (ICMP port unreachable).",
    ),
    metric(
        "ringway_endpoint_late_replies_total",
        Counter,
        ENDPOINT,
        "Datagrams of the endpoint that came when their flow was over.",
    ),
    metric(
        "ringway_endpoint_resets_total",
        Counter,
        ENDPOINT,
        "Connections that the endpoint reset.",
    ),
    metric(
        "ringway_endpoint_relayed_bytes_total",
        Counter,
        &["backend", "endpoint", "side"],
        "Payload bytes delivered, by the side that they came from.",
    ),
    metric(
        "ringway_endpoint_healthy",
        Gauge,
        ENDPOINT,
        "1 if the endpoint may be picked, 0 while its health checks keep it out; none without.",
    ),
    metric(
        "ringway_health_checks_total",
        Counter,
        &["backend", "result"],
        "Health checks by how they ended; not_made: this machine had no file or port for it.",
    ),
    metric(
        "ringway_resolver_lookups_total",
        Counter,
        &["result"],
        "Lookups of endpoints' names by how they ended.",
    ),
    metric(
        "ringway_resolver_names",
        Gauge,
        &["state"],
        "Names of endpoints by state; kept: the last lookup failed, the last addresses stay.",
    ),
    metric(
        "ringway_ejections_total",
        Counter,
        BACKEND,
        "Endpoints of the backend left out because sessions or flows failed with them (`eject`).",
    ),
    metric(
        "ringway_endpoints_ejected",
        Gauge,
        BACKEND,
        "Endpoints of the backend that are left out so now.",
    ),
    metric(
        "ringway_admin_requests_refused_total",
        Counter,
        &[],
        "Requests to the admin API that an address made beyond its rate.",
    ),
    metric(
        "ringway_overrides",
        Gauge,
        &[],
        "What operators have said about endpoints (drain, disable, weight) and is in force.",
    ),
    metric(
        "ringway_session_duration_seconds",
        Histogram,
        LISTENER,
        "How long TCP sessions lived that had an endpoint.",
    ),
    metric(
        "ringway_flow_duration_seconds",
        Histogram,
        LISTENER,
        "How long UDP flows lived that had an endpoint.",
    ),
    metric(
        "ringway_endpoint_connect_duration_seconds",
        Histogram,
        ENDPOINT,
        "How long successful connection attempts took.",
    ),
];

#[cfg(test)]
mod tests;
