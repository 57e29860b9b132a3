//! Single values as TOML.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::model::config::{ADMIN_ADDRESS, Config, MEMORY_PERCENT};
use crate::model::endpoint::Endpoint;
use crate::model::limit::{LimitOf, SharedLimit};
use crate::table::address::{Address, UnixPath};
use crate::table::routing::{DnsGuard, Sources};
use crate::toml::bind::MOST_PORTS;
use crate::toml::dns_guard::SLIP;

/// The keys of `admin` that are not as by default.
pub(super) fn admin(config: &Config) -> Vec<(&'static str, String)> {
    let mut keys = Vec::new();
    if config.admin != ADMIN_ADDRESS {
        let address = config.admin.map_or_else(String::new, |address| address.to_string());
        keys.push(("address", quoted(&address)));
    }
    if let Some(file) = config.admin_socket().and_then(UnixPath::file) {
        keys.push(("socket", quoted(&file.display().to_string())));
    }
    if let Some(file) = &config.admin_token_file {
        keys.push(("token_file", quoted(&file.value.display().to_string())));
    }
    if let Some(tls) = &config.admin_tls {
        let files = [("cert", Some(&tls.cert)), ("key", Some(&tls.key))];
        for (key, file) in files.into_iter().chain([("client_ca", tls.client_ca.as_ref())]) {
            keys.extend(file.map(|file| (key, quoted(&file.value.display().to_string()))));
        }
    }
    if let Some(file) = &config.admin_overrides_file {
        keys.push(("overrides_file", quoted(&file.value.display().to_string())));
    }
    if !config.endpoint_labels {
        keys.push(("endpoint_labels", "false".to_owned()));
    }
    keys
}

/// The keys of `limits` about memory and readiness that are not as by default.
pub(super) fn memory(config: &Config) -> Vec<(&'static str, String)> {
    let percent = (config.memory_percent != MEMORY_PERCENT)
        .then(|| ("memory_percent", config.memory_percent.to_string()));
    let readiness = config.memory_readiness.then(|| ("memory_readiness", "true".to_owned()));
    let near = (config.readiness_percent > 0)
        .then(|| ("readiness_percent", config.readiness_percent.to_string()));
    percent.into_iter().chain(readiness).chain(near).collect()
}

/// The keys of `dns_guard` that are not as by default.
pub(super) fn dns_guard(guard: DnsGuard) -> Vec<(&'static str, String)> {
    let DnsGuard { drops_any, slip } = guard;
    let any = (!drops_any).then(|| ("any", quoted("pass")));
    any.into_iter().chain((slip != SLIP).then(|| ("slip", slip.to_string()))).collect()
}

pub(super) fn duration(millis: u32) -> String {
    let (number, unit) = match millis {
        0 => (0, "s"),
        millis if millis % 3_600_000 == 0 => (millis / 3_600_000, "h"),
        millis if millis % 60_000 == 0 => (millis / 60_000, "m"),
        millis if millis % 1_000 == 0 => (millis / 1_000, "s"),
        millis => (millis, "ms"),
    };
    format!("{number}{unit}")
}

/// The text without variables: the reader would replace `${NAME}`.
pub(super) fn escaped(text: &str) -> String {
    text.replace("${", "$${")
}

pub(super) fn quoted(text: &str) -> String {
    toml::Value::from(escaped(text)).to_string()
}

pub(super) fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    let width: usize = items.iter().map(String::len).sum();
    if width < 80 {
        return format!("[{}]", items.join(", "));
    }
    let mut text = "[\n".to_owned();
    for item in items {
        let _ = writeln!(text, "  {item},");
    }
    text + "]"
}

pub(super) fn inline(keys: Vec<(&str, String)>) -> String {
    let keys: Vec<_> = keys.into_iter().map(|(key, value)| format!("{key} = {value}")).collect();
    format!("{{ {} }}", keys.join(", "))
}

/// The address alone, if the endpoint has no other key.
pub(super) fn endpoint(endpoint: &Endpoint) -> String {
    let address = quoted(&endpoint.address.value.to_string());
    let mut keys = String::new();
    if let Some(name) = &endpoint.name {
        keys += &format!(", name = {}", quoted(&name.value));
    }
    if endpoint.weight != 1 {
        keys += &format!(", weight = {}", endpoint.weight);
    }
    if endpoint.backup {
        keys += ", backup = true";
    }
    if let Some(most) = endpoint.max_sessions {
        keys += &format!(", max_sessions = {most}");
    }
    if let Some(limit) = &endpoint.limit {
        keys += &format!(", limit = {limit}");
    }
    if keys.is_empty() { address } else { format!("{{ address = {address}{keys} }}") }
}

/// The addresses in their TOML form. Consecutive ports of one address become ranges.
pub(super) fn addresses_of<'a>(addresses: impl Iterator<Item = &'a Address>) -> Vec<String> {
    let mut ranges: Vec<(&Address, u16)> = Vec::new();
    for address in addresses {
        if let (Some(of), Some((first, more))) = (address.ip(), ranges.last_mut())
            && let Some(mut next) = first.ip()
            && let Some(port) = next.port().checked_add(*more + 1)
            && *more + 1 < MOST_PORTS
        {
            next.set_port(port);
            if next == of {
                *more += 1;
                continue;
            }
        }
        ranges.push((address, 0));
    }
    let text = |(first, more): (&Address, u16)| match first.ip() {
        Some(at) if more > 0 => format!("{first}-{}", at.port() + more),
        _ => first.to_string(),
    };
    ranges.into_iter().map(text).collect()
}

/// One address, or the prefix of several. Their number is a power of two, because they were read
/// from a prefix.
pub(super) fn sources(sources: Sources) -> String {
    if sources.count <= 1 {
        return sources.first.to_string();
    }
    let length = match sources.first {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    format!("{}/{}", sources.first, length - sources.count.ilog2())
}

/// The limit of a part: its keys, or the name of a limit that others have too.
pub(super) fn limit(limit: &LimitOf) -> String {
    match limit {
        LimitOf::Own(limit) => limit.to_string(),
        LimitOf::Shared(name) => quoted(&name.value),
    }
}

/// The lines of a limit with a name.
pub(super) fn shared_limit(SharedLimit { name, limit }: &SharedLimit) -> String {
    let keys = limit.keys().map(|(key, value)| format!("{key} = {value}\n"));
    format!("name = {}\n{}", quoted(&name.value), keys.collect::<String>())
}
