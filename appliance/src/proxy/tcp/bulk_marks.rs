//! Holds the marks of bulk directions, and the deadlines of these marks. A source wakes nobody for
//! fewer bytes than its mark.
//!
//! A bulk stream that wakes its worker for each arrival costs more per byte than one that wakes the
//! worker for a quarter of a megabyte. But when a stream pauses, the bytes below the mark are its
//! tail, and a peer waits for that tail. So a marked direction that has run dry has a deadline.

use crate::contract::{Side, Token};

/// Microseconds for which bytes may wait below a mark.
const PATIENCE: u64 = 1_000;

/// The maximum sum of all marks of a worker, in bytes. That many bytes should fit its core's cache.
const TOTAL: u32 = 1 << 20;
/// The highest and the lowest mark. A lower mark would gain nothing.
const HIGHEST: u32 = 256 << 10;
const LOWEST: u32 = 64 << 10;
/// The maximum number of directions with a mark. With more, some mark would be below the lowest.
const MOST: usize = (TOTAL / LOWEST) as usize;

#[derive(Debug, Default)]
pub struct Marks {
    waits: Vec<Wait>,
}

#[derive(Debug)]
struct Wait {
    token: Token,
    from: Side,
    /// Microseconds. `NEVER` while the direction has work.
    due: u64,
}

const NEVER: u64 = u64::MAX;

impl Marks {
    pub fn new() -> Self {
        Self { waits: Vec::with_capacity(MOST) }
    }

    /// A bulk direction has run dry. Returns its new mark, or `None` if too many directions have
    /// one.
    pub fn wait(&mut self, now: u64, token: Token, from: Side) -> Option<u32> {
        let due = now + PATIENCE;
        if let Some(wait) = self.find(token, from) {
            wait.due = due;
        } else if self.waits.len() < MOST {
            self.waits.push(Wait { token, from, due });
        } else {
            return None;
        }
        let share = TOTAL / u32::try_from(self.waits.len()).unwrap_or(u32::MAX);
        Some((1 << share.ilog2()).clamp(LOWEST, HIGHEST))
    }

    /// A marked direction waits for something other than its source, so its deadline is suspended.
    pub fn hold(&mut self, token: Token, from: Side) {
        if let Some(wait) = self.find(token, from) {
            wait.due = NEVER;
        }
    }

    pub fn remove(&mut self, token: Token, from: Side) {
        self.waits.retain(|wait| wait.token != token || wait.from != from);
    }

    /// Takes out a direction that has reached its deadline.
    pub fn due(&mut self, now: u64) -> Option<(Token, Side)> {
        let at = self.waits.iter().position(|wait| wait.due <= now)?;
        let wait = self.waits.swap_remove(at);
        Some((wait.token, wait.from))
    }

    /// The first deadline, in microseconds.
    pub fn next(&self) -> Option<u64> {
        self.waits.iter().map(|wait| wait.due).min().filter(|due| *due != NEVER)
    }

    fn find(&mut self, token: Token, from: Side) -> Option<&mut Wait> {
        self.waits.iter_mut().find(|wait| wait.token == token && wait.from == from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Kind;

    fn token(slot: u32) -> Token {
        Token { kind: Kind::Session, slot, generation: 0 }
    }

    #[test]
    fn a_mark_shrinks_as_more_streams_share_the_core() {
        let mut marks = Marks::new();
        let given: Vec<_> = (0..17).map(|slot| marks.wait(0, token(slot), Side::Client)).collect();
        let kib = |mark: &Option<u32>| mark.map(|mark| mark >> 10);
        let given: Vec<_> = given.iter().map(kib).collect();
        assert_eq!(given[..4], [Some(256); 4]);
        assert_eq!(given[4..8], [Some(128); 4]);
        assert_eq!(given[8..16], [Some(64); 8]);
        assert_eq!(given[16], None);
    }

    #[test]
    fn only_what_waits_is_due() {
        let mut marks = Marks::new();
        marks.wait(0, token(1), Side::Client);
        marks.wait(10, token(1), Side::Endpoint);
        marks.wait(20, token(2), Side::Client);
        marks.hold(token(1), Side::Client);
        assert_eq!(marks.next(), Some(10 + PATIENCE));
        assert_eq!(marks.due(9 + PATIENCE), None);
        assert_eq!(marks.due(10 + PATIENCE), Some((token(1), Side::Endpoint)));
        marks.remove(token(2), Side::Client);
        assert_eq!(marks.due(u64::MAX - 1), None);
        assert_eq!(marks.next(), None);
        marks.wait(50, token(1), Side::Client);
        assert_eq!(marks.next(), Some(50 + PATIENCE));
    }
}
