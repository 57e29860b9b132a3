//! The keys of the PROXY protocol: the sources of headers that a listener believes, and the header
//! that a backend receives.

use ipnet::IpNet;
use toml::de::DeValue;

use crate::model::listener::AcceptProxy;
use crate::model::place::At;
use crate::table::address::UNIX_CLIENT;
use crate::table::routing::{ProxyVersion, SendProxy};
use crate::toml::reader::{Read, Reader, Section, Table, any, boolean, or, string, word};
use crate::toml::values::range;

pub(crate) static ACCEPT_PROXY: Section =
    Section { name: "listeners.accept_proxy", keys: &[any("from"), any("only")] };

/// The words of the file.
pub(crate) const VERSIONS: [(&str, ProxyVersion); 2] =
    [("v1", ProxyVersion::V1), ("v2", ProxyVersion::V2)];
pub(crate) const UNIQUE_ID: &str = "unique-id";
pub(crate) const CRC32C: &str = "crc32c";

/// The most ranges of one listener. The ranges are of proxies in front of the listener, and a
/// worker looks through the ranges one by one.
pub(crate) const MAX_RANGES: usize = 256;

/// Sources from which connections must begin with a header. `None`: there are no such sources.
pub(crate) fn accept<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<At<AcceptProxy>> {
    let place = reader.peek(table, "accept_proxy", |_| Ok(()))?.place;
    let given = &reader.table(table, "accept_proxy", &ACCEPT_PROXY)?;
    reader.miss(given, "from", "the source ranges that must send a header: [\"10.0.0.0/8\"]");
    let only = or(reader.get(given, "only", boolean), false);
    let before = reader.problems.len();
    let ranges = reader.list(given, "from", sender)?;
    let none = ranges.is_empty() && reader.problems.len() == before;
    if none || ranges.len() > MAX_RANGES {
        reader.get(given, "from", |_| Err::<(), _>(count(ranges.len())));
    }
    let from = ranges.into_iter().map(|range| range.value).collect();
    Some(At { value: AcceptProxy { from, only }, place })
}

/// A range of addresses of proxies, or `"unix"` for proxies that come over a Unix socket.
fn sender(value: &DeValue<'_>) -> Read<IpNet> {
    match value.as_str() {
        Some(UNIX_SENDER) => Ok(UNIX_CLIENT.ip().into()),
        _ => range(value),
    }
}

/// The word for proxies that come over a Unix socket.
pub(crate) const UNIX_SENDER: &str = "unix";

/// The header that endpoints receive. `None`: no header.
pub(crate) fn send<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<At<SendProxy>> {
    let version = reader.get(table, "send_proxy", word(&VERSIONS));
    let tlvs = reader.list(table, "proxy_tlvs", string);
    if let Some(tlvs) = &tlvs {
        let without = match &version {
            None => table.has("send_proxy"),
            Some(version) => version.value == ProxyVersion::V2,
        };
        if !without {
            let needed = "needs send_proxy = \"v2\": version 1 has no room for them";
            reader.get(table, "proxy_tlvs", |_| Err::<(), _>(needed.to_owned()));
        }
        for tlv in tlvs {
            if let Err(message) = asked(tlv.value) {
                reader.refuse(&tlv.place, message);
            }
        }
    }
    let names: Vec<_> = tlvs.iter().flatten().map(|tlv| tlv.value).collect();
    version.map(|At { value, place }| At { value: told(value, &names), place })
}

/// The header for a version and for names of TLVs that were checked before.
pub(crate) fn told(version: ProxyVersion, tlvs: &[&str]) -> SendProxy {
    let has = |name| tlvs.contains(&name);
    SendProxy { version, unique_id: has(UNIQUE_ID), crc32c: has(CRC32C) }
}

/// Checks that the word names a TLV that must be asked for.
pub(crate) fn asked(tlv: &str) -> Read<()> {
    word(&[(UNIQUE_ID, ()), (CRC32C, ())])(&DeValue::String(tlv.into()))
}

/// The message for a wrong number of ranges.
pub(crate) fn count(ranges: usize) -> String {
    match ranges {
        0 => "names no range: nobody would have to send a header; leave accept_proxy out".into(),
        _ => format!("names {ranges} ranges; {MAX_RANGES} at the most"),
    }
}
