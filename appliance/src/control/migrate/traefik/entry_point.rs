//! Entry points: where Traefik listens. They stand in its static configuration.

use std::collections::BTreeMap;

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::traefik::service::time;
use crate::control::migrate::tree::Node;

#[derive(Clone, Debug)]
pub struct EntryPoint {
    pub at: At,
    pub udp: bool,
    pub addresses: Vec<String>,
    /// Who may say who the client is.
    pub proxies: Option<Vec<String>>,
    /// How long a flow may be silent, in milliseconds.
    pub timeout: u64,
}

/// Reads `entryPoints` and what the command line gives.
pub fn read(
    nodes: &[Node],
    given: &[(String, String)],
    findings: &mut Findings,
) -> BTreeMap<String, EntryPoint> {
    let mut all = BTreeMap::new();
    for node in nodes.iter().filter_map(|node| node.get("entryPoints")) {
        for (name, of) in node.entries() {
            let text = of.text_of("address").unwrap_or_default();
            match point(of.at, text) {
                Ok(mut point) => {
                    options(&mut point, of, findings);
                    all.insert(name.to_owned(), point);
                }
                Err(why) => findings.loss(of.at, format!("entry point {name}: {why}")),
            }
        }
    }
    for (name, text) in given {
        match point(At { file: 0, line: 1 }, text) {
            Ok(point) => _ = all.insert(name.clone(), point),
            Err(why) => {
                findings.loss(At { file: 0, line: 1 }, format!("--entry-point {name}: {why}"));
            }
        }
    }
    all
}

fn point(at: At, text: &str) -> Result<EntryPoint, String> {
    let (address, kind) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let udp = match kind {
        "tcp" => false,
        "udp" => true,
        other => return Err(format!("{other:?} is neither tcp nor udp")),
    };
    let (host, port) = address.rsplit_once(':').unwrap_or(("", ""));
    let port: u16 = port.parse().map_err(|_| format!("{text:?} has no port"))?;
    let is_ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    let addresses = match host {
        // Go listens for both IP versions.
        "" | "[::]" => vec![format!("0.0.0.0:{port}"), format!("[::]:{port}")],
        host if is_ip => vec![format!("{host}:{port}")],
        host => return Err(format!("{host:?} is a name: write its address")),
    };
    Ok(EntryPoint { at, udp, addresses, proxies: None, timeout: 3_000 })
}

fn options(point: &mut EntryPoint, node: &Node, findings: &mut Findings) {
    for (key, of) in node.entries() {
        match key {
            "address" | "asDefault" | "reusePort" => {}
            "proxyProtocol" if of.is_true("insecure") => {
                point.proxies = Some(vec!["0.0.0.0/0".into(), "::/0".into()]);
                let text = "every sender is believed, as by Traefik: name your load balancers";
                findings.note(of.at, format!("proxyProtocol.insecure: {text}"));
            }
            "proxyProtocol" => {
                let list = of.get("trustedIPs").map(Node::items).unwrap_or_default();
                let list = list.iter().filter_map(Node::text).map(str::to_owned).collect();
                point.proxies = Some(list);
                let text = "these senders must send a header, which Traefik leaves to them";
                findings.note(of.at, format!("proxyProtocol.trustedIPs: {text}"));
            }
            "udp" => {
                let text = of.text_of("timeout").unwrap_or("3");
                match time(text, 1_000) {
                    Ok(time) => point.timeout = time,
                    Err(why) => findings.loss(of.at, format!("udp.timeout: {why}")),
                }
            }
            "http" | "http2" | "http3" | "forwardedHeaders" | "observability" => {}
            "transport" => {
                findings.note(of.at, "transport: see drain_timeout, and the listener's timeouts");
            }
            _ => findings.loss(of.at, format!("{key}: has no counterpart")),
        }
    }
}
