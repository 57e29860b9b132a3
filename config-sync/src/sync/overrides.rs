//! What operators say about endpoints while the gateway runs: an input to each table beside health
//! and ejections. Reloads keep it, and a restart forgets it, unless it was saved.

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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::check::parse_for;
    use crate::compile::names::Names;
    use crate::compile::whole;
    use crate::machine::Machine;
    use crate::model::endpoint::{Address, Resolved, Target};

    /// Two backends. An endpoint of `web` is a name of two addresses, and an endpoint's name is in
    /// both backends.
    fn world() -> (Config, Whole) {
        let text = "[[backends]]\nname = \"web\"\nendpoints = [\n\
                    { address = \"db.internal:80\", name = \"db\" },\n\
                    { address = \"10.0.0.3:80\", name = \"one\", weight = 7 }]\n\
                    [[backends]]\nname = \"other\"\nendpoints = [\n\
                    { address = \"10.0.0.3:81\", name = \"one\" }]\n";
        let machine = Machine { cores: vec![0], congestion: Vec::new() };
        let config = parse_for("f", text, &machine).unwrap_or_else(|fault| panic!("{fault}"));
        let Address::Name(name) = &config.backends[0].endpoints[0].address.value else {
            panic!("a name");
        };
        let target =
            |ip: &str| Target { rank: 0, ip: ip.parse().expect("an address"), port: 80, weight: 1 };
        let targets = vec![target("10.0.0.1"), target("10.0.0.2")];
        let resolved = Resolved([(name.clone(), targets)].into());
        let whole = whole(&config, &resolved, &mut Names::new()).expect("its parts fit");
        (config, whole)
    }

    fn address(text: &str) -> EndpointAddress {
        text.parse::<SocketAddr>().expect("an address").into()
    }

    /// What is said about `endpoint` of `web`.
    fn said_of(
        overrides: &Overrides,
        whole: &Whole,
        endpoint: &str,
        known: Standing,
    ) -> (bool, u8, Option<u32>) {
        let Standing { is_up, share, weight } =
            overrides.over(whole).over("web", address(endpoint), known);
        (is_up, share, weight)
    }

    #[test]
    fn an_endpoint_is_meant_by_address_or_name_and_the_candidates_are_named() {
        let (config, whole) = world();
        let meant = |backend, asked| meant((&config, &whole), backend, asked).map(|of| said(&of));
        for (backend, asked, expected) in [
            (None, "10.0.0.1:80", "web/10.0.0.1:80"),
            (None, "web/10.0.0.3:80", "web/10.0.0.3:80"),
            (None, "web/one", "web/10.0.0.3:80"),
            (Some("other"), "one", "other/10.0.0.3:81"),
            (None, "db", "web/db"),
        ] {
            assert_eq!(meant(backend, asked).as_deref(), Ok(expected), "{asked}");
        }
        let unclear = meant(None, "one").expect_err("two have the name");
        assert!(unclear.contains("web/10.0.0.3:80") && unclear.contains("other/10.0.0.3:81"));
        let unknown = meant(Some("other"), "10.0.0.1:80").expect_err("it is of another backend");
        assert!(
            unknown.contains("no endpoint is called") && !unknown.contains("web/"),
            "{unknown}"
        );
    }

    #[test]
    fn the_name_stands_for_all_addresses_and_an_address_counts_more() {
        let (config, whole) = world();
        let of = |asked| meant((&config, &whole), None, asked).expect("an endpoint");
        let mut overrides = Overrides::default();
        overrides.set(of("db"), Action::Weight(5), None);
        overrides.set(of("10.0.0.2:80"), Action::Weight(9), None);
        let said = |overrides: &Overrides, at: &str| said_of(overrides, &whole, at, Standing::UP);
        assert_eq!(said(&overrides, "10.0.0.1:80"), (true, 100, Some(5)));
        assert_eq!(said(&overrides, "10.0.0.2:80"), (true, 100, Some(9)));
        assert_eq!(said(&overrides, "10.0.0.3:80"), (true, 100, None));
        overrides.set(of("db"), Action::Drain, None);
        assert_eq!(said(&overrides, "10.0.0.2:80"), (true, 100, Some(0)), "a drain beats weights");
        overrides.set(of("10.0.0.1:80"), Action::Disable, None);
        assert_eq!(said(&overrides, "10.0.0.1:80"), (false, 100, Some(0)));
        assert!(overrides.remove(&of("db"), Some(Kind::Drain)));
        assert!(!overrides.remove(&of("db"), Some(Kind::Drain)), "it is gone");
        assert_eq!(said(&overrides, "10.0.0.1:80"), (false, 100, Some(5)));
        assert!(overrides.remove(&of("db"), None));
        assert_eq!(said(&overrides, "10.0.0.2:80"), (true, 100, Some(9)));
        assert_eq!(overrides.len(), 2);
    }

    #[test]
    fn what_is_known_of_an_endpoint_stays_below_an_override() {
        let (config, whole) = world();
        let of = |asked| meant((&config, &whole), None, asked).expect("an endpoint");
        let mut overrides = Overrides::default();
        overrides.set(of("web/one"), Action::Weight(4), None);
        let at = "10.0.0.3:80";
        let draining = Standing { share: 0, ..Standing::UP };
        assert_eq!(said_of(&overrides, &whole, at, draining), (true, 0, Some(4)));
        assert_eq!(said_of(&overrides, &whole, at, Standing::DOWN), (false, 100, Some(4)));
        overrides.set(of("web/one"), Action::Drain, None);
        assert_eq!(said_of(&overrides, &whole, at, Standing::DOWN), (false, 100, Some(0)));
    }

    #[test]
    fn overrides_end_by_time_and_with_their_endpoints() {
        let (config, whole) = world();
        let of = |asked| meant((&config, &whole), None, asked).expect("an endpoint");
        #[expect(clippy::disallowed_methods, reason = "any time will do")]
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut overrides = Overrides::default();
        overrides.set(of("db"), Action::Drain, Some(at(60)));
        overrides.set(of("10.0.0.2:80"), Action::Disable, None);
        let left: Vec<_> = overrides.list(at(20)).iter().map(|of| of.left).collect();
        assert_eq!(left, [None, Some(Duration::from_secs(40))]);
        assert!(!overrides.expire(at(59)) && overrides.len() == 2);
        assert!(overrides.expire(at(60)) && overrides.len() == 1);
        // The name gives another address now.
        let mut names = Names::new();
        let gone = compile_without_names(&config, &mut names);
        overrides.set(of("db"), Action::Drain, None);
        overrides.follow(&config, &gone);
        let kept: Vec<_> = overrides.list(start).into_iter().map(|of| of.endpoint).collect();
        assert_eq!(kept, ["db"], "the name is still there, and the address is not");
    }

    fn compile_without_names(config: &Config, names: &mut Names) -> Whole {
        whole(config, &Resolved::default(), names).expect("its parts fit")
    }
}
