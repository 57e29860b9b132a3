//! Default values for the keys of listeners and backends.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::machine::Machine;
use crate::model::backend::Backend;
use crate::model::listener::Listener;
use crate::model::route::Route;
use crate::table::routing::Protocol;
use crate::toml::backend::{BACKEND, backend};
use crate::toml::listener::{LISTENER, listener};
use crate::toml::reader::{Defaults, Reader, Section, Table, any};

pub(crate) static DEFAULTS: Section =
    Section { name: "defaults", keys: &[any("listener"), any("backend")] };

/// Keys that every listener or backend gives itself.
const OWN: [&str; 8] = [
    "name",
    "address",
    "addresses",
    "hostname",
    "hostnames",
    "endpoints",
    "backends",
    "on_unavailable",
];

/// Reads `defaults`. A table with a fault gives no defaults: each listener would repeat the fault.
pub(crate) fn defaults<'t>(
    reader: &mut Reader<'t>,
    root: &Table<'t>,
    machine: &Machine,
) -> Defaults<'t> {
    let mut defaults = Defaults::default();
    let Some(given) = reader.table(root, "defaults", &DEFAULTS) else { return defaults };
    defaults.listener = read(reader, &given, ("listener", &LISTENER), |reader, table| {
        listener(reader, table, machine);
    });
    defaults.backend = read(reader, &given, ("backend", &BACKEND), |reader, table| {
        backend(reader, table, machine);
    });
    defaults
}

/// The table of defaults, if `values` finds no fault in it. `values` also misses keys that every
/// listener or backend gives itself, and such faults do not count.
fn read<'t>(
    reader: &mut Reader<'t>,
    given: &Table<'t>,
    (key, section): (&str, &'static Section),
    values: impl Fn(&mut Reader<'t>, &Table<'t>),
) -> Option<Rc<Table<'t>>> {
    let table = reader.table(given, key, section)?;
    let before = reader.problems.len();
    for (_, place) in table.given(reader, |_| true).collect::<Vec<_>>() {
        if OWN.iter().any(|own| place.field == table.field(own)) {
            let message = format!("every {key} gives this key itself; write the key there");
            reader.refuse(&place, message);
        }
    }
    if reader.problems.len() > before {
        return None;
    }
    values(reader, &table);
    let found = reader.problems.split_off(before).into_iter();
    let absent = OWN.iter().chain(&["protocol"]).filter(|own| !table.has_own(own));
    let absent: Vec<String> = absent.map(|own| table.field(own)).collect();
    let missed = |field: &String| absent.contains(field);
    reader.problems.extend(found.filter(|problem| !missed(&problem.field)));
    (reader.problems.len() == before).then(|| Rc::new(table))
}

/// The protocol of each backend that only UDP listeners use, or only other listeners. Other
/// backends are not in the map.
pub(crate) fn protocols(listeners: &[Listener], routes: &[Route]) -> BTreeMap<String, Protocol> {
    let is_udp: BTreeMap<&str, bool> = listeners
        .iter()
        .map(|listener| (listener.name.value.as_str(), listener.protocol == Protocol::Udp))
        .collect();
    let mut of_users: BTreeMap<&str, BTreeSet<Option<bool>>> = BTreeMap::new();
    for route in routes {
        let udp = || route.listeners.iter().map(|name| is_udp.get(name.value.as_str()).copied());
        for backend in &route.backends {
            of_users.entry(&backend.name.value).or_default().extend(udp());
        }
    }
    let one = of_users.into_iter().filter_map(|(backend, udp)| {
        let udp = udp.first().copied().flatten().filter(|_| udp.len() == 1)?;
        Some((backend.to_owned(), if udp { Protocol::Udp } else { Protocol::Tcp }))
    });
    one.collect()
}

/// Takes health checks that are defaults, and that need TCP, from backends of UDP.
pub(crate) fn drop_checks_of_udp(backends: &mut [Backend], protocols: &BTreeMap<String, Protocol>) {
    for backend in backends {
        let unfit = backend.health_check.as_ref().is_some_and(|check| {
            check.place.field.starts_with("defaults.")
                && !check.value.is_beside()
                && !check.value.speaks_udp()
        });
        if unfit && protocols.get(&backend.name.value) == Some(&Protocol::Udp) {
            backend.health_check = None;
        }
    }
}
