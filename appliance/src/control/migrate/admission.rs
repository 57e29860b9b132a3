//! `allow` and `deny` in an order, as other programs have them, as lists of which the longest
//! prefix counts.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::plan::{Table, Value};

/// One rule about who may come in. The first that matches counts.
#[derive(Clone, Debug)]
pub struct Step {
    pub at: At,
    pub allow: bool,
    pub who: Who,
}

#[derive(Clone, Debug)]
pub enum Who {
    Everyone,
    Range(String),
    /// The ranges in a file, one in a line.
    File(String),
}

/// Sets `allow` and `deny` of a listener.
pub fn set(listener: &mut Table, steps: &[Step], findings: &mut Findings) {
    let (mut allow, mut deny): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    let (mut seen, mut others) = (Vec::new(), true);
    for Step { at, allow: allows, who } in steps {
        let value = match who {
            Who::Everyone => {
                others = *allows;
                break;
            }
            Who::File(name) => Table::of([("file", name.as_str().into())]).into(),
            Who::Range(text) => {
                let Some(range) = range(text) else {
                    findings.loss(*at, format!("{text:?} is no address and no prefix"));
                    continue;
                };
                if seen.iter().any(|before: &IpNet| before.contains(&range)) {
                    findings.note(*at, format!("{text}: never reached, a rule before it matches"));
                    continue;
                }
                seen.push(range);
                let is_address = range.prefix_len() == range.max_prefix_len();
                match is_address {
                    true => range.addr().to_string().into(),
                    false => range.trunc().to_string().into(),
                }
            }
        };
        if *allows { &mut allow } else { &mut deny }.push(value);
    }
    match (others, allow.is_empty(), deny.is_empty()) {
        (true, _, true) => {}
        (true, true, false) => listener.set("deny", Value::List(deny)),
        (true, false, false) => {
            allow.extend(["0.0.0.0/0".into(), "::/0".into()]);
            listener.set("allow", Value::List(allow));
            listener.set("deny", Value::List(deny));
        }
        (false, ..) => {
            listener.set("allow", Value::List(allow));
            if !deny.is_empty() {
                listener.set("deny", Value::List(deny));
            }
        }
    }
}

fn range(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::migrate::plan::Plan;

    fn lists(steps: &[(bool, &str)]) -> String {
        let steps: Vec<_> = steps
            .iter()
            .map(|(allow, text)| {
                let who = match *text {
                    "all" => Who::Everyone,
                    text => Who::Range(text.to_owned()),
                };
                Step { at: At::default(), allow: *allow, who }
            })
            .collect();
        let mut plan = Plan::default();
        set(&mut plan.head, &steps, &mut Findings::default());
        plan.toml(&[]).replace('\n', ";")
    }

    #[test]
    fn the_order_becomes_the_longest_prefix() {
        assert_eq!(lists(&[]), "");
        assert_eq!(lists(&[(true, "10.0.0.0/8")]), "");
        assert_eq!(lists(&[(true, "10.0.0.1"), (false, "all")]), "allow = [\"10.0.0.1\"];");
        assert_eq!(lists(&[(false, "10.0.0.0/8"), (true, "all")]), "deny = [\"10.0.0.0/8\"];");
        assert_eq!(
            lists(&[(true, "10.1.0.0/16"), (false, "10.0.0.0/8")]),
            "allow = [\"10.1.0.0/16\", \"0.0.0.0/0\", \"::/0\"];deny = [\"10.0.0.0/8\"];"
        );
        // The second is never reached.
        assert_eq!(
            lists(&[(false, "10.0.0.0/8"), (true, "10.1.0.0/16")]),
            "deny = [\"10.0.0.0/8\"];"
        );
        assert_eq!(lists(&[(false, "all")]), "allow = [];");
    }
}
