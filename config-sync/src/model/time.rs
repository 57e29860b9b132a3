//! Units of time, in milliseconds.

pub(crate) const SECOND: u32 = 1_000;
pub(crate) const MINUTE: u32 = 60 * SECOND;
pub(crate) const HOUR: u32 = 60 * MINUTE;
