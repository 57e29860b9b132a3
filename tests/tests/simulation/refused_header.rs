//! Endpoints that take their PROXY header and refuse the session.

use std::net::SocketAddr;

use config_sync::table::limit::Load;
use config_sync::table::routing::{
    EndpointId, OnUnavailable, Protocol, ProxyVersion, RoutingTable, SendProxy, SocketId,
};
use ringway::stats::records::Record;
use ringway_tests::sim::fake::Fake;
use ringway_tests::sim::kernel::Kernel;
use ringway_tests::sim::kernel::faults::Faults;
use ringway_tests::sim::scenarios::setup::{self, Setup};
use ringway_tests::sim::tcp::conn::{ConnId, EndpointMode};

use crate::LIMITS;

/// An endpoint that takes its PROXY header and closes or resets has refused the session: another
/// endpoint serves it, and the client hears nothing of the first. As soon as a byte went either
/// way, or if the endpoint waited for longer than a connect may take, or is the only one, the end
/// is passed on.
#[test]
fn a_refused_header_is_an_attempt_that_failed() {
    let ends: [fn(&mut Kernel, ConnId); 2] = [Kernel::peer_close, Kernel::peer_reset];
    let (one, two) = (Refusing::of(1), Refusing::of(2));
    for end in ends {
        assert!(is_tried_elsewhere(two, end, |_, _, _| ()), "nothing went either way");
        assert!(!is_tried_elsewhere(one, end, |_, _, _| ()), "there is no other");
        let client_speaks = |fake: &mut Fake, client, _| _ = fake.kernel.peer_write(client, 1);
        assert!(!is_tried_elsewhere(two, end, client_speaks), "the endpoint has a client's byte");
        let endpoint_speaks = |fake: &mut Fake, _, endpoint| {
            fake.kernel.peer_write(endpoint, 1);
        };
        assert!(!is_tried_elsewhere(two, end, endpoint_speaks), "the client has a byte");
        let client_ends = |fake: &mut Fake, client, _| fake.kernel.peer_fin(client);
        assert!(!is_tried_elsewhere(two, end, client_ends), "the endpoint has the client's end");
        let waits = |fake: &mut Fake, _, _| fake.kernel.now += 3_000_000;
        assert!(!is_tried_elsewhere(two, end, waits), "it gave up waiting");
    }
}

/// The other endpoint may be one of the route's other backends, if the route goes on to these.
#[test]
fn a_refused_header_goes_on_to_the_routes_other_backend() {
    let ends: [fn(&mut Kernel, ConnId); 2] = [Kernel::peer_close, Kernel::peer_reset];
    for end in ends {
        let next = Refusing { on_unavailable: Some(OnUnavailable::Next), ..Refusing::of(2) };
        assert!(is_tried_elsewhere(next, end, |_, _, _| ()), "the other backend has an endpoint");
        let refuse = Refusing { on_unavailable: Some(OnUnavailable::Refuse), ..next };
        assert!(!is_tried_elsewhere(refuse, end, |_, _, _| ()), "the route does not go on");
        let last = Refusing { attempts: 1, ..next };
        assert!(is_tried_elsewhere(last, end, |_, _, _| ()), "it was the backend's last attempt");
        let last = Refusing { attempts: 1, ..Refusing::of(2) };
        assert!(!is_tried_elsewhere(last, end, |_, _, _| ()), "it was the last attempt");
    }
}

/// An endpoint that has all its sessions is no alternative.
#[test]
fn a_refused_header_is_passed_on_if_all_other_endpoints_are_full() {
    let another = |fake: &mut Fake, _, _| {
        let client = SocketAddr::from(([198, 18, 0, 1], 2_000));
        fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096);
        while fake.step(fake.kernel.now + 10_000) {}
        assert_eq!(fake.kernel.established.drain(..).count(), 1, "it has the other endpoint");
    };
    for next in [None, Some(OnUnavailable::Next)] {
        let two = Refusing { most: 2, on_unavailable: next, ..Refusing::of(2) };
        assert!(is_tried_elsewhere(two, Kernel::peer_close, another), "there is a place");
        let full = Refusing { most: 1, ..two };
        assert!(!is_tried_elsewhere(full, Kernel::peer_close, another), "there is none");
    }
}

/// A session does not come back to an endpoint that could not be connected to before, although
/// another session has found the endpoint well since.
#[test]
fn a_refused_header_does_not_lead_back_to_an_endpoint_that_was_tried() {
    let (table, places) = Refusing::of(2).table();
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(table);
    let modes = |fake: &mut Fake, is_well: [bool; 2]| {
        for (place, is_well) in places.iter().zip(is_well) {
            let mode = if is_well { EndpointMode::Accepts } else { EndpointMode::Refuses };
            fake.kernel.set_endpoint(*place, mode);
        }
    };
    let come = |fake: &mut Fake, port| {
        let client = SocketAddr::from(([198, 18, 0, 1], port));
        let client = fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096);
        while fake.step(fake.kernel.now + 10_000) {}
        let endpoint = fake.kernel.established.pop().expect("it is connected");
        (client, endpoint, fake.kernel.conn(endpoint).peer == places[0])
    };
    modes(&mut fake, [true, true]);
    let (_, _, first) = come(&mut fake, 1);
    // The turn is the other's, which refuses.
    modes(&mut fake, [first, !first]);
    let (client, endpoint, is_first) = come(&mut fake, 2);
    assert_eq!(is_first, first);
    // Now that one is well again, and the next session finds out.
    modes(&mut fake, [!first, first]);
    let (_, _, is_first) = come(&mut fake, 3);
    assert_eq!(is_first, !first);
    fake.kernel.peer_read(endpoint, u64::MAX);
    fake.kernel.peer_close(endpoint);
    while fake.step(fake.kernel.now + 10_000) {}
    assert!(fake.kernel.established.is_empty(), "it was tried already");
    let heard = fake.kernel.conn(client);
    assert!(heard.reset_seen || heard.outbound.fin, "the client learns of the end");
}

/// Endpoints that are sent headers, and the route to them.
#[derive(Clone, Copy)]
struct Refusing {
    endpoints: u16,
    attempts: u8,
    /// The most sessions of an endpoint. 0: no limit.
    most: u32,
    /// The first endpoint has a backend of its own.
    on_unavailable: Option<OnUnavailable>,
}

impl Refusing {
    fn of(endpoints: u16) -> Self {
        Self { endpoints, attempts: 3, most: 0, on_unavailable: None }
    }

    fn table(self) -> (RoutingTable, Vec<SocketAddr>) {
        let address = |port| SocketAddr::new(setup::HOME, port);
        let places: Vec<_> = (54..54 + self.endpoints).map(address).collect();
        let passes_on = self.on_unavailable.is_some();
        let setup = Setup { protocol: Protocol::Tcp, passes_on, ..setup::UDP };
        let mut table = setup.table(address(53), &places);
        table.log_opens = true;
        for backend in &mut table.backends {
            let (version, unique_id, crc32c) = (ProxyVersion::V2, false, false);
            backend.send_proxy = Some(SendProxy { version, unique_id, crc32c });
            backend.connect_attempts = self.attempts;
            if self.most > 0 {
                let load = |_| Some(Load::up_to(self.most));
                backend.loads = backend.endpoints.iter().map(load).collect();
            }
        }
        if let Some(on_unavailable) = self.on_unavailable {
            table.routes[0].on_unavailable = on_unavailable;
        }
        (table, places)
    }
}

/// A session to one of these endpoints. Then `before` happens, and then the endpoint's end.
/// Returns whether another endpoint has the session.
fn is_tried_elsewhere(
    refusing: Refusing,
    end: fn(&mut Kernel, ConnId),
    before: impl Fn(&mut Fake, ConnId, ConnId),
) -> bool {
    let (table, places) = refusing.table();
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(table);
    for place in &places {
        fake.kernel.set_endpoint(*place, EndpointMode::Accepts);
    }
    let wait = |fake: &mut Fake| while fake.step(fake.kernel.now + 10_000) {};
    let client = SocketAddr::from(([198, 18, 0, 1], 1_000));
    let client = fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096);
    wait(&mut fake);
    let first = fake.kernel.established.pop().expect("it is connected");
    before(&mut fake, client, first);
    wait(&mut fake);
    fake.kernel.peer_read(first, u64::MAX);
    end(&mut fake.kernel, first);
    wait(&mut fake);
    let id = |conn: ConnId, fake: &Fake| {
        let at = places.iter().position(|place| *place == fake.kernel.conn(conn).peer);
        EndpointId(at.expect("an endpoint") as u32)
    };
    let refused = fake.counters.endpoint(id(first, &fake));
    let heard = fake.kernel.conn(client);
    let is_told = heard.reset_seen || heard.outbound.fin;
    let Some(second) = fake.kernel.established.pop() else {
        assert!(is_told, "the client learns of the end");
        assert_eq!(refused.connect_failures.get(), 0);
        return false;
    };
    assert!(!is_told, "the client hears of the refusal");
    assert_ne!(id(first, &fake), id(second, &fake));
    assert_eq!((refused.connect_failures.get(), refused.failures.get()), (1, 1));
    assert_eq!((refused.opened.get(), refused.closed.get()), (1, 1));
    // The session is like any other now.
    fake.kernel.peer_write(second, 9);
    fake.kernel.peer_write(client, 5);
    wait(&mut fake);
    assert_eq!(fake.kernel.peer_read(client, u64::MAX), 9);
    let header = fake.kernel.conn(second).proxied.told();
    assert_eq!(fake.kernel.peer_read(second, u64::MAX), header + 5);
    fake.kernel.peer_fin(client);
    fake.kernel.peer_fin(second);
    wait(&mut fake);
    let closed = fake.records.iter().filter_map(|record| match record {
        Record::Closed(record) => Some(record),
        _ => None,
    });
    let closed = closed.filter(|record| record.client.port() == 1_000);
    let closed: Vec<_> = closed.map(|record| (record.endpoint, record.refused)).collect();
    assert_eq!(closed, [(Some(id(second, &fake)), false)]);
    let opened = fake.records.iter().filter_map(|record| match record {
        Record::Opened(record) if record.client.port() == 1_000 => record.endpoint,
        _ => None,
    });
    assert_eq!(opened.collect::<Vec<_>>(), [id(first, &fake)], "a session begins once");
    true
}
