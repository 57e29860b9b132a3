//! Asks the kernel about a connection: its round trip, its pacing, its unacknowledged bytes.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use socket2::SockRef;

use crate::ring::sys::calls;

/// Peers with a shorter round trip are on this machine or in this data centre.
const NEAR: Duration = Duration::from_millis(1);

/// Stops the pacing of a connection to a near peer. For such a peer, a timer for each 64 KiB costs
/// more than pacing can spare the queues between. Returns true if the connection was changed.
///
/// BBR paces. Reno does not pace, is in each kernel, and any user may choose it
/// (`net.ipv4.tcp_allowed_congestion_control`).
pub fn unpace(fd: BorrowedFd<'_>) -> bool {
    let mut name = [0; 16];
    let paces = calls::get_option(fd, libc::IPPROTO_TCP, libc::TCP_CONGESTION, &mut name)
        .is_ok_and(|_| name.starts_with(b"bbr"));
    paces
        && min_rtt(fd).is_some_and(|rtt| rtt < NEAR)
        && SockRef::from(&fd).set_tcp_congestion(b"reno").is_ok()
}

/// The shortest round trip of a connection so far, if the kernel knows one.
fn min_rtt(fd: BorrowedFd<'_>) -> Option<Duration> {
    // `tcpi_min_rtt`, microseconds, in struct tcp_info (include/uapi/linux/tcp.h, Linux 4.6).
    const AT: usize = 148;
    let mut info = [0; AT + 4];
    let len = calls::get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).ok()?;
    let micros = u32::from_ne_bytes(*info.get(..len)?.get(AT..)?.first_chunk()?);
    (micros < u32::MAX).then(|| Duration::from_micros(micros.into()))
}

/// Bytes that were sent and not acknowledged, a FIN included. 0 if the connection is gone: the
/// kernel keeps the count of a connection that was reset, but nobody will acknowledge these bytes.
pub fn unacked(fd: BorrowedFd<'_>) -> u32 {
    // `tcpi_state`, the first byte of struct tcp_info; TCP_CLOSE of include/net/tcp_states.h.
    const CLOSED: [u8; 1] = [7];
    let mut state = [0; 1];
    let known = calls::get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state);
    if known.is_err() || state == CLOSED {
        return 0;
    }
    calls::unacked(fd)
}

/// Adds to `arena` what `wire::tcp_info` reads. Adds nothing if this is no TCP connection.
pub fn inspect(fd: BorrowedFd<'_>, arena: &mut Vec<u8>) {
    // Up to `tcpi_snd_wnd` (Linux 5.4), the last field that `wire::tcp_info` reads.
    let mut info = [0; 232];
    let known = calls::get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info);
    if known.is_ok_and(|len| len == info.len()) {
        arena.extend(calls::unread(fd).to_ne_bytes());
        arena.extend(calls::unacked(fd).to_ne_bytes());
        arena.extend(info);
    }
}
