//! The old process's part: flows first, all at once, and then sessions, some at a time.

use config_sync::table::request::{Handle, What};
use ringway::proxy::parting::LONGEST_EMPTYING;
use ringway::stats::records::Reply;

use crate::sim::coverage::Fault;
use crate::sim::world::World;
use crate::sim::world::process::token_of;
use crate::sim::world::upgrade::state::{Giving, Heard, PATIENCE, Stage, ToNew, ToOld, Upgrade};

/// Passes over all slots for flows to announce, and microseconds for which flows are announced
/// while clients are not heard.
const MOST_PASSES: u32 = 4;
const LONGEST_WAIT: u64 = 1_000_000;

impl World {
    pub(super) fn old_one_hears(&mut self, upgrade: &mut Upgrade, heard: Heard<ToOld>) {
        let giving = &mut upgrade.giving;
        giving.waits = None;
        match (giving.stage, heard) {
            (Stage::Over, _) => {}
            (Stage::Starting, Heard::Word(ToOld::Ready(taken))) => {
                giving.taken = taken;
                let udp = self.process.model.udp_sockets();
                giving.taken.retain(|id| self.process.in_force.contains(id));
                if !giving.taken.iter().any(|id| udp.contains(id)) {
                    return self.says_yours(upgrade);
                }
                (giving.stage, giving.from) = (Stage::Announcing, Some(0));
                self.ask_for_flows(upgrade);
            }
            (Stage::Announcing | Stage::Rest, Heard::Word(ToOld::Adopted(adopted))) => {
                let offered = std::mem::take(&mut giving.offered);
                let (gone, stay) = divide(offered, &adopted);
                giving.found += gone.len() as u32;
                for handle in gone {
                    giving.numbers.insert(handle, giving.count);
                    giving.count += 1;
                }
                self.decide(stay, true);
                self.ask_for_flows(upgrade);
            }
            (Stage::Deciding, Heard::Word(ToOld::Mine)) => self.hands_over(upgrade),
            (Stage::Parting, Heard::Word(ToOld::Adopted(adopted))) => {
                self.have_parted(upgrade, &adopted);
                self.ask_for_sessions(upgrade);
            }
            (Stage::Parting, Heard::End) => {
                self.have_parted(upgrade, &[]);
                self.stops_giving(upgrade);
            }
            (_, Heard::Word(ToOld::Refused) | Heard::End) => self.gives_up(upgrade),
            (stage, word) => panic!("{word:?} out of order: {stage:?}"),
        }
    }

    /// There was no answer for too long. What has been said by now counts, and nothing later.
    pub(super) fn old_one_is_impatient(&mut self, upgrade: &mut Upgrade) {
        self.kernel.coverage.hit(upgrade.state(), Fault::TimedOut);
        upgrade.giving.waits = None;
        let said = upgrade.to_old.words.pop_front();
        upgrade.to_old.hears = false;
        match (upgrade.giving.stage, said) {
            (Stage::Deciding, Some((_, ToOld::Mine))) => self.hands_over(upgrade),
            (Stage::Parting, Some((_, ToOld::Adopted(adopted)))) => {
                self.have_parted(upgrade, &adopted);
                self.stops_giving(upgrade);
            }
            (Stage::Parting, _) => {
                // Before any of these sessions goes on here.
                upgrade.to_new.say(self.kernel.now, ToNew::Refused);
                self.have_parted(upgrade, &[]);
                self.stops_giving(upgrade);
            }
            _ => self.gives_up(upgrade),
        }
    }

    // ---- flows ----

    fn ask_for_flows(&mut self, upgrade: &mut Upgrade) {
        let now = self.kernel.now;
        loop {
            let giving = &mut upgrade.giving;
            match giving.stage {
                Stage::Announcing | Stage::Rest => {
                    let is_late = giving.deaf_since.is_some_and(|at| now > at + LONGEST_WAIT);
                    if let Some(from) = giving.from.filter(|_| !is_late) {
                        let again = giving.passes > 0 || giving.stage == Stage::Rest;
                        let most = self.asks.between(1, 64) as u32;
                        return self.asks_worker(upgrade, What::Announce { from, most, again });
                    }
                    if giving.stage == Stage::Rest {
                        giving.stage = Stage::SettlingRest;
                        if std::mem::take(&mut giving.is_late) {
                            return self.asks_worker(upgrade, What::Settle);
                        }
                        continue;
                    }
                    giving.passes += 1;
                    let few = self.asks.below(8) as u32;
                    if giving.found > few && giving.passes < MOST_PASSES {
                        (giving.found, giving.from) = (0, Some(0));
                        continue;
                    }
                    (giving.stage, giving.deaf_since) = (Stage::Deafening, Some(now));
                    let udp = self.process.model.udp_sockets();
                    let taken = giving.taken.iter().copied().filter(|id| udp.contains(id));
                    let deaf = taken.collect();
                    return self.asks_worker(upgrade, What::Deafen(deaf));
                }
                Stage::Deafening => {
                    giving.stage = Stage::Settling;
                    return self.asks_worker(upgrade, What::Settle);
                }
                Stage::Settling => giving.stage = Stage::Rest,
                Stage::SettlingRest => return self.says_yours(upgrade),
                stage => panic!("no flow goes: {stage:?}"),
            }
        }
    }

    fn asks_worker(&mut self, upgrade: &mut Upgrade, what: What) {
        let at = self.soon();
        upgrade.giving.asked = Some(self.process.ask(at, what));
    }

    pub(super) fn old_ones_worker_replied(&mut self, upgrade: &mut Upgrade, reply: Reply) {
        match upgrade.giving.stage {
            Stage::Announcing | Stage::Rest => self.are_announced(upgrade, reply),
            Stage::Settling | Stage::SettlingRest => self.have_settled(upgrade, reply),
            Stage::Deafening => self.ask_for_flows(upgrade),
            Stage::Parting => self.are_offered(upgrade, reply),
            stage => panic!("an answer to nothing: {stage:?}, {reply:?}"),
        }
    }

    fn are_announced(&mut self, upgrade: &mut Upgrade, reply: Reply) {
        let giving = &mut upgrade.giving;
        giving.from = reply.next;
        let (mut batch, mut stay) = (Vec::new(), Vec::new());
        for of in reply.flows {
            if giving.taken.contains(&of.moving.socket) {
                let socket = self.kernel.token(of.upstream);
                giving.offered.push(of.handle);
                giving.sockets.insert(of.handle, socket);
                batch.push((of.moving, socket));
            } else {
                stay.push(of.handle);
            }
        }
        self.decide(stay, true);
        if batch.is_empty() {
            return self.ask_for_flows(upgrade);
        }
        self.says(upgrade, ToNew::Flows(batch));
    }

    /// Says something that is answered.
    fn says(&mut self, upgrade: &mut Upgrade, word: ToNew) {
        let at = self.soon();
        upgrade.giving.waits = Some(self.kernel.now + PATIENCE);
        if !upgrade.to_new.say(at, word) {
            self.gives_up(upgrade);
        }
    }

    fn have_settled(&mut self, upgrade: &mut Upgrade, reply: Reply) {
        let giving = &mut upgrade.giving;
        giving.from = reply.next.filter(|_| giving.stage == Stage::Settling);
        giving.is_late |= giving.from.is_some();
        let mut stay = Vec::new();
        for (handle, figures) in reply.settled {
            match giving.numbers.get(&handle) {
                Some(number) => {
                    self.kernel.has_settled(giving.sockets[&handle], figures.promoted);
                    giving.figures.push((*number, figures));
                    giving.settled.push(handle);
                }
                None => stay.push(handle),
            }
        }
        self.decide(stay, true);
        self.ask_for_flows(upgrade);
    }

    fn says_yours(&mut self, upgrade: &mut Upgrade) {
        upgrade.giving.stage = Stage::Deciding;
        let figures = std::mem::take(&mut upgrade.giving.figures);
        let at = self.soon();
        if !figures.is_empty() && !upgrade.to_new.say(at, ToNew::Figures(figures)) {
            return self.gives_up(upgrade);
        }
        self.says(upgrade, ToNew::Yours);
    }

    /// The new process goes on alone.
    fn hands_over(&mut self, upgrade: &mut Upgrade) {
        let giving = &mut upgrade.giving;
        let taken = giving.taken.clone();
        let settled = std::mem::take(&mut giving.settled);
        let had_flows = giving.passes > 0;
        giving.stage = Stage::Parting;
        let drain = self.some_drain();
        let at = self.soon();
        self.drains(at, drain, taken);
        self.decide(settled, false);
        if had_flows {
            let at = self.soon();
            self.process.ask(at, What::Hear { only: None });
        }
        self.head = upgrade.new;
        if !self.lives(self.head) {
            self.find_head();
        }
        upgrade.giving.round = Some(self.soon());
    }

    /// The upgrade has failed: all flows go on here.
    fn gives_up(&mut self, upgrade: &mut Upgrade) {
        let at = self.soon();
        upgrade.to_new.say(at, ToNew::Refused);
        let giving = &mut upgrade.giving;
        let began = giving.stage != Stage::Starting;
        let mut all = std::mem::take(&mut giving.offered);
        all.extend(std::mem::take(&mut giving.numbers).into_keys());
        if began {
            self.decide(all, true);
            let at = self.soon();
            self.process.ask(at, What::Hear { only: None });
        }
        self.stops_giving(upgrade);
        // It is the process's own child.
        if self.lives(upgrade.new) && self.asks.per_mille(500) {
            upgrade.due.push((self.soon(), Fault::NewDied));
        }
    }

    fn stops_giving(&mut self, upgrade: &mut Upgrade) {
        let now = self.kernel.now;
        upgrade.to_old.hears = false;
        upgrade.to_old.words.clear();
        upgrade.to_old.ended = None;
        upgrade.to_new.end(now + self.asks.scale(1, 10_000));
        upgrade.giving = Giving::over();
    }

    // ---- sessions ----

    pub(super) fn ask_for_sessions(&mut self, upgrade: &mut Upgrade) {
        let from = upgrade.giving.from.take().unwrap_or(0);
        let most = self.asks.between(1, 16) as u32;
        self.process.pausing = self.kernel.now + 2 * LONGEST_EMPTYING;
        self.asks_worker(upgrade, What::Part { from, most });
    }

    fn are_offered(&mut self, upgrade: &mut Upgrade, reply: Reply) {
        let giving = &mut upgrade.giving;
        self.process.pausing = self.kernel.now + 2 * LONGEST_EMPTYING;
        giving.from = match reply.next {
            None if reply.pausing > 0 => Some(u32::MAX),
            next => next,
        };
        let mut batch = Vec::new();
        for of in reply.offered {
            batch.push((of.moving, self.kernel.lend(token_of(of.handle))));
            giving.offered.push(of.handle);
        }
        if batch.is_empty() {
            match giving.from {
                Some(_) => self.ask_for_sessions(upgrade),
                None => giving.round = Some(self.kernel.now + self.asks.scale(1_000, 2_000_000)),
            }
            return;
        }
        let at = self.soon();
        upgrade.giving.waits = Some(self.kernel.now + PATIENCE);
        let arrivals: Vec<u32> = batch.iter().map(|(_, incoming)| *incoming).collect();
        if !upgrade.to_new.say(at, ToNew::Sessions(batch)) {
            arrivals.into_iter().for_each(|incoming| self.kernel.drop_arrival(incoming));
            self.have_parted(upgrade, &[]);
            self.stops_giving(upgrade);
        }
    }

    /// The new process has adopted some of the sessions, or none. The others go on here.
    fn have_parted(&mut self, upgrade: &mut Upgrade, adopted: &[bool]) {
        let offered = std::mem::take(&mut upgrade.giving.offered);
        let (gone, stay) = divide(offered, adopted);
        self.decide(gone, false);
        self.decide(stay, true);
    }
}

/// Those that the other process has adopted, and the rest.
fn divide(offered: Vec<Handle>, adopted: &[bool]) -> (Vec<Handle>, Vec<Handle>) {
    let mut answers = adopted.iter().copied().chain(std::iter::repeat(false));
    offered.into_iter().partition(|_| answers.next().unwrap_or(false))
}
