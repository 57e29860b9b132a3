//! Explains errno values.

use std::io;

use crate::contract::Why;

/// The meaning of an errno in general. For the calls in which EAGAIN or EADDRINUSE mean source
/// ports, see [`why_unopened`].
pub fn why(errno: i32) -> Why {
    match errno {
        libc::ECONNREFUSED => Why::Refused,
        libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED => Why::Reset,
        libc::ETIMEDOUT => Why::TimedOut,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN => {
            Why::Unreachable(errno)
        }
        libc::EADDRNOTAVAIL => Why::NoPorts,
        libc::EMFILE | libc::ENFILE => Why::NoFiles,
        libc::ENOBUFS | libc::ENOMEM => Why::NoMemory,
        libc::EAGAIN => Why::Blocked,
        libc::EMSGSIZE | libc::EINVAL => Why::TooBig,
        other => Why::Other(other),
    }
}

/// The meaning of an errno of socket(2), bind(2) or connect(2).
pub fn why_unopened(error: &io::Error) -> Why {
    match errno(error) {
        libc::EAGAIN | libc::EADDRINUSE => Why::NoPorts,
        libc::EINVAL => Why::Other(libc::EINVAL),
        other => why(other),
    }
}

/// The meaning of an errno of a stream's recv, send or splice.
pub fn why_failed(error: &io::Error) -> Why {
    match errno(error) {
        code @ (libc::EINVAL | libc::EMSGSIZE) => Why::Other(code),
        other => why(other),
    }
}

/// EIO stands for errors that carry no errno.
fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ports_that_ran_out_have_one_name() {
        for errno in [libc::EAGAIN, libc::EADDRINUSE, libc::EADDRNOTAVAIL] {
            assert_eq!(why_unopened(&io::Error::from_raw_os_error(errno)), Why::NoPorts);
        }
    }
}
