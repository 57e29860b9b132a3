//! Byte streams as ranges: every byte knows which stream it belongs to and where, so crossing,
//! loss, doubling and reordering show without a byte being stored.

use std::collections::VecDeque;

/// `len` bytes of `stream` from position `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub stream: u32,
    pub at: u64,
    pub len: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Bytes {
    ranges: VecDeque<Range>,
    len: u64,
}

impl Bytes {
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn push(&mut self, range: Range) {
        if range.len == 0 {
            return;
        }
        self.len += range.len;
        match self.ranges.back_mut() {
            Some(last) if last.stream == range.stream && last.at + last.len == range.at => {
                last.len += range.len;
            }
            _ => self.ranges.push_back(range),
        }
    }

    pub fn append(&mut self, other: Self) {
        for range in other.ranges {
            self.push(range);
        }
    }

    /// Takes the first `n` bytes, or all if there are fewer.
    pub fn take(&mut self, n: u64) -> Self {
        let mut taken = Self::default();
        while taken.len < n {
            let Some(first) = self.ranges.front_mut() else { break };
            let len = first.len.min(n - taken.len);
            taken.push(Range { len, ..*first });
            self.len -= len;
            first.at += len;
            first.len -= len;
            if first.len == 0 {
                self.ranges.pop_front();
            }
        }
        taken
    }

    /// Drops all but the first `n` bytes.
    pub fn truncate(&mut self, n: u64) {
        let kept = self.take(n);
        *self = kept;
    }

    pub fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.ranges.iter().copied()
    }
}

/// What stands at `at` in `stream`, behind whatever the stream begins with.
pub fn pattern(stream: u32, at: u64) -> u8 {
    let mixed = (at ^ (u64::from(stream) << 40)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 56) as u8
}
