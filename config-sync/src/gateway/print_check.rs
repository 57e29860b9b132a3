//! Writes a health check as TOML.

use std::ops::RangeInclusive;

use crate::gateway::print_values::{duration, inline, list, quoted};
use crate::model::health_check::{
    CheckProxy, Dns, Expect, HealthCheck, Http, Kind, Login, RCODES, RECORDS, Sip, Step, Udp,
};
use crate::toml::health_check::{PROXIES, ROLES, SILENCES, TRANSPORTS};

/// The value of `health_check`.
/// `ca` is the value of the key.
pub(super) fn table(check: &HealthCheck, ca: Option<String>) -> String {
    let mut keys = Vec::new();
    if check.kind != Kind::Tcp {
        keys.push(("type", quoted(check.word())));
    }
    let times = [
        ("interval", check.interval, true),
        ("fast_interval", check.fast_interval, check.fast_interval != check.interval),
        ("down_interval", check.down_interval, check.down_interval != check.interval),
        ("jitter", check.jitter, check.jitter != 0),
        ("timeout", check.timeout, true),
    ];
    let times = times.into_iter().filter(|(.., is_given)| *is_given);
    keys.extend(times.map(|(key, millis, _)| (key, quoted(&duration(millis)))));
    keys.extend([("rise", check.rise.to_string()), ("fall", check.fall.to_string())]);
    if check.port != 0 {
        keys.push(("port", check.port.to_string()));
    }
    keys.extend(check.tls.map(|tls| ("tls", tls.to_string())));
    if !check.verify {
        keys.push(("verify", "false".to_owned()));
    }
    keys.extend(ca.map(|ca| ("ca", ca)));
    keys.extend(check.server_name.as_ref().map(|name| ("server_name", quoted(name))));
    keys.extend(check.host.as_ref().map(|host| ("host", quoted(host))));
    if check.send_proxy != CheckProxy::AsSessions {
        keys.push(("send_proxy", word(&PROXIES, check.send_proxy)));
    }
    match &check.kind {
        Kind::Tcp | Kind::Tls => {}
        Kind::Http(asked) => http(&mut keys, asked),
        Kind::Exchange(asked) => keys.push(("steps", list(asked.iter().map(step)))),
        Kind::Mysql(asked) | Kind::Postgres(asked) | Kind::Redis(asked) => {
            login(&mut keys, asked);
        }
        Kind::Dns(asked) => dns(&mut keys, asked),
        Kind::Sip(Sip { transport, status: asked }) => {
            keys.push(("transport", word(&TRANSPORTS, *transport)));
            keys.push(("status", list(asked.iter().map(status))));
        }
        Kind::Udp(Udp { send: said, expect: expected, silence }) => {
            keys.push(send(said));
            keys.extend(expected.as_ref().map(expect));
            keys.push(("silence", word(&SILENCES, *silence)));
        }
        Kind::Agent(said) => keys.extend(said.as_deref().map(send)),
    }
    inline(keys)
}

type Keys = Vec<(&'static str, String)>;

fn http(keys: &mut Keys, asked: &Http) {
    let default = Http::default();
    if asked.method != default.method {
        keys.push(("method", quoted(&asked.method)));
    }
    keys.push(("path", quoted(&asked.path)));
    if asked.status != default.status {
        keys.push(("status", list(asked.status.iter().map(status))));
    }
    match &asked.body {
        None => {}
        Some(Expect::Bytes(bytes)) => keys.push(("body", quoted(&String::from_utf8_lossy(bytes)))),
        Some(Expect::Regex(pattern)) => keys.push(("body_regex", quoted(pattern.text()))),
    }
}

fn step(step: &Step) -> String {
    let send = step.send.as_deref().map(send);
    inline(send.into_iter().chain(step.expect.as_ref().map(expect)).collect())
}

fn send(bytes: &[u8]) -> (&'static str, String) {
    match str::from_utf8(bytes) {
        Ok(text) => ("send", quoted(text)),
        Err(_) => ("send_hex", hex(bytes)),
    }
}

fn expect(expect: &Expect) -> (&'static str, String) {
    match expect {
        Expect::Bytes(bytes) => match str::from_utf8(bytes) {
            Ok(text) => ("expect", quoted(text)),
            Err(_) => ("expect_hex", hex(bytes)),
        },
        Expect::Regex(pattern) => ("expect_regex", quoted(pattern.text())),
    }
}

fn hex(bytes: &[u8]) -> String {
    let pairs: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    quoted(&pairs.join(" "))
}

fn login(keys: &mut Keys, asked: &Login) {
    keys.extend(asked.user.as_ref().map(|user| ("user", quoted(user))));
    let file = asked.password_file.as_ref();
    keys.extend(file.map(|file| ("password_file", quoted(&file.value.display().to_string()))));
    keys.extend(asked.role.map(|role| ("role", word(&ROLES, role))));
}

fn dns(keys: &mut Keys, asked: &Dns) {
    keys.push(("transport", word(&TRANSPORTS, asked.transport)));
    keys.push(("query", quoted(if asked.query.is_empty() { "." } else { &asked.query })));
    keys.push(("record", word(&RECORDS, asked.record)));
    keys.push(("rcode", list(asked.rcodes.iter().map(|rcode| word(&RCODES, *rcode)))));
}

/// The word of the file for a value.
fn word<T: PartialEq>(words: &[(&str, T)], value: T) -> String {
    let found = words.iter().find(|(_, known)| *known == value);
    quoted(found.map_or("", |(word, _)| word))
}

fn status(range: &RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        quoted(&format!("{}-{}", range.start(), range.end()))
    }
}
