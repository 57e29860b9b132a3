//! A cable that loses, delays and reorders frames. It joins two interfaces of a namespace and does
//! what netem does, which not every kernel has.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send,
    socket,
};
use ringway_tests::real::now;
use ringway_tests::sim::rng::Rng;
use socket2::SockRef;

/// packet(7), PACKET_OUTGOING: a frame that this side has sent itself.
const OUTGOING: u8 = 4;

/// What a cable does now.
#[derive(Debug, Default)]
pub struct Weather {
    /// Of 10,000 frames, how many are lost.
    pub loss: AtomicU64,
    /// Microseconds for each frame.
    pub delay: AtomicU64,
    /// Microseconds at the most that are added by chance: frames overtake each other.
    pub jitter: AtomicU64,
    pub passed: AtomicU64,
    pub lost: AtomicU64,
    /// Frames that came out before one that came in earlier.
    pub overtook: AtomicU64,
}

/// Ends when dropped.
#[derive(Debug)]
pub struct Wire {
    pub weather: Arc<Weather>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Joins two interfaces of the caller's namespace.
    pub fn between(interfaces: [&str; 2], seed: u64) -> Self {
        let sides = interfaces.map(open);
        let weather = Arc::new(Weather::default());
        let over = Arc::new(AtomicBool::new(false));
        let (its, stopped) = (Arc::clone(&weather), Arc::clone(&over));
        let mut carrier = Carrier {
            sides,
            weather: its,
            rng: Rng::new(seed),
            count: 0,
            newest: [0; 2],
            waiting: BinaryHeap::new(),
        };
        let thread = std::thread::spawn(move || {
            while !stopped.load(SeqCst) {
                carrier.turn();
            }
        });
        Self { weather, over, thread: Some(thread) }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A socket that has all frames of an interface.
fn open(interface: &str) -> OwnedFd {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let all = SockProtocol::EthAll;
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, all).expect("needs root");
    let addresses = nix::ifaddrs::getifaddrs().expect("interfaces");
    let mut own = addresses.filter(|of| of.interface_name == interface);
    let link = own.find_map(|of| of.address?.as_link_addr().copied()).expect("the interface");
    bind(fd.as_raw_fd(), &link).expect("bound to the interface");
    SockRef::from(&fd).set_recv_buffer_size(4 << 20).expect("a buffer size");
    fd
}

/// When it comes out, its number, the side that it came from, and its bytes.
type Frame = (Instant, u64, usize, Vec<u8>);

struct Carrier {
    sides: [OwnedFd; 2],
    weather: Arc<Weather>,
    rng: Rng,
    count: u64,
    /// The number of the newest frame that has come out, by the side that it came from.
    newest: [u64; 2],
    waiting: BinaryHeap<Reverse<Frame>>,
}

impl Carrier {
    fn turn(&mut self) {
        let due = self.waiting.peek().map(|Reverse(frame)| frame.0);
        let wait = due.map_or(20, |due| due.saturating_duration_since(now()).as_millis() as u16);
        let mut fds =
            self.sides.each_ref().map(|side| PollFd::new(side.as_fd(), PollFlags::POLLIN));
        let _ = poll(&mut fds, PollTimeout::from(wait.min(20)));
        for side in 0..2 {
            self.take(side);
        }
        let now = now();
        while let Some(Reverse(frame)) = self.waiting.peek()
            && frame.0 <= now
        {
            let Some(Reverse((_, number, from, bytes))) = self.waiting.pop() else { return };
            self.newest[from] = self.newest[from].max(number);
            self.weather.overtook.fetch_add(u64::from(number < self.newest[from]), SeqCst);
            // A full queue loses it, as on any cable.
            let other = self.sides[1 - from].as_raw_fd();
            let sent = send(other, &bytes, MsgFlags::MSG_DONTWAIT).is_ok();
            let what = if sent { &self.weather.passed } else { &self.weather.lost };
            what.fetch_add(1, SeqCst);
        }
    }

    /// Takes the frames that have come.
    fn take(&mut self, from: usize) {
        let mut buffer = [0; 70_000];
        for _ in 0..256 {
            let Ok((len, sender)) = recvfrom::<LinkAddr>(self.sides[from].as_raw_fd(), &mut buffer)
            else {
                return;
            };
            if sender.is_some_and(|sender| sender.pkttype() == OUTGOING) {
                continue;
            }
            if self.rng.below(10_000) < self.weather.loss.load(SeqCst) {
                self.weather.lost.fetch_add(1, SeqCst);
                continue;
            }
            mend(&mut buffer[..len]);
            let more = self.rng.below(self.weather.jitter.load(SeqCst));
            let delay = Duration::from_micros(self.weather.delay.load(SeqCst) + more);
            self.count += 1;
            let frame = (now() + delay, self.count, from, buffer[..len].to_vec());
            self.waiting.push(Reverse(frame));
        }
    }
}

/// Writes the checksum of a TCP segment or datagram of IPv4, which the sender's interface leaves to
/// hardware that is not there.
fn mend(frame: &mut [u8]) {
    if frame.len() < 34 || frame[12..14] != [8, 0] {
        return;
    }
    let ip = &mut frame[14..];
    let head = usize::from(ip[0] & 15) * 4;
    let end = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let is_fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
    let protocol = ip[9];
    let at = match protocol {
        6 => 16,
        17 => 6,
        _ => return,
    };
    if is_fragment || end > ip.len() || end < head + at + 2 {
        return;
    }
    let addresses = sum(&ip[12..20]);
    let segment = &mut ip[head..end];
    segment[at..at + 2].fill(0);
    let mut total = addresses + sum(segment) + u64::from(protocol) + segment.len() as u64;
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    let checksum = match !(total as u16) {
        0 => 0xffff,
        checksum => checksum,
    };
    segment[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |byte| u64::from(*byte) << 8);
    pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum::<u64>() + last
}
