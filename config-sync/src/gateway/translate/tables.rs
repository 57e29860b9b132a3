//! Reads the tables of a policy with the readers of the TOML file, so that a policy's values have
//! the limits and the messages of that file.

use std::ops::Range;

use serde::Serialize;
use toml::de::DeTable;

use crate::gateway::objects::limits::{
    EndpointLimitSettings, LimitSettings, ListenerLimitSettings, SourceLimitSettings,
};
use crate::gateway::objects::policy::{DnsGuardSettings, EjectSettings, HealthCheckSettings};
use crate::model::eject::Eject;
use crate::model::health_check::HealthCheck;
use crate::model::limit::{Limit, LimitOf};
use crate::model::place::At;
use crate::model::source_limit::SourceLimit;
use crate::table::routing::DnsGuard;
use crate::toml::dns_guard::dns_guard;
use crate::toml::limit::{Owner, endpoint_limit, limit};
use crate::toml::reader::{Reader, Section, Table, any};
use crate::toml::source_limit::limit_source;
use crate::toml::{eject, health_check};

static TABLES: Section = Section {
    name: "",
    keys: &[
        any("health_check"),
        any("eject"),
        any("limit_source"),
        any("limit"),
        any("endpoint_limit"),
        any("dns_guard"),
    ],
};

/// The backends are not known here, so whether they have TLS that verifies certificates is not
/// looked at. The CA certificates that are named are not read, and the check names no file.
pub(super) fn read_health_check(given: &HealthCheckSettings) -> Result<HealthCheck, String> {
    let names_ca = given.ca_certificate_refs.as_ref().is_some_and(|refs| !refs.is_empty());
    let given = HealthCheckSettings { ca_certificate_refs: None, ..given.clone() };
    let given = OfFile { given, ca: names_ca.then_some(AUTHORITIES) };
    let read =
        read("health_check", &given, |reader, table| health_check::read(reader, table, true))?;
    Ok(HealthCheck { ca: None, ..read })
}

/// The key of the file that stands for the field `AUTHORITIES`.
const CA: &str = "ca";
const AUTHORITIES: &str = "caCertificateRefs";

#[derive(Serialize)]
struct OfFile<'a> {
    #[serde(flatten)]
    given: HealthCheckSettings,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<&'a str>,
}

pub(super) fn read_eject(given: &EjectSettings) -> Result<Eject, String> {
    read("eject", given, eject::read)
}

/// The limit for datagrams is read whatever the listeners are: a policy may be for listeners of
/// several protocols.
pub(super) fn read_limit_source(given: &SourceLimitSettings) -> Result<SourceLimit, String> {
    read("limit_source", given, |reader, table| {
        let value = limit_source(reader, table, None)?;
        Some(At { value, place: table.place.clone() })
    })
}

/// A policy may be for listeners of several protocols, so that a delay is read whatever they are.
pub(super) fn read_listener_limit(given: &ListenerLimitSettings) -> Result<Limit, String> {
    read_limit_of(given, Owner::Listener(None))
}

pub(super) fn read_limit(given: &LimitSettings) -> Result<Limit, String> {
    read_limit_of(given, Owner::Other)
}

fn read_limit_of(given: &impl Serialize, owner: Owner) -> Result<Limit, String> {
    read("limit", given, |reader, table| match limit(reader, table, owner)? {
        LimitOf::Own(value) => Some(At { value, place: table.place.clone() }),
        LimitOf::Shared(_) => None,
    })
}

pub(super) fn read_endpoint_limit(given: &EndpointLimitSettings) -> Result<Limit, String> {
    read("endpoint_limit", given, |reader, table| {
        let value = endpoint_limit(reader, table, "endpoint_limit")?;
        Some(At { value, place: table.place.clone() })
    })
}

pub(super) fn read_dns_guard(given: &DnsGuardSettings) -> Result<DnsGuard, String> {
    read("dns_guard", given, |reader, table| {
        let value = dns_guard(reader, table)?;
        Some(At { value, place: table.place.clone() })
    })
}

fn read<T>(
    key: &str,
    given: &impl Serialize,
    read: impl for<'t> Fn(&mut Reader<'t>, &Table<'t>) -> Option<At<T>>,
) -> Result<T, String> {
    let given = toml::Value::try_from(given).map_err(|error| format!("{key}: {error}"))?;
    let text = toml::Value::Table([(key.to_owned(), of_file(given))].into_iter().collect());
    let text = toml::to_string(&text).map_err(|error| format!("{key}: {error}"))?;
    let root = DeTable::parse(&text).map_err(|error| format!("{key}: {}", error.message()))?;
    let mut reader = Reader::new("", &text);
    let Range { start, .. } = root.span();
    let place = reader.place(start, String::new());
    let table = &reader.open(root.get_ref(), &TABLES, place);
    let value = read(&mut reader, table).map(|read| read.value);
    let problems = reader.problems.iter();
    let problems = problems.map(|of| of_policy(&format!("{}: {}", of.field, of.message)));
    let problems: Vec<_> = problems.collect();
    value.filter(|_| problems.is_empty()).ok_or_else(|| problems.join("; "))
}

/// The same value with the keys of the file: `fast_interval` instead of `fastInterval`.
fn of_file(value: toml::Value) -> toml::Value {
    use toml::Value;
    match value {
        Value::Table(fields) => {
            let renamed = fields.into_iter().map(|(field, value)| (snake(&field), of_file(value)));
            Value::Table(renamed.collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(of_file).collect()),
        value => value,
    }
}

fn snake(field: &str) -> String {
    let word = |c: char| match c.is_ascii_uppercase() {
        true => format!("_{}", c.to_ascii_lowercase()),
        false => c.to_string(),
    };
    field.chars().map(word).collect()
}

/// The message with the fields of a policy: in front of the first colon, and between backticks.
fn of_policy(message: &str) -> String {
    let (field, said) = message.split_once(": ").unwrap_or(("", message));
    let parts = said.split('`').enumerate().map(|(nth, part)| match nth % 2 {
        0 => part.to_owned(),
        _ if part == CA => format!("`{AUTHORITIES}`"),
        _ => format!("`{}`", camel(part).replace(" = ", ": ")),
    });
    let field = match camel(field) {
        field if field == "healthCheck.ca" => format!("healthCheck.{AUTHORITIES}"),
        field => field,
    };
    format!("{field}: {}", parts.collect::<String>())
}

fn camel(keys: &str) -> String {
    let mut words = keys.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |text, word| {
        let (head, tail) = word.split_at_checked(1).unwrap_or((word, ""));
        text + &head.to_ascii_uppercase() + tail
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::health_check::{Expect, Kind};

    fn check(yaml: &str) -> Result<HealthCheck, String> {
        read_health_check(&serde_saphyr::from_str(yaml).expect("settings"))
    }

    #[test]
    fn the_values_are_those_of_the_file() {
        let read = check("{type: http, path: /ready, status: [\"200\"], fastInterval: 1s}");
        let read = read.expect("a check");
        let Kind::Http(http) = &read.kind else { panic!("{read:?}") };
        assert_eq!((http.path.as_str(), &http.status[..]), ("/ready", &[200..=200][..]));
        assert_eq!((read.interval, read.fast_interval, read.rise), (5_000, 1_000, 2));
        let read = check(r#"{type: udp, send: "${A}\"\r\n\\\u007f", expectHex: 00 ff}"#);
        let Kind::Udp(udp) = read.expect("a check").kind else { panic!("no check by UDP") };
        assert_eq!(&*udp.send, b"${A}\"\r\n\\\x7f");
        assert_eq!(udp.expect, Some(Expect::Bytes([0, 0xff][..].into())));
        let base = Some("1s".to_owned());
        let read = read_eject(&EjectSettings { base, ..EjectSettings::default() });
        assert_eq!(read.map(|eject| (eject.base, eject.failures)), Ok((1_000, 5)));
    }

    #[test]
    fn a_guard_without_keys_has_their_defaults() {
        let guard = |yaml| read_dns_guard(&serde_saphyr::from_str(yaml).expect("settings"));
        assert_eq!(guard("{}"), Ok(DnsGuard { drops_any: true, slip: 2 }));
        assert_eq!(guard("{any: pass, slip: 0}"), Ok(DnsGuard { drops_any: false, slip: 0 }));
        let fault = guard("{any: refuse}").expect_err("a word that there is not");
        assert!(fault.starts_with("dnsGuard.any: must be \"drop\" or \"pass\""), "{fault}");
    }

    #[test]
    fn faults_name_the_fields_of_a_policy() {
        for (yaml, fault) in [
            ("{type: htpt}", "healthCheck.type: must be \"tcp\""),
            ("{rise: 0}", "healthCheck.rise: must be a whole number, 1 to 100, not 0"),
            ("{fastInterval: 9s}", "healthCheck.fastInterval: must be at most the interval"),
            ("{bodyRegex: x}", "healthCheck.bodyRegex: is for type = \"http\""),
            ("{type: exchange}", "healthCheck.steps: missing; such as"),
            (
                "{type: exchange, steps: [{send: a, sendHex: '00'}]}",
                "healthCheck.steps[0].sendHex: says again what `send` says in another form",
            ),
            (
                "{type: udp}",
                "healthCheck.send: missing; what the endpoint is told, here or in \
                             `sendHex`",
            ),
            ("{type: dns, query: a..b}", "healthCheck.query: \"a..b\" is no name"),
            (
                "{type: tls, verify: false, caCertificateRefs: [{name: ca}]}",
                "healthCheck.caCertificateRefs: says which certificates are good, and with \
                 `verify: false` all are",
            ),
            (
                "{type: http, tls: false, caCertificateRefs: [{name: ca}]}",
                "healthCheck.caCertificateRefs: is for checks by TLS",
            ),
            ("{type: redis, tls: true, serverName: a..b}", "healthCheck.serverName: "),
            (
                "{type: tcp, caCertificateRefs: [{name: ca}]}",
                "healthCheck.caCertificateRefs: is for",
            ),
            ("{interval: 1s, timeout: 2s, fall: 0}", "1000 ms; healthCheck.fall: must be"),
        ] {
            let said = check(yaml).expect_err(yaml);
            assert!(said.contains(fault), "{yaml}: {said}");
        }
    }
}
