//! `frontend`, and the clients of `listen`, as listeners and routes of Ringway.

use std::collections::{BTreeMap, BTreeSet};

use crate::control::migrate::admission::{self, Step, Who};
use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::haproxy::acl::{self, Term, Test};
use crate::control::migrate::haproxy::backend::origin;
use crate::control::migrate::haproxy::bind::{self, Bind, Look};
use crate::control::migrate::haproxy::proxy::Proxy;
use crate::control::migrate::haproxy::words::{Line, time};
use crate::control::migrate::plan::{Kind, Part, Plan, Table, duration};
use crate::control::migrate::rules::{self, Rule};

/// The backends that there are: of HAProxy's name, the section and Ringway's name.
pub type Backends<'p> = BTreeMap<String, (&'p Proxy, String)>;

/// Adds the listeners and routes of a section.
pub fn add(
    plan: &mut Plan,
    proxy: &Proxy,
    backends: &Backends<'_>,
    look: &Look<'_>,
    findings: &mut Findings,
) {
    let binds = bind::groups(&proxy.binds, look, findings);
    if binds.is_empty() {
        findings.loss(proxy.at, format!("{} listens nowhere", origin(proxy)));
    }
    let mut requests = Requests::of(proxy, &proxy.tcp_request.iter().collect::<Vec<_>>(), findings);
    requests.add_backends(proxy, backends, findings);
    let default = proxy.default_backend.as_ref();
    let default = default.and_then(|(at, name)| named(backends, name, *at, findings));
    let default = match proxy.kind.as_str() {
        "listen" if default.is_none() => backends.get(&proxy.name).map(|(_, name)| name.clone()),
        _ => default,
    };
    let found = rules_of(proxy, backends, findings);
    for bind in binds {
        let name = plan.name(Kind::Listener, &proxy.name);
        let hello = requests.inspect_delay.is_some();
        let by_name = found.rules.iter().any(|rule| !rule.here && !rule.rule.hostnames.is_empty());
        let passes = bind.tls.is_none() && (by_name || found.not_tls.is_some());
        let kept = kept(&found, &bind, passes, findings);
        let kept = rules::in_order(kept, findings);
        let protocol = if bind.tls.is_some() || passes { "TLS" } else { "TCP" };
        let mut table = Table::of([("name", name.as_str().into()), ("protocol", protocol.into())]);
        match &bind.addresses[..] {
            [one] => table.set("address", one.as_str()),
            all => table.set("addresses", all.to_vec()),
        }
        table.0.extend(bind.keys.0.iter().cloned());
        table.set_some("tls", bind.tls.clone());
        if let (true, Some(delay)) = (protocol == "TLS", requests.inspect_delay) {
            table.set("hello_timeout", duration(delay));
        }
        if passes && !requests.only_tls {
            table.set_some("not_tls", found.not_tls.as_ref().or(default.as_ref()).cloned());
            table.set_some("silent", default.clone().filter(|_| hello));
        }
        timeouts(&mut table, proxy, backends, &kept, default.as_deref(), findings);
        limits(&mut table, proxy, findings);
        admission::set(&mut table, &requests.admission, findings);
        if let Some(default) = &default {
            table.set("backends", vec![default.as_str()]);
        }
        rules::add_routes(plan, &name, &kept);
        plan.listeners.push(Part { at: bind.at, origin: origin(proxy), table });
    }
}

/// The backend's name in Ringway.
fn named(backends: &Backends<'_>, name: &str, at: At, findings: &mut Findings) -> Option<String> {
    let found = backends.get(name).map(|(_, name)| name.clone());
    if found.is_none() {
        let text = "no backend of this file in mode tcp has this name";
        findings.loss(at, format!("{name}: the rule is left out: {text}"));
    }
    found
}

struct Found {
    rules: Vec<Named>,
    /// The backend of clients that send no ClientHello.
    not_tls: Option<String>,
}

/// A rule, and whether its names are those of TLS that ends here.
struct Named {
    rule: Rule,
    here: bool,
}

fn rules_of(proxy: &Proxy, backends: &Backends<'_>, findings: &mut Findings) -> Found {
    let mut found = Found { rules: Vec::new(), not_tls: None };
    for line in &proxy.use_backend {
        let name = line.words.get(1).map_or("", String::as_str);
        let text = line.words.join(" ");
        let alternatives =
            acl::condition(line.words.get(2..).unwrap_or_default(), &proxy.acls, line.at, findings);
        let alternatives = match alternatives {
            Ok(alternatives) => alternatives,
            Err(why) => {
                findings.loss(line.at, format!("{text}: is left out: {why}"));
                continue;
            }
        };
        let Some(backend) = named(backends, name, line.at, findings) else { continue };
        for terms in alternatives {
            if let [(true, Test::Hello)] = terms[..] {
                found.not_tls = Some(backend.clone());
                continue;
            }
            match rule(&terms) {
                Ok(None) => {}
                Ok(Some((here, hostnames, sources))) => found.rules.push(Named {
                    here,
                    rule: Rule {
                        at: line.at,
                        origin: text.clone(),
                        hostnames,
                        alpn: Vec::new(),
                        sources,
                        allow: Vec::new(),
                        backends: vec![(backend.clone(), 1)],
                    },
                }),
                Err(why) => findings.loss(line.at, format!("{text}: is left out: {why}")),
            }
        }
    }
    found
}

type Meaning = (bool, Vec<String>, Vec<String>);

/// The names and sources of a rule with all of these terms. `None`: the rule never holds.
fn rule(terms: &[Term]) -> Result<Option<Meaning>, String> {
    let (mut here, mut hostnames, mut sources) = (false, Vec::new(), Vec::new());
    for (not, test) in terms {
        match (not, test) {
            (false, Test::Always | Test::Hello) | (true, Test::Never) => {}
            (false, Test::Never) | (true, Test::Always) => return Ok(None),
            (false, Test::Names(where_, names)) if hostnames.is_empty() => {
                here = *where_;
                hostnames = names.clone();
            }
            (false, Test::Sources { ranges, files }) if sources.is_empty() && files.is_empty() => {
                sources = ranges.clone();
            }
            (false, Test::Sources { files, .. }) if !files.is_empty() => {
                return Err("a route's sources can't come from a file".to_owned());
            }
            (false, Test::Names(..) | Test::Sources { .. }) => {
                return Err("two tests of one kind at once".to_owned());
            }
            (_, Test::Unknown(why)) => return Err(why.clone()),
            (true, _) => return Err("a route can't say for whom it is not".to_owned()),
        }
    }
    Ok(Some((here, hostnames, sources)))
}

/// The rules that this listener can follow.
fn kept(found: &Found, bind: &Bind, passes: bool, findings: &mut Findings) -> Vec<Rule> {
    let fits = |named: &&Named| {
        named.rule.hostnames.is_empty()
            || named.here == bind.tls.is_some() && (named.here || passes)
    };
    for named in found.rules.iter().filter(|named| !fits(named)) {
        let text = match bind.tls.is_some() {
            true => "TLS ends here, so ssl_fc_sni has the name, and req.ssl_sni nothing",
            false => "ssl_fc_sni has a name only where TLS ends",
        };
        findings.loss(named.rule.at, format!("{}: is left out: {text}", named.rule.origin));
    }
    found.rules.iter().filter(fits).map(|named| named.rule.clone()).collect()
}

fn timeouts(
    table: &mut Table,
    proxy: &Proxy,
    backends: &Backends<'_>,
    rules: &[Rule],
    default: Option<&str>,
    findings: &mut Findings,
) {
    let names = rules.iter().flat_map(|rule| &rule.backends).map(|(name, _)| name.as_str());
    let names: Vec<_> = names.chain(default).collect();
    let all: Vec<_> =
        backends.values().filter(|(_, name)| names.contains(&name.as_str())).collect();
    let of = |key: &str, proxies: &mut dyn Iterator<Item = &Proxy>| {
        proxies.filter_map(|proxy| proxy.timeouts.get(key).copied()).filter(|of| *of > 0).min()
    };
    let behind = || all.iter().map(|(proxy, _)| *proxy);
    let of_servers: Vec<_> = behind().map(|proxy| proxy.timeouts.get("server")).collect();
    if of_servers.windows(2).any(|pair| pair[0] != pair[1]) {
        let text = "idle_timeout is of a listener, and the shortest counts";
        findings.loss(proxy.at, format!("its backends differ in `timeout server`: {text}"));
    }
    let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
    let own = || std::iter::once(proxy);
    let idle = least(of("client", &mut own()), of("server", &mut behind()));
    let tunnel = least(of("tunnel", &mut own()), of("tunnel", &mut behind()));
    let fin = least(of("client-fin", &mut own()), of("server-fin", &mut behind()));
    let idle = tunnel.or(idle).unwrap_or_default();
    table.set("idle_timeout", duration(idle));
    // Ringway's own are 5 minutes, which is less than HAProxy would wait.
    if idle == 0 || idle > 300_000 {
        table.set("write_stall_timeout", duration(idle));
        table.set("half_close_timeout", duration(idle));
    }
    if let Some(fin) = fin {
        table.set("half_close_timeout", duration(fin));
    }
}

fn limits(table: &mut Table, proxy: &Proxy, findings: &mut Findings) {
    if let Some((at, count)) = proxy.maxconn {
        table.set("max_sessions", count.min(1_048_576));
        let text = "beyond it, Ringway refuses clients, where HAProxy lets them wait";
        findings.note(at, format!("maxconn {count}: {text}"));
    }
}

/// What `tcp-request` lines ask for.
#[derive(Default)]
struct Requests {
    inspect_delay: Option<u64>,
    /// Clients without a ClientHello are refused.
    only_tls: bool,
    admission: Vec<Step>,
}

impl Requests {
    fn of(proxy: &Proxy, lines: &[&Line], findings: &mut Findings) -> Self {
        let mut requests = Self::default();
        for line in lines {
            let words: Vec<_> = line.words.iter().map(String::as_str).collect();
            match words[1..] {
                ["inspect-delay", delay] => match time(delay) {
                    Ok(delay) => requests.inspect_delay = Some(delay.max(1)),
                    Err(why) => findings.loss(line.at, format!("inspect-delay: {why}")),
                },
                [at @ ("connection" | "session" | "content"), verb @ ("accept" | "reject"), ..] => {
                    let by_proxy = at == "connection" && has(&proxy.binds, "accept-proxy");
                    let read = acl::condition(&line.words[3..], &proxy.acls, line.at, findings);
                    let all = read.and_then(|all| match by_proxy {
                        true => Err("`connection` looks at the proxy in front".to_owned()),
                        false => Ok(all),
                    });
                    let done = all.and_then(|all| requests.rule(line.at, verb == "accept", &all));
                    if let Err(why) = done {
                        let text = line.words.join(" ");
                        findings.loss(line.at, format!("{text}: is left out: {why}"));
                    }
                }
                _ => {
                    let text = "see limit_source for what each source may have";
                    let words = line.words.join(" ");
                    findings.loss(line.at, format!("{words}: is left out: {text}"));
                }
            }
        }
        requests
    }

    /// HAProxy asks the backend's rules after those of the frontend. A listener has one order, so
    /// this can be said where the frontend has no rules and leads to that backend alone.
    fn add_backends(&mut self, proxy: &Proxy, backends: &Backends<'_>, findings: &mut Findings) {
        let default = proxy.default_backend.iter().map(|(_, name)| name);
        let named = proxy.use_backend.iter().filter_map(|line| line.words.get(1));
        let names: BTreeSet<_> = default.chain(named).collect();
        let serves = proxy.default_backend.is_none() && backends.contains_key(&proxy.name);
        let is_only = names.len() == 1 && !(proxy.kind == "listen" && serves);
        let behind = names.into_iter().filter_map(|name| backends.get(name));
        for (backend, _) in behind.filter(|(backend, _)| backend.at != proxy.at) {
            // What both have of their `defaults` is there already.
            let is_own = |line: &&Line| proxy.tcp_request.iter().all(|other| other.at != line.at);
            let lines: Vec<_> = backend.tcp_request.iter().filter(is_own).collect();
            if is_only && self.admission.is_empty() {
                let theirs = Self::of(backend, &lines, &mut Findings::default());
                if theirs.inspect_delay.is_none() && !theirs.only_tls {
                    self.admission = Self::of(backend, &lines, findings).admission;
                    continue;
                }
            }
            for line in lines {
                let text = "leads to other backends too, or has rules of its own; a listener lets \
                            clients in before it chooses a backend";
                let (words, origin) = (line.words.join(" "), origin(proxy));
                findings.loss(line.at, format!("{words}: is left out: {origin} {text}"));
            }
        }
    }

    /// Any of `alternatives` accepts, or rejects.
    fn rule(&mut self, at: At, accept: bool, alternatives: &[Vec<Term>]) -> Result<(), String> {
        for terms in alternatives {
            let lists = terms.iter().any(|(_, test)| matches!(test, Test::Sources { .. }));
            let is_over = |step: &Step| matches!(step.who, Who::Everyone);
            if lists && self.admission.last().is_some_and(is_over) {
                return Err("no list can follow one that rejects all others".to_owned());
            }
            match (accept, &terms[..]) {
                // A listener for TLS goes on when a ClientHello has come.
                (true, [(false, Test::Hello)]) => {}
                (false, [(true, Test::Hello)]) => self.only_tls = true,
                (true, [] | [(false, Test::Always)]) => {}
                (false, [] | [(false, Test::Always)]) => {
                    // Behind `accept if hello` it rejects what is no TLS.
                    match self.inspect_delay.is_some() {
                        true => self.only_tls = true,
                        false => self.step(at, false, Who::Everyone),
                    }
                }
                (_, [(false, Test::Sources { ranges, files })]) => {
                    self.steps(at, accept, ranges, files);
                }
                (false, [(true, Test::Sources { ranges, files })]) => {
                    self.steps(at, true, ranges, files);
                    self.step(at, false, Who::Everyone);
                }
                (_, terms) => {
                    let unknown = terms.iter().find_map(|(_, test)| match test {
                        Test::Unknown(why) => Some(why.clone()),
                        _ => None,
                    });
                    return Err(unknown.unwrap_or_else(|| "no list can say this".to_owned()));
                }
            }
        }
        Ok(())
    }

    fn steps(&mut self, at: At, allow: bool, ranges: &[String], files: &[String]) {
        for range in ranges {
            self.step(at, allow, Who::Range(range.clone()));
        }
        for file in files {
            self.step(at, allow, Who::File(file.clone()));
        }
    }

    fn step(&mut self, at: At, allow: bool, who: Who) {
        self.admission.push(Step { at, allow, who });
    }
}

fn has(lines: &[Line], word: &str) -> bool {
    lines.iter().any(|line| line.words.iter().any(|other| other == word))
}
