//! `listen` directives.

use crate::control::migrate::findings::Findings;
use crate::control::migrate::nginx::words::{Directive, time};
use crate::control::migrate::plan::duration;

/// Addresses of one server that have their options in common.
#[derive(Debug, Default, PartialEq)]
pub struct Listen {
    pub addresses: Vec<String>,
    pub udp: bool,
    pub ssl: bool,
    pub proxy_protocol: bool,
    pub keepalive: Option<String>,
}

/// Reads all of a server.
pub fn groups<'d>(
    listens: impl Iterator<Item = &'d Directive>,
    findings: &mut Findings,
) -> Vec<Listen> {
    let mut groups: Vec<Listen> = Vec::new();
    for directive in listens {
        let Some(listen) = read(directive, findings) else { continue };
        let is_same = |other: &&mut Listen| {
            let Listen { addresses: _, udp, ssl, proxy_protocol, keepalive } = &listen;
            (other.udp, other.ssl, other.proxy_protocol, &other.keepalive)
                == (*udp, *ssl, *proxy_protocol, keepalive)
        };
        match groups.iter_mut().find(is_same) {
            Some(group) => {
                for address in listen.addresses {
                    if !group.addresses.contains(&address) {
                        group.addresses.push(address);
                    }
                }
            }
            None => groups.push(listen),
        }
    }
    groups
}

fn read(directive: &Directive, findings: &mut Findings) -> Option<Listen> {
    let at = directive.at;
    let text = directive.value();
    let words = directive.words.get(2..).unwrap_or_default();
    let dual = words.iter().any(|word| word == "ipv6only=off");
    let addresses = match addresses(text, dual) {
        Ok(addresses) => addresses,
        Err(why) => {
            findings.loss(at, format!("listen {text}: is left out: {why}"));
            return None;
        }
    };
    let mut listen = Listen { addresses, ..Listen::default() };
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match name {
            "udp" => listen.udp = true,
            "ssl" => listen.ssl = true,
            "proxy_protocol" => listen.proxy_protocol = true,
            // Every worker of Ringway has a socket of its own.
            "reuseport" | "bind" | "ipv6only" | "default_server" => {}
            // Ringway asks whether clients are there, every minute.
            "so_keepalive" if value == "on" => {}
            "so_keepalive" if value == "off" => listen.keepalive = Some("0s".to_owned()),
            "so_keepalive" => match time(value.split(':').next().unwrap_or_default()) {
                Ok(time) => listen.keepalive = Some(duration(time.min(32_767_000))),
                Err(why) => findings.loss(at, format!("{word}: {why}")),
            },
            "backlog" => findings.note(at, format!("{word}: see tuning/ for net.core.somaxconn")),
            "rcvbuf" | "sndbuf" => {
                findings.note(at, format!("{word}: the kernel sizes buffers; see tuning/"));
            }
            _ => findings.loss(at, format!("listen {word}: has no counterpart")),
        }
    }
    if listen.udp && listen.ssl {
        findings.loss(at, format!("listen {text}: is left out: Ringway ends no TLS over UDP"));
        return None;
    }
    Some(listen)
}

fn addresses(text: &str, dual: bool) -> Result<Vec<String>, String> {
    if text.starts_with("unix:") {
        return Ok(vec![text.to_owned()]);
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => ("*", text),
    };
    let number = |text: &str| text.parse::<u16>().is_ok_and(|port| port > 0);
    let is_range = port.split_once('-').is_some_and(|(from, to)| number(from) && number(to));
    if !number(port) && !is_range {
        return Err("it has no port".to_owned());
    }
    match host {
        "*" | "0.0.0.0" => Ok(vec![format!("0.0.0.0:{port}")]),
        "[::]" if dual => Ok(vec![format!("0.0.0.0:{port}"), format!("[::]:{port}")]),
        "localhost" => Ok(vec![format!("127.0.0.1:{port}")]),
        host if host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok() => {
            Ok(vec![format!("{host}:{port}")])
        }
        host => Err(format!("{host:?} is a name: write its address")),
    }
}
