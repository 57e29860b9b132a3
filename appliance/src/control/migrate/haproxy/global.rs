//! `global` and `resolvers`: what is of the whole process.

use crate::control::migrate::findings::Findings;
use crate::control::migrate::haproxy::words::{Section, time};
use crate::control::migrate::plan::{Table, Value, duration};

/// Keywords of `global`, each with what Ringway has in its place. They say nothing about where
/// traffic goes.
const PROCESS: &[(&str, &str)] = &[
    ("chroot", "the systemd unit of images/ confines the process"),
    ("cpu-map", "see workers.cores"),
    ("daemon", "Ringway stays in the foreground, as systemd wants it"),
    ("group", "see `user`, which brings its groups"),
    ("log", "see access_log"),
    ("log-tag", "see access_log"),
    ("master-worker", "`ringway upgrade` starts a new process"),
    ("maxconn", "see limits.sessions, which is of each worker and automatic"),
    ("nbproc", "see workers.cores: one worker for each core"),
    ("nbthread", "see workers.cores: one worker for each core"),
    ("node", "each gateway is told by its address"),
    ("pidfile", "systemd knows the process"),
    ("ssl-default-bind-ciphers", "Ringway has the ciphers of rustls"),
    ("ssl-default-bind-ciphersuites", "Ringway has the ciphers of rustls"),
    ("ssl-default-bind-curves", "Ringway has the groups of rustls"),
    ("ssl-default-bind-options", "TLS 1.2 is Ringway's oldest version; see tls.min_version"),
    ("ssl-default-server-ciphers", "Ringway has the ciphers of rustls"),
    ("ssl-default-server-ciphersuites", "Ringway has the ciphers of rustls"),
    ("ssl-default-server-options", "TLS 1.2 is Ringway's oldest version"),
    ("ssl-dh-param-file", "Ringway has the groups of rustls"),
    ("stats", "see admin.socket; `ringway sessions` and `ringway drain` use it"),
    ("uid", "see `user`"),
    ("ulimit-n", "systemd's LimitNOFILE says how many files"),
    ("user", "see `user`; the package has a user of its own"),
];

/// Directories in which certificates are looked for.
#[derive(Debug, Default)]
pub struct Bases {
    ca: Option<String>,
    crt: Option<String>,
}

impl Bases {
    /// The path of a file that is named by `ca` or `crt`.
    pub fn path(&self, kind: &str, file: &str) -> String {
        let base = if kind == "ca" { &self.ca } else { &self.crt };
        match base {
            Some(base) if !file.starts_with('/') => {
                format!("{}/{file}", base.trim_end_matches('/'))
            }
            _ => file.to_owned(),
        }
    }
}

/// Reads a section `global`.
pub fn read(section: &Section, bases: &mut Bases, head: &mut Table, findings: &mut Findings) {
    for line in &section.lines {
        let value = line.words.get(1).map_or("", String::as_str);
        let word = line.words[0].as_str();
        match word {
            "ca-base" => bases.ca = Some(value.to_owned()),
            "crt-base" => bases.crt = Some(value.to_owned()),
            "hard-stop-after" => match time(value) {
                Ok(time) => head.set("drain_timeout", duration(time)),
                Err(why) => findings.loss(line.at, format!("{word}: {why}")),
            },
            _ if word.starts_with("tune.") || word.starts_with("no") => {
                findings.note(line.at, format!("{word}: Ringway tunes itself; see limits"));
            }
            _ => {
                let known = PROCESS.iter().find(|(name, _)| *name == word);
                let why = known.map_or("Ringway's process has no counterpart", |(_, why)| why);
                findings.note(line.at, format!("{word}: {why}"));
            }
        }
    }
}

/// Reads a section `resolvers`: its servers. All backends of Ringway share one resolver.
pub fn resolvers(section: &Section, head: &mut Table, findings: &mut Findings) {
    let mut servers: Vec<Value> = Vec::new();
    for line in &section.lines {
        match (line.words[0].as_str(), line.words.get(2)) {
            ("nameserver", Some(server)) => {
                let server = server.trim_start_matches("udp@").replacen("tcp@", "tcp:", 1);
                servers.push(server.into());
            }
            ("parse-resolv-conf", _) => {}
            (word, _) => {
                let text = "Ringway follows the TTL of records; see resolver.min_ttl and keep";
                findings.note(line.at, format!("{word}: {text}"));
            }
        }
    }
    if head.get("resolver").is_some() {
        let text = "Ringway has one resolver, and the servers of the first section count";
        findings.loss(section.at, format!("resolvers {}: {text}", section.name));
    } else if !servers.is_empty() {
        head.set("resolver", Table::of([("servers", Value::List(servers))]));
    }
}
