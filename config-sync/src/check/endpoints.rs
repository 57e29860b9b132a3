//! Checks whether endpoints fit with each other, and with what uses them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::model::backend::Backend;
use crate::model::endpoint::Endpoint;
use crate::model::listener::Listener;
use crate::model::place::Problem;
use crate::table::address::EndpointAddress;

/// Each address and each name stands once, and a source can reach each address.
pub(super) fn distinct(backend: &Backend) -> Vec<Problem> {
    let mut problems = Vec::new();
    let (mut seen, mut names) = (BTreeMap::new(), BTreeMap::new());
    for (i, endpoint) in backend.endpoints.iter().enumerate() {
        let address = &endpoint.address;
        if let Some(first) = seen.insert(&address.value, i) {
            let message = format!("{} is endpoints[{first}] already", address.value);
            problems.push(address.problem(message));
        }
        if let Some(name) = &endpoint.name
            && let Some(first) = names.insert(&name.value, i)
        {
            let message = format!("\"{}\" is the name of endpoints[{first}]", name.value);
            problems.push(name.problem(message));
        }
        if let Some(given) = endpoint.fixed()
            && !backend.can_reach(given)
        {
            let version = if given.ip().is_some_and(|ip| ip.is_ipv4()) { "IPv4" } else { "IPv6" };
            let message = format!("no address in `source` is {version}, so nothing can connect");
            problems.push(address.problem(message));
        }
    }
    problems
}

/// Unix sockets carry streams, and have no IP addresses. `has_udp`: a UDP listener uses the
/// backend.
pub(super) fn unix(backend: &Backend, has_udp: bool) -> Vec<Problem> {
    let is_unix = |of: &&Endpoint| of.fixed().is_some_and(|address| address.ip().is_none());
    let why = if has_udp {
        "a UDP listener uses this backend, and a Unix socket takes no datagrams"
    } else if backend.is_transparent() {
        "with `transparent`, connections come from clients' IP addresses"
    } else if backend.interface.is_some() {
        "the backend has an `interface`, and no interface leads to a Unix socket"
    } else {
        return Vec::new();
    };
    backend.endpoints.iter().filter(is_unix).map(|of| of.address.problem(why)).collect()
}

/// The address of an endpoint names no other interface than the backend's.
pub(super) fn scopes(backend: &Backend) -> Vec<Problem> {
    let Some(interface) = &backend.interface else { return Vec::new() };
    let is_elsewhere = |of: &&Endpoint| match of.socket_address() {
        Some(SocketAddr::V6(address)) => ![0, interface.value.index].contains(&address.scope_id()),
        _ => false,
    };
    let message = format!("the backend's `interface` is \"{}\"", interface.value.name);
    let elsewhere = backend.endpoints.iter().filter(is_elsewhere);
    elsewhere.map(|of| of.address.problem(message.as_str())).collect()
}

/// An endpoint whose port depends on the client's needs a port of the client, and no port above
/// 65535. `on_unix` is a listener of the backend on a Unix socket, and `highest` the listener with
/// the highest port.
pub(super) fn shifted(
    backend: &Backend,
    on_unix: Option<&Listener>,
    highest: Option<(u16, &Listener)>,
) -> Vec<Problem> {
    let checks_own_port = backend.health_check.as_ref().is_some_and(|check| check.value.port == 0);
    let problem = |endpoint: &Endpoint| {
        let EndpointAddress::Shifted { shift, .. } = endpoint.fixed()? else { return None };
        let name = |listener: &Listener| listener.name.value.clone();
        let message = match (on_unix.map(name), highest) {
            (Some(name), _) => {
                format!("listener \"{name}\" is on a Unix socket, which has no port")
            }
            (_, Some((port, listener))) if port.checked_add(shift).is_none() => {
                let name = name(listener);
                format!("port {port} of listener \"{name}\" and {shift} are more than 65535")
            }
            _ if checks_own_port => {
                "a check has no client, so `health_check` needs its `port`".to_owned()
            }
            _ => return None,
        };
        Some(endpoint.address.problem(message))
    };
    backend.endpoints.iter().filter_map(problem).collect()
}
