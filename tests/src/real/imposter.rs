//! A new process of an upgrade as a test writes it.

use std::os::fd::{AsFd as _, OwnedFd};

use config_sync::table::address::UnixPath;
use ringway::ring::listen::unix;
use ringway::ring::sys::pass;
use ringway::wire::hand_over::{Figures, Flow, MOST_BYTES, Message, Session, read, write};
use socket2::Type;

use super::{Gateway, deadline};

/// A new process that says what the test likes, and hangs up where the test likes.
pub struct Imposter(OwnedFd);

impl Imposter {
    /// Comes to the door of a gateway, and says nothing.
    pub fn connect(gateway: &Gateway) -> Self {
        Self::at(&format!("{}.upgrade", gateway.socket().display()))
    }

    pub fn at(door: &str) -> Self {
        let path = UnixPath::new(door).expect("a path");
        let socket = unix::connect(path, Type::SEQPACKET).expect("the door is open");
        pass::set_patience(socket.as_fd(), deadline()).expect("a timeout");
        Self(socket)
    }

    /// Says hello, and hears the offer and the listening sockets.
    pub fn is_offered(&self) -> Vec<OwnedFd> {
        self.say(&Message::Hello { program: "test".into(), workers: 2 });
        let (Message::Offer { sockets: count, .. }, _) = self.hears() else { panic!("no offer") };
        let mut sockets = Vec::new();
        while sockets.len() < count as usize {
            let (Message::Sockets(names), some) = self.hears() else { panic!("no sockets") };
            assert_eq!(names.len(), some.len());
            sockets.extend(some);
        }
        sockets
    }

    /// Asks for all listening sockets, and says that it serves.
    pub fn is_ready(gateway: &Gateway) -> (Self, Vec<OwnedFd>) {
        let new = Self::connect(gateway);
        let sockets = new.is_offered();
        let count = u32::try_from(sockets.len()).expect("few");
        new.say(&Message::Taken((0..count).collect()));
        new.say(&Message::Ready);
        (new, sockets)
    }

    /// Takes over from a gateway that has no flow that could go along.
    pub fn takes_over(gateway: &Gateway) -> (Self, Vec<OwnedFd>) {
        let (new, sockets) = Self::is_ready(gateway);
        assert_eq!(new.hears().0, Message::Yours);
        new.say(&Message::Mine);
        (new, sockets)
    }

    /// The number of the process at the other end.
    pub fn process(&self) -> u32 {
        pass::peer(self.0.as_fd()).expect("a peer").1
    }

    pub fn say(&self, message: &Message) {
        self.says_bytes(&write(message));
    }

    pub fn says_bytes(&self, bytes: &[u8]) {
        pass::send(self.0.as_fd(), bytes, &[]).expect("it is sent");
    }

    /// Says something to a gateway that may hear nothing any more. False: it does not.
    pub fn reaches(&self, message: &Message) -> bool {
        pass::send(self.0.as_fd(), &write(message), &[]).is_ok()
    }

    pub fn hears(&self) -> (Message, Vec<OwnedFd>) {
        let mut bytes = vec![0; MOST_BYTES];
        let (len, sockets) = pass::receive(self.0.as_fd(), &mut bytes).expect("a packet");
        (read(&bytes[..len]).expect("a message"), sockets)
    }

    /// The next word is a refusal. Returns its reason.
    pub fn is_refused(&self) -> String {
        match self.hears().0 {
            Message::Refused { why } => why,
            other => panic!("no refusal: {other:?}"),
        }
    }

    /// The next word is an announcement of flows.
    pub fn is_offered_flows(&self) -> (Vec<Flow>, Vec<OwnedFd>) {
        match self.hears() {
            (Message::Flows(flows), sockets) => (flows, sockets),
            (other, _) => panic!("no flows: {other:?}"),
        }
    }

    /// Waits until it is offered sessions.
    pub fn is_offered_sessions(&self) -> (Vec<Session>, Vec<OwnedFd>) {
        loop {
            if let (Message::Sessions(sessions), sockets) = self.hears() {
                return (sessions, sockets);
            }
        }
    }

    /// Says of so many sessions or flows that it adopts all of them.
    pub fn adopts(&self, count: usize) {
        self.say(&Message::Adopted(vec![true; count]));
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
                    self.adopts(flows.len());
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
