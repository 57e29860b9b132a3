//! Which processes live: each begins, drains or is killed, and ends.

use std::collections::BTreeSet;

use config_sync::table::routing::{Drain, SocketId};

use super::World;
use crate::sim::model::Model;
use crate::sim::world::process::{Command, Next, Process};

/// How much longer the end of a drain takes while other processes live: sessions are on offer to a
/// process that hangs, and sockets rest. Microseconds.
const LONGEST_END: u64 = 5_000_000;

impl World {
    /// Gives this process its turn.
    pub fn switch_to(&mut self, number: u32) {
        self.kernel.switch_to(number);
        if self.process.number != number {
            let other = self.others.iter_mut().find(|of| of.number == number);
            std::mem::swap(&mut self.process, other.expect("the process lives"));
        }
    }

    pub fn lives(&self, number: u32) -> bool {
        self.process.number == number || self.others.iter().any(|of| of.number == number)
    }

    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        std::iter::once(&self.process).chain(&self.others)
    }

    /// A process begins, which knows nothing of the others yet.
    pub fn begin_process(&mut self, model: Model) -> Process {
        let number = self.kernel.begin_process();
        let (seed, most_new) = (self.asks.number(), self.asks.between(1, 4) as u32);
        Process::new(number, model, seed, most_new)
    }

    /// The process drains from now on. Another one goes on with some sockets.
    pub fn drains(&mut self, at: u64, drain: Drain, handed_over: BTreeSet<SocketId>) {
        self.process.command(at, Command::Table(Next::Drain(drain, handed_over)));
        self.drains_until(drain);
    }

    pub fn drains_until(&mut self, drain: Drain) {
        // The kernel's own delays, a sweep of the flows, steps of the timers, and sessions that are
        // on offer to a process that does not answer.
        let is_alone = self.upgrades.is_empty() && self.others.is_empty();
        let longest = if is_alone { 0 } else { LONGEST_END };
        let slack = 1_500_000 + 4 * self.kernel.faults.lag + longest;
        let until = self.kernel.now + 1000 * u64::from(drain.timeout + drain.spread) + slack;
        self.process.drain = Some(until);
    }

    /// No worker had time for a while, so what drains begins to end only now.
    pub fn drains_were_late(&mut self) {
        let least = self.kernel.now + LONGEST_END;
        for process in std::iter::once(&mut self.process).chain(&mut self.others) {
            if let Some(until) = &mut process.drain {
                *until = least.max(*until);
            }
        }
    }

    /// Processes that have drained end.
    pub fn end_processes(&mut self) {
        self.switch_to(self.head);
        let now = self.kernel.now;
        for process in self.processes() {
            // Whoever drains may still be given what another one has.
            let is_given = self.upgrades.iter().any(|of| of.gives_to(process.number));
            let is_due = process.drain.is_some_and(|until| now > until) && !is_given;
            let is_late = is_due && !process.is_done();
            assert!(
                !is_late,
                "not drained within the deadline: {} sessions, {} flows, {} upstreams",
                process.counters.sessions.get(),
                process.counters.flows.get(),
                process.counters.upstreams.get(),
            );
        }
        while let Some(at) = self.others.iter().position(Process::is_done) {
            let process = self.others.swap_remove(at);
            self.kernel.switch_to(process.number);
            process.at_the_end(&mut self.kernel, &mut self.clients);
            self.kernel.switch_to(self.head);
            self.link_ends(process.number);
        }
    }

    /// The process is killed.
    pub fn kill(&mut self, number: u32) {
        self.switch_to(number);
        if self.kernel.trace {
            eprintln!("{:>10} process {number} is killed", self.kernel.now);
        }
        self.kernel.kill();
        let next = match self.others.pop() {
            Some(other) => other,
            None => {
                let model = self.process.model.of_next_process();
                self.begin_process(model)
            }
        };
        let dead = std::mem::replace(&mut self.process, next);
        self.kernel.switch_to(self.process.number);
        dead.check.killed(&dead.counters, &mut self.clients);
        for (_, command) in dead.commands {
            if let Command::Adopt(_, sessions) = command {
                sessions.into_iter().for_each(|(_, at)| self.kernel.drop_arrival(at));
            }
        }
        self.link_ends(number);
        if !self.lives(self.head) {
            self.find_head();
        }
    }

    /// The process that served is dead. Another one may be about to serve; or else one begins anew.
    pub fn find_head(&mut self) {
        let serves = |of: &&Process| of.drain.is_none();
        let next = self.processes().find(serves).map(|of| of.number);
        if let Some(next) = next {
            self.head = next;
            return;
        }
        let model = self.process.model.of_next_process();
        let next = self.begin_process(model);
        self.head = next.number;
        self.others.push(next);
    }
}
