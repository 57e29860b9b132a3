//! The compiled table before anything is known of the endpoints, and the step from there to the
//! table that workers get: only endpoints that may be picked, each with its weight.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::compile::names::{LimitKey, Names, too_many};
use crate::model::backend::{self, Backend};
use crate::model::endpoint::{Address, Endpoint, Resolved, Standing};
use crate::model::gone::WhenGone;
use crate::model::limit;
use crate::model::place::Problem;
use crate::table::address::EndpointAddress;
use crate::table::limit::{Limit, Load};
use crate::table::load::NO_LIMIT;
use crate::table::maglev;
use crate::table::rate::Rate;
use crate::table::routing::{self, Absence, Balance, EndpointId, GoneEndpoint, RoutingTable};
use crate::table::terminator::Originator;
use crate::table::tier::tier_in_use;
use crate::table::turns::turns;

/// The table with every endpoint that the configuration and the names' addresses give, whether it
/// may be picked or not.
#[derive(Clone, Debug)]
pub struct Whole {
    pub table: RoutingTable,
    /// The TLS of health checks that do not verify as sessions do, by backend.
    pub(crate) checks: BTreeMap<String, Arc<Originator>>,
    /// In the order of the table's backends.
    pub(super) pools: Vec<Pool>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    balance: Option<backend::Balance>,
    when_gone: WhenGone,
    failback: bool,
    /// In the order of the backend's endpoints.
    members: Vec<Member>,
    /// The loads that workers have to know.
    loads: BTreeMap<EndpointId, Load>,
}

/// What the table of workers does not have of an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// Endpoints of a tier get sessions only while no endpoint of a lower tier may be picked.
    tier: u32,
    /// The weight of the SRV record, by which the endpoint's own weight is multiplied.
    factor: u32,
    pub(crate) name: Option<Arc<str>>,
}

impl Member {
    pub(crate) fn is_backup(&self) -> bool {
        self.tier > 0
    }

    /// The weight before shares.
    pub(crate) fn weight(&self, configured: u32, standing: Standing) -> u32 {
        standing.weight.map_or(configured, |weight| weight.saturating_mul(self.factor))
    }
}

/// The first tier of backups. Tiers below it are the ranks of SRV records.
const BACKUPS: u32 = 1 << 16;

impl Whole {
    /// Finds the endpoints of every backend anew, and gives ids to new ones.
    ///
    /// # Errors
    /// Ids have run out.
    pub(crate) fn resolve<'c>(
        &mut self,
        backends: impl Iterator<Item = &'c Backend>,
        resolved: &Resolved,
        names: &mut Names,
    ) -> Vec<Problem> {
        let asked: BTreeMap<&str, &Backend> =
            backends.map(|backend| (backend.name.value.as_str(), backend)).collect();
        let mut problems = Vec::new();
        self.pools.clear();
        for backend in &mut self.table.backends {
            backend.endpoints.clear();
            let mut pool = Pool::default();
            if let Some(asked) = asked.get(&*backend.name) {
                pool.balance = Some(asked.balance);
                pool.when_gone = asked.when_gone.clone();
                pool.failback = asked.failback;
                for (endpoint, target) in targets(asked, resolved) {
                    let Some(id) = names.endpoints.id((backend.id, target.address)) else {
                        problems.push(endpoint.address.problem(too_many("endpoints")));
                        continue;
                    };
                    let Candidate { address, weight, most, limit, member } = target;
                    let id = EndpointId(id);
                    names.call(id, member.name.as_ref());
                    backend.endpoints.push(routing::Endpoint { id, address, weight });
                    let compares = asked.balance == backend::Balance::LeastConnections;
                    let limit = limit.or(asked.endpoint_limit.as_ref());
                    if compares || most != NO_LIMIT || limit.is_some() {
                        let limit = limit.map(|limit| of_endpoint(limit, id, names));
                        pool.loads.insert(id, Load { sessions: names.sessions(id), most, limit });
                    }
                    pool.members.push(member);
                }
            }
            self.pools.push(pool);
        }
        problems
    }

    /// Every endpoint with its backend.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&Arc<str>, &routing::Endpoint, &Member)> {
        self.table.backends.iter().zip(&self.pools).flat_map(|(backend, pool)| {
            let endpoints = backend.endpoints.iter().zip(&pool.members);
            endpoints.map(|(endpoint, member)| (&backend.name, endpoint, member))
        })
    }

    /// Takes over the endpoints that sessions must leave because `before` had them and this
    /// configuration has not. They are forgotten when they are back, or when no session can have
    /// them any more: then their ids have no names.
    pub fn after(&mut self, before: &Self, names: &Names) {
        let endpoints = |of: &Self| -> BTreeSet<EndpointId> {
            of.table.backends.iter().flat_map(|of| &of.endpoints).map(|of| of.id).collect()
        };
        let present = endpoints(self);
        let was_gone = before.table.gone.iter().copied();
        let removed = before.table.backends.iter().zip(&before.pools);
        let removed = removed.filter(|(_, pool)| pool.when_gone.closes_removed());
        let removed = removed.flat_map(|(backend, pool)| {
            backend.endpoints.iter().map(|of| pool.gone(of.id, Absence::Removed))
        });
        let mut seen = BTreeSet::new();
        let gone = was_gone.chain(removed).filter(|gone| {
            !present.contains(&gone.id) && names.endpoint(gone.id).is_some() && seen.insert(gone.id)
        });
        self.table.gone = gone.collect();
    }

    /// Whether this configuration has the endpoint, or knows that sessions must leave it.
    pub(crate) fn knows_of(&self, id: EndpointId) -> bool {
        self.table.gone.iter().any(|gone| gone.id == id)
            || self.table.backends.iter().any(|of| of.endpoints.iter().any(|of| of.id == id))
    }

    /// Sessions of another process have an endpoint that this configuration has not, and leave it.
    pub(crate) fn removed_before(&mut self, id: EndpointId, close_after: u32) {
        let gone = GoneEndpoint { id, absence: Absence::Removed, close_after };
        self.table.gone = self.table.gone.iter().copied().chain([gone]).collect();
    }

    /// Milliseconds from the removal of an endpoint until its sessions end. `None`: they stay.
    pub(crate) fn close_after(&self, id: EndpointId) -> Option<u32> {
        let removed = |gone: &&GoneEndpoint| gone.id == id && gone.absence == Absence::Removed;
        if let Some(gone) = self.table.gone.iter().find(removed) {
            return Some(gone.close_after);
        }
        let mut backends = self.table.backends.iter().zip(&self.pools);
        let (_, pool) = backends.find(|(of, _)| of.endpoints.iter().any(|of| of.id == id))?;
        pool.when_gone.closes_removed().then_some(pool.when_gone.close_after)
    }

    /// The table of this generation for workers. `standing` is given the backend's name and the
    /// endpoint's address. `before` is the table that is in force: its hash tables may still be
    /// right, and backups that are in it stay where `failback` is false.
    pub fn pickable(
        &self,
        generation: u64,
        standing: &dyn Fn(&str, EndpointAddress) -> Standing,
        before: Option<&RoutingTable>,
    ) -> RoutingTable {
        let mut table = RoutingTable { generation, ..self.table.clone() };
        let before: BTreeMap<_, _> =
            before.iter().flat_map(|table| &table.backends).map(|of| (of.id, of)).collect();
        let mut down = Vec::new();
        for (backend, pool) in table.backends.iter_mut().zip(&self.pools) {
            down.extend(pool.down(backend, standing));
            let before = before.get(&backend.id).copied();
            let had = before.filter(|_| !pool.failback).map_or(&[][..], |before| &before.endpoints);
            backend.endpoints = pool.pickable(&backend.name, &backend.endpoints, standing, had);
            backend.loads = pool.loads_of(&backend.endpoints);
            let before = before.filter(|of| of.endpoints == backend.endpoints);
            backend.balance = pool.balance(&backend.endpoints, before);
            backend.turns = before.map_or_else(
                || turns(&backend.endpoints.iter().map(|of| of.weight).collect::<Vec<_>>()),
                |before| Arc::clone(&before.turns),
            );
        }
        if !down.is_empty() {
            table.gone = table.gone.iter().copied().chain(down).collect();
        }
        table.pass_shares_on();
        table
    }
}

impl Pool {
    fn gone(&self, id: EndpointId, absence: Absence) -> GoneEndpoint {
        GoneEndpoint { id, absence, close_after: self.when_gone.close_after }
    }

    /// The endpoints that sessions must leave because they are down.
    fn down(
        &self,
        backend: &routing::Backend,
        standing: &dyn Fn(&str, EndpointAddress) -> Standing,
    ) -> Vec<GoneEndpoint> {
        if !self.when_gone.closes_down() {
            return Vec::new();
        }
        let down = backend.endpoints.iter();
        let down = down.filter(|of| !standing(&backend.name, of.address).is_up);
        down.map(|of| self.gone(of.id, Absence::Down)).collect()
    }

    /// The endpoints of the lowest tier that has an endpoint which may be picked; or of the tier of
    /// `had`, if an endpoint of `had` may still be picked. An endpoint with
    /// weight 0 that is up stays in the table, because its sessions and flows stay.
    fn pickable(
        &self,
        backend: &str,
        endpoints: &[routing::Endpoint],
        standing: &dyn Fn(&str, EndpointAddress) -> Standing,
        had: &[routing::Endpoint],
    ) -> Vec<routing::Endpoint> {
        let all = endpoints.iter().zip(&self.members).map(|(of, member)| {
            let standing = standing(backend, of.address);
            let weight = member.weight(of.weight, standing);
            (routing::Endpoint { weight, ..*of }, member.tier, standing)
        });
        let up: Vec<_> = all.filter(|(_, _, standing)| standing.may_be_picked()).collect();
        let takers = up.iter().filter(|(of, _, _)| of.weight > 0);
        let tier = tier_in_use(takers.map(|(of, tier, _)| (of.id, *tier)), had);
        let chosen = up.iter().filter(|(of, its, _)| of.weight == 0 || Some(*its) == tier);
        let is_whole = up.iter().all(|(_, _, standing)| standing.share == 100);
        let weight = |weight: u32, standing: &Standing| match is_whole {
            true => weight,
            false => weight.saturating_mul(u32::from(standing.share)),
        };
        let chosen = chosen.map(|(of, _, standing)| routing::Endpoint {
            weight: weight(of.weight, standing),
            ..*of
        });
        chosen.collect()
    }

    /// The loads of these endpoints, or none if no worker has to know any.
    fn loads_of(&self, endpoints: &[routing::Endpoint]) -> Vec<Option<Load>> {
        if self.loads.is_empty() {
            return Vec::new();
        }
        endpoints.iter().map(|of| self.loads.get(&of.id).cloned()).collect()
    }

    fn balance(
        &self,
        endpoints: &[routing::Endpoint],
        before: Option<&routing::Backend>,
    ) -> Balance {
        let slots = || {
            let weighted = endpoints.iter().map(|of| (of.address, of.weight));
            maglev::table(&weighted.collect::<Vec<_>>())
        };
        use backend::Balance as Asked;
        match (self.balance, before.map(|before| &before.balance)) {
            (Some(Asked::RoundRobin) | None, _) => Balance::RoundRobin,
            (Some(Asked::LeastConnections), _) => Balance::LeastConnections,
            (Some(Asked::Random), _) => Balance::Random,
            (
                Some(Asked::SourceHash),
                Some(Balance::SourceHash(slots) | Balance::SourcePortHash(slots)),
            ) => Balance::SourceHash(Arc::clone(slots)),
            (
                Some(Asked::SourcePortHash),
                Some(Balance::SourceHash(slots) | Balance::SourcePortHash(slots)),
            ) => Balance::SourcePortHash(Arc::clone(slots)),
            (Some(Asked::SourceHash), _) => Balance::SourceHash(slots()),
            (Some(Asked::SourcePortHash), _) => Balance::SourcePortHash(slots()),
        }
    }
}

/// The limit of an endpoint, as workers see it.
fn of_endpoint(asked: &limit::Limit, id: EndpointId, names: &mut Names) -> Box<Limit> {
    let opening = asked.new_per_second.map(|rate| (rate, asked.burst.unwrap_or(rate)));
    let opening = opening.map(|(rate, burst)| Rate::new(rate.into(), burst.into()));
    let bytes = asked.bytes_per_second.map(|rate| Rate::new(rate, rate));
    Box::new(Limit { opening, bytes, ..Limit::nothing(names.usage(LimitKey::Endpoint(id))) })
}

/// An address that an endpoint stands for.
struct Candidate<'b> {
    address: EndpointAddress,
    weight: u32,
    most: u32,
    limit: Option<&'b limit::Limit>,
    member: Member,
}

/// The addresses of a backend's endpoints, each once. The first endpoint that gives an address
/// counts.
fn targets<'b>(backend: &'b Backend, resolved: &Resolved) -> Vec<(&'b Endpoint, Candidate<'b>)> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for endpoint in &backend.endpoints {
        let (most, limit) = (endpoint.max_sessions.unwrap_or(NO_LIMIT), endpoint.limit.as_ref());
        let tier = if endpoint.backup { BACKUPS } else { 0 };
        let name = || endpoint.name.as_ref().map(|name| Arc::from(name.value.as_str()));
        match &endpoint.address.value {
            Address::Fixed(address) => {
                let member = Member { tier, factor: 1, name: name() };
                let weight = endpoint.weight;
                let of = Candidate { address: *address, weight, most, limit, member };
                found.push((endpoint, of));
            }
            Address::Name(host) => {
                let targets = resolved.0.get(host).map_or(&[][..], Vec::as_slice);
                found.extend(targets.iter().map(|target| {
                    let address = SocketAddr::new(target.ip, target.port).into();
                    let factor = u32::from(target.weight);
                    let tier = tier + u32::from(target.rank);
                    let weight = endpoint.weight.saturating_mul(factor);
                    let member = Member { tier, factor, name: name() };
                    (endpoint, Candidate { address, weight, most, limit, member })
                }));
            }
        }
    }
    found.retain(|(_, of)| backend.can_reach(of.address) && seen.insert(of.address));
    found.truncate(MOST_ENDPOINTS);
    found
}

/// The indices of a backend's endpoints have 16 bits.
const MOST_ENDPOINTS: usize = 1 << 16;
