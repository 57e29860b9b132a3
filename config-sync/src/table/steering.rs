//! Which worker's socket gets what comes from a source. A program in the kernel chooses, and this
//! file says the same.

use std::net::{IpAddr, SocketAddr};

use ahash::RandomState;

/// Odd constants with well-spread bits (the golden ratio; the finaliser of MurmurHash3).
pub const SPREAD: [u32; 3] = [0x9e37_79b1, 0x85eb_ca6b, 0xc2b2_ae35];

/// The secrets that are mixed in: before the address is spread, behind the port, and between the
/// last steps.
pub type Secrets = [u32; 3];

pub fn secrets(seed: u64) -> Secrets {
    let state = RandomState::with_seeds(seed, 4, 5, 6);
    let low = |number: u64| u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0);
    [0, 1, 2].map(|number: u32| low(state.hash_one(number)))
}

/// The sources that one worker of several hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub worker: usize,
    pub workers: usize,
    pub seed: u64,
}

impl Share {
    pub fn has(self, source: SocketAddr) -> bool {
        worker_of(source, self.workers, self.seed) == self.worker
    }
}

/// The number of the socket, of a group of so many, that gets what comes from `source`. Not so for
/// IPv6 packets with extension headers, of which only the address counts.
pub fn worker_of(source: SocketAddr, sockets: usize, seed: u64) -> usize {
    let secrets = secrets(seed);
    let words = match source.ip() {
        IpAddr::V4(ip) => vec![u32::from(ip)],
        IpAddr::V6(ip) => {
            let bytes = ip.octets();
            let (words, _) = bytes.as_chunks::<4>();
            words.iter().map(|word| u32::from_be_bytes(*word)).collect()
        }
    };
    let mut hash = secrets[0];
    for word in words {
        hash = (hash ^ word).wrapping_mul(SPREAD[0]);
    }
    hash ^= u32::from(source.port());
    hash = (hash ^ secrets[1]).wrapping_mul(SPREAD[1]);
    hash ^= hash >> 15;
    hash = (hash ^ secrets[2]).wrapping_mul(SPREAD[2]);
    (hash >> 12 & 0xf_ffff) as usize % sockets.max(1)
}
