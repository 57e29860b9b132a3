//! What must hold between turns, and at the end.

use std::collections::BTreeSet;

use config_sync::table::routing::SocketId;

use crate::sim::kernel::Kernel;

/// A listening socket that the machine lacked something for is tried again within this.
const LONGEST_PAUSE: u64 = 150_000;

impl Kernel {
    /// What listens is what tables want: those in force, and nothing else for longer than it takes
    /// to end. Once their steps have been carried out.
    pub fn check_listening(&self, in_force: &[SocketId], leaving: &BTreeSet<SocketId>) {
        for id in in_force {
            let socket = self.listening.get(id);
            let there = socket.is_some_and(|socket| !socket.ending || socket.followed);
            assert!(there, "{id:?} is in the table in force and has no socket: {socket:?}");
        }
        for (id, socket) in &self.listening {
            let known = in_force.contains(id) || leaving.contains(id);
            assert!(known, "{id:?} is in no table and has a socket: {socket:?}");
        }
    }

    /// What has stopped by itself goes on: at once, or, where the machine lacked something, soon.
    /// What accepts one connection at a time goes on when a limit has a place, and so does what is
    /// to do so from now on (`delaying`). `is_deaf`, `may_halt`: flows are on their way to another
    /// process, so clients are not heard, and sockets of flows may wait.
    pub fn check_armed(&self, delaying: &BTreeSet<SocketId>, is_deaf: bool, may_halt: bool) {
        for (id, socket) in self.listening.iter().filter(|(_, s)| !s.ending && !s.released) {
            let resting = self.now < socket.stopped + LONGEST_PAUSE;
            let waits = socket.one || delaying.contains(id) || is_deaf;
            assert!(socket.armed || waits || resting, "stopped for good: {id:?}");
        }
        for upstream in self.upstreams.values() {
            let resting = self.now < upstream.stopped + LONGEST_PAUSE;
            let halts = may_halt && upstream.halted;
            let goes_on = upstream.is_receiving() || resting || halts;
            assert!(goes_on, "stopped for good: {:?}", upstream.token);
        }
    }

    /// Nothing of the proxy's is left: no descriptor, pipe, buffer, nor anything in flight.
    pub fn check_empty(&self) {
        assert!(self.sessions.is_empty(), "sessions never closed: {:?}", self.sessions);
        assert!(self.upstreams.is_empty(), "upstream sockets never closed: {:?}", self.upstreams);
        assert!(self.promoted.is_empty(), "flows never demoted: {:?}", self.promoted);
        assert!(self.listening.is_empty(), "listening sockets never closed: {:?}", self.listening);
        assert!(self.buffers.is_empty(), "buffers never given back: {:?}", self.buffers);
        assert_eq!(self.pipes_used, 0, "pipes never given back");
    }

    /// Everything that needs no buffer, as of now, whatever is there.
    pub fn idle(&self) -> bool {
        self.sessions.is_empty() && self.upstreams.is_empty()
    }
}
