//! What the kernel is asked for and what happens by itself, each given to the room that does it.

use config_sync::table::routing::Transport;
use ringway::contract::{Event, Kind, Op, Origin, Side, Stop, Token, Why};

use crate::sim::coverage::Fault;
use crate::sim::endpoints::place;
use crate::sim::kernel::{Kernel, Pending, Turn, short};
use crate::sim::tcp::session::Session;
use crate::sim::udp::upstream::Upstream;

impl Kernel {
    /// Carries out what the proxy asked for, in order; direct events are appended to `turn`.
    pub fn carry_out(&mut self, ops: &mut Vec<(Token, Op)>, turn: &mut Turn) {
        for (token, op) in ops.drain(..) {
            let token = self.token(token);
            if self.trace {
                eprintln!("{:>10}   {} <- {op:?}", self.now, short(token));
            }
            self.carry_out_one(token, op, turn);
        }
        self.output.clear();
    }

    fn carry_out_one(&mut self, token: Token, op: Op, turn: &mut Turn) {
        match op {
            Op::Accept => self.accept(token),
            Op::AcceptOne => self.accept_one(token),
            Op::Configure(_) => {
                self.listening_socket(token, Transport::Tcp);
            }
            Op::Unlisten => self.unlisten(token),
            Op::Release => self.release(token),
            Op::Refuse { incoming } => self.refuse(token, incoming),
            Op::Adopt { incoming } => self.adopt(token, incoming),
            Op::Attach { incoming } => self.attach(token, incoming),
            Op::Mark { from, at_least } => self.mark(token, from, at_least),
            Op::Unpace { .. } => {}
            Op::Peek { at_least } => self.peek(token, at_least, turn),
            Op::Connect { address, source, interface, .. } => {
                let any = source == Origin::Any;
                assert!(any || address.ip().is_some(), "a Unix socket, from {source:?}");
                self.connect(token, (place(address), interface), turn);
            }
            Op::Abandon => self.abandon(token),
            Op::Move { from, mode, budget, to_eof } => {
                self.relay(token, from, mode, budget, to_eof, turn);
            }
            Op::Stream { from } => self.stream(token, from, turn),
            Op::Unstream { from } => self.unstream(token, from),
            Op::Take { from, at_most, .. } => self.take(token, from, at_most, turn),
            Op::Give { to, start, len } => self.give(token, to, (start, len), turn),
            Op::Unacked { side } => self.unacked(token, side, turn),
            Op::Inspect { side } => self.inspect(token, side, turn),
            Op::Shutdown { side } => self.shutdown(token, side),
            Op::Close { reset } => self.close(token, reset),
            Op::Receive => self.receive(token),
            Op::Halt => self.halt(token, turn),
            Op::AttachUpstream { incoming } => self.attach_upstream(token, incoming),
            Op::Open { address, interface, .. } => {
                self.open(token, Some((address, interface)), turn);
            }
            Op::OpenShared { ipv4 } => {
                assert!(ipv4, "there are no IPv6 endpoints here");
                self.open(token, None, turn);
            }
            Op::SendUp { buffer, part } => self.send_up(token, buffer, part, turn),
            Op::Answer { .. } => panic!("no listener here has a dns_guard"),
            Op::SendDown { buffer, from, peer, local } => {
                let from = self.here(from);
                self.send_down(token, buffer, from, peer, local);
            }
            Op::SendVia { buffer, part, via, peer, local } => {
                let via = self.here(via);
                self.send_via(token, (buffer, part), via, (peer, local), turn);
            }
            Op::Recycle { buffer } => self.recycle(token, buffer),
            Op::Promote { client, listener } => self.promote(token, (client, listener), turn),
            Op::Tally => self.tally(token, turn),
            Op::Demote => self.demote(token, turn),
            Op::CloseUpstream => self.close_upstream(token),
        }
    }

    /// Gives out what has completed by now, at most `max` events.
    pub fn reap(&mut self, max: usize, turn: &mut Turn) {
        self.receive_at_once(turn);
        while turn.events.len() < max {
            let Some(pending) = self.next_due() else { break };
            self.complete(pending, turn);
        }
    }

    fn complete(&mut self, pending: Pending, turn: &mut Turn) {
        match pending {
            Pending::Handshake(socket, conn) => self.handshake_done(socket, conn),
            Pending::Accept(socket) => self.accept_now(socket, turn),
            Pending::Unlisten(socket) => self.unlisten_on(socket, turn),
            Pending::Released(socket) => self.released(socket, turn),
            Pending::Ready(conn) => self.ready(conn, turn),
            Pending::Space(conn) => self.space(conn),
            Pending::Arrive(conn) => self.arrive(conn, turn),
            Pending::StreamOver(token, from) => self.stream_cancelled(token, from, turn),
            Pending::Break(conn, why) => self.break_conn(conn, why),
            Pending::Establish(token, attempt) => self.establish(token, attempt),
            Pending::Connected(token, attempt) => self.connected(token, attempt, turn),
            Pending::ConnectFailed(token, attempt, why) => {
                self.connect_failed(token, attempt, why, turn);
            }
            Pending::Abandoned(token) => self.abandoned(token, turn),
            Pending::Close(token, reset) => self.closing_done(token, reset, turn),
            Pending::Receive(token) => self.receive_all(token, turn),
            Pending::Halted(token) => self.has_halted(token, turn),
            Pending::SendFailed(token, why, count) => self.send_failed(token, why, count, turn),
            Pending::Closed(token) => self.upstream_closed(token, turn),
            Pending::Dead(token) => self.dead_event(token, turn),
        }
    }

    /// Ends a turn: what had to be answered within it must have been. `waiting`: buffers of clients
    /// whose flows begin in later turns.
    pub fn end_turn(&mut self, waiting: usize) {
        assert!(self.incoming.is_empty(), "an accepted connection was neither adopted nor refused");
        let buffers = self.ring().buffers.len();
        assert_eq!(buffers, waiting, "receive buffers that were not given back");
        self.check_half_closes();
        self.open_failed.clear();
        self.turn += 1;
    }

    fn dead_event(&mut self, token: Token, turn: &mut Turn) {
        let state = match token.kind {
            Kind::Socket => None,
            Kind::Session => self.sessions.get(&token.slot).map(Session::state),
            Kind::Upstream => self.upstreams.get(&token.slot).map(Upstream::state),
        };
        if let Some(state) = state {
            self.coverage.hit(state, Fault::DeadEvent);
        }
        let event = match token.kind {
            Kind::Upstream => match self.rng.below(3) {
                0 => Event::Stopped { why: None },
                1 => Event::SendFailed { why: Why::Refused, count: 1 },
                _ => Event::Closed,
            },
            Kind::Socket | Kind::Session => self.dead_session_event(),
        };
        self.event(token, event, turn);
    }

    pub(crate) fn dead_session_event(&mut self) -> Event {
        let side = self.rng.pick(&[Side::Client, Side::Endpoint]);
        match self.rng.below(5) {
            0 => Event::Ready { side, readable: true, writable: true, ending: true, failed: true },
            1 => Event::Connected,
            2 => Event::ConnectFailed { why: Why::Refused },
            3 => {
                let stop = self.rng.pick(&[Stop::Eof, Stop::Drained, Stop::Blocked]);
                Event::Moved { from: side, read: 0, sent: 0, held: 0, stop }
            }
            _ => Event::Closed,
        }
    }
}
