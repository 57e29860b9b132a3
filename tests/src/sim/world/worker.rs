//! The worker's loop.

use std::collections::BTreeSet;

use config_sync::table::routing::{Socket, SocketId};
use ringway::contract::Event;
use ringway::proxy::table_queue::Step;

use super::World;
use crate::sim::world::under_way::Hearing;

impl World {
    pub(super) fn worker_turn(&mut self, most: usize) {
        let now = self.kernel.now;
        self.turn.events.clear();
        self.turn.bytes.clear();
        self.before.clone_from(&self.in_force);
        self.settled.clone_from(&self.latest);
        self.kernel.reap(most, &mut self.turn);
        self.check.turn_begins(&self.turn, &self.kernel);
        self.settle(0);
        if let Some(next) = self.next_table.take() {
            self.read_records();
            self.apply_next(next);
            self.settle(self.turn.events.len());
        }
        self.hand_requests_over();
        self.carry_on_with_moves();
        self.settle(self.turn.events.len());
        self.carry_on_with_tables();
        let has_let_in = self.let_newcomers_in();
        self.proxy.expire(now, &mut self.ops);
        self.proxy.resume(now, &mut self.ops);
        self.end_turn();
        let deadline = self.proxy.next_deadline();
        assert!(
            deadline.is_none_or(|at| at == 0 || at > self.kernel.now),
            "a deadline is in the past after expire: {deadline:?} at {}",
            self.kernel.now
        );
        let moved = self.turn.events.iter().any(|(_, e)| matches!(e, Event::Moved { .. }));
        let is_idle = deadline == Some(0) && !moved && !has_let_in;
        self.idle_resumes = if is_idle { self.idle_resumes + 1 } else { 0 };
        assert!(self.idle_resumes < 3, "livelock: resumes that move nothing");
    }

    /// Some of what the tables hand over and ask for, as the worker does it.
    fn carry_on_with_tables(&mut self) {
        let steps = self.rng.between(1, self.habits.steps) as usize;
        let from = self.turn.events.len();
        for step in self.tables.some(steps) {
            match step {
                Step::Listen(id, transport, address) => self.kernel.listen(id, transport, address),
                Step::Op(token, op) => {
                    self.kernel.carry_out(&mut vec![(token, op)], &mut self.turn);
                }
            }
        }
        self.settle(from);
    }

    /// Lets clients in whose flows wait for their turn. Returns whether there were any.
    fn let_newcomers_in(&mut self) -> bool {
        let from = self.turn.events.len();
        let mut has_let_in = false;
        while let Some((token, event)) = self.proxy.newcomer(self.kernel.now) {
            if self.tables.is_stale(token, event) {
                continue;
            }
            has_let_in = true;
            let mut payload = Vec::new();
            let bytes = self.kernel.payload(event, &self.turn, &mut payload);
            self.proxy.let_in(self.kernel.now, (token, event), bytes, &mut self.ops);
            if self.habits.eager {
                self.carry_out();
            }
        }
        self.settle(from);
        has_let_in
    }

    fn carry_out(&mut self) {
        self.tables.defer(&mut self.ops);
        self.kernel.output.append(self.proxy.output());
        self.kernel.carry_out(&mut self.ops, &mut self.turn);
    }

    /// Gives the proxy the events from `from` on.
    fn handle_from(&mut self, from: usize) -> usize {
        let mut at = from;
        while let Some((token, event)) = self.turn.events.get(at).copied() {
            at += 1;
            if self.tables.is_stale(token, event) {
                continue;
            }
            let before = self.ops.len();
            let mut payload = Vec::new();
            let bytes = self.kernel.payload(event, &self.turn, &mut payload);
            self.proxy.handle(self.kernel.now, token, event, bytes, &mut self.ops);
            assert!(self.ops.len() - before <= 300, "livelock: {event:?} made too many ops");
            if self.habits.eager {
                self.carry_out();
            }
        }
        at
    }

    /// Gives the proxy the events from `from` on, carries out what it asks for, and hands direct
    /// events back, until there are none.
    pub(super) fn settle(&mut self, from: usize) {
        let mut handled = self.handle_from(from);
        for round in 0.. {
            assert!(round < 1_000, "livelock: a turn does not end");
            self.carry_out();
            if handled == self.turn.events.len() {
                break;
            }
            handled = self.handle_from(handled);
        }
    }

    pub(super) fn end_turn(&mut self) {
        self.settle(self.turn.events.len());
        let waiting = self.proxy.waiting_buffers();
        self.kernel.end_turn(waiting);
        let queues = self.model.backends.iter().flat_map(|backend| &backend.queue);
        let queued = queues.into_iter().any(|queue| queue.line.waiting() > 0);
        // Sessions that wait for a place within a limit are not looked at either.
        let queued = queued || self.check.may_delay;
        if !self.check.moves.may_pause(self.kernel.now) {
            let delayed = self.counters.byte_delays.get() > 0;
            let resumable = self.proxy.next_deadline() == Some(0);
            self.kernel.check_stalls(resumable, queued, delayed);
        }
        self.check.gauges(&self.kernel, &self.counters);
        self.read_records();
        if self.tables.is_empty() {
            let moves = &self.check.moves;
            let is_deaf = moves.hearing != Hearing::Hears;
            let may_halt = moves.may_pause(self.kernel.now);
            self.kernel.check_armed(&self.delaying(), is_deaf, may_halt);
            self.kernel.check_listening(&self.in_force, &self.leaving);
            self.kernel.check_promoted();
        }
    }

    /// Sockets of listeners that delay clients over their limit, in the latest table.
    fn delaying(&self) -> BTreeSet<SocketId> {
        let Some(table) = &self.latest else { return BTreeSet::new() };
        let delays = |socket: &&Socket| {
            let listener = socket.listeners.any().filter(|_| !socket.reads_hello);
            let limit = listener.and_then(|at| table.listeners[at].limit.as_ref());
            limit.is_some_and(|limit| limit.delays)
        };
        table.sockets.iter().filter(delays).map(|socket| socket.id).collect()
    }

    fn read_records(&mut self) {
        self.check.records(self.proxy.records(), &mut self.kernel);
        if let Some(from) = self.check.page.take()
            && !self.quiet
        {
            self.turn_the_page(from);
        }
        for id in self.check.unlistened.drain(..) {
            assert!(self.leaving.remove(&id), "Unlistened of {id:?} that was not leaving");
        }
    }
}
