//! The time of day, which the control thread and the admin API may ask for.

use std::time::{SystemTime, UNIX_EPOCH};

#[expect(clippy::disallowed_methods, reason = "people read the time, and certificates end by it")]
pub fn time_of_day() -> SystemTime {
    SystemTime::now()
}

/// The second of Unix time.
pub fn unix_seconds() -> i64 {
    let now = time_of_day().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(now).unwrap_or(i64::MAX)
}

/// Microseconds of Unix time.
pub fn unix_micros() -> u64 {
    let now = time_of_day().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    u64::try_from(now).unwrap_or(u64::MAX)
}
