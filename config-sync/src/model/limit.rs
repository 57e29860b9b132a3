//! What all sessions and flows of a listener, route or backend may have together.

use std::fmt;
use std::ops::RangeInclusive;

use crate::model::place::At;

/// The limit of a part. `None` in a field: no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Sessions or flows.
    pub sessions: Option<u32>,
    /// New sessions or flows in a second.
    pub new_per_second: Option<u32>,
    /// New sessions or flows at once, after a time without any.
    pub burst: Option<u32>,
    /// Bytes in a second each way, and at once.
    pub bytes_per_second: Option<u64>,
    /// TCP listeners: new sessions over the limit wait, and are not refused. Other parts that share
    /// the limit refuse.
    pub delays: bool,
}

/// The limit that a part has.
#[derive(Clone, Debug, PartialEq)]
pub enum LimitOf {
    Own(Limit),
    /// The limit of this name, which other parts may have too.
    Shared(At<String>),
}

impl LimitOf {
    /// The name of a limit that other parts may have too.
    pub(crate) fn shared(&self) -> Option<&At<String>> {
        match self {
            Self::Own(_) => None,
            Self::Shared(name) => Some(name),
        }
    }
}

/// A limit with a name.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedLimit {
    pub name: At<String>,
    pub limit: Limit,
}

/// Writes the limit's keys in their TOML form.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.keys().map(|(key, value)| format!("{key} = {value}"));
        write!(f, "{{ {} }}", keys.collect::<Vec<_>>().join(", "))
    }
}

impl Limit {
    /// The keys that are given.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&'static str, String)> {
        let keys = [
            ("sessions", self.sessions.map(u64::from)),
            ("new_per_second", self.new_per_second.map(u64::from)),
            ("burst", self.burst.map(u64::from)),
            ("bytes_per_second", self.bytes_per_second),
        ];
        let numbers = keys.into_iter().filter_map(|(key, value)| Some((key, value?.to_string())));
        numbers.chain(self.delays.then(|| ("over", "\"delay\"".to_owned())))
    }
}

/// The most sessions, and the highest rate of new ones.
pub(crate) const MOST: u32 = 1_000_000;

/// The lowest and the highest rate of bytes.
pub(crate) const BYTES: RangeInclusive<u64> = 1_000..=10_000_000_000;
