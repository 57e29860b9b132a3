//! `defaults`, `frontend`, `backend` and `listen`: what their lines say, before it is put together.

use std::collections::BTreeMap;

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::haproxy::acl::{self, Acls};
use crate::control::migrate::haproxy::words::{Line, Section, time};

/// One section, with what its `defaults` say.
#[derive(Clone, Debug, Default)]
pub struct Proxy {
    pub at: At,
    pub kind: String,
    pub name: String,
    pub is_http: bool,
    pub binds: Vec<Line>,
    pub acls: Acls,
    pub use_backend: Vec<Line>,
    pub default_backend: Option<(At, String)>,
    pub tcp_request: Vec<Line>,
    /// Each with the `default-server` words that stand before it.
    pub servers: Vec<(Line, Vec<Line>)>,
    default_server: Vec<Line>,
    pub timeouts: BTreeMap<String, u64>,
    pub balance: Option<Line>,
    pub stick: Option<At>,
    /// Which `option ...-check` counts.
    pub check: Option<Line>,
    /// `tcp-check` and `http-check` lines.
    pub check_lines: Vec<Line>,
    pub maxconn: Option<(At, u64)>,
    pub retries: Option<u64>,
    pub source: Option<Line>,
    pub all_backups: bool,
}

/// Options that Ringway keeps by nature, or that only make HAProxy faster.
const BY_NATURE: &[&str] = &[
    "abortonclose",
    "clitcpka",
    "dontlog-normal",
    "dontlognull",
    "log-health-checks",
    "logasap",
    "redispatch",
    "splice-auto",
    "splice-request",
    "splice-response",
    "srvtcpka",
    "tcp-smart-accept",
    "tcp-smart-connect",
    "tcpka",
    "tcplog",
];

/// Keywords and options that HAProxy itself ignores without `mode http`.
const OF_HTTP: &[&str] = &[
    "accept-invalid-http-request",
    "accept-invalid-http-response",
    "capture",
    "compression",
    "cookie",
    "errorfile",
    "errorfiles",
    "errorloc",
    "forceclose",
    "forwardfor",
    "forwarded",
    "http-after-response",
    "http-buffer-request",
    "http-error",
    "http-ignore-probes",
    "http-keep-alive",
    "http-pretend-keepalive",
    "http-request",
    "http-response",
    "http-reuse",
    "http-send-name-header",
    "http-server-close",
    "http-use-htx",
    "http-use-proxy-header",
    "httpclose",
    "httplog",
    "monitor-uri",
    "originalto",
    "redirect",
    "stats",
];

/// The kinds of health checks.
const CHECKS: &[&str] = &[
    "external-check",
    "httpchk",
    "ldap-check",
    "mysql-check",
    "pgsql-check",
    "redis-check",
    "smtpchk",
    "spop-check",
    "ssl-hello-chk",
    "tcp-check",
];

/// Lines that say nothing about traffic.
const SILENT: &[&str] = &["description", "disabled", "enabled", "id"];

/// Reads a section. `defaults` are what counts for it already.
pub fn read(section: &Section, defaults: &Proxy, findings: &mut Findings) -> Proxy {
    let mut proxy = Proxy {
        at: section.at,
        kind: section.kind.clone(),
        name: section.name.clone(),
        ..defaults.clone()
    };
    for line in section.lines.iter().filter(|line| line.words[0] == "mode") {
        proxy.is_http = line.words.get(1).is_some_and(|mode| mode == "http");
    }
    if section.kind != "defaults" && proxy.is_http {
        return proxy;
    }
    if section.lines.iter().any(|line| line.words == ["disabled"]) {
        findings.note(section.at, "the section is disabled here; it is carried over all the same");
    }
    for line in &section.lines {
        proxy.line(line, findings);
    }
    proxy
}

impl Proxy {
    fn line(&mut self, line: &Line, findings: &mut Findings) {
        let second = line.words.get(1).map_or("", String::as_str);
        match line.words[0].as_str() {
            "mode" if ["tcp", "http"].contains(&second) => {}
            "bind" => self.binds.push(line.clone()),
            "acl" => acl::define(&mut self.acls, line, findings),
            "use_backend" => self.use_backend.push(line.clone()),
            "default_backend" => self.default_backend = Some((line.at, second.to_owned())),
            "tcp-request" => self.tcp_request.push(line.clone()),
            "server" | "server-template" => {
                self.servers.push((line.clone(), self.default_server.clone()));
            }
            "default-server" => self.default_server.push(line.clone()),
            "balance" => self.balance = Some(line.clone()),
            "hash-type" if second == "consistent" => {}
            "hash-type" => {
                let text = "Ringway's hash moves few clients when servers change, and no other";
                findings.note(line.at, format!("hash-type {second}: {text}"));
            }
            "timeout" => self.timeout(line, second, line.words.get(2), findings),
            "contimeout" => self.timeout(line, "connect", line.words.get(1), findings),
            "clitimeout" => self.timeout(line, "client", line.words.get(1), findings),
            "srvtimeout" => self.timeout(line, "server", line.words.get(1), findings),
            "option" => self.option(line, true, findings),
            "no" if second == "option" => {
                let words = line.words[1..].to_vec();
                self.option(&Line { at: line.at, words }, false, findings);
            }
            "tcp-check" | "http-check" => self.check_lines.push(line.clone()),
            "stick-table" => self.stick_table(line, findings),
            "stick" if line.words[1..] == ["on", "src"] => self.stick = Some(line.at),
            "maxconn" => match second.parse() {
                Ok(count) => self.maxconn = Some((line.at, count)),
                Err(_) => findings.loss(line.at, format!("maxconn {second}: is no number")),
            },
            "retries" => self.retries = second.parse().ok(),
            "source" => self.source = Some(line.clone()),
            "log" | "log-tag" | "log-format" | "log-format-sd" | "error-log-format" | "no" => {
                let text = "Ringway's access log has its own form; see access_log in its reference";
                findings.note(line.at, format!("{}: {text}", line.words[0]));
            }
            keyword if SILENT.contains(&keyword) => {}
            keyword if OF_HTTP.contains(&keyword) => self.of_http(line, keyword, findings),
            _ => findings.loss(line.at, lost(&line.words)),
        }
    }

    fn timeout(
        &mut self,
        line: &Line,
        what: &str,
        value: Option<&String>,
        findings: &mut Findings,
    ) {
        let known =
            ["check", "client", "client-fin", "connect", "queue", "server", "server-fin", "tunnel"];
        if ["http-request", "http-keep-alive", "tarpit"].contains(&what) {
            return self.of_http(line, "timeout", findings);
        }
        match time(value.map_or("", String::as_str)) {
            Ok(milliseconds) if known.contains(&what) => {
                self.timeouts.insert(what.to_owned(), milliseconds);
            }
            Ok(_) => findings.loss(line.at, lost(&line.words)),
            Err(why) => findings.loss(line.at, format!("timeout {what}: {why}")),
        }
    }

    fn option(&mut self, line: &Line, on: bool, findings: &mut Findings) {
        let option = line.words.get(1).map_or("", String::as_str);
        match option {
            "allbackups" => self.all_backups = on,
            option if CHECKS.contains(&option) => {
                self.check = on.then(|| line.clone());
                // The rules of an earlier kind of check, from `defaults`, count no longer.
                self.check_lines.clear();
            }
            option if OF_HTTP.contains(&option) => self.of_http(line, option, findings),
            option if BY_NATURE.contains(&option) || !on => {}
            _ => findings.loss(line.at, lost(&line.words)),
        }
    }

    fn of_http(&self, line: &Line, what: &str, findings: &mut Findings) {
        if self.kind != "defaults" {
            findings.note(line.at, format!("{what}: HAProxy ignores it in mode tcp too"));
        }
    }

    /// A table serves `stick on src`. What else it counts is lost.
    fn stick_table(&self, line: &Line, findings: &mut Findings) {
        let has = |word: &str| line.words.iter().any(|other| other == word);
        if has("peers") || has("store") {
            let text = "Ringway has no tables of clients; limit_source limits each source";
            findings.loss(line.at, format!("stick-table: {text}"));
        }
    }
}

/// What is said of a line that has no counterpart.
pub fn lost(words: &[String]) -> String {
    let why = match words[0].as_str() {
        "use-server" => "Ringway chooses among servers by balance alone",
        "filter" | "external-check" => "Ringway runs no programs and filters",
        "email-alert" | "monitor-net" => "Ringway has metrics and alerts in its place",
        "fullconn" => "limits of servers do not grow with the load",
        "rate-limit" => "limit_source has limits for each source, and none for all together",
        "dispatch" => "write the address as a server",
        "stick" => "only `stick on src` has a counterpart",
        "tcp-response" => "Ringway reads nothing that servers say",
        _ => "has no counterpart in Ringway",
    };
    let text = words.join(" ");
    let short: String = text.chars().take(80).collect();
    match why.starts_with("has") {
        true => format!("{short}: {why}"),
        false => format!("{short}: is left out: {why}"),
    }
}
