//! Streams of the simulated kernel: a multishot receive that sends its bytes on at once. It eats
//! until its cancellation is through, however full the sink is.

use ringway::contract::{Event, Side, Stop, Token};

use crate::sim::bytes::Bytes;
use crate::sim::coverage::Fault;
use crate::sim::kernel::{Kernel, Pending, Turn};
use crate::sim::tcp::conn::ConnId;
use crate::sim::tcp::session::Stream;
use crate::sim::tcp::socket::Got;

/// Bytes of a buffer.
const BUFFER: u64 = 8_256;

impl Kernel {
    pub(crate) fn stream(&mut self, token: Token, from: Side, turn: &mut Turn) {
        let way = from as usize;
        self.check_may_move(token);
        let session = self.live(token);
        let source = session.conn(from).expect("Stream from a side that is not there");
        assert!(session.conn(from.other()).is_some(), "Stream without both sides");
        assert!(!session.shut[from.other() as usize], "Stream towards a side that was shut down");
        assert!(session.held[way].is_empty(), "Stream with bytes held");
        assert_eq!(session.streams[way], Stream::Off, "Stream of a direction that streams");
        let unwatched = session.blocked[from.other() as usize];
        assert!(!unwatched, "Stream from a side whose space is waited for");
        if self.rng.per_mille(self.faults.no_stream) {
            self.hit_conn(source, Fault::NoStream);
            let stop = Stop::Budget;
            return self.event(token, Event::Moved { from, read: 0, sent: 0, held: 0, stop }, turn);
        }
        self.live(token).streams[way] = Stream::On;
        self.arrive_if_any(source);
    }

    pub(crate) fn unstream(&mut self, token: Token, from: Side) {
        self.live(token);
        self.end_stream(token, from);
    }

    pub(crate) fn end_stream(&mut self, token: Token, from: Side) {
        let stream = &mut self.live(token).streams[from as usize];
        if *stream == Stream::On {
            *stream = Stream::Ending;
            self.soon(Pending::StreamOver(token, from));
        }
    }

    /// The session and direction that a connection's bytes are streamed in.
    pub(crate) fn stream_of(&self, id: ConnId) -> Option<(Token, Side)> {
        let conn = &self.conns[id.0];
        let session = conn.owner.and_then(|token| self.sessions.get(&token.slot))?;
        let streams = Some(session.token) == conn.owner
            && session.conn(conn.side) == Some(id)
            && session.streams[conn.side as usize] != Stream::Off;
        streams.then_some((session.token, conn.side))
    }

    pub(crate) fn arrive_soon(&mut self, id: ConnId) {
        if !std::mem::replace(&mut self.conns[id.0].arriving, true) {
            self.soon(Pending::Arrive(id));
        }
    }

    fn arrive_if_any(&mut self, id: ConnId) {
        let conn = &self.conns[id.0];
        if !conn.inbound.queue.is_empty() || conn.inbound.fin || conn.error.is_some() {
            self.arrive_soon(id);
        }
    }

    /// A completion of the receive.
    pub(crate) fn arrive(&mut self, id: ConnId, turn: &mut Turn) {
        self.conns[id.0].arriving = false;
        let Some((token, from)) = self.stream_of(id) else { return };
        let no_buffer = self.rng.per_mille(self.faults.no_buffer);
        if no_buffer || self.rng.per_mille(self.faults.stop) {
            if no_buffer {
                self.hit_conn(id, Fault::NoBuffer);
            }
            return self.stream_over(token, from, Stop::Budget, turn);
        }
        match self.read(id, BUFFER) {
            Got::Nothing => {}
            Got::End => {
                let held = !self.live(token).held[from as usize].is_empty();
                let stop = if held { Stop::Budget } else { Stop::Eof };
                self.stream_over(token, from, stop, turn);
            }
            Got::Failed(why) => {
                let turn_now = self.turn;
                self.conns[id.0].error_told.get_or_insert(turn_now);
                self.stream_over(token, from, Stop::Failed { side: from, why }, turn);
            }
            Got::Data(bytes) => {
                self.pass_on(token, from, bytes, turn);
                self.arrive_if_any(id);
            }
        }
    }

    fn pass_on(&mut self, token: Token, from: Side, bytes: Bytes, turn: &mut Turn) {
        let way = from as usize;
        let session = self.live(token);
        let sink = session.conn(from.other()).expect("both sides are there");
        let source = session.conn(from).expect("both sides are there");
        let stream = session.streams[way];
        if stream == Stream::Failed {
            return;
        }
        let read = bytes.len();
        let mut held = std::mem::take(&mut session.held[way]);
        let late = !held.is_empty();
        held.append(bytes);
        let mut sent = 0;
        let mut stop = Stop::Drained;
        if stream == Stream::Ending {
            self.hit_conn(source, Fault::LateBytes);
        }
        if !late {
            match self.write(sink, &mut held) {
                Ok(n) => sent = n,
                Err(why) => stop = Stop::Failed { side: from.other(), why },
            }
        }
        let now = self.turn;
        let streamed = &mut self.conns[sink.0].streamed;
        *streamed = if streamed.0 == now { (now, streamed.1 + sent) } else { (now, sent) };
        let left = held.len();
        self.live(token).held[way] = held;
        if stop != Stop::Drained {
            self.conns[sink.0].error_told.get_or_insert(now);
            self.end_stream(token, from);
            self.live(token).streams[way] = Stream::Failed;
        } else if left > 0 {
            // The sink must be watched.
            self.end_stream(token, from);
            self.end_stream(token, from.other());
        }
        let (read, sent, held) = (read as u32, sent as u32, left as u32);
        self.event(token, Event::Moved { from, read, sent, held, stop }, turn);
    }

    pub(crate) fn stream_cancelled(&mut self, token: Token, from: Side, turn: &mut Turn) {
        let session = self.sessions.get(&token.slot).filter(|s| s.token == token && !s.closing);
        if session.is_some_and(|session| session.streams[from as usize].is_ending()) {
            self.stream_over(token, from, Stop::Budget, turn);
        }
    }

    /// The last completion: the source is watched again.
    fn stream_over(&mut self, token: Token, from: Side, stop: Stop, turn: &mut Turn) {
        let session = self.live(token);
        let told = session.streams[from as usize] == Stream::Failed;
        session.streams[from as usize] = Stream::Off;
        let held = session.held[from as usize].len() as u32;
        let source = session.conn(from).expect("both sides are there");
        if !told {
            self.event(token, Event::Moved { from, read: 0, sent: 0, held, stop }, turn);
        }
        self.arm(source);
    }
}
