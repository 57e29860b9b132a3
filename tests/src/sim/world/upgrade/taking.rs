//! The new process's part.

use std::collections::BTreeSet;

use config_sync::table::request::What;
use ringway::stats::records::Reply;

use crate::sim::world::World;
use crate::sim::world::process::Command;
use crate::sim::world::upgrade::state::{Heard, Phase, ToNew, ToOld, Upgrade};

impl World {
    /// Once the new process has its first table, it says so.
    pub(super) fn new_one_may_be_ready(&mut self, upgrade: &mut Upgrade) {
        if upgrade.taking.phase != Phase::Starting || self.kernel.now < upgrade.hangs_until {
            return;
        }
        let new = self.processes().find(|of| of.number == upgrade.new);
        let Some(new) = new.filter(|of| of.is_settled()) else { return };
        let taken: BTreeSet<_> = new.in_force.iter().copied().collect();
        self.switch_to(upgrade.new);
        upgrade.taking.phase = Phase::Claiming;
        let at = self.soon();
        if !upgrade.to_old.say(at, ToOld::Ready(taken)) {
            self.is_orphaned_or_not_ours(upgrade);
        }
    }

    pub(super) fn new_one_hears(&mut self, upgrade: &mut Upgrade, heard: Heard<ToNew>) {
        match (upgrade.taking.phase, heard) {
            (Phase::Claiming, Heard::Word(ToNew::Flows(flows))) => {
                let listens = |id| self.process.in_force.contains(&id);
                let wanted: Vec<_> = flows
                    .iter()
                    .map(|(flow, _)| listens(flow.socket) && !self.asks.per_mille(50))
                    .collect();
                let flows = flows.into_iter().zip(&wanted).filter(|(_, wanted)| **wanted);
                let flows = flows.map(|((flow, socket), _)| {
                    // Sometimes no file is left for the socket.
                    (flow, (!self.asks.per_mille(100)).then_some(socket))
                });
                let flows = flows.collect();
                let (at, number) = (self.soon(), self.process.number_of_request());
                self.process.command(at, Command::AdoptFlows(number, flows));
                upgrade.taking.asked = Some((number, wanted));
            }
            (Phase::Claiming, Heard::Word(ToNew::Figures(figures))) => {
                upgrade.taking.figures.extend(figures);
            }
            (Phase::Claiming, Heard::Word(ToNew::Yours)) => {
                let at = self.soon();
                match upgrade.to_old.say(at, ToOld::Mine) {
                    true => self.is_alone(upgrade),
                    false => self.is_orphaned_or_not_ours(upgrade),
                }
            }
            (Phase::Ours, Heard::Word(ToNew::Sessions(sessions))) => {
                let wanted: Vec<_> = sessions.iter().map(|_| !self.asks.per_mille(50)).collect();
                let mut adopted = Vec::new();
                for (session, wanted) in sessions.into_iter().zip(&wanted) {
                    match wanted {
                        true => adopted.push(session),
                        false => self.kernel.drop_arrival(session.1),
                    }
                }
                let (at, number) = (self.soon(), self.process.number_of_request());
                self.process.command(at, Command::Adopt(number, adopted));
                upgrade.taking.asked = Some((number, wanted));
            }
            (Phase::Ours, Heard::End | Heard::Word(ToNew::Refused)) => {
                upgrade.taking.phase = Phase::Over;
            }
            (Phase::Claiming, Heard::Word(ToNew::Refused)) => self.is_not_ours(upgrade),
            (Phase::Claiming, Heard::End) => self.is_orphaned_or_not_ours(upgrade),
            (Phase::Over, Heard::Word(word)) => self.is_lost(word),
            (Phase::Over, Heard::End) => {}
            (phase, word) => panic!("{word:?} out of order: {phase:?}"),
        }
    }

    pub(super) fn new_ones_worker_replied(&mut self, upgrade: &mut Upgrade, reply: Reply) {
        let Some((_, mut wanted)) = upgrade.taking.asked.take() else { return };
        let mut handles = reply.adopted.into_iter();
        let mut adopted = Vec::new();
        for wanted in wanted.iter_mut().filter(|wanted| **wanted) {
            let handle = handles.next().flatten();
            *wanted = handle.is_some();
            adopted.extend(handle);
        }
        self.process.check.asked.moved.extend(adopted.iter().copied());
        self.process.adopted += adopted.len() as u32;
        let at = self.soon();
        match upgrade.taking.phase {
            Phase::Claiming => {
                upgrade.taking.arrived.extend(adopted);
                if !upgrade.to_old.say(at, ToOld::Adopted(wanted)) {
                    self.is_orphaned_or_not_ours(upgrade);
                }
            }
            _ => {
                // If the old process does not hear it, the sessions are still its own, unless it
                // has died before it went on with them.
                let is_told = upgrade.to_old.say(at, ToOld::Adopted(wanted));
                let are_ours = is_told || self.is_orphan(upgrade);
                self.moved.0 += if are_ours { adopted.len() as u64 } else { 0 };
                self.decide(adopted, are_ours);
            }
        }
    }

    /// The old process does not hear what this one says.
    fn is_orphaned_or_not_ours(&mut self, upgrade: &mut Upgrade) {
        match self.is_orphan(upgrade) {
            true => self.is_orphaned(upgrade),
            false => self.is_not_ours(upgrade),
        }
    }

    /// Whether the old process has died, and has not said before that all is its own.
    fn is_orphan(&self, upgrade: &Upgrade) -> bool {
        let refuses = |(_, word): &(u64, ToNew)| matches!(word, ToNew::Refused);
        !self.lives(upgrade.old) && !upgrade.to_new.words.iter().any(refuses)
    }

    /// The old process has died while both served, so this one goes on alone.
    fn is_orphaned(&mut self, upgrade: &mut Upgrade) {
        self.is_alone(upgrade);
        upgrade.taking.phase = Phase::Over;
    }

    fn is_alone(&mut self, upgrade: &mut Upgrade) {
        let taking = &mut upgrade.taking;
        taking.phase = Phase::Ours;
        let arrived = std::mem::take(&mut taking.arrived).into_iter();
        let mut left: Vec<_> = arrived.map(Some).collect();
        let mut own = Vec::new();
        for (number, figures) in std::mem::take(&mut taking.figures) {
            own.extend(left[number].take().map(|handle| (handle, figures)));
        }
        self.moved.1 += own.len() as u64;
        let at = self.soon();
        if !own.is_empty() {
            self.process.ask(at, What::Own(own.into()));
        }
        self.decide(left.into_iter().flatten().collect(), false);
        let at = self.soon();
        self.process.ask(at, What::Hear { only: None });
        if !self.lives(upgrade.old) {
            self.head = self.process.number;
        }
    }

    /// The take-over has failed. This process serves what it has accepted, and ends.
    pub(super) fn is_not_ours(&mut self, upgrade: &mut Upgrade) {
        let now = self.kernel.now;
        let taking = &mut upgrade.taking;
        taking.phase = Phase::Over;
        let arrived = std::mem::take(&mut taking.arrived);
        upgrade.to_new.hears = false;
        let words = std::mem::take(&mut upgrade.to_new.words);
        words.into_iter().for_each(|(_, word)| self.is_lost(word));
        upgrade.to_old.end(now + self.asks.scale(1, 10_000));
        self.decide(arrived, false);
        let all: BTreeSet<_> = self.process.in_force.iter().copied().collect();
        let drain = self.some_drain();
        let at = self.soon();
        self.drains(at, drain, all);
        if self.head == self.process.number {
            self.find_head();
        }
    }
}
