//! The keys of a route.

use toml::de::{DeTable, DeValue};

use crate::model::place::At;
use crate::model::route::{Route, Takes, WeightedBackend};
use crate::table::routing::{OnUnavailable, RouteBalance};
use crate::toml::admission;
use crate::toml::limit::{Owner, limit};
use crate::toml::reader::{
    Read, Reader, Section, Table, any, flawless, integer, not, or, string, word,
};
use crate::toml::source_limit::limit_source;
use crate::toml::tls::protocol;
use crate::toml::values::{hostname, name, range};

pub(crate) static ROUTE: Section = Section {
    name: "routes",
    keys: &[
        any("name"),
        any("listeners"),
        any("hostnames"),
        any("alpn"),
        any("sources"),
        any("allow"),
        any("deny"),
        any("limit_source"),
        any("limit"),
        any("backends"),
        any("balance"),
        any("on_unavailable"),
    ],
};

pub(crate) static ROUTE_BACKEND: Section =
    Section { name: "routes.backends", keys: &[any("name"), any("weight")] };

pub(crate) fn route<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<Route> {
    let head = flawless(reader, |reader| {
        let name = reader.need(table, "name", "every route has a name of its own", name);
        reader.miss(table, "listeners", "the names of the listeners that the route is for");
        let listeners = reader.list(table, "listeners", name_of);
        if listeners.as_ref().is_some_and(Vec::is_empty) {
            reader.get(table, "listeners", |_| Err::<(), _>("names no listener".to_owned()));
        }
        let hostnames = reader.list(table, "hostnames", hostname).unwrap_or_default();
        let alpn = protocols(reader, table);
        let sources = reader.list(table, "sources", range);
        if sources.as_ref().is_some_and(Vec::is_empty) {
            let message = "names no range; without this key the route is for all others";
            reader.get(table, "sources", |_| Err::<(), _>(message.to_owned()));
        }
        let admission = admission::admission(reader, table);
        Some((name?, listeners?, (hostnames, alpn), sources.unwrap_or_default(), admission))
    });
    reader.miss(table, "backends", "such as [{ name = \"pg-a\", weight = 90 }], or []");
    let backends = weighted_backends(reader, table).unwrap_or_default();
    let limit_source = limit_source(reader, table, None).and_then(|value| {
        let place = reader.get(table, "limit_source", |_| Ok(()))?.place;
        Some(At { value, place })
    });
    let limit = limit(reader, table, Owner::Other);
    let balance = or(reader.get(table, "balance", word(&BALANCES)), RouteBalance::RoundRobin);
    let on_unavailable =
        reader.get(table, "on_unavailable", word(&ON_UNAVAILABLE)).map(|at| at.value);
    let (name, listeners, (hostnames, alpn), sources, admission) = head?;
    Some(Route {
        name,
        takes: Takes::Usual,
        listeners,
        hostnames,
        alpn,
        sources,
        admission,
        limit_source,
        limit,
        balance,
        on_unavailable,
        backends,
    })
}

/// The protocols that the route asks for.
fn protocols<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Vec<At<String>> {
    let alpn = reader.list(table, "alpn", protocol);
    if alpn.as_ref().is_some_and(Vec::is_empty) {
        let message = "names no protocol; without this key the route is for all others";
        reader.get(table, "alpn", |value| match value {
            DeValue::Array(list) if list.is_empty() => Err(message.to_owned()),
            _ => Ok(()),
        });
    }
    alpn.unwrap_or_default()
}

/// Reads `backends`. `None`: there is no such list.
pub(crate) fn weighted_backends<'t>(
    reader: &mut Reader<'t>,
    table: &Table<'t>,
) -> Option<Vec<WeightedBackend>> {
    let backends = reader.list(table, "backends", share)?.into_iter();
    let backends = backends.filter_map(|At { value, place }| {
        let table = match value {
            Share::Of(name) => {
                return Some(WeightedBackend { name: At { value: name, place }, weight: 1 });
            }
            Share::Table(table) => &reader.open(table, &ROUTE_BACKEND, place),
        };
        let name = reader.need(table, "name", "the name of a backend", name_of);
        let weight = or(reader.get(table, "weight", integer(0..=1_000_000)), 1);
        Some(WeightedBackend { name: name?, weight })
    });
    Some(backends.collect())
}

/// One entry of `backends`. A name alone has the weight 1.
enum Share<'t> {
    Of(String),
    Table(&'t DeTable<'t>),
}

fn share<'t>(value: &'t DeValue<'t>) -> Read<Share<'t>> {
    match value {
        DeValue::String(name) => Ok(Share::Of(name.clone().into_owned())),
        DeValue::Table(table) => Ok(Share::Table(table)),
        other => Err(not("the name of a backend, or { name = \"pg-a\", weight = 90 }", other)),
    }
}

/// The words of the file.
pub(crate) const BALANCES: [(&str, RouteBalance); 2] =
    [("round-robin", RouteBalance::RoundRobin), ("source-hash", RouteBalance::SourceHash)];

/// The words of the file.
pub(crate) const ON_UNAVAILABLE: [(&str, OnUnavailable); 2] =
    [("refuse", OnUnavailable::Refuse), ("next", OnUnavailable::Next)];

/// The name of another part. A later check looks the name up.
pub(crate) fn name_of<'t>(value: &'t DeValue<'t>) -> Result<String, String> {
    string(value).map(str::to_owned)
}
