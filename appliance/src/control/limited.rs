//! The limits of a table, each once, for lists and metrics.

use std::sync::Arc;

use config_sync::table::limit::Limit;
use config_sync::table::routing::RoutingTable;

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Whose<'a> {
    /// `process`, `listener`, `route`, `backend` or `shared`.
    pub kind: &'static str,
    /// Empty for the process.
    pub name: &'a str,
}

/// The limits of the process and of parts. A limit that parts share is there once.
pub fn limited(table: &RoutingTable) -> impl Iterator<Item = (Whose<'_>, &Limit)> {
    let process = table.total.iter().map(|limit| ("process", "", limit));
    let listeners = table.listeners.iter();
    let listeners = listeners.filter_map(|of| Some(("listener", &*of.name, of.limit.as_ref()?)));
    let routes = table.routes.iter();
    let routes = routes.filter_map(|of| Some(("route", &*of.name, of.limit.as_ref()?)));
    let backends = table.backends.iter();
    let backends = backends.filter_map(|of| Some(("backend", &*of.name, of.limit.as_ref()?)));
    let mut seen = Vec::new();
    let all = process.chain(listeners).chain(routes).chain(backends);
    all.filter_map(move |(kind, name, limit)| match &limit.shared {
        None => Some((Whose { kind, name }, &**limit)),
        Some(name) if seen.contains(&name) => None,
        Some(name) => {
            seen.push(name);
            Some((Whose { kind: "shared", name }, &**limit))
        }
    })
}

/// A limit, and the words that name its owner.
#[derive(Clone, Debug)]
pub struct Named {
    pub kind: &'static str,
    pub name: Arc<str>,
    pub limit: Limit,
}

impl Named {
    pub fn all(table: &RoutingTable) -> Vec<Self> {
        let named = |(whose, limit): (Whose<'_>, &Limit)| Self {
            kind: whose.kind,
            name: whose.name.into(),
            limit: limit.clone(),
        };
        limited(table).map(named).collect()
    }
}
