//! Sessions whose clients have not said where they want to go: a PROXY header, a request for TLS, a
//! ClientHello or a handshake is to come. Where they are too many, the one that has waited longest
//! makes room, so that clients who are slow on purpose keep nobody out:
//!
//! - when the session table is nearly full, or the process has nearly `limits.total_sessions`;
//! - among those of a listening socket, when they have half of the session table;
//! - among the handshakes of a listener, when it has nearly `max_sessions` or `limit.sessions`;
//! - among those of a source, when they are more than the sessions that the source may have.
//!
//! A client that waits for a place at its listener has said all that it had to say, so it makes
//! room only where nobody else can. Then the one goes that came last: those before it keep their
//! turn.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use config_sync::table::load::NO_LIMIT;
use config_sync::table::routing::{ListenerId, SocketId};

use crate::contract::Token;
use crate::proxy::core::Core;
use crate::proxy::slab::Slab;
use crate::proxy::tcp::state::Session;
use crate::stats::records::CloseReason;

/// While no more than this part of the session table is free, a client that comes may take the
/// place of one that waits. The part that is free lets clients in while the ring closes others: in
/// a flood, hundreds come while a worker waits for its processor.
const RESERVE: u32 = 8;

/// Microseconds that a client may wait when the free part has just become scarce. The less is left
/// of it, the shorter: an eighth of the time for half, none for nothing.
const PATIENCE: u64 = 5_000_000;

/// No listening socket has more of a worker's session table for such sessions, so that a flood at
/// one listener leaves places for those of all others, and for itself: what comes in one turn finds
/// only the places that are free before, because who makes room is gone in the next.
const SHARE_OF_SOCKET: u32 = 2;

/// A listening socket may have so many of a small table.
const LEAST_OF_SOCKET: u32 = 8;

/// Sessions that wait no more are left out of a socket's line once so large a part of its share has
/// come. Until then they count.
const LEFT_OUT_LATE: usize = 16;

/// The same for handshakes at a listener. A listener has few places, compared with a worker, and
/// its clients have said their ClientHello already.
const RESERVE_OF_LISTENER: u32 = 4;
const PATIENCE_OF_LISTENER: u64 = 2_000_000;

/// No source has more undecided sessions with one listening socket of a worker.
const MOST_OF_SOURCE: u32 = 1_024;

#[derive(Debug, Default)]
pub struct Undecided {
    all: Line,
    /// By `SocketId`.
    by_socket: Vec<OfSocket>,
    /// No more than so many are in the lines of sockets.
    in_sockets: usize,
    /// Handshakes at listeners that limit their sessions. The sessions have places already.
    by_listener: BTreeMap<ListenerId, Line>,
    /// Of sources that may have so many sessions.
    by_source: BTreeMap<(SocketId, IpAddr), Line>,
}

/// The line of a listening socket.
#[derive(Debug, Default)]
struct OfSocket {
    line: Line,
    /// Those that came since sessions that wait no more were left out.
    came: usize,
}

/// The oldest first. Sessions that wait no more are left out later.
#[derive(Debug, Default)]
struct Line(VecDeque<Token>);

impl Undecided {
    /// Takes in a session of a listening socket. If such sessions of the socket have more than
    /// their share of the session table, closes the one that has waited longest.
    pub fn add(
        &mut self,
        core: &mut Core,
        sessions: &mut Slab<Session>,
        (id, token): (SocketId, Token),
    ) {
        self.all.add(sessions, token);
        if self.in_sockets >= 2 * (sessions.len() as usize + 32) {
            self.in_sockets = self.by_socket.iter_mut().map(|of| of.forget(sessions)).sum();
        }
        if self.by_socket.len() <= id.index() {
            self.by_socket.resize_with(id.index() + 1, OfSocket::default);
        }
        self.in_sockets += 1;
        let most = (sessions.limit() / SHARE_OF_SOCKET).max(LEAST_OF_SOCKET) as usize;
        let of = &mut self.by_socket[id.index()];
        of.line.0.push_back(token);
        of.came += 1;
        if of.line.0.len() > most && of.came > most / LEFT_OUT_LATE {
            of.forget(sessions);
        }
        of.line.shrink(core, sessions, most);
    }

    /// Closes the session that has waited longest, if there is hardly room for more and the session
    /// has waited for longer than there is room for. If no client has been silent for so long, but
    /// one has waited so long for a listener's limit, the last of the longest line there is closed.
    pub fn make_room(&mut self, core: &mut Core, sessions: &mut Slab<Session>) {
        let (mut most, mut room) = (sessions.limit(), sessions.room());
        if let Some(total) = &core.tables.current().total {
            (most, room) = (most.min(total.sessions), room.min(total.room()));
        }
        let reserve = (most / RESERVE).max(1);
        if let Some(patience) = patience(room, reserve, PATIENCE) {
            let has_closed = self.all.close_first(core, sessions, patience);
            if !has_closed {
                close_last_delayed(core, sessions, patience);
            }
        }
    }

    /// Closes the session that has waited longest of a client's source, if the source has more
    /// sessions that wait than it may have at all. For sockets of one listener: others know what a
    /// source may have only once the client has said where to go.
    pub fn add_of_source(
        &mut self,
        core: &mut Core,
        sessions: &mut Slab<Session>,
        (id, client, token): (SocketId, SocketAddr, Token),
    ) {
        let Some((source, most)) = bound_of_source(core, id, client) else { return };
        if self.by_source.len() >= 2 * (sessions.len() as usize + 32) {
            self.by_source.retain(|_, line| line.forget(sessions));
        }
        let line = self.by_source.entry((id, source)).or_default();
        line.0.push_back(token);
        if line.0.len() > most {
            line.forget(sessions);
        }
        line.shrink(core, sessions, most);
    }

    /// Takes in the sources that PROXY headers have named in this turn.
    pub fn add_named(&mut self, core: &mut Core, sessions: &mut Slab<Session>) {
        let mut named = std::mem::take(&mut core.named);
        for token in named.drain(..) {
            if let Some(session) = waits(sessions, token) {
                let of = (session.socket, session.client, token);
                self.add_of_source(core, sessions, of);
            }
        }
        core.named = named;
    }

    /// Closes handshakes that have waited longest at listeners with hardly a place left, and have
    /// waited for longer than there is room for.
    pub fn make_room_at_listeners(&mut self, core: &mut Core, sessions: &mut Slab<Session>) {
        let mut handshakes = std::mem::take(&mut core.handshakes);
        for (id, began) in handshakes.drain(..) {
            let Some(token) = began else {
                // The client that has found no place looks again in this turn.
                if let Some(line) = self.by_listener.get_mut(&id) {
                    line.close_first(core, sessions, 0);
                }
                continue;
            };
            let Some(patience) = patience_at(core, id) else {
                self.by_listener.remove(&id);
                continue;
            };
            let line = self.by_listener.entry(id).or_default();
            if let Some(patience) = patience {
                // Two for each that comes, so that places become free.
                _ = line.close_first(core, sessions, patience)
                    && line.close_first(core, sessions, patience);
            }
            line.add(sessions, token);
        }
        core.handshakes = handshakes;
    }
}

impl OfSocket {
    /// Leaves out all sessions that wait no more. Returns how many are left.
    fn forget(&mut self, sessions: &mut Slab<Session>) -> usize {
        self.line.forget(sessions);
        self.came = 0;
        self.line.0.len()
    }
}

impl Line {
    fn add(&mut self, sessions: &mut Slab<Session>, token: Token) {
        // Behind one client that waits, there may be any number that wait no more.
        if self.0.len() >= 2 * (sessions.len() as usize + 32) {
            self.forget(sessions);
        }
        self.0.push_back(token);
    }

    /// Leaves out all sessions that wait no more. Returns whether any are left.
    fn forget(&mut self, sessions: &mut Slab<Session>) -> bool {
        self.0.retain(|token| waits(sessions, *token).is_some());
        !self.0.is_empty()
    }

    /// Closes those that have waited longest, until no more than `most` are left.
    fn shrink(&mut self, core: &mut Core, sessions: &mut Slab<Session>, most: usize) {
        while self.0.len() > most
            && let Some(token) = self.0.pop_front()
        {
            if let Some(session) = waits(sessions, token) {
                session.finish(core, CloseReason::CrowdedOut, true);
            }
        }
    }

    /// Closes the session that has waited longest, if it has waited for so many microseconds.
    fn close_first(
        &mut self,
        core: &mut Core,
        sessions: &mut Slab<Session>,
        patience: u64,
    ) -> bool {
        while let Some(token) = self.0.front().copied() {
            if let Some(session) = waits(sessions, token) {
                if core.now - session.opened < patience {
                    return false;
                }
                session.finish(core, CloseReason::CrowdedOut, true);
                self.0.pop_front();
                return true;
            }
            self.0.pop_front();
        }
        false
    }
}

/// Closes the last session of the longest line at a listener that delays, if the first has waited
/// for so many microseconds.
fn close_last_delayed(core: &mut Core, sessions: &mut Slab<Session>, patience: u64) {
    if let Some((first, last)) = core.delays.longest()
        && let Some(opened) = sessions.get_mut(first.slot, first.generation).map(|of| of.opened)
        && core.now - opened >= patience
        && let Some(session) = sessions.get_mut(last.slot, last.generation)
    {
        session.finish(core, CloseReason::CrowdedOut, true);
    }
}

/// The client's source, and how many undecided sessions it may have. `None`: any number.
fn bound_of_source(core: &Core, id: SocketId, client: SocketAddr) -> Option<(IpAddr, usize)> {
    let (table, socket) = core.tables.of(id)?;
    table.sources.as_ref()?;
    let listener = &table.listeners[socket.listeners.only()?];
    let limit = listener.limit_source.as_ref().filter(|limit| limit.sessions != NO_LIMIT)?;
    Some((limit.source(client.ip())?, limit.sessions.min(MOST_OF_SOURCE) as usize))
}

/// How long a handshake may take at a listener where another has just taken a place, in
/// microseconds. `Some(None)`: as long as it likes. `None`: no limit counts the sessions.
fn patience_at(core: &Core, id: ListenerId) -> Option<Option<u64>> {
    let listener = core.tables.current().listeners.iter().find(|of| of.id == id)?;
    let own = (listener.max_sessions, core.places.room(listener));
    let own = Some(own).filter(|(most, _)| *most > 0);
    let limit = listener.limit.as_ref().map(|limit| (limit.sessions, limit.room()));
    let limit = limit.filter(|(most, _)| *most != NO_LIMIT);
    let bounds = [own, limit].into_iter().flatten();
    bounds
        .map(|(most, room)| {
            // Who has just taken a place may stay.
            let room = room.saturating_add(1);
            let reserve = (most / RESERVE_OF_LISTENER).max(1);
            patience(room, reserve, PATIENCE_OF_LISTENER)
        })
        .reduce(|one, other| one.into_iter().chain(other).min())
}

/// How long a client may wait, in microseconds. `None`: there is room.
fn patience(room: u32, reserve: u32, longest: u64) -> Option<u64> {
    if room > reserve {
        return None;
    }
    let left = u64::from(room) * 1_000 / u64::from(reserve);
    Some(longest * left.pow(3) / 1_000_000_000)
}

fn waits(sessions: &mut Slab<Session>, token: Token) -> Option<&mut Session> {
    sessions.get_mut(token.slot, token.generation).filter(|session| session.is_undecided())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_shrinks_with_the_room() {
        assert_eq!(patience(257, 256, PATIENCE), None);
        let millis = |room| patience(room, 256, PATIENCE).map(|micros| micros / 1_000);
        assert_eq!([256, 128, 64, 32].map(millis), [5_000, 625, 78, 9].map(Some));
        assert_eq!(patience(0, 256, PATIENCE), Some(0));
        assert_eq!(patience(65_536, 65_536, PATIENCE), Some(PATIENCE));
    }
}
