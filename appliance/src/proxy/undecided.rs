//! Sessions whose clients have not said where they want to go: a PROXY header, a request for TLS, a
//! ClientHello or a handshake is to come. When the session table is nearly full, or the process has
//! nearly `limits.total_sessions`, the one that has waited longest makes room, so that clients who
//! are slow on purpose keep nobody out.

use std::collections::VecDeque;

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

/// The oldest first. Sessions that wait no more are left out later.
#[derive(Debug, Default)]
pub struct Undecided(VecDeque<Token>);

impl Undecided {
    pub fn add(&mut self, sessions: &mut Slab<Session>, token: Token) {
        // Behind one client that waits, there may be any number that wait no more.
        if self.0.len() >= 2 * (sessions.len() as usize + 32) {
            self.0.retain(|token| waits(sessions, *token).is_some());
        }
        self.0.push_back(token);
    }

    /// Closes the session that has waited longest, if there is hardly room for more and the session
    /// has waited for longer than there is room for.
    pub fn make_room(&mut self, core: &mut Core, sessions: &mut Slab<Session>) {
        let (mut most, mut room) = (sessions.limit(), sessions.room());
        if let Some(total) = &core.tables.current().total {
            (most, room) = (most.min(total.sessions), room.min(total.room()));
        }
        let Some(patience) = patience(room, (most / RESERVE).max(1)) else { return };
        while let Some(token) = self.0.front().copied() {
            if let Some(session) = waits(sessions, token) {
                if core.now - session.opened < patience {
                    return;
                }
                session.finish(core, CloseReason::CrowdedOut, true);
                self.0.pop_front();
                return;
            }
            self.0.pop_front();
        }
    }
}

/// How long a client may wait, in microseconds. `None`: there is room.
fn patience(room: u32, reserve: u32) -> Option<u64> {
    if room > reserve {
        return None;
    }
    let left = u64::from(room) * 1_000 / u64::from(reserve);
    Some(PATIENCE * left.pow(3) / 1_000_000_000)
}

fn waits(sessions: &mut Slab<Session>, token: Token) -> Option<&mut Session> {
    sessions.get_mut(token.slot, token.generation).filter(|session| session.is_undecided())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_shrinks_with_the_room() {
        assert_eq!(patience(257, 256), None);
        let millis = |room| patience(room, 256).map(|micros| micros / 1_000);
        assert_eq!([256, 128, 64, 32].map(millis), [5_000, 625, 78, 9].map(Some));
        assert_eq!(patience(0, 256), Some(0));
        assert_eq!(patience(65_536, 65_536), Some(PATIENCE));
    }
}
