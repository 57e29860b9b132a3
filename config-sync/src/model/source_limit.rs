//! What each source of a listener's or a route's clients may have and do.

use std::fmt;

use ipnet::IpNet;

/// A limit for each source. `None` in a field: no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLimit {
    /// The limits with this name count a source together. `None`: the limit counts by itself.
    pub shared: Option<String>,
    /// Sessions or flows.
    pub sessions: Option<u32>,
    /// New sessions or flows in a second.
    pub new_per_second: Option<u32>,
    /// New sessions or flows at once, of a source that was silent before.
    pub burst: Option<u32>,
    /// UDP only. Datagrams in a second, and at once.
    pub datagrams_per_second: Option<u32>,
    /// Bytes in a second each way, and at once.
    pub bytes_per_second: Option<u64>,
    /// Addresses that begin with as many equal bits are one source.
    pub prefix_v4: u8,
    pub prefix_v6: u8,
    /// Addresses without a limit.
    pub except: Vec<IpNet>,
}

impl SourceLimit {
    pub(crate) fn limits_something(&self) -> bool {
        let numbers = [self.sessions, self.new_per_second, self.datagrams_per_second];
        self.bytes_per_second.is_some() || numbers.iter().any(Option::is_some)
    }
}

/// Writes the limit in its TOML form.
impl fmt::Display for SourceLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = |given: u8, default: u8| (given != default).then_some(u64::from(given));
        let numbers = [
            ("sessions", self.sessions.map(u64::from)),
            ("new_per_second", self.new_per_second.map(u64::from)),
            ("burst", self.burst.map(u64::from)),
            ("datagrams_per_second", self.datagrams_per_second.map(u64::from)),
            ("bytes_per_second", self.bytes_per_second),
            ("prefix_v4", prefix(self.prefix_v4, PREFIX_V4)),
            ("prefix_v6", prefix(self.prefix_v6, PREFIX_V6)),
        ];
        let given =
            numbers.iter().filter_map(|(key, value)| Some(format!("{key} = {}", (*value)?)));
        let shared = self.shared.iter().map(|name| format!("shared = \"{name}\""));
        let mut keys: Vec<String> = shared.chain(given).collect();
        if !self.except.is_empty() {
            let ranges: Vec<_> = self.except.iter().map(|range| format!("\"{range}\"")).collect();
            keys.push(format!("except = [{}]", ranges.join(", ")));
        }
        write!(f, "{{ {} }}", keys.join(", "))
    }
}

/// The values of keys that are not given. Few people share an IPv4 address; one subscriber has at
/// least a /64 of IPv6 (RFC 6177).
pub(crate) const PREFIX_V4: u8 = 32;
pub(crate) const PREFIX_V6: u8 = 64;

/// The most sessions, and the highest rate.
pub(crate) const MOST: u32 = 1_000_000;

/// The most ranges in `except`. A worker looks through the ranges one by one.
pub(crate) const MOST_EXCEPTIONS: usize = 256;
