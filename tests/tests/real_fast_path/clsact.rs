//! The program on kernels without tcx (before Linux 6.6): by filters of clsact queues, which stay
//! when their process has ended.

use std::net::{SocketAddr, UdpSocket};

use nix::sys::signal::Signal;
use ringway_tests::real::in_kernel::FORWARDING;
use ringway_tests::real::{
    Gateway, Launch, Namespace, Server, free_port, in_own_network, program, wait_for, wait_until,
};

use crate::{Player, World, carried, config, flows, places, promotions};

const INTERFACES: [&str; 2] = ["clients", "servers"];

fn gateway(config: &str) -> Gateway {
    Launch::default().socket().without("tcx").start(config)
}

/// The numbers of Ringway's filters at an interface.
fn filters_at(interface: &str) -> Vec<String> {
    let shown = program("tc", &["filter", "show", "dev", interface, "ingress"]);
    let own = shown.lines().filter(|line| line.contains(" ringway direct-action "));
    let number = |line: &str| Some(line.split_once("handle ")?.1.split(' ').next()?.to_owned());
    own.map(|line| number(line).expect("a number")).collect()
}

/// Waits until each interface has this many of Ringway's filters, and returns their numbers.
fn filters(count: usize) -> [Vec<String>; 2] {
    wait_for(&format!("{count} filters at each interface"), || {
        let found = INTERFACES.map(filters_at);
        found.iter().all(|filters| filters.len() == count).then_some(found)
    })
}

/// All that hangs at the interfaces, as `tc` shows it.
fn hanging() -> String {
    let at = |interface| {
        let queue = program("tc", &["qdisc", "show", "dev", interface]);
        let filters = |side| program("tc", &["filter", "show", "dev", interface, side]);
        format!("{interface}:\n{queue}{}{}", filters("ingress"), filters("egress"))
    };
    INTERFACES.map(at).concat()
}

fn kill(mut gateway: Gateway) {
    gateway.signal(Signal::SIGKILL);
    wait_until("its end", || gateway.ended().is_some() && gateway.line().is_empty());
}

/// A server and a listener's address of each IP version.
struct Both {
    world: World,
    addresses: [SocketAddr; 2],
    servers: [Server; 2],
    config: String,
}

impl Both {
    fn new() -> Self {
        let world = World::new();
        let places = places();
        let [four, six] = &places;
        let config = config("four", four.0, four.1[0], "required")
            + &config("six", six.0, six.1[0], "required");
        let servers = places.map(|(_, servers)| world.server(servers[0], 0));
        Self { world, addresses: places.map(|(at, _)| at), servers, config }
    }

    /// A flow of each IP version, which the kernel forwards.
    fn play(&self, gateway: &Gateway) -> [Player; 2] {
        let mut players = self.addresses.map(|at| self.world.player(at));
        players.iter_mut().for_each(|player| assert_eq!(player.play(100), [0]));
        assert_eq!((promotions(&gateway.metrics()), flows(gateway)), (2, 2));
        let counted = carried(gateway);
        players.iter_mut().for_each(|player| assert_eq!(player.play(100), [0]));
        // Two moves of hundred do not fit a packet.
        wait_until("the kernel forwards them", || carried(gateway) >= counted + 380);
        players
    }

    fn served(&self) -> u64 {
        self.servers.iter().map(Server::served).sum()
    }
}

/// Filters outlive a killed gateway, and let all packets go on to the sockets. The next gateway
/// removes these filters.
#[test]
fn a_killed_gateway_leaves_filters_that_do_nothing() {
    in_own_network(|| {
        let both = Both::new();
        let first = gateway(&both.config);
        let mut players = both.play(&first);
        let left = filters(1);
        kill(first);
        assert_eq!(filters(1), left);
        for (player, at) in players.iter_mut().zip(both.addresses) {
            // The kernel closes a ring some milliseconds after its process has ended.
            let socket = wait_for("the address", || UdpSocket::bind(at).ok());
            socket.set_nonblocking(true).expect("a socket");
            let asked = || {
                player.socket.send(b"anybody?").expect("sending");
                std::thread::sleep(std::time::Duration::from_millis(5));
                let mut got = 0;
                while socket.recv(&mut [0; 64]).is_ok() {
                    got += 1;
                }
                got
            };
            wait_until("the socket hears the client", || asked() > 0);
            let served = both.served();
            let heard: usize = (0..20).map(|_| asked()).sum();
            assert_eq!((heard, both.served()), (20, served), "no program forwards");
        }
        let second = gateway(&both.config);
        both.play(&second);
        let own = filters(1);
        assert!(own[0] != left[0] && own[1] != left[1], "{own:?}");
        second.stop();
        filters(0);
    });
}

/// One queue with filters on both sides, and one of the older kind. None of the filters matches
/// anything.
const OF_OTHERS: &str = "
    tc qdisc add dev clients clsact
    tc filter add dev clients ingress prio 1 protocol all bpf bytecode '1,6 0 0 0'
    tc filter add dev clients ingress protocol all bpf bytecode '1,6 0 0 0'
    tc filter add dev clients egress protocol all bpf bytecode '1,6 0 0 0'
    tc qdisc add dev servers ingress
    tc filter add dev servers ingress protocol all bpf bytecode '1,6 0 0 0'
";

#[test]
fn filters_and_queues_of_others_stay() {
    in_own_network(|| {
        let both = Both::new();
        program("sh", &["-ec", OF_OTHERS]);
        let before = hanging();
        let first = gateway(&both.config);
        both.play(&first);
        filters(1);
        first.stop();
        assert_eq!(hanging(), before, "after a clean end");
        let second = gateway(&both.config);
        both.play(&second);
        kill(second);
        let killed = hanging();
        assert!(before.lines().all(|line| killed.contains(line)), "{killed}");
        let third = gateway(&both.config);
        both.play(&third);
        third.stop();
        assert_eq!(hanging(), before, "after a kill and a clean end");
    });
}

/// The queues stay, and with them what others have added.
#[test]
fn a_clean_end_takes_the_filters_along() {
    const ADDED: &str = "egress protocol all bpf bytecode '1,6 0 0 0'";
    in_own_network(|| {
        let both = Both::new();
        let first = gateway(&both.config);
        both.play(&first);
        program("sh", &["-ec", &format!("tc filter add dev servers {ADDED}")]);
        first.stop();
        filters(0);
        let after = hanging();
        let lines = |word| after.lines().filter(|line| line.contains(word)).count();
        assert_eq!((lines("qdisc clsact"), lines("bytecode")), (2, 1), "{after}");
        let second = gateway(&both.config);
        both.play(&second);
        second.stop();
        assert_eq!(hanging(), after);
    });
}

#[test]
fn an_upgrade_leaves_the_filters_of_the_new_process() {
    in_own_network(|| {
        let both = Both::new();
        let gateway = gateway(&both.config);
        let mut players = both.play(&gateway);
        let before = filters(1);
        gateway.asks(&["upgrade"]);
        players.iter_mut().for_each(|player| assert_eq!(player.play(100), [0]));
        wait_until("the process before has ended", || gateway.line().len() == 1);
        wait_until("the kernel forwards for the new one", || flows(&gateway) == 2);
        let counted = carried(&gateway);
        players.iter_mut().for_each(|player| assert_eq!(player.play(100), [0]));
        wait_until("datagrams", || carried(&gateway) >= counted + 380);
        let after = filters(1);
        assert!(after[0] != before[0] && after[1] != before[1], "{before:?}, {after:?}");
    });
}

/// As in a container of its own with the host's network: the process has the number 1 there.
const CONTAINER: [&str; 5] = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Processes that share a network but do not see each other keep their hands off each other's
/// filters. One that dies and comes back with the same number finds its own.
#[test]
fn filters_of_living_processes_stay() {
    in_own_network(|| {
        let both = Both::new();
        let host = gateway(&both.config);
        let mut players = both.play(&host);
        let own = filters(1);
        let mut goes_on = |what: &str| {
            let counted = carried(&host);
            players.iter_mut().for_each(|player| assert_eq!(player.play(50), [0]));
            wait_until(what, || carried(&host) >= counted + 190);
        };
        let at = SocketAddr::new(both.addresses[0].ip(), free_port());
        let text = config("other", at, places()[0].1[1], "required");
        let _server = both.world.server(places()[0].1[1], 1);
        let contained = || {
            let gateway = Launch::default().socket().without("tcx").under(&CONTAINER).start(&text);
            assert_eq!(both.world.player(at).play(200), [1]);
            wait_until("the kernel forwards for it", || carried(&gateway) > 100);
            gateway
        };
        let first = contained();
        filters(2);
        goes_on("beside another");
        kill(first);
        filters(2);
        goes_on("beside one that was killed");
        let second = contained();
        let found = filters(2);
        assert!(found.iter().zip(&own).all(|(found, own)| found.contains(&own[0])), "{found:?}");
        goes_on("beside one that came back");
        drop(second);
    });
}

#[test]
fn an_interface_that_comes_later_gets_the_program_with_a_reload() {
    in_own_network(|| {
        let world = World { clients: Namespace::new(), servers: Namespace::new() };
        world.clients.join("clients", "10.1.0", "fd01");
        program("sh", &["-c", FORWARDING]);
        let (at, servers) = places()[0];
        let text = config("main", at, servers[0], "required");
        let gateway = gateway(&text);
        world.servers.join("servers", "10.2.0", "fd02");
        gateway.reload(&format!("lame_duck = \"1s\"\n{text}"));
        filters(1);
        let _server = world.server(servers[0], 0);
        let mut player = world.player(at);
        assert_eq!(player.play(200), [0]);
        // Both ways, so at both interfaces.
        wait_until("the kernel forwards", || carried(&gateway) >= 300);
        // One that goes takes its filter along, and is no reason to refuse a configuration.
        program("ip", &["link", "delete", "servers"]);
        gateway.reload(&text);
        assert_eq!(filters_at("clients").len(), 1);
        gateway.stop();
        assert!(filters_at("clients").is_empty());
    });
}
