//! `option ...-check` and its rules, as a health check of Ringway.

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::haproxy::proxy::Proxy;
use crate::control::migrate::haproxy::server::Check;
use crate::control::migrate::haproxy::words::Line;
use crate::control::migrate::plan::{Table, Value, duration};

/// HAProxy's defaults.
const INTER: u64 = 2_000;

/// The table `health_check` of a backend whose servers have this `check`.
/// `ssl`: connections to the servers speak TLS, and so do checks of the servers' own port.
pub fn table(proxy: &Proxy, check: &Check, ssl: bool, findings: &mut Findings) -> Table {
    let mut keys = match check.agent {
        true => Table::of([("type", "agent".into())]),
        false => probe(proxy, findings),
    };
    let interval = check.inter.unwrap_or(INTER).max(100);
    keys.set("interval", duration(interval));
    let timeout = proxy.timeouts.get("check").copied().unwrap_or(interval).clamp(1, interval);
    if timeout != interval.min(2_000) {
        keys.set("timeout", duration(timeout));
    }
    // These two numbers are the defaults of both.
    let is_default = |key: &str, value: &Value| match key {
        "rise" => *value == Value::from(2),
        "fall" => *value == Value::from(3),
        _ => false,
    };
    for (key, value) in check.keys.0.iter().filter(|(key, value)| !is_default(key, value)) {
        keys.set(key, value.clone());
    }
    by_tls(&mut keys, ssl);
    keys
}

/// A check that only connects is, over TLS, one of its own type.
fn by_tls(keys: &mut Table, ssl: bool) {
    let speaks_tls = match keys.get("tls") {
        Some(asked) => *asked == Value::from(true),
        None => ssl && keys.get("port").is_none(),
    };
    if keys.get("type").is_some() || !speaks_tls {
        return;
    }
    keys.0.retain(|(key, _)| *key != "tls");
    keys.0.insert(0, ("type", "tls".into()));
}

fn probe(proxy: &Proxy, findings: &mut Findings) -> Table {
    let Some(Line { at, words }) = &proxy.check else { return Table::default() };
    let kind = |name: &str| Table::of([("type", name.into())]);
    match words[1].as_str() {
        "tcp-check" => steps(&proxy.check_lines, findings),
        "httpchk" => http(&words[2..], &proxy.check_lines, findings),
        "redis-check" => kind("redis"),
        "ssl-hello-chk" => Table::of([("type", "tls".into()), ("verify", false.into())]),
        "mysql-check" => {
            let mut keys = kind("mysql");
            let user = words.iter().position(|word| word == "user");
            keys.set_some("user", user.and_then(|at| words.get(at + 1)).cloned());
            keys
        }
        "pgsql-check" => {
            let text = "Ringway logs in only with `user` and `password_file`; so the check asks \
                        whether PostgreSQL runs";
            findings.loss(*at, format!("pgsql-check: the user is not tried: {text}"));
            kind("postgres")
        }
        "smtpchk" => {
            let hello = match &words[2..] {
                [hello, name, ..] => format!("{hello} {name}"),
                _ => "HELO localhost".to_owned(),
            };
            let said = |text: &str| ("expect_regex", Value::from(text));
            let steps = vec![
                Table::of([said("^2[0-9][0-9]")]),
                Table::of([("send", format!("{hello}\r\n").into()), said("^2[0-9][0-9]")]),
                Table::of([("send", "QUIT\r\n".into())]),
            ];
            Table::of([("type", "exchange".into()), ("steps", steps.into())])
        }
        other => {
            findings.loss(*at, format!("{other}: the check connects, and asks nothing"));
            Table::default()
        }
    }
}

/// `tcp-check` rules. Without any, HAProxy connects and asks nothing.
fn steps(lines: &[Line], findings: &mut Findings) -> Table {
    let mut keys = Table::of([("type", "exchange".into())]);
    let mut steps: Vec<Table> = Vec::new();
    for Line { at, words } in lines.iter().filter(|line| line.words[0] == "tcp-check") {
        match words[1..].iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["connect", ref rest @ ..] if steps.is_empty() => {
                connect(&mut keys, rest, *at, findings)
            }
            ["connect", ..] => findings.loss(*at, "tcp-check connect: a check has one connection"),
            ["send", text, ..] => steps.push(Table::of([("send", text.into())])),
            ["send-binary", text, ..] => steps.push(Table::of([("send_hex", text.into())])),
            ["expect", ref rest @ ..] => {
                let Some((key, text)) = expected(rest) else {
                    findings.loss(*at, format!("{}: is not expected", words.join(" ")));
                    continue;
                };
                // What is said and what is expected then are one step.
                match steps.last_mut() {
                    Some(last) if last.0.len() == 1 && last.0[0].0.starts_with("send") => {
                        last.set(key, text);
                    }
                    _ => steps.push(Table::of([(key, text.into())])),
                }
            }
            ["comment", ..] => {}
            _ => findings.loss(*at, format!("{}: is left out of the check", words.join(" "))),
        }
    }
    if steps.is_empty() {
        keys.0.remove(0);
    } else {
        keys.set("steps", steps);
    }
    keys
}

/// Words such as `[min-recv N] [comment TEXT] string TEXT`.
fn expected<'w>(words: &[&'w str]) -> Option<(&'static str, &'w str)> {
    let mut words = words;
    while let [name, _, rest @ ..] = words {
        if !["comment", "min-recv", "ok-status", "error-status", "tout-status"].contains(name) {
            break;
        }
        words = rest;
    }
    match words {
        ["string", text] => Some(("expect", text)),
        ["rstring", text] => Some(("expect_regex", text)),
        ["binary", text] => Some(("expect_hex", text)),
        _ => None,
    }
}

fn connect(keys: &mut Table, words: &[&str], at: At, findings: &mut Findings) {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().copied().unwrap_or_default();
        match *word {
            "port" => match value().parse::<u16>() {
                Ok(port) => keys.set("port", u64::from(port)),
                Err(_) => findings.loss(at, "port: is no number"),
            },
            "ssl" => keys.set("tls", true),
            "send-proxy" => keys.set("send_proxy", "v1"),
            "sni" => keys.set("server_name", value()),
            "default" | "linger" => {}
            "comment" => _ = value(),
            other => findings.loss(at, format!("connect {other}: is left out of the check")),
        }
    }
}

/// `option httpchk [METHOD] [URI] [VERSION]` and the `http-check` rules.
fn http(words: &[String], lines: &[Line], findings: &mut Findings) -> Table {
    let mut keys = Table::of([("type", "http".into())]);
    let (method, path) = match words {
        [] => ("OPTIONS", "/"),
        [path] => ("OPTIONS", path.as_str()),
        [method, path, ..] => (method.as_str(), path.as_str()),
    };
    keys.set("method", method);
    keys.set("path", path);
    for Line { at, words } in lines.iter().filter(|line| line.words[0] == "http-check") {
        match words[1..].iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["expect", "status", codes] => {
                keys.set("status", codes.split(',').map(str::to_owned).collect::<Vec<_>>());
            }
            ["expect", "string", text] => keys.set("body", text),
            ["expect", "rstring", text] => keys.set("body_regex", text),
            ["connect", ref rest @ ..] => connect(&mut keys, rest, *at, findings),
            ["send", ref rest @ ..] => request(&mut keys, rest, *at, findings),
            ["disable-on-404"] => {
                let text = "a server that answers with 404 is down, and does not drain";
                findings.loss(*at, format!("disable-on-404: {text}"));
            }
            ["send-state"] => findings.loss(*at, "send-state: checks send no state"),
            _ => findings.loss(*at, format!("{}: is left out of the check", words.join(" "))),
        }
    }
    // Requests for GET are the default.
    if keys.get("method") == Some(&Value::from("GET")) {
        keys.0.retain(|(key, _)| *key != "method");
    }
    keys
}

fn request(keys: &mut Table, words: &[&str], at: At, findings: &mut Findings) {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().copied().unwrap_or_default();
        match *word {
            "meth" => keys.set("method", value()),
            "uri" => keys.set("path", value()),
            "ver" => _ = value(),
            "hdr" => match (value(), value()) {
                (name, host) if name.eq_ignore_ascii_case("host") => keys.set("host", host),
                (name, _) => findings.loss(at, format!("hdr {name}: checks send Host alone")),
            },
            other => findings.loss(at, format!("http-check send {other}: is left out")),
        }
    }
}
