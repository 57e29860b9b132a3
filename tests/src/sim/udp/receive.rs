//! Receiving: multishots, their ends, and the buffers that the proxy is given.

use config_sync::table::routing::{SocketId, Transport};
use ringway::contract::{BufferId, Event, Kind, Token, Why};

use crate::sim::coverage::{Fault, State};
use crate::sim::kernel::process::{of_all, parts};
use crate::sim::kernel::{Kernel, Pending, Turn};
use crate::sim::udp::datagram::{Datagram, HeldBuffer, Pair};
use crate::sim::udp::upstream::Upstream;

impl Kernel {
    pub(crate) fn receive(&mut self, token: Token) {
        let now = self.now;
        match token.kind {
            Kind::Socket => {
                let socket = self.listening_socket(token, Transport::Udp);
                assert!(!socket.armed, "Receive while receiving");
                if socket.followed {
                    // Its successor says that it has stopped, and is told then.
                    return;
                }
                assert!(!socket.ending && !socket.released, "Receive after the end");
                assert!(now >= socket.pause_until, "Receive without a pause after an error");
                (socket.armed, socket.halted) = (true, false);
                let id = of_all(SocketId(token.slot));
                let armed = self.descriptors(id).filter(|(_, of)| of.armed).count();
                assert_eq!(armed, 1, "several processes receive on one socket: {id:?}");
            }
            // Asked for together with an Open that failed.
            Kind::Upstream if self.open_failed.contains(&token) => return,
            Kind::Upstream => {
                self.fetch(token);
                let upstream = self.upstream(token);
                assert!(!upstream.armed, "Receive while receiving");
                assert!(now >= upstream.pause_until, "Receive without a pause after an error");
                (upstream.armed, upstream.halted) = (true, false);
                upstream.told = true;
            }
            Kind::Session => panic!("Receive on a session"),
        }
        self.soon(Pending::Receive(token));
    }

    /// What shared sockets hold when they are told to receive comes with the next turn, before all
    /// else, as it does on Linux: a receive that finds something completes at its submission.
    pub(crate) fn receive_at_once(&mut self, turn: &mut Turn) {
        let process = self.process;
        let told = |u: &mut &mut Upstream| {
            let is_here = parts(u.token.slot).0 == process;
            is_here && u.address.is_none() && std::mem::take(&mut u.told)
        };
        let told = self.upstreams.values_mut().filter_map(|mut u| told(&mut u).then_some(u.token));
        let tokens: Vec<_> = told.collect();
        for token in tokens {
            self.receive_all(token, turn);
        }
    }

    /// All that an armed socket has: a multishot goes on until its queue is empty or it ends.
    pub(crate) fn receive_all(&mut self, token: Token, turn: &mut Turn) {
        while self.receive_one(token, turn) {}
    }

    fn receive_one(&mut self, token: Token, turn: &mut Turn) -> bool {
        let state = self.upstreams.get(&token.slot).filter(|u| u.token == token);
        let state = state.filter(|_| token.kind == Kind::Upstream).map(Upstream::state);
        let is_full = self.own().buffers.len() >= usize::from(self.limits.buffers);
        let bound = self.bound.get_mut(&of_all(SocketId(token.slot)));
        let (armed, received, refused) = match token.kind {
            Kind::Socket => match (self.listening.get_mut(&SocketId(token.slot)), bound) {
                (Some(s), Some(bound)) if !s.ending => (&mut s.armed, &mut bound.received, None),
                _ => return false,
            },
            _ => match self.upstreams.get_mut(&token.slot).filter(|u| u.token == token) {
                Some(u) => (&mut u.armed, &mut u.received, Some(&mut u.refused)),
                None => return false,
            },
        };
        if !*armed {
            return false;
        }
        if refused.is_some_and(std::mem::take) {
            *armed = false;
            self.stopped(token, state, Some(Why::Refused), Fault::ReceiveStopped, turn);
            self.is_refused(token);
            return false;
        }
        if received.is_empty() {
            return false;
        }
        if self.rng.per_mille(self.faults.exhausted) {
            *armed = false;
            self.pause(token);
            let why = self.rng.pick(&[Why::NoMemory, Why::Blocked, Why::TooBig, Why::Other(5)]);
            self.stopped(token, state, Some(why), Fault::ReceiveFailed, turn);
            return false;
        }
        if is_full {
            *armed = false;
            self.stopped(token, state, None, Fault::NoBuffer, turn);
            return false;
        }
        let (mut datagram, came) = received.pop_front().expect("not empty");
        // A zero-length datagram ends the multishot.
        let ended = datagram.bytes == 0 || self.rng.per_mille(self.faults.stop);
        *armed = !ended;
        if self.rng.per_mille(self.faults.truncate) {
            datagram.truncated = true;
            self.hit_upstream(state, Fault::Truncated);
        }
        self.hand_up(token, datagram, came, turn);
        if ended {
            self.stopped(token, state, None, Fault::ReceiveStopped, turn);
        }
        !ended
    }

    /// The machine lacks something: who asks again at once is told the same.
    fn pause(&mut self, token: Token) {
        let times = match token.kind {
            Kind::Socket => {
                let socket = self.listening.get_mut(&SocketId(token.slot)).expect("it received");
                (&mut socket.stopped, &mut socket.pause_until)
            }
            _ => {
                let upstream = self.upstreams.get_mut(&token.slot).expect("it received");
                (&mut upstream.stopped, &mut upstream.pause_until)
            }
        };
        (*times.0, *times.1) = (self.now, self.now + 2_000);
    }

    /// The proxy is told that the port is closed to which this socket is connected.
    pub(super) fn is_refused(&mut self, token: Token) {
        let upstream = self.upstreams.get(&token.slot).filter(|u| u.token == token);
        if let Some(Upstream { address: Some(address), serves, .. }) = upstream {
            let ring = &mut self.rings[self.process as usize];
            ring.closed_ports.insert(*address, self.now);
            if serves.is_some() {
                self.refused.insert(token, self.turn);
            }
        }
    }

    fn stopped(
        &mut self,
        token: Token,
        state: Option<State>,
        why: Option<Why>,
        fault: Fault,
        turn: &mut Turn,
    ) {
        self.hit_upstream(state, fault);
        self.event(token, Event::Stopped { why }, turn);
    }

    /// A fault of one upstream socket, or, on a listening socket, of all that there are.
    fn hit_upstream(&mut self, state: Option<State>, fault: Fault) {
        match state {
            Some(state) => self.coverage.hit(state, fault),
            None => {
                for upstream in self.upstreams.values() {
                    self.coverage.hit(upstream.state(), fault);
                }
            }
        }
    }

    /// Gives a datagram to the proxy in a buffer.
    pub(crate) fn hand_up(
        &mut self,
        token: Token,
        datagram: Datagram,
        came: Option<Pair>,
        turn: &mut Turn,
    ) {
        let buffers = &mut self.rings[self.process as usize].buffers;
        let free = (0..self.limits.buffers).find(|n| !buffers.contains_key(n));
        let Some(buffer) = free else { return };
        buffers.insert(buffer, HeldBuffer { token, datagram, answered: 0, came });
        let listening = token.kind == Kind::Socket;
        let upstream = self.upstreams.get(&token.slot).filter(|u| u.token == token);
        if let Some(pair) = came
            && upstream.is_some_and(|u| !u.pairs.contains_key(&pair))
        {
            self.ring().strangers += u64::from(datagram.count);
        }
        let client = listening.then_some(datagram.exchange.client);
        let wildcard = self
            .bound
            .get(&datagram.exchange.socket)
            .is_some_and(|s| s.address.ip().is_unspecified());
        let event = Event::Datagrams {
            buffer: BufferId(buffer),
            peer: came.map_or(client, |(endpoint, _)| Some(endpoint)),
            local: match came {
                Some((_, local)) => Some(local),
                None => (listening && wildcard).then_some(datagram.exchange.local),
            },
            bytes: datagram.bytes,
            size: match datagram.train {
                Some(train) if datagram.count > 1 => self.trains[train].size,
                _ => datagram.bytes.div_ceil(datagram.count),
            },
            count: datagram.count,
            truncated: datagram.truncated,
        };
        self.event(token, event, turn);
    }

    /// What the proxy is shown with an event: the payload of a buffer, or the turn's bytes.
    pub fn payload<'a>(&self, event: Event, turn: &'a Turn, payload: &'a mut Vec<u8>) -> &'a [u8] {
        let Event::Datagrams { buffer: BufferId(buffer), .. } = event else { return &turn.bytes };
        // Nobody looks into others than a proxy's.
        let train = self.own().buffers.get(&buffer).and_then(|held| held.datagram.train);
        *payload = train.map_or_else(Vec::new, |train| self.trains[train].payload());
        payload
    }

    pub(super) fn take_buffer(&mut self, buffer: BufferId) -> HeldBuffer {
        self.ring().buffers.remove(&buffer.0).expect("a buffer is given back twice")
    }

    pub(crate) fn recycle(&mut self, token: Token, buffer: BufferId) {
        let held = self.take_buffer(buffer);
        assert_eq!(held.token, token, "Recycle by another token than it was received on");
    }
}
