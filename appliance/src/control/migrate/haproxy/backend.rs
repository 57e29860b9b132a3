//! `backend`, and the servers of `listen`, as a backend of Ringway.

use crate::control::migrate::findings::Findings;
use crate::control::migrate::haproxy::proxy::Proxy;
use crate::control::migrate::haproxy::server::{self, Server};
use crate::control::migrate::haproxy::{check, words::Line};
use crate::control::migrate::plan::{Part, Table, Value, duration};

/// The backend of this name. `base` finds certificates.
pub fn part(
    proxy: &Proxy,
    name: &str,
    base: &dyn Fn(&str, &str) -> String,
    findings: &mut Findings,
) -> Part {
    let read = proxy.servers.iter();
    let read: Vec<_> =
        read.filter_map(|(line, defaults)| server::read(line, defaults, base, findings)).collect();
    let servers = alike(read, findings);
    let mut table = Table::of([("name", name.into())]);
    table.set("endpoints", endpoints(&servers, proxy.all_backups, findings));
    table.set_some("balance", balance(proxy, findings));
    table.set(
        "connect_timeout",
        duration(proxy.timeouts.get("connect").copied().unwrap_or_default()),
    );
    if let Some(retries) = proxy.retries {
        table.set("connect_attempts", retries.saturating_add(1).min(8));
    }
    if let Some(line) = &proxy.source {
        server::source_words(&line.words[1..], line.at, &mut table, findings);
    }
    if servers.iter().any(|server| server.maxconn > 0) {
        // HAProxy's queue has no end, unless it is given one.
        table.set("queue", 1_000_000);
        let wait = proxy.timeouts.get("queue").or_else(|| proxy.timeouts.get("connect"));
        table.set("queue_timeout", duration(wait.copied().unwrap_or(u64::MAX).max(10)));
    }
    let Some(first) = servers.first() else {
        return Part { at: proxy.at, origin: origin(proxy), table };
    };
    for (key, value) in first.wire.0.iter().chain(&first.shared.0) {
        table.set(key, value.clone());
    }
    tls(&mut table, first, findings);
    health_check(&mut table, proxy, &servers, findings);
    Part { at: proxy.at, origin: origin(proxy), table }
}

pub fn origin(proxy: &Proxy) -> String {
    format!("{} {}", proxy.kind, proxy.name)
}

/// Leaves out servers that can't be in one backend with the first, and that nobody would reach.
fn alike(servers: Vec<Server>, findings: &mut Findings) -> Vec<Server> {
    let mut kept: Vec<Server> = Vec::new();
    for server in servers {
        let name = &server.name;
        if let Some(first) = kept.first() {
            if first.wire != server.wire || first.tls != server.tls {
                let text = "Ringway speaks to all endpoints of a backend in the same way (TLS, \
                            send_proxy)";
                let other = &first.name;
                findings.loss(
                    server.at,
                    format!("the server {name} is left out: it differs from {other}, and {text}"),
                );
                continue;
            }
            if first.shared != server.shared {
                let text = "these keys are of a whole backend, and those of the first count";
                findings.loss(server.at, format!("the server {name} has other options: {text}"));
            }
            if kept.iter().any(|other| other.address == server.address) {
                findings.loss(
                    server.at,
                    format!("the server {name} is left out: another has its address"),
                );
                continue;
            }
        }
        kept.push(server);
    }
    kept
}

fn endpoints(servers: &[Server], all_backups: bool, findings: &mut Findings) -> Value {
    let backups = servers.iter().filter(|server| server.backup);
    if let (Some(second), false) = (backups.clone().nth(1), all_backups) {
        let text = "HAProxy uses the first backup that is up, and Ringway all of them";
        findings.loss(second.at, format!("{}: {text}", second.name));
    }
    let entry = |server: &Server| {
        let mut keys = Table::of([("address", server.address.as_str().into())]);
        // Names of services stand for many addresses.
        keys.set("name", server.name.as_str());
        let weight = if server.disabled { Some(0) } else { server.weight };
        keys.set_some("weight", weight.filter(|weight| *weight != 1));
        if server.maxconn > 0 {
            keys.set("max_sessions", server.maxconn.min(1_000_000_000));
        }
        if server.backup {
            keys.set("backup", true);
        }
        Value::from(keys)
    };
    Value::List(servers.iter().map(entry).collect())
}

fn balance(proxy: &Proxy, findings: &mut Findings) -> Option<&'static str> {
    if let Some(at) = proxy.stick {
        let text = "a client's server is computed and not remembered, so a client moves back to a \
                    server that returns";
        findings.note(at, format!("stick on src: is now balance = \"source-hash\": {text}"));
        return Some("source-hash");
    }
    let Line { at, words } = proxy.balance.as_ref()?;
    let of = words[1..].iter().map(String::as_str).collect::<Vec<_>>();
    match of[..] {
        ["roundrobin" | "static-rr"] => None,
        ["leastconn" | "random" | "random(2)"] => Some("least-connections"),
        ["source"] | ["hash", "src"] => Some("source-hash"),
        ["random(1)"] => Some("random"),
        _ => {
            let name = of.join(" ");
            findings.loss(*at, format!("balance {name}: servers take turns (round-robin)"));
            None
        }
    }
}

fn tls(table: &mut Table, server: &Server, findings: &mut Findings) {
    let Some(of) = &server.tls else { return };
    let host = server.address.rsplit_once(':').map_or("", |(host, _)| host);
    let host = host.trim_matches(['[', ']']);
    if of.no_verify {
        let text = "Ringway always verifies: give `ca` or `pin_sha256` in backends.tls";
        findings.loss(server.at, format!("ssl verify none: {text}"));
    } else if of.names.is_empty() {
        let text = "HAProxy asks for no name; Ringway sends and verifies this one";
        findings.loss(server.at, format!("server_name = {host:?}: {text}"));
    }
    if of.names.len() > 1 && of.names[0] != of.names[1] {
        let text = "the name that is verified is sent too";
        findings.loss(server.at, format!("sni {}: {text}: {}", of.names[1], of.names[0]));
    }
    let name = of.names.first().map_or(host, String::as_str);
    let mut keys = Table::of([("server_name", name.into())]);
    keys.0.extend(of.keys.0.iter().cloned());
    table.set("tls", keys);
}

fn health_check(table: &mut Table, proxy: &Proxy, servers: &[Server], findings: &mut Findings) {
    let Some(first) = servers.iter().find_map(|server| server.check.as_ref()) else {
        if let Some(backup) = servers.iter().find(|server| server.backup) {
            // A refused connection alone takes no endpoint of Ringway out.
            let text = "no server has `check`, so neither HAProxy nor Ringway ever uses it";
            findings.note(backup.at, format!("the backup {}: {text}", backup.name));
        }
        return;
    };
    for server in servers {
        match &server.check {
            None => {
                let text = "Ringway checks all endpoints of a backend, and so this one too";
                findings.loss(server.at, format!("{} has no `check`: {text}", server.name));
            }
            Some(check) if check != first => {
                let text = "a backend has one health check, and that of the first server counts";
                findings.loss(server.at, format!("the check of {}: {text}", server.name));
            }
            Some(_) => {}
        }
    }
    let ssl = servers.iter().any(|server| server.tls.is_some());
    table.set("health_check", check::table(proxy, first, ssl, findings));
}
