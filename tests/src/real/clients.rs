//! Clients: sockets of the test, and real programs.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::deadline;
use crate::hello;

/// A connection on which a read or a write that hangs fails. A reset that arrives before connect(2)
/// returns is reported by the first read, like a reset that arrives later: which of the two happens
/// depends on the scheduler.
pub fn connect(address: SocketAddr) -> TcpStream {
    try_connect(address).unwrap_or_else(|e| panic!("connect {address}: {e}"))
}

/// Like [`connect`], for addresses where perhaps nobody listens.
fn try_connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = match TcpStream::connect(address) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => reset_connection(),
        other => other?,
    };
    stream.set_read_timeout(Some(deadline()))?;
    stream.set_write_timeout(Some(deadline()))?;
    Ok(stream)
}

/// A connection that its peer has reset, which the first read reports.
fn reset_connection() -> TcpStream {
    let peer = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let stream = TcpStream::connect(peer.local_addr().expect("an address")).expect("connected");
    let (accepted, _) = peer.accept().expect("a connection");
    SockRef::from(&accepted).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    stream
}

/// A session that relays: a byte has gone both ways.
pub fn session(address: SocketAddr) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(b"x").expect("sending");
    stream.read_exact(&mut [0]).expect("the echo");
    stream
}

/// A UDP socket of its own port that talks only to `address`.
pub fn udp_client(address: SocketAddr) -> UdpSocket {
    let any: SocketAddr = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("");
    let socket = UdpSocket::bind(any).expect("binding");
    socket.connect(address).expect("connecting");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    socket
}

/// A connection from a local address, otherwise like [`connect`].
pub fn connect_from(source: &str, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
    let source: IpAddr = source.parse().expect("an address");
    socket.bind(&SocketAddr::new(source, 0).into()).expect("a local address");
    let stream = match socket.connect(&to.into()) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => reset_connection(),
        Err(error) => panic!("connect {to}: {error}"),
        Ok(()) => TcpStream::from(socket),
    };
    stream.set_read_timeout(Some(deadline())).expect("a timeout");
    stream
}

/// A UDP socket with a local address, whose reads end after half a second.
pub fn udp_from(source: &str, to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((source.parse::<IpAddr>().expect("an address"), 0));
    let socket = socket.expect("a local address");
    socket.connect(to).expect("connecting");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    socket
}

/// Whether one of three datagrams is answered before a read of the socket ends.
pub fn has_answer(socket: &UdpSocket) -> bool {
    (0..3).any(|_| {
        socket.send(b"ping").expect("sending");
        socket.recv(&mut [0; 64]).is_ok()
    })
}

/// Sends `bytes` and a FIN, and returns everything that came back, or why it did not come: nobody
/// listens, or the connection ends with a reset.
pub fn exchange(address: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = try_connect(address)?;
    stream.write_all(bytes)?;
    match stream.shutdown(Shutdown::Write) {
        // A reset has come already: reading tells.
        Err(error) if error.kind() == ErrorKind::NotConnected => (),
        ended => ended?,
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Whether the connection ends with a reset (and not with a FIN, and not with data).
pub fn was_reset(stream: &mut TcpStream) -> bool {
    stream.read_exact(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

/// Sends `bytes`, and returns whether the connection ends with a reset. If the reset comes before
/// all bytes are sent, the write has the error, and a read would find an end.
pub fn was_reset_after(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    match stream.write_all(bytes) {
        Ok(()) => was_reset(stream),
        Err(error) => [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind()),
    }
}

/// Whether the connection ends without a byte, by FIN or by reset.
pub fn closed_without_a_byte(stream: &mut TcpStream) -> bool {
    let closed = [ErrorKind::ConnectionReset, ErrorKind::UnexpectedEof];
    stream.read_exact(&mut [0]).is_err_and(|error| closed.contains(&error.kind()))
}

/// The number of the TLS alert that comes, if the connection then ends with a FIN and nothing else
/// has come.
pub fn alert(stream: &mut TcpStream) -> Option<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    match bytes[..] {
        [21, 3, 3, 0, 2, 2, alert] => Some(alert),
        _ => None,
    }
}

/// A program without input that is ended after three minutes, and then exits with 124 or 137.
pub fn limited(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "180"]).arg(name).stdin(Stdio::null());
    command
}

/// Runs a program to its end and returns what it printed. It must succeed, within three minutes.
pub fn program(name: &str, arguments: &[&str]) -> String {
    let output =
        limited(name).args(arguments).output().unwrap_or_else(|error| panic!("{name}: {error}"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{name} {arguments:?}: {}\n{printed}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}

/// What a child process says, line by line.
#[derive(Debug)]
pub struct Lines(mpsc::Receiver<String>);

impl Lines {
    pub fn of(output: ChildStdout) -> Self {
        let (say, said) = mpsc::channel();
        // Pipes have no timeouts, channels have.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if say.send(line).is_err() {
                    return;
                }
            }
        });
        Self(said)
    }

    /// The next one. Panics if it does not come in a minute, or never will.
    pub fn take(&self) -> String {
        self.0.recv_timeout(deadline()).expect("a line")
    }

    /// All that are left, once the process has ended.
    pub fn rest(&self) -> Vec<String> {
        self.0.iter().collect()
    }
}

/// Bytes that look random and can be made again from the same seed, to compare a stream with what
/// was sent as it arrives (xorshift64).
#[derive(Clone, Debug)]
pub struct Pattern {
    state: u64,
    left: Vec<u8>,
}

impl Pattern {
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, left: Vec::new() }
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        while self.left.len() < len {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            self.left.extend_from_slice(&self.state.to_le_bytes());
        }
        let rest = self.left.split_off(len);
        std::mem::replace(&mut self.left, rest)
    }

    /// Sends the next `len` bytes.
    pub fn send(&mut self, mut to: &TcpStream, len: u64) -> std::io::Result<()> {
        let mut left = len;
        while left > 0 {
            let piece = usize::try_from(left.min(65_536)).expect("small");
            to.write_all(&self.take(piece))?;
            left -= piece as u64;
        }
        Ok(())
    }

    /// Reads `len` bytes. Each must be the next byte of the pattern.
    pub fn expect(&mut self, mut from: &TcpStream, len: u64) -> std::io::Result<()> {
        let mut bytes = vec![0; 65_536];
        let mut at = 0;
        while at < len {
            let want = usize::try_from((len - at).min(65_536)).expect("small");
            let got = from.read(&mut bytes[..want])?;
            if got == 0 {
                return Err(std::io::Error::other(format!("ended after {at} of {len} bytes")));
            }
            if bytes[..got] != self.take(got) {
                return Err(std::io::Error::other(format!("wrong bytes after {at}")));
            }
            at += got as u64;
        }
        Ok(())
    }
}

/// A small ClientHello in one record.
pub fn client_hello(server_name: Option<&str>) -> Vec<u8> {
    hello::client_hello(server_name, 16, 1 << 14)
}
