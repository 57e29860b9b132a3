//! Checks the protocols (ALPN) that routes ask for.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::listener::Listener;
use crate::model::place::Problem;
use crate::model::route::Route;
use crate::table::routing::Protocol;

/// Only a listener that reads the ClientHello knows which protocols a client offers.
pub(super) fn unseen(route: &Route, listeners: &BTreeMap<&str, &Listener>) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut earlier = BTreeSet::new();
    for name in route.alpn.iter().filter(|name| !earlier.insert(&name.value)) {
        found.push(name.problem(format!("names protocol \"{}\" twice", name.value)));
    }
    let used = route.listeners.iter().filter(|_| !route.alpn.is_empty());
    let used = used.filter_map(|name| Some((name, *listeners.get(name.value.as_str())?)));
    for (name, listener) in used.filter(|(_, listener)| listener.protocol != Protocol::Tls) {
        found.push(name.problem(format!(
            "the route has alpn, and listener \"{}\" is not TLS: it can't see it",
            listener.name.value
        )));
    }
    found
}

/// The protocols that a route asks for, or `None` for all others.
pub(crate) fn asked(route: &Route) -> impl Iterator<Item = Option<&str>> {
    let every = route.alpn.is_empty().then_some(None);
    let is_new = |nth: usize| {
        let before = route.alpn[..nth].iter().map(|name| &name.value);
        !before.into_iter().any(|name| *name == route.alpn[nth].value)
    };
    let each = route.alpn.iter().enumerate().filter(move |(nth, _)| is_new(*nth));
    each.map(|(_, name)| Some(name.value.as_str())).chain(every)
}
