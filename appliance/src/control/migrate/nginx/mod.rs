//! `nginx.conf`: its `stream` block.

mod listen;
mod map;
mod server;
mod upstream;
mod words;

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::plan::{Part, Plan, Table, Value};
use server::Stream;
use words::Directive;
pub use words::time;

/// Reads files as if they stood one after the other. A file may be a whole `nginx.conf`, or a part
/// that stands in its `stream` block.
///
/// # Errors
/// The text is no nginx configuration.
pub fn migrate(texts: &[&str], findings: &mut Findings) -> Result<Plan, (At, String)> {
    let mut all = Vec::new();
    for (file, text) in texts.iter().enumerate() {
        let read = words::directives(file, text)?;
        let is_block = |of: &Directive, name: &str| of.name() == name && of.block.is_some();
        let whole = read.iter().any(|of| is_block(of, "stream") || is_block(of, "http"));
        all.extend(read.into_iter().map(|of| (whole, of)));
    }
    let mut inside = Vec::new();
    for (whole, directive) in &all {
        let whole = *whole;
        match directive.name() {
            "stream" if directive.block.is_some() => {
                inside.extend(directive.block.iter().flatten())
            }
            "server" | "upstream" | "map" if !whole => inside.push(directive),
            "http" | "mail" => {
                let name = directive.name();
                let text = "Ringway carries connections and reads no request";
                findings.loss(directive.at, format!("{name}: is left out: {text}"));
            }
            // Debian's modules are loaded so.
            "include" if directive.value().contains("modules") => {}
            "include" => findings.loss(directive.at, not_followed(directive)),
            _ if !whole && KNOWN_PARTS.contains(&directive.name()) => inside.push(directive),
            name => {
                let text = "Ringway's process needs no counterpart";
                findings.note(directive.at, format!("{name}: {text}"));
            }
        }
    }
    let mut plan = Plan::default();
    let servers = gather(&mut plan, &inside, findings);
    let mut stream = servers.0;
    for server in servers.1 {
        server::add(&mut plan, server, &mut stream, findings);
    }
    count_together(&mut plan);
    for (name, block) in &stream.upstreams.blocks {
        if !plan.backends.iter().any(|part| part.at == block.at) {
            findings.note(block.at, format!("upstream {name}: is left out: nothing leads to it"));
        }
    }
    Ok(plan)
}

fn not_followed(directive: &Directive) -> String {
    format!("{}: is not followed: give those files too", directive.text())
}

/// Clients that one zone counts at several listeners are counted there together.
fn count_together(plan: &mut Plan) {
    let zone = |part: &Part| {
        let Some(Value::Table(limit)) = part.table.get("limit_source") else { return None };
        limit.get("shared").cloned()
    };
    let zones: Vec<_> = plan.listeners.iter().filter_map(zone).collect();
    for part in &mut plan.listeners {
        let uses = zones.iter().filter(|of| zone(part).as_ref() == Some(of)).count();
        let limit = part.table.0.iter_mut().find(|(key, _)| *key == "limit_source");
        if uses == 1
            && let Some((_, Value::Table(Table(keys)))) = limit
        {
            keys.retain(|(key, _)| *key != "shared");
        }
    }
}

/// What may stand beside `server` in a part of a `stream` block.
const KNOWN_PARTS: &[&str] =
    &["allow", "deny", "limit_conn_zone", "proxy_connect_timeout", "proxy_timeout", "resolver"];

fn gather<'d>(
    plan: &mut Plan,
    inside: &[&'d Directive],
    findings: &mut Findings,
) -> (Stream<'d>, Vec<&'d Directive>) {
    let mut stream = Stream::default();
    let mut servers = Vec::new();
    for directive in inside {
        match directive.name() {
            "server" => servers.push(*directive),
            "upstream" => {
                stream.upstreams.blocks.insert(directive.value().to_owned(), directive);
            }
            "map" => stream.maps.extend(map::read(directive, findings)),
            "limit_conn_zone" if directive.value() == "$binary_remote_addr" => {
                let named = directive.words.iter().find_map(|word| word.strip_prefix("zone="));
                let name = named.and_then(|of| of.split(':').next()).unwrap_or_default();
                stream.zones.push(name.to_owned());
            }
            "include" => findings.loss(directive.at, not_followed(directive)),
            "resolver" => resolver(plan, directive),
            "variables_hash_bucket_size"
            | "variables_hash_max_size"
            | "map_hash_bucket_size"
            | "map_hash_max_size"
            | "resolver_timeout"
            | "limit_conn_log_level" => {}
            _ => stream.common.push(directive),
        }
    }
    (stream, servers)
}

fn resolver(plan: &mut Plan, directive: &Directive) {
    let servers = directive.words[1..].iter().filter(|word| !word.contains('='));
    let servers: Vec<Value> = servers.map(|word| word.as_str().into()).collect();
    plan.head.set("resolver", Table::of([("servers", Value::List(servers))]));
}
