//! The short form of a listener that has a route and a backend of its own.

use crate::machine::Machine;
use crate::model::backend::Backend;
use crate::model::place::At;
use crate::model::route::{Route, WeightedBackend};
use crate::toml::backend::backend;
use crate::toml::reader::{Reader, Table};
use crate::toml::route::weighted_backends;

/// The route and the backend of a listener with `endpoints`, or the route of a listener with
/// `backends`. Both have the listener's name.
pub(crate) struct Own {
    pub(crate) route: Route,
    pub(crate) backend: Option<Backend>,
}

/// Reads the keys `endpoints` and `backends` of the listener `name`, and keys of a backend that
/// stand beside `endpoints`. `name` is missing if the listener's name is bad. `None`: only other
/// routes lead from the listener to backends.
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
    if !has_endpoints {
        let homeless: Vec<_> = table.guests(reader).collect();
        for key in homeless {
            let message = "is about endpoints, and this listener has no `endpoints` of its own: \
                           write this key in [[backends]]";
            reader.refuse(&key, message);
        }
    }
    let backends = match &backend {
        _ if has_endpoints && table.has("backends") => {
            let message = "stands beside `endpoints`; put the endpoints into a backend, and name \
                           the backend here";
            reader.get(table, "backends", |_| Err::<(), _>(message.to_owned()));
            return None;
        }
        Some(backend) => vec![WeightedBackend { name: backend.name.clone(), weight: 1 }],
        None => weighted_backends(reader, table)?,
    };
    let route = Route::of_listener(name?.clone(), name?.clone(), backends);
    Some(Own { route, backend })
}
