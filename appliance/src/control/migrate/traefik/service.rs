//! Services of TCP and UDP, as backends.

use std::collections::BTreeMap;

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::plan::{Kind, Part, Plan, Table, Value, duration};
use crate::control::migrate::tree::Node;

/// `tcp.services` or `udp.services`.
pub struct Services<'n> {
    pub udp: bool,
    pub nodes: BTreeMap<String, &'n Node>,
    pub transports: BTreeMap<String, &'n Node>,
    made: BTreeMap<String, Made>,
}

/// What became of a service.
#[derive(Clone, Debug, Default)]
pub struct Made {
    pub backends: Vec<(String, u64)>,
    /// How long a connection may stay half closed, in milliseconds.
    pub termination: Option<u64>,
}

/// A time as Go writes it, such as `1m30s`, or a number of which the unit is known.
pub fn time(text: &str, of_number: u64) -> Result<u64, String> {
    if let Ok(number) = text.parse::<u64>() {
        return Ok(number.saturating_mul(of_number));
    }
    crate::control::migrate::nginx::time(text)
}

impl<'n> Services<'n> {
    pub fn new(udp: bool) -> Self {
        let (nodes, transports, made) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { udp, nodes, transports, made }
    }

    /// Adds the backends of a service, once.
    pub fn backends(
        &mut self,
        plan: &mut Plan,
        at: At,
        name: &str,
        findings: &mut Findings,
    ) -> Option<Made> {
        let name = name.strip_suffix("@file").unwrap_or(name);
        if let Some(made) = self.made.get(name) {
            return Some(made.clone());
        }
        let Some(node) = self.nodes.get(name).copied() else {
            findings.loss(at, format!("{name}: these files have no such service"));
            return None;
        };
        let made = match node.path(&["weighted", "services"]) {
            Some(list) => self.weighted(plan, list, findings),
            None => self.load_balancer(plan, name, node, findings)?,
        };
        self.made.insert(name.to_owned(), made.clone());
        Some(made)
    }

    fn weighted(&mut self, plan: &mut Plan, list: &Node, findings: &mut Findings) -> Made {
        let mut all = Made::default();
        for item in list.items() {
            let name = item.text_of("name").unwrap_or_default();
            let nested = self.nodes.get(name).is_some_and(|node| node.get("weighted").is_some());
            if nested {
                findings.loss(item.at, format!("{name}: is left out: weights are of one level"));
                continue;
            }
            let weight = item.text_of("weight").and_then(|text| text.parse().ok()).unwrap_or(1);
            let Some(made) = self.backends(plan, item.at, name, findings) else { continue };
            all.termination = all.termination.max(made.termination);
            all.backends.extend(made.backends.into_iter().map(|(name, _)| (name, weight)));
        }
        all
    }

    fn load_balancer(
        &self,
        plan: &mut Plan,
        name: &str,
        node: &Node,
        findings: &mut Findings,
    ) -> Option<Made> {
        let Some(balancer) = node.get("loadBalancer") else {
            findings.loss(node.at, format!("{name}: is left out: it is no loadBalancer"));
            return None;
        };
        let backend = plan.name(Kind::Backend, name);
        let mut table = Table::of([("name", backend.as_str().into())]);
        let (mut endpoints, mut with_tls) = (Vec::<Value>::new(), 0);
        for server in balancer.get("servers").map(Node::items).unwrap_or_default() {
            let address = server.text_of("address").unwrap_or_default();
            match address.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                    let host = if host == "localhost" { "127.0.0.1" } else { host };
                    let endpoint = Value::from(format!("{host}:{port}"));
                    if !endpoints.contains(&endpoint) {
                        endpoints.push(endpoint);
                    }
                }
                _ => findings.loss(server.at, format!("{address:?}: is no address with a port")),
            }
            with_tls += usize::from(server.is_true("tls"));
        }
        table.set("endpoints", Value::List(endpoints));
        let mut termination = self.milliseconds(balancer, "terminationDelay", findings);
        if !self.udp {
            let transport = balancer.text_of("serversTransport").and_then(|name| {
                self.transports.get(name.strip_suffix("@file").unwrap_or(name)).copied()
            });
            let dial = transport.and_then(|of| self.milliseconds(of, "dialTimeout", findings));
            table.set("connect_timeout", duration(dial.unwrap_or(30_000)));
            if let Some(transport) = transport {
                let delay = self.milliseconds(transport, "terminationDelay", findings);
                termination = delay.or(termination);
                if let Some(time) = self.milliseconds(transport, "dialKeepAlive", findings) {
                    table.set("keepalive", duration(time.clamp(1_000, 32_767_000)));
                }
            }
            if let Some(proxy) = balancer.get("proxyProtocol") {
                let version = proxy.text_of("version").unwrap_or("2");
                table.set("send_proxy", if version == "1" { "v1" } else { "v2" });
            }
            let of_tls = transport.and_then(|of| of.get("tls"));
            if with_tls > 0 {
                if with_tls < balancer.get("servers").map_or(0, |servers| servers.items().len()) {
                    let text = "Ringway speaks to all endpoints of a backend in the same way";
                    findings.loss(node.at, format!("{name}: tls of some servers only: {text}"));
                }
                table.set("tls", tls(node.at, name, of_tls, findings));
            }
        }
        for (key, of) in balancer.entries() {
            let known = ["servers", "terminationDelay", "serversTransport", "proxyProtocol"];
            if key == "healthCheck" {
                table.set("health_check", health_check(of, findings));
            } else if !known.contains(&key) {
                findings.loss(of.at, format!("{name}: {key}: has no counterpart"));
            }
        }
        plan.backends.push(Part { at: node.at, origin: format!("service {name}"), table });
        Some(Made { backends: vec![(backend, 1)], termination })
    }

    fn milliseconds(&self, node: &Node, key: &str, findings: &mut Findings) -> Option<u64> {
        let of = node.get(key)?;
        let text = of.text().unwrap_or_default();
        if text.starts_with('-') {
            // Without an end.
            return Some(0);
        }
        match time(text, 1) {
            Ok(time) => Some(time),
            Err(why) => {
                findings.loss(of.at, format!("{key}: {why}"));
                None
            }
        }
    }
}

fn tls(at: At, name: &str, given: Option<&Node>, findings: &mut Findings) -> Table {
    let text_of = |key: &str| given.and_then(|of| of.text_of(key));
    let server_name = text_of("serverName");
    if server_name.is_none() {
        let text = "Traefik verifies the address; give the name in backends.tls";
        findings.loss(at, format!("{name}: tls without serverName: {text}"));
    }
    let mut keys = Table::of([("server_name", server_name.unwrap_or("name.invalid").into())]);
    let first = |key: &str| given.and_then(|of| of.get(key)).and_then(|of| of.items().first());
    keys.set_some("ca", first("rootCAs").and_then(Node::text));
    if let Some(pair) = first("certificates") {
        keys.set_some("cert", pair.text_of("certFile"));
        keys.set_some("key", pair.text_of("keyFile"));
    }
    if given.is_some_and(|of| of.is_true("insecureSkipVerify")) {
        let text = "Ringway always verifies: give `ca` or `pin_sha256` in backends.tls";
        findings.loss(at, format!("{name}: insecureSkipVerify: {text}"));
    }
    keys
}

fn health_check(node: &Node, findings: &mut Findings) -> Table {
    let mut keys = Table::default();
    let (send, expect) = (node.text_of("send"), node.text_of("expect"));
    if send.or(expect).is_some() {
        let mut step = Table::default();
        step.set_some("send", send);
        step.set_some("expect", expect);
        keys.set("type", "exchange");
        keys.set("steps", vec![step]);
    }
    keys.set("interval", "30s");
    for (key, of) in node.entries() {
        let text = of.text().unwrap_or_default();
        let read = match key {
            "interval" | "timeout" => time(text, 1_000).map(|time| {
                let key = if key == "interval" { "interval" } else { "timeout" };
                keys.set(key, duration(time.max(100)));
            }),
            "port" => text.parse::<u16>().map_err(|_| "is no port".to_owned()).map(|port| {
                keys.set("port", u64::from(port));
            }),
            "unhealthyInterval" => time(text, 1_000).map(|time| {
                keys.set("down_interval", duration(time.max(100)));
            }),
            "send" | "expect" => Ok(()),
            _ => Err("has no counterpart".to_owned()),
        };
        if let Err(why) = read {
            findings.loss(of.at, format!("healthCheck {key}: {why}"));
        }
    }
    keys
}
