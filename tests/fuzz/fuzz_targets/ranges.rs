//! Files of ranges: any text is ranges or lines that are none; who may come in is what a naive
//! search for the longest prefix says.

#![no_main]

use std::net::IpAddr;

use config_sync::model::admission::read_lines;
use config_sync::table::ranges::Access;
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;

/// The naive search is slow.
const MOST: usize = 64;

fuzz_target!(|text: &str| {
    match read_lines(text) {
        Ok(lines) => {
            assert!(lines.iter().is_sorted_by(|a, b| a.number < b.number));
            let of = |even: bool| {
                let lines = lines.iter().take(MOST);
                let lines = lines.filter(|line| (line.number % 2 == 0) == even);
                lines.map(|line| line.prefix).collect::<Vec<_>>()
            };
            let (allow, mut deny) = (of(true), of(false));
            // A prefix may be in one of them only.
            deny.retain(|prefix| !allow.contains(prefix));
            check(&allow, &deny);
        }
        Err(wrong) => {
            assert!(!wrong.is_empty());
            assert!(wrong.iter().is_sorted_by(|a, b| a.0 < b.0));
        }
    }
});

/// Asks for the addresses at both ends of each prefix, and next to them.
fn check(allow: &[IpNet], deny: &[IpNet]) {
    let access = Access::new(Some(allow), deny);
    for prefix in allow.iter().chain(deny) {
        let (first, last) = (prefix.network(), prefix.broadcast());
        for client in [first, last, beside(first, -1), beside(last, 1)] {
            // An IPv4 address inside IPv6 counts as what it is.
            let client = client.to_canonical();
            let longest = |list: &[IpNet]| {
                let has = list.iter().filter(|prefix| prefix.contains(&client));
                has.map(IpNet::prefix_len).max()
            };
            assert_eq!(access.admits(client), longest(allow) > longest(deny), "{client}");
        }
    }
}

/// The address so many further on, or at the other end.
fn beside(address: IpAddr, by: i8) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4(address.to_bits().wrapping_add_signed(by.into()).into()),
        IpAddr::V6(address) => IpAddr::V6(address.to_bits().wrapping_add_signed(by.into()).into()),
    }
}
