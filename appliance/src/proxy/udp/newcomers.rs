//! Holds the newcomers: clients without a flow whose datagrams wait for their turn.

use std::collections::VecDeque;

use crate::contract::{Event, Token};

/// So many turns in a row, some newcomers waited: then it is no burst any more.
const BURST: u32 = 64;

/// The events of listening sockets that wait.
#[derive(Debug)]
pub struct Newcomers {
    /// How many sockets may be opened in a turn.
    most: u32,
    /// How many have been in this turn, also for flows that moved.
    opened: u32,
    /// Whether somebody who waited has come in this turn. One may, whatever was opened for others.
    has_served: bool,
    /// For how many turns some have waited.
    turns: u32,
    /// So many may wait. A listener that has a quarter of them after a burst is flooded.
    enough: usize,
    /// The oldest first. That a socket has stopped, which another process waits for, comes after
    /// the socket's datagrams.
    waiting: VecDeque<(Token, Event)>,
}

impl Newcomers {
    /// Everybody comes in at once.
    pub fn unbounded() -> Self {
        let waiting = VecDeque::new();
        let (opened, has_served, turns) = (0, false, 0);
        Self { most: u32::MAX, opened, has_served, turns, enough: usize::MAX, waiting }
    }

    /// `buffers`: those of the worker, of which half are for clients.
    pub fn bound(&mut self, most: u32, buffers: usize) {
        self.most = most;
        self.enough = (buffers / 4).max(1);
        self.waiting.reserve(buffers);
    }

    pub fn has_opened(&mut self) {
        self.opened += 1;
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The buffers that wait.
    pub fn buffers(&self) -> usize {
        self.waiting.iter().filter(|(_, event)| matches!(event, Event::Datagrams { .. })).count()
    }

    /// The next event that is due in this turn. `None` ends the turn.
    pub fn next(&mut self) -> Option<(Token, Event)> {
        let may_come = self.opened < self.most || !self.has_served;
        let next = if may_come { self.waiting.pop_front() } else { None };
        self.has_served = next.is_some();
        if next.is_none() {
            self.opened = 0;
            self.turns = if self.waiting.is_empty() { 0 } else { self.turns.saturating_add(1) };
        }
        next
    }

    /// Whether as many wait as may: all others need buffers too.
    pub fn are_enough(&self) -> bool {
        self.waiting.len() >= self.enough
    }

    /// Whether this listening socket is flooded, and not only in a burst.
    pub fn is_flood(&self, of: Token) -> bool {
        let own = || self.waiting.iter().filter(|(token, _)| *token == of).count();
        self.turns >= BURST && own() > self.enough / 4
    }

    /// Whether somebody new comes in only after the others' work: one socket is kept for that.
    pub fn must_wait(&self) -> bool {
        self.opened + 1 >= self.most || !self.waiting.is_empty()
    }

    /// Whether events of this socket wait.
    pub fn has(&self, of: Token) -> bool {
        self.waiting.iter().any(|(token, _)| *token == of)
    }

    /// Keeps an event for later.
    pub fn put_off(&mut self, token: Token, event: Event) {
        self.waiting.push_back((token, event));
    }

    /// Takes out all events of a socket.
    pub fn take_out(&mut self, of: Token) -> Vec<Event> {
        let mut own = Vec::new();
        self.waiting.retain(|(token, event)| {
            let is_own = *token == of;
            own.extend(is_own.then_some(*event));
            !is_own
        });
        own
    }

    /// Whether an event waits that says that the socket has stopped.
    pub fn has_stopped(&self, of: Token) -> bool {
        let stopped = |event: &Event| matches!(event, Event::Stopped { .. });
        self.waiting.iter().any(|(token, event)| *token == of && stopped(event))
    }
}

#[cfg(test)]
mod tests {
    use config_sync::table::routing::SocketId;

    use super::*;
    use crate::contract::{BufferId, Kind};

    const A: Token = Token { kind: Kind::Socket, slot: 1, generation: 0 };

    fn datagram(of: u32, buffer: u16) -> (Token, Event) {
        let event = Event::Datagrams {
            buffer: BufferId(buffer),
            peer: None,
            local: None,
            bytes: 1,
            size: 1,
            count: 1,
            truncated: false,
        };
        (Token::socket(SocketId(of)), event)
    }

    fn turn(newcomers: &mut Newcomers) -> usize {
        let mut came = 0;
        while newcomers.next().is_some() {
            newcomers.has_opened();
            came += 1;
        }
        came
    }

    #[test]
    fn so_many_come_in_a_turn_and_the_rest_in_the_next_ones() {
        let mut newcomers = Newcomers::unbounded();
        newcomers.bound(2, 64);
        assert!(!newcomers.must_wait());
        newcomers.has_opened();
        assert!(newcomers.must_wait());
        newcomers.waiting.extend((0..5).map(|buffer| datagram(1, buffer)));
        newcomers.waiting.push_back((A, Event::Stopped { why: None }));
        assert_eq!(
            (newcomers.buffers(), newcomers.has(A), newcomers.has_stopped(A)),
            (5, true, true)
        );
        let turns: Vec<_> = (0..5).map(|_| turn(&mut newcomers)).collect();
        assert_eq!(turns, [1, 2, 2, 1, 0], "one had come before the others");
        assert!(!newcomers.must_wait());
    }

    #[test]
    fn a_flood_that_lasts_is_dropped_and_other_listeners_are_not() {
        let mut newcomers = Newcomers::unbounded();
        newcomers.bound(1, 32);
        let other = Token::socket(SocketId(2));
        newcomers.waiting.push_back(datagram(2, 0));
        newcomers.waiting.extend((0..200).map(|buffer| datagram(1, buffer)));
        for _ in 0..BURST {
            assert!(newcomers.are_enough() && !newcomers.is_flood(A), "it may be a burst");
            turn(&mut newcomers);
        }
        newcomers.waiting.push_back(datagram(2, 0));
        assert!(newcomers.is_flood(A) && !newcomers.is_flood(other));
        newcomers.waiting.truncate(7);
        assert!(!newcomers.are_enough(), "few wait");
    }
}
