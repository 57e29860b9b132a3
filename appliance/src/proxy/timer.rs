//! Fires deadlines by a hierarchical timer wheel: one deadline per slot, in milliseconds. Setting,
//! cancelling and firing cost the same for any number of deadlines (Varghese and Lauck, SOSP 1987,
//! scheme 7).

#![expect(
    clippy::cast_possible_truncation,
    reason = "every cast is of a number below 64 or of a shifted time that is then reduced"
)]

use crate::proxy::slab::NONE;

const LEVELS: usize = 6;
const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
/// Deadlines further away than this (some 795 days) fire early. Their owners check them and set
/// them again.
const MAX_AHEAD: u64 = (1 << (BITS as u64 * LEVELS as u64)) - 1;

#[derive(Debug)]
pub struct Wheel {
    /// All deadlines up to this moment have fired.
    elapsed: u64,
    heads: [[u32; SLOTS]; LEVELS],
    /// One bit for each list that is not empty.
    occupied: [u64; LEVELS],
    entries: Vec<Entry>,
    due: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    when: u64,
    previous: u32,
    next: u32,
    level: u8,
    list: u8,
}

const UNSET: Entry = Entry { when: u64::MAX, previous: NONE, next: NONE, level: 0, list: 0 };

impl Wheel {
    /// Bytes of a deadline.
    pub const ENTRY: usize = size_of::<Entry>();

    /// Makes a wheel for slots below `limit`.
    pub fn new(limit: u32) -> Self {
        Self {
            elapsed: 0,
            heads: [[NONE; SLOTS]; LEVELS],
            occupied: [0; LEVELS],
            entries: Vec::with_capacity(limit as usize),
            due: Vec::new(),
        }
    }

    /// Sets the slot's deadline, in place of an earlier one.
    pub fn set(&mut self, slot: u32, when: u64) {
        self.cancel(slot);
        if self.entries.len() <= slot as usize {
            self.entries.resize(slot as usize + 1, UNSET);
        }
        self.link(slot, when.clamp(self.elapsed + 1, self.elapsed + MAX_AHEAD));
    }

    pub fn cancel(&mut self, slot: u32) {
        let Some(entry) = self.entries.get_mut(slot as usize) else { return };
        if entry.when == u64::MAX {
            return;
        }
        let Entry { previous, next, level, list, .. } = std::mem::replace(entry, UNSET);
        let (level, list) = (usize::from(level), usize::from(list));
        match previous {
            NONE => self.heads[level][list] = next,
            _ => self.entries[previous as usize].next = next,
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if self.heads[level][list] == NONE {
            self.occupied[level] &= !(1 << list);
        }
    }

    /// The slot's deadline, or `u64::MAX` if it has none.
    pub fn when(&self, slot: u32) -> u64 {
        self.entries.get(slot as usize).map_or(u64::MAX, |entry| entry.when)
    }

    /// No deadline is earlier than this moment. No deadline may fire at this moment either, because
    /// a far deadline is only filed nearer then.
    pub fn next(&self) -> Option<u64> {
        (0..LEVELS).find_map(|level| self.next_list(level)).map(|(_, _, deadline)| deadline)
    }

    /// Takes all deadlines up to and including `now`, and returns their slots. The caller hands the
    /// Vec back with [`Wheel::reuse`].
    pub fn expire(&mut self, now: u64) -> Vec<u32> {
        let mut due = std::mem::take(&mut self.due);
        while let Some((level, list, deadline)) =
            (0..LEVELS).find_map(|level| self.next_list(level))
        {
            if deadline > now {
                break;
            }
            self.elapsed = deadline;
            let mut slot = std::mem::replace(&mut self.heads[level][list], NONE);
            self.occupied[level] &= !(1 << list);
            while slot != NONE {
                let Entry { when, next, .. } =
                    std::mem::replace(&mut self.entries[slot as usize], UNSET);
                if when <= now {
                    due.push(slot);
                } else {
                    self.link(slot, when);
                }
                slot = next;
            }
        }
        self.elapsed = self.elapsed.max(now);
        due
    }

    pub fn reuse(&mut self, mut due: Vec<u32>) {
        due.clear();
        self.due = due;
    }

    fn link(&mut self, slot: u32, when: u64) {
        let significant = 63 - ((self.elapsed ^ when) | (SLOTS as u64 - 1)).leading_zeros();
        let level = ((significant / BITS) as usize).min(LEVELS - 1);
        let list = (when >> (level as u32 * BITS)) as usize % SLOTS;
        let next = std::mem::replace(&mut self.heads[level][list], slot);
        if next != NONE {
            self.entries[next as usize].previous = slot;
        }
        self.occupied[level] |= 1 << list;
        self.entries[slot as usize] =
            Entry { when, previous: NONE, next, level: level as u8, list: list as u8 };
    }

    /// The level's next list that is not empty, and the moment at which it is due.
    fn next_list(&self, level: usize) -> Option<(usize, usize, u64)> {
        if self.occupied[level] == 0 {
            return None;
        }
        let shift = level as u32 * BITS;
        let current = (self.elapsed >> shift) as u32 % SLOTS as u32;
        let ahead = self.occupied[level].rotate_right(current).trailing_zeros();
        let list = (current + ahead) as usize % SLOTS;
        let range = 1u64 << (shift + BITS);
        let mut deadline = (self.elapsed & !(range - 1)) + ((list as u64) << shift);
        if deadline <= self.elapsed {
            // Only the last level wraps, because the other levels hold nothing beyond their range.
            deadline += range;
        }
        Some((level, list, deadline))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a plain list: each due deadline fires exactly once and never early, and `next`
        /// never lies after a deadline.
        #[test]
        fn fires_like_a_sorted_list(
            steps in proptest::collection::vec((0u32..40, 0u64..200_000, 0u64..30_000), 1..200)
        ) {
            let mut wheel = Wheel::new(40);
            let mut model = [u64::MAX; 40];
            let mut now = 0;
            for (slot, ahead, advance) in steps {
                if ahead % 7 == 0 {
                    wheel.cancel(slot);
                    model[slot as usize] = u64::MAX;
                } else {
                    wheel.set(slot, now + ahead);
                    model[slot as usize] = (now + ahead).max(now + 1);
                }
                prop_assert_eq!(wheel.when(slot), model[slot as usize]);
                let earliest = model.iter().min().copied().filter(|when| *when != u64::MAX);
                prop_assert_eq!(wheel.next().is_some(), earliest.is_some());
                if let (Some(next), Some(earliest)) = (wheel.next(), earliest) {
                    prop_assert!(next <= earliest);
                    prop_assert!(next > now);
                }
                now += advance;
                let mut due = wheel.expire(now);
                due.sort_unstable();
                let expected: Vec<u32> =
                    (0..40).filter(|slot| model[*slot as usize] <= now).collect();
                prop_assert_eq!(&due, &expected);
                for slot in due.drain(..) {
                    model[slot as usize] = u64::MAX;
                }
                wheel.reuse(due);
            }
        }
    }
}
