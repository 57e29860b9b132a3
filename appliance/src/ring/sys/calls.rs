//! Makes the system calls that the ring makes directly, one function each. All sockets are
//! non-blocking, and no call waits.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use socket2::SockAddr;

/// recv(2) without waiting. `Ok(0)` is the end of the stream.
pub fn recv(fd: BorrowedFd<'_>, into: &mut [u8], flags: c_int) -> io::Result<usize> {
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: `into` is valid for writes of its length, and the kernel writes no more than that.
    retry(|| unsafe { libc::recv(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), flags) })
}

/// As [`recv`], but appends to `into`, and receives at most `room` bytes.
pub fn recv_behind(
    fd: BorrowedFd<'_>,
    into: &mut Vec<u8>,
    room: usize,
    flags: c_int,
) -> io::Result<usize> {
    into.reserve(room);
    let free: *mut c_void = into.spare_capacity_mut().as_mut_ptr().cast();
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: the vector has room for that many bytes more, and the kernel writes no more.
    let len = retry(|| unsafe { libc::recv(fd.as_raw_fd(), free, room, flags) })?;
    // SAFETY: the bytes are within the capacity, and the kernel has just written this many of them.
    unsafe { into.set_len(into.len() + len) };
    Ok(len)
}

/// Whether the next byte is TCP's urgent byte (SIOCATMARK, tcp(7)). A receive stops before that
/// byte, and the next receive leaves it out.
pub fn is_at_mark(fd: BorrowedFd<'_>) -> bool {
    /// asm-generic/sockios.h.
    const SIOCATMARK: libc::Ioctl = 0x8905;
    let mut at_mark: c_int = 0;
    // SAFETY: the kernel writes one int. A failure leaves 0, because there is no connection any
    // more.
    unsafe { libc::ioctl(fd.as_raw_fd(), SIOCATMARK, &raw mut at_mark) };
    at_mark != 0
}

/// Bytes that were sent and not acknowledged, a FIN included (SIOCOUTQ, tcp(7)).
pub fn unacked(fd: BorrowedFd<'_>) -> u32 {
    let mut bytes: c_int = 0;
    // SAFETY: the kernel writes one int. A failure leaves 0, because there is no connection any
    // more.
    unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    bytes.unsigned_abs()
}

/// Bytes that wait to be received (FIONREAD, tcp(7)).
pub fn unread(fd: BorrowedFd<'_>) -> u32 {
    let mut bytes: c_int = 0;
    // SAFETY: the kernel writes one int. A failure leaves 0, because there is no connection any
    // more.
    unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    bytes.unsigned_abs()
}

/// send(2) without waiting and without SIGPIPE.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `bytes` is valid for reads of its length.
    retry(|| unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// write(2) to a non-blocking pipe.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: `bytes` is valid for reads of its length.
    retry(|| unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}

/// splice(2) between a socket and a pipe. `SPLICE_F_NONBLOCK` concerns only the pipe, so the socket
/// must be `O_NONBLOCK`. A broken socket raises SIGPIPE, which Rust's start-up code ignores.
pub fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    // SAFETY: both offsets are null, so the kernel touches no memory of ours.
    retry(|| unsafe { libc::splice(from, ptr::null_mut(), to, ptr::null_mut(), len, flags) })
}

/// Makes a non-blocking pipe with the default capacity. Returns its reading and its writing end.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends: [RawFd; 2] = [-1; 2];
    // SAFETY: the kernel writes two descriptors into `ends`.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) })?;
    // SAFETY: the call succeeded, so this descriptor is open, and nobody else has it.
    let reading = unsafe { OwnedFd::from_raw_fd(ends[0]) };
    // SAFETY: as above.
    let writing = unsafe { OwnedFd::from_raw_fd(ends[1]) };
    Ok((reading, writing))
}

/// The bytes that a pipe can hold.
pub fn pipe_capacity(fd: BorrowedFd<'_>) -> io::Result<usize> {
    // SAFETY: F_GETPIPE_SZ takes no argument.
    let size = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETPIPE_SZ) })?;
    Ok(size.unsigned_abs() as usize)
}

/// Asks for a pipe that holds this many bytes, and returns how many the pipe holds. `EPERM`: the
/// user's pipes have more than `fs.pipe-user-pages-soft` pages, or `bytes` is above
/// `fs.pipe-max-size`.
pub fn set_pipe_capacity(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
    // SAFETY: F_SETPIPE_SZ takes an int.
    let size = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) })?;
    Ok(size.unsigned_abs() as usize)
}

/// Makes a non-blocking, close-on-exec socket for `address`'s family.
pub fn socket(address: &SocketAddr, kind: c_int) -> io::Result<OwnedFd> {
    new_socket(if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }, kind)
}

/// Makes a non-blocking, close-on-exec Unix socket for a stream.
pub fn unix_socket() -> io::Result<OwnedFd> {
    new_socket(libc::AF_UNIX, libc::SOCK_STREAM)
}

fn new_socket(family: c_int, kind: c_int) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd =
        check(unsafe { libc::socket(family, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the call succeeded, so the descriptor is open, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// connect(2). `EINPROGRESS` comes back as an error.
pub fn connect(fd: BorrowedFd<'_>, address: &SockAddr) -> io::Result<()> {
    // SAFETY: `address` is a whole socket address of the length that it states.
    check(unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), address.len()) })?;
    Ok(())
}

/// Undoes connect(2) of a datagram socket, which stays bound.
pub fn disconnect(fd: BorrowedFd<'_>) -> io::Result<()> {
    // AF_UNSPEC
    let none = libc::sockaddr { sa_family: 0, sa_data: [0; 14] };
    // SAFETY: `none` is a whole address, 16 bytes long.
    check(unsafe { libc::connect(fd.as_raw_fd(), &raw const none, 16) })?;
    Ok(())
}

/// accept4(2). `EAGAIN`: no connection waits.
pub fn accept(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: null pointers ask for no address.
    let fd =
        check(unsafe { libc::accept4(fd.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags) })?;
    // SAFETY: the call succeeded, so the descriptor is open, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// shutdown(2) of the sending half.
pub fn shutdown_write(fd: BorrowedFd<'_>) {
    // SAFETY: no memory is passed. A failure means that the connection is gone, and the readiness
    // of the socket reports that.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) };
}

/// Makes the close of this socket a reset.
pub fn reset_on_close(fd: BorrowedFd<'_>) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // This can't fail on an open TCP socket, and a failure would leave nothing else to do.
    let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger);
}

/// setsockopt(2) with a plain value.
pub fn set_option<T: Copy>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &T,
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).expect("options are small");
    // SAFETY: `value` is valid for reads of `len` bytes.
    check(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, ptr::from_ref(value).cast(), len)
    })?;
    Ok(())
}

/// getsockopt(2) into `into`. Returns how many bytes the kernel wrote.
pub fn get_option(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    into: &mut [u8],
) -> io::Result<usize> {
    let mut len = libc::socklen_t::try_from(into.len()).expect("options are small");
    // SAFETY: `into` is valid for writes of `len` bytes, and the kernel writes no more than that.
    check(unsafe {
        let into = into.as_mut_ptr().cast();
        libc::getsockopt(fd.as_raw_fd(), level, name, into, &raw mut len)
    })?;
    Ok(len as usize)
}

/// Reads the eight bytes of an eventfd, which sets it back to zero.
pub fn clear_eventfd(fd: BorrowedFd<'_>) {
    let mut count = 0_u64;
    // SAFETY: `count` is valid for writes of its eight bytes. The result does not matter, because
    // zero and EAGAIN mean the same.
    unsafe { libc::read(fd.as_raw_fd(), ptr::from_mut(&mut count).cast::<c_void>(), 8) };
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Repeats the call if a signal interrupted it, because EINTR must not be taken for EAGAIN.
fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        let result = usize::try_from(call()).map_err(|_| io::Error::last_os_error());
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            result => return result,
        }
    }
}
