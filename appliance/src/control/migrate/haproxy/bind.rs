//! `bind` lines: addresses, and TLS that ends there.

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::haproxy::address;
use crate::control::migrate::haproxy::words::{Line, time};
use crate::control::migrate::plan::{Table, Value, duration};

/// Addresses that have all their options in common.
#[derive(Debug)]
pub struct Bind {
    pub at: At,
    pub addresses: Vec<String>,
    /// Keys of a listener.
    pub keys: Table,
    /// The key `tls`, where TLS ends here.
    pub tls: Option<Table>,
}

/// What the parser can't know by itself.
pub struct Look<'l> {
    /// The files of a directory, in the order of their names; `None` if it is none.
    pub directory: &'l dyn Fn(&str) -> Option<Vec<String>>,
    /// The path of a file that is named by `ca` or `crt`.
    pub base: &'l dyn Fn(&str, &str) -> String,
}

/// Reads all lines of a section.
pub fn groups(lines: &[Line], look: &Look<'_>, findings: &mut Findings) -> Vec<Bind> {
    let mut groups: Vec<Bind> = Vec::new();
    for line in lines {
        let Some(bind) = read(line, look, findings) else { continue };
        match groups.iter_mut().find(|other| other.keys == bind.keys && other.tls == bind.tls) {
            Some(group) => {
                for address in bind.addresses {
                    if !group.addresses.contains(&address) {
                        group.addresses.push(address);
                    }
                }
            }
            None => groups.push(bind),
        }
    }
    groups
}

/// Keywords with a value that have no counterpart.
const LOST: &[(&str, &str)] = &[
    ("backlog", "see tuning/ for net.core.somaxconn"),
    ("ca-sign-file", "Ringway makes no certificates"),
    ("ciphers", "Ringway has the ciphers of rustls"),
    ("ciphersuites", "Ringway has the ciphers of rustls"),
    ("crt-ignore-err", "every fault of a certificate counts"),
    ("crt-list", "name its certificates in listeners.tls.certificates"),
    ("curves", "Ringway has the groups of rustls"),
    ("ecdhe", "Ringway has the groups of rustls"),
    ("maxconn", "see max_sessions, which is of the whole listener"),
    ("mss", "the kernel decides"),
    ("namespace", "Ringway stays in its own network namespace"),
    ("ssl-max-ver", "the newest version is offered"),
];

/// Keywords with a value, and without, about which nothing is lost.
const SILENT: &[&str] = &["id", "level", "name", "nice", "process", "proto", "shards", "thread"];
const FLAGS: &[&str] = &[
    "defer-accept",
    "no-sslv3",
    "no-tlsv10",
    "no-tlsv11",
    "prefer-client-ciphers",
    "ssl",
    "tfo",
    "v4v6",
    "v6only",
    "strict-sni",
];

#[derive(Default)]
struct Tls {
    certificates: Vec<Value>,
    ca: Option<String>,
    verify: Option<String>,
    keys: Table,
}

fn read(line: &Line, look: &Look<'_>, findings: &mut Findings) -> Option<Bind> {
    let text = line.words.get(1).map_or("", String::as_str);
    let has = |word: &str| line.words.iter().skip(2).any(|other| other == word);
    let addresses = match address::bind(text, has("v6only")) {
        Ok(addresses) => addresses,
        Err(why) => {
            findings.loss(line.at, format!("bind {text}: is left out: {why}"));
            return None;
        }
    };
    let unix = addresses.iter().any(|address| address.starts_with("unix:"));
    let (mut keys, mut tls) = (Table::default(), Tls::default());
    let mut words = line.words[2..].iter().map(String::as_str);
    let mut owner = (None, None);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_default();
        match word {
            "accept-proxy" => keys.set("accept_proxy", everyone(unix, line.at, findings)),
            "interface" => keys.set("interface", value()),
            "transparent" => keys.set("freebind", true),
            "mode" => keys.set("mode", format!("{:0>4}", value())),
            "user" | "uid" => owner.0 = Some(value().to_owned()),
            "group" | "gid" => owner.1 = Some(value().to_owned()),
            "tcp-ut" => match time(value()) {
                Ok(time) => keys.set("user_timeout", duration(time)),
                Err(why) => findings.loss(line.at, format!("tcp-ut: {why}")),
            },
            _ if of_tls(word, &mut words, &mut tls, look, line.at, findings) => {}
            _ if SILENT.contains(&word) => _ = words.next(),
            _ if FLAGS.contains(&word) => {}
            _ => match LOST.iter().find(|(name, _)| *name == word) {
                Some((_, why)) => {
                    let value = words.next().unwrap_or_default();
                    findings.loss(line.at, format!("{word} {value}: is left out: {why}"));
                }
                None => findings.loss(line.at, format!("bind {word}: has no counterpart")),
            },
        }
    }
    match owner {
        (None, None) => {}
        (user, None) => keys.set("owner", user.unwrap_or_default()),
        (user, Some(group)) => keys.set("owner", format!("{}:{group}", user.unwrap_or_default())),
    }
    let tls = has("ssl").then(|| terminate(tls, has("strict-sni"), line.at, findings));
    Some(Bind { at: line.at, addresses, keys, tls })
}

fn of_tls<'w>(
    word: &str,
    words: &mut impl Iterator<Item = &'w str>,
    tls: &mut Tls,
    look: &Look<'_>,
    at: At,
    findings: &mut Findings,
) -> bool {
    let mut value = || words.next().unwrap_or_default();
    match word {
        "crt" => {
            let path = (look.base)("crt", value());
            let files = (look.directory)(&path).unwrap_or_else(|| vec![path]);
            let pair = |file: String| {
                Table::of([("cert", file.as_str().into()), ("key", file.into())]).into()
            };
            tls.certificates.extend(files.into_iter().map(pair));
        }
        "ca-file" => tls.ca = Some((look.base)("ca", value())),
        "crl-file" => tls.keys.set("client_crl", (look.base)("ca", value())),
        "verify" => tls.verify = Some(value().to_owned()),
        "alpn" => {
            let all: Vec<_> = value().split(',').map(str::to_owned).collect();
            tls.keys.set("alpn", all);
        }
        "npn" => _ = value(),
        "ssl-min-ver" => match value() {
            "TLSv1.3" => tls.keys.set("min_version", "1.3"),
            "TLSv1.2" => {}
            old => findings.note(at, format!("ssl-min-ver {old}: Ringway's oldest is TLS 1.2")),
        },
        "force-tlsv13" | "no-tlsv12" => tls.keys.set("min_version", "1.3"),
        "no-tls-tickets" => tls.keys.set("session_tickets", false),
        "force-tlsv12" | "no-tlsv13" => {
            findings.loss(at, format!("{word}: the newest version is offered"));
        }
        _ => return false,
    }
    true
}

fn terminate(tls: Tls, strict: bool, at: At, findings: &mut Findings) -> Table {
    let mut keys = Table::of([("mode", "Terminate".into())]);
    if tls.certificates.is_empty() {
        findings.loss(at, "ssl: no `crt` names a certificate");
    }
    // Without strict-sni the first certificate is for names that no other has.
    let first = tls.certificates.first().cloned().filter(|_| !strict);
    keys.set("certificates", Value::List(tls.certificates));
    keys.set_some("default_certificate", first);
    match (tls.verify.as_deref(), tls.ca) {
        (Some("none") | None, Some(ca)) => {
            let text = "no client is asked for a certificate, because `verify` is not there";
            findings.note(at, format!("ca-file {ca}: {text}"));
        }
        (Some("none") | None, None) => {}
        (Some(_), None) => findings.loss(at, "verify: no ca-file says whose certificates are good"),
        (Some(verify), Some(ca)) => {
            keys.set("client_ca", ca);
            if verify == "optional" {
                keys.set("client_auth", "optional");
            }
        }
    }
    keys.0.extend(tls.keys.0);
    keys
}

/// HAProxy believes everyone who comes.
fn everyone(unix: bool, at: At, findings: &mut Findings) -> Value {
    let text = "every sender is believed, as by HAProxy: name your load balancers instead";
    findings.note(at, format!("accept-proxy: {text}"));
    let from = if unix { vec!["unix"] } else { vec!["0.0.0.0/0", "::/0"] };
    Table::of([("from", from.into())]).into()
}
