//! What all sessions and flows of a part have together, over all workers. A part is a listener, a
//! route, a backend, an endpoint, or the whole process. Parts may share one limit.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::load::{NO_LIMIT, SharedCount};
use super::rate::Rate;

/// What all sessions and flows together may have.
#[derive(Clone, Debug)]
pub struct Limit {
    /// The name of a limit that several parts may share. `None`: the limit is one part's own.
    pub shared: Option<Arc<str>>,
    /// The most sessions and flows; [`NO_LIMIT`].
    pub sessions: u32,
    /// New sessions and flows.
    pub opening: Option<Rate>,
    /// Bytes each way: from clients, and from endpoints.
    pub bytes: Option<Rate>,
    /// New sessions wait for a place, and are not refused. Only listeners for TCP have such limits.
    pub delays: bool,
    pub usage: Arc<Usage>,
}

/// How much of a limit is in use. It stays the same for as long as anybody has it: tables of this
/// limit, and sessions.
#[derive(Debug, Default)]
pub struct Usage {
    pub sessions: SharedCount,
    /// Nanoseconds since 1970, up to which new sessions and flows are paid for.
    opening: AtomicU64,
    /// The same for bytes from clients, and from endpoints.
    bytes: [AtomicU64; 2],
    /// Sessions and flows that were refused because of this limit.
    refused: AtomicU64,
}

/// The load of an endpoint.
#[derive(Clone, Debug)]
pub struct Load {
    /// The sessions and flows of all workers: connecting, open, and ending.
    pub sessions: Arc<SharedCount>,
    /// The most sessions and flows over all workers; [`NO_LIMIT`].
    pub most: u32,
    /// How fast sessions and flows, and their bytes, may come. Sessions are counted above.
    pub limit: Option<Box<Limit>>,
}

impl Load {
    /// Nothing is counted yet, and only the number is limited.
    pub fn up_to(most: u32) -> Self {
        Self { sessions: Arc::default(), most, limit: None }
    }

    /// Counts a session, if there is a place for it now. `now`: microseconds since 1970.
    #[inline]
    pub fn enter(&self, now: u64) -> bool {
        if !self.sessions.try_add(self.most) {
            return false;
        }
        let is_open = self.limit.as_ref().is_none_or(|limit| limit.opens(now));
        if !is_open {
            self.sessions.sub(1);
        }
        is_open
    }

    /// Takes a session back that came to nothing before the endpoint heard of it.
    #[inline]
    pub fn leave_unheard(&self) {
        self.sessions.sub(1);
        if let Some(limit) = &self.limit
            && let Some(rate) = limit.opening
        {
            rate.give_back(&limit.usage.opening, 1);
        }
    }

    /// Whether `enter` would find no place.
    #[inline]
    pub fn is_full(&self, now: u64) -> bool {
        let is_over = |limit: &Limit| limit.over(now).is_some();
        self.sessions.get() >= self.most || self.limit.as_ref().is_some_and(|of| is_over(of))
    }

    /// Whether there is a limit for sessions.
    #[inline]
    pub fn has_limit(&self) -> bool {
        self.most != NO_LIMIT || self.limit.as_ref().is_some_and(|limit| limit.opening.is_some())
    }
}

/// A place that a session or flow has within a limit. The place is free once it is dropped.
#[derive(Debug)]
pub struct Place {
    usage: Arc<Usage>,
    bytes: Option<Rate>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.usage.sessions.sub(1);
    }
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// There are as many sessions and flows as there may be.
    Sessions,
    /// They come too fast.
    Opening,
}

impl Limit {
    /// Limits nothing, and counts.
    pub fn nothing(usage: Arc<Usage>) -> Self {
        Self { shared: None, sessions: NO_LIMIT, opening: None, bytes: None, delays: false, usage }
    }

    /// A place for a session or flow. `now`: microseconds since 1970.
    ///
    /// # Errors
    /// There is none. The refusal is counted, unless the limit delays, and costs nothing of the
    /// rate.
    pub fn enter(&self, now: u64) -> Result<Place, Over> {
        self.place(now).inspect_err(|_| {
            if !self.delays {
                self.usage.refused.fetch_add(1, Relaxed);
            }
        })
    }

    fn place(&self, now: u64) -> Result<Place, Over> {
        let usage = &self.usage;
        if !usage.sessions.try_add(self.sessions) {
            return Err(Over::Sessions);
        }
        let place = Place { usage: Arc::clone(usage), bytes: self.bytes };
        if self.opening.is_some_and(|rate| !rate.take(&usage.opening, 1, now * 1_000)) {
            return Err(Over::Opening);
        }
        Ok(place)
    }

    /// Takes a new session of the rate alone, which has its place elsewhere.
    pub fn opens(&self, now: u64) -> bool {
        self.opening.is_none_or(|rate| rate.take(&self.usage.opening, 1, now * 1_000))
    }

    /// A place for a session that lives already. It may be one too many, and takes nothing of the
    /// rate.
    pub fn arrive(&self) -> Place {
        self.usage.sessions.add(1);
        Place { usage: Arc::clone(&self.usage), bytes: self.bytes }
    }

    /// Why `enter` would give no place, without counting anything.
    pub fn over(&self, now: u64) -> Option<Over> {
        let opening = &self.usage.opening;
        // Who is passed over for this limit never takes of it, so the debt is forgiven here too.
        let too_fast = |rate: Rate| {
            rate.forgive(opening, now * 1_000);
            rate.after(opening.load(Relaxed), 1, now * 1_000).is_none()
        };
        match () {
            () if self.usage.sessions.get() >= self.sessions => Some(Over::Sessions),
            () if self.opening.is_some_and(too_fast) => Some(Over::Opening),
            () => None,
        }
    }

    /// Microseconds until `enter` may give a place. `None`: it may do so now. `u64::MAX`: when a
    /// session ends.
    pub fn wait(&self, now: u64) -> Option<u64> {
        let paid = || self.usage.opening.load(Relaxed);
        let until = |rate: Rate| rate.until(paid(), 1, now * 1_000).div_ceil(1_000);
        match self.over(now)? {
            Over::Sessions => Some(u64::MAX),
            Over::Opening => self.opening.map(until),
        }
    }

    /// How many more sessions and flows there may be.
    pub fn room(&self) -> u32 {
        self.sessions.saturating_sub(self.usage.sessions.get())
    }

    /// Whether more than three quarters of the sessions are there that there may be.
    pub fn is_crowded(&self) -> bool {
        let most = self.sessions;
        most != NO_LIMIT && self.usage.sessions.get() > most - most.div_ceil(4)
    }
}

impl Usage {
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

impl Place {
    /// Whether the place is within this limit.
    pub fn is_of(&self, limit: &Limit) -> bool {
        Arc::ptr_eq(&self.usage, &limit.usage)
    }

    /// What bounds the bytes from clients, and from endpoints: the rate, and what is paid of it.
    pub fn bytes(&self, from_endpoint: bool) -> Option<(Rate, &AtomicU64)> {
        Some((self.bytes?, &self.usage.bytes[usize::from(from_endpoint)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_free_when_they_are_dropped() {
        let limit = Limit { sessions: 2, ..Limit::nothing(Arc::default()) };
        let (one, _two) = (limit.enter(0).expect("a place"), limit.enter(0).expect("a place"));
        assert_eq!(limit.enter(0).err(), Some(Over::Sessions));
        assert_eq!(limit.over(0), Some(Over::Sessions));
        let guest = limit.arrive();
        drop(one);
        assert_eq!(limit.enter(0).err(), Some(Over::Sessions), "the guest is one too many");
        drop(guest);
        assert_eq!(limit.over(0), None);
        assert!(limit.enter(0).is_ok());
        assert_eq!((limit.usage.refused(), limit.usage.sessions.get()), (2, 1));
    }

    #[test]
    fn a_refusal_for_the_rate_takes_no_place() {
        let limit = Limit { opening: Some(Rate::new(2, 1)), ..Limit::nothing(Arc::default()) };
        let _one = limit.enter(1_000_000).expect("the burst");
        assert_eq!(limit.over(1_400_000), Some(Over::Opening));
        assert_eq!(limit.enter(1_400_000).err(), Some(Over::Opening));
        assert_eq!(limit.usage.sessions.get(), 1);
        assert_eq!(limit.wait(1_400_000), Some(100_000));
        assert_eq!(limit.wait(1_500_000), None);
        assert!(limit.enter(1_500_000).is_ok(), "refusals cost nothing");
    }

    #[test]
    fn a_limit_that_delays_refuses_nobody() {
        let nothing = Limit::nothing(Arc::default());
        let limit = Limit { sessions: 1, delays: true, ..nothing };
        let place = limit.enter(0).expect("the first");
        assert_eq!(limit.enter(0).err(), Some(Over::Sessions));
        assert_eq!((limit.wait(0), limit.usage.refused()), (Some(u64::MAX), 0));
        drop(place);
        assert_eq!(limit.wait(0), None);
    }

    #[test]
    fn threads_at_once_never_exceed_a_limit() {
        let limit = Limit {
            sessions: 5,
            opening: Some(Rate::new(1_000, 1_000)),
            ..Limit::nothing(Arc::default())
        };
        let opened: u64 = std::thread::scope(|scope| {
            let run = || {
                let mut opened = 0;
                for now in 0..100_000 {
                    let place = limit.enter(now).ok();
                    assert!(limit.usage.sessions.get() <= 5);
                    opened += u64::from(place.is_some());
                }
                opened
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        // A burst, and a tenth of a second.
        assert!(opened <= 1_101, "{opened}");
        assert_eq!(limit.usage.sessions.get(), 0);
    }
}
