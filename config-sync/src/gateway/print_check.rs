//! Writes a health check as TOML.

use std::ops::RangeInclusive;

use crate::gateway::print_values::{duration, inline, list, quoted};
use crate::model::health_check::{CheckProxy, Expect, HealthCheck, Http, Kind};
use crate::toml::health_check::PROXIES;

/// The value of `health_check`.
pub(super) fn table(check: &HealthCheck) -> String {
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
    keys.extend(check.host.as_ref().map(|host| ("host", quoted(host))));
    if check.send_proxy != CheckProxy::AsSessions {
        let word = PROXIES.iter().find(|(_, known)| *known == check.send_proxy);
        keys.push(("send_proxy", quoted(word.map_or("", |(word, _)| word))));
    }
    match &check.kind {
        Kind::Tcp | Kind::Tls => {}
        Kind::Http(asked) => http(&mut keys, asked),
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

fn status(range: &RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        quoted(&format!("{}-{}", range.start(), range.end()))
    }
}
