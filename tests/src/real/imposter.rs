//! A new process of an upgrade as a test writes it.

use std::os::fd::{AsFd as _, OwnedFd};

use config_sync::table::address::UnixPath;
use ringway::ring::listen::unix;
use ringway::ring::sys::pass;
use ringway::wire::hand_over::{Figures, Flow, MOST_BYTES, Message, read, write};
use socket2::Type;

use super::{Gateway, deadline};

/// A new process that says what the test likes, and hangs up where the test likes.
pub struct Imposter(OwnedFd);

impl Imposter {
    /// Asks for all listening sockets, and says that it serves.
    pub fn is_ready(gateway: &Gateway) -> (Self, Vec<OwnedFd>) {
        let path = format!("{}.upgrade", gateway.socket().display());
        let path = UnixPath::new(&path).expect("a path");
        let socket = unix::connect(path, Type::SEQPACKET).expect("the door is open");
        pass::set_patience(socket.as_fd(), deadline()).expect("a timeout");
        let new = Self(socket);
        new.say(&Message::Hello { program: "test".into(), workers: 2 });
        let (Message::Offer { sockets: count, .. }, _) = new.hears() else { panic!("no offer") };
        let mut sockets = Vec::new();
        while sockets.len() < count as usize {
            let (Message::Sockets(_), some) = new.hears() else { panic!("no sockets") };
            sockets.extend(some);
        }
        new.say(&Message::Taken((0..count).collect()));
        new.say(&Message::Ready);
        (new, sockets)
    }

    pub fn say(&self, message: &Message) {
        self.says_bytes(&write(message));
    }

    pub fn says_bytes(&self, bytes: &[u8]) {
        pass::send(self.0.as_fd(), bytes, &[]).expect("it is sent");
    }

    pub fn hears(&self) -> (Message, Vec<OwnedFd>) {
        let mut bytes = vec![0; MOST_BYTES];
        let (len, sockets) = pass::receive(self.0.as_fd(), &mut bytes).expect("a packet");
        (read(&bytes[..len]).expect("a message"), sockets)
    }

    pub fn is_offered(&self) -> (Vec<Flow>, Vec<OwnedFd>) {
        match self.hears() {
            (Message::Flows(flows), sockets) => (flows, sockets),
            (other, _) => panic!("no flows: {other:?}"),
        }
    }

    /// Adopts all flows, until nothing is missing but its last word. Returns them with the bytes
    /// and datagrams that they have carried in the end.
    pub fn adopts_all(&self) -> Vec<(Flow, OwnedFd)> {
        self.adopts_rest(Vec::new())
    }

    /// `offered`: those that it has adopted already.
    pub fn adopts_rest(&self, mut offered: Vec<(Flow, OwnedFd)>) -> Vec<(Flow, OwnedFd)> {
        let mut settled = 0;
        loop {
            match self.hears() {
                (Message::Flows(flows), sockets) => {
                    self.say(&Message::Adopted(vec![true; flows.len()]));
                    offered.extend(flows.into_iter().zip(sockets));
                }
                (Message::Figures(all), _) => {
                    settled += all.len();
                    for Figures { flow, datagrams, bytes, .. } in all {
                        let (flow, _): &mut (Flow, _) = &mut offered[flow as usize];
                        (flow.datagrams, flow.bytes) = (datagrams, bytes);
                    }
                }
                (Message::Yours, _) => break,
                (other, _) => panic!("{other:?}"),
            }
        }
        assert_eq!(settled, offered.len(), "each flow settles");
        offered
    }
}
