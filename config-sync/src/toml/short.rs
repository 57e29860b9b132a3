//! The short form of a listener that has a route and a backend of its own.

use crate::machine::Machine;
use crate::model::backend::Backend;
use crate::model::place::{At, Place};
use crate::model::route::{Route, WeightedBackend};
use crate::table::routing::RouteBalance;
use crate::toml::backend::backend;
use crate::toml::reader::{Reader, Table, or, word};
use crate::toml::route::{BALANCES, ON_UNAVAILABLE, weighted_backends};

/// The route and the backend of a listener with `endpoints`, or the route of a listener with
/// `backends`. Both have the listener's name.
pub(crate) struct Own {
    pub(crate) route: Route,
    pub(crate) backend: Option<Backend>,
}

/// Reads the keys `endpoints` and `backends` of the listener `name`, keys of a backend that stand
/// beside `endpoints`, and keys of a route that stand beside `backends`. `name` is missing if the
/// listener's name is bad. `None`: only other routes lead from the listener to backends.
pub(crate) fn own<'t>(
    reader: &mut Reader<'t>,
    table: &Table<'t>,
    name: Option<&At<String>>,
    machine: &Machine,
) -> Option<Own> {
    let has_endpoints = table.has("endpoints");
    let before = reader.problems.len();
    let guest = table.guest().filter(|_| has_endpoints);
    let backend = guest.and_then(|table| backend(reader, &table, machine));
    if name.is_none() {
        // The listener has a problem with its name already.
        let field = table.field("name");
        let new = reader.problems.split_off(before).into_iter();
        reader.problems.extend(new.filter(|problem| problem.field != field));
    }
    let has_backends = table.has("backends");
    if !has_endpoints {
        // Several backends have one balance, which is the route's.
        let balance = table.field("balance");
        let is_homeless = |key: &Place| !has_backends || key.field != balance;
        let homeless: Vec<_> = table.guests(reader).filter(is_homeless).collect();
        for key in homeless {
            let message = "is about endpoints, and this listener has no `endpoints` of its own: \
                           write this key in [[backends]]";
            reader.refuse(&key, message);
        }
    }
    let on_unavailable = reader.get(table, "on_unavailable", |value| {
        let asked = word(&ON_UNAVAILABLE)(value)?;
        has_backends.then_some(asked).ok_or_else(|| {
            "is about a choice of backends, and this listener has no `backends` of its own: name \
             them, or write this key in [[routes]]"
                .to_owned()
        })
    });
    let backends = match &backend {
        _ if has_endpoints && has_backends => {
            let message = "stands beside `endpoints`; put the endpoints into a backend, and name \
                           the backend here";
            reader.get(table, "backends", |_| Err::<(), _>(message.to_owned()));
            return None;
        }
        Some(backend) => vec![WeightedBackend { name: backend.name.clone(), weight: 1 }],
        None => weighted_backends(reader, table)?,
    };
    // A default for backends is about their endpoints.
    let of_route = table.guest().filter(|guest| !has_endpoints && guest.has_own("balance"));
    let balance = of_route.and_then(|table| reader.get(&table, "balance", word(&BALANCES)));
    let balance = or(balance, RouteBalance::RoundRobin);
    let on_unavailable = on_unavailable.map(|at| at.value);
    let of_listener = Route::of_listener(name?.clone(), name?.clone(), backends);
    Some(Own { route: Route { balance, on_unavailable, ..of_listener }, backend })
}
