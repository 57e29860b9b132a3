//! Where the endpoints of a random configuration are: at an IP address, at a Unix socket, or at the
//! port that the client connected to, shifted.

use std::net::{IpAddr, SocketAddr};

use config_sync::table::address::{Address, EndpointAddress, UnixPath};
use config_sync::table::routing::{BackendId, Endpoint, EndpointId};

use crate::sim::rng::Rng;

/// Backends that routes use have ids from here on.
pub const FIRST_ID: u32 = 4;

/// Endpoints that a backend may have. Endpoint ids are given out in pools, one per backend.
pub const POOL: u32 = 4;

/// All that a backend may have.
pub fn some_endpoints(rng: &mut Rng, backend: u32) -> Vec<Endpoint> {
    let mixed = rng.per_mille(500);
    (0..POOL).map(|n| some_endpoint(rng, backend, n, mixed)).collect()
}

/// The third byte of an address is the backend's, and the fourth the endpoint's.
fn some_endpoint(rng: &mut Rng, backend: u32, n: u32, mixed: bool) -> Endpoint {
    let ip = |kind: u8| IpAddr::from([10, kind, backend as u8, n as u8 + 1]);
    let address = match rng.below(5) {
        _ if !mixed => SocketAddr::new(ip(0), 80).into(),
        0 => EndpointAddress::At(socket_file(SocketAddr::new(ip(1), 80))),
        // Of the listeners' ports, the last shift leaves two.
        1 => EndpointAddress::Shifted { ip: ip(2), shift: rng.pick(&[0, 1_000, 60_534]) },
        _ => SocketAddr::new(ip(0), 80).into(),
    };
    Endpoint { id: EndpointId(backend * POOL + n), address, weight: 1 + n % 3 }
}

/// A Unix socket is called after the address by which the simulated kernel knows it.
fn socket_file(place: SocketAddr) -> Address {
    Address::Unix(UnixPath::new(&format!("/sim/{place}")).expect("a path"))
}

/// Where the simulated kernel has what is at this address.
pub fn place(address: Address) -> SocketAddr {
    let of = |path: UnixPath| path.file()?.file_name()?.to_str()?.parse().ok();
    match address {
        Address::Ip(address) => address,
        Address::Unix(path) => of(path).expect("a path of a simulated endpoint"),
    }
}

/// Where clients of these ports find the endpoint.
pub fn places(endpoint: &Endpoint, ports: &[u16]) -> Vec<SocketAddr> {
    let addresses = ports.iter().filter_map(|port| endpoint.address.for_client_of(*port));
    let mut places: Vec<_> = addresses.map(place).collect();
    places.sort_unstable();
    places.dedup();
    places
}

pub fn endpoint_at(place: SocketAddr) -> EndpointId {
    let IpAddr::V4(ip) = place.ip() else { unreachable!("there are no IPv6 endpoints here") };
    let [_, _, backend, host] = ip.octets();
    EndpointId(u32::from(backend) * POOL + u32::from(host) - 1)
}

pub fn backend_of(endpoint: EndpointId) -> BackendId {
    BackendId(FIRST_ID + endpoint.0 / POOL)
}
