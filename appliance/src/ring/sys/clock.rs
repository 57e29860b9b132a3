//! Asks how good the machine's clock is.

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

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_answers() {
        super::is_synchronised().expect("everybody may ask");
    }
}
