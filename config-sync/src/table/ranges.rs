//! Values by source range; the longest matching prefix wins. There are two sorted arrays for each
//! IP version, so that a look-up is one binary search for any number of prefixes. This file imports
//! nothing of the crate, because workers see its types.

use std::cmp::Reverse;
use std::net::IpAddr;

use ipnet::IpNet;

/// The most prefixes of one set of ranges. That many take 16 MiB for IPv4, or 40 MiB for IPv6.
pub const MAX_PREFIXES: usize = 1 << 20;

/// Which clients may come in. The longest prefix that holds the client's address decides.
#[derive(Debug)]
pub struct Access(ByPrefix);

impl Access {
    /// `allow` is `None` if the configuration has no such list; then every client that is not
    /// denied may come in. A prefix must not be in both lists.
    pub fn new(allow: Option<&[IpNet]>, deny: &[IpNet]) -> Self {
        let default = if allow.is_some() { DENIED } else { ADMITTED };
        let allowed = allow.unwrap_or_default().iter().map(|prefix| (*prefix, ADMITTED));
        let denied = deny.iter().map(|prefix| (*prefix, DENIED));
        Self(ByPrefix::new(allowed.chain(denied), default))
    }

    pub fn admits(&self, client: IpAddr) -> bool {
        self.0.get(client) == ADMITTED
    }

    /// The size in bytes of memory.
    pub fn size(&self) -> usize {
        self.0.size()
    }
}

const DENIED: u32 = 0;
const ADMITTED: u32 = 1;

/// Gives every address a value: the value of the longest prefix that holds the address, or the
/// default. Only the addresses at which the value changes are kept: at most two for each prefix.
#[derive(Clone, Debug)]
pub struct ByPrefix {
    v4: Steps<u32>,
    v6: Steps<u128>,
}

impl ByPrefix {
    /// Each prefix should be given once. If a prefix is given several times, the last value holds.
    pub fn new(prefixes: impl Iterator<Item = (IpNet, u32)>, default: u32) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (prefix, value) in prefixes {
            match prefix {
                IpNet::V4(prefix) => v4.push(Span {
                    first: prefix.network().to_bits(),
                    last: prefix.broadcast().to_bits(),
                    value,
                }),
                IpNet::V6(prefix) => v6.push(Span {
                    first: prefix.network().to_bits(),
                    last: prefix.broadcast().to_bits(),
                    value,
                }),
            }
        }
        Self {
            v4: Steps::new(v4, |last| last.checked_add(1), default),
            v6: Steps::new(v6, |last| last.checked_add(1), default),
        }
    }

    /// The value for an address. An IPv4 address inside IPv6 (RFC 4291, section 2.5.5.2) counts as
    /// IPv4.
    pub fn get(&self, address: IpAddr) -> u32 {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.get(address.to_bits()),
            IpAddr::V6(address) => self.v6.get(address.to_bits()),
        }
    }

    /// The size in bytes of memory.
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.v4.size() + self.v6.size()
    }
}

/// Addresses from `firsts[n]` on have the value `values[n]`. `firsts[0]` is 0.
#[derive(Clone, Debug)]
struct Steps<A> {
    firsts: Box<[A]>,
    values: Box<[u32]>,
}

impl<A: Copy + Ord + Default> Steps<A> {
    /// Any two spans lie one inside the other, or apart; the inner span's value holds. `after`
    /// gives the next address, or `None` after the last address of all.
    fn new(mut spans: Vec<Span<A>>, after: impl Fn(A) -> Option<A>, default: u32) -> Self {
        spans.sort_by_key(|span| (span.first, Reverse(span.last)));
        // The first address of each IP version is 0.
        let (mut firsts, mut values) = (vec![A::default()], vec![default]);
        let mut step = |at: A, value: u32| {
            if firsts.last() == Some(&at) {
                firsts.pop();
                values.pop();
            }
            if values.last() != Some(&value) {
                firsts.push(at);
                values.push(value);
            }
        };
        // Spans that have begun and not ended, the innermost last.
        let mut open: Vec<Span<A>> = Vec::new();
        for span in spans {
            while let Some(ended) = open.pop_if(|inner| inner.last < span.first) {
                if let Some(next) = after(ended.last) {
                    step(next, open.last().map_or(default, |outer| outer.value));
                }
            }
            step(span.first, span.value);
            open.push(span);
        }
        while let Some(ended) = open.pop() {
            if let Some(next) = after(ended.last) {
                step(next, open.last().map_or(default, |outer| outer.value));
            }
        }
        Self { firsts: firsts.into(), values: values.into() }
    }

    fn get(&self, address: A) -> u32 {
        self.values[self.firsts.partition_point(|first| *first <= address) - 1]
    }

    fn size(&self) -> usize {
        size_of_val(&*self.firsts) + size_of_val(&*self.values)
    }
}

/// All addresses of a prefix.
struct Span<A> {
    first: A,
    last: A,
    value: u32,
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a prefix")).collect()
    }

    #[test]
    fn the_longest_prefix_decides() {
        let allow = nets(&["10.0.0.0/8", "10.9.9.0/24", "2001:db8::/32"]);
        let deny = nets(&["10.9.0.0/16", "2001:db8:1::/48", "10.9.9.9/32"]);
        let access = Access::new(Some(&allow), &deny);
        for (client, admitted) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("10.9.0.0", false),
            ("10.9.9.8", true),
            ("10.9.9.9", false),
            ("10.9.9.10", true),
            ("10.9.255.255", false),
            ("10.10.0.0", true),
            ("9.255.255.255", false),
            ("11.0.0.0", false),
            ("::ffff:10.1.2.3", true),
            ("::ffff:10.9.2.3", false),
            ("2001:db8::1", true),
            ("2001:db8:1::1", false),
            ("::1", false),
        ] {
            assert_eq!(access.admits(client.parse().expect("address")), admitted, "{client}");
        }
    }

    #[test]
    fn who_is_in_no_range_may_come_in_unless_some_are_allowed() {
        let nobody: IpAddr = Ipv6Addr::LOCALHOST.into();
        assert!(Access::new(None, &nets(&["10.0.0.0/8"])).admits(nobody));
        assert!(!Access::new(Some(&nets(&["10.0.0.0/8"])), &[]).admits(nobody));
        assert!(!Access::new(Some(&[]), &[]).admits(nobody));
        assert!(Access::new(Some(&nets(&["0.0.0.0/0", "::/0"])), &[]).admits(nobody));
    }

    /// Each IPv4 prefix takes at most 16 bytes, and each IPv6 prefix at most 40, for any prefixes.
    #[test]
    fn memory_is_bounded_by_the_number_of_prefixes() {
        // Prefixes that do not touch are the worst case.
        let v4 = |n: u32| IpNet::new(Ipv4Addr::from(n << 9).into(), 24).expect("a length");
        let v6 =
            |n: u32| IpNet::new(Ipv6Addr::from(u128::from(n) << 65).into(), 64).expect("a length");
        let count = 300_000;
        for (prefixes, each) in [
            ((0..count).map(v4).collect::<Vec<_>>(), 16),
            ((0..count).map(v6).collect::<Vec<_>>(), 40),
        ] {
            let access = Access::new(None, &prefixes);
            let size = access.size() - size_of::<Access>();
            let most = each * prefixes.len();
            eprintln!("{} prefixes: {size} bytes, at most {most}", prefixes.len());
            // Each IP version has one more step: its first.
            assert!(size <= most + 8 + 20, "{size} of {most}");
        }
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        // The prefixes have few bits, so that they lie within each other and touch. They are at the
        // beginning and at the end of all addresses.
        let v4 = (0..16_u32, 0..=4_u8, any::<bool>()).prop_map(|(n, len, high)| {
            let (address, len) = if high { (n << 28, len) } else { (n, 28 + len) };
            IpNet::V4(Ipv4Net::new(address.into(), len).expect("a length").trunc())
        });
        let v6 = (0..16_u128, 0..=4_u8, any::<bool>()).prop_map(|(n, len, high)| {
            let (address, len) = if high { (n << 124, len) } else { (n, 124 + len) };
            IpNet::V6(Ipv6Net::new(address.into(), len).expect("a length").trunc())
        });
        prop_oneof![v4, v6]
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0..20_u32).prop_map(|n| Ipv4Addr::from(n).into()),
            any::<u32>().prop_map(|n| Ipv4Addr::from(n).into()),
            (0..20_u128).prop_map(|n| Ipv6Addr::from(n).into()),
            any::<u128>().prop_map(|n| Ipv6Addr::from(n).into()),
            any::<u32>().prop_map(|n| Ipv4Addr::from(n).to_ipv6_mapped().into()),
        ]
    }

    proptest! {
        #[test]
        fn it_finds_what_a_naive_search_finds(
            given in prop::collection::btree_map(prefix(), 0..4_u32, 0..24),
            addresses in prop::collection::vec(address(), 1..50),
        ) {
            let map = ByPrefix::new(given.iter().map(|(prefix, value)| (*prefix, *value)), 99);
            let edges = given.keys().flat_map(|prefix| [prefix.network(), prefix.broadcast()]);
            for address in addresses.into_iter().chain(edges) {
                let has = |prefix: &IpNet| prefix.contains(&address.to_canonical());
                let found = given.iter().filter(|(prefix, _)| has(prefix));
                let longest = found.max_by_key(|(prefix, _)| prefix.prefix_len());
                let expected = longest.map_or(99, |(_, value)| *value);
                prop_assert_eq!(map.get(address), expected, "{}", address);
            }
        }
    }
}
