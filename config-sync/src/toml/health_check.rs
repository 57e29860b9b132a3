//! The keys of a health check.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeValue;

use crate::model::health_check::{
    CheckProxy, Dns, Expect, FALL, HealthCheck, Http, INTERVAL, Kind, Login, Pattern, RCODES,
    RECORDS, RISE, Role, Sip, Step, TIMES, Transport, Udp, timeout_of,
};
use crate::model::place::{At, Place};
use crate::table::routing::ProxyVersion;
use crate::toml::reader::{
    Read, Reader, Section, Table, any, boolean, integer, not, or, string, word,
};
use crate::toml::tls::{pem, server_name};
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
        any("ca"),
        any("server_name"),
        any("host"),
        any("send_proxy"),
        any("method"),
        any("path"),
        any("status"),
        any("body"),
        any("body_regex"),
        any("steps"),
        any("send"),
        any("send_hex"),
        any("expect"),
        any("expect_hex"),
        any("expect_regex"),
        any("silence"),
        any("user"),
        any("password_file"),
        any("role"),
        any("transport"),
        any("query"),
        any("record"),
        any("rcode"),
    ],
};

pub(crate) static STEP: Section = Section {
    name: "backends.health_check.steps",
    keys: &[any("send"), any("send_hex"), any("expect"), any("expect_hex"), any("expect_regex")],
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Tcp,
    Tls,
    Http,
    Exchange,
    Mysql,
    Postgres,
    Redis,
    Dns,
    Sip,
    Udp,
    Agent,
}

const TYPES: [(&str, Type); 11] = [
    ("tcp", Type::Tcp),
    ("tls", Type::Tls),
    ("http", Type::Http),
    ("exchange", Type::Exchange),
    ("mysql", Type::Mysql),
    ("postgres", Type::Postgres),
    ("redis", Type::Redis),
    ("dns", Type::Dns),
    ("sip", Type::Sip),
    ("udp", Type::Udp),
    ("agent", Type::Agent),
];

/// The types that can speak TLS and need not.
const OVER_TLS: &[Type] =
    &[Type::Http, Type::Exchange, Type::Mysql, Type::Postgres, Type::Redis, Type::Sip, Type::Agent];

/// The types that can verify a certificate.
const VERIFYING: &[Type] = &[
    Type::Tls,
    Type::Http,
    Type::Exchange,
    Type::Mysql,
    Type::Postgres,
    Type::Redis,
    Type::Sip,
    Type::Agent,
];

/// The types that can log in.
const WITH_LOGIN: &[Type] = &[Type::Mysql, Type::Postgres, Type::Redis];

/// The types that have a key, for keys that not every type has.
const OF: [(&str, &[Type]); 24] = [
    ("tls", OVER_TLS),
    ("verify", VERIFYING),
    ("ca", VERIFYING),
    ("server_name", VERIFYING),
    ("host", VERIFYING),
    ("method", &[Type::Http]),
    ("path", &[Type::Http]),
    ("status", &[Type::Http, Type::Sip]),
    ("body", &[Type::Http]),
    ("body_regex", &[Type::Http]),
    ("steps", &[Type::Exchange]),
    ("send", &[Type::Udp, Type::Agent]),
    ("send_hex", &[Type::Udp, Type::Agent]),
    ("expect", &[Type::Udp]),
    ("expect_hex", &[Type::Udp]),
    ("expect_regex", &[Type::Udp]),
    ("silence", &[Type::Udp]),
    ("user", WITH_LOGIN),
    ("password_file", WITH_LOGIN),
    ("role", WITH_LOGIN),
    ("transport", &[Type::Dns, Type::Sip]),
    ("query", &[Type::Dns]),
    ("record", &[Type::Dns]),
    ("rcode", &[Type::Dns]),
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
    check.ca = pem(reader, given, "ca");
    check.server_name = reader.get(given, "server_name", server_name).map(|name| name.value);
    check.host = reader.get(given, "host", host).map(|host| host.value);
    let send_proxy = reader.get(given, "send_proxy", word(&PROXIES));
    check.send_proxy = or(send_proxy, CheckProxy::AsSessions);
    if reader.problems.len() == before {
        only_its_own(reader, given, of);
        fits(reader, given, &check);
        // What is told of keys that the type has not was told already.
        if VERIFYING.contains(&of) {
            fits_tls(reader, given, (&place, &check), has_tls);
        }
    }
    Some(At { value: check, place })
}

/// Whether the keys of a check fit together.
fn fits<'t>(reader: &mut Reader<'t>, given: &Table<'t>, check: &HealthCheck) {
    if check.speaks_udp() && check.send_proxy == CheckProxy::Version(ProxyVersion::V1) {
        let message = "\"v1\" has no word for UDP, and the check is by UDP; write \"v2\"";
        reader.get(given, "send_proxy", |_| Err::<(), _>(message.to_owned()));
    }
    if let Kind::Redis(Login { user: Some(_), password_file: None, .. }) = &check.kind {
        reader.miss(given, "password_file", "a user of Redis has a password");
    }
    if let Kind::Mysql(login) | Kind::Postgres(login) = &check.kind
        && login.user.is_none()
        && (login.password_file.is_some() || login.role.is_some())
    {
        reader.miss(given, "user", "the server tells its role to a user who has logged in");
    }
}

/// Whether the keys about certificates fit the rest of the check and the backend.
fn fits_tls<'t>(
    reader: &mut Reader<'t>,
    given: &Table<'t>,
    (place, check): (&Place, &HealthCheck),
    has_tls: bool,
) {
    let mut refuse = |key: &str, message: &str| {
        reader.get(given, key, |_| Err::<(), _>(message.to_owned()));
    };
    if !check.speaks_tls(has_tls) {
        let message = "is for checks by TLS, and this check speaks none; write `tls = true`";
        ["ca", "server_name"].into_iter().for_each(|key| refuse(key, message));
    } else if !check.verify {
        let message = "says which certificates are good, and with `verify = false` all are; leave \
                       one of the two out";
        refuse("ca", message);
    } else if !has_tls && check.ca.is_some() {
        reader.miss(given, "server_name", "the name that the endpoints' certificate has");
    } else if !has_tls && check.server_name.is_none() {
        let message = "speaks TLS, and the backend has no `tls` that says which certificates are \
                       good; write `ca` and `server_name`, or `verify = false` to take any";
        reader.refuse(place, message);
    }
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
    let status = reader.get(given, "status", statuses).map(|status| status.value);
    let http = http(reader, given, status.clone());
    let steps = steps(reader, given);
    let login = login(reader, given);
    let transport = or(reader.get(given, "transport", word(&TRANSPORTS)), Transport::Udp);
    let dns = dns(reader, given, transport);
    let sip = Sip { transport, status: status.unwrap_or_else(|| Sip::default().status) };
    let (send, expect) = (send(reader, given), expect(reader, given));
    let silence = reader.get(given, "silence", word(&SILENCES)).map(|silence| silence.value);
    match of {
        Type::Tcp => Kind::Tcp,
        Type::Tls => Kind::Tls,
        Type::Http => Kind::Http(http),
        Type::Exchange => {
            reader.miss(given, "steps", "such as [{ send = \"ruok\", expect = \"imok\" }]");
            Kind::Exchange(steps)
        }
        Type::Mysql => Kind::Mysql(login),
        Type::Postgres => Kind::Postgres(login),
        Type::Redis => Kind::Redis(login),
        Type::Dns => {
            reader.miss(given, "query", "a name that the server knows, such as \"example.com\"");
            Kind::Dns(dns)
        }
        Type::Sip => Kind::Sip(sip),
        Type::Udp => {
            if send.is_none() && !given.has("send_hex") {
                reader.miss(given, "send", "what the endpoint is told, here or in `send_hex`");
            }
            let silence = silence.unwrap_or_else(|| expect.is_none());
            Kind::Udp(Udp { send: send.unwrap_or_default(), expect, silence })
        }
        Type::Agent => Kind::Agent(send),
    }
}

pub(crate) const TRANSPORTS: [(&str, Transport); 2] =
    [("udp", Transport::Udp), ("tcp", Transport::Tcp)];
pub(crate) const ROLES: [(&str, Role); 2] =
    [("primary", Role::Primary), ("replica", Role::Replica)];
pub(crate) const SILENCES: [(&str, bool); 2] = [("up", true), ("down", false)];

/// The most steps of an exchange.
const MOST_STEPS: usize = 32;

fn steps<'t>(reader: &mut Reader<'t>, given: &Table<'t>) -> Vec<Step> {
    let before = reader.problems.len();
    let tables = reader.tables(given, "steps");
    let count = tables.len();
    let is_wrong = given.has("steps") && !(1..=MOST_STEPS).contains(&count);
    if is_wrong && reader.problems.len() == before {
        let message = format!("must have 1 to {MOST_STEPS} steps, not {count}");
        reader.get(given, "steps", |_| Err::<(), _>(message));
    }
    let read = |At { value, place }| {
        let step = &reader.open(value, &STEP, place);
        let read = Step { send: send(reader, step), expect: expect(reader, step) };
        if read.send.is_none() && read.expect.is_none() && reader.problems.len() == before {
            reader.refuse(&step.place, "says and expects nothing; give `send` or `expect`");
        }
        read
    };
    tables.into_iter().map(read).collect()
}

/// The bytes of `send` or `send_hex`.
fn send<'t>(reader: &mut Reader<'t>, given: &Table<'t>) -> Option<Arc<[u8]>> {
    let plain = reader.get(given, "send", text);
    let hex = reader.get(given, "send_hex", hex);
    only_one(reader, "send", &[plain.as_ref().map(place_of), hex.as_ref().map(place_of)]);
    plain.or(hex).map(|bytes| bytes.value)
}

fn expect<'t>(reader: &mut Reader<'t>, given: &Table<'t>) -> Option<Expect> {
    let plain = reader.get(given, "expect", text);
    let hex = reader.get(given, "expect_hex", hex);
    let regex = reader.get(given, "expect_regex", regex);
    let places =
        [plain.as_ref().map(place_of), hex.as_ref().map(place_of), regex.as_ref().map(place_of)];
    only_one(reader, "expect", &places);
    let regex = regex.map(|regex| Expect::Regex(regex.value));
    plain.or(hex).map(|bytes| Expect::Bytes(bytes.value)).or(regex)
}

fn place_of<T>(at: &At<T>) -> &Place {
    &at.place
}

/// Refuses all but the first of keys that say the same in other forms.
fn only_one(reader: &mut Reader<'_>, first: &str, places: &[Option<&Place>]) {
    for place in places.iter().flatten().skip(1) {
        reader.refuse(place, format!("says again what `{first}` says in another form"));
    }
}

fn login<'t>(reader: &mut Reader<'t>, given: &Table<'t>) -> Login {
    let file = reader.get(given, "password_file", |value| match string(value)? {
        "" => Err("names no file".to_owned()),
        path => Ok(path),
    });
    Login {
        user: reader.get(given, "user", user).map(|user| user.value),
        password_file: file.map(|At { value, place }| At { value: place.path(value), place }),
        role: reader.get(given, "role", word(&ROLES)).map(|role| role.value),
    }
}

fn dns<'t>(reader: &mut Reader<'t>, given: &Table<'t>, transport: Transport) -> Dns {
    let default = Dns::default();
    Dns {
        transport,
        query: or(reader.get(given, "query", query), default.query),
        record: or(reader.get(given, "record", word(&RECORDS)), default.record),
        rcodes: or(reader.get(given, "rcode", rcodes), default.rcodes),
    }
}

fn http<'t>(
    reader: &mut Reader<'t>,
    given: &Table<'t>,
    status: Option<Vec<RangeInclusive<u16>>>,
) -> Http {
    let default = Http::default();
    let (text, regex) = (reader.get(given, "body", text), reader.get(given, "body_regex", regex));
    if let (Some(_), Some(regex)) = (&text, &regex) {
        reader.refuse(&regex.place, "can't be with `body`: give one of them");
    }
    Http {
        method: or(reader.get(given, "method", method), default.method),
        path: or(reader.get(given, "path", path), default.path),
        status: status.unwrap_or(default.status),
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

/// What is said, or what an answer must have: text.
pub(crate) fn text(value: &DeValue<'_>) -> Read<Arc<[u8]>> {
    bytes(string(value)?.as_bytes().to_vec())
}

/// The same in hexadecimal digits, with blanks where there is reason for them.
pub(crate) fn hex(value: &DeValue<'_>) -> Read<Arc<[u8]>> {
    let text = string(value)?;
    let digits: Option<Vec<_>> =
        text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0);
    let refused =
        || format!("must be pairs of hexadecimal digits, such as \"00 ff\", not \"{text}\"");
    let pair = |pair: &[u32]| u8::try_from(pair[0] << 4 | pair[1]).unwrap_or_default();
    bytes(digits.ok_or_else(refused)?.chunks(2).map(pair).collect())
}

/// The most bytes of one text: one datagram.
const MOST_BYTES: usize = 1_232;

fn bytes(bytes: Vec<u8>) -> Read<Arc<[u8]>> {
    match bytes.len() {
        0 => Err("is empty, which says nothing".to_owned()),
        1..=MOST_BYTES => Ok(bytes.into()),
        len => Err(format!("has {len} bytes; at most {MOST_BYTES}")),
    }
}

fn user(value: &DeValue<'_>) -> Read<String> {
    let text = string(value)?;
    let is_user = (1..=255).contains(&text.len()) && !text.contains('\0');
    let refused = || "must have 1 to 255 bytes, and no byte 0".to_owned();
    is_user.then(|| text.to_owned()).ok_or_else(refused)
}

/// A name of the DNS (RFC 1035, section 2.3.4). "." is the root.
fn query(value: &DeValue<'_>) -> Read<String> {
    let text = string(value)?;
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let is_name = text == "." || (name.len() <= 253 && name.split('.').all(is_label));
    let refused = || format!("\"{text}\" is no name, such as \"example.com\"");
    is_name.then(|| name.to_owned()).ok_or_else(refused)
}

/// One code, or a list of codes.
fn rcodes(value: &DeValue<'_>) -> Read<Vec<u8>> {
    let DeValue::Array(values) = value else { return Ok(vec![word(&RCODES)(value)?]) };
    let read = values.iter().map(|value| word(&RCODES)(value.get_ref()));
    let read = read.collect::<Result<Vec<_>, _>>()?;
    if read.is_empty() { Err("names no code: no check would be good".to_owned()) } else { Ok(read) }
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
