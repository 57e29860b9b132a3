//! Receives and sends the bytes that the proxy itself reads and writes: the bytes of TLS.

use std::os::fd::BorrowedFd;

use crate::contract::{Event, Side, Stop, Why, size};
use crate::ring::sys::calls;
use crate::ring::sys::errno::why_failed;
use crate::ring::tcp::transfer::{Wanted, is_blocked, is_last, send_all};

/// Makes one receive into `arena`. `None`: the side is gone.
pub fn take(from: Side, fd: Option<BorrowedFd<'_>>, wanted: Wanted, arena: &mut Vec<u8>) -> Event {
    let start = size(arena.len());
    let taken = |len, stop| Event::Taken { from, start, len: size(len), stop };
    let Some(fd) = fd else { return taken(0, gone(from)) };
    let room = wanted.budget as usize;
    match calls::recv_behind(fd, arena, room, 0) {
        Ok(0) if room > 0 => taken(0, Stop::Eof),
        Ok(len) => {
            taken(len, if is_last(fd, len, room, wanted) { Stop::Drained } else { Stop::Budget })
        }
        Err(error) if is_blocked(&error) => taken(0, Stop::Drained),
        Err(error) => taken(0, Stop::Failed { side: from, why: why_failed(&error) }),
    }
}

/// Sends a range of `output`. Bytes that the side does not take are put into `arena`.
pub fn give(
    to: Side,
    fd: Option<BorrowedFd<'_>>,
    (start, len): (u32, u32),
    output: &[u8],
    arena: &mut Vec<u8>,
) -> Event {
    let bytes = &output[start as usize..][..len as usize];
    let (sent, stop) = match fd {
        None => (0, gone(to)),
        Some(fd) => match send_all(fd, bytes) {
            (sent, None) => (sent, Stop::Drained),
            (sent, Some(error)) if is_blocked(&error) => (sent, Stop::Blocked),
            (sent, Some(error)) => (sent, Stop::Failed { side: to, why: why_failed(&error) }),
        },
    };
    let start = size(arena.len());
    arena.extend_from_slice(&bytes[sent..]);
    Event::Given { to, sent: size(sent), start, len: size(bytes.len() - sent), stop }
}

fn gone(side: Side) -> Stop {
    Stop::Failed { side, why: Why::Other(libc::EBADF) }
}
