//! Flows of UDP: their ends, floods, newcomers.

use std::net::SocketAddr;
use std::sync::Arc;

use config_sync::table::routing::{
    Absence, Drain, EndpointId, GoneEndpoint, Limits, ListenerId, Protocol, RoutingTable, SocketId,
    Sources, Timeouts,
};
use ringway::stats::records::{CloseReason, DropReason, Record};
use ringway_tests::sim::fake::Fake;
use ringway_tests::sim::kernel::faults::Faults;
use ringway_tests::sim::scenarios::setup::{self, Setup};
use ringway_tests::sim::tcp::conn::EndpointMode;
use ringway_tests::sim::udp::datagram::{Datagram, Exchange};

use crate::{LIMITS, ask, closed, closed_ports, datagram};

/// A flow leaves an endpoint that is gone although its client is silent.
#[test]
fn flows_of_a_gone_endpoint_end() {
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    let address = |port| SocketAddr::new(setup::HOME, port);
    fake.apply(setup::UDP.table(address(53), &[address(54), address(55)]));
    ask(&mut fake, 1);
    ask(&mut fake, 2);
    assert_eq!(fake.counters.flows.get(), 2);
    let gone = GoneEndpoint { id: EndpointId(1), absence: Absence::Down, close_after: 1_000 };
    let table = setup::UDP.table(address(53), &[address(54)]);
    fake.apply(RoutingTable { generation: 2, gone: Arc::new([gone]), ..table });
    let until = fake.kernel.now + 3_000_000;
    while fake.step(until) {}
    assert_eq!(fake.counters.flows.get(), 1);
    let closed = &fake.counters.listener(ListenerId(0)).closed;
    assert_eq!(closed[CloseReason::EndpointDown as usize].get(), 1);
}

/// When a shared socket can't be had, all flows of that turn go with it, and nothing is left over.
#[test]
fn flows_without_their_shared_socket_are_refused_and_served_later() {
    const CLIENTS: u16 = 5;
    let faults = Faults { open_fails: 1_000, ..Faults::default() };
    let mut fake = Fake::new(1, LIMITS, faults);
    fake.apply(shared_table());
    let ask = |fake: &mut Fake| {
        for port in 1..=CLIENTS {
            let client = SocketAddr::from(([198, 18, 0, 1], port));
            let local = [192, 0, 2, 1].into();
            let exchange = Exchange { socket: SocketId(0), client, says: None, local };
            let datagram =
                Datagram { exchange, number: 0, bytes: 9, count: 1, truncated: false, train: None };
            fake.kernel.client_sends(datagram);
        }
        while fake.step(fake.kernel.now + 1_000) {}
    };
    ask(&mut fake);
    let counters = Arc::clone(&fake.counters);
    let listener = counters.listener(ListenerId(0));
    let no_socket = || listener.dropped[DropReason::NoSocket as usize].get();
    assert_eq!((no_socket(), listener.to_endpoints.get()), (u64::from(CLIENTS), 0));
    assert_eq!(listener.refused[CloseReason::LocalLimit as usize].get(), u64::from(CLIENTS));
    let held = || [counters.flows.get(), counters.pairs.get(), counters.upstreams.get()];
    assert_eq!((held(), fake.kernel.sent_up.len()), ([0; 3], 0));
    fake.kernel.faults = Faults::default();
    ask(&mut fake);
    assert_eq!((no_socket(), held()), (u64::from(CLIENTS), [5, 5, 1]));
    assert_eq!(fake.kernel.sent_up.len(), usize::from(CLIENTS));
}

/// A worker that comes late has the removal of a listener and its return before it in one turn. Of
/// UDP the new socket is bound before the one before is closed.
#[test]
fn a_udp_listener_that_comes_back_at_once_goes_on_to_listen() {
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    let address = |port| SocketAddr::new(setup::HOME, port);
    let table =
        |generation| RoutingTable { generation, ..setup::UDP.table(address(53), &[address(54)]) };
    fake.apply(table(1));
    fake.hand_over(RoutingTable { generation: 2, ..RoutingTable::empty() });
    fake.hand_over(table(3));
    while fake.carry_on() {}
    let soon = fake.kernel.now + 1_000_000;
    while fake.step(soon) {}
    assert!(fake.kernel.is_listening(SocketId(0)));
    ask(&mut fake, 1);
    assert_eq!(fake.kernel.sent_up.len(), 1, "a client is served");
}

/// New sources without end fill the flows, and nobody answers them. Who was answered stays, and a
/// new client gets in within seconds, not after `flow_timeout`.
#[test]
fn a_flood_that_nobody_answers_makes_room() {
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    let address = |port| SocketAddr::new(setup::HOME, port);
    let mut table = setup::UDP.table(address(53), &[address(54)]);
    table.listeners[0].flow_timeout = 60_000;
    fake.apply(table);
    ask(&mut fake, 1);
    let (path, datagram) = fake.kernel.sent_up.pop().expect("the endpoint hears");
    fake.kernel.endpoint_sends(path, datagram);
    for port in 0..200 {
        ask(&mut fake, 1_000 + port);
    }
    let counters = Arc::clone(&fake.counters);
    assert_eq!(counters.flows.get(), u64::from(LIMITS.flows));
    let dropped = &counters.listener(ListenerId(0)).dropped;
    assert!(dropped[DropReason::FlowLimit as usize].get() > 100);
    // Two seconds of silence, and two in which the sockets rest.
    let until = fake.kernel.now + 6_000_000;
    while fake.step(until) {}
    fake.kernel.sent_up.clear();
    ask(&mut fake, 2);
    assert_eq!(fake.kernel.sent_up.len(), 1, "a new client is served");
    assert_eq!(counters.flows.get(), 2, "and the one that was answered is there");
    let closed = &counters.listener(ListenerId(0)).closed;
    assert_eq!(closed[CloseReason::FlowUnanswered as usize].get(), u64::from(LIMITS.flows) - 1);
}

/// To open a socket takes long, so few are opened in a turn, after the work for those who have a
/// flow. Nobody is lost.
#[test]
fn new_clients_wait_for_their_turn_behind_those_who_have_flows() {
    let limits = Limits { buffers: 64, ..LIMITS };
    let mut fake = Fake::new(1, limits, Faults::default());
    let address = |port| SocketAddr::new(setup::HOME, port);
    fake.apply(setup::UDP.table(address(53), &[address(54)]));
    ask(&mut fake, 1);
    fake.kernel.sent_up.clear();
    for port in [2, 3, 4, 5, 1] {
        fake.kernel.client_sends(datagram(port));
    }
    let mut turns = Vec::new();
    while fake.step(fake.kernel.now + 1_000) {
        let sent = fake.kernel.sent_up.drain(..);
        turns.push(sent.map(|(_, sent)| sent.exchange.client.port()).collect::<Vec<_>>());
    }
    turns.retain(|sent| !sent.is_empty());
    assert_eq!(turns, [vec![1, 2], vec![3], vec![4], vec![5]]);
    assert_eq!(fake.counters.flows.get(), 5);
}

/// In a flood that lasts longer than a burst, who has a flow is still served at once, and newcomers
/// who are too many are dropped.
#[test]
fn a_flood_of_new_clients_takes_nothing_from_flows() {
    const ROUNDS: u16 = 300;
    let limits = Limits { flows: 2_000, buffers: 64, ..LIMITS };
    let mut fake = Fake::new(1, limits, Faults::default());
    let address = |port| SocketAddr::new(setup::HOME, port);
    fake.apply(setup::UDP.table(address(53), &[address(54)]));
    ask(&mut fake, 1);
    let counters = Arc::clone(&fake.counters);
    let listener = counters.listener(ListenerId(0));
    let dropped = || listener.dropped[DropReason::NewFlows as usize].get();
    let mut begins = None;
    for round in 0..ROUNDS {
        fake.kernel.sent_up.clear();
        for port in (0..4).map(|nth| 1_000 + 4 * round + nth).chain([1]) {
            fake.kernel.client_sends(datagram(port));
        }
        // The worker's turns take their time, so what comes meanwhile is there in the next.
        fake.kernel.now += 60;
        let now = fake.kernel.now;
        fake.step(now);
        begins = begins.or_else(|| (dropped() > 0).then_some(round));
        // The burst is over by then.
        let is_served = fake.kernel.sent_up.iter().any(|(_, of)| of.exchange.client.port() == 1);
        assert!(is_served || round < 200, "a datagram of a flow waits in round {round}");
    }
    assert!(begins.is_some_and(|round| (63..80).contains(&round)), "{begins:?}");
    while fake.step(fake.kernel.now + 1_000) {}
    let (came, went) = (listener.from_clients.get(), listener.to_endpoints.get());
    assert_eq!((came, went + dropped()), (1 + 5 * u64::from(ROUNDS), came));
    assert!(counters.flows.get() >= u64::from(ROUNDS), "one begins in each turn");
}

/// What has come is looked at before anybody is taken for idle, however late the worker is.
#[test]
fn who_has_spoken_while_the_worker_had_no_time_is_not_idle() {
    let address = |port| SocketAddr::new(setup::HOME, port);
    let timeouts = Timeouts { hello: 0, idle: 1_000, write_stall: 0, half_close: 0, lifetime: 0 };
    let setup = Setup { protocol: Protocol::Tcp, timeouts, ..setup::UDP };
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(setup.table(address(53), &[address(54)]));
    fake.kernel.set_endpoint(address(54), EndpointMode::Accepts);
    let [client, other] = [1, 2].map(|port| {
        let client = SocketAddr::from(([198, 18, 0, 1], port));
        fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096)
    });
    let until = fake.kernel.now + 100_000;
    while fake.step(until) {}
    fake.kernel.peer_write(client, 9);
    fake.kernel.now += 5_000_000;
    let now = fake.kernel.now;
    while fake.step(now + 100) {}
    let closed: Vec<_> = closed(&fake).map(|of| (of.client.port(), of.reason)).collect();
    assert_eq!(closed, [(2, Some(CloseReason::IdleTimeout))], "{other:?} said nothing");

    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(Setup { flow_timeout: 1_000, ..setup::UDP }.table(address(53), &[address(54)]));
    ask(&mut fake, 1);
    ask(&mut fake, 2);
    fake.kernel.client_sends(datagram(1));
    fake.kernel.now += 5_000_000;
    let now = fake.kernel.now;
    while fake.step(now + 400_000) {}
    let closed: Vec<_> = closed_ports(&fake, CloseReason::FlowTimeout);
    assert_eq!(closed, [2]);
}

/// A client that sends too much keeps its flow, and so its place at an endpoint.
#[test]
fn datagrams_that_a_limit_drops_are_no_silence() {
    let address = |port| SocketAddr::new(setup::HOME, port);
    // One datagram a second, whatever its size.
    let setup = Setup { bytes: 1, flow_timeout: 500, ..setup::UDP };
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(setup.table(address(53), &[address(54)]));
    let began = fake.kernel.now;
    for nth in 0..4 {
        let until = began + 300_000 * nth;
        while fake.step(until) {}
        ask(&mut fake, 1);
    }
    let listener = fake.counters.listener(ListenerId(0));
    let dropped = listener.dropped[DropReason::Limit as usize].get();
    assert_eq!((fake.kernel.sent_up.len(), dropped, fake.counters.flows.get()), (1, 3, 1));
    assert_eq!(listener.opened.get(), 1, "it is one flow");
    let until = fake.kernel.now + 1_000_000;
    while fake.step(until) {}
    assert_eq!(closed_ports(&fake, CloseReason::FlowTimeout), [1], "now it is silent");
}

/// At the end of a drain flows end by and by: sessions of the same worker live on meanwhile.
#[test]
fn flows_do_not_all_end_in_one_turn() {
    const FLOWS: u16 = 1_000;
    let limits = Limits { flows: u32::from(FLOWS), ..LIMITS };
    let mut fake = Fake::new(1, limits, Faults::default());
    let address = |port| SocketAddr::new(setup::HOME, port);
    fake.apply(setup::UDP.table(address(53), &[address(54)]));
    for port in 0..FLOWS {
        ask(&mut fake, 1_000 + port);
    }
    assert_eq!(fake.counters.flows.get(), u64::from(FLOWS));
    let drain = Some(Drain { timeout: 10, spread: 10 });
    fake.apply(RoutingTable { generation: 2, drain, ..RoutingTable::empty() });
    let mut most = 0;
    while !fake.proxy.is_done() {
        fake.records.clear();
        assert!(fake.step(u64::MAX), "the drain does not end");
        let ended = |record: &&Record| matches!(record, Record::Closed(_));
        most = most.max(fake.records.iter().filter(ended).count());
    }
    assert!((1..=256).contains(&most), "{most} flows ended in one turn");
}

/// At the end of a drain the sockets of flows are closed at once, unless another process goes on
/// with the clients: it may get the port of a socket to which late replies still come.
#[test]
fn sockets_rest_at_the_end_of_a_drain_if_another_process_serves() {
    for heirs in [0, 1] {
        let mut fake = Fake::new(1, LIMITS, Faults::default());
        let address = |port| SocketAddr::new(setup::HOME, port);
        fake.apply(setup::UDP.table(address(53), &[address(54)]));
        ask(&mut fake, 1_000);
        let began = fake.kernel.now;
        let drain = Some(Drain { timeout: 10, spread: 10 });
        let handed_over = Arc::new((0..heirs).map(SocketId).collect());
        fake.apply(RoutingTable { generation: 2, drain, handed_over, ..RoutingTable::empty() });
        while !fake.proxy.is_done() {
            assert!(fake.step(u64::MAX), "the drain does not end");
        }
        let rested = fake.kernel.now - began >= 2_000_000;
        assert_eq!(rested, heirs > 0, "after {} us", fake.kernel.now - began);
    }
}

/// One UDP listener, and one endpoint behind shared sockets.
fn shared_table() -> RoutingTable {
    let address = |port| SocketAddr::new(setup::HOME, port);
    let source = Sources { first: [127, 1, 0, 0].into(), count: 16 };
    let setup = Setup { source: Some(source), ..setup::UDP };
    setup.table(address(53), &[address(54)])
}
