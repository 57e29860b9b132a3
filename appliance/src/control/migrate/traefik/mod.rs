//! Traefik's file provider: routers of TCP and UDP, in YAML or TOML; and entry points, which stand
//! in its static configuration.

mod entry_point;
mod router;
mod rule;
mod service;

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::plan::Plan;
use crate::control::migrate::tree::{self, Node};
use router::Dynamic;
use service::Services;

/// Reads files of both kinds. `names` say which are TOML; `entry_points` are more of them, each a
/// name and an address.
///
/// # Errors
/// A text is neither YAML nor TOML.
pub fn migrate(
    files: &[(&str, &str)],
    entry_points: &[(String, String)],
    findings: &mut Findings,
) -> Result<Plan, (At, String)> {
    let mut nodes = Vec::new();
    for (file, (name, text)) in files.iter().enumerate() {
        match name.ends_with(".toml") {
            true => nodes.push(tree::toml(file, text)?),
            false => nodes.extend(tree::yaml(file, text)?),
        }
    }
    for node in &nodes {
        for (key, of) in node.entries() {
            match key {
                "tcp" | "udp" | "tls" | "entryPoints" => {}
                "http" => {
                    let text = "Ringway carries connections and reads no request";
                    findings.loss(of.at, format!("http: is left out: {text}"));
                }
                "certificatesResolvers" => {
                    findings.loss(of.at, format!("{key}: Ringway gets no certificates itself"));
                }
                "providers" => {
                    findings.note(of.at, "providers: only the given files are read");
                }
                _ => findings.note(of.at, format!("{key}: Ringway's process has its own")),
            }
        }
    }
    let points = entry_point::read(&nodes, entry_points, findings);
    let mut plan = Plan::default();
    let dynamic = Dynamic::of(&nodes, findings);
    let of_kind = |kind: &str| {
        let mut services = Services::new(kind == "udp");
        for node in nodes.iter().filter_map(|node| node.get(kind)) {
            let named = |key: &str| {
                let entries = node.get(key).into_iter().flat_map(Node::entries);
                entries.map(|(name, of)| (name.to_owned(), of)).collect::<Vec<_>>()
            };
            services.nodes.extend(named("services"));
            services.transports.extend(named("serversTransports"));
        }
        services
    };
    dynamic.tcp(&mut plan, &points, &mut of_kind("tcp"), findings);
    dynamic.udp(&mut plan, &points, &mut of_kind("udp"), findings);
    Ok(plan)
}
