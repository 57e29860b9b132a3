//! The control thread's part in handing UDP flows over, before the old process stops.
//!
//! First the old process's workers leave the datagrams of clients in the listening sockets. Then
//! one worker after the other offers its flows. The new process's workers adopt them, and receive
//! nothing yet. With the last word of the conversation all flows that were adopted are the new
//! process's. Without it they are the old one's, and the datagrams that wait are the old one's too.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use config_sync::sync::hand_over::Place;
use config_sync::table::moving::MovingFlow;
use config_sync::table::request::{Handle, Of, Request, What};
use config_sync::table::routing::{SocketId, Transport};
use config_sync::table::steering::{Share as Sources, worker_of};
use socket2::{SockRef, Type};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::control::run::{Control, Phase};
use crate::control::upgrade::named::{flow_by_ids, named_flow, place_of_flow};
use crate::control::upgrade::under_way::{Answer, FlowBatch, FlowsArriving, FlowsLeaving};
use crate::stats::records::Reply;
use crate::wire::hand_over::{Flow, MOST_FLOWS};
use crate::worker::Sockets;

/// How long the datagrams of clients may wait for flows to be offered. The flows that are left stay
/// in the old process.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How long a worker may take for an answer, behind that.
const LONGEST_SILENCE: Duration = Duration::from_secs(3);

impl Control {
    // ---- in the old process ----

    /// Flows are wanted: a worker is asked for some. At first all are told to hear no client.
    pub fn part_flows(&mut self, answer: Answer<Option<FlowBatch>>) {
        if !matches!(self.phase, Phase::Running) {
            _ = answer.send(Err("the gateway is ending".to_owned()));
            return;
        }
        if let Some(leaving) = &mut self.upgrade.flows.leaving {
            leaving.answer = Some(answer);
            return self.ask_for_flows();
        }
        let Some(giving) = &self.upgrade.giving else { return };
        let is_udp = |id: &&SocketId| {
            giving.groups.get(id).is_some_and(|(.., transport)| *transport == Transport::Udp)
        };
        let deaf: Box<[SocketId]> = giving.taken.iter().filter(is_udp).copied().collect();
        if deaf.is_empty() {
            _ = answer.send(Ok(None));
            return;
        }
        let mut deafening = BTreeMap::new();
        for worker in 0..self.workers.len() {
            let number = self.upgrade.moves.number();
            let request = Request { number, what: What::Deafen(deaf.clone()) };
            if self.workers[worker].thread.is_some() && self.sync.ask(worker, request) {
                deafening.insert(number, worker);
            }
        }
        self.upgrade.flows.leaving = Some(FlowsLeaving {
            began: Instant::now(),
            deafening,
            answer: Some(answer),
            asked: None,
            worker: 0,
            from: 0,
            offered: Vec::new(),
            of: 0,
            adopted: BTreeMap::new(),
        });
        self.are_deaf();
    }

    /// Goes on once no worker hears a client.
    fn are_deaf(&mut self) {
        let leaving = self.upgrade.flows.leaving.as_ref();
        if leaving.is_none_or(|of| !of.deafening.is_empty()) {
            return;
        }
        let Err(why) = self.steer_datagrams() else { return self.ask_for_flows() };
        let answer = self.upgrade.flows.leaving.as_mut().and_then(|of| of.answer.take());
        _ = answer.map(|answer| answer.send(Err(why)));
    }

    /// A worker that does not answer keeps clients unheard on all of them, so the upgrade fails.
    pub fn flows_tick(&mut self) {
        let Some(leaving) = &mut self.upgrade.flows.leaving else { return };
        let waits = !leaving.deafening.is_empty() || leaving.asked.is_some();
        if waits && leaving.began.elapsed() > LONGEST_SILENCE {
            let answer = leaving.answer.take();
            let why = "a worker has not answered for too long".to_owned();
            _ = answer.map(|answer| answer.send(Err(why)));
        }
    }

    fn ask_for_flows(&mut self) {
        loop {
            let number = self.upgrade.moves.number();
            let Some(leaving) = &mut self.upgrade.flows.leaving else { return };
            let is_over =
                leaving.worker >= self.workers.len() || leaving.began.elapsed() > LONGEST_WAIT;
            if is_over {
                if let Some(answer) = leaving.answer.take() {
                    // If nobody waits any more, `Broken` follows.
                    _ = answer.send(Ok(None));
                }
                return;
            }
            let most = u32::try_from(MOST_FLOWS).unwrap_or(u32::MAX);
            let what = What::Part { of: Of::Flows, from: leaving.from, most };
            let lives = self.workers[leaving.worker].thread.is_some();
            if lives && self.sync.ask(leaving.worker, Request { number, what }) {
                leaving.asked = Some(number);
                return;
            }
            (leaving.worker, leaving.from) = (leaving.worker + 1, 0);
        }
    }

    /// Takes an answer of a worker in, if it is about flows.
    pub fn moved_flows(&mut self, worker: usize, reply: Reply) -> Option<Reply> {
        if let Some(leaving) = &mut self.upgrade.flows.leaving {
            if leaving.deafening.remove(&reply.number).is_some() {
                self.are_deaf();
                return None;
            }
            if leaving.asked.take_if(|number| *number == reply.number).is_some() {
                self.flows_offered(worker, reply);
                return None;
            }
        }
        let arriving = self.upgrade.flows.arriving.as_mut();
        let Some((arriving, (_, positions))) = arriving.and_then(|arriving| {
            let asked = arriving.asked.remove(&reply.number)?;
            Some((arriving, asked))
        }) else {
            if reply.flows.is_empty() {
                return Some(reply);
            }
            // The upgrade has failed in the meantime.
            self.workers[worker].copies.try_iter().for_each(drop);
            let handles = reply.flows.into_iter().map(|of| of.handle).collect();
            self.decide(worker, handles, true);
            return None;
        };
        for (position, handle) in positions.into_iter().zip(&reply.adopted) {
            arriving.adopted[position] = handle.is_some();
        }
        let adopted = reply.adopted.into_iter().flatten();
        self.upgrade.flows.arrived.entry(worker).or_default().extend(adopted);
        self.answer_flow_arrivals();
        None
    }

    /// A worker has ended, so it answers no more.
    pub fn flow_moves_ended(&mut self, worker: usize) {
        if let Some(leaving) = &mut self.upgrade.flows.leaving {
            let before = leaving.deafening.len();
            leaving.deafening.retain(|_, of| *of != worker);
            if leaving.deafening.len() < before {
                self.are_deaf();
            } else if leaving.worker == worker && leaving.asked.take().is_some() {
                (leaving.worker, leaving.from) = (worker + 1, 0);
                self.ask_for_flows();
            }
        }
        if let Some(arriving) = &mut self.upgrade.flows.arriving {
            arriving.asked.retain(|_, (of, _)| *of != worker);
            self.answer_flow_arrivals();
        }
    }

    fn flows_offered(&mut self, worker: usize, reply: Reply) {
        let Some(leaving) = &mut self.upgrade.flows.leaving else { return };
        match reply.next {
            Some(next) => leaving.from = next,
            None => (leaving.worker, leaving.from) = (worker + 1, 0),
        }
        let (mut batch, mut offered, mut stay) = (FlowBatch::default(), Vec::new(), Vec::new());
        let copies = self.workers[worker].copies.try_iter();
        let mut copies: BTreeMap<Handle, Sockets> = copies.collect();
        for of in reply.flows {
            match (self.sync.place_of_flow(&of.moving), copies.remove(&of.handle)) {
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
        if offered.is_empty() {
            return self.ask_for_flows();
        }
        let Some(leaving) = &mut self.upgrade.flows.leaving else { return };
        (leaving.offered, leaving.of) = (offered, worker);
        let answer = leaving.answer.take();
        // If nobody waits any more, `Broken` follows.
        _ = answer.map(|answer| answer.send(Ok(Some(batch))));
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
        leaving.adopted.entry(worker).or_default().extend(gone);
        self.decide(worker, stay, true);
    }

    /// The flows that were adopted are the new process's.
    pub fn flows_go(&mut self) {
        let Some(leaving) = self.upgrade.flows.leaving.take() else { return };
        let (gone, waited) = (leaving.adopted.values().map(Vec::len).sum::<usize>(), leaving.began);
        self.decide(leaving.of, leaving.offered, true);
        for (worker, handles) in leaving.adopted {
            self.decide(worker, handles, false);
        }
        self.hear(false);
        tracing::info!(
            "{gone} UDP flows have gone to the next process; datagrams waited {} ms",
            waited.elapsed().as_millis()
        );
    }

    /// The upgrade has failed: all flows go on here. `resteered`: datagrams may have come to the
    /// sockets of other workers.
    pub fn flows_stay(&mut self, resteered: bool) {
        let Some(leaving) = self.upgrade.flows.leaving.take() else { return };
        self.decide(leaving.of, leaving.offered, true);
        for (worker, handles) in leaving.adopted {
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
        let adopted = vec![false; batch.flows.len()];
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
        // If nobody waits any more, `NotOurs` follows.
        _ = answer.send(adopted);
    }

    /// The flows that were adopted are this process's, or still the old one's, which has so many
    /// workers.
    pub fn own_flows(&mut self, are_ours: bool, workers: usize) {
        let arrived = std::mem::take(&mut self.upgrade.flows.arrived);
        let count: usize = arrived.values().map(Vec::len).sum();
        for (worker, handles) in arrived {
            self.decide(worker, handles, are_ours);
        }
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
