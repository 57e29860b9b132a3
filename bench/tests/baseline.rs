//! The proxies that designs are measured by lose nothing and pass ends on; else their figures would
//! say nothing.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::time::Duration;

#[test]
fn bulk_arrives_whole_and_an_answer_follows_the_end() {
    for kind in KINDS {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let baseline = Baseline::start(kind, listener.local_addr().expect("bound"));
        let backend = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut all = Vec::new();
            // Late: the proxy has to hold bytes that its destination does not take.
            std::thread::sleep(Duration::from_millis(200));
            stream.read_to_end(&mut all).expect("to its end");
            stream.write_all(&sum(&all).to_le_bytes()).expect("an answer");
        });
        let said: Vec<u8> = (0..8 << 20).map(|n: u32| (n >> 7).to_le_bytes()[0]).collect();
        let mut client = baseline.connect();
        client.write_all(&said).expect("sent");
        client.shutdown(Shutdown::Write).expect("an end");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).expect("an answer");
        assert_eq!(answer, sum(&said).to_le_bytes(), "{kind}");
        backend.join().expect("no panic");
    }
}

#[test]
fn what_cannot_be_connected_to_ends_its_client_alone() {
    for kind in KINDS {
        let reserved = TcpListener::bind("127.0.0.1:0").expect("a port");
        let backend = reserved.local_addr().expect("bound");
        drop(reserved);
        let mut baseline = Baseline::start(kind, backend);
        for _ in 0..3 {
            let mut bytes = Vec::new();
            // An end or a reset, but no wait.
            let _ = baseline.connect().read_to_end(&mut bytes);
            assert!(bytes.is_empty(), "{kind}");
        }
        assert!(matches!(baseline.process.try_wait(), Ok(None)), "{kind} has ended");
    }
}

const KINDS: [&str; 2] = ["epoll-splice", "monoio"];

struct Baseline {
    process: Child,
    listen: SocketAddr,
}

impl Baseline {
    fn start(kind: &str, to: SocketAddr) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr();
        let listen = free.expect("bound");
        let process = Command::new(env!("CARGO_BIN_EXE_bench"))
            .args(["baseline", kind, "--listen", &listen.to_string(), "--to", &to.to_string()])
            .spawn()
            .expect("the program runs");
        Self { process, listen }
    }

    /// Waits for the program to listen.
    fn connect(&self) -> TcpStream {
        for _ in 0..500 {
            if let Ok(stream) = TcpStream::connect(self.listen) {
                stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
                return stream;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("nothing listens on {}", self.listen);
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum.rotate_left(5) ^ u64::from(*byte))
}
