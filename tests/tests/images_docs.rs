//! The examples of images/examples, tried: each file is valid, and several gateways work with the
//! programs that the page on several machines names. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use ringway_tests::real::{
    Daemon, Folder, Namespace, Server, binary, in_own_network, limited, program, wait_until,
};

/// Each example by itself, as an operator would try it.
#[test]
fn examples_are_valid() {
    let folder = Folder::new();
    let password = folder.write("password", "secret");
    for file in configurations() {
        let text = fs::read_to_string(&file).expect("it is there");
        let text = text.replace("/etc/ringway/mysql.password", &password.display().to_string());
        let text = text.replace("/run/ringway/", &format!("{}/", folder.file("").display()));
        let copy = folder.write("ringway.toml", &text).display().to_string();
        let output =
            limited(binary()).args(["check", "--strict", &copy]).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{}: {said}", file.display());
    }
}

#[test]
fn pages_are_printed_without_files() {
    let listed = program(&binary().display().to_string(), &["docs"]);
    assert!(listed.contains("kafka"), "{listed}");
    let page = program(&binary().display().to_string(), &["docs", "kafka"]);
    let example = fs::read_to_string(examples().join("kafka.toml")).expect("it is there");
    assert!(page.contains(&example), "{page}");
}

/// The address moves when Ringway on its machine is no longer ready.
#[test]
fn vrrp_moves_the_address() {
    in_own_network(|| {
        let world = World::new();
        let to = address("10.0.0.100:6379");
        let gateways = world.gateways.each_ref().map(|node| gateway(node, "vrrp", ""));
        let _keepalived: Vec<_> = world
            .gateways
            .iter()
            .zip([100, 90])
            .map(|(node, priority)| keepalived(node, &world.folder, priority))
            .collect();
        wait_until("the first gateway serves", || world.served_by(to) == Some(GATEWAYS[0]));
        gateways[0].signal(Signal::SIGTERM);
        wait_until("the second gateway serves", || world.served_by(to) == Some(GATEWAYS[1]));
    });
}

/// The router spreads connections over both gateways, and leaves out one that is no longer ready.
#[test]
fn ecmp_spreads_clients_over_gateways() {
    in_own_network(|| {
        let world = World::new();
        let to = address("10.99.0.1:6379");
        let gateways = world.gateways.each_ref().map(|node| {
            node.run(|| {
                program("ip", &["address", "add", "10.99.0.1/32", "dev", "lo"]);
                program("ip", &["route", "add", "10.1.0.0/24", "via", "10.0.0.2"]);
            });
            gateway(node, "ecmp", "")
        });
        world.front.run(|| {
            let hash = "net.ipv4.fib_multipath_hash_policy=1";
            program("sysctl", &["-qw", "net.ipv4.ip_forward=1", hash]);
        });
        // The client is behind the router.
        program("ip", &["link", "add", "br1", "type", "bridge"]);
        program("ip", &["link", "set", "br1", "up"]);
        world.front.plug("br1", "out", "eth1", "10.1.0.1/24");
        let client = Namespace::new();
        client.plug("br1", "far", "eth0", "10.1.0.9/24");
        client.run(|| drop(program("ip", &["route", "add", "default", "via", "10.1.0.1"])));

        let _router = bird(&world.front, &world.folder, "router", "router.conf");
        let _birds: Vec<_> = world
            .gateways
            .iter()
            .zip(["first", "second"])
            .map(|(node, name)| {
                let bird = bird(node, &world.folder, name, "gateway.conf");
                (bird, announce(node, &world.folder, name))
            })
            .collect();
        let by = |count: usize| {
            client.run(move || (0..count).filter_map(|_| ask(to)).collect::<Vec<_>>())
        };
        wait_until("both gateways serve", || {
            let seen: BTreeSet<IpAddr> = by(20).into_iter().collect();
            seen == GATEWAYS.into_iter().map(ip).collect()
        });
        gateways[0].signal(Signal::SIGTERM);
        wait_until("the second gateway alone serves", || {
            let answers = by(20);
            answers.len() == 20 && answers.iter().all(|by| *by == ip(GATEWAYS[1]))
        });
    });
}

/// The gateways learn who the client is, and nobody gets past the load balancer.
#[test]
fn a_load_balancer_names_the_client() {
    in_own_network(|| {
        let world = World::new();
        let to = address("10.0.0.2:6379");
        let gateways: Vec<_> = world
            .gateways
            .iter()
            .zip(GATEWAYS)
            .map(|(node, own)| gateway(node, "proxy-v2", own))
            .collect();
        let file = examples().join("proxy-v2/haproxy.cfg");
        let _haproxy = world
            .front
            .run(move || Daemon::start(to, Command::new("haproxy").arg("-db").arg("-f").arg(file)));
        wait_until("both gateways serve", || {
            let seen: BTreeSet<_> = (0..4).filter_map(|_| world.served_by(to)).collect();
            seen.len() == 2
        });
        let direct = address("10.0.0.3:6379");
        assert_eq!(world.client.run(move || ask(direct)), None, "not past the load balancer");
        gateways[0].signal(Signal::SIGTERM);
        wait_until("the second gateway alone serves", || {
            let answers = [(); 4].map(|()| world.served_by(to));
            assert!(answers.iter().all(Option::is_some), "no connection fails: {answers:?}");
            answers.iter().all(|by| *by == Some(GATEWAYS[1]))
        });
        // A client has one server, through both gateways.
        let servers = world.servers_asked();
        assert_eq!(servers.values().filter(|count| **count > 0).count(), 1, "{servers:?}");
    });
}

const GATEWAYS: [&str; 2] = ["10.0.0.3", "10.0.0.4"];
const SERVERS: [&str; 2] = ["10.0.0.11:6379", "10.0.0.12:6379"];

/// Machines on one network, with the addresses that the examples have.
struct World {
    gateways: [Namespace; 2],
    /// The router, or the load balancer.
    front: Namespace,
    client: Namespace,
    /// Servers that say who asks.
    servers: Vec<Server>,
    folder: Folder,
    _machine: Namespace,
}

impl World {
    fn new() -> Self {
        program("ip", &["link", "add", "br0", "type", "bridge"]);
        program("ip", &["link", "set", "br0", "up"]);
        let node = |name, address| {
            let node = Namespace::new();
            node.plug("br0", name, "eth0", address);
            node
        };
        let gateways = [node("gateway1", "10.0.0.3/24"), node("gateway2", "10.0.0.4/24")];
        let machine = node("servers", "10.0.0.11/24");
        let servers = machine.run(|| {
            program("ip", &["address", "add", "10.0.0.12/24", "dev", "eth0"]);
            let serve = |at: &&str| {
                Server::tcp_at(address(at), |mut stream| {
                    let peer = stream.peer_addr().expect("its peer");
                    let _ = stream.write_all(peer.ip().to_string().as_bytes());
                })
            };
            SERVERS.iter().map(serve).collect()
        });
        Self {
            gateways,
            front: node("front", "10.0.0.2/24"),
            client: node("client", "10.0.0.9/24"),
            servers,
            folder: Folder::new(),
            _machine: machine,
        }
    }

    /// The gateway through which the client is served, if it is served.
    fn served_by(&self, to: SocketAddr) -> Option<&'static str> {
        let by = self.client.run(move || ask(to))?;
        GATEWAYS.into_iter().find(|gateway| ip(gateway) == by)
    }

    fn servers_asked(&self) -> BTreeMap<SocketAddr, u64> {
        let count = |server: &Server| server.served.load(std::sync::atomic::Ordering::SeqCst);
        self.servers.iter().map(|server| (server.address, count(server))).collect()
    }
}

/// What the server says: from where it was asked.
fn ask(to: SocketAddr) -> Option<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.parse().ok()
}

/// Ringway with an example's file.
fn gateway(node: &Namespace, example: &str, own: &'static str) -> Daemon {
    let file = examples().join(example).join("ringway.toml");
    node.run(move || {
        let mut command = Command::new(binary());
        command.arg("run").arg(file);
        if !own.is_empty() {
            command.env("ADDRESS", own);
        }
        let admin = if own.is_empty() { "127.0.0.1" } else { own };
        Daemon::start(SocketAddr::new(ip(admin), 9900), &mut command)
    })
}

fn keepalived(node: &Namespace, folder: &Folder, priority: u32) -> Daemon {
    let text = fs::read_to_string(examples().join("vrrp/keepalived.conf")).expect("the example");
    let text = text.replace("priority 100", &format!("priority {priority}"));
    let file = folder.write(&format!("keepalived-{priority}.conf"), &text);
    let pid = |name: &str| format!("{}-{name}.pid", file.with_extension("").display());
    let words = [
        "--dont-fork".to_owned(),
        "--vrrp".to_owned(),
        format!("--use-file={}", file.display()),
        format!("--pid={}", pid("main")),
        format!("--vrrp_pid={}", pid("vrrp")),
    ];
    node.run(move || Daemon::spawn(Command::new("keepalived").args(words)))
}

fn bird(node: &Namespace, folder: &Folder, name: &str, example: &str) -> Daemon {
    let (socket, file) = (control(folder, name), examples().join("ecmp").join(example));
    node.run(move || {
        let mut command = Command::new("bird");
        command.arg("-f").arg("-s").arg(&socket).arg("-P").arg(socket.with_extension("pid"));
        Daemon::spawn(command.arg("-c").arg(file))
    })
}

fn announce(node: &Namespace, folder: &Folder, name: &str) -> Daemon {
    let socket = control(folder, name);
    node.run(move || {
        Daemon::spawn(Command::new(examples().join("ecmp/announce")).env("BIRD_SOCKET", socket))
    })
}

fn control(folder: &Folder, name: &str) -> PathBuf {
    folder.file(&format!("{name}.ctl"))
}

/// Every TOML file of the examples.
fn configurations() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![examples()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(end) if end == "toml" => found.push(path),
                _ => {}
            }
        }
    }
    assert!(found.len() > 15, "{found:?}");
    found
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/examples")
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
