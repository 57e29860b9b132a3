//! The table without the listeners that an operator drains.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::table::hosts::Hosts;
use crate::table::routing::RoutingTable;

/// The table without the new sessions and flows of these listeners.
///
/// A socket that has no other listener leaves the table, so the kernel refuses connections, and a
/// load balancer in front notices. A listener that shares its socket with others stays, and has no
/// routes: without the listener, clients with its names would go to a listener with wider names.
pub(super) fn without<'t>(
    table: Cow<'t, RoutingTable>,
    drained: &BTreeSet<Arc<str>>,
) -> Cow<'t, RoutingTable> {
    if drained.is_empty() {
        return table;
    }
    let mut table = table.into_owned();
    let is_drained: Vec<bool> =
        table.listeners.iter().map(|listener| drained.contains(&listener.name)).collect();
    table.sockets.retain(|socket| socket.listeners.values().any(|at| !is_drained[at]));
    for socket in &mut table.sockets {
        for fallback in [&mut socket.not_tls, &mut socket.silent] {
            *fallback = fallback.filter(|to| !is_drained[to.listener]);
        }
    }
    let drained = table.listeners.iter_mut().zip(&is_drained).filter(|(_, drained)| **drained);
    for (listener, _) in drained {
        // An empty map hashes nothing, so its seeds are of no use.
        listener.routes = Hosts::new([0; 4]);
        listener.by_alpn = None;
    }
    Cow::Owned(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::parse_for;
    use crate::compile::names::Names;
    use crate::compile::whole;
    use crate::machine::Machine;
    use crate::model::endpoint::Resolved;

    /// A listener alone on its two sockets, and two that share one.
    fn table() -> RoutingTable {
        let text = r#"
            [[listeners]]
            name = "plain"
            addresses = ["127.0.0.1:80", "127.0.0.1:81"]
            protocol = "TCP"
            endpoints = ["10.0.0.1:80"]
            [[listeners]]
            name = "one"
            address = "127.0.0.1:443"
            protocol = "TLS"
            hostnames = ["a.example.com"]
            endpoints = ["10.0.0.1:443"]
            [[listeners]]
            name = "all"
            address = "127.0.0.1:443"
            protocol = "TLS"
            endpoints = ["10.0.0.1:444"]
        "#;
        let machine = Machine { cores: vec![0], congestion: Vec::new() };
        let config = parse_for("f", text, &machine).unwrap_or_else(|fault| panic!("{fault}"));
        whole(&config, &Resolved::default(), &mut Names::new()).expect("its parts fit").table
    }

    fn of(names: &[&str]) -> RoutingTable {
        let names = names.iter().map(|name| Arc::from(*name)).collect();
        without(Cow::Owned(table()), &names).into_owned()
    }

    fn route(table: &RoutingTable, name: &str) -> Option<usize> {
        let socket = table.sockets.iter().find(|socket| socket.reads_hello)?;
        let listener = socket.listeners.get(Some(name))?;
        table.listeners[listener].routes.get(Some(name))
    }

    #[test]
    fn the_sockets_of_drained_listeners_leave() {
        assert_eq!(of(&[]).sockets.len(), 3);
        let table = of(&["plain"]);
        assert_eq!(table.sockets.len(), 1);
        assert_eq!(table.listeners.len(), 3, "sessions that live have its id");
        assert!(route(&table, "a.example.com").is_some());
        assert!(of(&["plain", "one", "all"]).sockets.is_empty());
    }

    #[test]
    fn names_of_a_drained_listener_go_to_no_other() {
        let table = of(&["one"]);
        assert_eq!(table.sockets.len(), 3);
        assert_eq!(route(&table, "a.example.com"), None);
        assert!(route(&table, "b.example.com").is_some());
        let table = of(&["all"]);
        assert!(route(&table, "a.example.com").is_some());
        assert_eq!(route(&table, "b.example.com"), None);
    }
}
