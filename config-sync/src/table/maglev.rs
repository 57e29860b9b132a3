//! Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4): a look-up table that gives every
//! endpoint an equal share of the hash values. Little of the table changes when an endpoint comes
//! or goes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::fnv::Fnv;

/// Table sizes, which are primes. The smallest size with 100 entries for each endpoint is taken, so
/// that shares differ by at most 1 %. For more than 655 endpoints the largest size is taken, and
/// shares differ by more.
const SIZES: [u16; 2] = [251, 5_003];
const LARGEST: u32 = 65_537;

/// The look-up table: indices into `endpoints`, which has at most 65,536 entries. The table is
/// empty without endpoints.
///
/// The table depends only on the set of addresses, not on their order, the process or the machine.
/// So all gateways with one configuration send a client to one endpoint.
pub(crate) fn table(endpoints: &[SocketAddr]) -> Arc<[u16]> {
    let mut order: Vec<u16> = (0..=u16::MAX).take(endpoints.len()).collect();
    if order.is_empty() {
        return Arc::default();
    }
    order.sort_by_key(|i| endpoints[usize::from(*i)]);
    let fits = |size: &&u16| usize::from(**size) >= 100 * endpoints.len();
    let size = SIZES.iter().find(fits).map_or(LARGEST, |size| u32::from(*size));
    let mut walks: Vec<_> =
        order.iter().map(|i| Walk::new(endpoints[usize::from(*i)], size)).collect();
    let mut slots: Vec<Option<u16>> = vec![None; size as usize];
    let mut free = slots.len();
    for turn in (0..order.len()).cycle() {
        let slot = loop {
            let slot = walks[turn].step(size);
            if slots[slot].is_none() {
                break slot;
            }
        };
        slots[slot] = Some(order[turn]);
        free -= 1;
        if free == 0 {
            break;
        }
    }
    slots.into_iter().flatten().collect()
}

/// The order in which one endpoint wants the slots. Each slot comes once, because the size is
/// prime.
struct Walk {
    next: u32,
    skip: u32,
}

impl Walk {
    fn new(endpoint: SocketAddr, size: u32) -> Self {
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
pub(crate) fn hash(endpoint: SocketAddr) -> u64 {
    let mut hash = Fnv::new();
    match endpoint.ip() {
        IpAddr::V4(ip) => hash.add(&ip.octets()),
        IpAddr::V6(ip) => hash.add(&ip.octets()),
    }
    hash.add(&endpoint.port().to_be_bytes());
    let hash = hash.value();
    let mixed = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(n: u16) -> Vec<SocketAddr> {
        (0..n)
            .map(|i| {
                let [high, low] = i.to_be_bytes();
                SocketAddr::from(([10, 0, high, low], 5432))
            })
            .collect()
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
        assert_eq!(hash(SocketAddr::from(([10, 0, 0, 1], 5432))), 0xecbd_18cd_082f_43c2);
    }

    #[test]
    fn lengths_are_prime_and_at_least_a_hundred_times_the_endpoints() {
        for (n, len) in [(0, 0), (1, 251), (2, 251), (3, 5_003), (50, 5_003), (51, 65_537)] {
            assert_eq!(table(&endpoints(n)).len(), len, "{n}");
        }
    }
}
