//! The places that one session or flow has within limits that others share: those of the process,
//! of its listener, its route and its backend.

use std::sync::atomic::AtomicU64;

use config_sync::table::limit::{Limit, Over, Place};
use config_sync::table::rate::Rate;
use config_sync::table::source_limit::SourceRecord;

use crate::contract::Side;
use crate::proxy::cause::Cause;
use crate::proxy::core::Core;
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;

/// The places of a session or flow, and the bytes that it may move. The places are free once this
/// is dropped or cleared. Without limits it takes 8 bytes.
#[derive(Debug, Default)]
pub struct Held(Option<Box<Places>>);

#[derive(Debug, Default)]
struct Places {
    places: [Option<Place>; Scope::COUNT],
    /// The record of the client's source, and the rate of its bytes.
    source: Option<(SourceRecord, Rate)>,
    /// By the side that they come from: bytes that are taken of the limits, for a `Move` that is
    /// under way.
    reserved: [u32; 2],
    /// By side: when the side may be read again, in microseconds. 0: now.
    until: [u64; 2],
}

/// What has a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Process,
    Listener,
    Route,
    Backend,
}

impl Scope {
    const COUNT: usize = 4;

    /// Why a session is refused that is over the limit of this part.
    pub fn refusal(self, over: Over) -> Cause {
        let detail = match (self, over) {
            (Self::Process, _) => "the process has limits.total_sessions",
            (Self::Listener, Over::Sessions) => "the listener's limit.sessions",
            (Self::Listener, Over::Opening) => "the listener's limit.new_per_second",
            (Self::Route, Over::Sessions) => "the route's limit.sessions",
            (Self::Route, Over::Opening) => "the route's limit.new_per_second",
            (Self::Backend, Over::Sessions) => "the backend's limit.sessions",
            (Self::Backend, Over::Opening) => "the backend's limit.new_per_second",
        };
        CloseReason::Limit.because(Detail::from(detail))
    }
}

impl Held {
    /// Takes a place within the limit of a part, in place of an earlier one within another limit of
    /// this part. Parts that share a limit share the place. `now`: microseconds since 1970.
    ///
    /// # Errors
    /// There is no place. The earlier one stays.
    #[inline]
    pub fn enter(&mut self, scope: Scope, limit: Option<&Limit>, now: u64) -> Result<(), Over> {
        if self.is_empty() && limit.is_none() {
            return Ok(());
        }
        self.take_place(scope, limit, now)
    }

    #[inline(never)]
    fn take_place(&mut self, scope: Scope, limit: Option<&Limit>, now: u64) -> Result<(), Over> {
        if !self.has(scope, limit) {
            let place = limit.map(|limit| limit.enter(now)).transpose()?;
            self.put(scope, place);
        }
        Ok(())
    }

    /// Whether no limit counts the session or flow.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// As `enter`, for a session that lives already, however many there are.
    pub fn arrive(&mut self, scope: Scope, limit: Option<&Limit>) {
        if !self.has(scope, limit) {
            self.put(scope, limit.map(Limit::arrive));
        }
    }

    /// The bytes of the session count for its client's source too.
    pub fn count_source(&mut self, record: SourceRecord, rate: Option<Rate>) {
        if let Some(rate) = rate {
            self.0.get_or_insert_default().source = Some((record, rate));
        }
    }

    /// Gives all places back, and the bytes that were taken for a `Move` that is under way.
    pub fn clear(&mut self, core: &Core) {
        for side in [Side::Client, Side::Endpoint] {
            self.settle(core, side, 0);
        }
        self.0 = None;
    }

    /// Whether there is a limit for bytes.
    #[inline]
    pub fn limits_bytes(&self) -> bool {
        self.0.as_ref().is_some_and(|held| held.limits_bytes())
    }

    /// Takes bytes for a `Move` from a side, `most` at the most. `None`: the side has to wait until
    /// a time, which [`Self::next`] gives.
    pub fn reserve(&mut self, core: &Core, from: Side, most: u32) -> Option<u32> {
        if !self.limits_bytes() {
            return Some(most);
        }
        let held = self.0.as_mut()?;
        let at = from as usize;
        if held.until[at] > core.now {
            return None;
        }
        held.until[at] = 0;
        let now = core.unix_micros() * 1_000;
        let mut least = most;
        let mut taken: [u32; Scope::COUNT + 1] = [0; Scope::COUNT + 1];
        let mut wait = None;
        for ((rate, paid), taken) in held.rates(core, from).zip(&mut taken) {
            match rate.take_some(paid, least, now) {
                Ok(n) => (*taken, least) = (n, n),
                Err(nanos) => {
                    (wait, least) = (Some(nanos.div_ceil(1_000)), 0);
                    break;
                }
            }
        }
        for ((rate, paid), taken) in held.rates(core, from).zip(taken) {
            rate.give_back(paid, taken.saturating_sub(least));
        }
        if let Some(wait) = wait {
            // No longer than a second: the limit may be another one by then.
            held.until[at] = core.now + wait.clamp(1, 1_000_000);
            core.counters.byte_delays.add(1);
            return None;
        }
        held.reserved[at] = least;
        Some(least)
    }

    /// A `Move` from a side has read so many bytes. What it left of its bytes is given back.
    #[inline]
    pub fn settle(&mut self, core: &Core, from: Side, read: u32) {
        if let Some(held) = &mut self.0 {
            held.settle(core, from, read);
        }
    }

    /// Whether a side has waited long enough.
    pub fn wakes(&mut self, now: u64) -> bool {
        let waits = self.0.iter_mut().flat_map(|held| &mut held.until);
        let mut wakes = false;
        for until in waits.filter(|until| (1..=now).contains(*until)) {
            *until = 0;
            wakes = true;
        }
        wakes
    }

    /// When the next side may be read that waits, in microseconds.
    #[inline]
    pub fn next(&self) -> Option<u64> {
        self.0.as_ref()?.until.into_iter().filter(|until| *until > 0).min()
    }

    /// Takes so many bytes of a datagram that a side has sent, or nothing. For flows: the limit of
    /// a flow's source is asked in `Flow::may_send`.
    pub fn take(&self, core: &Core, from: Side, bytes: u32) -> bool {
        self.0.as_ref().is_none_or(|held| held.take(core, from, bytes))
    }

    /// The bytes that were taken just now are not moved.
    pub fn give_back(&self, core: &Core, from: Side, bytes: u32) {
        let rates = self.0.iter().flat_map(|held| held.rates(core, from));
        rates.for_each(|(rate, paid)| rate.give_back(paid, bytes));
    }

    /// Whether there is a place within this limit. If the place is another part's, then this part
    /// needs none any more.
    fn has(&mut self, scope: Scope, limit: Option<&Limit>) -> bool {
        let (Some(held), Some(limit)) = (&mut self.0, limit) else { return false };
        let is_of = |place: &Option<Place>| place.as_ref().is_some_and(|place| place.is_of(limit));
        let Some(found) = held.places.iter().position(is_of) else { return false };
        // The part that the session keeps for longer has the place: it may get another backend.
        let own = scope as usize;
        if found > own {
            held.places[own] = held.places[found].take();
        } else if found < own {
            held.places[own] = None;
        }
        true
    }

    fn put(&mut self, scope: Scope, place: Option<Place>) {
        if self.0.is_some() || place.is_some() {
            self.0.get_or_insert_default().places[scope as usize] = place;
        }
    }
}

impl Places {
    fn limits_bytes(&self) -> bool {
        let mut places = self.places.iter().flatten();
        self.source.is_some() || places.any(|place| place.bytes(false).is_some())
    }

    #[inline(never)]
    fn settle(&mut self, core: &Core, from: Side, read: u32) {
        let reserved = std::mem::take(&mut self.reserved[from as usize]);
        let now = core.unix_micros() * 1_000;
        for (rate, paid) in self.rates(core, from) {
            match reserved.checked_sub(read) {
                Some(left) => rate.give_back(paid, left),
                None => rate.charge(paid, read - reserved, now),
            }
        }
    }

    fn take(&self, core: &Core, from: Side, bytes: u32) -> bool {
        let now = core.unix_micros() * 1_000;
        let mut rates = self.rates(core, from).enumerate();
        let Some((refused, _)) = rates.find(|(_, (rate, paid))| !rate.take(paid, bytes, now))
        else {
            return true;
        };
        for (rate, paid) in self.rates(core, from).take(refused) {
            rate.give_back(paid, bytes);
        }
        false
    }

    /// The rates of bytes from a side, each with what is paid of it.
    fn rates<'a>(
        &'a self,
        core: &'a Core,
        from: Side,
    ) -> impl Iterator<Item = (Rate, &'a AtomicU64)> {
        let from_endpoint = from == Side::Endpoint;
        let source = self.source.and_then(|(record, rate)| {
            let sources = core.sources.as_ref()?;
            Some((rate, sources.bytes(record, from_endpoint)?))
        });
        let places = self.places.iter().flatten();
        source.into_iter().chain(places.filter_map(move |place| place.bytes(from_endpoint)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn limit() -> Limit {
        Limit { sessions: 1, ..Limit::nothing(Arc::default()) }
    }

    fn taken(limit: &Limit) -> u32 {
        limit.usage.sessions.get()
    }

    #[test]
    fn parts_that_share_a_limit_share_a_place() {
        let (one, other) = (limit(), limit());
        let mut held = Held::default();
        assert_eq!(held.enter(Scope::Listener, Some(&one), 0), Ok(()));
        assert_eq!(held.enter(Scope::Backend, Some(&one), 0), Ok(()));
        assert_eq!(held.enter(Scope::Backend, Some(&other), 0), Ok(()));
        assert_eq!((taken(&one), taken(&other)), (1, 1));
        // Another backend, with the listener's limit.
        assert_eq!(held.enter(Scope::Backend, Some(&one), 0), Ok(()));
        assert_eq!((taken(&one), taken(&other)), (1, 0));
        assert_eq!(Held::default().enter(Scope::Backend, Some(&one), 0), Err(Over::Sessions));
        drop(held);
        assert_eq!(taken(&one), 0);
    }

    #[test]
    fn a_route_keeps_the_place_that_it_shared_with_an_earlier_backend() {
        let (shared, other) = (limit(), limit());
        let mut held = Held::default();
        assert_eq!(held.enter(Scope::Backend, Some(&shared), 0), Ok(()));
        assert_eq!(held.enter(Scope::Route, Some(&shared), 0), Ok(()));
        assert_eq!(held.enter(Scope::Backend, Some(&other), 0), Ok(()));
        assert_eq!([taken(&shared), taken(&other)], [1, 1]);
    }

    #[test]
    fn a_backend_that_is_full_takes_nothing_of_the_one_before() {
        let (one, full, free) = (limit(), limit(), limit());
        let (mut held, mut guest) = (Held::default(), Held::default());
        guest.arrive(Scope::Process, Some(&full));
        assert_eq!(held.enter(Scope::Backend, Some(&one), 0), Ok(()));
        assert_eq!(held.enter(Scope::Backend, Some(&full), 0), Err(Over::Sessions));
        assert_eq!([taken(&one), taken(&full)], [1, 1]);
        assert_eq!(held.enter(Scope::Backend, Some(&free), 0), Ok(()));
        assert_eq!([taken(&one), taken(&free)], [0, 1]);
        assert_eq!(held.enter(Scope::Backend, None, 0), Ok(()));
        drop(guest);
        assert_eq!([taken(&full), taken(&free)], [0, 0]);
    }
}
