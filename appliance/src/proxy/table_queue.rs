//! What tables hand over (sockets) and ask for (ops): one queue, in the order of the tables.
//!
//! A worker carries out a bounded number of steps a turn, so that a table of a thousand listeners
//! does not make sessions wait. A later table may come while steps of an earlier one wait. Its
//! sockets wait behind them: a socket that came back before the `Unlisten` of its id was carried
//! out would be taken for the one that is open already, and closed with it.

use std::collections::VecDeque;

use config_sync::table::routing::{SocketId, Transport};

use crate::contract::{Event, Kind, Op, Token};

/// `S` is what stands for an open socket: a descriptor, or the simulator's address.
#[derive(Debug)]
pub struct TableQueue<S> {
    steps: VecDeque<Step<S>>,
    /// By `SocketId`: how many of the waiting ops start or end this socket.
    pending: Vec<u32>,
}

#[derive(Debug)]
pub enum Step<S> {
    /// Take over a socket that is open.
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

    /// A socket of the table that is applied next.
    pub fn listen(&mut self, id: SocketId, transport: Transport, socket: S) {
        self.steps.push_back(Step::Listen(id, transport, socket));
    }

    /// All ops that the table asks for, after its sockets.
    pub fn ask(&mut self, ops: &mut Vec<(Token, Op)>) {
        for (token, op) in ops.drain(..) {
            self.push(token, op);
        }
    }

    /// Takes out of `ops` what must wait behind the steps that wait: all that is about listening
    /// sockets. Nothing, if none waits.
    pub fn defer(&mut self, ops: &mut Vec<(Token, Op)>) {
        if self.steps.is_empty() {
            return;
        }
        for (token, op) in ops.extract_if(.., |(token, op)| is_about_listening(*token, op)) {
            self.push(token, op);
        }
    }

    /// The next steps, at most `most`.
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

    /// Whether an event says of a socket what a waiting step will change: that it has stopped,
    /// though it will be started or closed, or that it is closed, though that was an earlier one.
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
    matches!(op, Op::Accept | Op::Receive | Op::Unlisten)
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
        // That of the one before: the new one is not closed.
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
