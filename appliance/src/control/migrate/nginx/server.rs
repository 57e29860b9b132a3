//! `server` blocks.

use crate::control::migrate::admission::{self, Step, Who};
use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::nginx::listen::{self, Listen};
use crate::control::migrate::nginx::map::{By, Map};
use crate::control::migrate::nginx::upstream::Upstreams;
use crate::control::migrate::nginx::words::{Directive, time};
use crate::control::migrate::plan::{Kind, Part, Plan, Table, Value, duration, plain};
use crate::control::migrate::rules::{self, Rule};

/// What is known of the whole `stream` block.
#[derive(Default)]
pub struct Stream<'d> {
    /// Directives that count for every server.
    pub common: Vec<&'d Directive>,
    pub maps: Vec<Map>,
    pub upstreams: Upstreams<'d>,
    /// Zones of `limit_conn_zone` that are of clients' addresses.
    pub zones: Vec<String>,
}

/// A server's directives, with those of the stream that it does not give itself.
struct Settings<'d>(Vec<&'d Directive>);

impl<'d> Settings<'d> {
    fn of(server: &'d Directive, common: &[&'d Directive]) -> Self {
        let own: Vec<_> = server.block.iter().flatten().collect();
        // `allow` and `deny` are one list: a server that has one of them has its own list.
        let family = |name: &'d str| if name == "deny" { "allow" } else { name };
        let is_own = |name| own.iter().any(|of| family(of.name()) == family(name));
        let above = common.iter().copied().filter(|of| !is_own(of.name()));
        Self(above.collect::<Vec<_>>().into_iter().chain(own.iter().copied()).collect())
    }

    fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'d Directive> + 's {
        self.0.iter().copied().filter(move |of| of.name() == name)
    }

    fn get(&self, name: &str) -> Option<&'d Directive> {
        self.0.iter().rev().copied().find(|of| of.name() == name)
    }

    fn value(&self, name: &str) -> Option<&'d str> {
        self.get(name).map(Directive::value)
    }

    fn is_on(&self, name: &str) -> bool {
        self.value(name) == Some("on")
    }

    fn time(&self, name: &str, default: u64, findings: &mut Findings) -> u64 {
        let Some(of) = self.get(name) else { return default };
        time(of.value()).unwrap_or_else(|why| {
            findings.loss(of.at, format!("{name}: {why}"));
            default
        })
    }
}

/// Adds the listeners, routes and backends of a server.
pub fn add(plan: &mut Plan, server: &Directive, stream: &mut Stream<'_>, findings: &mut Findings) {
    let common = stream.common.clone();
    let settings = Settings::of(server, &common);
    for of in &settings.0 {
        say_of(of, findings);
    }
    let Some(pass) = settings.get("proxy_pass") else {
        findings.loss(server.at, "server: is left out: it has no proxy_pass");
        return;
    };
    let listens = listen::groups(settings.all("listen"), findings);
    if listens.is_empty() {
        findings.loss(server.at, "server: is left out: it listens nowhere");
    }
    for listen in listens {
        listener(plan, (server.at, &listen), pass, &settings, stream, findings);
    }
}

/// Directives that are read elsewhere, or that say nothing about traffic.
const KNOWN: &[&str] = &[
    "allow",
    "deny",
    "health_check",
    "limit_conn",
    "listen",
    "preread_buffer_size",
    "preread_timeout",
    "proxy_bind",
    "proxy_connect_timeout",
    "proxy_next_upstream",
    "proxy_next_upstream_timeout",
    "proxy_next_upstream_tries",
    "proxy_pass",
    "proxy_protocol",
    "proxy_protocol_timeout",
    "proxy_responses",
    "proxy_socket_keepalive",
    "proxy_ssl",
    "proxy_ssl_certificate",
    "proxy_ssl_certificate_key",
    "proxy_ssl_name",
    "proxy_ssl_server_name",
    "proxy_ssl_session_reuse",
    "proxy_ssl_trusted_certificate",
    "proxy_ssl_verify",
    "proxy_timeout",
    "set_real_ip_from",
    "ssl_alpn",
    "ssl_certificate",
    "ssl_certificate_key",
    "ssl_client_certificate",
    "ssl_crl",
    "ssl_handshake_timeout",
    "ssl_preread",
    "ssl_protocols",
    "ssl_session_tickets",
    "ssl_verify_client",
    "tcp_nodelay",
];

/// Directives about which there is nothing to carry over.
const NOTED: &[(&str, &str)] = &[
    ("access_log", "see access_log"),
    ("error_log", "Ringway's own log goes to stderr; see --log-to"),
    ("log_format", "see access_log"),
    ("open_log_file_cache", "see access_log"),
    ("proxy_buffer_size", "Ringway sizes its buffers by itself"),
    ("server_name", "it has no meaning in nginx's stream module of this kind"),
    ("ssl_ciphers", "Ringway has the ciphers of rustls"),
    ("ssl_dhparam", "Ringway has the groups of rustls"),
    ("ssl_ecdh_curve", "Ringway has the groups of rustls"),
    ("ssl_prefer_server_ciphers", "Ringway has the ciphers of rustls"),
    ("ssl_session_cache", "Ringway resumes sessions by tickets"),
    ("ssl_session_timeout", "Ringway's tickets live 6 to 12 hours"),
    ("status_zone", "every listener has metrics"),
];

fn say_of(of: &Directive, findings: &mut Findings) {
    let name = of.name();
    if KNOWN.contains(&name) {
        return;
    }
    match NOTED.iter().find(|(known, _)| *known == name) {
        Some((_, why)) => findings.note(of.at, format!("{name}: {why}")),
        None => {
            let why = match name {
                "return" => "Ringway answers nothing itself",
                "include" => "is not followed: put the text of that file here",
                "proxy_requests" => "a flow ends by flow_timeout, or by its responses",
                "proxy_upload_rate" | "proxy_download_rate" => {
                    "Ringway limits the bytes of a client (limit_source), not of a connection"
                }
                "proxy_half_close" => "Ringway always passes the end of one direction on",
                _ => "has no counterpart in Ringway",
            };
            findings.loss(of.at, format!("{}: is left out: {why}", of.text()));
        }
    }
}

fn listener(
    plan: &mut Plan,
    (at, listen): (At, &Listen),
    pass: &Directive,
    settings: &Settings<'_>,
    stream: &mut Stream<'_>,
    findings: &mut Findings,
) {
    let keys = connection(settings, listen.udp, findings);
    let choice = choose(plan, pass, listen, settings, stream, &keys, findings);
    let target = pass.value();
    let wanted = match target.starts_with('$') || target.contains([':', '/']) {
        false => target.to_owned(),
        true => {
            let port = listen.addresses[0].rsplit_once(':').map_or("", |(_, port)| port);
            format!("{}-{}", if listen.udp { "udp" } else { "tcp" }, port.trim_start_matches('/'))
        }
    };
    let name = plan.name(Kind::Listener, &wanted);
    let protocol = match (listen.udp, listen.ssl || choice.by_hello) {
        (true, _) => "UDP",
        (false, true) => "TLS",
        (false, false) => "TCP",
    };
    let mut table = Table::of([("name", name.as_str().into()), ("protocol", protocol.into())]);
    match &listen.addresses[..] {
        [one] => table.set("address", one.as_str()),
        all => table.set("addresses", all.to_vec()),
    }
    if listen.proxy_protocol {
        table.set("accept_proxy", believed(at, settings, findings));
    }
    if listen.ssl {
        table.set("tls", terminate(at, settings, findings));
    }
    times(&mut table, protocol, listen, settings, findings);
    table.set_some("not_tls", choice.not_tls);
    table.set_some("keepalive", listen.keepalive.clone());
    if settings.value("tcp_nodelay") == Some("off") && !listen.udp {
        table.set("nodelay", false);
    }
    limit(&mut table, settings, stream, findings);
    admission::set(&mut table, &steps(settings, findings), findings);
    if let Some(default) = choice.default {
        table.set("backends", vec![default]);
    }
    rules::add_routes(plan, &name, &choice.rules);
    plan.listeners.push(Part { at, origin: format!("server, proxy_pass {target}"), table });
}

/// Where clients go.
#[derive(Default)]
struct Choice {
    rules: Vec<Rule>,
    default: Option<String>,
    not_tls: Option<String>,
    by_hello: bool,
}

fn choose(
    plan: &mut Plan,
    pass: &Directive,
    listen: &Listen,
    settings: &Settings<'_>,
    stream: &mut Stream<'_>,
    keys: &Table,
    findings: &mut Findings,
) -> Choice {
    let mut choice = Choice::default();
    let target = pass.value();
    let mut backend = |at: At, target: &str, plan: &mut Plan, findings: &mut Findings| {
        stream.upstreams.backend(plan, (at, target), listen.udp, keys, findings)
    };
    if !target.contains('$') {
        choice.default = backend(pass.at, target, plan, findings);
        return choice;
    }
    let map = stream.maps.iter().find(|map| map.variable == target);
    let preread = settings.is_on("ssl_preread") && !listen.ssl && !listen.udp;
    let fits = |map: &&Map| match map.by {
        By::Name | By::Protocol => preread,
        By::NameHere => listen.ssl,
    };
    let Some(map) = map.filter(fits) else {
        let text = "no map of server names, that this server can know, sets the variable";
        findings.loss(pass.at, format!("proxy_pass {target}: is left out: {text}"));
        return choice;
    };
    choice.by_hello = true;
    let default = map.default.as_deref().filter(|name| !name.is_empty());
    choice.default = default.and_then(|name| backend(pass.at, name, plan, findings));
    // What is no TLS has neither a name nor a version, so nginx takes the empty key for it.
    choice.not_tls = match &map.empty {
        _ if map.by == By::NameHere => None,
        Some((_, name)) if name.is_empty() => None,
        Some((at, name)) => backend(*at, name, plan, findings),
        None => choice.default.clone(),
    };
    if let (By::Name | By::NameHere, Some((at, name))) = (map.by, &map.empty)
        && Some(name) != map.default.as_ref()
    {
        let text = "clients of TLS without a server name go to the default";
        findings.loss(*at, format!("the empty name: {text}"));
    }
    for (at, hostnames, target) in &map.entries {
        if map.by == By::Protocol {
            if Some(target) != map.default.as_ref() {
                findings.loss(*at, format!("{target}: Ringway does not choose by versions of TLS"));
            }
            continue;
        }
        let Some(name) = backend(*at, target, plan, findings) else { continue };
        choice.rules.push(Rule {
            at: *at,
            origin: format!("map {}", map.variable),
            hostnames: hostnames.clone(),
            alpn: Vec::new(),
            sources: Vec::new(),
            allow: Vec::new(),
            backends: vec![(name, 1)],
        });
    }
    choice
}

/// Keys of a backend that nginx has in the server.
fn connection(settings: &Settings<'_>, udp: bool, findings: &mut Findings) -> Table {
    let mut keys = Table::default();
    if !udp {
        let timeout = settings.time("proxy_connect_timeout", 60_000, findings);
        keys.set("connect_timeout", duration(timeout));
        if settings.value("proxy_next_upstream") == Some("off") {
            keys.set("connect_attempts", 1);
        } else if let Some(tries) = settings.value("proxy_next_upstream_tries") {
            match tries.parse::<u64>() {
                Ok(0) | Err(_) => {}
                Ok(tries) => keys.set("connect_attempts", tries.min(8)),
            }
        }
        if let Some(of) = settings.get("proxy_next_upstream_timeout") {
            findings.loss(of.at, format!("{}: each attempt has connect_timeout", of.text()));
        }
    }
    match settings.get("proxy_protocol") {
        Some(of) if of.value() == "on" && udp => {
            findings.loss(of.at, "proxy_protocol: over UDP there is version 2 only, as of Ringway");
        }
        Some(of) if of.value() == "on" => keys.set("send_proxy", "v1"),
        _ => {}
    }
    if let Some(of) = settings.get("proxy_bind") {
        let words: Vec<_> = of.words[1..].iter().map(String::as_str).collect();
        match words[..] {
            ["off"] => {}
            ["$remote_addr" | "$remote_addr:$remote_port", "transparent"] => {
                keys.set("transparent", true);
            }
            [address] if address.parse::<std::net::IpAddr>().is_ok() => {
                keys.set("source", vec![address]);
            }
            _ => findings.loss(of.at, format!("{}: is left out", of.text())),
        }
    }
    if settings.is_on("proxy_ssl") {
        keys.set("tls", proxy_ssl(settings, findings));
    }
    if let Some(of) = settings.get("health_check") {
        keys.set("health_check", health_check(of, findings));
    }
    keys
}

fn proxy_ssl(settings: &Settings<'_>, findings: &mut Findings) -> Table {
    let pass = settings.get("proxy_pass");
    let at = settings.get("proxy_ssl").map_or_else(At::default, |of| of.at);
    let named = settings.value("proxy_ssl_name").filter(|name| !name.contains('$'));
    let target = pass.map_or("", Directive::value);
    let host = target.rsplit_once(':').map_or(target, |(host, _)| host);
    let mut keys = Table::of([("server_name", named.unwrap_or(host).into())]);
    keys.set_some("ca", settings.value("proxy_ssl_trusted_certificate"));
    keys.set_some("cert", settings.value("proxy_ssl_certificate"));
    keys.set_some("key", settings.value("proxy_ssl_certificate_key"));
    if !settings.is_on("proxy_ssl_verify") {
        let text = "Ringway always verifies: give `ca` or `pin_sha256` in backends.tls";
        findings.loss(at, format!("proxy_ssl without proxy_ssl_verify: {text}"));
    }
    keys
}

fn health_check(of: &Directive, findings: &mut Findings) -> Table {
    let mut keys = Table::default();
    for word in &of.words[1..] {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match (name, value.parse::<u64>()) {
            ("interval", _) => match time(value) {
                Ok(time) => keys.set("interval", duration(time)),
                Err(why) => findings.loss(of.at, format!("interval: {why}")),
            },
            ("jitter", _) => match time(value) {
                Ok(time) => keys.set("jitter", duration(time)),
                Err(why) => findings.loss(of.at, format!("jitter: {why}")),
            },
            ("fails", Ok(count)) => keys.set("fall", count.clamp(1, 100)),
            ("passes", Ok(count)) => keys.set("rise", count.clamp(1, 100)),
            ("port", Ok(port)) => keys.set("port", port),
            _ => findings.loss(of.at, format!("health_check {word}: is left out")),
        }
    }
    keys
}

/// Who may say who the client is.
fn believed(at: At, settings: &Settings<'_>, findings: &mut Findings) -> Value {
    let named = settings.all("set_real_ip_from").map(Directive::value);
    let from: Vec<_> = named.map(|of| if of == "unix:" { "unix" } else { of }).collect();
    let (from, text) = match from.is_empty() {
        true => (
            vec!["0.0.0.0/0", "::/0"],
            "the client in the header counts, whoever sends it: name your load balancers",
        ),
        false => (from, "clients from elsewhere send no header, and their bytes pass unread"),
    };
    findings.note(at, format!("listen proxy_protocol: {text}"));
    Table::of([("from", from.into())]).into()
}

fn terminate(at: At, settings: &Settings<'_>, findings: &mut Findings) -> Table {
    let mut keys = Table::of([("mode", "Terminate".into())]);
    let certificates = settings.all("ssl_certificate").map(Directive::value);
    let pairs: Vec<Table> = certificates
        .zip(settings.all("ssl_certificate_key").map(Directive::value))
        .map(|(cert, key)| Table::of([("cert", cert.into()), ("key", key.into())]))
        .collect();
    match pairs.first() {
        None => findings.loss(at, "listen ssl: there is no certificate with its key"),
        Some(first) => {
            keys.set("certificates", pairs.clone());
            keys.set("default_certificate", first.clone());
        }
    }
    match settings.value("ssl_verify_client") {
        None | Some("off") => {}
        Some("optional_no_ca") => {
            findings.loss(at, "ssl_verify_client optional_no_ca: no certificate is asked for");
        }
        Some(how) => {
            keys.set_some("client_ca", settings.value("ssl_client_certificate"));
            if how == "optional" {
                keys.set("client_auth", "optional");
            }
            keys.set_some("client_crl", settings.value("ssl_crl"));
        }
    }
    if let Some(of) = settings.get("ssl_alpn") {
        keys.set("alpn", of.words[1..].to_vec());
    }
    if let Some(of) = settings.get("ssl_protocols") {
        let has = |version: &str| of.words.iter().any(|word| word == version);
        if !has("TLSv1.2") && has("TLSv1.3") {
            keys.set("min_version", "1.3");
        }
        if has("TLSv1") || has("TLSv1.1") {
            findings.loss(of.at, "ssl_protocols: Ringway's oldest version is TLS 1.2");
        }
    }
    if settings.value("ssl_session_tickets") == Some("off") {
        keys.set("session_tickets", false);
    }
    keys
}

fn times(
    table: &mut Table,
    protocol: &str,
    listen: &Listen,
    settings: &Settings<'_>,
    findings: &mut Findings,
) {
    let idle = settings.time("proxy_timeout", 600_000, findings);
    if listen.udp {
        table.set("flow_timeout", duration(idle.max(100)));
        if let Some(of) = settings.get("proxy_responses") {
            match of.value().parse::<u64>() {
                Ok(0) => findings.loss(of.at, "proxy_responses 0: flows end by flow_timeout"),
                Ok(count) => table.set("responses", count.min(65_535)),
                Err(_) => findings.loss(of.at, format!("{}: is no number", of.text())),
            }
        }
        return;
    }
    if protocol == "TLS" {
        let name = if listen.ssl { "ssl_handshake_timeout" } else { "preread_timeout" };
        let default = if listen.ssl { 60_000 } else { 30_000 };
        table.set("hello_timeout", duration(settings.time(name, default, findings)));
    } else if listen.proxy_protocol {
        let wait = settings.time("proxy_protocol_timeout", 30_000, findings);
        table.set("hello_timeout", duration(wait));
    }
    table.set("idle_timeout", duration(idle));
    if idle > 300_000 {
        table.set("write_stall_timeout", duration(idle));
    }
}

fn limit(table: &mut Table, settings: &Settings<'_>, stream: &Stream<'_>, findings: &mut Findings) {
    for of in settings.all("limit_conn") {
        if table.get("limit_source").is_some() {
            let text = "a listener has one limit_source";
            findings.loss(of.at, format!("{}: is left out: {text}", of.text()));
            continue;
        }
        let count = of.words.get(2).and_then(|word| word.parse::<u64>().ok());
        match count {
            Some(count) if stream.zones.iter().any(|zone| zone == of.value()) => {
                let mut keys = Table::of([("shared", plain(of.value()).into())]);
                keys.set("sessions", count.clamp(1, 1_000_000));
                // nginx counts each address.
                keys.set("prefix_v6", 128);
                table.set("limit_source", keys);
            }
            _ => {
                let text = "only zones of $binary_remote_addr have a counterpart";
                findings.loss(of.at, format!("{}: is left out: {text}", of.text()));
            }
        }
    }
}

fn steps(settings: &Settings<'_>, findings: &mut Findings) -> Vec<Step> {
    let mut steps = Vec::new();
    for of in settings.0.iter().filter(|of| ["allow", "deny"].contains(&of.name())) {
        let who = match of.value() {
            "all" => Who::Everyone,
            "unix:" => {
                findings.loss(of.at, format!("{}: Unix sockets are not told apart", of.text()));
                continue;
            }
            range => Who::Range(range.to_owned()),
        };
        steps.push(Step { at: of.at, allow: of.name() == "allow", who });
    }
    steps
}
