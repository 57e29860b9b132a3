use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn limit(records: &Arc<SourceRecords>) -> SourceLimit {
    SourceLimit { prefix_v6: 64, ..SourceLimit::nothing(1, Arc::clone(records)) }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn small() -> Arc<SourceRecords> {
    Arc::new(SourceRecords::new(64, 1))
}

#[test]
fn a_place_is_free_once_it_is_dropped() {
    let records = small();
    let limit = SourceLimit { sessions: 1, ..limit(&records) };
    let one = ip("192.0.2.1");
    let place = limit.place(one, 0).expect("the first").expect("it is counted");
    assert_eq!(limit.place(one, 0).err(), Some(OverLimit));
    let guest = limit.arriving_place(one, 0).expect("it is counted");
    drop(place);
    assert_eq!(limit.place(one, 0).err(), Some(OverLimit), "the guest has the place");
    drop(guest);
    assert!(limit.place(one, 0).is_ok());
    assert_eq!(records.sessions(), 0);
}

#[test]
fn a_source_has_at_most_so_many_sessions_and_others_have_theirs() {
    let records = small();
    let limit = SourceLimit { sessions: 2, ..limit(&records) };
    let [one, two] = ["192.0.2.1", "192.0.2.2"].map(ip);
    let place = limit.enter(one, 0).expect("the first").expect("it is counted");
    assert!(limit.enter(one, 0).is_ok());
    assert_eq!(limit.enter(one, 0), Err(OverLimit));
    assert!(limit.enter(two, 0).is_ok());
    // As a worker says it that has an IPv6 socket.
    assert_eq!(limit.enter(ip("::ffff:192.0.2.1"), 0), Err(OverLimit));
    records.leave(place);
    assert!(limit.enter(one, 0).is_ok());
    assert_eq!(limit.enter(one, 0), Err(OverLimit));
    assert_eq!(records.sessions(), 3);
    // Another limit has records of its own.
    assert!(SourceLimit { key: 2, ..limit }.enter(one, 0).is_ok());
}

#[test]
fn limits_with_one_key_share_a_place() {
    let records = small();
    let (bytes, datagrams) = (Some(Rate::new(5_000, 5_000)), Some(Rate::new(9, 9)));
    records.count_bytes();
    let one = SourceLimit { sessions: 1, ..limit(&records) };
    let other = SourceLimit { sessions: 1, bytes, datagrams, ..limit(&records) };
    let stranger = SourceLimit { key: records.key_of("another"), ..other.clone() };
    let [client, neighbour] = ["192.0.2.1", "192.0.2.2"].map(ip);
    let mut place = one.place(client, 0).expect("the first").expect("it is counted");
    assert_eq!(other.place(client, 0).err(), Some(OverLimit), "it is counted together");
    assert!(!stranger.shares(&mut place, client));
    assert!(!other.shares(&mut place, neighbour));
    assert!(place.datagrams().is_none() && place.bytes(false).is_none());
    assert!(other.shares(&mut place, client));
    assert_eq!(place.datagrams().map(|(rate, _)| rate), datagrams);
    assert_eq!(place.bytes(true).map(|(rate, _)| rate), bytes);
    assert_eq!(records.sessions(), 1);
    drop(place);
    assert!(other.place(client, 0).is_ok());
}

#[test]
fn addresses_with_one_prefix_are_one_source_and_exceptions_are_none() {
    let records = small();
    let limit = SourceLimit { sessions: 1, prefix_v4: 24, ..limit(&records) };
    let limit = SourceLimit { except: Box::new(["198.51.100.0/24".parse().unwrap()]), ..limit };
    assert!(limit.enter(ip("192.0.2.1"), 0).is_ok());
    assert_eq!(limit.enter(ip("192.0.2.200"), 0), Err(OverLimit));
    assert!(limit.enter(ip("192.0.3.1"), 0).is_ok());
    assert!(limit.enter(ip("2001:db8::1"), 0).is_ok());
    assert_eq!(limit.enter(ip("2001:db8::ffff:1"), 0), Err(OverLimit));
    assert!(limit.enter(ip("2001:db8:0:1::1"), 0).is_ok());
    for _ in 0..3 {
        assert_eq!(limit.enter(ip("198.51.100.7"), 0), Ok(None));
        // A client of a Unix socket.
        assert_eq!(limit.enter(Ipv4Addr::UNSPECIFIED.into(), 0), Ok(None));
    }
}

#[test]
fn new_sessions_have_a_rate_and_a_burst() {
    let records = small();
    let limit = SourceLimit { opening: Some(Rate::new(10, 3)), ..limit(&records) };
    let start = 1_700_000_000_000_000;
    let mut opened = |millis: u64| limit.enter(ip("192.0.2.1"), start + millis * 1_000).is_ok();
    assert_eq!([0, 0, 0, 0].map(&mut opened), [true, true, true, false]);
    assert_eq!([99, 100, 100].map(&mut opened), [false, true, false]);
    // Sessions that were refused cost nothing.
    assert_eq!([10_000; 4].map(&mut opened), [true, true, true, false]);
    assert_eq!(records.sessions(), 7);
}

#[test]
fn datagrams_have_a_rate() {
    let records = small();
    let limit = SourceLimit { datagrams: Some(Rate::new(1_000, 1_000)), ..limit(&records) };
    let place = limit.enter(ip("192.0.2.1"), 0).expect("no limit").expect("it is counted");
    assert!(limit.may_send(place, (999, 0), 1));
    assert!(!limit.may_send(place, (2, 0), 1));
    assert!(limit.may_send(place, (1, 0), 1));
    assert!(limit.may_send(place, (2, 0), 2_001));
}

#[test]
fn bytes_have_a_rate_each_way() {
    let records = small();
    records.count_bytes();
    let bytes = Some(Rate::new(1_000, 1_000));
    let datagrams = Some(Rate::new(10, 2));
    let limit = SourceLimit { bytes, datagrams, ..limit(&records) };
    let place = limit.enter(ip("192.0.2.1"), 1).expect("no limit").expect("it is counted");
    assert!(limit.may_send(place, (1, 600), 1));
    assert!(!limit.may_send(place, (1, 600), 1));
    assert!(limit.may_send(place, (1, 400), 1), "a datagram that was refused costs nothing");
    assert!(limit.may_get(place, 1_000, 1) && !limit.may_get(place, 1, 1));
    assert!(limit.may_get(place, 100, 100_001));
}

#[test]
fn new_sources_do_not_push_out_one_that_takes_too_much() {
    let records = small();
    let limit = SourceLimit { opening: Some(Rate::new(1, 1)), ..limit(&records) };
    let offender = ip("192.0.2.1");
    records.leave(limit.enter(offender, 1).expect("the first").expect("it is counted"));
    assert_eq!(limit.enter(offender, 1), Err(OverLimit));
    for other in 0..10_000u32 {
        // Each comes once, and is paid for before the offender is.
        let other = IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + other));
        let quick = SourceLimit { opening: Some(Rate::new(1_000, 1)), ..limit.clone() };
        records.leave(quick.enter(other, 1).expect("one is fine").expect("it is counted"));
    }
    assert_eq!(limit.enter(offender, 1), Err(OverLimit));
    assert!(limit.enter(offender, 1_000_001).is_ok());
}

#[test]
fn a_full_group_lets_nobody_in_and_pushes_nobody_out() {
    let records = Arc::new(SourceRecords::new(WAYS, 1));
    let limit = SourceLimit { sessions: 2, ..limit(&records) };
    let client = |n: usize| IpAddr::from([10, 0, 0, u8::try_from(n).expect("few")]);
    let places: Vec<_> = (0..WAYS).map(|n| limit.enter(client(n), 0).expect("room")).collect();
    assert_eq!(limit.enter(client(200), 0), Err(OverLimit));
    assert!((0..WAYS).all(|n| limit.enter(client(n), 0).is_ok()));
    assert!((0..WAYS).all(|n| limit.enter(client(n), 0).is_err()));
    for place in [places[3], places[3]] {
        records.leave(place.expect("it is counted"));
    }
    assert!(limit.enter(client(200), 0).is_ok());
}

/// As if another worker had made a record for the source after this one had looked for it.
#[test]
fn a_record_is_given_up_for_another_of_the_same_source() {
    let (records, tag) = (SourceRecords::new(WAYS, 1), 7);
    records.words[3].store(tag << SESSIONS | 1, Relaxed);
    assert_eq!(records.take_over(0, tag, 0), Some(3));
    let of_source = |word: &&AtomicU64| word.load(Relaxed) >> SESSIONS == tag;
    assert_eq!(records.words.iter().filter(of_source).count(), 1);
    assert_eq!(records.sessions(), 1);
}

#[test]
fn threads_that_open_and_close_at_once_never_exceed_the_limit() {
    let records = small();
    let limit = SourceLimit { sessions: 5, ..limit(&records) };
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let limit = &limit;
            scope.spawn(move || {
                let mut held = Vec::new();
                for round in 0..20_000u32 {
                    // A new source each time presses on the groups.
                    let other = Ipv4Addr::from_bits(0x0a00_0000 + round * 4 + u32::from(thread));
                    let other = limit.enter(other.into(), 0);
                    if let Ok(Some(place)) = limit.enter(ip("192.0.2.1"), 0) {
                        held.push(place);
                    }
                    assert!(held.len() <= 5);
                    if round % 3 != 0
                        && let Some(place) = held.pop()
                    {
                        limit.records.leave(place);
                    }
                    if let Ok(Some(place)) = other {
                        limit.records.leave(place);
                    }
                }
                held.into_iter().for_each(|place| limit.records.leave(place));
            });
        }
    });
    assert_eq!(records.sessions(), 0);
}

proptest! {
    /// As a map without any limit of room would have it.
    #[test]
    fn sessions_are_as_a_map_would_count_them(
        steps in proptest::collection::vec((0u8..6, any::<bool>()), 0..200),
        most in 1u32..4,
    ) {
        let records = small();
        let limit = SourceLimit { sessions: most, ..limit(&records) };
        let mut held: BTreeMap<u8, Vec<SourceRecord>> = BTreeMap::new();
        for (source, opens) in steps {
            let held = held.entry(source).or_default();
            if !opens {
                held.pop().into_iter().for_each(|place| records.leave(place));
                continue;
            }
            let entered = limit.enter(IpAddr::from([10, 0, 0, source]), 0);
            prop_assert_eq!(entered.is_ok(), held.len() < most as usize);
            held.extend(entered.ok().flatten());
        }
        let all: usize = held.values().map(Vec::len).sum();
        prop_assert_eq!(records.sessions(), all as u64);
    }

    /// Sources, sessions and rates at their limits, and more sources than there is room for.
    #[test]
    fn standing_says_what_enter_will_find(
        steps in proptest::collection::vec((0u8..100, any::<bool>(), 0u64..300_000), 0..300),
    ) {
        let records = small();
        let opening = Some(Rate::new(2, 2));
        let limit = SourceLimit { sessions: 3, opening, ..limit(&records) };
        let mut held: BTreeMap<u8, Vec<SourceRecord>> = BTreeMap::new();
        let mut now = 0;
        for (source, ends, pause) in steps {
            now += pause;
            // A few sources come often.
            let source = if source < 80 { source } else { source % 3 };
            let held = held.entry(source).or_default();
            if ends {
                held.pop().into_iter().for_each(|place| records.leave(place));
            }
            let client = IpAddr::from([10, 0, 0, source]);
            let standing = limit.standing(client, now).expect("a limit");
            prop_assert_eq!(standing.sessions, held.len() as u64);
            let entered = limit.enter(client, now);
            prop_assert_eq!(entered.is_ok(), standing.bar.is_none(), "{:?}", standing);
            held.extend(entered.ok().flatten());
        }
    }
}
