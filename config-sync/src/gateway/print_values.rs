//! Single values as TOML.

use std::fmt::Write as _;

use crate::model::config::{ADMIN_ADDRESS, Config};
use crate::model::endpoint::Endpoint;
use crate::table::address::UnixPath;
use crate::table::routing::DnsGuard;
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
    if keys.is_empty() { address } else { format!("{{ address = {address}{keys} }}") }
}
