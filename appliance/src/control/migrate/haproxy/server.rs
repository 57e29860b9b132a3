//! `server` and `server-template` lines.

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::haproxy::address;
use crate::control::migrate::haproxy::words::{Line, time};
use crate::control::migrate::plan::{Table, Value, duration};

/// One server of a backend.
#[derive(Clone, Debug, Default)]
pub struct Server {
    pub at: At,
    pub name: String,
    pub address: String,
    pub weight: Option<u64>,
    pub backup: bool,
    pub disabled: bool,
    pub maxconn: u64,
    /// Keys that in Ringway are the backend's: servers can't differ in them. Those of `wire` are
    /// about the bytes that the server expects.
    pub wire: Table,
    pub shared: Table,
    pub tls: Option<Tls>,
    pub check: Option<Check>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tls {
    pub no_verify: bool,
    pub names: Vec<String>,
    pub keys: Table,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Check {
    pub agent: bool,
    pub inter: Option<u64>,
    pub keys: Table,
}

/// Reads a line, after the `default-server` lines before it.
pub fn read(
    line: &Line,
    defaults: &[Line],
    base: &dyn Fn(&str, &str) -> String,
    findings: &mut Findings,
) -> Option<Server> {
    let template = line.words[0] == "server-template";
    let [_, name, rest @ ..] = &line.words[..] else {
        findings.loss(line.at, "the server has no name");
        return None;
    };
    let rest = if template { rest.get(1..).unwrap_or_default() } else { rest };
    let Some((address, words)) = rest.split_first() else {
        findings.loss(line.at, format!("the server {name} has no address"));
        return None;
    };
    let srv = template && address.starts_with('_');
    let address = match srv {
        true => Ok(format!("srv:{address}")),
        false => address::server(address),
    };
    let address = match address {
        Ok(address) => address,
        Err(why) => {
            findings.loss(line.at, format!("the server {name} is left out: {why}"));
            return None;
        }
    };
    if template {
        let text = "all addresses of the name are taken, however many there are";
        findings.note(line.at, format!("server-template {name}: {text}"));
    }
    let mut server = Server { at: line.at, name: name.clone(), address, ..Server::default() };
    let mut asked = Asked::default();
    for default in defaults {
        let mut words = Words { rest: &default.words[1..], at: default.at };
        server.options(&mut words, &mut asked, base, findings);
    }
    let mut words = Words { rest: words, at: line.at };
    server.options(&mut words, &mut asked, base, findings);
    server.finish(asked);
    Some(server)
}

/// What flags ask for, before it is known whether a later flag takes it back.
#[derive(Default)]
struct Asked {
    check: bool,
    agent: bool,
    ssl: bool,
    tls: Tls,
    inter: Option<u64>,
    check_keys: Table,
    agent_keys: Table,
    agent_inter: Option<u64>,
}

struct Words<'w> {
    rest: &'w [String],
    at: At,
}

impl<'w> Words<'w> {
    fn next(&mut self) -> Option<&'w str> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn value(&mut self) -> &'w str {
        self.next().unwrap_or_default()
    }
}

/// Keywords with a value that have no counterpart.
const LOST: &[(&str, &str)] = &[
    ("addr", "checks go to the server's own address"),
    ("agent-addr", "agents are asked at the server's own address"),
    ("check-alpn", "checks offer the backend's protocols"),
    ("check-proto", "checks speak HTTP/1.1"),
    ("ciphers", "Ringway has the ciphers of rustls"),
    ("ciphersuites", "Ringway has the ciphers of rustls"),
    ("cookie", "HAProxy ignores it in mode tcp too"),
    ("crl-file", "lists of revoked servers are not looked at"),
    ("error-limit", "see backends.eject"),
    ("maxqueue", "see backends.queue"),
    ("minconn", "limits of servers do not grow with the load"),
    ("namespace", "Ringway stays in its own network namespace; see backends.interface"),
    ("observe", "see backends.eject, which counts failures"),
    ("on-error", "see backends.eject"),
    ("on-marked-up", "sessions on backups stay"),
    ("pool-max-conn", "connections are not kept"),
    ("proto", "Ringway carries bytes of any protocol"),
    ("redir", "HAProxy ignores it in mode tcp too"),
    ("resolve-net", "all addresses of a name are taken"),
    ("resolve-prefer", "addresses of both IP versions are taken"),
    ("ssl-max-ver", "the newest version is offered"),
    ("track", "each backend checks for itself"),
    ("ws", "HAProxy ignores it in mode tcp too"),
];

/// Keywords with a value about which nothing is lost.
const SILENT: &[&str] = &["id", "init-addr", "resolvers", "resolve-opts", "ssl-min-ver"];

impl Server {
    fn options(
        &mut self,
        words: &mut Words<'_>,
        asked: &mut Asked,
        base: &dyn Fn(&str, &str) -> String,
        findings: &mut Findings,
    ) {
        let at = words.at;
        while let Some(word) = words.next() {
            let word = word.to_owned();
            let handled = self.of_traffic(&word, words, findings)
                || of_checks(&word, words, asked, findings)
                || of_tls(&word, words, asked, base, findings);
            if handled {
                continue;
            }
            if let Some((_, why)) = LOST.iter().find(|(name, _)| *name == word) {
                findings.loss(at, format!("{word} {}: is left out: {why}", words.value()));
            } else if SILENT.contains(&word.as_str()) {
                words.value();
            } else {
                findings.loss(at, format!("{word}: has no counterpart in Ringway"));
            }
        }
    }

    /// What the server gets, and how.
    fn of_traffic(&mut self, word: &str, words: &mut Words<'_>, findings: &mut Findings) -> bool {
        match word {
            "weight" => self.weight = Some(number(word, words, findings).min(256)),
            "backup" => self.backup = true,
            "no-backup" => self.backup = false,
            "disabled" => self.disabled = true,
            "enabled" => self.disabled = false,
            "maxconn" => self.maxconn = number(word, words, findings),
            "send-proxy" => self.wire.set("send_proxy", "v1"),
            "send-proxy-v2" | "send-proxy-v2-ssl" | "send-proxy-v2-ssl-cn" => {
                self.wire.set("send_proxy", "v2");
            }
            "no-send-proxy" | "no-send-proxy-v2" => {
                self.wire.0.retain(|(key, _)| *key != "send_proxy");
            }
            "proxy-v2-options" => self.proxy_options(words, findings),
            "slowstart" => {
                self.shared.set_some("slow_start", milliseconds(word, words, findings));
            }
            "tcp-ut" => self.shared.set_some("user_timeout", milliseconds(word, words, findings)),
            "on-marked-down" => match words.value() {
                "shutdown-sessions" => {
                    self.shared.set("on_down", "close");
                    self.shared.set("close_after", "0s");
                }
                other => findings.loss(words.at, format!("on-marked-down {other}: is not known")),
            },
            "source" => source(words, &mut self.shared, findings),
            "tfo" => findings.note(words.at, "tfo: connections begin without TCP Fast Open"),
            "no-tfo" | "stick" | "non-stick" => {}
            _ => return false,
        }
        true
    }

    fn proxy_options(&mut self, words: &mut Words<'_>, findings: &mut Findings) {
        let mut tlvs: Vec<Value> = Vec::new();
        for option in words.value().split(',') {
            match option {
                "unique-id" | "crc32c" => tlvs.push(option.into()),
                // Ringway always sends these.
                "ssl" | "cert-cn" | "ssl-cipher" | "authority" => {}
                other => findings.loss(words.at, format!("proxy-v2-options {other}: is not sent")),
            }
        }
        if !tlvs.is_empty() {
            self.wire.set("proxy_tlvs", Value::List(tlvs));
        }
    }

    fn finish(&mut self, mut asked: Asked) {
        // Ringway verifies certificates, but for those of checks that are not to.
        if asked.tls.no_verify && !asked.ssl && asked.check_keys.get("tls").is_some() {
            asked.check_keys.set("verify", false);
        }
        self.tls = asked.ssl.then_some(asked.tls);
        self.check = match (asked.check, asked.agent) {
            (true, _) => Some(Check { agent: false, inter: asked.inter, keys: asked.check_keys }),
            (false, true) => {
                Some(Check { agent: true, inter: asked.agent_inter, keys: asked.agent_keys })
            }
            (false, false) => None,
        };
    }
}

/// `source ADDRESS [usesrc clientip] [interface NAME]`, of servers and backends.
pub fn source_words(words: &[String], at: At, keys: &mut Table, findings: &mut Findings) {
    source(&mut Words { rest: words, at }, keys, findings);
}

fn source(words: &mut Words<'_>, keys: &mut Table, findings: &mut Findings) {
    let address = words.value();
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches("ipv4@").trim_matches(['[', ']']);
    let ip = host.parse::<std::net::IpAddr>().ok().filter(|ip| !ip.is_unspecified());
    if let Some(ip) = ip {
        keys.set("source", vec![ip.to_string()]);
    }
    loop {
        match words.rest.first().map(String::as_str) {
            Some("usesrc") => {
                words.next();
                match words.value() {
                    "clientip" | "client" => {
                        keys.0.retain(|(key, _)| *key != "source");
                        keys.set("transparent", true);
                    }
                    other => findings.loss(words.at, format!("usesrc {other}: is left out")),
                }
            }
            Some("interface") => {
                words.next();
                keys.set("interface", words.value());
            }
            _ => break,
        }
    }
    if ip.is_none() && keys.0.is_empty() && !["0.0.0.0", "*", "::"].contains(&host) {
        findings.loss(words.at, format!("source {address}: is no IP address"));
    }
}

fn of_checks(
    word: &str,
    words: &mut Words<'_>,
    asked: &mut Asked,
    findings: &mut Findings,
) -> bool {
    match word {
        "check" => asked.check = true,
        "no-check" => asked.check = false,
        "inter" => asked.inter = Some(value(word, words, findings)),
        "fastinter" => {
            asked.check_keys.set_some("fast_interval", milliseconds(word, words, findings));
        }
        "downinter" => {
            asked.check_keys.set_some("down_interval", milliseconds(word, words, findings));
        }
        "rise" => asked.check_keys.set("rise", number(word, words, findings).clamp(1, 100)),
        "fall" => asked.check_keys.set("fall", number(word, words, findings).clamp(1, 100)),
        "port" => asked.check_keys.set("port", number(word, words, findings).min(65_535)),
        "check-ssl" => asked.check_keys.set("tls", true),
        "no-check-ssl" => asked.check_keys.set("tls", false),
        "check-sni" => asked.check_keys.set("server_name", words.value()),
        "check-send-proxy" => asked.check_keys.set("send_proxy", "v1"),
        "agent-check" => asked.agent = true,
        "no-agent-check" => asked.agent = false,
        "agent-port" => asked.agent_keys.set("port", number(word, words, findings).min(65_535)),
        "agent-inter" => asked.agent_inter = Some(value(word, words, findings)),
        "agent-send" => asked.agent_keys.set("send", words.value()),
        _ => return false,
    }
    if word == "agent-check" && asked.check || word == "check" && asked.agent {
        let text = "Ringway asks one health check of each backend: the agent is not asked";
        findings.loss(words.at, format!("agent-check: {text}"));
    }
    true
}

fn of_tls(
    word: &str,
    words: &mut Words<'_>,
    asked: &mut Asked,
    base: &dyn Fn(&str, &str) -> String,
    findings: &mut Findings,
) -> bool {
    match word {
        "ssl" => asked.ssl = true,
        "no-ssl" => asked.ssl = false,
        "verify" => asked.tls.no_verify = words.value() == "none",
        "verifyhost" => asked.tls.names.insert(0, words.value().to_owned()),
        "sni" => {
            let sni = words.value();
            match sni.strip_prefix("str(").and_then(|rest| rest.strip_suffix(')')) {
                Some(name) => asked.tls.names.push(name.to_owned()),
                None => findings.loss(
                    words.at,
                    format!("sni {sni}: Ringway sends one name to all servers of a backend"),
                ),
            }
        }
        // The system's own certificates are Ringway's default.
        "ca-file" => match words.value() {
            "@system-ca" => {}
            file => asked.tls.keys.set("ca", base("ca", file)),
        },
        "crt" => {
            let file = base("crt", words.value());
            asked.tls.keys.set("cert", file.clone());
            asked.tls.keys.set("key", file);
        }
        "alpn" => {
            let all: Vec<_> = words.value().split(',').map(str::to_owned).collect();
            asked.tls.keys.set("alpn", all);
        }
        "no-sslv3" | "no-tlsv10" | "no-tlsv11" | "no-tls-tickets" | "no-ssl-reuse"
        | "ssl-reuse" | "no-verifyhost" | "force-tlsv13" => {}
        _ => return false,
    }
    true
}

fn number(word: &str, words: &mut Words<'_>, findings: &mut Findings) -> u64 {
    let text = words.value();
    text.parse().unwrap_or_else(|_| {
        findings.loss(words.at, format!("{word} {text}: is no number"));
        1
    })
}

fn value(word: &str, words: &mut Words<'_>, findings: &mut Findings) -> u64 {
    let text = words.value();
    time(text).unwrap_or_else(|why| {
        findings.loss(words.at, format!("{word}: {why}"));
        2_000
    })
}

fn milliseconds(word: &str, words: &mut Words<'_>, findings: &mut Findings) -> Option<String> {
    match time(words.value()) {
        Ok(milliseconds) => Some(duration(milliseconds)),
        Err(why) => {
            findings.loss(words.at, format!("{word}: {why}"));
            None
        }
    }
}
