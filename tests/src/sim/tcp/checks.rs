//! No half-close before the last byte, and no direction that stands still.

use crate::sim::kernel::Kernel;
use crate::sim::tcp::conn::Conn;

/// How long bytes may lie below a mark, microseconds.
const TAIL: u64 = 2_000;

/// No timeout of a connection attempt is longer, microseconds.
const GIVEN_UP: u64 = 10_000_000;

impl Kernel {
    /// A FIN may be sent before the last byte only by a session that is closed in the same turn.
    pub(crate) fn check_half_closes(&self) {
        for session in self.sessions.values().filter(|s| !s.closing) {
            for id in [Some(session.client), session.endpoint].into_iter().flatten() {
                let cut = self.conns[id.0].cut;
                assert!(!cut, "half-close before the last byte: {:?}", session.token);
            }
        }
    }

    /// No direction may stand still with bytes, space, and nothing to come that would move it.
    /// `resumable`: the proxy has asked for another turn at once.
    ///
    /// `queued`: sessions wait for a place at an endpoint, and what their clients sent is not
    /// looked at. The kernel does not know which sessions these are.
    ///
    /// `delayed`: some session has had to wait for a limit of bytes. The kernel does not know which
    /// one. That each goes on, its end shows.
    pub fn check_stalls(&self, resumable: bool, queued: bool, delayed: bool) {
        if resumable {
            return;
        }
        for session in self.sessions.values().filter(|s| !s.closing && self.is_here(s.token.slot)) {
            let client = &self.conns[session.client.0];
            if client.owner != Some(session.token) {
                continue;
            }
            let Some(endpoint) = session.endpoint.filter(|_| !session.introducing) else {
                assert!(
                    session.connecting.as_ref().is_none_or(|a| self.now < a.began + GIVEN_UP),
                    "stalled: a connection attempt is neither answered nor given up: {:?}",
                    session.token
                );
                let opening =
                    session.connecting.is_none() && !session.abandoning && !session.introducing;
                assert!(
                    queued || !(opening && client.unlooked && !client.ready_pending),
                    "stalled: what the client sent is not looked at: {:?}",
                    session.token
                );
                continue;
            };
            let endpoint = &self.conns[endpoint.0];
            let pending = |conn: &Conn| conn.ready_pending || conn.arriving;
            if pending(client) || pending(endpoint) || session.streams.iter().any(|s| s.is_ending())
            {
                continue;
            }
            if session.delivering {
                continue;
            }
            for (source, sink) in [(client, endpoint), (endpoint, client)] {
                let inbound = &source.inbound;
                let held = &session.held[source.side as usize];
                let work = !held.is_empty()
                    || !inbound.queue.is_empty()
                    || inbound.fin
                    || source.error.is_some();
                let open = !sink.outbound.fin && sink.error.is_none();
                // A mark may hold a tail back, but not for longer than this.
                let below = inbound.queue.len() < source.lowat && held.is_empty();
                let patient = source.below_since.is_none_or(|since| self.now <= since + TAIL);
                if below && patient && !inbound.fin && source.error.is_none() {
                    continue;
                }
                assert!(
                    delayed || !(work && open && !sink.nospace),
                    "stalled: bytes or an end wait, there is space, and nothing is to come: {:?} \
                     from {:?}",
                    session.token,
                    source.side
                );
            }
        }
    }
}
