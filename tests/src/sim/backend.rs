//! A backend that changes at random, and what it compiles to.

use std::net::SocketAddr;
use std::sync::Arc;

use config_sync::table::limit::{Limit, Load};
use config_sync::table::load::NO_LIMIT;
use config_sync::table::rate::Rate;
use config_sync::table::routing::{
    Absence, Backend, BackendId, Balance, Endpoint, EndpointId, GoneEndpoint, Queue, SendProxy,
    SocketOptions, Sources,
};
use config_sync::table::tier::tier_in_use;
use config_sync::table::turns::turns;

use crate::sim::endpoints::{POOL, some_endpoints};
use crate::sim::limit::some_bytes;
use crate::sim::proxied::some_send_proxy;
use crate::sim::rng::Rng;

#[derive(Clone, Debug)]
pub struct ModelBackend {
    /// Present, and all that it may have.
    pub endpoints: Vec<(bool, Endpoint)>,
    /// Of the endpoints that it may have: those that are backups.
    backups: Vec<bool>,
    /// Whether sessions go back from backups as soon as another endpoint is present.
    failback: bool,
    /// The endpoints of the latest table.
    had: Vec<Endpoint>,
    /// Of the endpoints that it may have: their sessions, over all workers.
    pub loads: Vec<Load>,
    /// Whether endpoints take only so many sessions as their loads say.
    limited: bool,
    pub queue: Option<Queue>,
    pub balance: u64,
    pub connect_timeout: u32,
    pub connect_attempts: u8,
    /// Milliseconds for which an endpoint comes last that has failed.
    rest: u32,
    pub send_proxy: Option<SendProxy>,
    pub shared_sockets: bool,
    pub fast_path: bool,
    pub fast_path_after: u32,
    pub interface: u32,
    /// Milliseconds. It stays as it is: endpoints know how late they may answer.
    pub upstream_rest: u32,
    /// What becomes of sessions and flows of an endpoint that is not present, and after how long.
    pub gone: Option<(Absence, u32)>,
    /// Only of backends with shared sockets: simulated sockets have no source address.
    pub source: Sources,
}

impl ModelBackend {
    pub fn random(rng: &mut Rng, id: u32) -> Self {
        let count = rng.below(u64::from(POOL) + 1) as u32;
        Self {
            endpoints: (0..).map(|n| n < count).zip(some_endpoints(rng, id)).collect(),
            backups: some_backups(rng),
            failback: rng.per_mille(700),
            had: Vec::new(),
            loads: (0..POOL).map(|_| some_load(rng)).collect(),
            limited: rng.per_mille(300),
            queue: rng.per_mille(500).then(|| some_queue(rng)),
            balance: rng.below(5),
            connect_timeout: rng.scale(5, 2_000) as u32,
            connect_attempts: rng.between(1, 8) as u8,
            rest: rng.scale(100, 10_000) as u32,
            send_proxy: some_send_proxy(rng),
            shared_sockets: rng.per_mille(400),
            fast_path: rng.per_mille(400),
            fast_path_after: rng.pick(&[1, 4, 16]),
            interface: rng.pick(&[0, 0, 3]),
            upstream_rest: rng.scale(100, 2_500) as u32,
            gone: some_gone(rng),
            source: sources(rng, id),
        }
    }

    /// In another process.
    pub fn count_anew(&mut self) {
        self.had.clear();
        for load in &mut self.loads {
            load.sessions = Arc::default();
            if let Some(limit) = &mut load.limit {
                limit.usage = Arc::default();
            }
        }
        if let Some(queue) = &mut self.queue {
            queue.line = Arc::default();
        }
    }

    /// No endpoint has more than it takes, and no queue. `moved`: sessions that came from another
    /// process, which have a place whether there is one or not.
    pub fn check_loads(&self, moved: u32) {
        if let Some(queue) = &self.queue {
            assert!(queue.line.waiting() <= queue.most, "{} wait", queue.line.waiting());
        }
        for load in self.loads.iter().filter(|_| self.limited) {
            let sessions = load.sessions.get();
            let most = load.most.saturating_add(moved);
            assert!(sessions <= most, "{sessions} of {most} sessions");
        }
    }

    /// The endpoints that sessions must leave.
    pub fn gone(&self) -> impl Iterator<Item = GoneEndpoint> + '_ {
        let absent = self.endpoints.iter().filter(|(present, _)| !present);
        absent.filter_map(|(_, endpoint)| {
            let (absence, close_after) = self.gone?;
            Some(GoneEndpoint { id: endpoint.id, absence, close_after })
        })
    }

    pub fn is_backup(&self, endpoint: EndpointId) -> bool {
        self.backups[(endpoint.0 % POOL) as usize]
    }

    /// The endpoints that get sessions and flows: backups only if no other is present, or if they
    /// have them already and keep them.
    fn choose(&mut self) -> Vec<Endpoint> {
        let present = self.endpoints.iter().filter(|(present, _)| *present).map(|(_, of)| *of);
        let tier = |of: &Endpoint| u32::from(self.is_backup(of.id));
        let had = if self.failback { &[][..] } else { &self.had };
        let in_use = tier_in_use(present.clone().map(|of| (of.id, tier(&of))), had);
        let chosen: Vec<_> = present.filter(|of| Some(tier(of)) == in_use).collect();
        self.check_backups(&chosen);
        self.had = chosen;
        self.had.clone()
    }

    /// No backup is chosen beside another endpoint, or before one without need.
    fn check_backups(&self, chosen: &[Endpoint]) {
        let Some(backup) = chosen.iter().find(|of| self.is_backup(of.id)) else { return };
        assert!(chosen.iter().all(|of| self.is_backup(of.id)), "{backup:?} beside others");
        let mut present = self.endpoints.iter().filter(|(present, _)| *present);
        let is_needed = present.all(|(_, of)| self.is_backup(of.id));
        let stays = || !self.failback && self.had.iter().any(|had| chosen.contains(had));
        assert!(is_needed || stays(), "{backup:?} without need");
    }

    pub fn compile(&mut self, id: u32) -> Backend {
        let endpoints = self.choose();
        let load = |load: &Load| Load {
            most: if self.limited { load.most } else { NO_LIMIT },
            limit: load.limit.clone().filter(|_| self.limited),
            ..load.clone()
        };
        let loads = endpoints.iter().map(|of| Some(load(&self.loads[(of.id.0 % POOL) as usize])));
        let loads: Vec<_> = loads.collect();
        // The compiler refuses others: two of them may be one.
        let mut all = self.endpoints.iter();
        let shared_sockets = !self.fast_path
            && self.shared_sockets
            && all.all(|(_, of)| of.address.socket_address().is_some());
        // Maglev's promise needs a real table (the compiler has one); its shape is enough here.
        let lookup = || (0..13).map(|n| n % endpoints.len().max(1) as u16).collect();
        Backend {
            id: BackendId(id),
            name: "backend".into(),
            balance: match self.balance {
                0 => Balance::RoundRobin,
                1 => Balance::LeastConnections,
                2 => Balance::Random,
                3 => Balance::SourceHash(lookup()),
                _ => Balance::SourcePortHash(lookup()),
            },
            turns: turns(&endpoints.iter().map(|of| of.weight).collect::<Vec<_>>()),
            loads: if self.balance == 1 || self.limited { loads } else { Vec::new() },
            endpoints,
            queue: self.queue.clone(),
            limit: None,
            connect_timeout: self.connect_timeout,
            connect_attempts: self.connect_attempts,
            rest: self.rest,
            options: options(),
            interface: if shared_sockets || self.fast_path { 0 } else { self.interface },
            source: if shared_sockets { vec![self.source] } else { Vec::new() },
            shared_sockets,
            upstream_rest: self.upstream_rest,
            send_proxy: self.send_proxy.filter(|_| !self.fast_path),
            fast_path: self.fast_path,
            fast_path_after: self.fast_path_after,
            transparent: false,
            tls: None,
        }
    }
}

/// None, or some of those that a backend may have.
fn some_backups(rng: &mut Rng) -> Vec<bool> {
    let share = rng.pick(&[0, 300, 600]);
    (0..POOL).map(|_| rng.per_mille(share)).collect()
}

fn some_load(rng: &mut Rng) -> Load {
    let opening = rng.per_mille(300).then(|| Rate::new(rng.scale(1, 10_000), rng.scale(1, 50)));
    let nothing = Limit::nothing(Arc::default());
    let limit = Limit { opening, bytes: some_bytes(rng), ..nothing };
    let limit = rng.per_mille(300).then(|| Box::new(limit));
    Load { limit, ..Load::up_to(rng.scale(1, 30) as u32) }
}

fn some_queue(rng: &mut Rng) -> Queue {
    let (most, timeout) = (rng.scale(1, 20) as u32, rng.scale(10, 5_000) as u32);
    Queue { line: Arc::default(), most, timeout }
}

pub fn some_gone(rng: &mut Rng) -> Option<(Absence, u32)> {
    let absence = rng.pick(&[None, Some(Absence::Down), Some(Absence::Removed)])?;
    Some((absence, rng.scale(1, 2_000) as u32 - 1))
}

/// Few, so that they run out, or enough; and such that two of a backend overlap.
pub fn sources(rng: &mut Rng, backend: u32) -> Sources {
    let first = [10, 9, backend as u8, rng.below(3) as u8].into();
    Sources { first, count: rng.scale(1, 200) as u32 }
}

pub fn options() -> SocketOptions {
    SocketOptions { nodelay: true, keepalive: 60, user_timeout: 0, congestion: [0; 16] }
}

/// Endpoints 0, 1, 2 and so on, with equal weights.
pub fn plain_endpoints(addresses: &[SocketAddr]) -> Vec<Endpoint> {
    let endpoint = |(id, address): (u32, &SocketAddr)| Endpoint {
        id: EndpointId(id),
        address: (*address).into(),
        weight: 1,
    };
    (0..).zip(addresses).map(endpoint).collect()
}

/// A backend without limits, whose endpoints take turns.
pub fn plain_backend(id: BackendId, endpoints: Vec<Endpoint>) -> Backend {
    Backend {
        id,
        name: "backend".into(),
        balance: Balance::RoundRobin,
        turns: turns(&vec![1; endpoints.len()]),
        loads: Vec::new(),
        queue: None,
        limit: None,
        endpoints,
        connect_timeout: 2_000,
        connect_attempts: 3,
        rest: 10_000,
        options: options(),
        source: Vec::new(),
        interface: 0,
        shared_sockets: false,
        upstream_rest: 2_000,
        send_proxy: None,
        fast_path: false,
        fast_path_after: 16,
        transparent: false,
        tls: None,
    }
}
