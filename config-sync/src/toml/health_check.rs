//! The keys of a health check.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use crate::model::health_check::{
    CheckProxy, Expect, FALL, HealthCheck, Http, INTERVAL, Kind, Pattern, RISE, TIMES, timeout_of,
};
use crate::model::place::At;
use crate::table::routing::ProxyVersion;
use crate::toml::reader::{
    Read, Reader, Section, Table, any, boolean, integer, not, or, string, word,
};
use crate::toml::values::{duration, duration_from};

pub(crate) static HEALTH_CHECK: Section = Section {
    name: "backends.health_check",
    keys: &[
        any("type"),
        any("interval"),
        any("fast_interval"),
        any("down_interval"),
        any("jitter"),
        any("timeout"),
        any("rise"),
        any("fall"),
        any("port"),
        any("tls"),
        any("verify"),
        any("host"),
        any("send_proxy"),
        any("method"),
        any("path"),
        any("status"),
        any("body"),
        any("body_regex"),
    ],
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Tcp,
    Tls,
    Http,
}

const TYPES: [(&str, Type); 3] = [("tcp", Type::Tcp), ("tls", Type::Tls), ("http", Type::Http)];

/// The types that have a key, for keys that not every type has.
const OF: [(&str, &[Type]); 8] = [
    ("tls", &[Type::Http]),
    ("verify", &[Type::Tls, Type::Http]),
    ("host", &[Type::Tls, Type::Http]),
    ("method", &[Type::Http]),
    ("path", &[Type::Http]),
    ("status", &[Type::Http]),
    ("body", &[Type::Http]),
    ("body_regex", &[Type::Http]),
];

/// Reads `health_check`. `None`: the endpoints are not checked. `has_tls`: the backend has `tls`.
pub(crate) fn read<'t>(
    reader: &mut Reader<'t>,
    table: &Table<'t>,
    has_tls: bool,
) -> Option<At<HealthCheck>> {
    let place = reader.peek(table, "health_check", |_| Ok(()))?.place;
    let given = &reader.table(table, "health_check", &HEALTH_CHECK)?;
    let before = reader.problems.len();
    let of = or(reader.get(given, "type", word(&TYPES)), Type::Tcp);
    let mut check = HealthCheck::new(kind(reader, given, of));
    times(reader, given, &mut check);
    check.rise = or(reader.get(given, "rise", integer(TIMES)), RISE);
    check.fall = or(reader.get(given, "fall", integer(TIMES)), FALL);
    check.port = or(reader.get(given, "port", integer(0..=u16::MAX)), 0);
    check.tls = reader.get(given, "tls", boolean).map(|tls| tls.value);
    check.verify = or(reader.get(given, "verify", boolean), true);
    check.host = reader.get(given, "host", host).map(|host| host.value);
    let send_proxy = reader.get(given, "send_proxy", word(&PROXIES));
    check.send_proxy = or(send_proxy, CheckProxy::AsSessions);
    if reader.problems.len() == before {
        only_its_own(reader, given, of);
        if check.verify && !has_tls && check.speaks_tls(has_tls) {
            let message = "speaks TLS, and the backend has no `tls` that says which certificates \
                           are good; write `verify = false` to take any";
            reader.refuse(&place, message);
        }
    }
    Some(At { value: check, place })
}

pub(crate) const PROXIES: [(&str, CheckProxy); 3] = [
    ("off", CheckProxy::No),
    ("v1", CheckProxy::Version(ProxyVersion::V1)),
    ("v2", CheckProxy::Version(ProxyVersion::V2)),
];

fn times<'t>(reader: &mut Reader<'t>, given: &Table<'t>, check: &mut HealthCheck) {
    let asked = reader.get(given, "interval", interval);
    // If the interval is bad, the other times are not compared with the interval: a second fault
    // would only repeat the first.
    let most = if asked.is_none() && given.has("interval") { u32::MAX } else { INTERVAL };
    check.interval = or(asked, most);
    let within = timeout_within(check.interval);
    check.timeout = or(reader.get(given, "timeout", within), timeout_of(check.interval));
    let fast = reader.get(given, "fast_interval", fast_interval_within(check.interval));
    check.fast_interval = or(fast, check.interval);
    check.down_interval = or(reader.get(given, "down_interval", interval), check.interval);
    check.jitter = or(reader.get(given, "jitter", jitter_within(check.interval)), 0);
}

fn kind<'t>(reader: &mut Reader<'t>, given: &Table<'t>, of: Type) -> Kind {
    // Every key is read, so that a fault in the value of a key is found whatever the type is.
    let http = http(reader, given);
    match of {
        Type::Tcp => Kind::Tcp,
        Type::Tls => Kind::Tls,
        Type::Http => Kind::Http(http),
    }
}

fn http<'t>(reader: &mut Reader<'t>, given: &Table<'t>) -> Http {
    let default = Http::default();
    let (text, regex) = (reader.get(given, "body", text), reader.get(given, "body_regex", regex));
    if let (Some(_), Some(regex)) = (&text, &regex) {
        reader.refuse(&regex.place, "can't be with `body`: give one of them");
    }
    Http {
        method: or(reader.get(given, "method", method), default.method),
        path: or(reader.get(given, "path", path), default.path),
        status: or(reader.get(given, "status", statuses), default.status),
        body: text
            .map(|at| Expect::Bytes(at.value))
            .or_else(|| regex.map(|at| Expect::Regex(at.value))),
    }
}

/// Refuses keys of other types.
fn only_its_own<'t>(reader: &mut Reader<'t>, given: &Table<'t>, of: Type) {
    let name = |of: &Type| TYPES.iter().find(|(_, known)| known == of).map_or("", |(name, _)| name);
    for (key, types) in OF.iter().filter(|(_, types)| !types.contains(&of)) {
        if let Some(At { place, .. }) = reader.peek(given, key, |_| Ok(())) {
            let types: Vec<_> = types.iter().map(|of| format!("\"{}\"", name(of))).collect();
            let (types, own) = (types.join(" or "), name(&of));
            reader.refuse(&place, format!("is for type = {types}, and the type is \"{own}\""));
        }
    }
}

pub(crate) fn interval(value: &DeValue<'_>) -> Read<u32> {
    duration_from(Duration::from_millis(100))(value)
}

/// A timeout of at most the interval, because an endpoint has one check at a time.
pub(crate) fn timeout_within(interval: u32) -> impl Fn(&DeValue<'_>) -> Read<u32> {
    move |value| match duration(value)? {
        0 => Err("must be at least \"1ms\"; it can't be off".to_owned()),
        millis if millis > interval => {
            Err(format!("must be at most the interval, which is {interval} ms"))
        }
        millis => Ok(millis),
    }
}

pub(crate) fn fast_interval_within(most: u32) -> impl Fn(&DeValue<'_>) -> Read<u32> {
    move |value| match interval(value)? {
        millis if millis > most => Err(format!("must be at most the interval, which is {most} ms")),
        millis => Ok(millis),
    }
}

pub(crate) fn jitter_within(most: u32) -> impl Fn(&DeValue<'_>) -> Read<u32> {
    move |value| match duration(value)? {
        millis if millis > most => Err(format!("must be at most the interval, which is {most} ms")),
        millis => Ok(millis),
    }
}

/// A name for the header field Host, and for TLS.
pub(crate) fn host(value: &DeValue<'_>) -> Read<String> {
    let text = string(value)?;
    let is_whole = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let refused = || format!("\"{text}\" is no host, such as \"db.example.com\"");
    is_whole.then(|| text.to_owned()).ok_or_else(refused)
}

pub(crate) fn method(value: &DeValue<'_>) -> Read<String> {
    let text = string(value)?;
    let is_method = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase());
    let refused = || format!("\"{text}\" is no method, such as \"GET\" or \"OPTIONS\"");
    is_method.then(|| text.to_owned()).ok_or_else(refused)
}

pub(crate) fn path(value: &DeValue<'_>) -> Read<String> {
    let text = string(value)?;
    let is_path = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    let refused = || format!("must begin with \"/\" and have no blanks, not \"{text}\"");
    is_path.then(|| text.to_owned()).ok_or_else(refused)
}

/// What an answer must have: text.
pub(crate) fn text(value: &DeValue<'_>) -> Read<std::sync::Arc<[u8]>> {
    match string(value)? {
        "" => Err("is empty, and every answer has that".to_owned()),
        text => Ok(text.as_bytes().into()),
    }
}

pub(crate) fn regex(value: &DeValue<'_>) -> Read<Pattern> {
    Pattern::read(string(value)?)
}

/// One status or range of statuses, or a list of them: 200, "200-299", [200, "300-399"].
fn statuses(value: &DeValue<'_>) -> Read<Vec<RangeInclusive<u16>>> {
    let DeValue::Array(values) = value else { return Ok(vec![status(value)?]) };
    let read = values.iter().map(|value| status(value.get_ref())).collect::<Result<Vec<_>, _>>()?;
    if read.is_empty() {
        Err("names no status: no check would be good".to_owned())
    } else {
        Ok(read)
    }
}

pub(crate) fn status(value: &DeValue<'_>) -> Read<RangeInclusive<u16>> {
    const STATUS: RangeInclusive<u16> = 100..=599;
    const FORM: &str = "a status, 100 to 599, or a range such as \"200-299\"";
    match value {
        DeValue::Integer(_) => integer(STATUS)(value).map(|status| status..=status),
        DeValue::String(text) => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let read = |text: &str| text.parse().ok().filter(|status| STATUS.contains(status));
            let range = read(first).zip(read(last)).filter(|(first, last)| first <= last);
            let refused = || format!("must be {FORM}, not \"{text}\"");
            range.map(|(first, last)| first..=last).ok_or_else(refused)
        }
        _ => Err(not(FORM, value)),
    }
}
