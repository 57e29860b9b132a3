//! The places that one session or flow has within limits that others share: those of the process,
//! of its listener, its route, its backend and its endpoint.

use std::net::IpAddr;
use std::sync::atomic::AtomicU64;

use config_sync::table::limit::{Limit, Over, Place};
use config_sync::table::rate::Rate;
use config_sync::table::routing::EndpointId;
use config_sync::table::source_limit::{OverLimit, SourceLimit, SourcePlace, SourceRecord};

use crate::contract::Side;
use crate::proxy::cause::Cause;
use crate::proxy::core::Core;
use crate::stats::detail::Detail;
use crate::stats::records::{CloseReason, DropReason};

/// The places of a session or flow, and the bytes that it may move. The places are free once this
/// is dropped or cleared. Without limits it takes 8 bytes.
#[derive(Debug, Default)]
pub struct Held(Option<Box<Places>>);

#[derive(Debug, Default)]
struct Places {
    places: [Option<Place>; Scope::COUNT],
    /// The record of the client's source at the listener, and the rate of its bytes.
    source: Option<(SourceRecord, Rate)>,
    /// The place within the route's limit for the client's source.
    of_source: Option<SourcePlace>,
    /// By the side that they come from: bytes that are taken of the limits, for a `Move` that is
    /// under way.
    reserved: [u32; 2],
    /// By side: bytes that are taken of the limits too, for the next `Move`s.
    booked: [u32; 2],
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
    /// Only of bytes: the balancer counts an endpoint's sessions.
    Endpoint,
}

impl Scope {
    const COUNT: usize = 5;

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
            (Self::Endpoint, _) => "the endpoint's limit",
        };
        CloseReason::Limit.because(Detail::from(detail))
    }
}

impl Held {
    /// Bytes of a session or flow that has limits.
    pub const MOST: usize = size_of::<Places>();

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
        let place = self.claim(limit, now)?;
        self.keep(scope, limit, place);
        Ok(())
    }

    /// Takes a place within a limit, which [`Self::keep`] puts in place of an earlier one. Whoever
    /// drops the place in the meantime gives it back. `None`: no further place is needed.
    ///
    /// # Errors
    /// As for [`Self::enter`].
    pub fn claim(&self, limit: Option<&Limit>, now: u64) -> Result<Option<Place>, Over> {
        let mut places = self.0.iter().flat_map(|held| held.places.iter().flatten());
        let limit = limit.filter(|limit| !places.any(|place| place.is_of(limit)));
        limit.map(|limit| limit.enter(now)).transpose()
    }

    /// Keeps the place within the limit of a part that was claimed just before.
    pub fn keep(&mut self, scope: Scope, limit: Option<&Limit>, claimed: Option<Place>) {
        if !self.has(scope, limit) {
            self.put(scope, claimed);
        }
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

    /// The bytes of the session or flow count for this endpoint from now on, and for no other.
    pub fn count_endpoint(&mut self, core: &Core, endpoint: EndpointId) {
        let limit = core.balancer.limit_of_bytes(endpoint);
        if self.is_empty() && limit.is_none() {
            return;
        }
        // What is booked was taken of the limits before.
        for side in [Side::Client, Side::Endpoint] {
            self.settle(core, side, 0, false);
        }
        self.arrive(Scope::Endpoint, limit);
    }

    /// Takes a place within the route's limit for the client's source, in place of an earlier one.
    /// `now`: microseconds since 1970.
    ///
    /// # Errors
    /// There is no place. The earlier one stays.
    #[inline]
    pub fn enter_source(
        &mut self,
        limit: Option<&SourceLimit>,
        client: IpAddr,
        now: u64,
    ) -> Result<(), OverLimit> {
        if self.is_empty() && limit.is_none() {
            return Ok(());
        }
        let earlier = self.0.as_mut().and_then(|held| held.of_source.as_mut());
        if let (Some(limit), Some(earlier)) = (limit, earlier)
            && limit.shares(earlier, client)
        {
            return Ok(());
        }
        let place = limit.map(|limit| limit.place(client, now)).transpose()?;
        self.put_source(place.flatten());
        Ok(())
    }

    /// As `enter_source`, for a session that lives already, however many the source has.
    pub fn arrive_source(&mut self, limit: Option<&SourceLimit>, client: IpAddr, now: u64) {
        self.put_source(limit.and_then(|limit| limit.arriving_place(client, now)));
    }

    fn put_source(&mut self, place: Option<SourcePlace>) {
        if self.0.is_some() || place.is_some() {
            self.0.get_or_insert_default().of_source = place;
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
            self.settle(core, side, 0, false);
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
        self.0.as_mut()?.reserve(core, from, most)
    }

    /// A `Move` from a side has read so many bytes. `more`: it stopped only because it might read
    /// no more. Otherwise what is left of its bytes is given back, and what is booked for the next.
    #[inline]
    pub fn settle(&mut self, core: &Core, from: Side, read: u32, more: bool) {
        if let Some(held) = &mut self.0 {
            held.settle(core, from, read, more);
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

    /// Whether a limit counts datagrams.
    pub fn limits_datagrams(&self) -> bool {
        let place = self.0.as_ref().and_then(|held| held.of_source.as_ref());
        place.is_some_and(|place| place.datagrams().is_some())
    }

    /// Takes so many datagrams of a client, with so many bytes, or nothing. For flows: the
    /// listener's limit of a flow's source is asked in `Flow::may_send`.
    ///
    /// # Errors
    /// They are over a limit.
    pub fn take_sent(&self, core: &Core, (count, bytes): (u32, u32)) -> Result<(), DropReason> {
        let Some(held) = &self.0 else { return Ok(()) };
        let datagrams = held.of_source.as_ref().and_then(SourcePlace::datagrams);
        let now = core.unix_micros() * 1_000;
        if datagrams.is_some_and(|(rate, paid)| !rate.take(paid, count, now)) {
            return Err(DropReason::SourceLimit);
        }
        held.take(core, Side::Client, bytes).inspect_err(|_| {
            if let Some((rate, paid)) = datagrams {
                rate.give_back(paid, count);
            }
        })
    }

    /// Takes so many bytes of a datagram to a client, or nothing.
    ///
    /// # Errors
    /// They are over a limit.
    pub fn take_reply(&self, core: &Core, bytes: u32) -> Result<(), DropReason> {
        self.0.as_ref().map_or(Ok(()), |held| held.take(core, Side::Endpoint, bytes))
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
        self.source.is_some()
            || self.of_source.as_ref().is_some_and(|place| place.bytes(false).is_some())
            || places.any(|place| place.bytes(false).is_some())
    }

    #[inline(never)]
    fn reserve(&mut self, core: &Core, from: Side, most: u32) -> Option<u32> {
        let at = from as usize;
        if self.until[at] > core.now {
            return None;
        }
        self.until[at] = 0;
        if self.booked[at] == 0 {
            let wait = self.book(core, from, most);
            if wait > 0 {
                self.until[at] = core.now + wait.div_ceil(1_000);
                core.counters.byte_delays.add(1);
                return None;
            }
        }
        let taken = self.booked[at].min(most);
        self.booked[at] -= taken;
        self.reserved[at] = taken;
        Some(taken)
    }

    /// Books bytes of all limits, as many as the one gives that gives least. Returns the
    /// nanoseconds until all are there.
    fn book(&mut self, core: &Core, from: Side, enough: u32) -> u64 {
        let now = core.unix_micros() * 1_000;
        let (mut least, mut wait) = (u32::MAX, 0);
        let mut taken: [u32; Scope::COUNT + 2] = [0; Scope::COUNT + 2];
        for ((rate, paid), taken) in self.rates(core, from).zip(&mut taken) {
            let booked = rate.book(paid, enough, least, now);
            (*taken, least) = (booked.count, booked.count);
            wait = wait.max(booked.wait);
            if least == 0 {
                break;
            }
        }
        for ((rate, paid), taken) in self.rates(core, from).zip(taken) {
            rate.give_back(paid, taken.saturating_sub(least));
        }
        self.booked[from as usize] = least;
        wait
    }

    #[inline(never)]
    fn settle(&mut self, core: &Core, from: Side, read: u32, more: bool) {
        let at = from as usize;
        let reserved = std::mem::take(&mut self.reserved[at]);
        let now = core.unix_micros() * 1_000;
        let booked = if more { 0 } else { std::mem::take(&mut self.booked[at]) };
        for (rate, paid) in self.rates(core, from) {
            match (reserved + booked).checked_sub(read) {
                Some(left) => rate.give_back(paid, left),
                None => rate.charge(paid, read - reserved - booked, now),
            }
        }
    }

    fn take(&self, core: &Core, from: Side, bytes: u32) -> Result<(), DropReason> {
        let now = core.unix_micros() * 1_000;
        let mut rates = self.rates(core, from).enumerate();
        let Some((refused, _)) = rates.find(|(_, (rate, paid))| !rate.take_first(paid, bytes, now))
        else {
            return Ok(());
        };
        for (rate, paid) in self.rates(core, from).take(refused) {
            rate.give_back(paid, bytes);
        }
        // The rates of sources come first.
        let sources = self.of_sources(core, from == Side::Endpoint).count();
        Err(if refused < sources { DropReason::SourceLimit } else { DropReason::Limit })
    }

    /// The rates of bytes from a side, each with what is paid of it.
    fn rates<'a>(
        &'a self,
        core: &'a Core,
        from: Side,
    ) -> impl Iterator<Item = (Rate, &'a AtomicU64)> {
        let from_endpoint = from == Side::Endpoint;
        let places = self.places.iter().flatten();
        let places = places.filter_map(move |place| place.bytes(from_endpoint));
        self.of_sources(core, from_endpoint).chain(places)
    }

    /// The rates of the client's source: the listener's, and the route's.
    fn of_sources<'a>(
        &'a self,
        core: &'a Core,
        from_endpoint: bool,
    ) -> impl Iterator<Item = (Rate, &'a AtomicU64)> {
        let of_listener = self.source.and_then(|(record, rate)| {
            let sources = core.sources.as_ref()?;
            Some((rate, sources.bytes(record, from_endpoint)?))
        });
        let of_route = self.of_source.as_ref().and_then(|place| place.bytes(from_endpoint));
        of_listener.into_iter().chain(of_route)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::sync::atomic::Ordering::Relaxed;

    use config_sync::table::routing::Limits;
    use config_sync::table::source_limit::SourceRecords;

    use super::*;
    use crate::stats::counters::Counters;

    fn core() -> Core {
        let limits =
            Limits { sessions: 1, flows: 1, buffers: 1, pipes: 1, turn_bytes: 1, bulk_bytes: 1 };
        let mut core = Core::new(limits, 1, Arc::new(Counters::new()));
        core.epoch = 1_700_000_000_000_000;
        core
    }

    fn of_bytes(rate: u64) -> Limit {
        Limit { bytes: Some(Rate::new(rate, rate)), ..Limit::nothing(Arc::default()) }
    }

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

    /// A flow that goes to another route of the same limit has the last place of its source.
    #[test]
    fn a_source_keeps_its_place_where_the_next_route_shares_the_limit() {
        let records = Arc::new(SourceRecords::new(64, 1));
        let nothing = |key| SourceLimit::nothing(key, Arc::clone(&records));
        let [one, same, other] = [1, 1, 2].map(|key| SourceLimit { sessions: 1, ..nothing(key) });
        let client = IpAddr::from([192, 0, 2, 1]);
        let mut held = Held::default();
        assert_eq!(held.enter_source(Some(&one), client, 0), Ok(()));
        assert_eq!(held.enter_source(Some(&same), client, 0), Ok(()));
        assert_eq!(records.sessions(), 1);
        assert_eq!(Held::default().enter_source(Some(&one), client, 0), Err(OverLimit));
        assert_eq!(held.enter_source(Some(&other), client, 0), Ok(()));
        assert_eq!(Held::default().enter_source(Some(&one), client, 0), Ok(()));
        assert_eq!(held.enter_source(None, client, 0), Ok(()));
        assert_eq!(records.sessions(), 0);
    }

    /// Sessions that share a limit of bytes and always have more to move. Each wakes at its time,
    /// in whole milliseconds, the one with the lowest number first. Returns the bytes of each in 20
    /// seconds, and the wake-ups in a second.
    fn shares(sessions: usize, rate: u64) -> (Vec<u64>, u64) {
        let (mut core, limit) = (core(), of_bytes(rate));
        let mut all: Vec<Held> = (0..sessions).map(|_| Held::default()).collect();
        all.iter_mut().for_each(|held| held.arrive(Scope::Listener, Some(&limit)));
        let mut due: BTreeSet<(u64, usize)> = (0..sessions).map(|number| (0, number)).collect();
        let (mut moved, mut wakes) = (vec![0; sessions], 0);
        while let Some((now, number)) = due.pop_first()
            && now < 25_000_000
        {
            core.now = now;
            let counts = u64::from(now >= 5_000_000);
            wakes += counts;
            let held = &mut all[number];
            held.wakes(now);
            while let Some(bytes) = held.reserve(&core, Side::Client, 1 << 18) {
                held.settle(&core, Side::Client, bytes, true);
                moved[number] += u64::from(bytes) * counts;
            }
            let until = held.next().expect("it waits");
            due.insert((until.next_multiple_of(1_000), number));
        }
        all.iter_mut().for_each(|held| held.clear(&core));
        (moved, wakes / 20)
    }

    #[test]
    fn sessions_that_wait_for_one_limit_share_it_and_wake_seldom() {
        for (sessions, most_wakes) in [(1, 50), (2, 70), (10, 120), (100, 700), (1_000, 6_400)] {
            for rate in [100_000, 1_000_000, 100_000_000, 5_000_000_000] {
                let (moved, wakes) = shares(sessions, rate);
                let (least, most) = (moved.iter().min().unwrap(), moved.iter().max().unwrap());
                let all: u64 = moved.iter().sum();
                let said = format!("{sessions} of {rate}: {least} to {most}, {wakes} wake-ups");
                assert!(most - least <= least / 5, "{said}");
                assert!(all.abs_diff(20 * rate) <= rate / 5, "{said}: {all}");
                assert!(wakes <= most_wakes, "{said}");
            }
        }
    }

    #[test]
    fn a_session_that_does_not_use_its_share_gives_it_back() {
        let (mut core, limit) = (core(), of_bytes(1_000_000));
        let (mut one, mut other) = (Held::default(), Held::default());
        one.arrive(Scope::Backend, Some(&limit));
        other.arrive(Scope::Backend, Some(&limit));
        let take = |held: &mut Held, core: &Core, read| {
            let given = held.reserve(core, Side::Client, 1_000_000);
            given.inspect(|given| held.settle(core, Side::Client, read, read == *given))
        };
        assert_eq!(take(&mut one, &core, 1_000_000), Some(1_000_000));
        assert_eq!(take(&mut one, &core, 0), None);
        assert_eq!(take(&mut other, &core, 0), None);
        assert_eq!([&one, &other].map(|held| held.next()), [Some(20_000), Some(37_500)]);
        core.now = 20_000;
        // Of 20,000 bytes.
        assert_eq!(take(&mut one, &core, 100), Some(20_000));
        assert_eq!(take(&mut one, &core, 0), None);
        core.now = 37_500;
        assert_eq!(take(&mut other, &core, 17_500), Some(17_500));
        one.clear(&core);
        let place = limit.arrive();
        let paid = place.bytes(false).map(|(_, paid)| paid.load(Relaxed));
        assert_eq!(paid, Some((core.epoch + 1_017_600) * 1_000), "as much as was moved");
    }
}
