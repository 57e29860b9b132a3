//! Holds one side of a session: a connected socket, and the poll or stream that watches it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use config_sync::table::address::Address;
use config_sync::table::routing::SocketOptions;

use crate::contract::{Origin, Why, size};
use crate::ring::queue::Queue;
use crate::ring::sys::calls;
use crate::ring::sys::errno::why_unopened;
use crate::ring::sys::options::{
    bind_interface, bind_source, pending_error, set_new_tcp_options, unix_address,
};

#[derive(Default)]
pub struct Connection {
    pub fd: Option<OwnedFd>,
    pub phase: Phase,
    /// A poll is in flight, so the descriptor must not be closed.
    pub polling: bool,
    /// The descriptor must not be closed before this is `Off`.
    pub stream: Stream,
    /// The peer has sent its FIN, or worse.
    pub ending: bool,
    /// SO_RCVLOWAT was raised by `Peek`.
    pub raised: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Absent,
    Connecting,
    Open,
    /// The poll was cancelled. `ConnectFailed` comes when the poll is over and the descriptor
    /// closed.
    Leaving(Why),
}

/// The multishot receive of a connection that streams, in place of a poll.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stream {
    #[default]
    Off,
    On,
    /// The stream was cancelled. A `Moved` will report its end.
    Ending,
    /// The stream was cancelled, and a `Moved` has reported its failure.
    Failed,
}

/// The maximum number of bytes that `Peek` looks at, and the step in which it looks further. All
/// bytes seen in one round are in memory at once. Most clients have sent their first message within
/// the first step, and bulk may wait behind that message.
pub const MOST_PEEKED: usize = 64 * 1024;

pub const PEEKED: usize = 4 * 1024;

impl Connection {
    pub fn open(&mut self, fd: OwnedFd, phase: Phase) {
        *self = Self { fd: Some(fd), phase, ..Self::default() };
    }

    pub fn in_flight(&self) -> bool {
        self.polling || self.stream != Stream::Off
    }

    /// Closes a connection whose poll was just cancelled, in the same submission. So a FIN or reset
    /// leaves at once, and no system call is needed for it.
    pub fn close_polled(&mut self, reset: bool, queue: &mut Queue) {
        let Some(fd) = self.fd.take_if(|_| self.polling) else { return };
        if reset {
            calls::reset_on_close(fd.as_fd());
        }
        queue.close(fd);
    }

    /// Peeks at the waiting bytes. Returns how many were put into `arena`, and whether no more will
    /// come.
    pub fn peek(&self, at_least: u32, arena: &mut Vec<u8>) -> (usize, bool) {
        let Some(fd) = &self.fd else { return (0, true) };
        let room = (at_least.max(1) as usize).next_multiple_of(PEEKED).min(MOST_PEEKED);
        match calls::recv_behind(fd.as_fd(), arena, room, libc::MSG_PEEK) {
            Ok(0) => (0, true),
            // More bytes may wait than were peeked at.
            Ok(len) => (len, self.ending && (len < room || room == MOST_PEEKED)),
            Err(error) => (0, error.raw_os_error() != Some(libc::EAGAIN)),
        }
    }

    pub fn raise_mark(&mut self, bytes: u32) {
        self.raised |= self.set_mark(bytes.min(size(MOST_PEEKED)));
    }

    pub fn clear_mark(&mut self) {
        self.raised = !self.set_mark(1);
    }

    pub fn set_mark(&self, bytes: u32) -> bool {
        let Some(fd) = &self.fd else { return false };
        let bytes = bytes.cast_signed();
        calls::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, &bytes).is_ok()
    }

    pub fn pending_error(&self) -> Why {
        let error = self.fd.as_ref().and_then(|fd| pending_error(fd.as_fd()));
        error.map_or(Why::Reset, |error| why_unopened(&error))
    }
}

/// Opens a socket that is connecting to `address`, through the interface of this number unless the
/// number is 0. A Unix socket is connected at once, or not at
/// all.
pub fn begin_connect(
    address: &Address,
    (source, interface): (Origin, u32),
    options: &SocketOptions,
) -> io::Result<OwnedFd> {
    let address = match address {
        Address::Ip(address) => address,
        Address::Unix(name) => {
            let fd = calls::unix_socket()?;
            calls::connect(fd.as_fd(), &unix_address(*name)?).map_err(refused_if_full)?;
            return Ok(fd);
        }
    };
    let fd = calls::socket(address, libc::SOCK_STREAM)?;
    set_new_tcp_options(fd.as_fd(), options);
    if interface > 0 {
        bind_interface(fd.as_fd(), interface)?;
    }
    bind_source(fd.as_fd(), source, true)?;
    match calls::connect(fd.as_fd(), &(*address).into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(fd),
    }
}

/// EAGAIN of a Unix socket says that the queue of its listener is full (unix(7)). Nothing would
/// report that the queue has room again.
fn refused_if_full(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::from_raw_os_error(libc::ECONNREFUSED),
        _ => error,
    }
}
