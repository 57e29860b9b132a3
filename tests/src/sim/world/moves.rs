//! Hands sessions and flows from one process to another, as an upgrade does. The world has one
//! proxy, which gives them to itself: each goes from one slot to another, and each step of that
//! comes late, fails, or comes before the other one's. While flows go, the proxy hears no client.

use config_sync::table::request::{Handle, Of, Request, What};
use ringway::contract::{Kind, Token};
use ringway::proxy::parting::LONGEST_EMPTYING;
use ringway::stats::records::Reply;

use super::World;
use crate::sim::world::under_way::{Hearing, Task};

fn token(handle: Handle) -> Token {
    Token { kind: Kind::Session, slot: handle.slot, generation: handle.generation }
}

impl World {
    /// Wants sessions or flows for another process.
    pub(super) fn part(&mut self) {
        let moves = &mut self.check.moves;
        if moves.asked.is_some() || moves.hearing != Hearing::Hears {
            return;
        }
        moves.pausing = self.kernel.now + 2 * LONGEST_EMPTYING;
        if self.asks.per_mille(500) {
            let number = moves.number();
            moves.hearing = Hearing::Stops(number);
            let what = What::Deafen(self.in_force.clone().into());
            return self.proxy.ask(self.kernel.now, Request { number, what }, &mut self.ops);
        }
        self.part_some(Of::Sessions, 16);
    }

    fn part_some(&mut self, of: Of, most: u64) {
        let number = self.check.moves.number();
        self.check.moves.asked = Some(number);
        let most = self.asks.between(1, most) as u32;
        let what = What::Part { of, from: self.asks.below(4) as u32, most };
        self.proxy.ask(self.kernel.now, Request { number, what }, &mut self.ops);
    }

    pub(super) fn carry_on_with_moves(&mut self) {
        self.carry_on_with_tasks();
        let moves = &mut self.check.moves;
        if moves.hearing == Hearing::Deaf && !moves.is_moving() {
            moves.hearing = Hearing::Hears;
            let request = Request { number: moves.number(), what: What::Hear { only: None } };
            self.proxy.ask(self.kernel.now, request, &mut self.ops);
        }
    }

    fn carry_on_with_tasks(&mut self) {
        for reply in std::mem::take(&mut self.check.moves.replies) {
            self.moves_replied(reply);
        }
        let now = self.kernel.now;
        let due = self.check.moves.due.extract_if(.., |(at, _)| *at <= now);
        let mut due: Vec<_> = due.map(|(_, task)| task).collect();
        while let Some(task) = due.pop() {
            self.move_on(task);
            self.settle(self.turn.events.len());
        }
    }

    fn moves_replied(&mut self, reply: Reply) {
        let now = self.kernel.now;
        let moves = &mut self.check.moves;
        if moves.hearing == Hearing::Stops(reply.number) {
            moves.hearing = Hearing::Deaf;
            return self.part_some(Of::Flows, 64);
        }
        if moves.asked.take_if(|number| *number == reply.number).is_some() {
            moves.pausing = now + 2 * LONGEST_EMPTYING;
            for offered in reply.offered {
                self.kernel.freeze(token(offered.handle));
                self.check.asked.moved.insert(offered.handle);
                let task = Task::Offered(offered.handle, Box::new(offered.moving));
                self.later(task);
            }
            for offered in reply.flows {
                self.check.asked.moved.insert(offered.handle);
                self.check.moves.upstreams.insert(offered.handle, offered.upstream);
                let task = Task::OfferedFlow(offered.handle, Box::new(offered.moving));
                self.later(task);
            }
            return;
        }
        let old = moves.adopting.remove(&reply.number).expect("an answer to an adoption");
        match reply.adopted.first().and_then(Option::as_ref) {
            Some(new) => {
                moves.adopted += 1;
                moves.flows += u64::from(new.of == Of::Flows);
                self.check.asked.moved.insert(*new);
                self.later(Task::Adopted { old, new: *new });
            }
            None => self.later(Task::GoOn(old)),
        }
    }

    fn later(&mut self, task: Task) {
        let at = self.kernel.now + self.asks.scale(1, 20_000);
        self.check.moves.due.push((at, task));
    }

    fn move_on(&mut self, task: Task) {
        let now = self.kernel.now;
        let (handle, is_ours) = match task {
            Task::Offered(old, _) if self.asks.per_mille(250) => {
                return self.later(Task::GoOn(old));
            }
            Task::Offered(old, moving) => {
                let number = self.check.moves.number();
                self.check.moves.adopting.insert(number, old);
                let incoming = self.kernel.lend(token(old));
                self.proxy.adopt(now, number, vec![(*moving, incoming)], &mut self.ops);
                return;
            }
            Task::OfferedFlow(old, _) if self.asks.per_mille(250) => {
                return self.later(Task::GoOn(old));
            }
            Task::OfferedFlow(old, moving) => {
                let number = self.check.moves.number();
                self.check.moves.adopting.insert(number, old);
                let socket = self.check.moves.upstreams[&old];
                // Sometimes no file is left for the socket.
                let has_room = !self.asks.per_mille(100);
                let incoming = has_room.then(|| self.kernel.lend_upstream(socket));
                let arrivals = vec![(*moving, incoming)];
                self.proxy.adopt_flows(now, number, arrivals, &mut self.ops);
                return;
            }
            Task::Adopted { old, new } if self.asks.per_mille(750) => {
                // Neither process knows when the other one does its part.
                self.later(Task::Forget(old));
                return self.later(Task::GoOn(new));
            }
            Task::Adopted { old, new } => {
                match old.of {
                    Of::Sessions => self.kernel.give_back(token(old)),
                    Of::Flows => {
                        self.kernel.give_back_upstream(self.check.moves.upstreams[&old]);
                    }
                }
                self.later(Task::GoOn(old));
                return self.later(Task::Forget(new));
            }
            Task::GoOn(handle) => {
                if handle.of == Of::Sessions {
                    self.kernel.thaw(token(handle));
                }
                (handle, true)
            }
            Task::Forget(handle) => (handle, false),
        };
        let handles = Box::new([handle]);
        let what = if is_ours { What::GoOn(handles) } else { What::Forget(handles) };
        let number = self.check.moves.number();
        self.proxy.ask(now, Request { number, what }, &mut self.ops);
    }
}
