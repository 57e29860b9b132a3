//! What must hold between turns, and at the end.

use std::collections::BTreeSet;

use config_sync::table::routing::SocketId;

use crate::sim::kernel::Kernel;
use crate::sim::kernel::process::of_all;

/// A listening socket that the machine lacked something for is tried again within this.
const LONGEST_PAUSE: u64 = 150_000;

impl Kernel {
    /// What listens is what tables want: those in force, and nothing else for longer than it takes
    /// to end. Once their steps have been carried out.
    pub fn check_listening(&self, in_force: &[SocketId], leaving: &BTreeSet<SocketId>) {
        for id in in_force {
            let socket = self.listening.get(&self.descriptor(*id));
            let there = socket.is_some_and(|socket| !socket.ending || socket.followed);
            assert!(there, "{id:?} is in the table in force and has no socket: {socket:?}");
        }
        for (id, socket) in self.listening.iter().filter(|(id, _)| self.is_here(id.0)) {
            let id = &of_all(*id);
            let known = in_force.contains(id) || leaving.contains(id);
            assert!(known, "{id:?} is in no table and has a socket: {socket:?}");
        }
    }

    /// What has stopped by itself goes on: at once, or, where the machine lacked something, soon.
    /// What accepts one connection at a time goes on when a limit has a place, and so does what is
    /// to do so from now on (`delaying`). `is_deaf`, `may_halt`: flows are on their way to another
    /// process, so clients are not heard, and sockets of flows may wait.
    pub fn check_armed(&self, delaying: &BTreeSet<SocketId>, is_deaf: bool, may_halt: bool) {
        let open = self.listening.iter().filter(|(_, s)| !s.ending && !s.released);
        for (id, socket) in open.filter(|(id, _)| self.is_here(id.0)) {
            let id = &of_all(*id);
            let resting = self.now < socket.stopped + LONGEST_PAUSE;
            let waits = socket.one || delaying.contains(id) || is_deaf;
            assert!(socket.armed || waits || resting, "stopped for good: {id:?}");
        }
        for upstream in self.upstreams.values().filter(|of| self.is_here(of.token.slot)) {
            let resting = self.now < upstream.stopped + LONGEST_PAUSE;
            let halts = may_halt && upstream.halted;
            let goes_on = upstream.is_receiving() || resting || halts;
            assert!(goes_on, "stopped for good: {:?}", upstream.token);
        }
    }

    /// The process ends by itself: nothing of it is left, no descriptor, pipe, buffer, nor anything
    /// in flight.
    pub fn end_process(&mut self) {
        self.forget_pending();
        let has = |slot: &u32| self.is_here(*slot);
        assert!(!self.sessions.keys().any(has), "sessions never closed: {:?}", self.sessions);
        let upstreams = &self.upstreams;
        assert!(!upstreams.keys().any(has), "upstream sockets never closed: {upstreams:?}");
        assert!(!self.promoted.keys().any(has), "flows never demoted: {:?}", self.promoted);
        let listening = &self.listening;
        let listens = listening.keys().any(|id| self.is_here(id.0));
        assert!(!listens, "listening sockets never closed: {listening:?}");
        let ring = self.own();
        assert!(ring.buffers.is_empty(), "buffers never given back: {:?}", ring.buffers);
        assert_eq!(ring.pipes_used, 0, "pipes never given back");
    }

    /// Everything that needs no buffer, as of now, whatever is there.
    pub fn idle(&self) -> bool {
        self.sessions.is_empty() && self.upstreams.is_empty()
    }
}
