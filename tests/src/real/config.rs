//! Pieces of a configuration file.

use std::net::SocketAddr;

use super::in_kernel;

/// One listener, route and backend, all named `main`. `options` are the listener's.
pub fn forward(
    protocol: &str,
    from: SocketAddr,
    to: impl IntoIterator<Item = SocketAddr>,
    options: &str,
) -> String {
    forward_as("main", protocol, from, to, options)
}

/// The same with another name.
pub fn forward_as(
    name: &str,
    protocol: &str,
    from: SocketAddr,
    to: impl IntoIterator<Item = SocketAddr>,
    options: &str,
) -> String {
    let keys = if protocol == "UDP" { in_kernel::keys("") } else { "" };
    listener(name, protocol, from, options)
        + &route(name, name, &[(name, 1)], "")
        + &plain_backend(name, to, keys)
}

/// `options`: further lines of the listener's table.
pub fn listener(name: &str, protocol: &str, address: SocketAddr, options: &str) -> String {
    format!(
        "[[listeners]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\naddress = \"{address}\"\n\
         {options}\n"
    )
}

/// `options`: further lines of the route's table.
pub fn route(name: &str, listener: &str, backends: &[(&str, u32)], options: &str) -> String {
    let backends: Vec<_> = backends
        .iter()
        .map(|(name, weight)| format!("{{ name = \"{name}\", weight = {weight} }}"))
        .collect();
    format!(
        "[[routes]]\nname = \"{name}\"\nlisteners = [\"{listener}\"]\nbackends = [{}]\n{options}\n",
        backends.join(", ")
    )
}

/// `options`: further lines of the backend's table. Where gateways forward in the kernel, all tests
/// are about UDP.
pub fn backend(
    name: &str,
    endpoints: impl IntoIterator<Item = SocketAddr>,
    options: &str,
) -> String {
    plain_backend(name, endpoints, &format!("{}{options}", in_kernel::keys(options)))
}

fn plain_backend(
    name: &str,
    endpoints: impl IntoIterator<Item = SocketAddr>,
    options: &str,
) -> String {
    let endpoints: Vec<_> = endpoints.into_iter().map(|address| format!("\"{address}\"")).collect();
    format!("[[backends]]\nname = \"{name}\"\nendpoints = [{}]\n{options}\n", endpoints.join(", "))
}
