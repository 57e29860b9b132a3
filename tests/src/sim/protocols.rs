//! Routes of TLS listeners for clients that offer a protocol (ALPN).

use config_sync::table::alpn::{AlpnChoice, ByAlpn};
use config_sync::table::routing::{Hosts, Listener};

use crate::sim::rng::Rng;

/// The protocol that a TLS listener may have a route for.
pub const PROTOCOL: &str = "acme-tls/1";

/// Whether clients that offer `PROTOCOL` have another route; and if so, whether all others have a
/// route.
pub fn some_by_alpn(rng: &mut Rng) -> Option<bool> {
    rng.per_mille(400).then(|| rng.per_mille(700))
}

/// One value for clients that offer `PROTOCOL`, and one for all others.
pub fn by_alpn(of_protocol: usize, otherwise: Option<usize>) -> Box<ByAlpn> {
    let mut hosts = Hosts::new([1, 2, 3, 4]);
    hosts.insert(None, 0);
    let by_protocol = vec![(PROTOCOL.as_bytes().into(), of_protocol)];
    Box::new(ByAlpn { hosts, choices: vec![AlpnChoice { by_protocol, otherwise }] })
}

/// The value that a listener of the random world has for a client.
pub fn value_for(listener: &Listener, offers: bool) -> Option<usize> {
    let Some(by_alpn) = &listener.by_alpn else { return listener.routes.any() };
    let choice = &by_alpn.choices[0];
    let of_protocol = choice.by_protocol.first().filter(|_| offers).map(|(_, value)| *value);
    of_protocol.or(choice.otherwise)
}
