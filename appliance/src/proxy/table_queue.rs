//! Queues the sockets that tables hand over and the ops that tables ask for: one queue, in the
//! order of the tables.
//!
//! A worker carries out a bounded number of steps a turn, so that a table of a thousand listeners
//! does not make sessions wait. A later table may come while steps of an earlier table wait. The
//! sockets of the later table then wait behind these steps. Otherwise a socket could come back
//! before the `Unlisten` of its id was carried out. The ring would take that socket for the one
//! that is already open, and close it.

use std::collections::VecDeque;

use config_sync::table::routing::{SocketId, Transport};

use crate::contract::{Event, Kind, Op, Token};

/// `S` stands for an open socket: a descriptor, or the simulator's address.
#[derive(Debug)]
pub struct TableQueue<S> {
    steps: VecDeque<Step<S>>,
    /// By `SocketId`: how many of the waiting ops start or end the socket.
    pending: Vec<u32>,
}

#[derive(Debug)]
pub enum Step<S> {
    /// Take over an open socket.
    Listen(SocketId, Transport, S),
    Op(Token, Op),
}

impl<S> Default for TableQueue<S> {
    fn default() -> Self {
        Self { steps: VecDeque::new(), pending: Vec::new() }
    }
}

impl<S> TableQueue<S> {
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Adds a socket of the table that is applied next.
    pub fn listen(&mut self, id: SocketId, transport: Transport, socket: S) {
        self.steps.push_back(Step::Listen(id, transport, socket));
    }

    /// Adds all ops that the table asks for, after its sockets.
    pub fn ask(&mut self, ops: &mut Vec<(Token, Op)>) {
        for (token, op) in ops.drain(..) {
            self.push(token, op);
        }
    }

    /// Moves the ops about listening sockets out of `ops`, so that they wait behind the waiting
    /// steps. If no step waits, `ops` stays as it is.
    pub fn defer(&mut self, ops: &mut Vec<(Token, Op)>) {
        if self.steps.is_empty() {
            return;
        }
        for (token, op) in ops.extract_if(.., |(token, op)| is_about_listening(*token, op)) {
            self.push(token, op);
        }
    }

    /// Takes out the next steps, at most `most`.
    pub fn some(&mut self, most: usize) -> impl Iterator<Item = Step<S>> {
        let Self { steps, pending } = self;
        steps.drain(..most.min(steps.len())).inspect(|step| {
            if let Step::Op(token, op) = step
                && starts_or_ends(op)
            {
                pending[token.slot as usize] -= 1;
            }
        })
    }

    /// Whether a waiting step will overtake this event of a socket. The event may say that the
    /// socket has stopped, though a step will start or close it; or that an earlier socket is
    /// closed.
    pub fn is_stale(&self, token: Token, event: Event) -> bool {
        token.kind == Kind::Socket
            && matches!(event, Event::Stopped { .. } | Event::Unlistened)
            && self.pending.get(token.slot as usize).is_some_and(|pending| *pending > 0)
    }

    fn push(&mut self, token: Token, op: Op) {
        if starts_or_ends(&op) {
            let index = token.slot as usize;
            self.pending.resize(self.pending.len().max(index + 1), 0);
            self.pending[index] += 1;
        }
        self.steps.push_back(Step::Op(token, op));
    }
}

fn starts_or_ends(op: &Op) -> bool {
    matches!(op, Op::Accept | Op::AcceptOne | Op::Receive | Op::Halt | Op::Release | Op::Unlisten)
}

fn is_about_listening(token: Token, op: &Op) -> bool {
    token.kind == Kind::Socket && (starts_or_ends(op) || matches!(op, Op::Configure(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: SocketId = SocketId(3);

    fn words(queue: &mut TableQueue<&'static str>, most: usize) -> Vec<String> {
        let step = |step: Step<&str>| match step {
            Step::Listen(_, _, socket) => socket.to_owned(),
            Step::Op(_, op) => format!("{op:?}"),
        };
        queue.some(most).map(step).collect()
    }

    #[test]
    fn a_socket_that_comes_back_waits_for_the_end_of_the_one_before() {
        let mut queue = TableQueue::default();
        let socket = Token::socket(S);
        queue.ask(&mut vec![(Token::socket(SocketId(1)), Op::Accept), (socket, Op::Unlisten)]);
        queue.listen(S, Transport::Udp, "new");
        queue.ask(&mut vec![(socket, Op::Receive)]);
        assert!(queue.is_stale(socket, Event::Unlistened));
        assert_eq!(words(&mut queue, 2), ["Accept", "Unlisten"]);
        // This event is of the earlier socket: the new socket is not closed.
        assert!(queue.is_stale(socket, Event::Unlistened));
        assert_eq!(words(&mut queue, 9), ["new", "Receive"]);
        assert!(queue.is_empty() && !queue.is_stale(socket, Event::Unlistened));
    }

    #[test]
    fn ops_about_listening_sockets_wait_behind_what_waits_and_others_do_not() {
        let mut queue = TableQueue::<()>::default();
        let session = Token { kind: Kind::Session, slot: 3, generation: 0 };
        let close = (session, Op::Close { reset: false });
        let mut ops = vec![(Token::socket(S), Op::Unlisten), close];
        queue.defer(&mut ops);
        assert_eq!((ops.len(), queue.is_empty()), (2, true), "nothing waits, nothing is deferred");
        queue.listen(S, Transport::Udp, ());
        queue.defer(&mut ops);
        assert_eq!(ops, [close]);
        assert_eq!(queue.some(9).count(), 2);
    }
}
