//! Look-up by server name.

use ahash::AHashMap;

/// Values by server name. An exact name beats the longest wildcard, and a wildcard beats no name at
/// all (Gateway API, `TLSRouteSpec.hostnames`). `*.example.com` matches `a.example.com` and
/// `a.b.example.com`, never `example.com`.
#[derive(Clone, Debug)]
pub struct Hosts<T> {
    exact: AHashMap<Box<str>, T>,
    /// The key is the part after `*.`
    wildcard: AHashMap<Box<str>, T>,
    any: Option<T>,
}

impl<T: Copy> Hosts<T> {
    /// `seeds` key the hash. They need not be secret, because only configured names are stored.
    pub fn new(seeds: [u64; 4]) -> Self {
        let hasher = || ahash::RandomState::with_seeds(seeds[0], seeds[1], seeds[2], seeds[3]);
        Self {
            exact: AHashMap::with_hasher(hasher()),
            wildcard: AHashMap::with_hasher(hasher()),
            any: None,
        }
    }

    /// Adds `value` under `pattern`, and returns the value that was there before. The pattern is a
    /// lower-case name, or `*.` and a lower-case suffix, or `None` for every name and for clients
    /// that send no name.
    pub fn insert(&mut self, pattern: Option<&str>, value: T) -> Option<T> {
        match pattern {
            None => self.any.replace(value),
            Some(name) => match name.strip_prefix("*.") {
                Some(suffix) => self.wildcard.insert(suffix.into(), value),
                None => self.exact.insert(name.into(), value),
            },
        }
    }

    /// The value for a server name. The name must be in lower case.
    pub fn get(&self, name: Option<&str>) -> Option<T> {
        let Some(name) = name else { return self.any };
        if let Some(value) = self.exact.get(name) {
            return Some(*value);
        }
        let mut rest = name;
        while !self.wildcard.is_empty() {
            let Some((_, suffix)) = rest.split_once('.') else { break };
            if let Some(value) = self.wildcard.get(suffix) {
                return Some(*value);
            }
            rest = suffix;
        }
        self.any
    }

    /// The values of all patterns that match a server name, the most specific pattern first.
    pub fn all<'h>(&'h self, name: Option<&'h str>) -> impl Iterator<Item = T> + 'h {
        let exact = name.and_then(|name| self.exact.get(name));
        let below = |rest: &&'h str| rest.split_once('.').map(|(_, suffix)| suffix);
        let suffixes = std::iter::successors(name, below).skip(1);
        let wildcards = suffixes.filter_map(|suffix| self.wildcard.get(suffix));
        exact.into_iter().chain(wildcards).chain(&self.any).copied()
    }

    /// The values of all patterns, in no order.
    pub fn values(&self) -> impl Iterator<Item = T> {
        self.exact.values().chain(self.wildcard.values()).chain(&self.any).copied()
    }

    /// The one value that all patterns have, or `None` if the patterns' values differ.
    pub fn only(&self) -> Option<T>
    where
        T: PartialEq,
    {
        let mut values = self.values();
        let first = values.next()?;
        values.all(|value| value == first).then_some(first)
    }

    /// The value for every name. TCP and UDP listeners have no other value.
    pub fn any(&self) -> Option<T> {
        self.any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_beats_longest_wildcard_beats_any() {
        let mut hosts = Hosts::new([1, 2, 3, 4]);
        hosts.insert(Some("db.example.com"), 1);
        hosts.insert(Some("*.example.com"), 2);
        hosts.insert(Some("*.eu.example.com"), 3);
        assert_eq!(hosts.get(Some("db.example.com")), Some(1));
        assert_eq!(hosts.get(Some("a.example.com")), Some(2));
        assert_eq!(hosts.get(Some("x.y.example.com")), Some(2));
        assert_eq!(hosts.get(Some("x.y.eu.example.com")), Some(3));
        assert_eq!(hosts.get(Some("example.com")), None);
        assert_eq!(hosts.get(None), None);
        hosts.insert(None, 4);
        let all = |name| hosts.all(name).collect::<Vec<_>>();
        assert_eq!(all(Some("db.example.com")), [1, 2, 4]);
        assert_eq!(all(Some("x.eu.example.com")), [3, 2, 4]);
        assert_eq!((all(Some("example.com")), all(None)), (vec![4], vec![4]));
        assert_eq!(hosts.get(Some("example.com")), Some(4));
        assert_eq!(hosts.get(None), Some(4));
    }

    #[test]
    fn only_is_what_stands_under_every_pattern() {
        let mut hosts = Hosts::new([1, 2, 3, 4]);
        assert_eq!(hosts.only(), None);
        for pattern in [Some("a.example.com"), Some("*.example.com"), None] {
            hosts.insert(pattern, 1);
            assert_eq!(hosts.only(), Some(1));
        }
        for pattern in [Some("a.example.com"), Some("*.example.com"), None] {
            let mut hosts = hosts.clone();
            hosts.insert(pattern, 2);
            assert_eq!(hosts.only(), None);
        }
    }
}
