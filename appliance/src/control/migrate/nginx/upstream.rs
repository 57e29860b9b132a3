//! `upstream` blocks, and what `proxy_pass` leads to.

use std::collections::BTreeMap;

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::nginx::words::{Directive, time};
use crate::control::migrate::plan::{Kind, Part, Plan, Table, Value, duration};

/// All upstreams of a file, and the backends that were made of them. In nginx, options of
/// connections to servers are those of a `server` block, so one upstream may become several
/// backends.
#[derive(Debug, Default)]
pub struct Upstreams<'d> {
    pub blocks: BTreeMap<String, &'d Directive>,
    made: Vec<(String, bool, Table, String)>,
}

impl Upstreams<'_> {
    /// The backend for `target`, an upstream or an address, with these keys of a backend.
    pub fn backend(
        &mut self,
        plan: &mut Plan,
        (at, target): (At, &str),
        udp: bool,
        keys: &Table,
        findings: &mut Findings,
    ) -> Option<String> {
        let same = |(other, is_udp, others, _): &&(String, bool, Table, String)| {
            other == target && *is_udp == udp && others == keys
        };
        if let Some((.., name)) = self.made.iter().find(same) {
            return Some(name.clone());
        }
        let mut table = Table::default();
        let (at, origin) = match self.blocks.get(target) {
            Some(block) => {
                upstream(&mut table, block, findings);
                (block.at, format!("upstream {target}"))
            }
            None => match address(target) {
                Ok(address) => {
                    table.set("endpoints", vec![address]);
                    (at, format!("proxy_pass {target}"))
                }
                Err(why) => {
                    findings.loss(at, format!("{target}: {why}"));
                    return None;
                }
            },
        };
        let name = plan.name(Kind::Backend, target);
        let mut whole = Table::of([("name", name.as_str().into())]);
        whole.0.extend(table.0);
        for (key, value) in &keys.0 {
            whole.set(key, value.clone());
        }
        if !udp && keys.get("connect_attempts").is_none() {
            // nginx tries each server once.
            let count = match whole.get("endpoints") {
                Some(Value::List(all)) => all.len().clamp(1, 8) as u64,
                _ => 1,
            };
            whole.set("connect_attempts", count);
        }
        plan.backends.push(Part { at, origin, table: whole });
        self.made.push((target.to_owned(), udp, keys.clone(), name.clone()));
        Some(name)
    }
}

/// An address as Ringway's file has it.
pub fn address(text: &str) -> Result<String, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(format!("unix:{path}"));
    }
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    match port.parse::<u16>() {
        Ok(port) if port > 0 && !host.is_empty() && !text.contains('$') => {
            let host = if host == "localhost" { "127.0.0.1" } else { host };
            Ok(format!("{host}:{port}"))
        }
        _ => Err("is neither an upstream of this file nor an address with a port".to_owned()),
    }
}

fn upstream(table: &mut Table, block: &Directive, findings: &mut Findings) {
    let mut servers = Servers::default();
    let mut balance = None;
    for line in block.block.iter().flatten() {
        let words: Vec<_> = line.words.iter().map(String::as_str).collect();
        match words[..] {
            ["server", address, ref options @ ..] => {
                servers.add(line.at, address, options, findings);
            }
            ["least_conn"] | ["random", "two"] | ["random", "two", "least_conn"] => {
                balance = Some("least-connections");
            }
            ["random"] => balance = Some("random"),
            ["hash", "$remote_addr" | "$binary_remote_addr", ref rest @ ..] => {
                balance = Some("source-hash");
                if rest.is_empty() {
                    let text = "Ringway's hash moves few clients when servers change";
                    findings.note(line.at, format!("hash without consistent: {text}"));
                }
            }
            ["hash", "$remote_addr$remote_port" | "$remote_addr:$remote_port", ..] => {
                balance = Some("source-port-hash");
            }
            ["zone", ..] => {}
            ["hash" | "least_time" | "random", ..] => {
                findings.loss(line.at, format!("{}: servers take turns", line.text()));
            }
            _ => findings.loss(line.at, format!("{}: has no counterpart", line.text())),
        }
    }
    servers.finish(table, findings);
    table.set_some("balance", balance);
}

#[derive(Default)]
struct Servers {
    endpoints: Vec<(String, Table)>,
    /// `max_fails` and `fail_timeout` of each server, if it gives one of them.
    fails: Vec<(At, Option<u64>, Option<u64>)>,
    backups: bool,
}

impl Servers {
    fn add(&mut self, at: At, text: &str, options: &[&str], findings: &mut Findings) {
        let Ok(address) = address(text) else {
            findings.loss(at, format!("server {text}: is left out: it has no port"));
            return;
        };
        if self.endpoints.iter().any(|(other, _)| *other == address) {
            findings.loss(at, format!("server {text}: is left out: another has its address"));
            return;
        }
        let mut keys = Table::default();
        let mut fails = (at, None, None);
        for option in options {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let number = value.parse::<u64>();
            match (name, number) {
                ("weight", Ok(weight)) => keys.set("weight", weight),
                ("max_conns", Ok(0)) => {}
                ("max_conns", Ok(count)) => keys.set("max_sessions", count.min(1_000_000_000)),
                ("max_fails", Ok(count)) => fails.1 = Some(count),
                ("fail_timeout", _) => match time(value) {
                    Ok(time) => fails.2 = Some(time),
                    Err(why) => findings.loss(at, format!("fail_timeout: {why}")),
                },
                ("backup", _) => {
                    keys.set("backup", true);
                    self.backups = true;
                }
                ("down", _) => keys.set("weight", 0),
                // Ringway follows names by itself.
                ("resolve", _) => {}
                ("service", _) => {
                    findings.loss(at, format!("{option}: see srv: in Ringway's reference"));
                }
                _ => findings.loss(at, format!("{option}: has no counterpart")),
            }
        }
        self.fails.push(fails);
        self.endpoints.push((address, keys));
    }

    fn finish(mut self, table: &mut Table, findings: &mut Findings) {
        self.scale(findings);
        let entry = |(address, keys): &(String, Table)| {
            let is_default = |(key, value): &&(&str, Value)| *key == "weight" && *value == one();
            let keys: Vec<_> = keys.0.iter().filter(|key| !is_default(key)).cloned().collect();
            if keys.is_empty() {
                return Value::from(address.as_str());
            }
            let mut all = Table::of([("address", address.as_str().into())]);
            all.0.extend(keys);
            all.into()
        };
        table.set("endpoints", Value::List(self.endpoints.iter().map(entry).collect()));
        let given = self.fails.iter().filter(|(_, count, time)| count.or(*time).is_some());
        if given.clone().next().is_none() && !self.backups {
            // Ringway avoids a server that failed for 10 s by itself, as nginx does.
            return;
        }
        let counted = |(_, count, time): &(At, Option<u64>, Option<u64>)| {
            (count.unwrap_or(1), time.unwrap_or(10_000))
        };
        let Some((at, first)) = self.fails.first().map(|of| (of.0, counted(of))) else { return };
        if let Some(other) = self.fails.iter().find(|of| counted(of) != first) {
            let text = "these are of a whole backend, and those of its first server count";
            findings.loss(other.0, format!("max_fails and fail_timeout differ: {text}"));
        }
        let (count, time) = first;
        if count == 0 {
            if self.backups {
                findings.loss(at, "max_fails=0: nothing says when the backups are needed");
            }
            return;
        }
        let time = duration(time.max(100));
        let keys = Table::of([
            ("failures", count.min(10_000).into()),
            ("window", time.as_str().into()),
            ("base", time.as_str().into()),
            ("max", time.into()),
            ("max_share", 100.into()),
        ]);
        table.set("eject", keys);
    }

    /// Ringway's weights end at 256.
    fn scale(&mut self, findings: &mut Findings) {
        let weight = |keys: &Table| match keys.get("weight") {
            Some(Value::Word(word)) => word.parse().unwrap_or(1),
            _ => 1_u64,
        };
        let most = self.endpoints.iter().map(|(_, keys)| weight(keys)).max().unwrap_or(1);
        if most <= 256 {
            return;
        }
        if let Some((at, ..)) = self.fails.first() {
            findings.note(*at, "weights above 256 are divided, so that shares stay about the same");
        }
        for (_, keys) in &mut self.endpoints {
            let scaled = (weight(keys).saturating_mul(256) / most).max(weight(keys).min(1));
            keys.set("weight", scaled);
        }
    }
}

fn one() -> Value {
    Value::from(1)
}
