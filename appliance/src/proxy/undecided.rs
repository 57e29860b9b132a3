//! Sessions whose clients have not said where they want to go: a PROXY header, a request for TLS, a
//! ClientHello or a handshake is to come. When the session table is nearly full, the one that has
//! waited longest makes room, so that clients who are slow on purpose keep nobody out.

use std::collections::VecDeque;

use crate::contract::Token;
use crate::proxy::core::Core;
use crate::proxy::slab::Slab;
use crate::proxy::tcp::state::Session;
use crate::stats::records::CloseReason;

/// While as much of the session table or less is free, each client that comes takes the place of
/// one that waits. The part that is free lets a client in while the ring closes another.
const RESERVE: u32 = 16;

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

    /// Closes the session that has waited longest, if the table is nearly full.
    pub fn make_room(&mut self, core: &mut Core, sessions: &mut Slab<Session>) {
        if sessions.room() > (sessions.limit() / RESERVE).max(1) {
            return;
        }
        while let Some(token) = self.0.pop_front() {
            if let Some(session) = waits(sessions, token) {
                return session.finish(core, CloseReason::CrowdedOut, true);
            }
        }
    }
}

fn waits(sessions: &mut Slab<Session>, token: Token) -> Option<&mut Session> {
    sessions.get_mut(token.slot, token.generation).filter(|session| session.is_undecided())
}
