//! Waits for a place at an endpoint, because every endpoint of the backend is full.

use config_sync::table::routing::Queue;

use crate::proxy::cause::Cause;
use crate::proxy::core::Core;
use crate::proxy::slab::Slab;
use crate::proxy::tcp::state::{Connecting, InLine, Session, State};
use crate::stats::records::CloseReason;

/// Gives places to the sessions that are first in their lines, as long as there are places.
pub fn look(core: &mut Core, sessions: &mut Slab<Session>) {
    for backend in core.waiting.backends() {
        while let Some(token) = core.waiting.first(backend)
            && let Some(session) = sessions.get_mut(token.slot, token.generation)
            && session.takes_place(core)
        {}
    }
    core.waiting.looked(core.now);
}

impl Session {
    /// Joins the queue of the backend.
    pub fn wait(&mut self, core: &mut Core, mut connecting: Connecting) -> Result<(), Cause> {
        let full = || Cause::from(CloseReason::EndpointsFull);
        let backend = self.backend.and_then(|id| core.tables.backend(self.socket, id));
        let queue = backend.and_then(|backend| Some((backend.id, backend.queue.as_ref()?)));
        let (backend, queue) = queue.ok_or_else(full)?;
        let Queue { timeout, .. } = *queue;
        let ticket = core.waiting.join(backend, queue, self.token, core.now);
        let ticket = ticket.ok_or_else(full)?;
        // An endpoint that failed may be well when there is a place. The attempts stay counted.
        connecting.tried_count = 0;
        self.endpoint = None;
        self.state = State::Waiting(InLine { connecting, ticket, since: core.now, timeout });
        if self.peeks().is_some() {
            self.peek(core);
        }
        Ok(())
    }

    /// The client has left, and has sent nothing.
    pub fn gives_up(&mut self, core: &mut Core) {
        self.finish(core, CloseReason::ClientGone, true);
    }

    /// Whether the session must let others go first.
    pub fn is_behind(&self, core: &Core) -> bool {
        let backend = self.backend.and_then(|id| core.tables.backend(self.socket, id));
        let queue = backend.and_then(|backend| Some((backend.id, backend.queue.as_ref()?)));
        queue.is_some_and(|(backend, queue)| core.waiting.is_behind(backend, queue))
    }

    /// The session is the first of its line. Returns whether it has left the line: connected to an
    /// endpoint with a free place, or gone elsewhere because no endpoint is left.
    pub fn takes_place(&mut self, core: &mut Core) -> bool {
        let State::Waiting(InLine { connecting, ticket, .. }) = self.state else {
            unreachable!("only sessions that wait are in a line")
        };
        if !self.backend.is_some_and(|backend| core.waiting.may_go(backend, ticket)) {
            return false;
        }
        match self.try_connect(core, connecting) {
            Ok(()) => {
                self.leave_line(core, ticket);
                self.arm(core);
                true
            }
            Err(Cause { reason: CloseReason::EndpointsFull, .. }) => false,
            Err(cause) => {
                // Another backend has another line.
                self.leave_line(core, ticket);
                self.state = State::Connecting(connecting);
                match self.pass_on(core, cause) {
                    Ok(()) => self.arm(core),
                    Err(cause) => self.finish(core, cause, true),
                }
                true
            }
        }
    }

    pub fn leave_line(&self, core: &mut Core, ticket: u64) {
        if let Some(backend) = self.backend {
            core.waiting.leave(backend, ticket);
        }
    }
}
