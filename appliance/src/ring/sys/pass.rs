//! Passes packets and descriptors between processes over a Unix socket (SCM_RIGHTS, unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
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
    send_with(to, bytes, beside, MsgFlags::empty())
}

/// Sends a packet without waiting until there is room.
///
/// # Errors
/// As those of [`send`]. EAGAIN: there is no room.
pub fn send_now(to: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    send_with(to, bytes, &[], MsgFlags::MSG_DONTWAIT)
}

fn send_with(
    to: BorrowedFd<'_>,
    bytes: &[u8],
    beside: &[BorrowedFd<'_>],
    flags: MsgFlags,
) -> io::Result<()> {
    let flags = flags | MsgFlags::MSG_NOSIGNAL;
    let raw: Vec<RawFd> = beside.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let slices = [IoSlice::new(bytes)];
    loop {
        match sendmsg::<()>(to.as_raw_fd(), &slices, control, flags, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a packet without all of its descriptors is to whoever needs them.
pub const CUT: &str =
    "not all sockets could be received: this process may have no more files (RLIMIT_NOFILE)";

/// Receives a packet into `into`. Returns its length and the descriptors beside it. A length of 0
/// is the end.
///
/// # Errors
/// Errors of recvmsg(2): EAGAIN if nothing comes in time. Also if the packet is longer than `into`,
/// or if this process can't have so many descriptors.
pub fn receive(from: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    match receive_what_fits(from, into)? {
        (_, _, true) => Err(io::Error::other(CUT)),
        (len, beside, false) => Ok((len, beside)),
    }
}

/// The same, and whether this process can't have all of the descriptors.
///
/// # Errors
/// As those of [`receive`], but for the last one.
pub fn receive_what_fits(
    from: BorrowedFd<'_>,
    into: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>, bool)> {
    let mut space = cmsg_space!([RawFd; MOST]);
    let mut slices = [IoSliceMut::new(into)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<()>(from.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
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
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(io::Error::other("a packet is longer than any message"));
    }
    Ok((message.bytes, beside, message.flags.contains(MsgFlags::MSG_CTRUNC)))
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

/// Another process. The kernel says when the process has ended, also before anybody has waited for
/// it (pidfd_open(2)).
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// # Errors
    /// ESRCH: there is no such process.
    pub fn open(number: u32) -> io::Result<Self> {
        let number = libc::pid_t::try_from(number).map_err(|_| io::Error::from(Errno::ESRCH))?;
        // SAFETY: the call takes no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
        let fd = RawFd::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
        // SAFETY: the kernel has just opened this descriptor, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Whether the process has ended, or ends within this time.
    ///
    /// # Errors
    /// Errors of poll(2).
    pub fn ends_within(&self, patience: Duration) -> io::Result<bool> {
        let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, patience) {
                Err(Errno::EINTR) => {}
                result => return Ok(result? > 0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_end_of_a_process_is_seen_before_anybody_waits_for_it() {
        let mut command = Command::new("cat");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat");
        let process = Process::open(child.id()).expect("it lives");
        assert!(!process.ends_within(Duration::from_millis(20)).expect("it can be asked"));
        drop(child.stdin.take());
        assert!(process.ends_within(Duration::from_secs(60)).expect("it can be asked"));
        assert!(Process::open(child.id()).is_ok(), "nobody has waited for it");
        child.wait().expect("its status");
        assert!(process.ends_within(Duration::ZERO).expect("it can be asked"));
        assert!(Process::open(u32::MAX).is_err(), "no process has this number");
    }
}
