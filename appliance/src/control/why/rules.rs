//! The reasons beside each rule: which range decides, and why a route is not the client's.

use std::net::IpAddr;

use config_sync::model::admission::{Admission, Ranges};
use config_sync::model::config::Config;
use config_sync::model::place::At;
use config_sync::model::route::{self, Takes};
use config_sync::table::limit::{Limit, Over};
use config_sync::table::load::NO_LIMIT;
use config_sync::table::ranges::Access;
use config_sync::table::routing::{Hosts, Listener, Socket};
use config_sync::table::source_limit::{Bar, SourceLimit, SourceStanding};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::why::asked::{Client, Speaks};
use crate::stats::records::CloseReason;

/// A question that was asked of the client, and its answer.
#[derive(Debug, JsonSchema, Serialize)]
pub struct Rule {
    pub passed: bool,
    pub said: String,
}

/// A route of the listener.
#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "WhyRoute")]
pub struct RouteRow {
    pub route: String,
    pub matched: bool,
    pub why: String,
}

impl Rule {
    pub fn new(passed: bool, said: impl Into<String>) -> Self {
        Self { passed, said: said.into() }
    }
}

pub fn proxy_header(socket: &Socket, peer: IpAddr) -> Option<Rule> {
    let accept = &socket.accept_proxy;
    if !accept.admits(peer) {
        let said = "accept_proxy.only: only proxies of accept_proxy.from may come in";
        return Some(Rule::new(false, said));
    }
    accept.expects_header(peer).then(|| {
        let said = "accept_proxy.from has this address: the client's PROXY header counts, so ask \
                    for the address that the header names";
        Rule::new(true, said)
    })
}

/// What the sessions of a part have of its limit.
pub fn limit(kind: &str, name: &str, limit: &Limit, over: Option<Over>) -> Rule {
    let mut whose = match kind {
        "process" => "limits.total_sessions".to_owned(),
        kind => format!("limit of {kind} {name:?}"),
    };
    if let Some(shared) = &limit.shared {
        whose += &format!(" (shared limit {:?})", &**shared);
    }
    let sessions = limit.usage.sessions.get();
    let most = match limit.sessions {
        NO_LIMIT => String::new(),
        most => format!(" of {most}"),
    };
    let fast = match over {
        Some(Over::Opening) => ", and new ones come too fast",
        _ => "",
    };
    let waits = match over {
        Some(_) if limit.delays => ", so the client waits for its turn",
        _ => "",
    };
    let lets_in = over.is_none() || limit.delays;
    Rule::new(lets_in, format!("{whose}: {sessions}{most} sessions{fast}{waits}"))
}

pub fn admitted(kind: &str, name: &str, lists: Option<&Admission>, client: IpAddr) -> Rule {
    let said = match lists.and_then(|lists| decides(lists, client)) {
        Some(("allow", prefix)) => format!("{kind} {name:?} allows {prefix}"),
        _ => format!("{kind} {name:?} lets the client in"),
    };
    Rule::new(true, said)
}

pub fn denied(kind: &str, name: &str, lists: Option<&Admission>, client: IpAddr) -> Rule {
    let said = match lists.and_then(|lists| decides(lists, client)) {
        Some(("deny", prefix)) => format!("{kind} {name:?} denies {prefix}"),
        _ if lists.is_some_and(has_files) => {
            format!("{kind} {name:?} denies the client: see the files of its allow and deny")
        }
        _ => format!("{kind} {name:?} allows no range that has the client"),
    };
    Rule::new(false, said)
}

fn has_files(lists: &Admission) -> bool {
    let mut all = lists.allow.iter().flatten().chain(&lists.deny);
    all.any(|ranges| matches!(ranges.value, Ranges::File(_)))
}

/// The longest prefix with the client, among those that stand in the configuration itself. Files
/// are not read again, because they may have changed.
fn decides(lists: &Admission, client: IpAddr) -> Option<(&'static str, IpNet)> {
    if has_files(lists) {
        return None;
    }
    let of = |word, ranges: &At<Ranges>| match ranges.value {
        Ranges::Prefix(prefix) => Some((word, prefix)),
        Ranges::File(_) => None,
    };
    let allow = lists.allow.iter().flatten().filter_map(|ranges| of("allow", ranges));
    let deny = lists.deny.iter().filter_map(|ranges| of("deny", ranges));
    let has = |prefix: &IpNet| Access::new(Some(&[*prefix]), &[]).admits(client);
    let found = allow.chain(deny).filter(|(_, prefix)| has(prefix));
    found.max_by_key(|(_, prefix)| prefix.prefix_len())
}

/// The rule and the reason for a client without a ClientHello, if the listener has no backend for
/// it.
pub fn no_fallback(speaks: Speaks) -> (Rule, CloseReason) {
    let (said, reason) = match speaks {
        Speaks::Silent => (
            "no listener here has `silent`: a client is closed that sends nothing within \
             hello_timeout",
            CloseReason::HelloTimeout,
        ),
        Speaks::NotTls | Speaks::Tls => (
            "no listener here has `not_tls`: a client must send a ClientHello",
            CloseReason::HelloInvalid,
        ),
    };
    (Rule::new(false, said), reason)
}

/// What the client's source has of its limit now. `of`: the listener or the route.
pub fn source(of: &str, limit: &SourceLimit, standing: SourceStanding) -> Rule {
    let SourceStanding { source, prefix, sessions, bar } = standing;
    let most = match limit.sessions {
        NO_LIMIT => String::new(),
        most => format!(" of {most}"),
    };
    let shared = limit.shared.as_ref().map(|name| format!(" (shared as {name:?})"));
    let shared = shared.unwrap_or_default();
    let has = format!(
        "limit_source of the {of}{shared}: {source}/{prefix} has {sessions}{most} sessions"
    );
    let said = match bar {
        None | Some(Bar::Sessions) => has,
        Some(Bar::Opening) => has + ", and opens them faster than new_per_second now",
        Some(Bar::Room) => has + ", and there is no room to count one more source with sessions",
    };
    Rule::new(bar.is_none(), said)
}

pub fn found_route(chosen: Option<&str>, routes: &[RouteRow]) -> Rule {
    match chosen {
        Some(name) => Rule::new(true, format!("route {name:?} matches")),
        None if routes.is_empty() => Rule::new(false, "the listener has no route"),
        None => Rule::new(false, "no route of the listener matches"),
    }
}

/// Every route of the listener for clients that speak as this one does, with the reason why it is
/// the client's or not.
pub fn routes(
    config: &Config,
    listener: &Listener,
    chosen: Option<&str>,
    of: (&Client, Option<&str>),
) -> Vec<RouteRow> {
    let takes = match of.0.speaks {
        Speaks::Tls => Takes::Usual,
        Speaks::NotTls => Takes::NotTls,
        Speaks::Silent => Takes::Silent,
    };
    let is_of = |route: &&route::Route| {
        route.takes == takes && route.listeners.iter().any(|name| *name.value == *listener.name)
    };
    let row = |route: &route::Route| {
        let matched = chosen == Some(route.name.value.as_str());
        let (matches, why) = judge(route, of);
        let why = match (matched, matches, chosen) {
            (false, true, Some(other)) => {
                format!("{why}; but route {other:?} is more specific, so it comes first")
            }
            (false, true, None) => format!(
                "{why}; but routes with a more specific hostname come first, and none of these is \
                 for this client"
            ),
            _ => why,
        };
        RouteRow { route: route.name.value.clone(), matched, why }
    };
    config.routes.iter().filter(is_of).map(row).collect()
}

/// Whether all that the route asks for is true, and what is true or not.
fn judge(route: &route::Route, (client, name): (&Client, Option<&str>)) -> (bool, String) {
    let mut said = Vec::new();
    if !route.hostnames.is_empty() {
        let pattern = route.hostnames.iter().find(|pattern| {
            let mut hosts = Hosts::new([0; 4]);
            hosts.insert(Some(&pattern.value), ());
            hosts.get(name).is_some()
        });
        match pattern {
            Some(pattern) => said.push(format!("hostname {:?} matches", pattern.value)),
            None => return (false, format!("hostnames: {}", listed(&route.hostnames))),
        }
    }
    if !route.alpn.is_empty() {
        match client.alpn.iter().find(|name| route.alpn.iter().any(|of| of.value == **name)) {
            Some(name) => said.push(format!("the client offers {name:?}")),
            None => return (false, format!("alpn: {}", listed(&route.alpn))),
        }
    }
    if !route.sources.is_empty() {
        let ranges: Vec<IpNet> = route.sources.iter().map(|range| range.value).collect();
        match Access::new(Some(&ranges), &[]).admits(client.address.ip()) {
            true => said.push("a range of sources has the client".to_owned()),
            false => return (false, format!("sources: {}", listed(&route.sources))),
        }
    }
    match said.is_empty() {
        true => (true, "for every client of the listener".to_owned()),
        false => (true, said.join(", ")),
    }
}

/// The values that the client does not have.
fn listed<T: std::fmt::Display>(values: &[At<T>]) -> String {
    const MOST: usize = 5;
    let shown: Vec<_> = values.iter().take(MOST).map(|of| of.value.to_string()).collect();
    let more = values.len().saturating_sub(MOST);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("only {}{more}, and the client has none of these", shown.join(", "))
}
