//! Rules in an order, as other programs have them, as routes of which the most specific counts.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::plan::{Kind, Part, Plan, Table, Value};

/// Who goes where. Empty lists of names, protocols and sources stand for all.
#[derive(Clone, Debug)]
pub struct Rule {
    pub at: At,
    pub origin: String,
    pub hostnames: Vec<String>,
    pub alpn: Vec<String>,
    pub sources: Vec<String>,
    /// Who may go there: all, if the list is empty. The others are refused.
    pub allow: Vec<String>,
    pub backends: Vec<(String, u64)>,
}

/// Keeps what has the same meaning where the most specific rule wins, wherever it stands. The first
/// of two rules that match wins in the original.
pub fn in_order(rules: Vec<Rule>, findings: &mut Findings) -> Vec<Rule> {
    let mut kept: Vec<Rule> = Vec::new();
    for mut rule in rules {
        let hosts = match rule.hostnames.is_empty() {
            true => vec![None],
            false => rule.hostnames.iter().cloned().map(Some).collect(),
        };
        let mut left = Vec::new();
        for host in hosts {
            match stopped(&kept, host.as_deref(), &mut rule.sources, findings, rule.at) {
                true => {}
                false => left.push(host),
            }
        }
        if !left.is_empty() {
            rule.hostnames = left.into_iter().flatten().collect();
            match kept.last_mut() {
                Some(last) if is_one(last, &rule) => last.hostnames.extend(rule.hostnames),
                _ => kept.push(rule),
            }
        }
    }
    kept
}

/// Whether two rules are one line of the original, and differ in their names alone.
fn is_one(a: &Rule, b: &Rule) -> bool {
    let named = !a.hostnames.is_empty() && !b.hostnames.is_empty();
    named
        && (a.at, &a.alpn, &a.sources, &a.allow, &a.backends)
            == (b.at, &b.alpn, &b.sources, &b.allow, &b.backends)
}

/// Whether an earlier rule takes this name's clients away, or the order could not be kept.
fn stopped(
    earlier: &[Rule],
    host: Option<&str>,
    sources: &mut Vec<String>,
    findings: &mut Findings,
    at: At,
) -> bool {
    let named = match host {
        Some(host) => format!("{host:?}"),
        None => "every other client".to_owned(),
    };
    for before in earlier {
        let equal = match host {
            Some(host) => before.hostnames.iter().any(|name| name == host),
            None => before.hostnames.is_empty(),
        };
        let wider = match host {
            Some(host) => {
                before.hostnames.is_empty()
                    || before.hostnames.iter().any(|name| covers(name, host))
            }
            None => false,
        };
        if !equal && !wider {
            continue;
        }
        if before.sources.is_empty() {
            findings
                .note(at, format!("{named}: never reached, because {} matches first", before.at));
            return true;
        }
        if !equal {
            let text =
                "is for some clients of these names, and Ringway takes the longest name first";
            findings.loss(at, format!("{named}: the rule of {} {text}: left out", before.at));
            return true;
        }
        let count = sources.len();
        sources.retain(|source| !before.sources.iter().any(|range| contains(range, source)));
        if count > 0 && sources.is_empty() {
            findings
                .note(at, format!("{named}: never reached, because {} matches first", before.at));
            return true;
        }
    }
    false
}

/// Whether `wide` is a wildcard that stands for `name`, which may be a wildcard too.
fn covers(wide: &str, name: &str) -> bool {
    let Some(end) = wide.strip_prefix('*') else { return false };
    let name = name.strip_prefix('*').unwrap_or(name);
    name.len() > end.len() && name.ends_with(end)
}

fn contains(range: &str, source: &str) -> bool {
    let net = |text: &str| {
        let net = text.parse::<IpNet>().ok();
        net.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
    };
    range == source || matches!((net(range), net(source)), (Some(a), Some(b)) if a.contains(&b))
}

/// Makes a route of each rule, for this listener.
pub fn add_routes(plan: &mut Plan, listener: &str, rules: &[Rule]) {
    for rule in rules {
        let first = rule.backends.first().map_or("none", |(name, _)| name.as_str());
        let name = plan.name(Kind::Listener, &format!("{listener}/{first}"));
        let mut table = Table::of([("name", name.into()), ("listeners", vec![listener].into())]);
        let lists =
            [("hostnames", &rule.hostnames), ("alpn", &rule.alpn), ("sources", &rule.sources)];
        let lists = lists.into_iter().chain([("allow", &rule.allow)]);
        for (key, list) in lists {
            if !list.is_empty() {
                table.set(key, list.clone());
            }
        }
        table.set("backends", backends(&rule.backends));
        plan.routes.push(Part { at: rule.at, origin: rule.origin.clone(), table });
    }
}

/// The list of a route's backends. The weight 1 is the default.
pub fn backends(weighted: &[(String, u64)]) -> Value {
    let entry = |(name, weight): &(String, u64)| match weight {
        1 => Value::from(name.as_str()),
        weight => Table::of([("name", name.as_str().into()), ("weight", (*weight).into())]).into(),
    };
    Value::List(weighted.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(line: usize, hostnames: &[&str], sources: &[&str]) -> Rule {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        Rule {
            at: At { file: 0, line },
            origin: String::new(),
            hostnames: owned(hostnames),
            alpn: Vec::new(),
            sources: owned(sources),
            allow: Vec::new(),
            backends: vec![("b".into(), 1)],
        }
    }

    fn kept(rules: &[Rule]) -> (Vec<usize>, Vec<(usize, bool)>) {
        let mut findings = Findings::default();
        let kept = in_order(rules.to_vec(), &mut findings);
        let is_loss = |weight| weight == crate::control::migrate::findings::Weight::Loss;
        let found = findings.0.iter().map(|of| (of.at.line, is_loss(of.weight))).collect();
        (kept.iter().map(|rule| rule.at.line).collect(), found)
    }

    #[test]
    fn a_rule_that_another_hides_is_left_out() {
        // The wildcard comes first, so the name is never reached.
        let hidden = [rule(1, &["*.e.com"], &[]), rule(2, &["a.e.com"], &[])];
        assert_eq!(kept(&hidden), (vec![1], vec![(2, false)]));
        // The other way round both have clients.
        let both = [rule(1, &["a.e.com"], &[]), rule(2, &["*.e.com"], &[])];
        assert_eq!(kept(&both), (vec![1, 2], vec![]));
        // Some clients of a wildcard first: Ringway would take the longer name.
        let mixed = [rule(1, &["*.e.com"], &["10.0.0.0/8"]), rule(2, &["a.e.com"], &[])];
        assert_eq!(kept(&mixed), (vec![1], vec![(2, true)]));
        let ranges = [rule(1, &[], &["10.0.0.0/8"]), rule(2, &[], &["10.1.0.0/16"])];
        assert_eq!(kept(&ranges), (vec![1], vec![(2, false)]));
        let narrow = [rule(1, &[], &["10.1.0.0/16"]), rule(2, &[], &["10.0.0.0/8"])];
        assert_eq!(kept(&narrow), (vec![1, 2], vec![]));
    }
}
