//! Passes packets and descriptors between processes over a Unix socket (SCM_RIGHTS, unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, UnixCredentials, getsockopt, recvmsg,
    sendmsg, shutdown, sockopt,
};
use socket2::SockRef;

/// The most descriptors beside one packet.
pub const MOST: usize = 200;

/// Sends a packet, with copies of the descriptors beside it. A packet goes whole or not at all.
///
/// # Errors
/// Errors of sendmsg(2): EPIPE if the peer has gone, EAGAIN if the peer does not read in time.
pub fn send(to: BorrowedFd<'_>, bytes: &[u8], beside: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = beside.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let slices = [IoSlice::new(bytes)];
    loop {
        match sendmsg::<()>(to.as_raw_fd(), &slices, control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives a packet into `into`. Returns its length and the descriptors beside it. A length of 0
/// is the end.
///
/// # Errors
/// Errors of recvmsg(2): EAGAIN if nothing comes in time. Also if the packet is longer than `into`,
/// or if this process can't have so many descriptors.
pub fn receive(from: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; MOST]);
    let mut slices = [IoSliceMut::new(into)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<()>(from.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(nix::errno::Errno::EINTR) => {}
            result => break result?,
        }
    };
    let mut beside = Vec::new();
    // If the room for descriptors was cut, those that have come are still ours to close.
    for control in message.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(all) = control {
            // SAFETY: the kernel has just opened these descriptors, and nobody else has them.
            beside.extend(all.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::other("not all sockets could be received: no files are left"));
    }
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(io::Error::other("a packet is longer than any message"));
    }
    Ok((message.bytes, beside))
}

/// Takes the descriptors that were passed to this program when it was started: 3 and those behind,
/// as many as the environment says (sd_listen_fds(3)). `None`: this one is not open. Only the first
/// call finds any.
pub fn inherited(count: usize) -> Vec<Option<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let count = if TAKEN.swap(true, Ordering::Relaxed) { 0 } else { count };
    let take = |fd: RawFd| {
        // Programs that this one starts do not get the descriptor.
        // SAFETY: the call takes no memory.
        let is_open = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
        // SAFETY: the descriptor is open. Whoever started this program has passed it for this use,
        // and this function runs once.
        is_open.then(|| unsafe { OwnedFd::from_raw_fd(fd) })
    };
    (3..).take(count).map(take).collect()
}

/// Sets how long a send or a receive waits.
///
/// # Errors
/// Errors of setsockopt(2).
pub fn set_patience(socket: BorrowedFd<'_>, patience: Duration) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))
}

/// Receives no more, except what has come already. From then on the peer's sends fail.
///
/// # Errors
/// Errors of shutdown(2).
pub fn stop_receiving(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(shutdown(socket.as_raw_fd(), Shutdown::Read)?)
}

/// The process at the other end: its user, and its number.
///
/// # Errors
/// Errors of getsockopt(2).
pub fn peer(socket: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let peer: UnixCredentials = getsockopt(&socket.as_fd(), sockopt::PeerCredentials)?;
    Ok((peer.uid(), u32::try_from(peer.pid()).unwrap_or(0)))
}
