//! `Move`: from one side to the other until something stops it.

use ringway::contract::{Event, Mode, Side, Stop, Token};

use crate::sim::coverage::Fault;
use crate::sim::kernel::{Kernel, Turn};
use crate::sim::tcp::socket::{CHUNK, Got};

impl Kernel {
    pub(crate) fn relay(
        &mut self,
        token: Token,
        from: Side,
        mode: Mode,
        budget: u32,
        to_eof: bool,
        turn: &mut Turn,
    ) {
        self.check_may_move(token);
        let session = self.live(token);
        let way = from as usize;
        let (Some(source), Some(sink)) = (session.conn(from), session.conn(from.other())) else {
            panic!("Move without both sides");
        };
        assert!(!session.shut[from.other() as usize], "Move towards a side that was shut down");
        assert!(session.streams[way].is_over(), "Move of a direction that streams");
        let mut held = std::mem::take(&mut session.held[way]);
        if from == Side::Client && std::mem::take(&mut self.conns[source.0].peeked) {
            self.conns[source.0].lowat = 1;
        }
        self.conns[source.0].unlooked = false;
        self.conns[source.0].below_since = None;
        let (mut read, mut sent) = (0, 0);
        let stop = loop {
            if !held.is_empty() {
                match self.write(sink, &mut held) {
                    Ok(n) => sent += n,
                    Err(why) => break Stop::Failed { side: from.other(), why },
                }
                if !held.is_empty() {
                    break Stop::Blocked;
                }
            }
            if read >= u64::from(budget) {
                break Stop::Budget;
            }
            let mut chunk = CHUNK.min(u64::from(budget) - read);
            // Without a pipe nothing can be held: look, write, take what was written.
            let pipe = self.take_pipe(token, way);
            if !pipe {
                self.hit_conn(source, Fault::NoPipe);
                let space = self.space_for(sink);
                if space == 0 && !self.conns[source.0].inbound.queue.is_empty() {
                    self.conns[sink.0].nospace = true;
                    break Stop::Blocked;
                }
                chunk = chunk.min(space.max(1));
            }
            let got = match self.read(source, chunk) {
                Got::Data(bytes) => bytes,
                Got::Nothing => break Stop::Drained,
                Got::End => break Stop::Eof,
                Got::Failed(why) => break Stop::Failed { side: from, why },
            };
            let short = got.len() < chunk;
            read += got.len();
            held = got;
            match self.write_all_or(sink, &mut held, pipe) {
                Ok(n) => sent += n,
                Err(why) => break Stop::Failed { side: from.other(), why },
            }
            if !held.is_empty() {
                break Stop::Blocked;
            }
            if short && !to_eof && (mode == Mode::Copy || self.rng.per_mille(500)) {
                // The ring trusts a short read: whatever came since wakes by itself.
                break Stop::Drained;
            }
        };
        let left = held.len();
        let session = self.sessions.get_mut(&token.slot).expect("live");
        session.held[way] = held;
        session.blocked[way] = stop == Stop::Blocked;
        if left == 0 && std::mem::take(&mut session.pipes[way]) {
            self.ring().pipes_used -= 1;
        }
        if let Stop::Failed { side, .. } = stop {
            let failed = if side == from { source } else { sink };
            self.conns[failed.0].error_told.get_or_insert(self.turn);
        }
        if stop == Stop::Blocked {
            // The sink must be watched.
            self.end_stream(token, from.other());
        }
        let moved =
            Event::Moved { from, read: read as u32, sent: sent as u32, held: left as u32, stop };
        self.event(token, moved, turn);
    }

    fn take_pipe(&mut self, token: Token, way: usize) -> bool {
        let ring = &mut self.rings[self.process as usize];
        let session = self.sessions.get_mut(&token.slot).expect("live");
        if !session.pipes[way] && ring.pipes_used < self.limits.pipes {
            session.pipes[way] = true;
            ring.pipes_used += 1;
        }
        session.pipes[way]
    }
}
