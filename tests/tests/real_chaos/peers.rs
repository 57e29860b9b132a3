//! Clients and endpoints whose every byte can be checked: it follows from the session's number, the
//! direction and the place in the stream.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ringway_tests::sim::rng::Rng;
use socket2::{SockRef, Socket, Type};

/// Who hears nothing for so long gives up.
pub const PATIENCE: Duration = Duration::from_secs(6);

/// A client begins with so many bytes, which say what the session is.
pub const HEAD: u64 = 48;

/// How one side of a session behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Sends all, says so, and reads to the end.
    Whole,
    /// The same, but reads little and seldom.
    Slow,
    /// Resets the session when so many bytes have gone both ways.
    Reset(u64),
    /// A client: says that it has sent all when the other side has. An endpoint: sends when the
    /// other side has sent all.
    Last,
}

/// What a session is to be.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub id: u64,
    pub up: u64,
    pub down: u64,
    pub client: Act,
    pub endpoint: Act,
}

impl Plan {
    pub fn draw(rng: &mut Rng, id: u64) -> Self {
        let size = |rng: &mut Rng| match rng.below(10) {
            0..4 => rng.below(300),
            4..7 => rng.below(20_000),
            7..9 => rng.below(100_000),
            _ => rng.below(600_000),
        };
        let (up, down) = (size(rng), size(rng));
        let act = |rng: &mut Rng| match rng.below(10) {
            0 => Act::Reset(rng.below(up + down + 1)),
            1 | 2 => Act::Slow,
            3 | 4 => Act::Last,
            _ => Act::Whole,
        };
        let client = act(rng);
        // Both would wait for each other.
        let endpoint = match act(rng) {
            Act::Last if client == Act::Last => Act::Whole,
            act => act,
        };
        Self { id, up, down, client, endpoint }
    }

    fn to_bytes(self) -> Vec<u8> {
        let (act, at) = match self.endpoint {
            Act::Whole => (0, 0),
            Act::Slow => (1, 0),
            Act::Reset(at) => (2, at),
            Act::Last => (3, 0),
        };
        let words = [self.id, self.up, self.down, act, at];
        let sum = words.into_iter().fold(0, |sum, word| mix(sum ^ word));
        words.into_iter().chain([sum]).flat_map(u64::to_be_bytes).collect()
    }

    /// `None`: these are not the first bytes of any session.
    fn from_bytes(bytes: &[u8; HEAD as usize]) -> Option<Self> {
        let (words, _) = bytes.as_chunks::<8>();
        let words: Vec<_> = words.iter().map(|word| u64::from_be_bytes(*word)).collect();
        let endpoint = match words[3] {
            0 => Act::Whole,
            1 => Act::Slow,
            2 => Act::Reset(words[4]),
            _ => Act::Last,
        };
        let client = Act::Whole;
        let plan = Self { id: words[0], up: words[1], down: words[2], client, endpoint };
        (plan.to_bytes() == bytes).then_some(plan)
    }
}

/// What came of it, as one side saw it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub sent: u64,
    pub got: u64,
    /// The other side has ended its stream.
    pub eof: bool,
    pub end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both streams have ended.
    Clean,
    /// This side has reset the session, as planned.
    Reset,
    /// The other side, or the gateway, has.
    Error,
    /// Nothing moved for [`PATIENCE`].
    Silent,
    /// The byte at this place is not the session's, or is one too many.
    Wrong(u64),
}

fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// The bytes of a stream from `at` on.
fn fill(stream: u64, at: u64, bytes: &mut [u8]) {
    let mut at = at;
    let mut rest = bytes;
    while !rest.is_empty() {
        let word = mix(stream.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ mix(at / 8)).to_le_bytes();
        let skip = (at % 8) as usize;
        let len = rest.len().min(8 - skip);
        let (now, later) = rest.split_at_mut(len);
        now.copy_from_slice(&word[skip..skip + len]);
        (rest, at) = (later, at + len as u64);
    }
}

pub fn up(id: u64) -> u64 {
    id * 2
}

pub fn down(id: u64) -> u64 {
    id * 2 + 1
}

/// One side of a session: what it sends, and what it must get.
struct Talk {
    sends: (u64, u64),
    gets: (u64, u64),
    act: Act,
    /// Whether [`Act::Last`] holds all bytes back, or their end alone.
    holds_all: bool,
}

impl Talk {
    fn run(&self, stream: &TcpStream) -> Seen {
        stream.set_nonblocking(true).expect("an option");
        let mut seen = Seen { sent: 0, got: 0, eof: false, end: End::Clean };
        let end = self.moves(stream, &mut seen).unwrap_or(End::Error);
        seen.end = end;
        if end != End::Clean {
            // Nobody may take this for an end.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
        seen
    }

    fn moves(&self, stream: &TcpStream, seen: &mut Seen) -> std::io::Result<End> {
        let mut ended = false;
        loop {
            if matches!(self.act, Act::Reset(at) if seen.sent + seen.got >= at) {
                return Ok(End::Reset);
            }
            let may = self.act != Act::Last || seen.eof;
            let has_more = seen.sent < self.sends.1;
            if !has_more && !ended && may {
                stream.shutdown(Shutdown::Write)?;
                ended = true;
            }
            if ended && seen.eof {
                return Ok(End::Clean);
            }
            let sends = has_more && (may || !self.holds_all);
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::POLLIN, !seen.eof);
            wanted.set(PollFlags::POLLOUT, sends);
            let mut fds = [PollFd::new(stream.as_fd(), wanted)];
            let patience = PollTimeout::from(PATIENCE.as_millis() as u16);
            if poll(&mut fds, patience)? == 0 {
                return Ok(End::Silent);
            }
            let ready = fds[0].revents().unwrap_or(PollFlags::empty());
            let had_eof = seen.eof;
            let failed = ready.intersects(PollFlags::POLLERR | PollFlags::POLLHUP);
            if !seen.eof
                && (failed || ready.contains(PollFlags::POLLIN))
                && let Some(end) = self.read(stream, seen)?
            {
                return Ok(end);
            }
            if sends && ready.contains(PollFlags::POLLOUT) {
                self.write(stream, seen)?;
            } else if failed && had_eof {
                return Ok(End::Error);
            }
        }
    }

    fn read(&self, mut stream: &TcpStream, seen: &mut Seen) -> std::io::Result<Option<End>> {
        let (mut buffer, mut expected) = ([0; 32_768], [0; 32_768]);
        let most = if self.act == Act::Slow { 2_048 } else { buffer.len() };
        let len = match stream.read(&mut buffer[..most]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            len => len?,
        };
        if len == 0 {
            seen.eof = true;
            return Ok(None);
        }
        fill(self.gets.0, seen.got, &mut expected[..len]);
        let wrong = (0..len).find(|at| buffer[*at] != expected[*at]);
        let too_many = (seen.got + len as u64 > self.gets.1).then_some(len);
        if let Some(at) = wrong.or(too_many) {
            return Ok(Some(End::Wrong(seen.got + at as u64)));
        }
        seen.got += len as u64;
        if self.act == Act::Slow {
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(None)
    }

    fn write(&self, mut stream: &TcpStream, seen: &mut Seen) -> std::io::Result<()> {
        let mut buffer = [0; 32_768];
        let len = (self.sends.1 - seen.sent).min(buffer.len() as u64) as usize;
        fill(self.sends.0, seen.sent, &mut buffer[..len]);
        match stream.write(&buffer[..len]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            len => seen.sent += len? as u64,
        }
        Ok(())
    }
}

/// One session of a client. Returns its own address too. `None`: there was no connection.
pub fn talk(plan: Plan, gateway: SocketAddr) -> Option<(SocketAddr, Seen)> {
    let socket = Socket::new(socket2::Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.connect_timeout(&gateway.into(), PATIENCE).ok()?;
    let stream = TcpStream::from(socket);
    let local = stream.local_addr().ok()?;
    let Plan { id, client: act, .. } = plan;
    let failed = Seen { sent: 0, got: 0, eof: false, end: End::Error };
    let Ok(()) = (&stream).write_all(&plan.to_bytes()) else { return Some((local, failed)) };
    let (sends, gets) = ((up(id), plan.up), (down(id), plan.down));
    let talk = Talk { sends, gets, act, holds_all: false };
    Some((local, talk.run(&stream)))
}

/// A server that writes down what it has seen, a line for each session's begin and end.
pub fn serve(at: SocketAddr, journal: &str) {
    let datagrams = UdpSocket::bind(at).expect("the port is free");
    let listener = TcpListener::bind(at).expect("the port is free");
    let journal = OpenOptions::new().create(true).append(true).open(journal).expect("a file");
    std::thread::spawn(move || answer(&datagrams));
    for stream in listener.incoming().flatten() {
        let journal = journal.try_clone().expect("a descriptor");
        std::thread::spawn(move || attend(stream, journal));
    }
}

fn attend(mut stream: TcpStream, mut journal: File) {
    let mut head = [0; HEAD as usize];
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    if stream.read_exact(&mut head).is_err() {
        // A client that left early, or whoever looked whether this server runs.
        return;
    }
    let Some(plan) = Plan::from_bytes(&head) else {
        return journal.write_all(b"foreign\n").expect("a line");
    };
    let Plan { id, endpoint: act, .. } = plan;
    journal.write_all(format!("began {id}\n").as_bytes()).expect("a line");
    let talk = Talk { sends: (down(id), plan.down), gets: (up(id), plan.up), act, holds_all: true };
    let seen = talk.run(&stream);
    let line = match seen.end {
        End::Wrong(at) => format!("wrong {id} {at}\n"),
        end => {
            format!("ended {id} {} {} {} {}\n", seen.sent, seen.got, seen.eof, end == End::Clean)
        }
    };
    journal.write_all(line.as_bytes()).expect("a line");
}

/// Answers each datagram with the same numbers and other bytes.
fn answer(socket: &UdpSocket) {
    let mut bytes = [0; 2_048];
    while let Ok((len, from)) = socket.recv_from(&mut bytes) {
        let Some((id, number)) = datagram_of(&bytes[..len], up) else { continue };
        let _ = socket.send_to(&datagram(id, number, len, down), from);
    }
}

/// A datagram that says whose it is, with bytes that follow from that.
pub fn datagram(id: u64, number: u64, len: usize, stream: fn(u64) -> u64) -> Vec<u8> {
    let mut bytes = vec![0; len.max(16)];
    bytes[..8].copy_from_slice(&id.to_be_bytes());
    bytes[8..16].copy_from_slice(&number.to_be_bytes());
    fill(stream(id) ^ mix(number), 0, &mut bytes[16..]);
    bytes
}

/// Whose datagram it is, and its number. `None`: its bytes are not those.
pub fn datagram_of(bytes: &[u8], stream: fn(u64) -> u64) -> Option<(u64, u64)> {
    let word = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let (id, number) = (word(0)?, word(8)?);
    (datagram(id, number, bytes.len(), stream) == bytes).then_some((id, number))
}
