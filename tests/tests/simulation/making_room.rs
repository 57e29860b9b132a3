//! Full tables and limits: who makes room for whom.

use std::net::SocketAddr;

use config_sync::table::routing::{
    AcceptProxy, Hosts, Limits, Listener, ListenerId, Protocol, RoutingTable, Socket, SocketId,
};
use ringway::stats::records::CloseReason;
use ringway_tests::hello::client_hello;
use ringway_tests::sim::fake::Fake;
use ringway_tests::sim::kernel::faults::Faults;
use ringway_tests::sim::scenarios::setup::{self, Setup};
use ringway_tests::sim::tcp::conn::{ConnId, EndpointMode};

use crate::{LIMITS, closed, closed_ports};

/// Clients without a ClientHello have half of the table. With one more, the client that has waited
/// longest makes room. Whoever has a destination stays.
#[test]
fn clients_that_send_no_hello_keep_nobody_out() {
    let address = |port| SocketAddr::new(setup::HOME, port);
    let setup = Setup { protocol: Protocol::Tls, ..setup::UDP };
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(setup.table(address(53), &[address(54)]));
    fake.kernel.set_endpoint(address(54), EndpointMode::Accepts);
    let hello = client_hello(Some("a.test"), 0, 1 << 14);
    let come = |fake: &mut Fake, port, bytes| {
        let client = SocketAddr::from(([198, 18, 0, 1], port));
        let conn = fake.kernel.peer_connect(SocketId(0), client, hello.clone(), 4096);
        while fake.step(fake.kernel.now + 10_000) {}
        fake.kernel.peer_write(conn, bytes);
        while fake.step(fake.kernel.now + 10_000) {}
        (conn, fake.kernel.established.drain(..).count())
    };
    let whole = hello.len() as u64;
    let (first, served) = come(&mut fake, 1, whole);
    assert_eq!(served, 1);
    let silent: Vec<_> = (2..202).map(|port| come(&mut fake, port, port as u64 % 2).0).collect();
    assert_eq!(come(&mut fake, 202, whole).1, 1, "an honest client is served");
    let mut is_reset = |conn: &ConnId| {
        fake.kernel.peer_read(*conn, u64::MAX);
        fake.kernel.conn(*conn).reset_seen
    };
    let left: Vec<_> = silent.iter().map(|conn| !is_reset(conn)).collect();
    let count = left.iter().filter(|left| **left).count();
    assert!((31..=32).contains(&count), "{count} of the half of 64 places");
    assert!(left[left.len() - count..].iter().all(|left| *left), "the oldest go first");
    assert!(!is_reset(&first), "it has a destination");
}

/// With `max_sessions = 1` a client that closes and comes back at once is let in, whatever its
/// endpoint does about the sessions before; but who only half-closes does not have any number.
#[test]
fn a_session_that_begins_to_end_makes_room_for_another() {
    let address = |port| SocketAddr::new(setup::HOME, port);
    let setup = Setup { protocol: Protocol::Tcp, max_sessions: 1, ..setup::UDP };
    let limits = Limits { sessions: 100, ..LIMITS };
    let mut fake = Fake::new(1, limits, Faults::default());
    fake.apply(setup.table(address(53), &[address(54)]));
    fake.kernel.set_endpoint(address(54), EndpointMode::Accepts);
    let come = |fake: &mut Fake, port, before: Option<ConnId>| {
        if let Some(before) = before {
            fake.kernel.peer_fin(before);
            while fake.step(fake.kernel.now + 1_000) {}
        }
        let client = SocketAddr::from(([198, 18, 0, 1], port));
        let conn = fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096);
        while fake.step(fake.kernel.now + 10_000) {}
        (conn, fake.kernel.established.drain(..).count())
    };
    let (first, served) = come(&mut fake, 1, None);
    assert_eq!(served, 1);
    assert_eq!(come(&mut fake, 2, None).1, 0, "the one place is taken");
    let mut last = first;
    for port in 3..67 {
        let (conn, served) = come(&mut fake, port, Some(last));
        assert_eq!(served, 1, "a client that comes back");
        last = conn;
    }
    assert_eq!(come(&mut fake, 67, Some(last)).1, 0, "64 have half-closed, and stay");
    fake.kernel.peer_reset(first);
    while fake.step(fake.kernel.now + 1_000) {}
    assert_eq!(come(&mut fake, 68, None).1, 1);
    let counters = fake.counters.listener(ListenerId(0));
    assert_eq!(counters.refused[CloseReason::ListenerLimit as usize].get(), 2);
}

/// Two TCP listeners whose clients come through a proxy. The first has one place, for which others
/// wait.
fn delaying_table() -> RoutingTable {
    let address = |port| SocketAddr::new(setup::HOME, port);
    let setup = Setup { protocol: Protocol::Tcp, delays_above: 1, ..setup::UDP };
    let mut table = setup.table(address(53), &[address(54)]);
    let from = ["198.18.0.0/15".parse().expect("a range")].into();
    table.sockets[0].accept_proxy = AcceptProxy { from, only: false };
    let mut listeners = Hosts::new([1, 2, 3, 4]);
    listeners.insert(None, 1);
    let (id, of) = (SocketId(1), table.sockets[0].clone());
    table.sockets.push(Socket { id, address: address(63).into(), listeners, ..of });
    let (id, of) = (ListenerId(1), table.listeners[0].clone());
    table.listeners.push(Listener { id, limit: None, ..of });
    table
}

/// A client comes, and all that follows at once. If it speaks, it says by a PROXY header who it is.
fn come(fake: &mut Fake, socket: u32, port: u16, speaks: bool) -> ConnId {
    let conn = connect(fake, socket, port, speaks);
    while fake.step(fake.kernel.now + 1_000) {}
    conn
}

/// A client connects. The worker has not had its turn yet.
fn connect(fake: &mut Fake, socket: u32, port: u16, speaks: bool) -> ConnId {
    let client = SocketAddr::from(([198, 18, 0, 1], port));
    let says = SocketAddr::from(([203, 0, 113, 1], port));
    let header = format!("PROXY TCP4 203.0.113.1 192.0.2.9 {port} 80\r\n").into_bytes();
    let len = header.len() as u64;
    let conn = fake.kernel.peer_connect(SocketId(socket), client, header, 4096);
    let proxied = &mut fake.kernel.conn_mut(conn).proxied;
    (proxied.header, proxied.says, proxied.must) = (len, Some(says), true);
    if speaks {
        fake.kernel.peer_write(conn, len);
    }
    conn
}

/// Where the session table is full, silent clients make room, those first who have waited longest.
/// When there are none, the last one makes room of those who wait for a place at their listener.
#[test]
fn silent_clients_make_room_before_those_who_wait_for_a_limit() {
    let limits = Limits { sessions: 8, ..LIMITS };
    let mut fake = Fake::new(1, limits, Faults::default());
    fake.apply(delaying_table());
    fake.kernel.set_endpoint(SocketAddr::new(setup::HOME, 54), EndpointMode::Accepts);
    let clients: Vec<_> = (1..=4).map(|port| come(&mut fake, 0, port, false)).collect();
    // The first has the place, and the others wait for it.
    for client in &clients {
        fake.kernel.peer_write(*client, fake.kernel.conn(*client).proxied.header);
        while fake.step(fake.kernel.now + 1_000) {}
    }
    assert_eq!(fake.kernel.established.drain(..).count(), 1);
    let silent = 11..=14;
    for port in silent {
        come(&mut fake, 1, port, false);
    }
    assert_eq!((fake.counters.sessions.get(), closed(&fake).count()), (8, 0), "it is full");
    // Of two who come, the first makes the room that the second finds.
    for port in 21..=30 {
        come(&mut fake, 1, port, true);
    }
    let crowded = closed_ports(&fake, CloseReason::CrowdedOut);
    assert_eq!(crowded, [11, 12, 13, 14, 4]);
    assert_eq!(closed_ports(&fake, CloseReason::SessionLimit), [21, 23, 25, 27, 29]);
    assert_eq!(fake.kernel.established.drain(..).count(), 5);
    // Those who are left have their turn.
    for client in &clients[..2] {
        fake.kernel.peer_reset(*client);
        let until = fake.kernel.now + 20_000;
        while fake.step(until) {}
    }
    let served: Vec<_> = fake.kernel.established.drain(..).collect();
    let partners = served.iter().map(|conn| fake.kernel.conn(*conn).partner);
    assert_eq!(partners.collect::<Vec<_>>(), [Some(clients[1]), Some(clients[2])]);
}

/// Silent clients of one listener have half of the session table at the most. So honest clients of
/// that listener and of others find places, however many of the flood come in one turn.
#[test]
fn a_flood_at_one_listener_leaves_half_of_the_places() {
    let limits = Limits { sessions: 32, ..LIMITS };
    let mut fake = Fake::new(1, limits, Faults::default());
    fake.apply(delaying_table());
    fake.kernel.set_endpoint(SocketAddr::new(setup::HOME, 54), EndpointMode::Accepts);
    for port in 1..=40 {
        come(&mut fake, 1, port, false);
    }
    assert_eq!(closed_ports(&fake, CloseReason::CrowdedOut), (1..=24).collect::<Vec<_>>());
    let honest = connect(&mut fake, 0, 100, false);
    for port in 41..=53 {
        connect(&mut fake, 1, port, false);
    }
    connect(&mut fake, 1, 101, true);
    while fake.step(fake.kernel.now + 1_000) {}
    assert_eq!(closed_ports(&fake, CloseReason::SessionLimit), [0; 0], "there were 16 places");
    fake.kernel.peer_write(honest, fake.kernel.conn(honest).proxied.header);
    while fake.step(fake.kernel.now + 1_000) {}
    assert_eq!(fake.kernel.established.drain(..).count(), 2, "the honest ones are served");
    assert_eq!(closed(&fake).count(), 24 + 14);
}

/// A source that is silent with all sessions that it may have, and more, keeps no other out, nor
/// itself.
#[test]
fn silent_clients_of_one_source_make_room_for_each_other() {
    let address = |port| SocketAddr::new(setup::HOME, port);
    let setup = Setup { protocol: Protocol::Tls, source_sessions: 3, ..setup::UDP };
    let mut table = setup.table(address(53), &[address(54)]);
    let mut listeners = Hosts::new([1, 2, 3, 4]);
    listeners.insert(None, 0);
    table.sockets[0].listeners = listeners;
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(table);
    fake.kernel.set_endpoint(address(54), EndpointMode::Accepts);
    let come = |fake: &mut Fake, host: u8, port: u16, speaks: bool| {
        let client = SocketAddr::from(([198, 18, 0, host], port));
        let hello = client_hello(Some("a.test"), 300, 128);
        let len = hello.len() as u64;
        let conn = fake.kernel.peer_connect(SocketId(0), client, hello, 4096);
        if speaks {
            fake.kernel.peer_write(conn, len);
        }
        while fake.step(fake.kernel.now + 1_000) {}
    };
    come(&mut fake, 2, 9, false);
    for port in 1..=5 {
        come(&mut fake, 1, port, false);
    }
    assert_eq!(closed_ports(&fake, CloseReason::CrowdedOut), [1, 2]);
    come(&mut fake, 1, 6, true);
    assert_eq!(closed_ports(&fake, CloseReason::CrowdedOut), [1, 2, 3]);
    assert_eq!(fake.kernel.established.drain(..).count(), 1, "who speaks is served");
    come(&mut fake, 1, 7, false);
    come(&mut fake, 1, 8, false);
    assert_eq!(closed_ports(&fake, CloseReason::CrowdedOut), [1, 2, 3, 4], "the served one stays");
}

/// A process that takes over receives no datagrams before the flows have come. It accepts
/// connections, and goes on when accepting has ended by itself.
#[test]
fn a_process_that_waits_for_flows_accepts_on() {
    let mut fake = Fake::new(1, LIMITS, Faults { stop: 500, ..Faults::default() });
    let address = |port| SocketAddr::new(setup::HOME, port);
    fake.proxy.wait_for_flows();
    let setup = Setup { protocol: Protocol::Tcp, ..setup::UDP };
    fake.apply(setup.table(address(53), &[address(54)]));
    for port in 1..=20 {
        let client = SocketAddr::from(([198, 18, 0, 1], port));
        fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096);
        while fake.step(fake.kernel.now + 1_000) {}
    }
    assert_eq!(fake.counters.accepted.get(), 20);
}
