//! Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4): a look-up table that gives every
//! endpoint an equal share of the hash values. Little of the table changes when an endpoint comes
//! or goes.

use std::net::IpAddr;
use std::sync::Arc;

use super::address::{Address, EndpointAddress};
use super::fnv::Fnv;
use super::turns::scaled;

/// The two sizes of a table, which are primes. The larger one is taken where the smaller one has
/// fewer than 100 entries for an endpoint, or for a part of a larger weight, so that shares differ
/// by at most 1 %. For more than 655 endpoints shares differ by more. No smaller size is for two
/// endpoints, because a change of size moves clients besides those that must move.
const SMALL: u32 = 5_003;
const LARGE: u32 = 65_537;

/// The look-up table: indices into `endpoints`, which has at most 65,536 entries of an address and
/// its weight. An endpoint's share is its weight, divided by the sum of the weights. The table is
/// empty if no endpoint has a weight above 0, and has one entry if one endpoint has.
///
/// The table depends only on the set of entries, not on their order, the process or the machine. So
/// all gateways with one configuration send a client to one endpoint.
pub(crate) fn table(endpoints: &[(EndpointAddress, u32)]) -> Arc<[u16]> {
    let weights = scaled(&endpoints.iter().map(|(_, weight)| *weight).collect::<Vec<_>>());
    let most = weights.iter().copied().max().unwrap_or(0);
    if most == 0 {
        return Arc::default();
    }
    let mut order: Vec<u16> = (0..=u16::MAX).take(endpoints.len()).collect();
    order.sort_by_key(|i| endpoints[usize::from(*i)].0);
    let sum: u64 = weights.iter().sum();
    if sum == most {
        return order.into_iter().filter(|i| weights[usize::from(*i)] > 0).collect();
    }
    let size = if u64::from(SMALL) >= 100 * sum { SMALL } else { LARGE };
    let walk = |i: &u16| Walk::new(endpoints[usize::from(*i)].0, size);
    let mut walks: Vec<_> = order.iter().map(|i| (*i, weights[usize::from(*i)], walk(i))).collect();
    let mut slots: Vec<Option<u16>> = vec![None; size as usize];
    let mut free = slots.len();
    for round in 0u64.. {
        for (index, weight, walk) in &mut walks {
            // The heaviest endpoint takes a slot in each round, the others in a part of the rounds.
            if (round + 1) * *weight / most == round * *weight / most {
                continue;
            }
            let slot = loop {
                let slot = walk.step(size);
                if slots[slot].is_none() {
                    break slot;
                }
            };
            slots[slot] = Some(*index);
            free -= 1;
            if free == 0 {
                return slots.into_iter().flatten().collect();
            }
        }
    }
    unreachable!("every round takes a slot")
}

/// The order in which one endpoint wants the slots. Each slot comes once, because the size is
/// prime.
struct Walk {
    next: u32,
    skip: u32,
}

impl Walk {
    fn new(endpoint: EndpointAddress, size: u32) -> Self {
        let hash = hash(endpoint);
        let (low, high) = ((hash & 0xffff_ffff) as u32, (hash >> 32) as u32);
        Self { next: low % size, skip: high % (size - 1) + 1 }
    }

    fn step(&mut self, size: u32) -> usize {
        let slot = self.next;
        self.next = (slot + self.skip) % size;
        slot as usize
    }
}

/// FNV-1a over address and port, then the finalizer of SplitMix64, because FNV's high bits are
/// weak. This hash must never change: another hash would move every client when a gateway is
/// upgraded.
pub(crate) fn hash(endpoint: EndpointAddress) -> u64 {
    let mut hash = Fnv::new();
    match endpoint.ip() {
        Some(IpAddr::V4(ip)) => hash.add(&ip.octets()),
        Some(IpAddr::V6(ip)) => hash.add(&ip.octets()),
        None => {}
    }
    match endpoint {
        EndpointAddress::At(Address::Ip(address)) => hash.add(&address.port().to_be_bytes()),
        EndpointAddress::At(Address::Unix(name)) => hash.add(&name.to_bytes()),
        EndpointAddress::Shifted { shift, .. } => hash.add(&u32::from(shift).to_be_bytes()),
    }
    let hash = hash.value();
    let mixed = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn endpoints(n: u16) -> Vec<(EndpointAddress, u32)> {
        (0..n)
            .map(|i| {
                let [high, low] = i.to_be_bytes();
                (SocketAddr::from(([10, 0, high, low], 5432)).into(), 1)
            })
            .collect()
    }

    #[test]
    fn shares_follow_weights_and_no_weight_is_no_share() {
        for weights in [&[3, 1, 0][..], &[90, 10], &[256, 1, 64, 64]] {
            let mut endpoints = endpoints(u16::try_from(weights.len()).expect("few"));
            for (endpoint, weight) in endpoints.iter_mut().zip(weights) {
                endpoint.1 = *weight;
            }
            let table = table(&endpoints);
            let sum: u32 = weights.iter().sum();
            for (index, weight) in weights.iter().enumerate() {
                let count = table.iter().filter(|slot| usize::from(**slot) == index).count();
                let share = table.len() as f64 * f64::from(*weight) / f64::from(sum);
                assert!((count as f64 - share).abs() <= 2.0, "{weights:?}: {count}, not {share}");
            }
        }
    }

    #[test]
    fn a_change_of_weight_moves_little_more_than_it_must() {
        let mut endpoints = endpoints(10);
        let before = table(&endpoints.iter().map(|(at, _)| (*at, 10)).collect::<Vec<_>>());
        endpoints.iter_mut().for_each(|endpoint| endpoint.1 = 10);
        endpoints[3].1 = 5;
        let after = table(&endpoints);
        assert_eq!(before.len(), after.len());
        let moved = before.iter().zip(after.iter()).filter(|(was, is)| was != is).count();
        assert!(moved * 100 < before.len() * 15, "{moved} of {}", before.len());
    }

    #[test]
    fn shares_are_within_five_per_cent_of_equal() {
        for n in [1, 2, 3, 10, 50, 655] {
            let table = table(&endpoints(n));
            let mut counts = vec![0usize; usize::from(n)];
            for slot in table.iter() {
                counts[usize::from(*slot)] += 1;
            }
            let share = table.len() as f64 / f64::from(n);
            for count in counts {
                assert!((count as f64 / share - 1.0).abs() < 0.05, "{n}: {count} of {share}");
            }
        }
    }

    #[test]
    fn removing_one_of_ten_moves_less_than_a_fifth_of_the_other_keys() {
        let ten = endpoints(10);
        let before = table(&ten);
        for removed in 0..10u16 {
            let mut nine = ten.clone();
            nine.remove(removed.into());
            let after = table(&nine);
            assert_eq!(before.len(), after.len());
            let others = || before.iter().zip(after.iter()).filter(|(was, _)| **was != removed);
            let moved =
                others().filter(|(was, is)| ten[usize::from(**was)] != nine[usize::from(**is)]);
            let (moved, others) = (moved.count(), others().count());
            assert!(moved * 5 < others, "{moved} of {others}");
        }
    }

    #[test]
    fn the_order_of_endpoints_changes_nothing_and_neither_does_time() {
        let forward = endpoints(7);
        let mut backward = forward.clone();
        backward.reverse();
        let (a, b) = (table(&forward), table(&backward));
        let same = a
            .iter()
            .zip(b.iter())
            .all(|(a, b)| forward[usize::from(*a)] == backward[usize::from(*b)]);
        assert!(same);
        // Earlier versions computed this value. If the test fails, an upgrade moves clients.
        assert_eq!(hash(SocketAddr::from(([10, 0, 0, 1], 5432)).into()), 0xecbd_18cd_082f_43c2);
    }

    #[test]
    fn lengths_are_prime_and_at_least_a_hundred_times_the_endpoints() {
        for (n, len) in [(0, 0), (1, 1), (2, 5_003), (50, 5_003), (51, 65_537)] {
            assert_eq!(table(&endpoints(n)).len(), len, "{n}");
        }
        let mut two = endpoints(2);
        two[0].1 = 0;
        assert_eq!(table(&two)[..], [1], "one endpoint with a weight");
    }
}
