//! Hashes of a client's address. They are equal on every worker and machine, and after each
//! restart, because replicas must agree.

#![expect(clippy::cast_possible_truncation, reason = "hashes are cut on purpose")]

use std::net::{IpAddr, SocketAddr};

use config_sync::table::routing::{Route, WeightedBackend};

/// Weighted rendezvous hashing (Schindelhauer and Schomaker, SPAA 2005): each backend has a
/// distance from the client, which its weight divides, and the nearest backend is the client's. A
/// backend that gets a larger share takes clients from the others, and no client moves between two
/// backends whose weights keep their proportion. Backends that may not serve the client are passed
/// over.
pub fn backend_of(
    route: &Route,
    client: SocketAddr,
    may_serve: impl Fn(&WeightedBackend) -> bool,
) -> Option<usize> {
    let source = source_hash(client, false);
    let mut nearest: Option<(u64, &WeightedBackend)> = None;
    for share in route.backends.iter().filter(|share| share.weight > 0 && may_serve(share)) {
        let far = distance(mix(source ^ share.key));
        // The quotients are compared without a division: a / x < b / y if a * y < b * x. A distance
        // has 39 bits and a weight 20.
        let is_nearer = nearest.is_none_or(|(other_far, other)| {
            far * u64::from(other.weight) < other_far * u64::from(share.weight)
        });
        if is_nearer {
            nearest = Some((far, share));
        }
    }
    nearest.map(|(_, share)| share.backend)
}

/// The negative binary logarithm of `hash` / 2^64, with 32 bits behind the point. For hashes that
/// are spread evenly, the distances are spread exponentially. The arithmetic is of integers:
/// logarithms of floating-point numbers differ from machine to machine in their last bits, and
/// replicas must agree.
fn distance(hash: u64) -> u64 {
    let hash = hash | 1;
    let zeros = hash.leading_zeros();
    // From 1 to below 2, with 63 bits behind the point. Each squaring gives one more bit of the
    // logarithm.
    let mut mantissa = hash << zeros;
    let mut fraction = 0;
    for _ in 0..32 {
        let square = u128::from(mantissa) * u128::from(mantissa);
        let bit = (square >> 127) as u64;
        mantissa = (square >> (63 + bit)) as u64;
        fraction = fraction << 1 | bit;
    }
    ((u64::from(zeros) + 1) << 32) - fraction
}

/// The hash is equal on each worker, on each machine and after each restart, because replicas must
/// agree.
pub fn source_hash(client: SocketAddr, with_port: bool) -> u64 {
    let address = match client.ip() {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let port = if with_port { u64::from(client.port()) + 1 } else { 0 };
    mix(mix(mix(address as u64) ^ (address >> 64) as u64) ^ port)
}

/// The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use config_sync::table::routing::{BackendId, OnUnavailable, RouteBalance, RouteId};

    use super::*;

    fn route(weights: &[(u32, u32)]) -> Route {
        let share = |(position, (id, weight)): (usize, &(u32, u32))| WeightedBackend {
            id: BackendId(*id),
            backend: position,
            weight: *weight,
            key: u64::from(*id),
        };
        Route {
            id: RouteId(0),
            name: "r".into(),
            access: None,
            limit_source: None,
            limit: None,
            balance: RouteBalance::SourceHash,
            on_unavailable: OnUnavailable::Refuse,
            backends: weights.iter().enumerate().map(share).collect(),
        }
    }

    /// The backend of each of 10,000 clients.
    fn backends_of(weights: &[(u32, u32)]) -> Vec<u32> {
        let route = route(weights);
        let clients = (0..10_000u32).map(|client| {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + client * 7);
            let position = backend_of(&route, (address, client as u16).into(), |_| true).unwrap();
            route.backends[position].id.0
        });
        clients.collect()
    }

    fn count(backends: &[u32], wanted: u32) -> usize {
        backends.iter().filter(|backend| **backend == wanted).count()
    }

    #[test]
    fn a_client_stays_on_its_side_of_a_split() {
        let before = backends_of(&[(1, 90), (2, 10)]);
        assert!((900..=1_100).contains(&count(&before, 2)), "{}", count(&before, 2));
        assert_eq!(before, backends_of(&[(2, 100), (1, 900)]), "proportions decide, in any order");

        let after = backends_of(&[(1, 80), (2, 20)]);
        let moved = |from, to| {
            let moves = before.iter().zip(&after);
            moves.filter(|(before, after)| (**before, **after) == (from, to)).count()
        };
        assert_eq!(moved(2, 1), 0);
        assert!((900..=1_100).contains(&moved(1, 2)), "a tenth: {}", moved(1, 2));

        assert!(backends_of(&[(1, 100), (2, 0)]).iter().all(|backend| *backend == 1));
    }

    #[test]
    fn a_backend_that_comes_or_goes_moves_only_its_own_clients() {
        let (three, two) = (backends_of(&[(1, 50), (2, 30), (3, 20)]), [(1, 50), (2, 30), (3, 0)]);
        for (three, two) in three.iter().zip(backends_of(&two)) {
            assert!(*three == 3 || *three == two);
        }
        for (backend, expected) in [(1, 5_000), (2, 3_000), (3, 2_000)] {
            let count = count(&three, backend);
            assert!(count.abs_diff(expected) < 200, "{backend}: {count}");
        }
    }

    #[test]
    fn shares_of_any_size_are_kept() {
        let lopsided = backends_of(&[(1, 1_000_000), (2, 10_000), (3, 1)]);
        assert!((60..=140).contains(&count(&lopsided, 2)), "{}", count(&lopsided, 2));
        assert!(count(&lopsided, 3) <= 1);
    }

    /// Replicas of other machines and versions must choose alike, so this never changes.
    #[test]
    fn distances_are_the_same_on_every_machine() {
        assert_eq!(distance(u64::MAX), 1);
        assert_eq!(distance(1 << 63), (1 << 32));
        assert_eq!(distance(0), 64 << 32);
        assert_eq!(distance(0x9e37_79b9_7f4a_7c15), 2_981_746_315);
        let first: Vec<u32> = backends_of(&[(1, 1), (2, 1)]).into_iter().take(16).collect();
        assert_eq!(first, [2, 2, 2, 2, 2, 2, 1, 1, 2, 1, 2, 1, 2, 1, 1, 1]);
    }
}
