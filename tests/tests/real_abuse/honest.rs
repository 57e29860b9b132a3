//! Honest clients: they ask at a steady pace, and each question must have its answer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use ringway_tests::real::{client_hello, connect_from, now, udp_from};

/// Where the honest clients are. No one else comes from there.
pub const SOURCE: &str = "127.0.9.1";

/// Requests a second over one session, new sessions with a ClientHello, and queries of DNS.
const PACES: [u64; 3] = [500, 100, 200];

/// A query for `www.example.test`, type A.
pub const QUERY: &[u8] = b"\xab\xcd\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\
    \x03www\x07example\x04test\x00\x00\x01\x00\x01";

/// Where each kind of client asks.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub tcp: SocketAddr,
    pub tls: SocketAddr,
    pub dns: SocketAddr,
}

/// What a kind of client has had in a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Served {
    pub answers: u64,
    pub seconds: f64,
    pub slowest: Duration,
    /// Datagrams that had to be sent again.
    pub again: u64,
}

impl Served {
    pub fn rate(&self) -> f64 {
        self.answers as f64 / self.seconds
    }
}

/// Asks until `over`. Panics if a question has no answer.
pub fn ask_until(over: &AtomicBool, asked: Asked) -> [Served; 3] {
    std::thread::scope(|scope| {
        let kinds = [
            scope.spawn(move || requests(over, asked.tcp)),
            scope.spawn(move || {
                let hello = client_hello(Some("honest.test"));
                paced(over, PACES[1], move || exchange(&connect_from(SOURCE, asked.tls), &hello))
            }),
            scope.spawn(move || paced(over, PACES[2], move || query(&udp_from(SOURCE, asked.dns)))),
        ];
        kinds.map(|kind| kind.join().expect("an honest client was not served"))
    })
}

/// Asks over one session until `over`. Panics if a request has no answer.
pub fn requests(over: &AtomicBool, to: SocketAddr) -> Served {
    let stream = connect_from(SOURCE, to);
    paced(over, PACES[0], move || exchange(&stream, &[7; 1_024]))
}

/// Asks so often in a second. Who is late asks at once, and does not make up for what was missed.
fn paced(over: &AtomicBool, pace: u64, mut ask: impl FnMut() -> u64) -> Served {
    let began = now();
    let mut served = Served::default();
    let mut due: Instant = began;
    while !over.load(SeqCst) {
        let start = now();
        served.again += ask();
        served.answers += 1;
        served.slowest = served.slowest.max(start.elapsed());
        due = (due + Duration::from_micros(1_000_000 / pace)).max(now() - MISSED);
        std::thread::sleep(due.saturating_duration_since(now()));
    }
    served.seconds = began.elapsed().as_secs_f64();
    served
}

/// So late, a client still makes up for.
const MISSED: Duration = Duration::from_millis(100);

/// The endpoint sends everything back.
fn exchange(mut stream: &TcpStream, bytes: &[u8]) -> u64 {
    stream.write_all(bytes).expect("a session takes an honest client's bytes");
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).expect("an honest client has its answer");
    assert_eq!(answer, bytes);
    0
}

/// Returns how often the query had to be sent again: a full socket loses datagrams.
fn query(socket: &UdpSocket) -> u64 {
    let mut answer = [0; 512];
    for again in 0..10 {
        socket.send(QUERY).expect("sending");
        if let Ok(len) = socket.recv(&mut answer) {
            assert_eq!((&answer[..2], len), (&QUERY[..2], QUERY.len()));
            return again;
        }
    }
    panic!("an honest query has no answer at the tenth try");
}
