//! The page at /metrics: reads and sums every worker's counters at each request.
//!
//! Each scrape builds its page from nothing. So a listener that is gone leaves no series behind,
//! and there is no state to keep in step.

use std::collections::BTreeMap;
use std::sync::Arc;

use config_sync::compile::names::{Names, Retired};
use config_sync::compile::tls::expiry::{Expiring, Expiry};
use config_sync::gateway::follow::cluster::Figures;
use config_sync::health;
use config_sync::health::ejection::Figure;
use config_sync::model::config::Config;
use config_sync::resolve;
use config_sync::table::load::Line;
use config_sync::table::routing::{EndpointId, Limits, ListenerId, Protocol, RoutingTable};

use crate::control::limited::Named;
use crate::control::memory::Reading;
use crate::control::metrics::endpoints::{self, Group};
use crate::control::metrics::exposition::{Merged, Page};
use crate::control::metrics::{kubernetes, process};
use crate::stats::counters::{Counter, Counters, Histogram};
use crate::stats::records::{CloseReason, Demotion, DropReason};

/// All values of a page besides [`Series`].
pub struct Scrape<'a> {
    pub workers: &'a [Arc<Counters>],
    /// The limits of one worker.
    pub limits: Limits,
    pub ready: bool,
    pub reloads_ok: u64,
    pub reloads_failed: u64,
    /// The latest configuration was refused.
    pub refused: bool,
    /// Times of the latest table: parsing, checking and compiling the configuration; and opening
    /// new sockets.
    pub compile_micros: u64,
    pub publish_micros: u64,
    /// Access-log lines that found the writer's queue full.
    pub lines_dropped: u64,
    /// Access-log lines that could not be written.
    pub lines_failed: u64,
    pub requests_refused: u64,
    /// The number of local ports that the kernel gives to connections that name none
    /// (`net.ipv4.ip_local_port_range`).
    pub source_ports: u64,
    /// `Some` if a cluster is followed.
    pub kubernetes: Option<&'a Figures>,
    pub health: &'a health::Figures,
    pub resolver: resolve::Figures,
    pub ejections: &'a [Figure],
    pub overrides: u64,
    pub upgrade: process::Upgrades,
    /// New sessions and flows are refused, because of the memory.
    pub overloaded: bool,
    pub memory: Option<Reading>,
    pub admin_certificate: Option<Expiry>,
    /// False: metrics of endpoints are sums of a backend (`admin.endpoint_labels`).
    pub endpoint_labels: bool,
}

impl Scrape<'_> {
    /// The page, in the Prometheus text exposition format 0.0.4.
    pub fn render(&self, series: &Series) -> String {
        let page = Page::default();
        process::set(&page, self.upgrade);
        process::memory(&page, self.memory, self.overloaded);
        self.process(&page);
        if let Some(figures) = self.kubernetes {
            kubernetes::set(&page, figures);
        }
        self.per_worker(&page);
        for (id, listener) in &series.listeners {
            self.listener(&page, *id, listener);
        }
        self.unmatched(&page);
        self.demotions(&page);
        endpoints::sessions(&page, self.workers, &series.groups(self.endpoint_labels));
        endpoints::queues(&page, &series.lines);
        endpoints::limits(&page, &series.limits);
        endpoints::health(&page, self.health, self.endpoint_labels);
        endpoints::ejections(&page, self.ejections);
        page.set("ringway_overrides", &[], self.overrides);
        endpoints::resolver(&page, self.resolver);
        for expiry in series.expiries.iter().chain(&self.admin_certificate) {
            Self::certificate(&page, expiry);
        }
        self.histograms(&page, series);
        page.render()
    }

    fn certificate(page: &Page, Expiry { of, owner, name, not_after, .. }: &Expiry) {
        let (metric, label) = match of {
            Expiring::Certificate => {
                ("ringway_certificate_expiry_timestamp_seconds", "certificate")
            }
            Expiring::RevocationList => ("ringway_crl_expiry_timestamp_seconds", "crl"),
        };
        let labels: &[_] = &[("owner", owner.as_str()), (label, name.as_str())];
        page.set(metric, labels, u64::try_from(*not_after).unwrap_or(0));
    }

    fn process(&self, page: &Page) {
        page.set("ringway_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        page.set("ringway_ready", &[], u64::from(self.ready));
        page.set("ringway_workers", &[], self.workers.len() as u64);
        page.set("ringway_source_ports", &[], self.source_ports);
        page.set("ringway_reloads_total", &[], self.reloads_ok);
        page.seconds("ringway_table_compile_seconds", &[], self.compile_micros);
        page.seconds("ringway_table_publish_seconds", &[], self.publish_micros);
        page.set("ringway_reload_failures_total", &[], self.reloads_failed);
        page.set("ringway_configuration_refused", &[], u64::from(self.refused));
        let dropped = "ringway_log_lines_dropped_total";
        page.set(dropped, &[("reason", "writer_slow")], self.lines_dropped);
        page.set(dropped, &[("reason", "write_failed")], self.lines_failed);
        page.set("ringway_admin_requests_refused_total", &[], self.requests_refused);
        let records = self.sum(|worker| &worker.records_dropped);
        page.set(dropped, &[("reason", "channel_full")], records);
        let shortage = |of, pick: fn(&Counters) -> &Counter| {
            page.set("ringway_shortages_total", &[("of", of)], self.sum(pick));
        };
        shortage("files", |worker| &worker.file_shortages);
        shortage("sessions", |worker| &worker.session_shortages);
        shortage("flows", |worker| &worker.flow_shortages);
        let total = |name, pick: fn(&Counters) -> &Counter| page.set(name, &[], self.sum(pick));
        total("ringway_connections_accepted_total", |worker| &worker.accepted);
        total("ringway_connections_aborted_total", |worker| &worker.aborted);
        total("ringway_accept_pauses_total", |worker| &worker.accept_pauses);
        total("ringway_accept_delays_total", |worker| &worker.accept_delays);
        total("ringway_receive_pauses_total", |worker| &worker.receive_pauses);
        total("ringway_rearms_total", |worker| &worker.rearms);
        total("ringway_buffer_shortages_total", |worker| &worker.buffer_shortages);
        total("ringway_byte_delays_total", |worker| &worker.byte_delays);
        total("ringway_source_port_shortages_total", |worker| &worker.port_shortages);
        total("ringway_upstream_strangers_total", |worker| &worker.strangers);
        total("ringway_fast_path_promotions_total", |worker| &worker.promotions);
        total("ringway_fast_path_failures_total", |worker| &worker.promotions_failed);
        total("ringway_fast_path_datagrams_total", |worker| &worker.carried);
        total("ringway_pipe_shortages_total", |worker| &worker.pipe_shortages);
        total("ringway_spliced_bytes_total", |worker| &worker.spliced);
        total("ringway_bulk_runs_total", |worker| &worker.bulk_runs);
        total("ringway_unpaced_total", |worker| &worker.unpaced);
        total("ringway_streams_total", |worker| &worker.streams);
        total("ringway_cq_overflows_total", |worker| &worker.cq_overflows);
    }

    fn per_worker(&self, page: &Page) {
        for (index, worker) in self.workers.iter().enumerate() {
            let index = index.to_string();
            let labels: &[_] = &[("worker", index.as_str())];
            page.set("ringway_worker_turns_total", labels, worker.turns.get());
            for (name, value) in [
                ("ringway_table_generation", worker.generation.get()),
                ("ringway_session_slots_used", worker.sessions.get()),
                ("ringway_session_slots", u64::from(self.limits.sessions)),
                ("ringway_flow_slots_used", worker.flows.get()),
                ("ringway_flow_slots", u64::from(self.limits.flows)),
                ("ringway_fast_path_flows", worker.promoted.get()),
                ("ringway_upstream_sockets_open", worker.upstreams.get()),
                ("ringway_upstream_sockets_resting", worker.upstreams_resting.get()),
                ("ringway_upstream_pairs", worker.pairs.get()),
                ("ringway_receive_buffers_free", worker.buffers_free.get()),
                ("ringway_receive_buffers", u64::from(self.limits.buffers)),
                ("ringway_pipes_used", worker.pipes_used.get()),
                ("ringway_pipes", u64::from(self.limits.pipes)),
            ] {
                page.set(name, labels, value);
            }
            let took = &worker.table_micros;
            page.seconds("ringway_table_apply_seconds", labels, took.get());
            let most = &worker.table_micros_most;
            page.seconds("ringway_table_apply_seconds_max", labels, most.get());
        }
    }

    fn listener(&self, page: &Page, id: ListenerId, listener: &ListenerSeries) {
        // Closes are read before opens, so that the active count never falls below 0.
        let by_reason = |pick: fn(&Counters, ListenerId, usize) -> u64| -> Vec<u64> {
            let sum = |reason| self.workers.iter().map(|worker| pick(worker, id, reason)).sum();
            (0..CloseReason::COUNT).map(sum).collect()
        };
        let closed = by_reason(|worker, id, reason| worker.listener(id).closed[reason].get());
        let refused = by_reason(|worker, id, reason| worker.listener(id).refused[reason].get());
        let sum = |pick: fn(&Counters, ListenerId) -> u64| -> u64 {
            self.workers.iter().map(|worker| pick(worker, id)).sum()
        };
        let opened = sum(|worker, id| worker.listener(id).opened.get());
        let ended: u64 = closed.iter().chain(&refused).sum();
        let active = opened.saturating_sub(ended);
        if !listener.in_force && active == 0 {
            return;
        }

        let name = ("listener", &*listener.name);
        let words = listener.words();
        page.set(words.opened, &[name], opened);
        page.set(words.active, &[name], active);
        for (reason, word) in CloseReason::ALL.iter().map(|reason| (*reason, reason.word())) {
            let labels = &[name, ("reason", word)];
            if closed[reason as usize] > 0 || listener.always(reason) {
                page.set(words.closed, labels, closed[reason as usize]);
            }
            if refused[reason as usize] > 0 {
                page.set(words.refused, labels, refused[reason as usize]);
            }
        }
        let sided = |metric, side, value| page.set(metric, &[name, ("side", side)], value);
        let relayed = "ringway_relayed_bytes_total";
        sided(relayed, "client", sum(|worker, id| worker.listener(id).bytes_up.get()));
        sided(relayed, "endpoint", sum(|worker, id| worker.listener(id).bytes_down.get()));
        if listener.protocol != Protocol::Udp {
            let resets = |reason: CloseReason| closed[reason as usize] + refused[reason as usize];
            let metric = "ringway_tcp_resets_total";
            sided(metric, "client", resets(CloseReason::ClientReset));
            sided(metric, "endpoint", resets(CloseReason::EndpointReset));
            return;
        }
        let (received, sent) = ("ringway_datagrams_received_total", "ringway_datagrams_sent_total");
        sided(received, "client", sum(|worker, id| worker.listener(id).from_clients.get()));
        sided(received, "endpoint", sum(|worker, id| worker.listener(id).from_endpoints.get()));
        sided(sent, "client", sum(|worker, id| worker.listener(id).to_clients.get()));
        sided(sent, "endpoint", sum(|worker, id| worker.listener(id).to_endpoints.get()));
        let fragmented = sum(|worker, id| worker.listener(id).fragmented.get());
        page.set("ringway_datagrams_fragmented_total", &[name], fragmented);
        for reason in DropReason::ALL {
            let dropped =
                |worker: &Arc<Counters>| worker.listener(id).dropped[*reason as usize].get();
            let dropped = self.workers.iter().map(dropped).sum();
            if dropped > 0 {
                let labels = &[name, ("reason", reason.word())];
                page.set("ringway_datagrams_dropped_total", labels, dropped);
            }
        }
    }

    fn demotions(&self, page: &Page) {
        for why in Demotion::ALL {
            let times = self.sum(|worker| &worker.demotions[*why as usize]);
            page.set("ringway_fast_path_demotions_total", &[("reason", why.word())], times);
        }
    }

    /// Sessions refused before a listener was known. So these series have no listener label.
    fn unmatched(&self, page: &Page) {
        for reason in CloseReason::ALL {
            let refused = self.sum(|worker| &worker.unmatched[*reason as usize]);
            if refused > 0 || *reason == CloseReason::UnknownServerName {
                let labels = &[("reason", reason.word())];
                page.set("ringway_sessions_refused_total", labels, refused);
            }
        }
    }

    fn histograms(&self, page: &Page, series: &Series) {
        for (name, udp) in
            [("ringway_session_duration_seconds", false), ("ringway_flow_duration_seconds", true)]
        {
            for (id, listener) in &series.listeners {
                if listener.in_force && (listener.protocol == Protocol::Udp) == udp {
                    let merged = self.merge(|worker| &worker.listener(*id).duration);
                    page.histogram(name, &[("listener", &listener.name)], &merged);
                }
            }
        }
        for (index, worker) in self.workers.iter().enumerate() {
            let mut turns = Merged::default();
            turns.add(&worker.turn);
            let labels = &[("worker", &*index.to_string())];
            page.histogram("ringway_worker_turn_seconds", labels, &turns);
        }
        endpoints::connects(page, self.workers, &series.groups(self.endpoint_labels));
    }

    fn sum<'a>(&'a self, pick: impl Fn(&'a Counters) -> &'a Counter) -> u64 {
        self.workers.iter().map(|worker| pick(worker).get()).sum()
    }

    fn merge<'a>(&'a self, pick: impl Fn(&'a Counters) -> &'a Histogram) -> Merged {
        let mut merged = Merged::default();
        self.workers.iter().for_each(|worker| merged.add(pick(worker)));
        merged
    }
}

/// The names of the ids in the counters. A listener that left the table may still have sessions, so
/// its name stays until its id is retired. The page shows only ids that are in force or active.
#[derive(Clone, Default)]
pub struct Series {
    listeners: BTreeMap<ListenerId, ListenerSeries>,
    endpoints: BTreeMap<EndpointId, EndpointSeries>,
    /// The limits in force.
    limits: Vec<Named>,
    /// The queues of backends in force.
    lines: Vec<(Arc<str>, Arc<Line>)>,
    expiries: Vec<Expiry>,
}

#[derive(Clone)]
struct ListenerSeries {
    name: Arc<str>,
    protocol: Protocol,
    in_force: bool,
}

#[derive(Clone)]
struct EndpointSeries {
    backend: Arc<str>,
    address: String,
    in_force: bool,
}

impl Series {
    /// Makes `config` the configuration in force. `whole` has its endpoints, and `names` are the
    /// names that `config` was compiled with.
    pub fn learn(&mut self, config: &Config, whole: &RoutingTable, names: &Names) {
        self.listeners.values_mut().for_each(|listener| listener.in_force = false);
        self.endpoints.values_mut().for_each(|endpoint| endpoint.in_force = false);
        self.expiries = names.expiries().to_vec();
        let queues = whole.backends.iter().filter_map(|of| Some((of, of.queue.as_ref()?)));
        let lines = queues.map(|(of, queue)| (Arc::clone(&of.name), Arc::clone(&queue.line)));
        self.lines = lines.collect();
        self.limits = Named::all(whole);
        let listeners = config.listeners.iter();
        let listeners: BTreeMap<_, _> =
            listeners.map(|listener| (listener.name.value.as_str(), listener.protocol)).collect();
        for (id, name) in names.listeners() {
            if let Some(&protocol) = listeners.get(name) {
                let series = ListenerSeries { name: name.into(), protocol, in_force: true };
                self.listeners.insert(id, series);
            }
        }
        for backend in &whole.backends {
            for endpoint in &backend.endpoints {
                let new = || EndpointSeries {
                    backend: Arc::clone(&backend.name),
                    address: endpoint.address.to_string(),
                    in_force: true,
                };
                self.endpoints.entry(endpoint.id).or_insert_with(new).in_force = true;
            }
        }
    }

    pub fn listeners(&self) -> impl Iterator<Item = ListenerId> {
        self.listeners.keys().copied()
    }

    /// The endpoints whose counts stand together: each alone, or all of a backend.
    fn groups(&self, by_endpoint: bool) -> Vec<Group<'_>> {
        let one = |(id, of): (&EndpointId, &'_ EndpointSeries)| (*id, of.in_force);
        if by_endpoint {
            let group = |(id, of)| {
                let EndpointSeries { backend, address, .. }: &EndpointSeries = of;
                Group { backend, address: Some(address), endpoints: vec![one((id, of))] }
            };
            return self.endpoints.iter().map(group).collect();
        }
        let mut backends: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for (id, of) in &self.endpoints {
            backends.entry(&of.backend).or_default().push(one((id, of)));
        }
        let group = |(backend, endpoints)| Group { backend, address: None, endpoints };
        backends.into_iter().map(group).collect()
    }

    pub fn expiries(&self) -> &[Expiry] {
        &self.expiries
    }

    /// Forgets the names of these ids, because the ids are free again.
    pub fn forget(&mut self, retired: &Retired) {
        retired.listeners.iter().for_each(|id| _ = self.listeners.remove(id));
        retired.endpoints.iter().for_each(|id| _ = self.endpoints.remove(id));
    }
}

/// The metric names of an event. They differ between sessions and flows.
struct Words {
    opened: &'static str,
    active: &'static str,
    closed: &'static str,
    refused: &'static str,
}

impl ListenerSeries {
    fn words(&self) -> Words {
        match self.protocol {
            Protocol::Tcp | Protocol::Tls => Words {
                opened: "ringway_sessions_opened_total",
                active: "ringway_sessions_active",
                closed: "ringway_sessions_closed_total",
                refused: "ringway_sessions_refused_total",
            },
            Protocol::Udp => Words {
                opened: "ringway_flows_created_total",
                active: "ringway_flows_active",
                closed: "ringway_flows_closed_total",
                refused: "ringway_flows_refused_total",
            },
        }
    }

    /// The usual end is shown from the start, because a rate needs a first sample of 0.
    fn always(&self, reason: CloseReason) -> bool {
        match self.protocol {
            Protocol::Tcp | Protocol::Tls => reason == CloseReason::ClientFin,
            Protocol::Udp => reason == CloseReason::FlowTimeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use config_sync::compile::compile;

    use super::*;
    use crate::stats::counters::BUCKETS;

    #[test]
    fn page_is_a_valid_exposition() {
        let workers = [Arc::new(Counters::new()), Arc::new(Counters::new())];
        for worker in &workers {
            let tcp = worker.listener(ListenerId(0));
            tcp.opened.add(5);
            tcp.closed[CloseReason::ClientFin as usize].add(2);
            tcp.refused[CloseReason::ConnectFailed as usize].add(1);
            tcp.duration.record(70);
            tcp.duration.record(2_000_000);
            tcp.duration.record(u64::from(u32::MAX) * 1_000);
            worker.listener(ListenerId(1)).dropped[DropReason::NoRoute as usize].add(3);
            worker.listener(ListenerId(1)).fragmented.add(2);
            worker.endpoint(EndpointId(0)).connect.record(1_500);
            worker.unmatched[CloseReason::HelloTimeout as usize].add(1);
        }
        let tally = health::Tally { ok: 7, failed: 2, not_made: 0 };
        let address = "[::1]:80".parse::<std::net::SocketAddr>().expect("an address").into();
        let health = health::Figures {
            endpoints: vec![("web".into(), address, false)],
            checks: vec![("web".into(), tally)],
        };
        let text = scrape(&workers, &health).render(&series().0);
        let samples = lint(&text);
        let is = |series: &str, value: f64| assert_eq!(samples.get(series), Some(&value), "{text}");
        is("ringway_sessions_active{listener=\"a-name\"}", 4.0);
        is("ringway_sessions_refused_total{reason=\"unknown_server_name\"}", 0.0);
        is("ringway_sessions_refused_total{reason=\"hello_timeout\"}", 2.0);
        is("ringway_datagrams_dropped_total{listener=\"dns\",reason=\"no_route\"}", 6.0);
        is("ringway_datagrams_fragmented_total{listener=\"dns\"}", 4.0);
        is("ringway_flows_closed_total{listener=\"dns\",reason=\"flow_timeout\"}", 0.0);
        is("ringway_session_slots{worker=\"1\"}", 10.0);
        let connect = "ringway_endpoint_connect_duration_seconds";
        let labels = "backend=\"web\",endpoint=\"[::1]:80\"";
        is(&format!("{connect}_sum{{{labels}}}"), 0.003);
        is(&format!("ringway_endpoint_healthy{{{labels}}}"), 0.0);
        is("ringway_health_checks_total{backend=\"web\",result=\"ok\"}", 7.0);
        is("ringway_health_checks_total{backend=\"web\",result=\"not_made\"}", 0.0);
        is(&format!("{connect}_bucket{{{labels},le=\"0.001\"}}"), 0.0);
        is(&format!("{connect}_bucket{{{labels},le=\"0.0025\"}}"), 2.0);
        assert!(!text.contains("idle_timeout"), "a reason that never occurred is left out");
        assert!(samples["process_resident_memory_bytes"] > 1e6, "{text}");
        assert!(samples["process_start_time_seconds"] > 1.7e9, "{text}");
        assert!(samples["process_open_fds"] <= samples["process_max_fds"], "{text}");
    }

    #[test]
    fn removed_listeners_vanish_once_idle() {
        let workers = [Arc::new(Counters::new())];
        let counters = workers[0].listener(ListenerId(1));
        counters.opened.add(1);
        let (mut series, mut names) = series();
        learn(&mut series, &mut names, "");
        let text = scrape(&workers, &health::Figures::default()).render(&series);
        lint(&text);
        assert!(text.contains("ringway_flows_active{listener=\"dns\"} 1"), "{text}");
        assert!(!text.contains("a-name"), "{text}");
        counters.closed[CloseReason::FlowTimeout as usize].add(1);
        let text = scrape(&workers, &health::Figures::default()).render(&series);
        assert!(!text.contains("listener="), "{text}");
        assert!(!text.contains("endpoint="), "{text}");
    }

    /// Checks the rules of promtool's lint and of scrapers. Returns the value of each series.
    fn lint(text: &str) -> BTreeMap<String, f64> {
        let (mut helps, mut types) = (BTreeSet::new(), BTreeMap::new());
        let mut samples = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help text");
                assert!(!help.is_empty() && helps.insert(name.to_owned()), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                let value: f64 = value.parse().expect("a number");
                assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
            }
        }
        for series in samples.keys() {
            let name = series.split('{').next().unwrap_or_default();
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|base| types.get(*base).is_some_and(|kind| kind == "histogram"))
                .unwrap_or(name);
            let kind = types.get(base).unwrap_or_else(|| panic!("{series} has no TYPE"));
            assert!(helps.contains(base), "{series} has no HELP");
            let own = base.starts_with("ringway_") || base.starts_with("process_");
            assert!(own, "{series}");
            assert_eq!(kind == "counter", base.ends_with("_total"), "{series}");
        }
        let histograms = samples.keys().filter(|series| series.contains("le=\"+Inf\""));
        for inf in histograms {
            assert_cumulative(text, &samples, inf);
        }
        samples
    }

    fn assert_cumulative(text: &str, samples: &BTreeMap<String, f64>, inf: &str) {
        let prefix = inf.strip_suffix("le=\"+Inf\"}").expect("le is the last label");
        let buckets: Vec<f64> = text
            .lines()
            .filter(|line| line.starts_with(prefix))
            .map(|line| line.rsplit_once(' ').expect("a value").1.parse().expect("a number"))
            .collect();
        assert_eq!(buckets.len(), BUCKETS.len() + 1);
        assert!(buckets.is_sorted(), "{prefix}: {buckets:?}");
        let count = prefix.replace("_bucket{", "_count{");
        let count = format!("{}}}", count.trim_end_matches(','));
        assert_eq!(samples.get(&count), Some(&samples[inf]), "{count}");
        assert!(samples.contains_key(&count.replace("_count{", "_sum{")));
    }

    fn scrape<'a>(workers: &'a [Arc<Counters>], health: &'a health::Figures) -> Scrape<'a> {
        Scrape {
            workers,
            limits: Limits {
                sessions: 10,
                flows: 20,
                buffers: 32,
                pipes: 4,
                turn_bytes: 1 << 20,
                bulk_bytes: 8 << 20,
            },
            ready: true,
            reloads_ok: 1,
            reloads_failed: 0,
            refused: false,
            compile_micros: 1_500,
            publish_micros: 250,
            lines_dropped: 0,
            lines_failed: 0,
            requests_refused: 0,
            source_ports: 28_232,
            kubernetes: None,
            health,
            resolver: resolve::Figures::default(),
            ejections: &[],
            endpoint_labels: true,
            overrides: 0,
            upgrade: process::Upgrades::default(),
            overloaded: false,
            memory: None,
            admin_certificate: None,
        }
    }

    fn series() -> (Series, Names) {
        let text = r#"
            [[listeners]]
            name = "a-name"
            protocol = "TCP"
            address = "127.0.0.1:80"
            [[listeners]]
            name = "dns"
            protocol = "UDP"
            address = "127.0.0.1:53"
            [[routes]]
            name = "route"
            listeners = ["a-name"]
            backends = [{ name = "web", weight = 1 }]
            [[backends]]
            name = "web"
            endpoints = ["[::1]:80"]
        "#;
        let (mut series, mut names) = (Series::default(), Names::new());
        learn(&mut series, &mut names, text);
        (series, names)
    }

    fn learn(series: &mut Series, names: &mut Names, text: &str) {
        let config = config_sync::check::parse("test", text).expect("a configuration");
        let table = compile(&config, names, 1).expect("a table");
        series.learn(&config, &table, names);
    }
}
