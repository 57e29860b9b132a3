//! Says where a client would go, and why.
//!
//! The table in force is asked by the functions that the workers use: `proxy::tcp::choose`,
//! `proxy::udp::choose` and `proxy::balance`. Only the reasons beside each rule are made here.

pub mod asked;
pub mod backends;
mod rules;

use std::net::IpAddr;

use config_sync::table::limit::Limit;
use config_sync::table::routing::{Listener, Protocol, Route, RoutingTable, Socket, Transport};
use config_sync::table::source_limit::SourceLimit;
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::shown::{Shown as Word, protocol};
use crate::control::why::asked::{Client, Running, Speaks};
use crate::control::why::backends::{BackendRow, Choice, Refusal};
use crate::control::why::rules::{RouteRow, Rule};
use crate::proxy::tcp::choose::{By, admits};
use crate::proxy::udp::choose as udp;
use crate::stats::records::CloseReason;
use crate::wire::client_hello::Protocols;

/// Where the client would go, and why.
#[derive(Debug, JsonSchema, Serialize)]
pub struct Answer {
    pub client: String,
    pub listener: String,
    /// The listening socket.
    pub address: String,
    pub protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alpn: Vec<String>,
    /// The generation of the table that was asked.
    pub generation: u64,
    pub outcome: Outcome,
    /// The reason to close the session, if the client is refused, as in the access log. If several
    /// backends would refuse the client, the reason of the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The outcome as a sentence.
    pub said: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// What was asked of the client, in the order of the worker's questions.
    pub rules: Vec<Rule>,
    pub routes: Vec<RouteRow>,
    pub backends: Vec<BackendRow>,
    /// The backends that would refuse the client.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
    /// The most sessions or flows of the listener, over all workers. Absent: no limit of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sessions: Option<u32>,
    /// As many of them are there.
    #[serde(skip)]
    pub taken: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// This endpoint.
    Endpoint,
    /// One of several: each has a chance.
    OneOf,
    Refused,
}

/// Says where the client would go.
///
/// # Errors
/// There is no such listener, or it can't have such a client. The text is for the operator.
pub fn why(running: &Running<'_>, client: &Client) -> Result<Answer, String> {
    let table = running.table;
    let (asked, socket) = find(table, client)?;
    fits(asked, client)?;
    let mut answer = Answer {
        client: shown(client),
        listener: asked.name.to_string(),
        address: Word::Unix(Some(&socket.address)).to_string(),
        protocol: protocol(asked.protocol),
        server_name: client.server_name.clone(),
        alpn: client.alpn.clone(),
        generation: table.generation,
        outcome: Outcome::Refused,
        reason: None,
        said: String::new(),
        route: None,
        backend: None,
        endpoint: None,
        rules: Vec::new(),
        routes: Vec::new(),
        backends: Vec::new(),
        refusals: Vec::new(),
        max_sessions: None,
        taken: 0,
    };
    let protocols = Protocols::new(client.alpn.iter().map(String::as_bytes))
        .ok_or("alpn: a protocol is empty, or there are too many")?;
    let by = match (client.speaks, socket.reads_hello) {
        (Speaks::NotTls, true) => socket.not_tls.map(By::Fallback),
        (Speaks::Silent, true) => socket.silent.map(By::Fallback),
        (_, true) => Some(By::Hello(&protocols)),
        (_, false) => Some(By::Socket),
    };
    let walk = Walk { running, client, socket, name: name(client, socket), by };
    match walk.walk(&mut answer) {
        Ok(Choice::Exactly { backend, endpoint }) => {
            answer.outcome = Outcome::Endpoint;
            answer.said = format!("goes to {endpoint} of backend {backend:?}");
            (answer.backend, answer.endpoint) = (Some(backend), Some(endpoint));
        }
        Ok(Choice::OneOf) => {
            answer.outcome = Outcome::OneOf;
            "goes to one of the endpoints below, by their chances".clone_into(&mut answer.said);
            let chance: f64 = answer.refusals.iter().map(|of| of.chance).sum();
            if chance > 0.0 {
                answer.said += &format!(
                    "; with a chance of {} it is refused: {}",
                    percent(chance),
                    reasons(&answer.refusals)
                );
            }
        }
        Err(reason) => {
            answer.reason = Some(reason.word());
            let because = answer.rules.iter().rev().find(|rule| !rule.passed);
            answer.said = match (because, &answer.refusals[..]) {
                (Some(rule), _) => format!("is refused: {} ({})", reason.word(), rule.said),
                (None, [] | [_]) => {
                    format!("is refused: {} (no endpoint may be picked)", reason.word())
                }
                (None, several) => format!("is refused: {}", reasons(several)),
            };
        }
    }
    Ok(answer)
}

/// Whether a listener of this protocol can have such a client.
fn fits(asked: &Listener, client: &Client) -> Result<(), String> {
    let is_tls = asked.protocol == Protocol::Tls;
    if !is_tls && (client.server_name.is_some() || !client.alpn.is_empty()) {
        let protocol = protocol(asked.protocol);
        return Err(format!(
            "listener {:?} is for {protocol}, which has no server name and no ALPN; leave both out",
            client.listener
        ));
    }
    if !is_tls && client.speaks != Speaks::Tls {
        let protocol = protocol(asked.protocol);
        return Err(format!(
            "listener {:?} is for {protocol}, and waits for no ClientHello; leave `speaks` out",
            client.listener
        ));
    }
    Ok(())
}

/// The reason of each backend, such as `no_endpoint by "a", endpoints_full by "b"`.
fn reasons(refusals: &[Refusal]) -> String {
    let said = refusals.iter().map(|of| format!("{} by {:?}", of.reason, of.backend));
    said.collect::<Vec<_>>().join(", ")
}

pub fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

fn shown(client: &Client) -> String {
    match client.port {
        true => client.address.to_string(),
        false => client.address.ip().to_string(),
    }
}

/// The name by which listener and route are looked up.
fn name<'a>(client: &'a Client, socket: &'a Socket) -> Option<&'a str> {
    client.server_name.as_deref().or(socket.default_hostname.as_deref())
}

/// The listener and its socket.
fn find<'t>(
    table: &'t RoutingTable,
    client: &Client,
) -> Result<(&'t Listener, &'t Socket), String> {
    let index = table.listeners.iter().position(|of| *of.name == *client.listener);
    let Some(index) = index else {
        let others: Vec<_> = table.listeners.iter().take(10).map(|of| &*of.name).collect();
        let others = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
        return Err(format!("no listener is called {:?}; there are: {others}", client.listener));
    };
    let mut sockets = table.sockets.iter().filter(|of| of.listeners.values().any(|i| i == index));
    let found = match client.local {
        None => sockets.next(),
        Some(local) => sockets.find(|of| {
            let bound = of.address.ip();
            bound.is_some_and(|bound| {
                bound == local || bound.ip().is_unspecified() && bound.port() == local.port()
            })
        }),
    };
    let socket = found.ok_or_else(|| match client.local {
        Some(local) => format!("listener {:?} has no address {local}", client.listener),
        None => {
            format!("listener {:?} has no socket: an operator drains the listener", client.listener)
        }
    })?;
    Ok((&table.listeners[index], socket))
}

/// The way of a client through the table.
struct Walk<'a> {
    running: &'a Running<'a>,
    client: &'a Client,
    socket: &'a Socket,
    /// The server name that counts.
    name: Option<&'a str>,
    /// `None`: clients that speak so are closed.
    by: Option<By<'a>>,
}

impl Answer {
    fn limit(&mut self, listener: &Listener) {
        self.max_sessions = (listener.max_sessions > 0).then_some(listener.max_sessions);
        self.taken = listener.taken.as_ref().map_or(0, |taken| taken.full.get());
    }
}

/// Whether there is a place within the limit of a part.
fn within(
    answer: &mut Answer,
    kind: &str,
    name: &str,
    (limit, now): (&Option<Box<Limit>>, u64),
) -> Result<(), CloseReason> {
    let Some(limit) = limit else { return Ok(()) };
    let over = limit.over(now);
    answer.rules.push(rules::limit(kind, name, limit, over));
    over.filter(|_| !limit.delays).map_or(Ok(()), |_| Err(CloseReason::Limit))
}

/// Whether the client's source has a place within the limit of a part.
fn within_source(
    answer: &mut Answer,
    kind: &str,
    (limit, client, now): (&Option<Box<SourceLimit>>, IpAddr, u64),
) -> Result<(), CloseReason> {
    let Some(limit) = limit else { return Ok(()) };
    let Some(standing) = limit.standing(client, now) else { return Ok(()) };
    answer.rules.push(rules::source(kind, limit, standing));
    standing.bar.map_or(Ok(()), |_| Err(CloseReason::SourceLimit))
}

impl<'a> Walk<'a> {
    /// The questions of a worker, in its order.
    fn walk(&self, answer: &mut Answer) -> Result<Choice, CloseReason> {
        let Self { running: Running { table, config, now, .. }, client, socket, .. } = self;
        let ip = client.address.ip();
        let is_udp = socket.transport == Transport::Udp;
        if !is_udp {
            within(answer, "process", "", (&table.total, *now))?;
        }
        answer.rules.extend(rules::proxy_header(socket, ip));
        if !socket.accept_proxy.admits(ip) {
            return Err(CloseReason::ProxyMissing);
        }
        if let Err(reason) = admits(socket.access.as_deref(), ip) {
            let asked = config.listeners.iter().find(|of| of.name.value == client.listener);
            let lists = asked.map(|of| &of.admission);
            answer.rules.push(rules::denied("listener", &client.listener, lists, ip));
            return Err(reason);
        }
        let by = self.by.as_ref().ok_or_else(|| {
            let (rule, reason) = rules::no_fallback(client.speaks);
            answer.rules.push(rule);
            reason
        })?;
        let listener = self.listener(by, answer)?;
        self.lets_in(listener, answer)?;
        let found = self.route(by, listener);
        let chosen = found.as_ref().ok().map(|route| &*route.name);
        answer.routes = rules::routes(config, listener, chosen, (client, self.name));
        answer.rules.push(rules::found_route(chosen, &answer.routes));
        let route = found?;
        answer.route = Some(route.name.to_string());
        if route.access.is_some() {
            let asked = config.routes.iter().find(|of| *of.name.value == *route.name);
            let lists = asked.map(|of| &of.admission);
            let admitted = admits(route.access.as_deref(), ip);
            answer.rules.push(match admitted {
                Ok(()) => rules::admitted("route", &route.name, lists, ip),
                Err(_) => rules::denied("route", &route.name, lists, ip),
            });
            admitted?;
        }
        within_source(answer, "route", (&route.limit_source, ip, *now))?;
        within(answer, "route", &route.name, (&route.limit, *now))?;
        let found = backends::choose(self.running, (route, listener), (client, socket));
        let choice = found.choice;
        (answer.backends, answer.refusals) = (found.rows, found.refusals);
        if matches!(choice, Err(CloseReason::NoBackend)) {
            let said = "no backend of the route has a weight above 0";
            answer.rules.push(Rule::new(false, said));
        }
        let terminates = listener.tls.as_ref().filter(|_| matches!(by, By::Hello(_)));
        let lacks = terminates.is_some_and(|tls| !tls.certificates.has(self.name));
        // A worker looks for the certificate between backend and endpoint.
        if lacks && !matches!(choice, Err(CloseReason::NoBackend)) {
            answer.rules.push(Rule::new(false, "no certificate is for the server name"));
            return Err(CloseReason::NoCertificate);
        }
        choice
    }

    /// Whether the listener lets the client in: its lists and its limits.
    fn lets_in(&self, listener: &Listener, answer: &mut Answer) -> Result<(), CloseReason> {
        let Self { running: Running { table, config, now, .. }, client, socket, .. } = self;
        let ip = client.address.ip();
        let asked = config.listeners.iter().find(|of| *of.name.value == *listener.name);
        if listener.access.is_some() {
            let lists = asked.map(|of| &of.admission);
            let admitted = admits(listener.access.as_deref(), ip);
            answer.rules.push(match admitted {
                Ok(()) => rules::admitted("listener", &listener.name, lists, ip),
                Err(_) => rules::denied("listener", &listener.name, lists, ip),
            });
            admitted?;
        }
        answer.limit(listener);
        within_source(answer, "listener", (&listener.limit_source, ip, *now))?;
        if socket.transport == Transport::Udp {
            within(answer, "process", "", (&table.total, *now))?;
        }
        within(answer, "listener", &listener.name, (&listener.limit, *now))
    }

    fn listener(&self, by: &By<'_>, answer: &mut Answer) -> Result<&'a Listener, CloseReason> {
        let table = self.running.table;
        let (found, leads) = match by {
            By::Fallback(fallback) => (Some(fallback.listener), "what the client sends leads"),
            by => (by.find(&self.socket.listeners, self.name), "the server name leads"),
        };
        let Some(index) = found else {
            let said = match self.name {
                Some(name) => format!("no listener of {} is for {name:?}", answer.address),
                None => format!("no listener of {} is for no server name", answer.address),
            };
            answer.rules.push(Rule::new(false, said));
            return Err(by.unknown());
        };
        let listener = &table.listeners[index];
        if *listener.name != *answer.listener {
            let said = format!(
                "{leads} to listener {:?}, and not to {:?}",
                &*listener.name, answer.listener
            );
            answer.rules.push(Rule::new(true, said));
            answer.listener = listener.name.to_string();
        }
        Ok(listener)
    }

    fn route(&self, by: &By<'_>, listener: &'a Listener) -> Result<&'a Route, CloseReason> {
        let table = self.running.table;
        match listener.protocol {
            Protocol::Udp => {
                udp::route(table, listener, self.client.address).map_err(|refusal| refusal.reason)
            }
            Protocol::Tcp | Protocol::Tls => {
                let route = by.route(listener, self.name, self.client.address.ip())?;
                Ok(&table.routes[route])
            }
        }
    }
}
