//! What operators say about endpoints, backends and listeners while the gateway runs: an input to
//! each table beside health and ejections. Reloads keep it, and a restart forgets it, unless it was
//! saved.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::compile::whole::Whole;
use crate::health::Health;
use crate::health::ejection::Ejections;
use crate::health::warming::Warming;
use crate::model::config::Config;
use crate::model::endpoint::{MAX_WEIGHT, Standing};
use crate::table::address::EndpointAddress;
use crate::table::routing::{EndpointId, RoutingTable};

/// What an operator says. Of a backend and of a listener, [`Action::Drain`] can be said only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// No new sessions. Those that live stay.
    Drain,
    /// As if the endpoint were down.
    Disable,
    /// This weight in place of the configured one.
    Weight(u32),
}

/// An [`Action`] without its value. What is overridden has at most one override of each kind.
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

/// What an override is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Of {
    Endpoint(Arc<str>, Key),
    /// All endpoints of a backend.
    Backend(Arc<str>),
    Listener(Arc<str>),
}

/// What an operator names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    /// An endpoint by its address or its name, alone or behind its backend and a slash. The backend
    /// may also stand apart.
    Endpoint(Option<&'a str>, &'a str),
    Backend(&'a str),
    Listener(&'a str),
}

#[derive(Clone, Debug, Default)]
pub struct Overrides(BTreeMap<(Of, Kind), Entry>);

/// The overrides of the addresses that the endpoints have now.
pub(crate) struct Overridden(BTreeMap<Arc<str>, BTreeMap<EndpointAddress, Vec<Action>>>);

/// An override in force.
#[derive(Clone, Debug)]
pub struct Override {
    pub listener: Option<Arc<str>>,
    pub backend: Option<Arc<str>>,
    /// The endpoint's address, or its name.
    pub endpoint: Option<String>,
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
    /// What the latest failed check has found, or why the weight in force is another than the
    /// configured one.
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

impl Asked<'_> {
    /// Whether the action can be said about this.
    ///
    /// # Errors
    /// It can't, or the weight is too large. The text is for the operator.
    pub fn check(self, action: Action) -> Result<(), String> {
        match (self, action) {
            (_, Action::Weight(weight)) if weight > MAX_WEIGHT => {
                Err(format!("weight: {weight} is too large: 0 to {MAX_WEIGHT}"))
            }
            (Self::Endpoint(..), _) | (_, Action::Drain) => Ok(()),
            (Self::Backend(_) | Self::Listener(_), Action::Disable | Action::Weight(_)) => {
                let kind = action.kind();
                Err(format!("{kind}: only endpoints have this; backends and listeners drain"))
            }
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
        let all = self.0.iter().map(|((of, _), entry)| {
            let (listener, backend, endpoint) = match of {
                Of::Listener(listener) => (Some(Arc::clone(listener)), None, None),
                Of::Backend(backend) => (None, Some(Arc::clone(backend)), None),
                Of::Endpoint(backend, key) => {
                    (None, Some(Arc::clone(backend)), Some(key.to_string()))
                }
            };
            let left = entry.until.map(|until| until.saturating_duration_since(now));
            Override { listener, backend, endpoint, action: entry.action, left }
        });
        all.collect()
    }

    /// The listeners that get no new sessions.
    pub(crate) fn drained_listeners(&self) -> BTreeSet<Arc<str>> {
        let listener = |of: &Of| match of {
            Of::Listener(listener) => Some(Arc::clone(listener)),
            Of::Backend(_) | Of::Endpoint(..) => None,
        };
        self.0.keys().filter_map(|(of, _)| listener(of)).collect()
    }

    /// Ends the overrides whose time is over. Says whether there were some, and which listeners are
    /// not drained any more.
    pub(crate) fn expire(&mut self, now: Instant) -> (bool, Vec<Of>) {
        let (before, mut listeners) = (self.0.len(), Vec::new());
        self.0.retain(|(of, kind), entry| {
            let stays = entry.until.is_none_or(|until| now < until);
            if !stays {
                tracing::info!("override of {} has ended: {kind}", told(of));
                listeners.extend(matches!(of, Of::Listener(_)).then(|| of.clone()));
            }
            stays
        });
        (self.0.len() < before, listeners)
    }

    /// Forgets the overrides of what has left the configuration.
    pub(crate) fn follow(&mut self, config: &Config, whole: &Whole) {
        if self.0.is_empty() {
            return;
        }
        let known: BTreeSet<Of> = all(config, whole).into_iter().map(|(of, _)| of).collect();
        self.0.retain(|(of, kind), _| {
            let stays = known.contains(of);
            if !stays {
                let of = told(of);
                tracing::warn!("override is gone, because {of} is gone: {kind}");
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
            let endpoint_of = |key| Of::Endpoint(Arc::clone(backend), key);
            let address = endpoint_of(Key::Address(endpoint.address));
            let name = member.name.clone().map(|name| endpoint_of(Key::Name(name)));
            let whole_backend = Of::Backend(Arc::clone(backend));
            // What is said about an address counts more than what is said about its name.
            for of in [Some(address), name, Some(whole_backend)].into_iter().flatten() {
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
        let down = health.why_down(backend, of.address).map(str::to_owned);
        // The state says that the endpoint is drained.
        let weight = standing.weight.filter(|_| !said(Kind::Drain));
        let (standing, known) = (Standing { weight, ..standing }, (own, ejections, warming));
        Shown {
            id: of.id,
            backend: Arc::clone(backend),
            address: of.address,
            name: member.name.clone(),
            configured: of.weight,
            in_force,
            state,
            why: down.or_else(|| reasons((backend, of.address), standing, known, now)),
        }
    });
    all.collect()
}

/// Why an endpoint that is not down has not its configured weight. `standing` is its standing in
/// all, `own` by its health check. `None`: the state says why, or the weight is as configured.
fn reasons(
    (backend, at): (&str, EndpointAddress),
    standing: Standing,
    (own, ejections, warming): (Standing, &Ejections, &Warming),
    now: Instant,
) -> Option<String> {
    let seconds = |left: Duration| left.as_secs_f64().ceil();
    let ejected = ejections.left(backend, at, now).map(|left| match standing.is_up {
        true => "ejected, but no other endpoint is left".to_owned(),
        false => format!("in again in {} s", seconds(left)),
    });
    if !standing.is_up {
        return ejected;
    }
    let by_operator = standing.weight.map(|weight| format!("weight {weight} by an operator"));
    let by_itself = (own.share < 100).then(|| format!("asks for {} % of its weight", own.share));
    let slow_start = warming.left(backend, at, now).map(|left| {
        let share = warming.standing(backend, at, Standing::UP, now).share;
        format!("slow start: {share} % of its weight, all of it in {} s", seconds(left))
    });
    let all = [ejected, by_operator, by_itself, slow_start].into_iter().flatten();
    Some(all.collect::<Vec<_>>().join("; ")).filter(|text| !text.is_empty())
}

/// What an operator means.
///
/// # Errors
/// There is none, or there is more than one. The text names the candidates.
pub(crate) fn meant((config, whole): (&Config, &Whole), asked: Asked<'_>) -> Result<Of, String> {
    let all = all(config, whole);
    let is_candidate = |of: &Of| match (asked, of) {
        (Asked::Endpoint(None, _), Of::Endpoint(..)) => true,
        (Asked::Endpoint(Some(backend), _), Of::Endpoint(owner, _)) => **owner == *backend,
        (Asked::Backend(_), Of::Backend(_)) | (Asked::Listener(_), Of::Listener(_)) => true,
        _ => false,
    };
    let is_meant = |of: &Of, word: &str| match (asked, of) {
        (Asked::Endpoint(_, asked), Of::Endpoint(owner, _)) => {
            let behind = |rest: &str| rest.strip_prefix('/') == Some(word);
            asked == word || asked.strip_prefix(&**owner).is_some_and(behind)
        }
        (Asked::Backend(asked) | Asked::Listener(asked), _) => asked == word,
        (Asked::Endpoint(..), _) => false,
    };
    let candidates: Vec<_> = all.iter().filter(|(of, _)| is_candidate(of)).collect();
    let meant: BTreeSet<_> =
        candidates.iter().filter(|(of, word)| is_meant(of, word)).map(|(of, _)| of).collect();
    let (what, name) = match asked {
        Asked::Endpoint(_, asked) => ("endpoint", asked),
        Asked::Backend(asked) => ("backend", asked),
        Asked::Listener(asked) => ("listener", asked),
    };
    match meant.iter().collect::<Vec<_>>().as_slice() {
        [one] => Ok((**one).clone()),
        [] => {
            let others: BTreeSet<_> = candidates.iter().map(|(of, _)| of).collect();
            let others = listed(others.into_iter());
            Err(format!("no {what} is called {name:?}; there are: {others}"))
        }
        _ => Err(format!(
            "{name:?} can mean more than one {what}; say which: {}",
            listed(meant.into_iter())
        )),
    }
}

/// All that can be overridden, with each word that it is called by; an endpoint, in its backend.
fn all(config: &Config, whole: &Whole) -> Vec<(Of, String)> {
    let mut found = Vec::new();
    for (backend, endpoint, _) in whole.members() {
        let key = Key::Address(endpoint.address);
        found.push((Of::Endpoint(Arc::clone(backend), key), endpoint.address.to_string()));
    }
    for backend in &config.backends {
        let owner: Arc<str> = backend.name.value.as_str().into();
        found.push((Of::Backend(Arc::clone(&owner)), backend.name.value.clone()));
        for endpoint in &backend.endpoints {
            let Some(name) = &endpoint.name else { continue };
            let named = || Key::Name(name.value.as_str().into());
            let key = endpoint.fixed().map_or_else(named, Key::Address);
            found.push((Of::Endpoint(Arc::clone(&owner), key), name.value.clone()));
        }
    }
    for listener in &config.listeners {
        let name = &listener.name.value;
        found.push((Of::Listener(name.as_str().into()), name.clone()));
    }
    found
}

/// The full name: of an endpoint, behind its backend and a slash.
pub(crate) fn said(of: &Of) -> String {
    match of {
        Of::Endpoint(backend, key) => format!("{backend}/{key}"),
        Of::Backend(name) | Of::Listener(name) => name.to_string(),
    }
}

/// The full name, and what it is the name of.
pub(crate) fn told(of: &Of) -> String {
    let what = match of {
        Of::Endpoint(..) => "endpoint",
        Of::Backend(_) => "backend",
        Of::Listener(_) => "listener",
    };
    format!("{what} {}", said(of))
}

/// The names that an error lists, at most [`MOST`].
fn listed<'o>(all: impl Iterator<Item = &'o Of>) -> String {
    const MOST: usize = 10;
    let all: Vec<_> = all.map(said).collect();
    match all.len() {
        0 => "none".to_owned(),
        count if count > MOST => format!("{} and {} more", all[..MOST].join(", "), count - MOST),
        _ => all.join(", "),
    }
}

#[cfg(test)]
mod tests;
