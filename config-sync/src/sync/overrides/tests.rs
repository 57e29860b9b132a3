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

fn endpoint(world: (&Config, &Whole), asked: &str) -> Of {
    meant(world, Asked::Endpoint(None, asked)).expect("an endpoint")
}

#[test]
fn an_endpoint_is_meant_by_address_or_name_and_the_candidates_are_named() {
    let (config, whole) = world();
    let meant = |backend, asked| {
        meant((&config, &whole), Asked::Endpoint(backend, asked)).map(|of| said(&of))
    };
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
    assert!(unknown.contains("no endpoint is called") && !unknown.contains("web/"), "{unknown}");
}

#[test]
fn the_name_stands_for_all_addresses_and_an_address_counts_more() {
    let (config, whole) = world();
    let of = |asked| endpoint((&config, &whole), asked);
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

/// What is shown of both endpoints of a backend: the state, the weight in force, and why.
#[test]
fn it_is_shown_why_a_weight_is_not_the_configured_one() {
    let text = "[[backends]]\nname = \"b\"\nslow_start = \"9s\"\n\
                eject = { failures = 1, base = \"30s\", max_share = 100 }\n\
                endpoints = [\"10.0.0.1:1\", \"10.0.0.1:2\"]\n";
    let config = crate::check::parse("f", text).unwrap_or_else(|fault| panic!("{fault}"));
    let whole = whole(&config, &Resolved::default(), &mut Names::new()).expect("its parts fit");
    #[expect(clippy::disallowed_methods, reason = "any time will do")]
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let [one, two] = ["10.0.0.1:1", "10.0.0.1:2"].map(address);
    let ids = whole.members().map(|(_, of, _)| of.id).collect::<Vec<_>>();
    let mut warming = Warming::default().following(&config, &whole.table);
    let second_is_down = |_: &str, at| if at == two { Standing::DOWN } else { Standing::UP };
    warming.look(&second_is_down, at(0));
    warming.look(&|_, _| Standing::UP, at(1_000));
    let mut ejections = Ejections::default().following(&config, &whole.table);
    ejections.look(&|_| 0, at(0));
    let (health, mut overrides) = (Health::default(), Overrides::default());
    let table = whole.pickable(1, &|_, _| Standing::UP, None);
    let shown = |overrides: &Overrides, ejections: &Ejections, now| {
        let known = (&health, ejections, overrides, &warming);
        let shown = shown((&whole, &table), known, now).into_iter();
        shown.map(|of| (of.state.word(), of.in_force, of.why.unwrap_or_default())).collect()
    };
    let as_they_are: Vec<_> = shown(&overrides, &ejections, at(3_500));
    let slow = "slow start: 30 % of its weight, all of it in 7 s";
    assert_eq!(as_they_are, [("up", 1.0, String::new()), ("up", 0.3, slow.to_owned())]);
    overrides.set(Of::Endpoint("b".into(), Key::Address(two)), Action::Weight(5), None);
    overrides.set(Of::Endpoint("b".into(), Key::Address(one)), Action::Drain, None);
    let said: Vec<_> = shown(&overrides, &ejections, at(3_500));
    assert_eq!((said[0].0, said[0].1), ("drained", 0.0));
    assert_eq!((said[1].1, &*said[1].2), (1.5, &*format!("weight 5 by an operator; {slow}")));
    let overrides = Overrides::default();
    let failed = ids[0];
    ejections.look(&|id| u64::from(id == failed), at(3_500));
    let said: Vec<_> = shown(&overrides, &ejections, at(4_000));
    assert_eq!((said[0].0, &*said[0].2), ("ejected", "in again in 30 s"));
    ejections.look(&|_| 1, at(4_000));
    let said: Vec<_> = shown(&overrides, &ejections, at(4_000));
    assert_eq!((said[0].0, &*said[0].2), ("up", "ejected, but no other endpoint is left"));
}

#[test]
fn what_is_known_of_an_endpoint_stays_below_an_override() {
    let (config, whole) = world();
    let of = |asked| endpoint((&config, &whole), asked);
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
    let of = |asked| endpoint((&config, &whole), asked);
    #[expect(clippy::disallowed_methods, reason = "any time will do")]
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut overrides = Overrides::default();
    overrides.set(of("db"), Action::Drain, Some(at(60)));
    overrides.set(of("10.0.0.2:80"), Action::Disable, None);
    let left: Vec<_> = overrides.list(at(20)).iter().map(|of| of.left).collect();
    assert_eq!(left, [None, Some(Duration::from_secs(40))]);
    assert!(!overrides.expire(at(59)).0 && overrides.len() == 2);
    assert!(overrides.expire(at(60)).0 && overrides.len() == 1);
    // The name gives another address now.
    let mut names = Names::new();
    let gone = compile_without_names(&config, &mut names);
    overrides.set(of("db"), Action::Drain, None);
    overrides.follow(&config, &gone);
    let kept: Vec<_> = overrides.list(start).into_iter().map(|of| of.endpoint).collect();
    assert_eq!(kept, [Some("db".to_owned())], "the name is still there, and the address is not");
}

#[test]
fn a_drain_of_a_backend_holds_for_each_of_its_endpoints() {
    let (config, whole) = world();
    let of = meant((&config, &whole), Asked::Backend("web")).expect("a backend");
    assert_eq!(told(&of), "backend web");
    let mut overrides = Overrides::default();
    overrides.set(endpoint((&config, &whole), "web/one"), Action::Weight(4), None);
    overrides.set(of.clone(), Action::Drain, None);
    for at in ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"] {
        assert_eq!(said_of(&overrides, &whole, at, Standing::UP), (true, 100, Some(0)), "{at}");
    }
    let other = overrides.over(&whole).over("other", address("10.0.0.3:81"), Standing::UP);
    assert_eq!(other.weight, None);
    assert!(overrides.remove(&of, Some(Kind::Drain)));
    assert_eq!(said_of(&overrides, &whole, "10.0.0.3:80", Standing::UP).2, Some(4));
    let unknown = meant((&config, &whole), Asked::Backend("db")).expect_err("no such backend");
    assert_eq!(unknown, "no backend is called \"db\"; there are: other, web");
    let unknown = meant((&config, &whole), Asked::Listener("web")).expect_err("no listener");
    assert_eq!(unknown, "no listener is called \"web\"; there are: none");
}

fn compile_without_names(config: &Config, names: &mut Names) -> Whole {
    whole(config, &Resolved::default(), names).expect("its parts fit")
}
