//! Routers, as listeners and routes.

use std::collections::BTreeMap;

use crate::control::migrate::findings::Findings;
use crate::control::migrate::plan::{Kind, Part, Plan, Table, Value, duration};
use crate::control::migrate::rules::{self, Rule};
use crate::control::migrate::traefik::entry_point::EntryPoint;
use crate::control::migrate::traefik::rule::{self, Alternative};
use crate::control::migrate::traefik::service::{Made, Services};
use crate::control::migrate::tree::Node;

type Points = BTreeMap<String, EntryPoint>;

/// What the files say, apart from services and entry points.
pub struct Dynamic<'n> {
    tcp: Vec<(&'n str, &'n Node)>,
    udp: Vec<(&'n str, &'n Node)>,
    middlewares: BTreeMap<&'n str, &'n Node>,
    options: BTreeMap<&'n str, &'n Node>,
    certificates: Vec<Value>,
    default_certificate: Option<Value>,
}

/// What becomes of a connection's TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Plain,
    Passthrough,
    Terminate,
}

/// The routers of one entry point and mode.
struct Group<'n> {
    mode: Mode,
    rules: Vec<Rule>,
    termination: Option<u64>,
    options: Option<&'n str>,
}

impl<'n> Dynamic<'n> {
    pub fn of(nodes: &'n [Node], findings: &mut Findings) -> Self {
        let named = |path: &[&str]| {
            let found = nodes.iter().filter_map(|node| node.path(path));
            found.flat_map(Node::entries).collect::<Vec<_>>()
        };
        let pair = |of: &Node| {
            let text = |key: &str| Value::from(of.text_of(key).unwrap_or_default());
            Value::from(Table::of([("cert", text("certFile")), ("key", text("keyFile"))]))
        };
        let lists = nodes.iter().filter_map(|node| node.path(&["tls", "certificates"]));
        let certificates = lists.flat_map(Node::items).map(pair).collect();
        let stores = named(&["tls", "stores"]);
        for (name, of) in stores.iter().filter(|(name, _)| *name != "default") {
            findings.loss(of.at, format!("tls.stores.{name}: Traefik itself has one store only"));
        }
        let default = stores.iter().find(|(name, _)| *name == "default");
        let default = default.and_then(|(_, of)| of.get("defaultCertificate"));
        Self {
            tcp: named(&["tcp", "routers"]),
            udp: named(&["udp", "routers"]),
            middlewares: named(&["tcp", "middlewares"]).into_iter().collect(),
            options: named(&["tls", "options"]).into_iter().collect(),
            certificates,
            default_certificate: default.map(pair),
        }
    }

    pub fn udp(
        &self,
        plan: &mut Plan,
        points: &Points,
        services: &mut Services<'_>,
        findings: &mut Findings,
    ) {
        let mut taken = BTreeMap::new();
        for (name, router) in &self.udp {
            for (point_name, point) in points_of(name, router, points, true, findings) {
                if taken.insert(point_name, *name).is_some() {
                    let text = "another router has the entry point, and gets all flows";
                    findings
                        .loss(router.at, format!("{name}: is left out at {point_name}: {text}"));
                    continue;
                }
                let service = router.text_of("service").unwrap_or_default();
                let Some(made) = services.backends(plan, router.at, service, findings) else {
                    continue;
                };
                let mut table = head(plan, point_name, point, "UDP");
                table.set("flow_timeout", duration(point.timeout.max(100)));
                table.set("backends", rules::backends(&made.backends));
                let origin = format!("router {name}");
                plan.listeners.push(Part { at: router.at, origin, table });
            }
        }
    }

    pub fn tcp(
        &self,
        plan: &mut Plan,
        points: &Points,
        services: &mut Services<'_>,
        findings: &mut Findings,
    ) {
        let mut groups: BTreeMap<&str, Vec<Group<'n>>> = BTreeMap::new();
        for (name, router) in &self.tcp {
            let found = points_of(name, router, points, false, findings);
            if found.is_empty() {
                continue;
            }
            let service = router.text_of("service").unwrap_or_default();
            let made = services.backends(plan, router.at, service, findings);
            let Some(made) = made else { continue };
            let Some((mode, rules)) = self.rules(name, router, &made, findings) else { continue };
            for (point, _) in found {
                let all = groups.entry(point).or_default();
                let options = router.path(&["tls", "options"]).and_then(Node::text);
                let at = all.iter().position(|group| group.mode == mode).unwrap_or_else(|| {
                    all.push(Group { mode, rules: Vec::new(), termination: None, options });
                    all.len() - 1
                });
                let group = &mut all[at];
                if group.options != options {
                    let text = "the listener has the options of its first router";
                    findings.loss(router.at, format!("{name}: tls.options differ: {text}"));
                }
                group.termination = group.termination.max(made.termination);
                group.rules.extend(rules.clone());
            }
        }
        for (name, groups) in groups {
            self.listeners(plan, (name, &points[name]), groups, findings);
        }
    }

    fn rules(
        &self,
        name: &str,
        router: &Node,
        made: &Made,
        findings: &mut Findings,
    ) -> Option<(Mode, Vec<Rule>)> {
        let mode = match router.get("tls") {
            None => Mode::Plain,
            Some(tls) if tls.is_true("passthrough") => Mode::Passthrough,
            Some(tls) => {
                if tls.get("certResolver").is_some() {
                    let text = "Ringway gets no certificates itself: give files";
                    findings.loss(tls.at, format!("{name}: certResolver: {text}"));
                }
                Mode::Terminate
            }
        };
        if mode == Mode::Terminate
            && self.certificates.is_empty()
            && self.default_certificate.is_none()
        {
            let text = "is left out: no certificate stands in these files";
            findings.loss(router.at, format!("{name}: {text}"));
            return None;
        }
        for (key, of) in router.entries() {
            match key {
                "rule" | "service" | "entryPoints" | "tls" | "middlewares" | "ruleSyntax" => {}
                "priority" => {
                    let text = "Ringway takes the longest name and prefix first";
                    findings.loss(of.at, format!("{name}: priority: {text}"));
                }
                _ => findings.loss(of.at, format!("{name}: {key}: has no counterpart")),
            }
        }
        let allow = self.allowed(name, router, findings)?;
        let text = router.text_of("rule").unwrap_or_default();
        let alternatives = match rule::read(text) {
            Ok(alternatives) => alternatives,
            Err(why) => {
                findings.loss(router.at, format!("{name}: is left out: {why}"));
                return None;
            }
        };
        let rule = |of: Alternative| Rule {
            at: router.at,
            origin: format!("router {name}"),
            hostnames: of.hostnames.unwrap_or_default(),
            alpn: of.alpn,
            sources: of.sources,
            allow: allow.clone(),
            backends: made.backends.clone(),
        };
        let rules: Vec<_> = alternatives.into_iter().map(rule).collect();
        let of_tls = rules.iter().any(|rule| !rule.hostnames.is_empty() || !rule.alpn.is_empty());
        if mode == Mode::Plain && of_tls {
            let text = "is left out: without `tls` there is no name to look at";
            findings.loss(router.at, format!("{name}: {text}"));
            return None;
        }
        Some((mode, rules))
    }

    /// The clients that the router's middlewares let in: all, if the list is empty.
    fn allowed(&self, name: &str, router: &Node, findings: &mut Findings) -> Option<Vec<String>> {
        let mut allow: Vec<String> = Vec::new();
        for used in router.get("middlewares").map(Node::items).unwrap_or_default() {
            let text = used.text().unwrap_or_default();
            let text = text.strip_suffix("@file").unwrap_or(text);
            let node = self.middlewares.get(text);
            let list = node.and_then(|of| of.get("ipAllowList").or_else(|| of.get("ipWhiteList")));
            let Some(list) = list else {
                let why = match node.is_some_and(|of| of.get("inFlightConn").is_some()) {
                    true => "see limit_source.sessions of the listener",
                    false => "it is no ipAllowList",
                };
                findings.loss(used.at, format!("{name}: middleware {text}: is left out: {why}"));
                continue;
            };
            if !allow.is_empty() {
                findings.loss(used.at, format!("{name}: is left out: two lists at once"));
                return None;
            }
            let ranges = list.get("sourceRange").map(Node::items).unwrap_or_default();
            allow.extend(ranges.iter().filter_map(Node::text).map(str::to_owned));
        }
        Some(allow)
    }

    fn listeners(
        &self,
        plan: &mut Plan,
        (name, point): (&str, &EntryPoint),
        mut groups: Vec<Group<'n>>,
        findings: &mut Findings,
    ) {
        // What is no TLS goes to the plain router, where one shares the entry point with TLS.
        let plain = groups.iter().position(|group| group.mode == Mode::Plain);
        let plain = plain.filter(|_| groups.len() > 1).map(|at| groups.remove(at));
        let both = groups.len() > 1;
        let mut not_tls = plain.and_then(|group| beside_tls(&group, findings));
        for group in groups {
            let protocol = if group.mode == Mode::Plain { "TCP" } else { "TLS" };
            let mut table = head(plan, name, point, protocol);
            let own = match &table.0[0].1 {
                Value::Text(name) => name.clone(),
                _ => String::new(),
            };
            if both {
                hostnames(&mut table, &group, findings);
            }
            if group.mode == Mode::Terminate {
                table.set("tls", self.terminate(&group, findings));
            }
            table.set_some("not_tls", not_tls.take());
            // Traefik closes no connection for being idle.
            table.set("idle_timeout", "0s");
            table.set("write_stall_timeout", "0s");
            table.set_some("half_close_timeout", group.termination.map(duration));
            let kept = rules::in_order(group.rules, findings);
            rules::add_routes(plan, &own, &kept);
            let origin = format!("entry point {name}");
            plan.listeners.push(Part { at: point.at, origin, table });
        }
    }

    fn terminate(&self, group: &Group<'_>, findings: &mut Findings) -> Table {
        let mut keys = Table::of([("mode", "Terminate".into())]);
        if !self.certificates.is_empty() {
            keys.set("certificates", Value::List(self.certificates.clone()));
        }
        keys.set_some("default_certificate", self.default_certificate.clone());
        let options = group.options.unwrap_or("default");
        let options = options.strip_suffix("@file").unwrap_or(options);
        for (key, of) in self.options.get(options).into_iter().flat_map(|node| node.entries()) {
            match key {
                "minVersion" if of.text() == Some("VersionTLS13") => {
                    keys.set("min_version", "1.3");
                }
                "minVersion" if of.text() == Some("VersionTLS12") => {}
                "alpnProtocols" => {
                    let all: Vec<_> = of.items().iter().filter_map(Node::text).collect();
                    keys.set("alpn", all);
                }
                "clientAuth" => client_auth(&mut keys, of, findings),
                "cipherSuites" | "curvePreferences" | "sniStrict" | "disableSessionTickets" => {
                    findings.note(of.at, format!("{key}: rustls and its defaults decide"));
                }
                _ => findings.loss(of.at, format!("tls.options {key}: is left out")),
            }
        }
        keys
    }
}

fn client_auth(keys: &mut Table, node: &Node, findings: &mut Findings) {
    let files = node.get("caFiles").map(Node::items).unwrap_or_default();
    match node.text_of("clientAuthType").unwrap_or("NoClientCert") {
        "NoClientCert" => return,
        "RequireAndVerifyClientCert" => {}
        "VerifyClientCertIfGiven" => keys.set("client_auth", "optional"),
        other => {
            findings.loss(node.at, format!("clientAuthType {other}: certificates are verified"));
        }
    }
    keys.set_some("client_ca", files.first().and_then(Node::text));
    if files.len() != 1 {
        findings.loss(node.at, "caFiles: Ringway reads one file: put all into one");
    }
}

/// The backend of a plain router beside TLS.
fn beside_tls(group: &Group<'_>, findings: &mut Findings) -> Option<String> {
    match &group.rules[..] {
        [Rule { sources, allow, backends, .. }]
            if sources.is_empty() && allow.is_empty() && backends.len() == 1 =>
        {
            backends.first().map(|(name, _)| name.clone())
        }
        rules => {
            for rule in rules {
                let text = "beside TLS, one plain router for all clients can be carried over";
                findings.loss(rule.at, format!("{}: is left out: {text}", rule.origin));
            }
            None
        }
    }
}

/// Two listeners of one address are told apart by names.
fn hostnames(table: &mut Table, group: &Group<'_>, findings: &mut Findings) {
    let mut all: Vec<String> = Vec::new();
    for rule in &group.rules {
        if rule.hostnames.is_empty() {
            if group.mode == Mode::Terminate {
                let text = "TLS that ends here and TLS that passes through are told apart by names";
                findings.note(rule.at, format!("{}: {text}", rule.origin));
            }
            return;
        }
        for name in &rule.hostnames {
            if !all.contains(name) {
                all.push(name.clone());
            }
        }
    }
    table.set("hostnames", all);
}

fn head(plan: &mut Plan, name: &str, point: &EntryPoint, protocol: &str) -> Table {
    let name = plan.name(Kind::Listener, name);
    let mut table = Table::of([("name", name.into()), ("protocol", protocol.into())]);
    match &point.addresses[..] {
        [one] => table.set("address", one.as_str()),
        all => table.set("addresses", all.to_vec()),
    }
    if let Some(proxies) = &point.proxies {
        table.set("accept_proxy", Table::of([("from", proxies.clone().into())]));
    }
    table
}

/// The entry points of a router. Without a list, a router has all of its protocol.
fn points_of<'p>(
    name: &str,
    router: &'p Node,
    points: &'p Points,
    udp: bool,
    findings: &mut Findings,
) -> Vec<(&'p str, &'p EntryPoint)> {
    let Some(list) = router.get("entryPoints") else {
        let all = points.iter().filter(|(_, point)| point.udp == udp);
        let all: Vec<_> = all.map(|(name, point)| (name.as_str(), point)).collect();
        if all.is_empty() {
            findings.loss(router.at, format!("{name}: is left out: {}", unknown("NAME")));
        }
        return all;
    };
    let mut found = Vec::new();
    for item in list.items() {
        let text = item.text().unwrap_or_default();
        match points.get_key_value(text) {
            Some((key, point)) if point.udp == udp => found.push((key.as_str(), point)),
            Some(_) => {
                findings.loss(item.at, format!("{name}: {text} is of another protocol"));
            }
            None => findings.loss(item.at, format!("{name}: is left out: {}", unknown(text))),
        }
    }
    found
}

fn unknown(name: &str) -> String {
    format!(
        "where the entry point {name} listens stands in Traefik's static configuration: give that \
         file too, or --entry-point {name}=:PORT"
    )
}
