//! The CPU of one thread.

use std::time::Duration;

use nix::time::ClockId;

/// The CPU that the calling thread has used.
///
/// # Errors
/// Those of clock_gettime(2).
pub fn cpu() -> nix::Result<Duration> {
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().map(Duration::from)
}
