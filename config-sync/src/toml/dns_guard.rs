//! The keys of the guard of DNS servers.

use crate::table::routing::DnsGuard;
use crate::toml::reader::{Reader, Section, Table, any, integer, or, word};

pub(crate) static DNS_GUARD: Section =
    Section { name: "listeners.dns_guard", keys: &[any("any"), any("slip")] };

/// Whether questions for all types of records are dropped.
const ANY: [(&str, bool); 2] = [("drop", true), ("pass", false)];

/// Of how many datagrams over a limit one is answered.
pub(crate) const SLIP: u32 = 2;
const MOST_SLIP: u32 = 1_000;

/// Reads `dns_guard`. `None`: every datagram is forwarded.
pub(crate) fn dns_guard<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<DnsGuard> {
    let given = &reader.table(table, "dns_guard", &DNS_GUARD)?;
    Some(DnsGuard {
        drops_any: or(reader.get(given, "any", word(&ANY)), true),
        slip: or(reader.get(given, "slip", integer(0..=MOST_SLIP)), SLIP),
    })
}
