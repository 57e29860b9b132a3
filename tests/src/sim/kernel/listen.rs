//! Listening sockets: from the handover to the last event.

use std::collections::VecDeque;
use std::net::SocketAddr;

use config_sync::table::routing::{SocketId, Transport};
use ringway::contract::{Event, Token, Why};

use crate::sim::coverage::Fault;
use crate::sim::kernel::process::of_all;
use crate::sim::kernel::{Bound, Kernel, Listening, Pending, Turn};

impl Kernel {
    /// Takes over a socket that is bound and listens, as the ring does: a UDP socket that is open
    /// is kept instead, and one that is being closed is followed by the new one.
    pub fn listen(&mut self, id: SocketId, transport: Transport, address: SocketAddr) {
        let own = self.descriptor(id);
        if let Some(socket) = self.listening.get_mut(&own) {
            assert_eq!(transport, Transport::Udp, "{id:?} is bound twice");
            socket.followed = socket.ending;
            return;
        }
        self.listening.insert(own, Listening::default());
        // Another process may have the socket too, and has given it to this one.
        self.bound.entry(id).or_insert_with(|| Bound {
            transport,
            address,
            handshakes: 0,
            backlog: VecDeque::new(),
            received: VecDeque::new(),
        });
    }

    pub(crate) fn descriptor(&self, id: SocketId) -> SocketId {
        SocketId(self.here(id.0))
    }

    pub fn is_listening(&self, id: SocketId) -> bool {
        self.listening.contains_key(&self.descriptor(id))
    }

    /// The descriptors of a socket, with the numbers of their processes.
    pub(crate) fn descriptors(&self, id: SocketId) -> impl Iterator<Item = (SocketId, &Listening)> {
        let all = self.listening.iter().filter(move |(own, _)| of_all(**own) == id);
        all.map(|(own, descriptor)| (*own, descriptor))
    }

    /// Nobody has a socket any more: it is closed, with all that waits in it.
    pub(crate) fn unbind_if_last(&mut self, id: SocketId) {
        if self.descriptors(id).next().is_none()
            && let Some(bound) = self.bound.remove(&id)
        {
            bound.backlog.into_iter().for_each(|conn| self.close_conn(conn, true));
            // Whoever listens there next knows nothing of handshakes that had begun.
            let mut begun = Vec::new();
            self.queue.retain(|_, pending| match pending {
                Pending::Handshake(socket, conn) if *socket == id => {
                    begun.push(*conn);
                    false
                }
                _ => true,
            });
            begun.into_iter().for_each(|conn| self.close_conn(conn, true));
        }
    }

    pub(super) fn accept(&mut self, token: Token) {
        let now = self.now;
        let socket = self.listening_socket(token, Transport::Tcp);
        assert!(!socket.armed, "Accept while accepting");
        assert!(!socket.ending && !socket.released, "Accept after the end");
        assert!(now >= socket.pause_until, "Accept without a pause after files or memory ran out");
        (socket.armed, socket.one) = (true, false);
        self.soon(Pending::Accept(SocketId(token.slot)));
    }

    pub(super) fn accept_one(&mut self, token: Token) {
        let now = self.now;
        let socket = self.listening_socket(token, Transport::Tcp);
        assert!(!socket.ending && !socket.released, "AcceptOne after the end");
        if socket.armed {
            socket.stopping |= !std::mem::replace(&mut socket.one, true);
        } else {
            // A table that changes how the socket accepts may come within a pause.
            let pauses = socket.one && now < socket.pause_until;
            assert!(!pauses, "AcceptOne without a pause after files or memory ran out");
            (socket.armed, socket.one) = (true, true);
        }
        self.soon(Pending::Accept(SocketId(token.slot)));
    }

    /// A connection may be accepted now.
    pub(super) fn accept_now(&mut self, id: SocketId, turn: &mut Turn) {
        let Some(socket) = self.listening.get_mut(&id).filter(|s| s.armed && !s.ending) else {
            return;
        };
        if std::mem::take(&mut socket.stopping) {
            socket.armed = false;
            return self.event(Token::socket(id), Event::Stopped { why: None }, turn);
        }
        if self.bound[&of_all(id)].backlog.is_empty() {
            return;
        }
        let socket = self.listening.get_mut(&id).expect("found above");
        let token = Token::socket(id);
        let exhausted = self.rng.per_mille(self.faults.exhausted);
        if exhausted || self.rng.per_mille(self.faults.stop) {
            socket.armed = false;
            let why = exhausted.then(|| self.rng.pick(&[Why::NoFiles, Why::NoMemory]));
            // The proxy pauses 100 ms; a kernel that is asked at once again would fail at once.
            if exhausted {
                socket.stopped = self.now;
                socket.pause_until = self.now + 50_000;
            }
            self.hit_sessions(Fault::AcceptStopped);
            self.event(token, Event::Stopped { why }, turn);
            return;
        }
        let one = socket.one;
        socket.armed = !one;
        self.hand_over(id, turn);
        if one {
            self.event(token, Event::Stopped { why: None }, turn);
        } else {
            self.soon(Pending::Accept(id));
        }
    }

    fn hand_over(&mut self, id: SocketId, turn: &mut Turn) {
        let bound = self.bound.get_mut(&of_all(id));
        let Some(conn) = bound.and_then(|bound| bound.backlog.pop_front()) else { return };
        let free = (0..).find(|n| !self.incoming.contains_key(n));
        let incoming = free.expect("fewer than 2^32 connections wait");
        self.incoming.insert(incoming, (id, conn));
        self.accepted += 1;
        self.ring().accepted += 1;
        let (peer, local) = (self.conns[conn.0].peer, self.conns[conn.0].local);
        self.event(Token::socket(id), Event::Accepted { incoming, peer, local }, turn);
    }

    pub(super) fn refuse(&mut self, token: Token, incoming: u32) {
        let (socket, conn) = self.incoming.remove(&incoming).expect("Refuse of nothing");
        assert_eq!(Token::socket(socket), token, "Refuse by another socket's token");
        self.close_conn(conn, true);
    }

    pub(super) fn unlisten(&mut self, token: Token) {
        let id = SocketId(token.slot);
        let socket = self.listening.get_mut(&id).expect("Unlisten of no listening socket");
        assert!(!socket.ending || socket.followed, "Unlisten twice");
        socket.armed = false;
        socket.followed = false;
        if std::mem::replace(&mut socket.ending, true) {
            return;
        }
        self.soon(Pending::Unlisten(id));
    }

    pub(super) fn release(&mut self, token: Token) {
        let id = SocketId(token.slot);
        let socket = self.listening.get_mut(&id).expect("Release of no listening socket");
        assert!(!socket.ending || socket.followed, "Release after the end");
        assert!(!std::mem::replace(&mut socket.released, true), "Release twice");
        // The end of the one before says that the one that follows has stopped.
        if !socket.followed {
            self.soon(Pending::Released(id));
        }
    }

    /// Until now the socket has accepted or received. What is left is the other process's.
    pub(super) fn released(&mut self, id: SocketId, turn: &mut Turn) {
        // It may have stopped by itself, and have been closed, in the meantime.
        let Some(socket) = self.listening.get_mut(&id).filter(|socket| !socket.ending) else {
            return;
        };
        // The other process accepts what waits on a socket that rests.
        let rests = !std::mem::take(&mut socket.armed) && socket.one;
        let bound = &self.bound[&of_all(id)];
        let waiting = if rests { 0 } else { bound.backlog.len() };
        let event = match bound.transport {
            Transport::Udp => Event::Stopped { why: None },
            Transport::Tcp => {
                (0..waiting).for_each(|_| self.hand_over(id, turn));
                self.listening.remove(&id);
                self.unbind_if_last(of_all(id));
                Event::Unlistened
            }
        };
        self.event(Token::socket(id), event, turn);
    }

    pub(super) fn unlisten_on(&mut self, id: SocketId, turn: &mut Turn) {
        let token = Token::socket(id);
        let is_shared = self.is_held_elsewhere(of_all(id));
        let bound = self.bound.get_mut(&of_all(id)).expect("checked at Unlisten");
        if !bound.backlog.is_empty() {
            self.hand_over(id, turn);
        } else if bound.handshakes == 0 {
            // Receives that had completed before come out before the last event.
            if !is_shared && !bound.received.is_empty() && self.rng.per_mille(300) {
                let (datagram, _) = bound.received.pop_front().expect("not empty");
                self.hand_up(token, datagram, None, turn);
            }
            let Listening { followed, released, .. } =
                self.listening.remove(&id).expect("it is there");
            if followed {
                let next = Listening { released, ..Listening::default() };
                self.listening.insert(id, next);
                if !is_shared && let Some(bound) = self.bound.get_mut(&of_all(id)) {
                    bound.received.clear();
                }
                self.event(token, Event::Stopped { why: None }, turn);
            } else {
                self.unbind_if_last(of_all(id));
                self.event(token, Event::Unlistened, turn);
            }
            return;
        }
        self.soon(Pending::Unlisten(id));
    }
}
