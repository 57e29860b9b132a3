//! TCP sockets driven by direct calls where the ring's own operations cost more: sends, which
//! rarely have to wait, and bulk receives that nobody looks at.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use monoio::net::TcpStream;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use super::wire;

/// How long a connection may take to be made.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects with TCP_NODELAY, from `source` if given, from a port of the kernel's choice.
///
/// # Errors
/// Of connect(2), and `TimedOut` after 5 s.
pub async fn connect(to: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        // The port is then chosen by connect, which needs it to be unique only for this peer.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.set_nonblocking(true)?;
    let pending = match socket.connect(&to.into()) {
        Ok(()) => false,
        Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => true,
        Err(error) => return Err(error),
    };
    // The ring gives EAGAIN instead of waiting on sockets that are O_NONBLOCK.
    socket.set_nonblocking(false)?;
    if pending {
        let watched = TcpStream::from_std(socket.try_clone()?.into())?;
        match monoio::time::timeout(PATIENCE, watched.writable(false)).await {
            Ok(result) => result?,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
    }
    TcpStream::from_std(socket.into())
}

pub async fn send_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        bytes = &bytes[send_some(stream, bytes).await?..];
    }
    Ok(())
}

/// Sends what the socket takes at once, and waits only if that is nothing.
pub async fn send_some(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match send_now(stream, bytes) {
            Err(Errno::EAGAIN) => stream.writable(false).await?,
            result => return Ok(result?),
        }
    }
}

/// Sends without waiting.
///
/// # Errors
/// `EAGAIN` if the socket takes nothing now.
pub fn send_now(stream: &TcpStream, bytes: &[u8]) -> nix::Result<usize> {
    send(stream.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)
}

/// The receiving end of a bulk stream: discards without copying, and looks at a few bytes now and
/// then whether they are the right ones.
pub struct Drain {
    /// Never touched where bytes are only discarded, so that it takes no memory.
    buffer: Vec<u8>,
    received: u64,
    calls: u32,
}

impl Drain {
    const AT_ONCE: usize = 256 << 10;
    const SAMPLE: usize = 64;
    const CALLS_PER_SAMPLE: u32 = 64;
    /// So often in a row the ring is not asked; then others get their turn.
    const CALLS_PER_TURN: u32 = 8;

    pub fn new() -> Self {
        Self { buffer: vec![0; Self::AT_ONCE], received: 0, calls: 0 }
    }

    /// Bytes of the stream so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The number of bytes received, 0 at the stream's end.
    ///
    /// # Errors
    /// `InvalidData` if they are not the bytes that were sent.
    pub async fn receive(&mut self, stream: &TcpStream) -> io::Result<usize> {
        self.calls = self.calls.wrapping_add(1);
        if self.calls.is_multiple_of(Self::CALLS_PER_TURN) {
            stream.readable(false).await?;
        }
        if self.calls % Self::CALLS_PER_SAMPLE != 1 {
            let count = discard(stream, &mut self.buffer).await?;
            self.received += count as u64;
            return Ok(count);
        }
        let sample = &mut self.buffer[..Self::SAMPLE];
        let count = receive(stream, sample, MsgFlags::empty()).await?;
        if !wire::is_pattern(self.received, &sample[..count]) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.received += count as u64;
        Ok(count)
    }
}

/// Takes up to `scratch.len()` bytes from the stream without copying them (MSG_TRUNC, tcp(7)).
pub async fn discard(stream: &TcpStream, scratch: &mut [u8]) -> io::Result<usize> {
    receive(stream, scratch, MsgFlags::MSG_TRUNC).await
}

async fn receive(stream: &TcpStream, buffer: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
    loop {
        match recv(stream.as_raw_fd(), buffer, flags | MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) => stream.readable(false).await?,
            result => return Ok(result?),
        }
    }
}
