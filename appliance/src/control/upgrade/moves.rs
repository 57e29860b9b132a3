//! The control thread's part in handing sessions over: it passes on between the conversation with
//! the other process and the workers of this one.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use config_sync::table::moving::Moving;
use config_sync::table::request::{Handle, Request, What};
use tokio::sync::oneshot;

use crate::control::run::{Control, Phase};
use crate::control::upgrade::named::{by_ids, named, place};
use crate::control::upgrade::under_way::{Answer, Arriving, Batch};
use crate::control::upgrade::voice::{GO_ON, Voice};
use crate::stats::records::Reply;
use crate::wire::hand_over::MOST_SESSIONS;
use crate::worker::Sockets;

impl Control {
    /// Whether a worker will answer a request soon, or will take one.
    pub fn is_waiting(&self) -> bool {
        self.live.is_waiting()
            || self.upgrade.moves.is_waiting()
            || self.upgrade.flows.is_waiting()
            || self.sync.has_requests()
    }

    /// A worker has answered a request about sessions or flows that move.
    pub fn moved(&mut self, worker: usize, reply: Reply) {
        let Some(reply) = self.moved_flows(worker, reply) else { return };
        let leaving = &mut self.upgrade.moves.leaving;
        if let Some((_, answer)) = leaving.asked.take_if(|(number, _)| *number == reply.number) {
            return self.offered(worker, reply, answer);
        }
        let Some(arriving) = &mut self.upgrade.moves.arriving else { return };
        let Some((_, positions)) = arriving.asked.remove(&reply.number) else { return };
        for (position, handle) in positions.into_iter().zip(&reply.adopted) {
            arriving.adopted[position] = handle.is_some();
        }
        let adopted = reply.adopted.into_iter().flatten();
        arriving.handles.entry(worker).or_default().extend(adopted);
        self.answer_arrivals();
    }

    /// A worker has ended, so it answers no more.
    pub fn moves_ended(&mut self, worker: usize) {
        self.flow_moves_ended(worker);
        let leaving = &mut self.upgrade.moves.leaving;
        if leaving.worker == worker
            && let Some((_, answer)) = leaving.asked.take()
        {
            leaving.next_worker();
            self.part(answer);
        }
        if let Some(arriving) = &mut self.upgrade.moves.arriving {
            arriving.asked.retain(|_, (of, _)| *of != worker);
            self.answer_arrivals();
        }
    }

    // ---- in the old process ----

    /// Sessions are wanted: a worker is asked for some.
    pub fn part(&mut self, answer: Answer<Option<Batch>>) {
        while self.upgrade.moves.leaving.worker < self.workers.len() {
            let number = self.upgrade.moves.number();
            let leaving = &mut self.upgrade.moves.leaving;
            let most = u32::try_from(MOST_SESSIONS).unwrap_or(u32::MAX);
            let what = What::Part { from: leaving.from, most };
            let lives = self.workers[leaving.worker].thread.is_some();
            if lives && self.sync.ask(leaving.worker, Request { number, what }) {
                leaving.asked = Some((number, answer));
                return;
            }
            leaving.next_worker();
        }
        let leaving = std::mem::take(&mut self.upgrade.moves.leaving);
        if leaving.gone > 0 {
            tracing::info!("{} sessions have gone to the next process", leaving.gone);
        }
        // If nobody waits any more, the conversation has ended.
        _ = answer.send(Ok(None));
    }

    /// A worker has still sessions, or none at the moment.
    fn offered(&mut self, worker: usize, reply: Reply, answer: Answer<Option<Batch>>) {
        let leaving = &mut self.upgrade.moves.leaving;
        match reply.next {
            Some(next) => leaving.from = next,
            // No slot is left to look at.
            None if reply.pausing > 0 => leaving.from = u32::MAX,
            None => leaving.next_worker(),
        }
        let mut batch = Batch { sessions: Vec::new(), sockets: Vec::new() };
        let (mut offered, mut stay) = (Vec::new(), Vec::new());
        let copies = self.workers[worker].copies.try_iter();
        let mut copies: BTreeMap<Handle, Sockets> = copies.collect();
        for of in reply.offered {
            match (self.sync.place(&of.moving), copies.remove(&of.handle)) {
                (Some(place), Some(Sockets::Session(sockets))) => {
                    batch.sessions.push(named(of.moving, place, self.wall));
                    batch.sockets.push(sockets);
                    offered.push(of.handle);
                }
                _ => stay.push(of.handle),
            }
        }
        self.decide(worker, stay, true);
        if offered.is_empty() {
            return self.part(answer);
        }
        let leaving = &mut self.upgrade.moves.leaving;
        (leaving.offered, leaving.of) = (offered, worker);
        if answer.send(Ok(Some(batch))).is_err() {
            self.parted(&[], None);
        }
    }

    /// The new process has adopted some of the sessions, or none. The others go on here.
    pub fn parted(&mut self, adopted: &[bool], unheard: Option<Voice>) {
        // After a stop none goes on here: the workers have left the sessions to the new process.
        if let Some(voice) = unheard.filter(|_| !matches!(self.phase, Phase::Stopping)) {
            voice.refuses(GO_ON);
        }
        let leaving = &mut self.upgrade.moves.leaving;
        let (worker, offered) = (leaving.of, std::mem::take(&mut leaving.offered));
        let mut answers = adopted.iter().copied().chain(std::iter::repeat(false));
        let (gone, stay): (Vec<_>, Vec<_>) =
            offered.into_iter().partition(|_| answers.next().unwrap_or(false));
        leaving.gone += gone.len();
        self.decide(worker, gone, false);
        self.decide(worker, stay, true);
    }

    pub fn decide(&mut self, worker: usize, handles: Vec<Handle>, is_ours: bool) {
        if handles.is_empty() {
            return;
        }
        let handles = handles.into();
        let what = if is_ours { What::GoOn(handles) } else { What::Forget(handles) };
        let number = self.upgrade.moves.number();
        // A worker that has ended has no session.
        _ = self.sync.ask(worker, Request { number, what });
    }

    // ---- in the new process ----

    /// Sessions of the old process have arrived. Each goes to the worker with the fewest.
    pub fn arrived(&mut self, batch: Batch, voice: Arc<Voice>, answer: oneshot::Sender<bool>) {
        let adopted = vec![false; batch.sessions.len()];
        let sessions = self.board.workers().iter().map(|worker| worker.sessions.get());
        let mut loads: Vec<u64> = sessions.collect();
        let mut shares: BTreeMap<usize, Share> = BTreeMap::new();
        let pairs = batch.sessions.into_iter().zip(batch.sockets);
        for (position, (session, sockets)) in pairs.enumerate() {
            let Some(ids) = place(&session).and_then(|place| self.sync.ids(&place)) else {
                continue;
            };
            let lives = |worker: &usize| self.workers[*worker].thread.is_some();
            let workers = (0..self.workers.len()).filter(lives);
            let Some(worker) = workers.min_by_key(|worker| loads[*worker]) else { break };
            loads[worker] += 1;
            let share = shares.entry(worker).or_default();
            share.positions.push(position);
            share.sessions.push(by_ids(session, ids, self.wall));
            share.sockets.push(sockets);
        }
        let mut asked = BTreeMap::new();
        for (worker, Share { positions, sessions, sockets }) in shares {
            let number = self.upgrade.moves.number();
            if self.sync.adopt(worker, number, sessions, sockets) {
                asked.insert(number, (worker, positions));
            }
        }
        let (answer, handles) = (Some(answer), BTreeMap::new());
        self.upgrade.moves.arriving = Some(Arriving { voice, answer, asked, adopted, handles });
        self.answer_arrivals();
    }

    /// Tells the old process once all workers have answered. The sessions stand still, so this
    /// thread does so itself.
    fn answer_arrivals(&mut self) {
        let Some(arriving) = &mut self.upgrade.moves.arriving else { return };
        if !arriving.asked.is_empty() {
            return;
        }
        let Some(answer) = arriving.answer.take() else { return };
        let is_told = arriving.voice.says_adopted(std::mem::take(&mut arriving.adopted));
        if is_told {
            self.own_sessions(true);
        }
        if answer.send(is_told).is_err() && !is_told {
            self.own_sessions(false);
        }
    }

    /// The adopted sessions are this process's, or still the old one's.
    pub fn own_sessions(&mut self, are_ours: bool) {
        let Some(arriving) = self.upgrade.moves.arriving.take() else { return };
        for (worker, handles) in arriving.handles {
            if are_ours {
                self.board.upgrade.lock().taken_over += handles.len() as u64;
            }
            self.decide(worker, handles, are_ours);
        }
    }
}

/// What one worker is to adopt.
#[derive(Default)]
struct Share {
    positions: Vec<usize>,
    sessions: Vec<Moving>,
    sockets: Vec<[OwnedFd; 2]>,
}
