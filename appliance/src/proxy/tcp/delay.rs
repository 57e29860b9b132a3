//! Waits for a place within the limit of the listener, where the limit delays.

use config_sync::table::routing::SocketId;

use crate::proxy::core::Core;
use crate::proxy::slab::Slab;
use crate::proxy::tcp::choose::By;
use crate::proxy::tcp::state::{Session, State};

/// Gives places to the sessions that are first in their lines, as long as there are places. Then
/// sockets that rest accept again.
pub fn look(core: &mut Core, sessions: &mut Slab<Session>) {
    core.delays.looks(core.now);
    for id in core.delays.lines() {
        serve(core, sessions, id);
    }
    for id in core.delays.resting() {
        core.start(id);
    }
}

/// Lets in those who are first in the line of a socket. If the socket closes, the line ends: who
/// finds no place is refused.
pub fn serve(core: &mut Core, sessions: &mut Slab<Session>, id: SocketId) {
    while let Some(token) = core.delays.first(id)
        && let Some(session) = sessions.get_mut(token.slot, token.generation)
        && session.comes_in(core)
    {}
    core.delays.forget(id);
}

impl Session {
    /// The session is the first of its line. Returns whether it has left the line.
    fn comes_in(&mut self, core: &mut Core) -> bool {
        self.choose(core, &By::Socket);
        if let State::Delayed = self.state {
            return false;
        }
        core.delays.leave(self.socket, self.token);
        self.arm(core);
        true
    }
}
