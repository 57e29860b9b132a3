//! What each source of sessions and flows has and does, over all workers. A source is a client's
//! address, cut to a prefix.
//!
//! A record has a hash of its source in place of the source. Two sources share a record if 58 bits
//! of their hashes are equal, which nobody can bring about, because the hash has a secret key.

use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;

use super::load::NO_LIMIT;
use super::rate::Rate;

/// What each source of a listener's or a route's clients may have and do.
#[derive(Clone, Debug)]
pub struct SourceLimit {
    /// Tells the records of this limit from those of others. Limits with one key count a source
    /// together.
    pub key: u64,
    /// The name of limits that count together.
    pub shared: Option<Arc<str>>,
    /// The most sessions or flows of a source; [`NO_LIMIT`].
    pub sessions: u32,
    /// New sessions or flows.
    pub opening: Option<Rate>,
    /// UDP: datagrams from a source.
    pub datagrams: Option<Rate>,
    /// Bytes each way: from a source, and to it.
    pub bytes: Option<Rate>,
    /// Addresses that begin with as many equal bits are one source.
    pub prefix_v4: u8,
    pub prefix_v6: u8,
    /// These addresses have no limit.
    pub except: Box<[IpNet]>,
    pub records: Arc<SourceRecords>,
}

/// The records of all sources of all limits.
///
/// Records have no lock. A worker that opens a session while another worker gives the record to a
/// new source may lose one of that source's tokens. A count of sessions stands in one word with the
/// hash, so it is exact. A source that is new to several workers within the same moment may get two
/// records, if a third worker counts a session before one of the two is given up; then the source
/// may have sessions in both.
#[derive(Debug)]
pub struct SourceRecords {
    hasher: ahash::RandomState,
    /// Groups of [`WAYS`] records. A source has its record anywhere in one group.
    words: Box<[AtomicU64]>,
    /// Nanoseconds since 1970, up to which new sessions are paid for.
    opening: Box<[AtomicU64]>,
    datagrams: Box<[AtomicU64]>,
    /// From sources, and to them. Made when the first limit asks for bytes.
    bytes: OnceLock<Box<[[AtomicU64; 2]]>>,
}

/// The place of a record, plus 1, so that none takes no more memory in a session than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRecord(NonZeroU32);

impl SourceRecord {
    fn at(index: usize) -> Self {
        let place = u32::try_from(index).ok().and_then(|index| NonZeroU32::MIN.checked_add(index));
        Self(place.expect("there are 2^18 records"))
    }

    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// A place that a session or flow has among those of its client's source. The place is free once it
/// is dropped.
#[derive(Debug)]
pub struct SourcePlace {
    record: SourceRecord,
    datagrams: Option<Rate>,
    bytes: Option<Rate>,
    records: Arc<SourceRecords>,
}

impl Drop for SourcePlace {
    fn drop(&mut self) {
        self.records.leave(self.record);
    }
}

/// Why a source may not open a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverLimit;

/// What a source has at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceStanding {
    pub source: IpAddr,
    /// The source has as many equal bits.
    pub prefix: u8,
    pub sessions: u64,
    /// Why the source may not open one more session. `None`: the source may.
    pub bar: Option<Bar>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// It has as many as it may have.
    Sessions,
    /// It opens them too fast.
    Opening,
    /// Every record that could be the source's is of a source with sessions.
    Room,
}

/// As many sources are known at once. A record without sessions goes to another source when its
/// group is full: first one whose rates are paid for, then the one that is paid for soonest. So new
/// sources, however many, do not push out those that take too much.
pub const MOST_SOURCES: usize = 1 << 18;

const WAYS: usize = 16;

/// The lower bits of a word count sessions; the upper bits are the hash.
const SESSIONS: u32 = 20;
const MOST_SESSIONS: u64 = (1 << SESSIONS) - 1;

/// The count at which a source has all its sessions. [`NO_LIMIT`]: as many as can be counted.
fn most_sessions(limit: u32) -> u64 {
    u64::from(limit).min(MOST_SESSIONS)
}

impl SourceLimit {
    /// Limits nothing, and has each address for a source.
    pub fn nothing(key: u64, records: Arc<SourceRecords>) -> Self {
        Self {
            key,
            shared: None,
            sessions: NO_LIMIT,
            opening: None,
            datagrams: None,
            bytes: None,
            prefix_v4: 32,
            prefix_v6: 128,
            except: Box::default(),
            records,
        }
    }

    /// Counts a session or flow of a client. `now`: microseconds since 1970. `None`: the client has
    /// no limit.
    ///
    /// # Errors
    /// The source has as many sessions as it may have, or opens them too fast; or every record that
    /// could be the source's is of a source with sessions.
    pub fn enter(&self, client: IpAddr, now: u64) -> Result<Option<SourceRecord>, OverLimit> {
        let Some((hash, ..)) = self.limited(client) else { return Ok(None) };
        let now = now * 1_000;
        let record = self.records.count(hash, most_sessions(self.sessions), now)?;
        let opening = &self.records.opening[record.index()];
        if self.opening.is_some_and(|rate| !rate.take(opening, 1, now)) {
            self.records.leave(record);
            return Err(OverLimit);
        }
        Ok(Some(record))
    }

    /// Counts a session that another process has begun. It may be one too many, and takes nothing
    /// of the rate. `None`: the client has no limit, or every record that could be the source's is
    /// of a source with sessions.
    pub fn arrive(&self, client: IpAddr, now: u64) -> Option<SourceRecord> {
        let (hash, ..) = self.limited(client)?;
        self.records.count(hash, MOST_SESSIONS, now * 1_000).ok()
    }

    /// As `enter`, and gives the place back once it is dropped.
    ///
    /// # Errors
    /// As for `enter`.
    pub fn place(&self, client: IpAddr, now: u64) -> Result<Option<SourcePlace>, OverLimit> {
        Ok(self.enter(client, now)?.map(|record| self.place_at(record)))
    }

    /// As `arrive`, and gives the place back once it is dropped.
    pub fn arriving_place(&self, client: IpAddr, now: u64) -> Option<SourcePlace> {
        self.arrive(client, now).map(|record| self.place_at(record))
    }

    /// Whether a client's place is one within this limit too, because limits with one key share
    /// their places. If so, this limit's rates bound the client from now on.
    pub fn shares(&self, place: &mut SourcePlace, client: IpAddr) -> bool {
        let found = self.limited(client).and_then(|(hash, ..)| {
            let (first, tag) = self.records.group(hash);
            self.records.find(first, tag)
        });
        let is_shared = found == Some(place.record.index());
        if is_shared {
            (place.datagrams, place.bytes) = (self.datagrams, self.bytes);
        }
        is_shared
    }

    fn place_at(&self, record: SourceRecord) -> SourcePlace {
        let (datagrams, bytes) = (self.datagrams, self.bytes);
        SourcePlace { record, datagrams, bytes, records: Arc::clone(&self.records) }
    }

    /// What `enter` would find, without counting anything. `None`: the client has no limit.
    pub fn standing(&self, client: IpAddr, now: u64) -> Option<SourceStanding> {
        let (hash, source, prefix) = self.limited(client)?;
        let (first, tag) = self.records.group(hash);
        let found = self.records.find(first, tag);
        let sessions = found.map_or(0, |at| self.records.sessions_at(at));
        let paid = found.map_or(0, |at| self.records.opening[at].load(Relaxed));
        let full = |at: usize| self.records.sessions_at(at) > 0;
        let too_fast = |rate: Rate| rate.after(paid, 1, now * 1_000).is_none();
        let bar = match () {
            () if found.is_none() && (first..first + WAYS).all(full) => Some(Bar::Room),
            () if sessions >= most_sessions(self.sessions) => Some(Bar::Sessions),
            () if self.opening.is_some_and(too_fast) => Some(Bar::Opening),
            () => None,
        };
        Some(SourceStanding { source, prefix, sessions, bar })
    }

    /// The source of a client. `None`: the client has no limit.
    pub fn source(&self, client: IpAddr) -> Option<IpAddr> {
        self.limited(client).map(|(_, source, _)| source)
    }

    /// The hash of a client's source, the source and the bits that count.
    fn limited(&self, client: IpAddr) -> Option<(u64, IpAddr, u8)> {
        let client = client.to_canonical();
        if client.is_unspecified() || self.except.iter().any(|range| range.contains(&client)) {
            return None;
        }
        let prefix = match client {
            IpAddr::V4(_) => self.prefix_v4,
            IpAddr::V6(_) => self.prefix_v6,
        };
        let source = IpNet::new(client, prefix).map_or(client, |range| range.network());
        Some((self.records.hasher.hash_one((self.key, source)), source, prefix))
    }

    /// Whether a source, which has a flow, may send `n` more datagrams with so many bytes.
    pub fn may_send(&self, record: SourceRecord, (n, bytes): (u32, u32), now: u64) -> bool {
        let datagrams = &self.records.datagrams[record.index()];
        if !self.datagrams.is_none_or(|rate| rate.take(datagrams, n, now * 1_000)) {
            return false;
        }
        let may = self.moves(record, false, bytes, now);
        if let Some(rate) = self.datagrams.filter(|_| !may) {
            rate.give_back(datagrams, n);
        }
        may
    }

    /// What `may_send` has allowed is not sent.
    pub fn has_not_sent(&self, record: SourceRecord, (n, bytes): (u32, u32)) {
        if let Some(rate) = self.datagrams {
            rate.give_back(&self.records.datagrams[record.index()], n);
        }
        if let (Some(rate), Some(paid)) = (self.bytes, self.records.bytes(record, false)) {
            rate.give_back(paid, bytes);
        }
    }

    /// Whether a source, which has a flow, may be sent so many bytes.
    pub fn may_get(&self, record: SourceRecord, bytes: u32, now: u64) -> bool {
        self.moves(record, true, bytes, now)
    }

    fn moves(&self, record: SourceRecord, from_endpoint: bool, bytes: u32, now: u64) -> bool {
        let Some(rate) = self.bytes else { return true };
        let paid = self.records.bytes(record, from_endpoint);
        paid.is_none_or(|paid| rate.take(paid, bytes, now * 1_000))
    }
}

impl SourcePlace {
    /// What bounds the datagrams from the source: the rate, and what is paid of it.
    pub fn datagrams(&self) -> Option<(Rate, &AtomicU64)> {
        Some((self.datagrams?, &self.records.datagrams[self.record.index()]))
    }

    /// What bounds the bytes from the source, and to it: the rate, and what is paid of it.
    pub fn bytes(&self, from_endpoint: bool) -> Option<(Rate, &AtomicU64)> {
        Some((self.bytes?, self.records.bytes(self.record, from_endpoint)?))
    }
}

impl SourceRecords {
    /// `room`: as many sources at once, in whole groups. `seed` keys the hash; outside, nobody may
    /// know it, or one client could fill another's group.
    pub fn new(room: usize, seed: u64) -> Self {
        let zeros = || (0..room / WAYS * WAYS).map(|_| AtomicU64::new(0)).collect();
        let hasher = ahash::RandomState::with_seeds(seed, !seed, seed.rotate_left(32), 0);
        let (words, opening, datagrams) = (zeros(), zeros(), zeros());
        Self { hasher, words, opening, datagrams, bytes: OnceLock::new() }
    }

    /// The key of the limits of this name.
    pub fn key_of(&self, name: impl Hash) -> u64 {
        self.hasher.hash_one(name)
    }

    /// How much memory the records take.
    pub fn bytes_of_memory(&self) -> usize {
        let counts = if self.bytes.get().is_some() { 5 } else { 3 };
        self.room() * counts * size_of::<AtomicU64>()
    }

    /// Makes room for what is paid of bytes. Only workers that get a table after that look there.
    pub fn count_bytes(&self) {
        self.bytes.get_or_init(|| (0..self.room()).map(|_| [0.into(), 0.into()]).collect());
    }

    /// What is paid of the bytes of a source. `None`: no limit has asked for bytes.
    pub fn bytes(&self, record: SourceRecord, from_endpoint: bool) -> Option<&AtomicU64> {
        Some(&self.bytes.get()?[record.index()][usize::from(from_endpoint)])
    }

    /// Counts a session in the record of a hash.
    fn count(&self, hash: u64, most: u64, now: u64) -> Result<SourceRecord, OverLimit> {
        let (first, tag) = self.group(hash);
        loop {
            let at = self.find(first, tag).or_else(|| self.take_over(first, tag, now));
            let at = at.ok_or(OverLimit)?;
            let one_more = |word: u64| {
                let fits = word >> SESSIONS == tag && word & MOST_SESSIONS < most;
                fits.then_some(word + 1)
            };
            match self.words[at].fetch_update(Relaxed, Relaxed, one_more) {
                Ok(_) => return Ok(SourceRecord::at(at)),
                Err(word) if word >> SESSIONS == tag => return Err(OverLimit),
                // Another worker has just given the record to another source.
                Err(_) => {}
            }
        }
    }

    /// The first record of the hash's group, and the upper bits of a word of the source.
    fn group(&self, hash: u64) -> (usize, u64) {
        // 0 is an empty record.
        let tag = (hash >> SESSIONS).max(1);
        let groups = (self.words.len() / WAYS) as u64;
        #[expect(clippy::cast_possible_truncation, reason = "it is below the number of groups")]
        let first = (hash % groups) as usize * WAYS;
        (first, tag)
    }

    fn sessions_at(&self, at: usize) -> u64 {
        self.words[at].load(Relaxed) & MOST_SESSIONS
    }

    fn find(&self, first: usize, tag: u64) -> Option<usize> {
        (first..first + WAYS).find(|at| self.words[*at].load(Relaxed) >> SESSIONS == tag)
    }

    /// Gives a record without sessions to a source that has none. `None`: every record of the group
    /// has sessions.
    fn take_over(&self, first: usize, tag: u64, now: u64) -> Option<usize> {
        loop {
            let bytes = |at: usize| self.bytes.get().map(|bytes| &bytes[at]).into_iter().flatten();
            let paid = |at: usize| {
                let counts = [&self.opening[at], &self.datagrams[at]].into_iter().chain(bytes(at));
                counts.map(|paid| paid.load(Relaxed)).fold(now, u64::max)
            };
            let free = (first..first + WAYS)
                .map(|at| (at, self.words[at].load(Relaxed)))
                .filter(|(_, word)| word & MOST_SESSIONS == 0)
                .min_by_key(|(at, _)| paid(*at));
            let (at, before) = free?;
            let empty = tag << SESSIONS;
            let taken = self.words[at].compare_exchange(before, empty, SeqCst, Relaxed).is_ok();
            // Another worker may have taken this record, or another one, for this source. Whoever
            // sees that gives its own record up, unless a session was counted there meanwhile. In
            // the order of these operations one of the workers is the second, and sees the first.
            let mut places = first..first + WAYS;
            let other = places.find(|other| {
                (*other != at || !taken) && self.words[*other].load(SeqCst) >> SESSIONS == tag
            });
            if taken
                && (other.is_none()
                    || self.words[at].compare_exchange(empty, 0, SeqCst, Relaxed).is_err())
            {
                self.opening[at].store(0, Relaxed);
                self.datagrams[at].store(0, Relaxed);
                bytes(at).for_each(|paid| paid.store(0, Relaxed));
                return Some(at);
            }
            if other.is_some() {
                return other;
            }
        }
    }

    /// A session or flow has ended.
    pub fn leave(&self, record: SourceRecord) {
        self.words[record.index()].fetch_sub(1, Relaxed);
    }

    /// As many records there are.
    pub fn room(&self) -> usize {
        self.words.len()
    }

    /// The records of sources that have sessions or flows. Every other record may be given to
    /// another source.
    pub fn in_use(&self) -> usize {
        let words = self.words.iter().map(|word| word.load(Relaxed));
        words.filter(|word| word & MOST_SESSIONS > 0).count()
    }

    /// The sessions and flows of all sources.
    pub fn sessions(&self) -> u64 {
        self.words.iter().map(|word| word.load(Relaxed) & MOST_SESSIONS).sum()
    }
}

#[cfg(test)]
mod tests;
