//! `haproxy.cfg`: sections in mode tcp.

mod acl;
mod address;
mod backend;
mod bind;
mod check;
mod frontend;
mod global;
mod proxy;
mod server;
mod words;

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::plan::{Kind, Plan};
use bind::Look;
use frontend::Backends;
use global::Bases;
use proxy::Proxy;

/// Reads files in the order in which HAProxy would be given them. `directory` lists the files of a
/// directory with certificates.
///
/// # Errors
/// The text is no HAProxy configuration.
pub fn migrate(
    texts: &[&str],
    directory: &dyn Fn(&str) -> Option<Vec<String>>,
    findings: &mut Findings,
) -> Result<Plan, (At, String)> {
    let sections = words::sections(texts, findings)?;
    let mut plan = Plan::default();
    let mut bases = Bases::default();
    let mut defaults: Vec<Proxy> = vec![Proxy::default()];
    let mut proxies = Vec::new();
    for section in &sections {
        // `from NAME` names the defaults; without it the latest count.
        let named = match &section.rest[..] {
            [from, name, ..] if from == "from" => {
                let found = defaults.iter().rev().find(|of| of.name == *name);
                if found.is_none() {
                    findings.loss(section.at, format!("there are no defaults {name:?}"));
                }
                found
            }
            _ => defaults.last(),
        };
        let base = named.cloned().unwrap_or_default();
        match section.kind.as_str() {
            "global" => global::read(section, &mut bases, &mut plan.head, findings),
            "resolvers" => global::resolvers(section, &mut plan.head, findings),
            "defaults" => {
                // A section starts from nothing, unless it names another.
                let base = if section.rest.is_empty() { Proxy::default() } else { base };
                defaults.push(proxy::read(section, &base, findings));
            }
            "frontend" | "backend" | "listen" => {
                let proxy = proxy::read(section, &base, findings);
                match proxy.is_http {
                    true => findings.loss(section.at, of_http(&proxy)),
                    false => proxies.push(proxy),
                }
            }
            kind => {
                let name = &section.name;
                findings.loss(section.at, format!("{kind} {name}: has no counterpart in Ringway"));
            }
        }
    }
    assemble(&mut plan, &proxies, &bases, directory, findings);
    Ok(plan)
}

fn of_http(proxy: &Proxy) -> String {
    let text = "mode http: Ringway carries connections and reads no request";
    format!("{}: is left out: {text}", backend::origin(proxy))
}

fn assemble(
    plan: &mut Plan,
    proxies: &[Proxy],
    bases: &Bases,
    directory: &dyn Fn(&str) -> Option<Vec<String>>,
    findings: &mut Findings,
) {
    let base = |kind: &str, file: &str| bases.path(kind, file);
    let mut backends = Backends::new();
    for proxy in proxies.iter().filter(|proxy| has_servers(proxy)) {
        let name = plan.name(Kind::Backend, &proxy.name);
        let part = backend::part(proxy, &name, &base, findings);
        plan.backends.push(part);
        backends.insert(proxy.name.clone(), (proxy, name));
    }
    let look = Look { directory, base: &base };
    for proxy in proxies.iter().filter(|proxy| proxy.kind != "backend") {
        frontend::add(plan, proxy, &backends, &look, findings);
    }
}

/// A `listen` may lead to other sections only.
fn has_servers(proxy: &Proxy) -> bool {
    match proxy.kind.as_str() {
        "backend" => true,
        "listen" => !proxy.servers.is_empty(),
        _ => false,
    }
}
