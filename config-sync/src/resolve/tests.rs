use super::*;
use crate::check::parse;

struct World {
    resolve: Resolve,
    start: Instant,
}

fn host(name: &str) -> DnsName {
    DnsName::Host { host: name.into(), port: 80 }
}

fn target(last: u8) -> Target {
    Target { rank: 0, ip: [10, 0, 0, last].into(), port: 80, weight: 1 }
}

fn answer(last: &[u8], ttl: u64) -> Result<Answer, String> {
    let targets = last.iter().map(|last| target(*last)).collect();
    Ok(Answer { targets, ttl: Duration::from_secs(ttl), missing: None })
}

fn config(names: &[&str], keys: &str) -> Config {
    let endpoints: Vec<_> = names.iter().map(|name| format!("\"{name}:80\"")).collect();
    let text = format!(
        "[resolver]\n{keys}\n[[backends]]\nname = \"b\"\nendpoints = [{}]\n",
        endpoints.join(", ")
    );
    parse("test", &text).unwrap_or_else(|problems| panic!("{problems}"))
}

impl World {
    fn new(names: &[&str], keys: &str) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any time will do")]
        let start = Instant::now();
        Self { resolve: Resolve::default().following(&config(names, keys), start), start }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    /// Gives the one lookup that is due this answer. False if none is due.
    fn look_up(&mut self, seconds: u64, result: Result<Answer, String>) -> bool {
        let now = self.at(seconds);
        let Some(name) = self.resolve.due(0, now) else { return false };
        assert!(self.resolve.due(0, now).is_none(), "each name has one lookup at a time");
        self.resolve.found(&name, result, now);
        true
    }

    fn addresses(&self) -> Vec<Target> {
        self.resolve.resolved().0.remove(&host("a.test")).unwrap_or_default()
    }
}

#[test]
fn a_name_is_resolved_again_by_its_time_to_live_within_bounds() {
    let mut world = World::new(&["a.test"], "min_ttl = \"2s\"\nmax_ttl = \"10s\"");
    assert!(world.look_up(0, answer(&[2, 1, 1], 0)));
    assert_eq!(world.addresses(), [target(1), target(2)], "sorted, and each once");
    assert!(world.resolve.take_changed() && !world.resolve.take_changed());
    assert!(!world.look_up(1, answer(&[3], 5)), "not before min_ttl");
    assert!(world.look_up(2, answer(&[1, 2], 5)));
    assert!(!world.resolve.take_changed(), "the same addresses are no change");
    assert!(!world.look_up(6, answer(&[3], 5)));
    assert!(world.look_up(7, answer(&[3], 86_400)));
    assert!(!world.look_up(16, answer(&[4], 1)));
    assert!(world.look_up(17, answer(&[4], 1)), "not after max_ttl");
    assert_eq!(world.addresses(), [target(4)]);
}

#[test]
fn the_last_good_addresses_stay_while_lookups_fail() {
    let mut world = World::new(&["a.test"], "");
    assert!(world.look_up(0, Err("no such name".into())));
    assert_eq!(world.resolve.figures().unresolved, 1);
    assert!(world.look_up(1, answer(&[1], 5)), "a failure is tried again after a second");
    assert!(world.look_up(6, Err("timeout".into())));
    assert!(world.look_up(7, Err("timeout".into())));
    assert!(!world.look_up(8, Err("timeout".into())), "then after two seconds");
    let figures = world.resolve.figures();
    assert_eq!((figures.kept, figures.unresolved), (1, 0));
    assert_eq!(figures.lookups, Tally { ok: 1, failed: 3 });
    for later in [100, 10_000, 1_000_000] {
        assert!(world.look_up(later, Err("timeout".into())));
        assert_eq!(world.addresses(), [target(1)], "for ever");
    }
    assert!(world.look_up(1_000_060, answer(&[2], 5)));
    assert_eq!(world.addresses(), [target(2)]);
    assert_eq!(world.resolve.figures().kept, 0);
}

#[test]
fn addresses_are_dropped_after_keep() {
    let mut world = World::new(&["a.test"], "keep = \"10s\"");
    assert!(world.look_up(0, answer(&[1], 5)));
    for at in [5, 6, 8, 12] {
        assert!(world.look_up(at, Err("timeout".into())), "{at}");
        assert_eq!(world.addresses(), [target(1)], "{at}");
    }
    assert!(world.look_up(15, Err("timeout".into())), "the end of `keep` is not missed");
    assert!(world.addresses().is_empty() && world.resolve.take_changed());
    assert!(!world.look_up(16, Err("timeout".into())));
}

#[test]
fn a_part_that_is_missing_takes_nothing_away() {
    let mut world = World::new(&["a.test"], "");
    assert!(world.look_up(0, answer(&[1, 2], 60)));
    let part = Answer {
        targets: vec![target(3)],
        ttl: Duration::from_secs(60),
        missing: Some("AAAA: timeout".into()),
    };
    assert!(world.look_up(60, Ok(part)));
    assert_eq!(world.addresses(), [target(1), target(2), target(3)]);
    assert!(world.look_up(61, answer(&[3], 60)), "the rest is asked for soon");
    assert_eq!(world.addresses(), [target(3)]);
}

#[test]
fn a_reload_keeps_addresses_and_forgets_names_that_are_gone() {
    let mut world = World::new(&["a.test"], "");
    assert!(world.look_up(0, answer(&[1], 60)));
    let now = world.at(1);
    let follow = |world: &mut World, names: &[&str], keys: &str| {
        world.resolve = world.resolve.following(&config(names, keys), now);
    };
    follow(&mut world, &["a.test", "b.test"], "");
    assert_eq!(world.resolve.due(0, now), Some(host("b.test")));
    assert_eq!(world.addresses(), [target(1)]);
    follow(&mut world, &["a.test"], "");
    world.resolve.found(&host("b.test"), answer(&[9], 60), now);
    assert_eq!(world.resolve.resolved().0.len(), 1, "nobody asks for it any more");
    follow(&mut world, &["a.test"], "servers = [\"127.0.0.1\"]");
    assert_eq!(world.resolve.due(0, now), Some(host("a.test")), "another server may know better");
}

#[test]
fn a_thousand_names_are_looked_up_a_few_at_a_time() {
    let names: Vec<String> = (0..1_000).map(|n| format!("n{n}.test")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(&names, "");
    let mut seen = BTreeSet::new();
    for _ in 0..1_000_usize.div_ceil(MOST_UNDER_WAY) {
        let now = world.at(0);
        let mut begun = Vec::new();
        while let Some(name) = world.resolve.due(begun.len(), now) {
            begun.push(name);
        }
        assert!(begun.len() <= MOST_UNDER_WAY);
        for name in begun {
            world.resolve.found(&name, answer(&[1], 60), now);
            seen.insert(name);
        }
    }
    assert_eq!(seen.len(), 1_000);
}
