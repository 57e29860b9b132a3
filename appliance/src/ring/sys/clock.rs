//! The time of day, and how good the machine's clock is.

use std::io;
use std::mem::MaybeUninit;

/// Whether a time service keeps the clock: adjtimex(2), without `STA_UNSYNC`.
///
/// # Errors
/// The kernel refuses the question (seccomp).
pub fn is_synchronised() -> io::Result<bool> {
    let mut state = MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: `state` is a `timex` that this function owns. All its fields are numbers, so zeros
    // are a value of it; `modes` is 0, so the kernel only writes to it, and changes nothing.
    match unsafe { libc::adjtimex(state.as_mut_ptr()) } {
        -1 => Err(io::Error::last_os_error()),
        state => Ok(state != libc::TIME_ERROR),
    }
}

/// The time of day, in microseconds since 1970.
pub fn unix_micros() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a `timespec` that this function owns, and the kernel only writes to it.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut time) };
    debug_assert_eq!(failed, 0, "the kernel has this clock");
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    seconds.unwrap_or(0) * 1_000_000 + nanos.unwrap_or(0) / 1_000
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::UnixTime;

    #[test]
    fn the_kernel_answers() {
        super::is_synchronised().expect("everybody may ask");
    }

    #[test]
    fn the_time_of_day_is_that_of_others() {
        let before = UnixTime::now().as_secs();
        let now = super::unix_micros() / 1_000_000;
        let after = UnixTime::now().as_secs();
        assert!(before <= now && now <= after, "{before} {now} {after}");
    }
}
