//! The control thread's part in handing UDP flows over, before the old process stops.
//!
//! First all flows that could go are announced to the new process, a batch at a time, and go on in
//! the old one. The new process's workers adopt them, and receive nothing yet. Then the old
//! process's workers leave the datagrams of clients in the listening sockets, all flows settle, and
//! the new process is told what each has carried. With the last word of the conversation the flows
//! that have settled are the new process's. Without it they are the old one's, and the datagrams
//! that wait are the old one's too.
//!
//! So datagrams wait while sockets are told to stop and to receive again, and not while names,
//! addresses and sockets go from process to process.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use config_sync::sync::hand_over::Place;
use config_sync::table::moving::MovingFlow;
use config_sync::table::request::{Handle, Request, What};
use config_sync::table::routing::{SocketId, Transport};
use config_sync::table::steering::{Share as Sources, worker_of};
use socket2::{SockRef, Type};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::control::run::{Control, Phase};
use crate::control::upgrade::named::{
    figures_here, figures_there, flow_by_ids, named_flow, place_of_flow,
};
use crate::control::upgrade::under_way::{
    Answer, Departure, FlowBatch, FlowsArriving, FlowsLeaving, Stage,
};
use crate::stats::records::Reply;
use crate::wire::hand_over::{Figures, Flow, MOST_FLOWS};
use crate::worker::Sockets;

/// How long flows may be offered that have begun so late that they are first announced while the
/// datagrams of clients wait. The flows that are left stay in the old process.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How long a worker may take for an answer.
const LONGEST_SILENCE: Duration = Duration::from_secs(3);

/// How often all slots are looked through for flows to announce, before the datagrams of clients
/// wait. Flows begin meanwhile.
const MOST_PASSES: u32 = 4;

/// Fewer flows than these are announced while the datagrams of clients wait.
const FEW: u32 = 16;

impl Control {
    // ---- in the old process ----

    /// Flows are wanted: a worker is asked for some.
    pub fn part_flows(&mut self, answer: Answer<Option<Departure>>) {
        if !matches!(self.phase, Phase::Running) || self.must_end() {
            _ = answer.send(Err("the gateway is ending".to_owned()));
            return;
        }
        if self.upgrade.flows.leaving.is_none() {
            if self.taken_of_udp().is_empty() {
                _ = answer.send(Ok(None));
                return;
            }
            self.upgrade.flows.leaving = Some(FlowsLeaving::new(self.workers.len()));
        }
        if let Some(leaving) = &mut self.upgrade.flows.leaving {
            leaving.answer = Some(answer);
        }
        self.ask_for_flows();
    }

    /// The UDP sockets that the new process has taken.
    fn taken_of_udp(&self) -> Box<[SocketId]> {
        let Some(giving) = &self.upgrade.giving else { return Box::default() };
        let is_udp = |id: &&SocketId| {
            giving.groups.get(id).is_some_and(|(.., transport)| *transport == Transport::Udp)
        };
        giving.taken.iter().filter(is_udp).copied().collect()
    }

    /// A worker that does not answer may keep clients unheard on all of them, so the upgrade fails.
    pub fn flows_tick(&mut self) {
        let Some(leaving) = &mut self.upgrade.flows.leaving else { return };
        if !leaving.asked.is_empty() && leaving.asked_at.elapsed() > LONGEST_SILENCE {
            leaving.fail("a worker has not answered for too long".to_owned());
        }
    }

    /// Goes on with the stage: asks a worker, or all, or answers who waits.
    fn ask_for_flows(&mut self) {
        loop {
            let Some(leaving) = &mut self.upgrade.flows.leaving else { return };
            if leaving.answer.is_none() || !leaving.asked.is_empty() {
                return;
            }
            match leaving.stage {
                Stage::Announcing | Stage::Rest => {
                    let is_late = leaving.deaf_since.is_some_and(|at| at.elapsed() > LONGEST_WAIT);
                    match leaving.next_worker().filter(|_| !is_late) {
                        Some((worker, from)) => self.ask_to_announce(worker, from),
                        None => self.all_are_announced(),
                    }
                }
                Stage::Deafening => {
                    leaving.stage = Stage::Settling;
                    match self.steer_datagrams() {
                        Ok(()) => self.ask_to_settle(|_| true),
                        Err(why) => return self.flows_fail(why),
                    }
                }
                Stage::Settling => leaving.stage = Stage::Rest,
                Stage::SettlingRest => {
                    leaving.stage = Stage::Over;
                    let figures = std::mem::take(&mut leaving.figures);
                    if !figures.is_empty() {
                        // If nobody waits any more, `Broken` follows.
                        return leaving.tell(Some(Departure::Figures(figures)));
                    }
                }
                Stage::Over => return leaving.tell(None),
            }
        }
    }

    fn flows_fail(&mut self, why: String) {
        if let Some(leaving) = &mut self.upgrade.flows.leaving {
            leaving.fail(why);
        }
    }

    fn ask_to_announce(&mut self, worker: usize, from: u32) {
        let most = u32::try_from(MOST_FLOWS).unwrap_or(u32::MAX);
        let leaving = self.upgrade.flows.leaving.as_ref();
        let again = leaving.is_some_and(|of| of.passes > 0 || of.stage == Stage::Rest);
        if !self.ask_about_flows(worker, What::Announce { from, most, again })
            && let Some(leaving) = &mut self.upgrade.flows.leaving
        {
            leaving.has_no_more(worker);
        }
    }

    fn ask_to_settle(&mut self, of: impl Fn(usize) -> bool) {
        for worker in (0..self.workers.len()).filter(|worker| of(*worker)) {
            self.ask_about_flows(worker, What::Settle);
        }
    }

    /// False: the worker has ended.
    fn ask_about_flows(&mut self, worker: usize, what: What) -> bool {
        let number = self.upgrade.moves.number();
        let lives = self.workers[worker].thread.is_some();
        let is_asked = lives && self.sync.ask(worker, Request { number, what });
        if is_asked && let Some(leaving) = &mut self.upgrade.flows.leaving {
            leaving.asked.insert(number, worker);
            leaving.asked_at = Instant::now();
        }
        is_asked
    }

    /// A pass over all workers is over.
    fn all_are_announced(&mut self) {
        let deaf = self.taken_of_udp();
        let Some(leaving) = &mut self.upgrade.flows.leaving else { return };
        if leaving.stage == Stage::Rest {
            leaving.stage = Stage::SettlingRest;
            let late = std::mem::take(&mut leaving.late);
            return self.ask_to_settle(|worker| late.contains(&worker));
        }
        leaving.passes += 1;
        if leaving.found > FEW && leaving.passes < MOST_PASSES {
            return leaving.pass_again();
        }
        leaving.stage = Stage::Deafening;
        leaving.deaf_since = Some(Instant::now());
        for worker in 0..self.workers.len() {
            self.ask_about_flows(worker, What::Deafen(deaf.clone()));
        }
    }

    /// Takes an answer of a worker in, if it is about flows.
    pub fn moved_flows(&mut self, worker: usize, reply: Reply) -> Option<Reply> {
        if let Some(leaving) = &mut self.upgrade.flows.leaving
            && leaving.asked.remove(&reply.number).is_some()
        {
            match leaving.stage {
                Stage::Announcing | Stage::Rest => self.flows_announced(worker, reply),
                Stage::Settling | Stage::SettlingRest => self.flows_settled(worker, reply),
                Stage::Deafening | Stage::Over => {}
            }
            self.ask_for_flows();
            return None;
        }
        let arriving = self.upgrade.flows.arriving.as_mut();
        let Some((arriving, (_, positions))) = arriving.and_then(|arriving| {
            let asked = arriving.asked.remove(&reply.number)?;
            Some((arriving, asked))
        }) else {
            if reply.flows.is_empty() && reply.settled.is_empty() {
                return Some(reply);
            }
            // The upgrade has failed in the meantime.
            self.workers[worker].copies.try_iter().for_each(drop);
            let announced = reply.flows.into_iter().map(|of| of.handle);
            let settled = reply.settled.into_iter().map(|(handle, _)| handle);
            self.decide(worker, announced.chain(settled).collect(), true);
            return None;
        };
        for (position, handle) in positions.into_iter().zip(reply.adopted) {
            arriving.adopted[position] = handle.map(|handle| (worker, handle));
        }
        self.answer_flow_arrivals();
        None
    }

    /// A worker has ended, so it answers no more.
    pub fn flow_moves_ended(&mut self, worker: usize) {
        if let Some(leaving) = &mut self.upgrade.flows.leaving {
            leaving.has_no_more(worker);
            let before = leaving.asked.len();
            leaving.asked.retain(|_, of| *of != worker);
            if leaving.asked.len() < before {
                self.ask_for_flows();
            }
        }
        if let Some(arriving) = &mut self.upgrade.flows.arriving {
            arriving.asked.retain(|_, (of, _)| *of != worker);
            self.answer_flow_arrivals();
        }
    }

    fn flows_announced(&mut self, worker: usize, reply: Reply) {
        let Some(leaving) = &mut self.upgrade.flows.leaving else { return };
        match reply.next {
            Some(next) => leaving.from[worker] = Some(next),
            None => leaving.has_no_more(worker),
        }
        let (mut batch, mut offered, mut stay) = (FlowBatch::default(), Vec::new(), Vec::new());
        let copies = self.workers[worker].copies.try_iter();
        let mut copies: BTreeMap<Handle, Sockets> = copies.collect();
        let taken = self.taken_of_udp();
        for of in reply.flows {
            let place = self.sync.place_of_flow(&of.moving);
            let place = place.filter(|_| taken.contains(&of.moving.socket));
            match (place, copies.remove(&of.handle)) {
                (Some(place), Some(Sockets::Flow(socket))) => {
                    let next = self.next_worker_of(worker, &of.moving);
                    batch.flows.push(named_flow(of.moving, place, next, self.wall));
                    batch.sockets.push(socket);
                    offered.push(of.handle);
                }
                _ => stay.push(of.handle),
            }
        }
        self.decide(worker, stay, true);
        let Some(leaving) = &mut self.upgrade.flows.leaving else { return };
        if !offered.is_empty() {
            (leaving.offered, leaving.of) = (offered, worker);
            leaving.tell(Some(Departure::Flows(batch)));
        }
    }

    /// The worker of the new process whose socket gets the client's datagrams.
    fn next_worker_of(&self, worker: usize, flow: &MovingFlow) -> usize {
        match &self.upgrade.giving {
            Some(giving) if giving.workers != self.workers.len() => {
                worker_of(flow.peer, giving.workers, self.upgrade.seed)
            }
            _ => worker,
        }
    }

    /// The new process can have some of the flows, or none. The others go on here.
    pub fn flows_parted(&mut self, adopted: &[bool]) {
        let Some(leaving) = &mut self.upgrade.flows.leaving else { return };
        let (worker, offered) = (leaving.of, std::mem::take(&mut leaving.offered));
        let mut answers = adopted.iter().copied().chain(std::iter::repeat(false));
        let (gone, stay): (Vec<_>, Vec<_>) =
            offered.into_iter().partition(|_| answers.next().unwrap_or(false));
        for handle in gone {
            leaving.numbers.insert((worker, handle), leaving.count);
            (leaving.count, leaving.found) = (leaving.count + 1, leaving.found + 1);
        }
        self.decide(worker, stay, true);
    }

    /// Flows of a worker stand still.
    fn flows_settled(&mut self, worker: usize, reply: Reply) {
        let wall = self.wall;
        let Some(leaving) = &mut self.upgrade.flows.leaving else { return };
        leaving.from[worker] = reply.next.filter(|_| leaving.stage == Stage::Settling);
        leaving.late.extend(leaving.from[worker].map(|_| worker));
        let mut stay = Vec::new();
        for (handle, figures) in reply.settled {
            match leaving.numbers.get(&(worker, handle)) {
                Some(number) => {
                    leaving.figures.push(figures_there(*number, figures, wall));
                    leaving.settled.entry(worker).or_default().push(handle);
                }
                None => stay.push(handle),
            }
        }
        self.decide(worker, stay, true);
    }

    /// The flows that have settled are the new process's. Returns how many.
    pub fn flows_go(&mut self) -> usize {
        let Some(leaving) = self.upgrade.flows.leaving.take() else { return 0 };
        let gone = leaving.settled.values().map(Vec::len).sum::<usize>();
        self.decide(leaving.of, leaving.offered, true);
        for (worker, handles) in leaving.settled {
            self.decide(worker, handles, false);
        }
        self.hear(false);
        let waited = leaving.deaf_since.map_or(0, |since| since.elapsed().as_micros());
        tracing::info!(
            "{gone} UDP flows have gone to the next process; datagrams waited {}.{:03} ms",
            waited / 1_000,
            waited % 1_000
        );
        gone
    }

    /// The upgrade has failed: all flows go on here. `resteered`: datagrams may have come to the
    /// sockets of other workers.
    pub fn flows_stay(&mut self, resteered: bool) {
        let Some(leaving) = self.upgrade.flows.leaving.take() else { return };
        self.decide(leaving.of, leaving.offered, true);
        let mut by_worker: BTreeMap<usize, Vec<Handle>> = BTreeMap::new();
        for (worker, handle) in leaving.numbers.into_keys() {
            by_worker.entry(worker).or_default().push(handle);
        }
        for (worker, handles) in by_worker {
            self.decide(worker, handles, true);
        }
        self.hear(resteered);
    }

    fn hear(&mut self, resteered: bool) {
        let (workers, seed) = (self.workers.len(), self.upgrade.seed);
        for worker in 0..workers {
            let number = self.upgrade.moves.number();
            let only = resteered.then_some(Sources { worker, workers, seed });
            // A worker that has ended hears nobody.
            _ = self.sync.ask(worker, Request { number, what: What::Hear { only } });
        }
    }

    // ---- in the new process ----

    /// Flows of the old process have arrived. Each goes to the worker whose socket gets its
    /// client's datagrams.
    pub fn flows_arrived(&mut self, batch: FlowBatch, answer: oneshot::Sender<Vec<bool>>) {
        let adopted = vec![None; batch.flows.len()];
        let mut shares: BTreeMap<usize, Share> = BTreeMap::new();
        let pairs = batch.flows.into_iter().zip(batch.sockets);
        for (position, (flow, socket)) in pairs.enumerate() {
            let worker = flow.worker as usize;
            let lives = self.workers.get(worker).is_some_and(|of| of.thread.is_some());
            let Some(moving) = self.by_ids(flow, &socket).filter(|_| lives) else { continue };
            let share = shares.entry(worker).or_default();
            share.positions.push(position);
            share.flows.push(moving);
            share.sockets.push(socket);
        }
        let mut asked = BTreeMap::new();
        for (worker, Share { positions, flows, sockets }) in shares {
            let number = self.upgrade.moves.number();
            if self.sync.adopt_flows(worker, number, flows, sockets) {
                asked.insert(number, (worker, positions));
            }
        }
        let answer = Some(answer);
        self.upgrade.flows.arriving = Some(FlowsArriving { answer, asked, adopted });
        self.answer_flow_arrivals();
    }

    /// The flow by ids. `None`: this process does not listen there, or the socket is not what it is
    /// said to be.
    fn by_ids(&mut self, flow: Flow, socket: &OwnedFd) -> Option<MovingFlow> {
        let place = place_of_flow(&flow).filter(|place| leads_to(socket, place))?;
        let ids = self.sync.ids(&place)?;
        if !self.sync.listens(ids.socket) {
            return None;
        }
        flow_by_ids(flow, ids, self.wall)
    }

    /// Answers once all workers have.
    fn answer_flow_arrivals(&mut self) {
        let done = self.upgrade.flows.arriving.take_if(|of| of.asked.is_empty());
        let Some(FlowsArriving { answer: Some(answer), adopted, .. }) = done else { return };
        self.upgrade.flows.arrived.extend(adopted.iter().flatten());
        // If nobody waits any more, `NotOurs` follows.
        _ = answer.send(adopted.iter().map(Option::is_some).collect());
    }

    /// The flows with figures are this process's: they have settled in the old one, which has so
    /// many workers. `None`: all flows are still the old process's.
    pub fn own_flows(&mut self, figures: Option<Vec<Figures>>, workers: usize) {
        let arrived = std::mem::take(&mut self.upgrade.flows.arrived);
        let mut left: Vec<_> = arrived.into_iter().map(Some).collect();
        let are_ours = figures.is_some();
        let mut owned: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for figures in figures.into_iter().flatten() {
            let flow = left.get_mut(figures.flow as usize).and_then(Option::take);
            if let Some((worker, handle)) = flow {
                let own = (handle, figures_here(&figures, self.wall));
                owned.entry(worker).or_default().push(own);
            }
        }
        let count: usize = owned.values().map(Vec::len).sum();
        for (worker, flows) in owned {
            let number = self.upgrade.moves.number();
            // A worker that has ended has no flow.
            _ = self.sync.ask(worker, Request { number, what: What::Own(flows.into()) });
        }
        let mut by_worker: BTreeMap<usize, Vec<Handle>> = BTreeMap::new();
        for (worker, handle) in left.into_iter().flatten() {
            by_worker.entry(worker).or_default().push(handle);
        }
        for (worker, handles) in by_worker {
            self.decide(worker, handles, false);
        }
        // Now that flows that have not come leave their places to those who wait.
        if are_ours {
            self.board.upgrade.lock().flows_taken_over += count as u64;
            self.hear(workers != self.workers.len());
        }
    }
}

/// What one worker is to adopt.
#[derive(Default)]
struct Share {
    positions: Vec<usize>,
    flows: Vec<MovingFlow>,
    sockets: Vec<OwnedFd>,
}

/// Whether a socket is a UDP socket that is connected to the flow's endpoint.
fn leads_to(socket: &OwnedFd, place: &Place) -> bool {
    let Some(port) = place.bound.address.ip().map(|bound| bound.port()) else { return false };
    let socket = SockRef::from(socket);
    let peer = socket.peer_addr().ok().and_then(|peer| peer.as_socket());
    let endpoint = place.endpoint.for_client_of(port).and_then(|address| address.ip());
    peer.is_some() && peer == endpoint && socket.r#type().is_ok_and(|of| of == Type::DGRAM)
}
