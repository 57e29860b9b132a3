//! A flow's life: what the kernel forwards is whole and counted, and ends as a worker's flow does.

use std::net::SocketAddr;
use std::time::Duration;

use ringway_tests::real::{
    Gateway, Server, free_port, in_own_network, program, wait_for, wait_until,
};

use crate::{
    Game, World, carried, config, demotions, flows, for_both_versions, game, places, promotions,
};

/// Both IP versions: what the kernel forwards is whole, counted, in the log, and follows a reload.
#[test]
fn long_lived_flows_are_forwarded_in_the_kernel() {
    in_own_network(|| {
        let world = World::new();
        let places = places();
        let config = |endpoint: usize| -> String {
            let of = |(name, (at, servers)): (&&str, &(SocketAddr, [&str; 2]))| {
                config(name, *at, servers[endpoint], "required")
            };
            let both: String = ["four", "six"].iter().zip(&places).map(of).collect();
            format!("lame_duck = \"1s\"\n{both}")
        };
        let servers: Vec<_> = places
            .iter()
            .flat_map(|(_, at)| [world.server(at[0], 0), world.server(at[1], 1)])
            .collect();
        let gateway = Gateway::start(&config(0));
        let mut players: Vec<_> = places.iter().map(|(at, _)| world.player(*at)).collect();
        for player in &mut players {
            assert_eq!(player.play(100), [0]);
        }
        assert_eq!(promotions(&gateway.metrics()), 2);
        assert_eq!(flows(&gateway), 2);
        let served: Vec<_> = servers.iter().map(Server::served).collect();
        for player in &mut players {
            assert_eq!(player.play(1_000), [0]);
        }
        // All but the fragments, which are one of 50 moves, both ways.
        wait_until("the kernel's datagrams were counted", || carried(&gateway) >= 3_900);
        assert_eq!(servers[0].served(), served[0] + 1_000);
        // Counters are right while the flows live.
        let label = |side| [("listener", "four"), ("side", side)];
        let bytes = |side| gateway.metrics().value("ringway_relayed_bytes_total", &label(side));
        let (up, down) = (players[0].up, players[0].down);
        wait_until("bytes", || (bytes("client"), bytes("endpoint")) == (up, down));
        // The endpoints leave: the flows move, on the user path, and are promoted again.
        gateway.reload(&config(1));
        std::thread::sleep(Duration::from_millis(1_100));
        for player in &mut players {
            assert_eq!(player.play(200), [1]);
        }
        assert_eq!(demotions(&gateway, "endpoint_gone"), 2);
        wait_until("both are promoted again", || promotions(&gateway.metrics()) == 4);
        let lines = gateway.stop();
        let lines: Vec<_> = lines.iter().filter(|line| line.text("reason").is_some()).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        for (name, player) in ["four", "six"].iter().zip(&players) {
            let line = lines.iter().find(|line| line.text("listener") == Some(name));
            let line = line.expect("the flow's line");
            let logged = (line.number("bytes_up"), line.number("bytes_down"));
            assert_eq!(logged, (player.up, player.down), "{name}");
        }
    });
}

/// A flow whose datagrams the kernel forwards is not silent, and ends when it is.
#[test]
fn a_promoted_flow_ends_when_it_is_silent() {
    in_own_network(|| {
        let world = World::new();
        let (at, servers) = places()[0];
        let _server = world.server(servers[0], 0);
        let config = config("main", at, servers[0], "auto");
        let timeout = "protocol = \"UDP\"\nflow_timeout = \"2s\"";
        let gateway = Gateway::start(&config.replace("protocol = \"UDP\"", timeout));
        let mut player = world.player(at);
        for _ in 0..30 {
            player.play(4);
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(flows(&gateway), 1);
        let line = gateway.closed_for("flow_timeout");
        assert_eq!((line.number("bytes_up"), line.number("bytes_down")), (player.up, player.down));
        wait_until("the kernel has forgotten the flow", || flows(&gateway) == 0);
        assert_eq!(player.play(50), [0], "as another flow");
    });
}

#[test]
fn a_reload_takes_flows_back_and_lists_say_where_they_are() {
    in_own_network(|| {
        let mut game = Game::promoted("", 1);
        assert_eq!(game.row()["state"], "in_kernel");
        // Only the kernel has datagrams for three seconds, and the flow is not idle.
        game.player.all_whole = true;
        for _ in 0..30 {
            game.player.play(1);
            std::thread::sleep(Duration::from_millis(100));
        }
        let idle = || game.row()["idle_ms"].as_u64().expect("a number");
        assert!(idle() < 2_500, "{} ms", idle());
        let bytes = || {
            let (row, metrics) = (game.row(), game.gateway.metrics());
            let of =
                |side| metrics.value("ringway_endpoint_relayed_bytes_total", &[("side", side)]);
            let row = ["bytes_up", "bytes_down"].map(|name| row[name].as_u64());
            (row, [of("client"), of("endpoint")])
        };
        let moved = [game.player.up, game.player.down];
        wait_until("all bytes are counted", || bytes() == (moved.map(Some), moved));
        wait_until("the list says that nobody has sent anything", || idle() >= 1_000);
        game.reload("", "off");
        wait_until("the flow is the worker's", || flows(&game.gateway) == 0);
        assert_eq!(game.row()["state"], "answered");
        let before = carried(&game.gateway);
        game.player.play(200);
        assert_eq!(carried(&game.gateway), before);
        // What counts each datagram is for the worker too.
        game.reload("", "auto");
        let mut second = game.world.player(game.at);
        second.play(100);
        assert_eq!(flows(&game.gateway), 1);
        game.reload("limit_source = { bytes_per_second = 100000000 }", "auto");
        wait_until("this one too", || flows(&game.gateway) == 0);
        second.play(200);
        assert_eq!(demotions(&game.gateway, "configuration"), 2);
    });
}

#[test]
fn a_listener_that_leaves_takes_its_flows_back() {
    in_own_network(|| {
        let mut game = Game::promoted("", 1);
        let other = SocketAddr::new(game.at.ip(), free_port());
        let other = config("other", other, places()[0].1[0], "auto");
        game.gateway.reload(&format!("lame_duck = \"2s\"\n{other}"));
        wait_until("the flow is the worker's", || flows(&game.gateway) == 0);
        assert_eq!(demotions(&game.gateway, "draining"), 1);
        game.player.play(100);
        let line = game.gateway.closed_for("drained");
        let logged = (line.number("bytes_up"), line.number("bytes_down"));
        assert_eq!(logged, (game.player.up, game.player.down));
    });
}

#[test]
fn an_operator_ends_a_promoted_flow() {
    in_own_network(|| {
        let mut game = Game::promoted("", 1);
        game.player.play(500);
        let killed = game.gateway.verb(&["kill", "--flows", "--listener", "main"]);
        assert!(killed.status.success(), "{killed:?}");
        let line = game.gateway.closed_for("killed");
        let logged = (line.number("bytes_up"), line.number("bytes_down"));
        assert_eq!(logged, (game.player.up, game.player.down));
        assert_eq!((flows(&game.gateway), demotions(&game.gateway, "ended")), (0, 1));
    });
}

/// The endpoint's ICMP comes to the flow's own socket, as on the worker's path.
#[test]
fn a_promoted_flow_leaves_a_closed_port() {
    for_both_versions(|version| {
        let mut game = Game::in_version(version, "", 2);
        let marks = game.player.play(50);
        game.servers.remove(marks[0].into());
        game.player.socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        let mut bytes = [0; 64];
        wait_until("the other endpoint answers", || {
            game.player.ask(b"anybody?", &mut bytes).is_some_and(|_| bytes[0] != marks[0])
        });
        assert_eq!(demotions(&game.gateway, "endpoint_refused"), 1);
        game.player.socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        game.player.play(100);
        wait_until("the flow is promoted again", || promotions(&game.gateway.metrics()) == 2);
    });
}

/// A promoted flow keeps its place within the limit of its source.
#[test]
fn a_promoted_flow_counts_for_its_source() {
    in_own_network(|| {
        let mut game = Game::promoted("flow_timeout = \"2s\"\nlimit_source = { sessions = 1 }", 1);
        let mut second = game.world.player(game.at);
        second.socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        let mut bytes = [0; 64];
        for _ in 0..15 {
            game.player.play(10);
            assert_eq!(second.ask(b"another", &mut bytes), None);
        }
        wait_until("the place is free", || second.ask(b"another", &mut bytes).is_some());
        let line = wait_for("its line", || {
            let mut lines = game.gateway.log().into_iter();
            lines.find(|line| line.text("reason") == Some("flow_timeout"))
        });
        assert_eq!(line.number("bytes_up"), game.player.up);
    });
}

/// The kernel answers from the address that the client has sent to.
#[test]
fn flows_of_a_wildcard_listener_are_forwarded() {
    in_own_network(|| {
        let world = World::new();
        program("ip", &["address", "add", "10.1.0.9/24", "dev", "clients"]);
        let (at, places) = places()[0];
        let _server = world.server(places[0], 0);
        let any = SocketAddr::new([0, 0, 0, 0].into(), at.port());
        let gateway = Gateway::start(&game(any, &places[..1], "", "required"));
        // A connected socket hears nothing from another address.
        for address in ["10.1.0.1", "10.1.0.9"] {
            let at = SocketAddr::new(address.parse().expect("an address"), at.port());
            assert_eq!(world.player(at).play(200), [0]);
        }
        assert_eq!((promotions(&gateway.metrics()), flows(&gateway)), (2, 2));
        wait_until("the kernel has forwarded them", || carried(&gateway) > 600);
    });
}
