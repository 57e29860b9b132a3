//! The conversations of all upgrades: they begin, go on word by word, and meet with faults.

use config_sync::table::request::{Handle, What};
use config_sync::table::routing::Drain;
use ringway::stats::records::Reply;

use crate::sim::coverage::{Fault, State};
use crate::sim::world::process::token_of;
use crate::sim::world::upgrade::state::{
    Giving, PATIENCE, Phase, Pipe, Stage, Taking, ToNew, ToOld, Upgrade,
};
use crate::sim::world::{Action, World};

/// More processes than these at once, and in all, teach nothing new.
const MOST_PROCESSES: usize = 4;
const MOST_IN_ALL: usize = 24;

impl World {
    /// Begins an upgrade, if one can begin now.
    pub fn upgrade(&mut self) {
        let undecided = self.upgrades.iter().any(Upgrade::is_undecided);
        let serves = self.process.number == self.head && self.process.drain.is_none();
        let is_settled = self.process.is_settled() && self.process.leaving.is_empty();
        let many =
            self.others.len() + 1 >= MOST_PROCESSES || self.kernel.processes() >= MOST_IN_ALL;
        if undecided || !serves || !is_settled || many || self.has_had_enough() {
            return;
        }
        let mut model = self.process.model.of_next_process();
        for socket in &mut model.sockets {
            socket.present = self.process.in_force.contains(&socket.id);
        }
        // The next configuration may be without one of them.
        if self.asks.per_mille(150) {
            let at = self.asks.below(model.sockets.len() as u64) as usize;
            model.sockets[at].present = false;
        }
        let mut next = self.begin_process(model);
        (next.is_heir, next.is_deaf) = (true, true);
        next.proxy.wait_for_flows();
        if self.upgrades.iter().any(|of| of.new == self.head) {
            self.kernel.coverage.hit(State::Parting, Fault::AnotherUpgrade);
        }
        if self.kernel.trace {
            eprintln!("{:>10} upgrade of {} by {}", self.kernel.now, self.head, next.number);
        }
        let mut upgrade = Upgrade::new(self.head, next.number, &mut self.asks);
        upgrade.word_is_heard(self.kernel.now, &mut self.asks);
        upgrade.giving.waits = Some(self.kernel.now + PATIENCE);
        self.upgrades.push(upgrade);
        self.others.push(next);
    }

    /// When something of an upgrade happens next, microseconds.
    pub fn next_of_upgrades(&self) -> Option<u64> {
        self.upgrades.iter().filter_map(Upgrade::next).min()
    }

    /// A moment from now, at which somebody gets to something.
    pub(super) fn soon(&mut self) -> u64 {
        self.kernel.now + self.asks.scale(1, 10_000)
    }

    pub(super) fn some_drain(&mut self) -> Drain {
        Drain { timeout: self.asks.scale(1, 3_000) as u32, spread: self.asks.scale(1, 500) as u32 }
    }

    /// What the control threads do.
    pub fn carry_on_with_upgrades(&mut self) {
        let now = self.kernel.now;
        for at in 0..self.upgrades.len() {
            let fates = self.upgrades[at].due.extract_if(.., |(due, _)| *due <= now);
            for (_, fault) in fates.collect::<Vec<_>>() {
                self.meets(at, fault);
            }
            let mut upgrade = std::mem::take(&mut self.upgrades[at]);
            self.carry_on_with(&mut upgrade);
            self.upgrades[at] = upgrade;
        }
        self.upgrades.retain(|upgrade| !upgrade.is_over());
    }

    fn carry_on_with(&mut self, upgrade: &mut Upgrade) {
        let now = self.kernel.now;
        self.new_one_may_be_ready(upgrade);
        if now >= upgrade.hangs_until
            && upgrade.taking.hears()
            && self.lives(upgrade.new)
            && let Some(heard) = upgrade.to_new.hear(now)
        {
            self.switch_to(upgrade.new);
            upgrade.word_is_heard(now, &mut self.asks);
            self.new_one_hears(upgrade, heard);
        }
        if self.lives(upgrade.old) {
            self.switch_to(upgrade.old);
            if let Some(heard) = upgrade.to_old.hear(now) {
                upgrade.word_is_heard(now, &mut self.asks);
                self.old_one_hears(upgrade, heard);
            } else if upgrade.giving.waits.is_some_and(|until| until <= now) {
                self.old_one_is_impatient(upgrade);
            } else if upgrade.giving.round.take_if(|at| *at <= now).is_some() {
                self.ask_for_sessions(upgrade);
            }
        }
    }

    /// Something goes wrong.
    fn meets(&mut self, at: usize, fault: Fault) {
        let upgrade = &mut self.upgrades[at];
        let (old, new, state) = (upgrade.old, upgrade.new, upgrade.state());
        let killed = match fault {
            Fault::NewDied => new,
            Fault::OldDied => old,
            Fault::NewHung => {
                upgrade.hangs_until = self.kernel.now + self.asks.between(PATIENCE, 2 * PATIENCE);
                self.kernel.coverage.hit(state, fault);
                return;
            }
            _ => {
                let claims = matches!(upgrade.taking.phase, Phase::Starting | Phase::Claiming);
                if claims && upgrade.taking.is_busy() {
                    upgrade.due.push((self.kernel.now + 1_000, fault));
                } else if claims && self.lives(new) {
                    self.kernel.coverage.hit(state, fault);
                    let mut upgrade = std::mem::take(&mut self.upgrades[at]);
                    self.switch_to(new);
                    upgrade.to_old.say(self.kernel.now, ToOld::Refused);
                    let begins = upgrade.taking.phase == Phase::Starting;
                    if !begins {
                        self.is_not_ours(&mut upgrade);
                    }
                    self.upgrades[at] = upgrade;
                    if begins {
                        self.kill(new);
                    }
                }
                return;
            }
        };
        if self.lives(killed) {
            // Afterwards it is known who serves.
            if self.upgrades[at].giving.stage != Stage::Over {
                self.kernel.coverage.hit(state, fault);
            }
            self.kill(killed);
        }
    }

    /// A process has ended, and with it its part of all conversations.
    pub fn link_ends(&mut self, number: u32) {
        let now = self.kernel.now;
        let mut lost = Vec::new();
        for upgrade in &mut self.upgrades {
            if upgrade.old == number {
                upgrade.to_old = Pipe { hears: false, ..Pipe::default() };
                upgrade.to_new.end(now + self.asks.scale(1, 10_000));
                upgrade.giving = Giving::over();
            }
            if upgrade.new == number {
                let words = std::mem::take(&mut upgrade.to_new.words);
                lost.extend(words.into_iter().map(|(_, word)| word));
                upgrade.to_new.hears = false;
                upgrade.to_old.end(now + self.asks.scale(1, 10_000));
                upgrade.taking = Taking::over();
            }
        }
        for word in lost {
            self.is_lost(word);
        }
    }

    /// Nobody hears this word, so what comes with it is closed.
    pub(super) fn is_lost(&mut self, word: ToNew) {
        if let ToNew::Sessions(sessions) = word {
            sessions.into_iter().for_each(|(_, incoming)| self.kernel.drop_arrival(incoming));
        }
    }

    /// A worker has answered.
    pub fn replied(&mut self, reply: Reply) {
        let number = self.process.number;
        let of_giving = |of: &Upgrade| of.old == number && of.giving.asked == Some(reply.number);
        let of_taking = |of: &Upgrade| of.new == number && of.taking.asked(reply.number);
        for offered in &reply.offered {
            self.kernel.freeze(token_of(offered.handle));
            self.process.check.asked.moved.insert(offered.handle);
        }
        for offered in &reply.flows {
            self.process.check.asked.moved.insert(offered.handle);
        }
        if let Some(at) = self.upgrades.iter().position(of_giving) {
            let mut upgrade = std::mem::take(&mut self.upgrades[at]);
            upgrade.giving.asked = None;
            self.old_ones_worker_replied(&mut upgrade, reply);
            self.upgrades[at] = upgrade;
        } else if let Some(at) = self.upgrades.iter().position(of_taking) {
            let mut upgrade = std::mem::take(&mut self.upgrades[at]);
            self.new_ones_worker_replied(&mut upgrade, reply);
            self.upgrades[at] = upgrade;
        } else {
            // The upgrade has failed in the meantime.
            let settled = reply.settled.into_iter().map(|(handle, _)| handle);
            let flows = reply.flows.into_iter().map(|of| of.handle);
            let sessions = reply.offered.into_iter().map(|of| of.handle);
            self.decide(settled.chain(flows).chain(sessions).collect(), true);
        }
    }

    /// The process whose turn it is gets to know whose these are.
    pub(super) fn decide(&mut self, handles: Vec<Handle>, is_ours: bool) {
        if handles.is_empty() {
            return;
        }
        let what = match is_ours {
            true => What::GoOn(handles.into()),
            false => What::Forget(handles.into()),
        };
        let at = self.soon();
        self.process.ask(at, what);
    }

    pub fn next_upgrade(&mut self) {
        self.upgrade();
        let delay = self.asks.scale(1_000, 3_000_000);
        self.after(delay, Action::Upgrade);
    }
}
