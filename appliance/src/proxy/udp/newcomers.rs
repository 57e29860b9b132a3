//! Holds the newcomers: clients without a flow whose datagrams wait for their turn.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use crate::contract::{Event, Token};

/// After so many turns in which some newcomers waited it is no burst any more. Turns in which
/// nobody waited count against them, so a flood that pauses for a moment is not forgotten.
const BURST: u32 = 64;

/// In a long turn newcomers get a quarter of the worker's time: one socket for each 250 us, of
/// which to open it takes some 60.
const SHARE: u64 = 250;

/// So many at the most, however long a turn is.
const MOST: u64 = 256;

/// The socket to which a client sends, and both addresses.
type Client = (Token, Option<SocketAddr>, Option<IpAddr>);

/// The events of listening sockets that wait.
#[derive(Debug)]
pub struct Newcomers {
    /// How many sockets may be opened in a turn that is not long.
    least: u32,
    /// How many may be opened in this turn.
    most: u32,
    /// How many have been in this turn, also for flows that moved.
    opened: u32,
    /// Whether somebody who waited has come in this turn. One may, whatever was opened for others.
    has_served: bool,
    /// Who came in last. What else they have sent follows at once.
    client: Option<Client>,
    /// For how many turns some have waited.
    turns: u32,
    /// The time of the turn before, in microseconds, if some waited behind it.
    before: Option<u64>,
    /// So many may wait.
    enough: usize,
    /// The oldest first. That a socket has stopped, which another process waits for, comes after
    /// the socket's datagrams.
    waiting: VecDeque<(Token, Event)>,
}

impl Newcomers {
    /// Everybody comes in at once.
    pub fn unbounded() -> Self {
        let waiting = VecDeque::new();
        Self {
            least: u32::MAX,
            most: u32::MAX,
            opened: 0,
            has_served: false,
            client: None,
            turns: 0,
            before: None,
            enough: usize::MAX,
            waiting,
        }
    }

    /// `buffers`: the worker's. Half of them are for clients.
    pub fn bound(&mut self, most: u32, buffers: usize) {
        (self.least, self.most) = (most, most);
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

    /// The next event that is due in this turn, which began at `now`. `None` ends the turn.
    pub fn next(&mut self, now: u64) -> Option<(Token, Event)> {
        if let Some(at) = self.of_client() {
            return self.waiting.remove(at);
        }
        if let Some(before) = self.before.take() {
            let share = (now.saturating_sub(before) / SHARE).min(MOST);
            self.most = self.least.max(u32::try_from(share).unwrap_or(0));
        }
        let may_come = self.opened < self.most || !self.has_served;
        let next = if may_come { self.waiting.pop_front() } else { None };
        self.has_served = next.is_some();
        self.client = next.map(client);
        if next.is_none() {
            (self.opened, self.most) = (0, self.least);
            let is_empty = self.waiting.is_empty();
            self.before = (!is_empty).then_some(now);
            self.turns = match is_empty {
                true => self.turns.saturating_sub(1),
                false => (self.turns + 1).min(2 * BURST),
            };
        }
        next
    }

    /// Where the next event waits of who came in last: their datagrams stay in order.
    fn of_client(&self) -> Option<usize> {
        let last = self.client?;
        self.waiting.iter().position(|waiting| client(*waiting) == last)
    }

    /// Whether something of the client waits that has sent this.
    pub fn has_of_client(&self, token: Token, event: Event) -> bool {
        let of = client((token, event));
        self.waiting.iter().any(|waiting| client(*waiting) == of)
    }

    /// Whether as many wait as may: all others need buffers too.
    pub fn are_enough(&self) -> bool {
        self.waiting.len() >= self.enough
    }

    /// Whether this listening socket is flooded, and not only in a burst: no fewer wait at this
    /// socket than at the others, on average.
    pub fn is_flood(&self, of: Token) -> bool {
        if self.turns < BURST {
            return false;
        }
        let mut sockets: Vec<_> = self.waiting.iter().map(|(token, _)| *token).collect();
        let own = sockets.iter().filter(|token| **token == of).count();
        sockets.sort_unstable();
        sockets.dedup();
        own > 0 && own * sockets.len() >= self.waiting.len()
    }

    /// Whether somebody new comes in only after the others' work: one socket is kept for that.
    #[inline]
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

fn client((token, event): (Token, Event)) -> Client {
    match event {
        Event::Datagrams { peer, local, .. } => (token, peer, local),
        _ => (token, None, None),
    }
}

#[cfg(test)]
mod tests {
    use config_sync::table::routing::SocketId;

    use super::*;
    use crate::contract::{BufferId, Kind};

    const A: Token = Token { kind: Kind::Socket, slot: 1, generation: 0 };

    /// The number of the buffer is the port of the client.
    fn datagram(of: u32, buffer: u16) -> (Token, Event) {
        let event = Event::Datagrams {
            buffer: BufferId(buffer),
            peer: Some(([198, 18, 0, 1], buffer).into()),
            local: None,
            bytes: 1,
            size: 1,
            count: 1,
            truncated: false,
        };
        (Token::socket(SocketId(of)), event)
    }

    fn turn_at(newcomers: &mut Newcomers, now: u64) -> usize {
        let mut came = 0;
        while newcomers.next(now).is_some() {
            newcomers.has_opened();
            came += 1;
        }
        came
    }

    fn turn(newcomers: &mut Newcomers) -> usize {
        turn_at(newcomers, 1)
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

    #[test]
    fn a_flood_of_many_sockets_that_pauses_is_one() {
        let mut newcomers = Newcomers::unbounded();
        newcomers.bound(1, 64);
        for _ in 0..20 {
            newcomers.waiting.extend((0..64).map(|nth| datagram(u32::from(nth) % 8, nth)));
            (0..8).for_each(|_| _ = turn(&mut newcomers));
            newcomers.waiting.clear();
            (0..2).for_each(|_| _ = turn(&mut newcomers));
        }
        newcomers.waiting.extend((0..64).map(|nth| datagram(u32::from(nth) % 8, nth)));
        newcomers.waiting.push_back(datagram(9, 0));
        assert!((0..8).all(|of| newcomers.is_flood(Token::socket(SocketId(of)))));
        assert!(!newcomers.is_flood(Token::socket(SocketId(9))), "one waits there");
        assert!(!newcomers.is_flood(Token::socket(SocketId(10))), "nobody does");
        newcomers.waiting.clear();
        (0..2 * BURST).for_each(|_| _ = turn(&mut newcomers));
        newcomers.waiting.push_back(datagram(1, 0));
        assert!(!newcomers.is_flood(A), "it was long ago");
    }

    #[test]
    fn datagrams_of_a_client_come_in_together_and_in_order() {
        let mut newcomers = Newcomers::unbounded();
        newcomers.bound(1, 64);
        let sent = |nth: u32, port: u16| {
            let (token, event) = datagram(1, port);
            let Event::Datagrams { buffer, peer, local, size, count, truncated, .. } = event else {
                panic!("{event:?}")
            };
            (token, Event::Datagrams { buffer, peer, local, bytes: nth, size, count, truncated })
        };
        let all = [(1, 7), (2, 8), (3, 7), (4, 8), (5, 7)];
        newcomers.waiting.extend(all.map(|(nth, port)| sent(nth, port)));
        let (token, event) = sent(6, 8);
        assert!(newcomers.has_of_client(token, event));
        let mut turns = Vec::new();
        for _ in 0..2 {
            let mut came = Vec::new();
            while let Some((_, Event::Datagrams { bytes, .. })) = newcomers.next(1) {
                newcomers.has_opened();
                came.push(bytes);
            }
            turns.push(came);
        }
        assert_eq!(turns, [[1, 3, 5].to_vec(), [2, 4].to_vec()]);
        assert!(!newcomers.has_of_client(token, event));
    }

    #[test]
    fn behind_a_long_turn_more_come_in() {
        let mut newcomers = Newcomers::unbounded();
        newcomers.bound(2, 1_024);
        newcomers.waiting.extend((0..1_000).map(|port| datagram(1, port)));
        let at = [1, 1_001, 41_001, 41_002, 9_000_000];
        let came = at.map(|now| turn_at(&mut newcomers, now));
        assert_eq!(came, [2, 4, 160, 2, 256]);
    }
}
