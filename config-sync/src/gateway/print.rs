//! Writes a configuration as TOML with the same meaning, and statuses as YAML.

use ipnet::IpNet;
use serde_json::json;

use crate::gateway::print_check;
use crate::gateway::print_values::{
    addresses_of, admin, dns_guard, duration, endpoint, escaped, inline, limit, list, memory,
    quoted, shared_limit, sources,
};
use crate::gateway::status::{StatusOf, merge};
use crate::model::admission::{Admission, Ranges};
use crate::model::backend::{
    self, Backend, Balance, CONNECT_ATTEMPTS, CONNECT_TIMEOUT, QUEUE_TIMEOUT, UPSTREAM_REST,
};
use crate::model::config::{AccessLog, Config, DRAIN_TIMEOUT, LAME_DUCK, LogFormat, LogTarget};
use crate::model::eject::Eject;
use crate::model::gone::{CLOSE_AFTER, WhenGone};
use crate::model::listener::{AcceptProxy, FLOW_TIMEOUT, Listener, OPTIONS, TIMEOUTS};
use crate::model::place::At;
use crate::model::resolver::{DnsTransport, NameServer, Resolver};
use crate::model::route::{Route, Takes};
use crate::model::tls::{Certificate, ClientAuth, MinVersion, Origination, Pem, Termination};
use crate::table::address::UNIX_CLIENT;
use crate::table::routing::{
    Limits, OnRefusal, OnTruncation, Protocol, RouteBalance, SendProxy, SocketOptions,
};
use crate::toml::backend::{BALANCES, FAST_PATHS};
use crate::toml::listener::{ON_REFUSAL, ON_TRUNCATION, STARTTLS};
use crate::toml::{gone, proxy, route, tls};

/// The listeners, routes and backends of a configuration as TOML. `place` gives the file of a
/// certificate or key. One without a file is left out, and named in a comment.
pub fn toml(config: &Config, place: &mut dyn FnMut(&Pem) -> Option<String>) -> String {
    let mut print = Print { text: String::new(), place };
    for listener in &config.listeners {
        print.listener(listener);
    }
    // The keys of listeners stand for the other routes.
    for route in config.routes.iter().filter(|route| route.takes == Takes::Usual) {
        print.route(route);
    }
    for backend in &config.backends {
        print.backend(backend);
    }
    for limit in &config.shared_limits {
        print.table("shared_limits");
        print.put(&shared_limit(limit));
    }
    print.text
}

/// A whole configuration as TOML, in its long form. Keys with default values are left out.
pub fn long(config: &Config) -> String {
    let mut place = |_: &Pem| None;
    let mut print = Print { text: String::new(), place: &mut place };
    print.process(config);
    let head = print.text;
    let parts = toml(config, &mut place);
    let gap = if head.is_empty() || parts.is_empty() { "" } else { "\n" };
    [&head, gap, &parts].concat()
}

/// Statuses as YAML documents, in their order. `now` is for [`merge`].
pub fn yaml(statuses: &[StatusOf], now: &str) -> String {
    let mut text = String::new();
    for of in statuses {
        let status = merge(None, of, now).unwrap_or_default();
        let metadata = match &of.namespace {
            Some(namespace) => json!({"namespace": namespace, "name": of.name}),
            None => json!({"name": of.name}),
        };
        let document = json!({"kind": of.kind.name(), "metadata": metadata, "status": status});
        let document = serde_saphyr::to_string(&document);
        text.push_str("---\n");
        text.push_str(&document.unwrap_or_else(|error| format!("# {error}\n")));
    }
    text
}

struct Print<'p> {
    text: String,
    place: &'p mut dyn FnMut(&Pem) -> Option<String>,
}

impl Print<'_> {
    /// The keys that are about no listener, route or backend.
    fn process(&mut self, config: &Config) {
        self.duration("drain_timeout", true, config.drain_timeout, DRAIN_TIMEOUT);
        self.duration("drain_grace", true, config.drain_grace, 0);
        self.duration("lame_duck", true, config.lame_duck, LAME_DUCK);
        if let Some(cores) = config.cores.numbers() {
            let cores = list(cores.iter().map(usize::to_string));
            self.line("workers", &inline(vec![("cores", cores)]));
        }
        let admin = admin(config);
        if !admin.is_empty() {
            self.line("admin", &inline(admin));
        }
        if let Some(user) = &config.user {
            self.line("user", &quoted(&user.value));
        }
        if !config.sandbox {
            self.line("sandbox", "false");
        }
        let AccessLog { target, format, open, sample } = &config.access_log;
        let path = match target {
            LogTarget::Stdout => None,
            LogTarget::Off => Some("off".to_owned()),
            LogTarget::Stderr => Some("stderr".to_owned()),
            LogTarget::File(path) => Some(path.display().to_string()),
            LogTarget::Syslog(path) => Some(format!("syslog:{}", path.display())),
        };
        let mut log: Vec<_> = path.map(|path| ("path", quoted(&path))).into_iter().collect();
        if *format == LogFormat::Text {
            log.push(("format", quoted("text")));
        }
        if *open {
            log.push(("open", "true".to_owned()));
        }
        if !sample.is_empty() {
            let sample = sample.iter().map(|(reason, each)| (*reason, each.to_string()));
            log.push(("sample", inline(sample.collect())));
        }
        if !log.is_empty() {
            self.line("access_log", &inline(log));
        }
        let Limits { sessions, flows, buffers, pipes, turn_bytes, bulk_bytes } = config.limits;
        let limits = [
            ("total_sessions", config.total_sessions),
            ("sessions", sessions),
            ("flows", flows),
            ("buffers", buffers.into()),
            ("pipes", pipes),
            ("turn_bytes", turn_bytes),
            ("bulk_bytes", bulk_bytes),
        ];
        let asked = limits.iter().filter(|(_, limit)| *limit != 0);
        let mut asked: Vec<_> = asked.map(|(key, limit)| (*key, limit.to_string())).collect();
        asked.extend(memory(config));
        if !asked.is_empty() {
            self.line("limits", &inline(asked));
        }
        self.resolver(&config.resolver);
    }

    fn resolver(&mut self, resolver: &Resolver) {
        let Resolver { servers, min_ttl, max_ttl, keep } = resolver;
        let servers = servers.iter().map(|at| {
            let NameServer { address, transport } = &at.value;
            quoted(&match transport {
                DnsTransport::Udp => address.to_string(),
                DnsTransport::Tcp => format!("tcp:{address}"),
                DnsTransport::Tls(name) => format!("tls:{address}#{name}"),
            })
        });
        let default = Resolver::default();
        let mut keys = Vec::new();
        if !resolver.servers.is_empty() {
            keys.push(("servers", list(servers)));
        }
        let times = [
            ("min_ttl", *min_ttl, default.min_ttl),
            ("max_ttl", *max_ttl, default.max_ttl),
            ("keep", *keep, default.keep),
        ];
        let given = times.iter().filter(|(_, time, default)| time != default);
        keys.extend(given.map(|(key, time, _)| (*key, quoted(&duration(*time)))));
        if !keys.is_empty() {
            self.line("resolver", &inline(keys));
        }
    }

    fn listener(&mut self, listener: &Listener) {
        let (udp, tls) = (listener.protocol == Protocol::Udp, listener.protocol == Protocol::Tls);
        self.table("listeners");
        self.line("name", &quoted(&listener.name.value));
        let protocol = match listener.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Tls => "TLS",
        };
        self.line("protocol", &quoted(protocol));
        let addresses = listener.addresses.iter().map(|at| &at.value);
        let addresses = addresses_of(addresses).iter().map(|text| quoted(text)).collect();
        self.one_or_list(("address", "addresses"), addresses);
        self.binding(listener);
        let hostnames = listener.hostnames.iter().map(|name| quoted(&name.value));
        self.one_or_list(("hostname", "hostnames"), hostnames.collect());
        if let Some(name) = &listener.default_hostname {
            self.line("default_hostname", &quoted(&name.value));
        }
        if let Some(starttls) = listener.starttls {
            self.word("starttls", &STARTTLS, starttls);
        }
        for (key, backend) in [("not_tls", &listener.not_tls), ("silent", &listener.silent)] {
            if let Some(backend) = backend {
                self.line(key, &quoted(&backend.value));
            }
        }
        if listener.on_refusal != OnRefusal::default() {
            self.word("on_refusal", &ON_REFUSAL, listener.on_refusal);
        }
        if let Some(tls) = &listener.tls {
            self.termination(tls);
        }
        let timeouts = &listener.timeouts;
        let waits = tls || (!udp && listener.accept_proxy.is_some());
        self.duration("hello_timeout", waits, timeouts.hello, TIMEOUTS.hello);
        self.duration("idle_timeout", !udp, timeouts.idle, TIMEOUTS.idle);
        self.duration("write_stall_timeout", !udp, timeouts.write_stall, TIMEOUTS.write_stall);
        self.duration("half_close_timeout", !udp, timeouts.half_close, TIMEOUTS.half_close);
        self.duration("max_lifetime", !udp, timeouts.lifetime, TIMEOUTS.lifetime);
        if listener.on_truncation != OnTruncation::default() {
            self.word("on_truncation", &ON_TRUNCATION, listener.on_truncation);
        }
        self.duration("flow_timeout", udp, listener.flow_timeout, FLOW_TIMEOUT);
        if udp && listener.responses != 0 {
            self.line("responses", &listener.responses.to_string());
        }
        self.if_given("dns_guard", listener.dns_guard.map(|guard| inline(dns_guard(guard))));
        if listener.max_sessions != 0 {
            self.line("max_sessions", &listener.max_sessions.to_string());
        }
        self.if_given("limit_source", listener.limit_source.as_ref().map(ToString::to_string));
        self.if_given("limit", listener.limit.as_ref().map(limit));
        if let Some(At { value: AcceptProxy { from, only }, .. }) = &listener.accept_proxy {
            let sender = |range: &IpNet| match range {
                range if *range == IpNet::from(UNIX_CLIENT.ip()) => quoted(proxy::UNIX_SENDER),
                range => quoted(&range.to_string()),
            };
            let from = list(from.iter().map(sender));
            let mut keys = vec![("from", from)];
            keys.extend(only.then(|| ("only", only.to_string())));
            self.line("accept_proxy", &inline(keys));
        }
        if !udp {
            self.options(&listener.options, &OPTIONS);
        }
        self.admission(&listener.admission);
    }

    /// A value that has a word of its own in the file.
    fn word<T: PartialEq>(&mut self, key: &str, words: &[(&str, T)], value: T) {
        let word = words.iter().find(|(_, known)| *known == value);
        self.line(key, &quoted(word.map_or("", |(word, _)| word)));
    }

    fn binding(&mut self, listener: &Listener) {
        if let Some(interface) = &listener.interface {
            self.line("interface", &quoted(&interface.name));
        }
        if listener.freebind {
            self.line("freebind", "true");
        }
        if let Some(mode) = listener.mode {
            self.line("mode", &quoted(&format!("{mode:04o}")));
        }
        if let Some(owner) = &listener.owner {
            self.line("owner", &quoted(&owner.text));
        }
    }

    fn route(&mut self, route: &Route) {
        self.table("routes");
        self.line("name", &quoted(&route.name.value));
        let names = |names: &[At<String>]| list(names.iter().map(|name| quoted(&name.value)));
        self.line("listeners", &names(&route.listeners));
        if !route.hostnames.is_empty() {
            self.line("hostnames", &names(&route.hostnames));
        }
        if !route.alpn.is_empty() {
            self.line("alpn", &names(&route.alpn));
        }
        if !route.sources.is_empty() {
            let sources = route.sources.iter().map(|range| quoted(&range.value.to_string()));
            self.line("sources", &list(sources));
        }
        self.admission(&route.admission);
        self.if_given("limit_source", route.limit_source.as_ref().map(|of| of.value.to_string()));
        self.if_given("limit", route.limit.as_ref().map(limit));
        if route.balance != RouteBalance::RoundRobin {
            let word = route::BALANCES.iter().find(|(_, known)| *known == route.balance);
            self.line("balance", &quoted(word.map_or("", |(word, _)| word)));
        }
        if let Some(asked) = route.on_unavailable {
            let word = route::ON_UNAVAILABLE.iter().find(|(_, known)| *known == asked);
            self.line("on_unavailable", &quoted(word.map_or("", |(word, _)| word)));
        }
        let backends = route.backends.iter().map(|backend| {
            format!("{{ name = {}, weight = {} }}", quoted(&backend.name.value), backend.weight)
        });
        self.line("backends", &list(backends));
    }

    fn backend(&mut self, backend: &Backend) {
        self.table("backends");
        self.line("name", &quoted(&backend.name.value));
        self.line("endpoints", &list(backend.endpoints.iter().map(endpoint)));
        if backend.balance != Balance::RoundRobin {
            let word = BALANCES.iter().find(|(_, balance)| *balance == backend.balance);
            self.line("balance", &quoted(word.map_or("", |(word, _)| word)));
        }
        self.duration("connect_timeout", true, backend.connect_timeout, CONNECT_TIMEOUT);
        if backend.connect_attempts != CONNECT_ATTEMPTS {
            self.line("connect_attempts", &backend.connect_attempts.to_string());
        }
        if let Some(queue) = &backend.queue {
            self.line("queue", &queue.value.to_string());
        }
        if let Some(timeout) = &backend.queue_timeout {
            self.duration("queue_timeout", true, timeout.value, QUEUE_TIMEOUT);
        }
        self.if_given("limit", backend.limit.as_ref().map(limit));
        let of_each = backend.endpoint_limit.as_ref();
        self.if_given("endpoint_limit", of_each.map(ToString::to_string));
        if !backend.source.is_empty() {
            let source = backend.source.iter().map(|source| quoted(&sources(source.value)));
            self.line("source", &list(source));
        }
        if let Some(interface) = &backend.interface {
            self.line("interface", &quoted(&interface.value.name));
        }
        if backend.shared_sockets.as_ref().is_some_and(|shared| shared.value) {
            self.line("upstream_sockets", &quoted("shared"));
        }
        if let Some(rest) = &backend.upstream_rest {
            self.duration("upstream_rest", true, rest.value, UPSTREAM_REST);
        }
        if let Some(asked) = &backend.fast_path {
            self.word("fast_path", &FAST_PATHS, asked.value);
        }
        if let Some(after) = &backend.fast_path_after {
            self.line("fast_path_after", &after.value.to_string());
        }
        if let Some(asked) = &backend.send_proxy {
            self.send_proxy(asked.value);
        }
        if backend.is_transparent() {
            self.line("transparent", "true");
        }
        if let Some(check) = &backend.health_check {
            let ca = check.value.ca.as_ref().and_then(|pem| self.pem(pem));
            self.line("health_check", &print_check::table(&check.value, ca));
        }
        if let Some(asked) = &backend.eject {
            self.eject(asked.value);
        }
        self.when_gone(&backend.when_gone);
        if !backend.failback {
            self.line("failback", "false");
        }
        self.duration("slow_start", true, backend.slow_start, 0);
        if let Some(tls) = &backend.tls {
            self.origination(tls);
        }
        self.options(&backend.options, &backend::OPTIONS);
    }

    fn admission(&mut self, admission: &Admission) {
        let words = |ranges: &[At<Ranges>]| {
            list(ranges.iter().map(|ranges| escaped(&ranges.value.to_string())))
        };
        if let Some(allow) = &admission.allow {
            self.line("allow", &words(allow));
        }
        if !admission.deny.is_empty() {
            self.line("deny", &words(&admission.deny));
        }
    }

    fn send_proxy(&mut self, asked: SendProxy) {
        let word = proxy::VERSIONS.iter().find(|(_, version)| *version == asked.version);
        self.line("send_proxy", &quoted(word.map_or("", |(word, _)| word)));
        let tlvs = [(proxy::UNIQUE_ID, asked.unique_id), (proxy::CRC32C, asked.crc32c)];
        let tlvs = tlvs.iter().filter(|(_, asked)| *asked).map(|(name, _)| quoted(name));
        let tlvs = list(tlvs);
        if tlvs != "[]" {
            self.line("proxy_tlvs", &tlvs);
        }
    }

    fn eject(&mut self, asked: Eject) {
        let Eject { failures, window, base, max, max_share, fail_open } = asked;
        let keys = vec![
            ("failures", failures.to_string()),
            ("window", quoted(&duration(window))),
            ("base", quoted(&duration(base))),
            ("max", quoted(&duration(max))),
            ("max_share", max_share.to_string()),
            ("fail_open", fail_open.to_string()),
        ];
        self.line("eject", &inline(keys));
    }

    fn when_gone(&mut self, asked: &WhenGone) {
        for (key, asked) in [("on_down", &asked.on_down), ("on_removed", &asked.on_removed)] {
            if let Some(asked) = asked {
                let word = gone::WORDS.iter().find(|(_, meaning)| *meaning == asked.value);
                self.line(key, &quoted(word.map_or("", |(word, _)| word)));
            }
        }
        self.duration("close_after", true, asked.close_after, CLOSE_AFTER);
    }

    fn termination(&mut self, tls: &Termination) {
        let mut keys = vec![("mode", quoted("Terminate"))];
        let certificates: Vec<_> = tls
            .certificates
            .iter()
            .filter_map(|certificate| self.certificate(certificate))
            .collect();
        keys.push(("certificates", list(certificates.into_iter())));
        if let Some(default) = &tls.default_certificate {
            keys.extend(self.certificate(default).map(|text| ("default_certificate", text)));
        }
        for (key, pem) in [("client_ca", &tls.client_ca), ("client_crl", &tls.client_crl)] {
            let pem = pem.as_ref().and_then(|pem| self.pem(pem));
            keys.extend(pem.map(|text| (key, text)));
        }
        match tls.client_auth {
            ClientAuth::Off => {}
            ClientAuth::Optional => keys.push(("client_auth", quoted("optional"))),
            ClientAuth::Required => keys.push(("client_auth", quoted("required"))),
        }
        if !tls.alpn.is_empty() {
            keys.push(("alpn", list(tls.alpn.iter().map(|name| quoted(name)))));
        }
        if tls.min_version == MinVersion::Tls13 {
            keys.push(("min_version", quoted("1.3")));
        }
        if !tls.session_tickets {
            keys.push(("session_tickets", "false".to_owned()));
        }
        self.line("tls", &inline(keys));
    }

    fn origination(&mut self, tls: &Origination) {
        let mut keys = vec![("server_name", quoted(&tls.server_name))];
        let ca = tls.ca.as_ref().and_then(|pem| self.pem(pem));
        keys.extend(ca.map(|text| ("ca", text)));
        if let Some(own) = &tls.certificate {
            let cert = self.pem(&own.cert).map(|text| ("cert", text));
            let key = self.pem(&own.key).map(|text| ("key", text));
            keys.extend(cert.into_iter().chain(key));
        }
        if !tls.subject_alt_names.is_empty() {
            let names = tls.subject_alt_names.iter().map(|name| quoted(&name.to_string()));
            keys.push(("subject_alt_names", list(names)));
        }
        if let Some(alpn) = &tls.alpn {
            keys.push(("alpn", list(alpn.iter().map(|name| quoted(name)))));
        }
        if !tls.pins.is_empty() {
            keys.push(("pin_sha256", list(tls.pins.iter().map(|pin| quoted(&tls::shown(pin))))));
        }
        self.line("tls", &inline(keys));
    }

    fn certificate(&mut self, certificate: &Certificate) -> Option<String> {
        let (cert, key) = (self.pem(&certificate.cert), self.pem(&certificate.key));
        Some(inline(vec![("cert", cert?), ("key", key?)]))
    }

    fn pem(&mut self, pem: &Pem) -> Option<String> {
        let path = match pem {
            Pem::File(path) => Some(path.value.display().to_string()),
            Pem::Inline { .. } => (self.place)(pem),
        };
        if let (None, Pem::Inline { name, .. }) = (&path, pem) {
            let note = format!("# left out: {name}\n");
            if !self.text.ends_with(&note) {
                self.text.push_str(&note);
            }
        }
        path.map(|path| quoted(&path))
    }

    fn options(&mut self, options: &SocketOptions, default: &SocketOptions) {
        if options.nodelay != default.nodelay {
            self.line("nodelay", &options.nodelay.to_string());
        }
        let seconds = |seconds: u32| seconds.saturating_mul(1_000);
        self.duration("keepalive", true, seconds(options.keepalive), seconds(default.keepalive));
        self.duration("user_timeout", true, options.user_timeout, default.user_timeout);
        if options.congestion != default.congestion {
            let name = String::from_utf8_lossy(&options.congestion);
            self.line("congestion", &quoted(name.trim_end_matches('\0')));
        }
    }

    fn table(&mut self, name: &str) {
        let gap = if self.text.is_empty() { "" } else { "\n" };
        self.put(&format!("{gap}[[{name}]]\n"));
    }

    fn if_given(&mut self, key: &str, value: Option<String>) {
        if let Some(value) = value {
            self.line(key, &value);
        }
    }

    fn line(&mut self, key: &str, value: &str) {
        self.put(&format!("{key} = {value}\n"));
    }

    /// One value under the first key, or several values under the second key.
    fn one_or_list(&mut self, (one, several): (&str, &str), values: Vec<String>) {
        match &*values {
            [] => {}
            [value] => self.line(one, value),
            _ => self.line(several, &list(values.into_iter())),
        }
    }

    fn duration(&mut self, key: &str, applies: bool, millis: u32, default: u32) {
        if applies && millis != default {
            self.line(key, &quoted(&duration(millis)));
        }
    }

    fn put(&mut self, text: &str) {
        self.text.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::parse;

    #[test]
    fn checks_are_printed_as_they_were_written() {
        let text = include_str!("../../../tests/fuzz/seeds/config/checks.toml");
        let config = parse("checks.toml", text).unwrap_or_else(|error| panic!("{error}"));
        let printed = toml(&config, &mut |_| None);
        let again = parse("checks.toml", &printed).unwrap_or_else(|error| panic!("{error}"));
        for line in ["ca = \"ca.pem\", server_name = \"mail.internal\"", "verify = false"] {
            assert!(printed.contains(line), "{printed}");
        }
        assert_eq!(printed, toml(&again, &mut |_| None));
    }

    /// What is printed means the same.
    #[test]
    fn sockets_are_printed_as_they_were_written() {
        let text = include_str!("../../../tests/fuzz/seeds/config/sockets.toml");
        let config = parse("sockets.toml", text).unwrap_or_else(|error| panic!("{error}"));
        let printed = toml(&config, &mut |_| None);
        let again = parse("sockets.toml", &printed).unwrap_or_else(|error| panic!("{error}"));
        let values = |config: &Config| {
            let all = config.listeners.iter().cloned().map(|listener| {
                let Listener { addresses, interface, freebind, mode, owner, .. } = listener;
                let addresses: Vec<_> = addresses.into_iter().map(|at| at.value).collect();
                let proxies = listener.accept_proxy.map(|at| at.value);
                (addresses, interface, freebind, mode, owner, proxies)
            });
            all.collect::<Vec<_>>()
        };
        assert_eq!(values(&config), values(&again), "{printed}");
        let interfaces = |config: &Config| {
            let all = config.backends.iter().map(|backend| backend.interface.as_ref());
            all.map(|interface| interface.map(|at| at.value.clone())).collect::<Vec<_>>()
        };
        assert!(interfaces(&config)[1].is_some());
        assert_eq!(interfaces(&config), interfaces(&again), "{printed}");
        let endpoints = |config: &Config| {
            let all = config.backends.iter().flat_map(|backend| &backend.endpoints);
            all.map(|endpoint| endpoint.address.value.clone()).collect::<Vec<_>>()
        };
        assert_eq!(endpoints(&config), endpoints(&again), "{printed}");
        for line in ["\"unix:@ringway\"", "\"10.0.0.1:20000-20099\"", "\"[fe80::1%lo]:80\""] {
            assert!(printed.contains(line), "{printed}");
        }
    }
}
