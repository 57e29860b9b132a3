//! What operators say about endpoints while the gateway runs: an input to each table beside health
//! and ejections. Reloads keep it, and a restart forgets it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::compile::whole::Whole;
use crate::health::Health;
use crate::health::ejection::Ejections;
use crate::health::warming::Warming;
use crate::model::config::Config;
use crate::model::endpoint::Standing;
use crate::table::address::EndpointAddress;
use crate::table::routing::{EndpointId, RoutingTable};

/// What an operator says about an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// No new sessions. Those that live stay.
    Drain,
    /// As if the endpoint were down.
    Disable,
    /// This weight in place of the configured one.
    Weight(u32),
}

/// An [`Action`] without its value. An endpoint has at most one override of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Drain,
    Disable,
    Weight,
}

/// A stable name of an endpoint in its backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Address(EndpointAddress),
    /// The name of an endpoint that stands for all addresses of a name of the DNS.
    Name(Arc<str>),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    action: Action,
    until: Option<Instant>,
}

/// An endpoint, in its backend.
pub(crate) type Of = (Arc<str>, Key);

#[derive(Debug, Default)]
pub struct Overrides(BTreeMap<(Of, Kind), Entry>);

/// The overrides of the addresses that the endpoints have now.
pub(crate) struct Overridden(BTreeMap<Arc<str>, BTreeMap<EndpointAddress, Vec<Action>>>);

/// An override in force.
#[derive(Clone, Debug)]
pub struct Override {
    pub backend: Arc<str>,
    /// The endpoint's address, or its name.
    pub endpoint: String,
    pub action: Action,
    /// Time left. `None`: until somebody takes it back, or the process ends.
    pub left: Option<Duration>,
}

/// An endpoint, and whether and why it gets sessions.
#[derive(Clone, Debug)]
pub struct Shown {
    pub id: EndpointId,
    pub backend: Arc<str>,
    pub address: EndpointAddress,
    pub name: Option<Arc<str>>,
    pub configured: u32,
    /// 0: no new sessions.
    pub in_force: f64,
    pub state: State,
    /// What the latest failed check has found.
    pub why: Option<String>,
}

/// Why an endpoint gets sessions or not. The first that is true counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// By an operator.
    Disabled,
    /// By its health check.
    Down,
    Ejected,
    /// By an operator.
    Drained,
    /// By its own wish: a health check's answer.
    Draining,
    /// Others of its backend are used before it.
    Backup,
    Up,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Down => "down",
            Self::Ejected => "ejected",
            Self::Drained => "drained",
            Self::Draining => "draining",
            Self::Backup => "backup",
            Self::Up => "up",
        }
    }
}

impl Action {
    pub fn kind(self) -> Kind {
        match self {
            Self::Drain => Kind::Drain,
            Self::Disable => Kind::Disable,
            Self::Weight(_) => Kind::Weight,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drain => "drain",
            Self::Disable => "disable",
            Self::Weight => "weight",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weight(weight) => write!(f, "weight {weight}"),
            Self::Drain | Self::Disable => self.kind().fmt(f),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Overrides {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn set(&mut self, of: Of, action: Action, until: Option<Instant>) {
        self.0.insert((of, action.kind()), Entry { action, until });
    }

    /// Without a kind: all about the endpoint. False: nothing was said.
    pub(crate) fn remove(&mut self, of: &Of, kind: Option<Kind>) -> bool {
        let before = self.0.len();
        self.0.retain(|(at, its), _| at != of || kind.is_some_and(|kind| kind != *its));
        self.0.len() < before
    }

    pub(crate) fn list(&self, now: Instant) -> Vec<Override> {
        let all = self.0.iter().map(|(((backend, key), _), entry)| Override {
            backend: Arc::clone(backend),
            endpoint: key.to_string(),
            action: entry.action,
            left: entry.until.map(|until| until.saturating_duration_since(now)),
        });
        all.collect()
    }

    /// Ends the overrides whose time is over. True if there were some.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0.retain(|(of, kind), entry| {
            let stays = entry.until.is_none_or(|until| now < until);
            if !stays {
                tracing::info!("override of endpoint {} has ended: {kind}", said(of));
            }
            stays
        });
        self.0.len() < before
    }

    /// Forgets the overrides of endpoints that have left the configuration.
    pub(crate) fn follow(&mut self, config: &Config, whole: &Whole) {
        if self.0.is_empty() {
            return;
        }
        let known: BTreeSet<Of> = endpoints(config, whole).into_iter().map(|(of, _)| of).collect();
        self.0.retain(|(of, kind), _| {
            let stays = known.contains(of);
            if !stays {
                let of = said(of);
                tracing::warn!("override is gone, because endpoint {of} is gone: {kind}");
            }
            stays
        });
    }

    pub(crate) fn over(&self, whole: &Whole) -> Overridden {
        let mut found: BTreeMap<_, BTreeMap<_, Vec<_>>> = BTreeMap::new();
        if self.0.is_empty() {
            return Overridden(found);
        }
        for (backend, endpoint, member) in whole.members() {
            let name = member.name.clone().map(Key::Name);
            // What is said about an address counts more than what is said about its name.
            for key in [Some(Key::Address(endpoint.address)), name].into_iter().flatten() {
                let of = (Arc::clone(backend), key);
                let all = [Kind::Drain, Kind::Disable, Kind::Weight];
                let all = all.into_iter().filter_map(|kind| self.0.get(&(of.clone(), kind)));
                for entry in all {
                    let backend = found.entry(Arc::clone(backend)).or_default();
                    backend.entry(endpoint.address).or_default().push(entry.action);
                }
            }
        }
        Overridden(found)
    }
}

impl Overridden {
    fn actions(&self, backend: &str, endpoint: EndpointAddress) -> &[Action] {
        let found = self.0.get(backend).and_then(|backend| backend.get(&endpoint));
        found.map_or(&[], Vec::as_slice)
    }

    fn has(&self, backend: &str, endpoint: EndpointAddress, kind: Kind) -> bool {
        self.actions(backend, endpoint).iter().any(|action| action.kind() == kind)
    }

    /// The standing of an endpoint of which `known` is known.
    pub(crate) fn over(
        &self,
        backend: &str,
        endpoint: EndpointAddress,
        known: Standing,
    ) -> Standing {
        let mut standing = known;
        // The first action of a kind is set last.
        for action in self.actions(backend, endpoint).iter().rev() {
            match action {
                Action::Disable => standing.is_up = false,
                Action::Weight(weight) => standing.weight = Some(*weight),
                Action::Drain => {}
            }
        }
        if self.has(backend, endpoint, Kind::Drain) {
            standing.weight = Some(0);
        }
        standing
    }
}

/// Every endpoint. `table` is the table that workers have.
pub(crate) fn shown(
    (whole, table): (&Whole, &RoutingTable),
    (health, ejections, overrides, warming): (&Health, &Ejections, &Overrides, &Warming),
    now: Instant,
) -> Vec<Shown> {
    let overridden = overrides.over(whole);
    let others = |backend: &str, at| overridden.over(backend, at, health.standing(backend, at));
    let in_table: BTreeMap<EndpointId, u32> = table
        .backends
        .iter()
        .flat_map(|backend| &backend.endpoints)
        .map(|of| (of.id, of.weight))
        .collect();
    let all = whole.members().map(|(backend, of, member)| {
        let own = health.standing(backend, of.address);
        let standing = ejections.standing(&others, backend, of.address);
        let standing = warming.standing(backend, of.address, standing, now);
        let takes = in_table.get(&of.id).is_some_and(|weight| *weight > 0);
        let weight = f64::from(member.weight(of.weight, standing));
        let in_force = if takes { weight * f64::from(standing.share) / 100.0 } else { 0.0 };
        let said = |kind| overridden.has(backend, of.address, kind);
        let state = match () {
            () if said(Kind::Disable) => State::Disabled,
            () if !own.is_up => State::Down,
            () if !standing.is_up => State::Ejected,
            () if said(Kind::Drain) => State::Drained,
            () if standing.share == 0 => State::Draining,
            () if member.is_backup() && !takes => State::Backup,
            () => State::Up,
        };
        Shown {
            id: of.id,
            backend: Arc::clone(backend),
            address: of.address,
            name: member.name.clone(),
            configured: of.weight,
            in_force,
            state,
            why: health.why_down(backend, of.address).map(str::to_owned),
        }
    });
    all.collect()
}

/// The endpoint that an operator means: by its address or its name, alone or behind its backend and
/// a slash.
pub(crate) fn meant(
    (config, whole): (&Config, &Whole),
    backend: Option<&str>,
    asked: &str,
) -> Result<Of, String> {
    let all = endpoints(config, whole);
    let of_backend = |of: &Of| backend.is_none_or(|backend| *of.0 == *backend);
    let is_meant = |of: &Of, word: &str| {
        let behind = |rest: &str| rest.strip_prefix('/') == Some(word);
        of_backend(of) && (asked == word || asked.strip_prefix(&*of.0).is_some_and(behind))
    };
    let meant = all.iter().filter(|(of, word)| is_meant(of, word)).map(|(of, _)| of);
    let meant: Vec<_> = meant.collect::<BTreeSet<_>>().into_iter().collect();
    match meant.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let others = all.iter().map(|(of, _)| of).filter(|of| of_backend(of));
            let others = candidates(others.collect::<BTreeSet<_>>().into_iter());
            Err(format!("no endpoint is called {asked:?}; there are: {others}"))
        }
        more => Err(format!(
            "{asked:?} can mean more than one endpoint; say which: {}",
            candidates(more.iter().copied())
        )),
    }
}

/// Every endpoint with each word that it is called by in its backend.
fn endpoints(config: &Config, whole: &Whole) -> Vec<(Of, String)> {
    let mut found = Vec::new();
    for (backend, endpoint, _) in whole.members() {
        let key = Key::Address(endpoint.address);
        found.push(((Arc::clone(backend), key), endpoint.address.to_string()));
    }
    for backend in &config.backends {
        let owner: Arc<str> = backend.name.value.as_str().into();
        for endpoint in &backend.endpoints {
            let Some(name) = &endpoint.name else { continue };
            let named = || Key::Name(name.value.as_str().into());
            let key = endpoint.fixed().map_or_else(named, Key::Address);
            found.push(((Arc::clone(&owner), key), name.value.clone()));
        }
    }
    found
}

pub(crate) fn said((backend, key): &Of) -> String {
    format!("{backend}/{key}")
}

/// The names that an error lists, at most [`MOST`].
fn candidates<'o>(all: impl Iterator<Item = &'o Of>) -> String {
    const MOST: usize = 10;
    let all: Vec<_> = all.map(said).collect();
    match all.len() {
        0 => "none".to_owned(),
        count if count > MOST => format!("{} and {} more", all[..MOST].join(", "), count - MOST),
        _ => all.join(", "),
    }
}
