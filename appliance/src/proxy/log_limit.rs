//! Limits how many lines rejections may write to the log.

/// A token bucket for the log lines of rejections, because a flood must not fill the disk.
#[derive(Debug)]
pub struct LogLimit {
    pub tokens: u32,
    pub refilled: u64,
    pub suppressed: u32,
}

/// Lines per second, and lines at once.
pub const REJECTION_RATE: u64 = 50;

pub const REJECTION_BURST: u32 = 200;

impl Default for LogLimit {
    fn default() -> Self {
        Self { tokens: REJECTION_BURST, refilled: 0, suppressed: 0 }
    }
}

impl LogLimit {
    /// Returns how many lines were suppressed before this one, or `None` to suppress this line.
    pub fn admit(&mut self, now: u64) -> Option<u32> {
        let new = now.saturating_sub(self.refilled) * REJECTION_RATE / 1_000_000;
        if new > 0 {
            self.refilled = now;
            self.tokens = u32::try_from(new).unwrap_or(u32::MAX).saturating_add(self.tokens);
            self.tokens = self.tokens.min(REJECTION_BURST);
        }
        if self.tokens == 0 {
            self.suppressed += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}
