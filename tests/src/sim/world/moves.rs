//! Hands sessions and flows from one process to another, as an upgrade does. The world has one
//! proxy, which gives them to itself: each goes from one slot to another, and each step of that
//! comes late, fails, or comes before the other one's. Flows go on after they were announced, until
//! the proxy hears no client any more.

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
        let number = moves.number();
        moves.asked = Some(number);
        let from = self.asks.below(4) as u32;
        let what = match self.asks.per_mille(500) {
            true => {
                let (most, again) = (self.asks.between(1, 64) as u32, self.asks.per_mille(300));
                What::Announce { from, most, again }
            }
            false => What::Part { from, most: self.asks.between(1, 16) as u32 },
        };
        self.request(number, what);
    }

    fn request(&mut self, number: u64, what: What) {
        self.proxy.ask(self.kernel.now, Request { number, what }, &mut self.ops);
    }

    pub(super) fn carry_on_with_moves(&mut self) {
        self.carry_on_with_tasks();
        let moves = &mut self.check.moves;
        if moves.is_moving() {
            return;
        }
        match moves.hearing {
            Hearing::Hears if !moves.announced.is_empty() => {
                let number = moves.number();
                match self.asks.below(8) {
                    0 => return self.give_announced_up(),
                    1..=3 => return self.later(Task::Wait),
                    _ => {}
                }
                moves.hearing = Hearing::Stops(number);
                self.request(number, What::Deafen(self.in_force.clone().into()));
            }
            Hearing::Hears | Hearing::Stops(_) => {}
            Hearing::Deaf => {
                moves.hearing = Hearing::Hears;
                let number = moves.number();
                self.request(number, What::Hear { only: None });
            }
        }
    }

    /// The other process fails before anything stands still.
    fn give_announced_up(&mut self) {
        for (old, new) in std::mem::take(&mut self.check.moves.announced) {
            self.later(Task::GoOn(old));
            self.later(Task::Forget(new));
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
            let number = moves.number();
            moves.settling = Some(number);
            return self.request(number, What::Settle);
        }
        if moves.settling.take_if(|number| *number == reply.number).is_some() {
            return self.have_settled(reply);
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
                let task = Task::AnnouncedFlow(offered.handle, Box::new(offered.moving));
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
                if new.of == Of::Flows {
                    // The flow was given another socket, and is announced again.
                    if let Some(before) = self.check.moves.announced.insert(old, *new) {
                        self.later(Task::Forget(before));
                    }
                    return;
                }
                self.later(Task::Adopted { old, new: *new });
            }
            None => self.later(Task::GoOn(old)),
        }
    }

    /// Flows stand still. Those that do not, although they were announced, have ended, have another
    /// socket, or stay.
    fn have_settled(&mut self, reply: Reply) {
        let mut announced = std::mem::take(&mut self.check.moves.announced);
        for (old, figures) in reply.settled {
            let upstream = self.check.moves.upstreams[&old];
            self.kernel.has_settled(upstream, figures.promoted);
            let new = announced.remove(&old).expect("a flow settles that nobody knows");
            self.later(Task::Settled { old, new, figures });
        }
        for new in announced.into_values() {
            self.later(Task::Forget(new));
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
            Task::AnnouncedFlow(old, _) if self.asks.per_mille(250) => {
                return self.later(Task::GoOn(old));
            }
            Task::AnnouncedFlow(old, moving) => {
                let number = self.check.moves.number();
                self.check.moves.adopting.insert(number, old);
                let socket = self.check.moves.upstreams[&old];
                // Sometimes no file is left for the socket.
                let has_room = !self.asks.per_mille(100);
                let incoming = has_room.then(|| self.kernel.lend_upstream(socket)).flatten();
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
                self.kernel.give_back(token(old));
                self.later(Task::GoOn(old));
                return self.later(Task::Forget(new));
            }
            Task::Settled { old, new, figures } if self.asks.per_mille(750) => {
                self.later(Task::Forget(old));
                return self.later(Task::Own(new, figures));
            }
            Task::Settled { old, new, .. } => {
                self.later(Task::GoOn(old));
                return self.later(Task::Forget(new));
            }
            Task::Wait => return,
            Task::Own(new, figures) => {
                let number = self.check.moves.number();
                return self.request(number, What::Own(Box::new([(new, figures)])));
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
