//! The client of a game: many flows, each of which sends some times a second.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Server, udp_client};

/// A server that answers with the port that the datagram came from, its own name, and the datagram.
pub fn witness(name: &'static str) -> Server {
    Server::udp(move |socket, bytes, peer| {
        let heard = format!("{} {name} {}", peer.port(), String::from_utf8_lossy(bytes));
        let _ = socket.send_to(heard.as_bytes(), peer);
    })
}

/// One flow to a [`witness`], and what it has heard.
#[derive(Debug)]
pub struct Player {
    pub socket: UdpSocket,
    number: usize,
    pub sent: u64,
    pub heard: u64,
    /// Bytes that the client has heard.
    pub bytes: u64,
    /// How often another port or another server answered than before.
    pub moves: u64,
    way: Option<String>,
}

impl Player {
    fn new(address: SocketAddr, number: usize) -> Self {
        let socket = udp_client(address);
        socket.set_nonblocking(true).expect("a flag");
        Self { socket, number, sent: 0, heard: 0, bytes: 0, moves: 0, way: None }
    }

    fn word(&self, number: u64) -> String {
        format!("{:05}:{number:08}", self.number)
    }

    fn send(&mut self) {
        self.sent += 1;
        self.socket.send(self.word(self.sent).as_bytes()).expect("it is sent");
    }

    fn hear(&mut self) {
        let mut answer = [0; 128];
        loop {
            let len = match self.socket.recv(&mut answer) {
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            };
            let text = String::from_utf8_lossy(&answer[..len]).into_owned();
            let (way, word) = text.rsplit_once(' ').expect("three words");
            assert!(word.starts_with(&self.word(0)[..6]), "of another client: {text}");
            let before = self.way.replace(way.to_owned());
            self.moves += u64::from(before.is_some_and(|before| before != way));
            self.heard += 1;
            self.bytes += len as u64;
        }
    }
}

/// Plays until `over`, and waits for the last answers then.
pub fn play(over: &AtomicBool, address: SocketAddr, numbers: Range<usize>) -> Vec<Player> {
    // All together send some thousand datagrams a second.
    let pause = Duration::from_micros(200) * u32::try_from(numbers.len()).expect("few");
    let mut players: Vec<_> = numbers.map(|number| Player::new(address, number)).collect();
    while !over.load(Ordering::SeqCst) {
        for some in players.chunks_mut(50) {
            some.iter_mut().for_each(Player::send);
            std::thread::sleep(Duration::from_millis(2));
            some.iter_mut().for_each(Player::hear);
        }
        std::thread::sleep(pause);
    }
    for _ in 0..100 {
        players.iter_mut().for_each(Player::hear);
        if players.iter().all(|player| player.heard == player.sent) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    players
}
