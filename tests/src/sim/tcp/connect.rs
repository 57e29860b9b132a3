//! Connection attempts to endpoints.

use std::net::SocketAddr;

use ringway::contract::{Event, Side, Token, Why};

use crate::sim::coverage::{Fault, State};
use crate::sim::kernel::{Attempted, Kernel, Pending, Turn};
use crate::sim::tcp::conn::EndpointMode;
use crate::sim::tcp::session::Attempt;

/// After which Linux gives up a SYN that nobody answers (tcp_syn_retries 6), microseconds.
const SYN_GIVEN_UP: u64 = 127_000_000;

impl Kernel {
    pub(crate) fn connect(
        &mut self,
        token: Token,
        (address, interface): (SocketAddr, u32),
        turn: &mut Turn,
    ) {
        self.attempts += 1;
        let (number, now) = (self.attempts, self.now);
        let session = self.live(token);
        assert!(session.endpoint.is_none(), "Connect with an endpoint side");
        assert!(session.connecting.is_none(), "Connect during a Connect");
        assert!(!session.abandoning, "Connect before the ConnectFailed of an Abandon");
        session.connecting = Some(Attempt { number, began: now, address, established: None });
        session.answered = None;
        let client = session.client;
        let port = self.conns[client.0].local.port();
        self.connects.push(Attempted { token, address, interface, port });
        if self.rng.per_mille(self.faults.no_local) {
            let (why, fault) = self.rng.pick(&[
                (Why::NoPorts, Fault::NoPorts),
                (Why::NoFiles, Fault::NoFiles),
                (Why::NoMemory, Fault::NoMemory),
            ]);
            self.coverage.hit(State::Connecting, fault);
            if self.rng.per_mille(500) {
                self.connect_failed(token, number, why, turn);
            } else {
                self.soon(Pending::ConnectFailed(token, number, why));
            }
            return;
        }
        let mode = self.endpoints.get(&address).copied().unwrap_or(EndpointMode::Refuses);
        let rtt = self.rng.scale(1, 500);
        let failed = |why| Pending::ConnectFailed(token, number, why);
        match mode {
            EndpointMode::Accepts => self.at(self.now + rtt, Pending::Establish(token, number)),
            EndpointMode::AcceptsAfter(late) => {
                self.at(self.now + late, Pending::Establish(token, number));
            }
            EndpointMode::Refuses => {
                self.coverage.hit(State::Connecting, Fault::ConnectRefused);
                self.at(self.now + rtt, failed(Why::Refused));
            }
            EndpointMode::Silent => {
                self.coverage.hit(State::Connecting, Fault::ConnectSilent);
                self.at(self.now + SYN_GIVEN_UP, failed(Why::TimedOut));
            }
            EndpointMode::Unreachable => self.at(self.now + rtt, failed(Why::Unreachable(101))),
        }
    }

    fn attempt(&mut self, token: Token, number: u32) -> Option<&mut Attempt> {
        let session = self.sessions.get_mut(&token.slot).filter(|s| s.token == token)?;
        session.connecting.as_mut().filter(|a| a.number == number)
    }

    /// The handshake is over: the endpoint sees a connection, the proxy does not know yet.
    pub(crate) fn establish(&mut self, token: Token, number: u32) {
        let Some(address) = self.attempt(token, number).map(|a| a.address) else { return };
        let port = 1024 + (number % 60_000) as u16;
        let local = SocketAddr::new(address.ip(), port);
        let window = self.rng.scale(2048, 4 << 20);
        let id = self.new_conn(Side::Endpoint, address, local, window);
        let attempt = self.attempt(token, number).expect("just checked");
        attempt.established = Some(id);
        let client = self.sessions[&token.slot].client;
        self.conns[id.0].partner = Some(client);
        self.established.push(id);
        self.soon(Pending::Connected(token, number));
    }

    pub(crate) fn connected(&mut self, token: Token, number: u32, turn: &mut Turn) {
        let now = self.turn;
        let Some(id) = self.attempt(token, number).and_then(|a| a.established) else { return };
        let session = self.sessions.get_mut(&token.slot).expect("just checked");
        session.connecting = None;
        session.answered = Some(now);
        session.endpoint = Some(id);
        let client = session.client;
        self.conns[client.0].partner = Some(id);
        self.conns[id.0].owner = Some(token);
        self.event(token, Event::Connected, turn);
        self.arm(id);
    }

    pub(crate) fn connect_failed(&mut self, token: Token, number: u32, why: Why, turn: &mut Turn) {
        let now = self.turn;
        if self.attempt(token, number).is_none() {
            return;
        }
        let session = self.sessions.get_mut(&token.slot).expect("just checked");
        session.connecting = None;
        session.answered = Some(now);
        self.event(token, Event::ConnectFailed { why }, turn);
    }

    pub(crate) fn abandon(&mut self, token: Token) {
        let now = self.turn;
        let session = self.live(token);
        assert!(!session.abandoning, "Abandon twice");
        let established = match session.connecting.take() {
            Some(attempt) => attempt.established,
            // Its answer was given out in this very turn: the proxy could not know. A failure has
            // been said already; a success is taken back.
            None => {
                let this_turn = session.answered == Some(now);
                let Some(id) = session.endpoint.take() else {
                    assert!(this_turn, "Abandon without a Connect");
                    return;
                };
                session.introducing = false;
                session.abandoning = true;
                if this_turn {
                    self.coverage.hit(State::Connecting, Fault::ConnectLate);
                }
                let conn = &self.conns[id.0];
                if conn.inbound.fin_seen {
                    self.coverage.hit(State::Relaying, Fault::HeaderRefused);
                }
                let told = conn.proxied.told();
                assert_eq!(conn.outbound.written, told, "an endpoint that has a client's bytes");
                self.close_conn(id, false);
                return self.soon(Pending::Abandoned(token));
            }
        };
        session.abandoning = true;
        if let Some(id) = established {
            self.coverage.hit(State::Connecting, Fault::ConnectLate);
            self.close_conn(id, true);
        }
        self.soon(Pending::Abandoned(token));
    }

    pub(crate) fn abandoned(&mut self, token: Token, turn: &mut Turn) {
        let session = self.sessions.get_mut(&token.slot).filter(|s| s.token == token);
        let Some(session) = session.filter(|s| s.abandoning) else { return };
        session.abandoning = false;
        self.event(token, Event::ConnectFailed { why: Why::Abandoned }, turn);
    }
}
