use super::*;
use crate::check::parse;
use crate::gateway::translate::outline::{outline, part};

const EVERY: Duration = Duration::from_secs(5);

fn held(holder: &str) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(holder.into()),
        lease_duration_seconds: Some(15),
        ..LeaseSpec::default()
    }
}

#[test]
fn lead_is_taken_only_where_nobody_has_renewed_it() {
    let step =
        |holder: &str, age| decide(Some(&held(holder)), "a", Duration::from_secs(age), EVERY);
    assert_eq!(step("a", 4), Step::Wait);
    assert_eq!(step("a", 6), Step::Renew);
    assert_eq!(step("b", 14), Step::Wait);
    assert_eq!(step("b", 16), Step::Take);
    assert_eq!(step("", 0), Step::Take, "it was given up");
    assert_eq!(decide(None, "a", Duration::ZERO, EVERY), Step::Take);
}

fn of(ports: &[u16]) -> Outline {
    let listener = |port: &u16| {
        format!(
            "[[listeners]]\nname = \"l{port}\"\nprotocol = \"TCP\"\n\
             address = \"127.0.0.1:{port}\"\n"
        )
    };
    let text: String = ports.iter().map(listener).collect();
    outline(&parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}")))
}

fn replica(name: &str, applied: &Outline, version: &str, failed: &str) -> Lease {
    let applied = applied.to_string();
    let annotations = [(APPLIED, applied.as_str()), (VERSION, version), (FAILED, failed)];
    let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Lease {
        metadata: ObjectMeta {
            name: Some(name.into()),
            annotations: Some(annotations.into()),
            ..ObjectMeta::default()
        },
        spec: Some(held(name)),
    }
}

#[test]
fn replicas_of_this_version_are_behind_in_what_they_have_not_applied() {
    let this = env!("CARGO_PKG_VERSION");
    let (now, before) = (of(&[80, 81]), of(&[80]));
    let (a, b) = (replica("a", &now, this, "{}"), replica("b", &before, this, "{}"));
    let old = replica("old", &of(&[]), "0.0.1", "{}");
    let level = |replicas: &[&Lease]| {
        let mut level = Level::default();
        replicas.iter().for_each(|lease| level.other(&now, lease));
        level
    };
    let lags = BTreeSet::from([part("l81")]);
    let behind = vec!["b".to_owned()];
    assert_eq!(level(&[&a, &b]), Level { behind, lags, ..Level::default() });
    assert_eq!(level(&[&a, &old]), Level::default());
    let c = replica("c", &now, this, r#"{"l": "no"}"#);
    let failed = BTreeMap::from([("l".to_owned(), "on c: no".to_owned())]);
    assert_eq!(level(&[&a, &c]), Level { failed, ..Level::default() });
    let mut unreadable = a.clone();
    unreadable.metadata.annotations = Some([(VERSION.to_owned(), this.to_owned())].into());
    assert_eq!(level(&[&unreadable]).lags.len(), 256);
}

#[test]
fn failures_that_do_not_fit_stand_for_all() {
    let failed = |many: usize| -> BTreeMap<String, String> {
        (0..many).map(|at| (format!("infra/gateway/{at:04}"), "in use".repeat(10))).collect()
    };
    let few = failed(100);
    assert_eq!(bounded(&few).len(), 100);
    assert!(!bounded(&few).contains_key(""));
    let many = failed(5_000);
    let told = bounded(&many);
    let rest = 5_000 - (told.len() - 1);
    assert!(told[""].starts_with(&format!("{rest} more listeners could not be opened")));
    assert!(serde_json::to_string(&told).expect("JSON").len() <= MOST_FAILED);
}

#[test]
fn leases_do_not_grow_old_while_the_api_server_is_silent() {
    let (lasts, start) = (Duration::from_secs(15), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut state = State::default();
    state.hear(at(0), lasts);
    state.hear(at(6), lasts);
    assert_eq!(state.judges_as_of(at(13), lasts), at(13));
    assert_eq!(state.judges_as_of(at(14), lasts), at(6));
    assert_eq!(state.judges_as_of(at(4_000), lasts), at(6));
    // After the silence, the other replicas have as long as a Lease lasts.
    state.hear(at(4_000), lasts);
    state.hear(at(4_005), lasts);
    assert_eq!(state.judges_as_of(at(4_010), lasts), at(6));
    state.hear(at(4_011), lasts);
    assert_eq!(state.judges_as_of(at(4_015), lasts), at(4_015));
}
