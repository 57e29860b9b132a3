//! The worker's loop.

use std::collections::BTreeSet;

use config_sync::table::moving::MovingFlow;
use config_sync::table::request::{Of, What};
use config_sync::table::routing::{Socket, SocketId};
use ringway::contract::{Event, Token};
use ringway::proxy::table_queue::Step;

use super::World;
use crate::sim::world::process::{Command, token_of};
use crate::sim::world::upgrade::state::Upgrade;

impl World {
    pub(super) fn worker_turn(&mut self, most: usize) {
        let now = self.kernel.now;
        self.process.turn.events.clear();
        self.process.turn.bytes.clear();
        self.process.before.clone_from(&self.process.in_force);
        self.process.settled.clone_from(&self.process.latest);
        self.kernel.reap(most, &mut self.process.turn);
        self.process.check.turn_begins(&self.process.turn, &self.kernel);
        self.settle(0);
        if let Some(next) = self.process.next_table.take() {
            self.read_records();
            self.apply_next(next);
            self.settle(self.process.turn.events.len());
        }
        self.hand_requests_over();
        self.apply_commands();
        self.carry_on_with_tables();
        let has_let_in = self.let_newcomers_in();
        self.process.proxy.expire(now, &mut self.process.ops);
        self.process.proxy.resume(now, &mut self.process.ops);
        self.end_turn();
        for reply in std::mem::take(&mut self.process.replies) {
            self.replied(reply);
        }
        let deadline = self.process.proxy.next_deadline();
        assert!(
            deadline.is_none_or(|at| at == 0 || at > self.kernel.now),
            "a deadline is in the past after expire: {deadline:?} at {}",
            self.kernel.now
        );
        let moved = self.process.turn.events.iter().any(|(_, e)| matches!(e, Event::Moved { .. }));
        let is_idle = deadline == Some(0) && !moved && !has_let_in;
        self.process.idle_resumes = if is_idle { self.process.idle_resumes + 1 } else { 0 };
        assert!(self.process.idle_resumes < 3, "livelock: resumes that move nothing");
    }

    /// What the control thread has asked for.
    fn apply_commands(&mut self) {
        let now = self.kernel.now;
        while let Some(command) = self.process.next_command(now) {
            // What was asked before may be answered while the command is carried out.
            let from = self.process.turn.events.len();
            match command {
                Command::Table(next) => {
                    self.read_records();
                    self.apply_next(next);
                }
                Command::Ask(request) => {
                    match &request.what {
                        What::GoOn(handles) => {
                            let sessions = handles.iter().filter(|of| of.of == Of::Sessions);
                            sessions.for_each(|of| self.kernel.thaw(token_of(*of)));
                        }
                        What::Deafen(_) => self.process.is_deaf = true,
                        What::Hear { .. } => self.process.is_deaf = false,
                        _ => {}
                    }
                    self.process.proxy.ask(now, request, &mut self.process.ops);
                }
                Command::Adopt(number, sessions) => {
                    let arrived: Vec<u32> = sessions.iter().map(|(_, at)| *at).collect();
                    self.process.proxy.adopt(now, number, sessions, &mut self.process.ops);
                    self.carry_out();
                    arrived.into_iter().for_each(|at| self.kernel.drop_arrival(at));
                }
                Command::AdoptFlows(number, flows) => self.adopt_flows(number, flows),
            }
            self.settle(from);
        }
    }

    fn adopt_flows(&mut self, number: u64, flows: Vec<(MovingFlow, Option<Token>)>) {
        let now = self.kernel.now;
        let arrivals = flows.into_iter().map(|(flow, socket)| {
            // An endpoint that no table of this process had is gone from now on.
            self.process.present.entry(flow.endpoint).or_insert(now);
            (flow, socket.and_then(|socket| self.kernel.lend_upstream(socket)))
        });
        let arrivals = arrivals.collect();
        self.process.proxy.adopt_flows(now, number, arrivals, &mut self.process.ops);
    }

    /// Whether sessions may stand still for the sake of a move.
    fn may_pause(&self) -> bool {
        let number = self.process.number;
        let keeps_still = |upgrade: &Upgrade| upgrade.keeps_still(number);
        self.upgrades.iter().any(keeps_still)
            || self.process.has_commands()
            || self.kernel.now <= self.process.pausing
    }

    /// Some of what the tables hand over and ask for, as the worker does it.
    fn carry_on_with_tables(&mut self) {
        let steps = self.rng.between(1, self.habits.steps) as usize;
        let from = self.process.turn.events.len();
        for step in self.process.tables.some(steps) {
            match step {
                Step::Listen(id, transport, address) => self.kernel.listen(id, transport, address),
                Step::Op(token, op) => {
                    self.kernel.carry_out(&mut vec![(token, op)], &mut self.process.turn);
                }
            }
        }
        self.settle(from);
    }

    /// Lets clients in whose flows wait for their turn. Returns whether there were any.
    fn let_newcomers_in(&mut self) -> bool {
        let from = self.process.turn.events.len();
        let mut has_let_in = false;
        while let Some((token, event)) = self.process.proxy.newcomer(self.kernel.now) {
            if self.process.tables.is_stale(token, event) {
                continue;
            }
            has_let_in = true;
            let mut payload = Vec::new();
            let bytes = self.kernel.payload(event, &self.process.turn, &mut payload);
            self.process.proxy.let_in(
                self.kernel.now,
                (token, event),
                bytes,
                &mut self.process.ops,
            );
            if self.habits.eager {
                self.carry_out();
            }
        }
        self.settle(from);
        has_let_in
    }

    fn carry_out(&mut self) {
        self.process.tables.defer(&mut self.process.ops);
        self.kernel.output.append(self.process.proxy.output());
        self.kernel.carry_out(&mut self.process.ops, &mut self.process.turn);
    }

    /// Gives the proxy the events from `from` on.
    fn handle_from(&mut self, from: usize) -> usize {
        let mut at = from;
        while let Some((token, event)) = self.process.turn.events.get(at).copied() {
            at += 1;
            if self.process.tables.is_stale(token, event) {
                continue;
            }
            let before = self.process.ops.len();
            let mut payload = Vec::new();
            let bytes = self.kernel.payload(event, &self.process.turn, &mut payload);
            self.process.proxy.handle(self.kernel.now, token, event, bytes, &mut self.process.ops);
            assert!(
                self.process.ops.len() - before <= 300,
                "livelock: {event:?} made too many ops"
            );
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
            if handled == self.process.turn.events.len() {
                break;
            }
            handled = self.handle_from(handled);
        }
    }

    pub(super) fn end_turn(&mut self) {
        self.settle(self.process.turn.events.len());
        let waiting = self.process.proxy.waiting_buffers();
        self.kernel.end_turn(waiting);
        let queues = self.process.model.backends.iter().flat_map(|backend| &backend.queue);
        let queued = queues.into_iter().any(|queue| queue.line.waiting() > 0);
        // Sessions that wait for a place within a limit are not looked at either.
        let queued = queued || self.process.check.may_delay;
        self.process.check.gauges(&self.kernel, &self.process.counters);
        self.read_records();
        let may_pause = self.may_pause() || !self.process.replies.is_empty();
        if !may_pause {
            let delayed = self.process.counters.byte_delays.get() > 0;
            let resumable = self.process.proxy.next_deadline() == Some(0);
            self.kernel.check_stalls(resumable, queued, delayed);
        }
        if self.process.tables.is_empty() {
            let is_deaf = self.process.is_deaf;
            self.kernel.check_armed(&self.delaying(), is_deaf, may_pause);
            self.kernel.check_listening(&self.process.in_force, &self.process.leaving);
            self.kernel.check_promoted();
        }
    }

    /// Sockets of listeners that delay clients over their limit, in the latest table.
    fn delaying(&self) -> BTreeSet<SocketId> {
        let Some(table) = &self.process.latest else { return BTreeSet::new() };
        let delays = |socket: &&Socket| {
            let listener = socket.listeners.any().filter(|_| !socket.reads_hello);
            let limit = listener.and_then(|at| table.listeners[at].limit.as_ref());
            limit.is_some_and(|limit| limit.delays)
        };
        table.sockets.iter().filter(delays).map(|socket| socket.id).collect()
    }

    fn read_records(&mut self) {
        let Self { process, kernel, clients, .. } = self;
        let replies = process.check.records(process.proxy.records(), kernel, clients);
        process.replies.extend(replies);
        if let Some(from) = self.process.check.page.take()
            && !self.quiet
        {
            self.turn_the_page(from);
        }
        for id in self.process.check.unlistened.drain(..) {
            assert!(self.process.leaving.remove(&id), "Unlistened of {id:?} that was not leaving");
        }
    }
}
