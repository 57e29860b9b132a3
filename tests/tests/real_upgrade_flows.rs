//! UDP flows go on in the next process of an upgrade: each keeps its endpoint and its source port
//! there, no datagram comes to a wrong client, and if the next process fails, the flow goes on
//! where it was.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringway::wire::hand_over::{MOST_FLOWS, Message};
use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Gateway, Imposter, Launch, Player, Server, SetWhenDropped, free_address, now, play, udp_client,
    wait_until, witness,
};

/// Only a test that hangs takes so long.
const DEADLINE: Duration = Duration::from_secs(60);

/// A gateway with one UDP listener and two endpoints.
struct Setup {
    gateway: Gateway,
    udp: SocketAddr,
    _servers: [Server; 2],
}

impl Setup {
    fn new(listener_keys: &str, backend_keys: &str) -> Self {
        let servers = [witness("a"), witness("b")];
        let udp = free_address();
        let config = "drain_timeout = \"300s\"\n".to_owned()
            + &listener("udp", "UDP", udp, listener_keys)
            + &route("udp", "udp", &[("udp", 1)], "")
            + &backend("udp", servers.iter().map(|server| server.address), backend_keys);
        let gateway = Launch::default().socket().start(&config);
        Self { gateway, udp, _servers: servers }
    }

    fn upgrade(&self) {
        self.gateway.asks(&["upgrade"]);
    }

    /// Upgrades, and waits until the process before has ended, because all its flows have gone.
    fn move_all(&self) {
        self.upgrade();
        wait_until("all flows have gone", || self.gateway.line().len() == 1);
    }

    fn flows_taken_over(&self) -> u64 {
        let status = self.gateway.asks(&["status"]);
        status["upgrade"]["flows_taken_over"].as_u64().expect("a number")
    }
}

/// Port and endpoint of a client's flow, as the endpoint sees them.
fn way(client: &UdpSocket, word: &str) -> String {
    client.set_nonblocking(false).expect("a flag");
    client.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    client.send(word.as_bytes()).expect("it is sent");
    let mut answer = [0; 128];
    let len = client.recv(&mut answer).expect("the flow lives");
    let answer = String::from_utf8_lossy(&answer[..len]).into_owned();
    let (way, heard) = answer.rsplit_once(' ').expect("three words");
    assert_eq!(heard, word, "an answer to another datagram");
    way.to_owned()
}

fn flows_go_on(count: usize, upgrades: usize) {
    let setup = Setup::new("flow_timeout = \"3s\"\n", "");
    let over = AtomicBool::new(false);
    let players: Vec<Player> = std::thread::scope(|scope| {
        let set = SetWhenDropped(&over);
        let (over, udp) = (&over, setup.udp);
        let half = count / 2;
        let threads = [0..half, half..count].map(|of| scope.spawn(move || play(over, udp, of)));
        let active = || setup.gateway.metrics().value("ringway_flows_active", &[]);
        wait_until("all flows are there", || active() == count as u64);
        for round in 0..upgrades {
            setup.move_all();
            assert_eq!(setup.flows_taken_over(), count as u64, "round {round}");
            assert_eq!(active(), count as u64, "round {round}");
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(set);
        threads.into_iter().flat_map(|thread| thread.join().expect("it ends well")).collect()
    });
    let (sent, heard): (u64, u64) = (
        players.iter().map(|player| player.sent).sum(),
        players.iter().map(|player| player.heard).sum(),
    );
    let waits = setup.gateway.stderr();
    let waits = waits.lines().filter_map(|line| line.split_once("datagrams waited "));
    let waits: Vec<_> = waits.map(|(_, wait)| wait).collect();
    eprintln!("{count} flows: {sent} sent, {heard} heard; datagrams waited {waits:?}");
    assert_eq!(sent, heard, "datagrams were lost");
    let moves: u64 = players.iter().map(|player| player.moves).sum();
    assert_eq!(moves, 0, "a flow has another port or endpoint");
    let by_client: BTreeMap<_, _> = players
        .iter()
        .map(|player| (player.socket.local_addr().expect("bound").to_string(), player))
        .collect();
    let closes = setup.gateway.closes(count);
    assert_eq!(closes.len(), count, "one line for each flow");
    for line in closes {
        let player = by_client[line.text("client").expect("a client")];
        assert_eq!(line.text("reason"), Some("flow_timeout"), "{line:?}");
        assert_eq!(line.number("bytes_up"), player.sent * 14, "{line:?}");
        assert_eq!(line.number("bytes_down"), player.bytes, "{line:?}");
    }
    assert_eq!(setup.gateway.metrics().value("ringway_flows_active", &[]), 0);
}

#[test]
fn two_hundred_flows_go_on_through_five_upgrades() {
    flows_go_on(200, 5);
}

/// Flows that begin while others go to the next process go there too.
#[test]
fn flows_that_begin_during_an_upgrade_go_along() {
    let setup = Setup::new("", "");
    let _crowd: Vec<_> = (0..300)
        .map(|_| {
            let client = udp_client(setup.udp);
            way(&client, "crowd");
            client
        })
        .collect();
    let over = AtomicBool::new(false);
    let (begun, flows) = std::thread::scope(|scope| {
        let set = SetWhenDropped(&over);
        let (over, udp) = (&over, setup.udp);
        let begins = scope.spawn(move || {
            let mut begun = Vec::new();
            while !over.load(Ordering::SeqCst) {
                let client = udp_client(udp);
                let way = way(&client, "first");
                begun.push((client, way));
            }
            begun
        });
        std::thread::sleep(Duration::from_millis(100));
        let answer = setup.gateway.asks(&["upgrade"]);
        wait_until("all flows have gone", || setup.gateway.line().len() == 1);
        drop(set);
        (begins.join().expect("all are answered"), answer["flows"].as_u64().expect("a number"))
    });
    assert_eq!(setup.flows_taken_over(), flows);
    assert!(flows > 310, "{flows}");
    for (client, before) in &begun {
        assert_eq!(way(client, "again"), *before);
    }
}

/// `tests/run --long` runs it.
#[test]
#[ignore = "it takes a minute"]
fn two_thousand_flows_go_on_through_twenty_upgrades() {
    flows_go_on(2_000, 20);
}

/// Each flow comes to the worker that hears its client, also if there are more workers or fewer.
#[test]
fn the_number_of_workers_may_change() {
    let setup = Setup::new("", "");
    let clients: Vec<_> = (0..50).map(|_| udp_client(setup.udp)).collect();
    let ways: Vec<_> = clients.iter().map(|client| way(client, "before")).collect();
    for cores in ["[0]", "[0, 1]", "[1]", "[0, 1]"] {
        setup.gateway.set_cores(cores);
        setup.move_all();
        assert_eq!(setup.flows_taken_over(), 50, "{cores}");
        for (client, before) in clients.iter().zip(&ways) {
            assert_eq!(way(client, "after"), *before, "{cores}");
        }
    }
    assert_eq!(setup.gateway.metrics().value("ringway_flows_active", &[]), 50);
}

/// `max_sessions` holds for flows that came from the process before.
#[test]
fn flows_that_came_count_in_limits() {
    let setup = Setup::new("max_sessions = 2\n", "");
    let clients = [udp_client(setup.udp), udp_client(setup.udp)];
    let ways = clients.each_ref().map(|client| way(client, "before"));
    setup.move_all();
    let third = udp_client(setup.udp);
    third.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    third.send(b"third").expect("it is sent");
    assert!(third.recv(&mut [0; 64]).is_err(), "there is no place for a third");
    assert_eq!(clients.each_ref().map(|client| way(client, "after")), ways);
}

/// The header of a proxy goes along: the endpoint hears it in front of each datagram, as before.
#[test]
fn the_endpoint_hears_of_one_client() {
    let setup = Setup::new("", "send_proxy = \"v2\"\nproxy_tlvs = [\"unique-id\"]\n");
    let client = udp_client(setup.udp);
    client.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut heard = Vec::new();
    for _ in 0..3 {
        client.send(b"word").expect("it is sent");
        let mut answer = [0; 512];
        let len = client.recv(&mut answer).expect("the flow lives");
        heard.push(answer[..len].to_vec());
        setup.move_all();
    }
    assert!(heard.iter().all(|answer| *answer == heard[0]), "{heard:?}");
}

/// Flows of shared sockets stay, and their clients get new flows.
#[test]
fn flows_of_shared_sockets_begin_anew() {
    let keys = "upstream_sockets = \"shared\"\nsource = [\"127.1.0.0/28\"]\n";
    let setup = Setup::new("", keys);
    let client = udp_client(setup.udp);
    way(&client, "before");
    setup.upgrade();
    way(&client, "after");
    assert_eq!(setup.flows_taken_over(), 0);
}

/// Whatever the new process does before its last word, or in place of it, the flow goes on in the
/// old one, from the same port, and no datagram is lost that came meanwhile.
#[test]
fn a_flow_survives_a_new_process_that_fails() {
    type Act = fn(&Imposter);
    let acts: &[(&str, Act)] = &[
        ("hangs up before", |_| {}),
        ("hangs up", |new| drop(new.is_offered_flows())),
        ("says too little", |new| {
            let _sockets = new.is_offered_flows();
            new.say(&Message::Adopted(Vec::new()));
            new.is_refused();
        }),
        ("says nonsense", |new| {
            let _sockets = new.is_offered_flows();
            new.says_bytes(b"nonsense");
            new.is_refused();
        }),
        ("says nothing", |new| {
            let _sockets = new.is_offered_flows();
            new.is_refused();
        }),
        ("dies before its last word", |new| drop(new.adopts_all())),
    ];
    let setup = Setup::new("", "");
    let clients: Vec<_> = (0..20).map(|_| udp_client(setup.udp)).collect();
    let ways: Vec<_> = clients.iter().map(|client| way(client, "before")).collect();
    let failures = || setup.gateway.metrics().value("ringway_upgrade_failures_total", &[]);
    for (number, (what, act)) in (1..).zip(acts) {
        let (new, _listening) = Imposter::is_ready(&setup.gateway);
        let began = now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                act(&new);
                drop(new);
            });
            for (client, before) in clients.iter().zip(&ways) {
                assert_eq!(way(client, "meanwhile"), *before, "the new process {what}");
            }
        });
        wait_until("the upgrade has failed", || failures() == number);
        assert!(began.elapsed() < Duration::from_secs(20), "the new process {what}");
        for (client, before) in clients.iter().zip(&ways) {
            assert_eq!(way(client, "after"), *before, "the new process {what}");
        }
    }
    setup.move_all();
    assert_eq!(setup.flows_taken_over(), 20);
    for (client, before) in clients.iter().zip(&ways) {
        assert_eq!(way(client, "after"), *before);
    }
}

/// There are more flows than are announced at once. The new process dies between two batches, and
/// between the last batch and what the flows have carried in the end. All flows go on in the old
/// process, from the same port.
#[test]
fn many_flows_survive_a_new_process_that_dies_between_batches() {
    type Act = fn(&Imposter);
    let acts: &[(&str, Act)] = &[
        ("between two batches", |new| {
            let (flows, _sockets) = new.is_offered_flows();
            assert!(flows.len() <= MOST_FLOWS, "{} flows at once", flows.len());
            new.adopts(flows.len());
        }),
        ("with the second batch", |new| {
            let (flows, _sockets) = new.is_offered_flows();
            new.adopts(flows.len());
            drop(new.is_offered_flows());
        }),
        ("before the figures", |new| {
            let mut count = 0;
            while count < MANY {
                let (flows, _sockets) = new.is_offered_flows();
                new.adopts(flows.len());
                count += flows.len();
            }
        }),
        ("with the figures", |new| {
            loop {
                match new.hears() {
                    (Message::Flows(flows), _sockets) => new.adopts(flows.len()),
                    (Message::Figures(all), _) => {
                        assert!(!all.is_empty() && all.len() <= MANY, "{} figures", all.len());
                        return;
                    }
                    (other, _) => panic!("{other:?}"),
                }
            }
        }),
    ];
    let setup = Setup::new("", "");
    let clients: Vec<_> = (0..MANY).map(|_| udp_client(setup.udp)).collect();
    let ways: Vec<_> = clients.iter().map(|client| way(client, "before")).collect();
    let failures = || setup.gateway.metrics().value("ringway_upgrade_failures_total", &[]);
    for (number, (what, act)) in (1..).zip(acts) {
        let (new, _listening) = Imposter::is_ready(&setup.gateway);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                act(&new);
                drop(new);
            });
            for (client, before) in clients.iter().zip(&ways) {
                assert_eq!(way(client, "meanwhile"), *before, "the new process dies {what}");
            }
        });
        wait_until("the upgrade has failed", || failures() == number);
        for (client, before) in clients.iter().zip(&ways) {
            assert_eq!(way(client, "after"), *before, "the new process dies {what}");
        }
    }
    setup.move_all();
    assert_eq!(setup.flows_taken_over(), MANY as u64);
    for (client, before) in clients.iter().zip(&ways) {
        assert_eq!(way(client, "after"), *before);
    }
}

/// So many that each of two workers has more than are announced at once.
const MANY: usize = 500;

/// A flow goes on while the new process gets to know it, and what it carries meanwhile counts.
#[test]
fn flows_go_on_while_they_are_announced() {
    let setup = Setup::new("", "");
    let clients = [udp_client(setup.udp), udp_client(setup.udp)];
    let ways = clients.each_ref().map(|client| way(client, "before"));
    let (new, _listening) = Imposter::is_ready(&setup.gateway);
    let (announced, sockets) = new.is_offered_flows();
    for _ in 0..50 {
        assert_eq!(clients.each_ref().map(|client| way(client, "meanwhile")), ways);
    }
    // A client that comes now goes along too.
    let late = udp_client(setup.udp);
    let its_way = way(&late, "late");
    new.adopts(announced.len());
    let all = new.adopts_rest(announced.into_iter().zip(sockets).collect());
    assert_eq!(all.len(), 3, "{all:?}");
    let carried: u32 = all.iter().map(|(flow, _)| flow.datagrams[0]).sum();
    assert_eq!(carried, 2 * 51 + 1, "{all:?}");
    drop((new, all));
    assert_eq!(clients.each_ref().map(|client| way(client, "after")), ways);
    assert_eq!(way(&late, "after"), its_way);
}

/// With its last word the flows are the new process's alone: the old one ends without a word.
#[test]
fn adopted_flows_are_the_new_processs_alone() {
    let mut setup = Setup::new("", "");
    let clients = [udp_client(setup.udp), udp_client(setup.udp)];
    let mut before = clients.each_ref().map(|client| way(client, "before"));
    let (new, _listening) = Imposter::is_ready(&setup.gateway);
    let offered = new.adopts_all();
    assert_eq!(offered.len(), 2, "{offered:?}");
    for (flow, _) in &offered {
        assert_eq!((flow.listener.as_str(), flow.backend.as_str()), ("udp", "udp"));
        assert_eq!((flow.datagrams, flow.bytes[0]), ([1, 1], 6), "{flow:?}");
    }
    new.say(&Message::Mine);
    let status = ringway_tests::real::wait_for("the old process ends", || setup.gateway.ended());
    assert!(status.success(), "{status}");
    assert!(setup.gateway.log().iter().all(|line| line.text("event") != Some("close")));
    let mut after: Vec<_> =
        offered.into_iter().map(|(_, socket)| way(&UdpSocket::from(socket), "by_hand")).collect();
    before.sort();
    after.sort();
    assert_eq!(before[..], after[..], "the sockets towards the endpoints");
}
