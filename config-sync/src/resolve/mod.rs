//! Resolves the names of endpoints, again and again, as their records expire.
//!
//! [`Resolve`] does no I/O: the caller asks which names are due, gives the answers, and gets the
//! addresses. `lookup.rs` asks the servers, and `lookups.rs` has the lookups under way.
//!
//! A name that can't be resolved keeps the addresses of its last good answer. An empty answer, and
//! the answer that there is no such name, count as failures too: both are seldom meant, and an
//! endpoint that is really gone fails its health check.

pub(crate) mod lookup;
pub(crate) mod lookups;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::backoff::Pauses;
use crate::model::config::Config;
use crate::model::endpoint::{Address, DnsName, Resolved, Target};
use crate::model::resolver::Resolver;

/// The most lookups that are under way at once. Each has a few sockets open.
const MOST_UNDER_WAY: usize = 32;

/// A failed lookup is made again after 1 s, then 2 s, up to 60 s.
const PAUSES: Pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(60));

/// An answer to a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// At least one.
    pub targets: Vec<Target>,
    /// The shortest time to live of the records.
    pub ttl: Duration,
    /// Why a part of the answer is missing: one IP version, or hosts of a service. Then addresses
    /// of the last answer stay beside the new ones.
    pub missing: Option<String>,
}

/// All names that are resolved.
#[derive(Clone, Debug, Default)]
pub struct Resolve {
    settings: Resolver,
    names: BTreeMap<DnsName, Known>,
    /// Names with no lookup under way.
    due: BTreeSet<(Instant, DnsName)>,
    tally: Tally,
    /// Addresses have changed since this was taken last.
    changed: bool,
}

#[derive(Clone, Debug)]
struct Known {
    targets: Vec<Target>,
    due: Instant,
    under_way: bool,
    pauses: Pauses,
    /// When lookups began to fail.
    failing: Option<Instant>,
}

/// The numbers of lookups, by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub ok: u64,
    pub failed: u64,
}

/// Figures for operators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub lookups: Tally,
    pub names: usize,
    /// Names that can't be resolved now, with addresses of an earlier answer.
    pub kept: usize,
    /// Names without an address.
    pub unresolved: usize,
}

impl Resolve {
    /// The names of another configuration. Known names keep their addresses. Other settings ask for
    /// every name anew.
    #[must_use]
    pub fn following(&self, config: &Config, now: Instant) -> Self {
        let mut next = Self {
            settings: config.resolver.clone(),
            tally: self.tally,
            changed: self.changed,
            ..Self::default()
        };
        let is_new = self.settings != next.settings;
        for name in names(config) {
            let new = Known {
                targets: Vec::new(),
                due: now,
                under_way: false,
                pauses: PAUSES,
                failing: None,
            };
            let mut known = self.names.get(name).cloned().unwrap_or(new);
            if is_new {
                known.due = now;
            }
            if !known.under_way {
                next.due.insert((known.due, name.clone()));
            }
            next.names.insert(name.clone(), known);
        }
        next
    }

    pub fn settings(&self) -> &Resolver {
        &self.settings
    }

    /// A name to look up now, if one is due and may begin while `under_way` lookups are under way.
    pub fn due(&mut self, under_way: usize, now: Instant) -> Option<DnsName> {
        let is_due = self.due.first().is_some_and(|(due, _)| *due <= now);
        if under_way >= MOST_UNDER_WAY || !is_due {
            return None;
        }
        let (_, name) = self.due.pop_first()?;
        self.names.get_mut(&name)?.under_way = true;
        Some(name)
    }

    /// Takes the result of a lookup. The result is ignored if the name is no longer asked for.
    pub fn found(&mut self, name: &DnsName, result: Result<Answer, String>, now: Instant) {
        let Some(known) = self.names.get_mut(name) else { return };
        self.due.remove(&(known.due, name.clone()));
        known.under_way = false;
        let keep = Duration::from_millis(self.settings.keep.into());
        let before = known.targets.clone();
        match result {
            Ok(answer) => {
                self.tally.ok += 1;
                known.take(name, answer, &self.settings, now);
            }
            Err(why) => {
                self.tally.failed += 1;
                known.fail(name, &why, keep, now);
            }
        }
        self.changed |= known.targets != before;
        self.due.insert((known.due, name.clone()));
    }

    /// True once after addresses have changed.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The addresses of all names.
    pub fn resolved(&self) -> Resolved {
        let known = self.names.iter().filter(|(_, known)| !known.targets.is_empty());
        Resolved(known.map(|(name, known)| (name.clone(), known.targets.clone())).collect())
    }

    pub fn figures(&self) -> Figures {
        let known = || self.names.values();
        Figures {
            lookups: self.tally,
            names: self.names.len(),
            kept: known().filter(|of| of.failing.is_some() && !of.targets.is_empty()).count(),
            unresolved: known().filter(|of| of.targets.is_empty()).count(),
        }
    }
}

impl Known {
    fn take(&mut self, name: &DnsName, answer: Answer, settings: &Resolver, now: Instant) {
        let Answer { mut targets, ttl, missing } = answer;
        if let Some(why) = &missing {
            targets.extend(&self.targets);
            tracing::debug!("a part of the addresses of {name} is missing: {why}");
        }
        targets.sort_unstable();
        targets.dedup();
        let millis = |millis: u32| Duration::from_millis(millis.into());
        let ttl = ttl.clamp(millis(settings.min_ttl), millis(settings.max_ttl));
        self.due = match missing {
            None => now + ttl,
            Some(_) => now + self.pauses.take().min(ttl),
        };
        if missing.is_none() {
            self.pauses.restart();
        }
        if targets != self.targets || self.failing.is_some() {
            let count = targets.len();
            tracing::info!("{name} is resolved to {count} addresses: {}", listed(&targets));
        }
        self.failing = None;
        self.targets = targets;
    }

    fn fail(&mut self, name: &DnsName, why: &str, keep: Duration, now: Instant) {
        let is_first = self.failing.is_none();
        let since = *self.failing.get_or_insert(now);
        self.due = now + self.pauses.take();
        let is_over = !keep.is_zero() && now.saturating_duration_since(since) >= keep;
        if is_over && !self.targets.is_empty() {
            tracing::warn!("{name} can't be resolved: {why}; its addresses are dropped (`keep`)");
            self.targets.clear();
        } else if is_first && self.targets.is_empty() {
            tracing::warn!("{name} can't be resolved: {why}; it has no address yet");
        } else if is_first {
            tracing::warn!("{name} can't be resolved: {why}; its last addresses stay");
        }
        if !keep.is_zero() && !self.targets.is_empty() {
            self.due = self.due.min(since + keep).max(now);
        }
    }
}

/// The first addresses, for the log.
fn listed(targets: &[Target]) -> String {
    let first = targets.iter().take(8).map(|target| target.ip.to_string());
    let listed = first.collect::<Vec<_>>().join(", ");
    if targets.len() > 8 { format!("{listed}, ...") } else { listed }
}

/// The names of a configuration's endpoints.
pub(crate) fn names(config: &Config) -> BTreeSet<&DnsName> {
    let endpoints = config.backends.iter().flat_map(|backend| &backend.endpoints);
    let named = endpoints.filter_map(|endpoint| match &endpoint.address.value {
        Address::Name(name) => Some(name),
        Address::Fixed(_) => None,
    });
    named.collect()
}

#[cfg(test)]
mod tests;
