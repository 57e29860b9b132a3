//! Names of endpoints: a real gateway, a real DNS server, and endpoints on addresses of loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringway_tests::pki::Pki;
use ringway_tests::real::config::{forward_as, listener, route};
use ringway_tests::real::{
    Daemon, Folder, Gateway, Launch, Server, connect, echo, free_address, in_own_network, program,
    udp_client, wait_until,
};
use socket2::SockRef;

/// `nsd` with the zone `test`.
struct Dns {
    folder: Folder,
    daemon: Option<Daemon>,
    config: PathBuf,
    address: SocketAddr,
    serial: u32,
}

impl Dns {
    fn start(records: &str) -> Self {
        let (folder, address) = (Folder::new(), free_address());
        let path = |name: &str| folder.file(name).display().to_string();
        let config = format!(
            "server:\n  ip-address: {}@{}\n  username: \"\"\n  zonesdir: \"\"\n  database: \"\"\n  \
             pidfile: \"\"\n  xfrdfile: \"{}\"\n  zonelistfile: \"{}\"\n  server-count: 1\n\
             remote-control:\n  control-enable: no\nzone:\n  name: test\n  zonefile: \"{}\"\n",
            address.ip(),
            address.port(),
            path("xfrd"),
            path("zonelist"),
            path("test.zone"),
        );
        let config = folder.write("nsd.conf", &config);
        let mut dns = Self { folder, daemon: None, config, address, serial: 0 };
        dns.zone(records);
        dns.serve();
        dns
    }

    fn serve(&mut self) {
        let mut command = Command::new("nsd");
        self.daemon =
            Some(Daemon::start(self.address, command.arg("-d").arg("-c").arg(&self.config)));
    }

    fn zone(&mut self, records: &str) {
        self.serial += 1;
        let zone = format!(
            "$ORIGIN test.\n@ 1 SOA ns root {} 1 1 1 1\n@ 1 NS ns\nns 1 A 127.0.0.1\n{records}\n",
            self.serial
        );
        self.folder.write("test.zone", &zone);
    }

    /// Serves other records.
    fn change(&mut self, records: &str) {
        self.zone(records);
        let pid = self.daemon.as_ref().expect("it runs").pid();
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGHUP).expect("nsd runs");
    }

    /// A configuration with one TCP listener at `address`, and these endpoints.
    fn config(&self, address: SocketAddr, endpoints: &str, more: &str) -> String {
        let dns = self.address;
        let resolver = format!("[resolver]\nservers = [\"{dns}\"]\nmin_ttl = \"1s\"\n{more}\n");
        let backend = format!("[[backends]]\nname = \"main\"\nendpoints = [{endpoints}]\n");
        resolver
            + &listener("main", "TCP", address, "")
            + &route("main", "main", &[("main", 1)], "")
            + &backend
    }
}

/// Endpoints with one port on 127.0.0.2 and so on. Each says the last byte of its address, and then
/// what it is told.
fn endpoints<const N: usize>() -> ([Server; N], u16) {
    let port = free_address().port();
    let server = |nth: usize| {
        let last = u8::try_from(nth + 2).expect("few");
        let address = SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), port));
        Server::tcp_at(address, move |mut stream| {
            if stream.write_all(&[last]).is_ok() {
                echo(stream);
            }
        })
    };
    (std::array::from_fn(server), port)
}

/// The endpoints of 40 sessions in a row; 0 for a session that was refused.
fn seen(address: SocketAddr) -> BTreeSet<u8> {
    let one = |_| {
        let (mut stream, mut tag) = (connect(address), [0]);
        // An endpoint that resets sessions waits for a byte.
        let answer = stream.write_all(b"?").and_then(|()| stream.read_exact(&mut tag));
        answer.map_or(0, |()| tag[0])
    };
    (0..40).map(one).collect()
}

fn names(gateway: &Gateway, state: &str) -> u64 {
    gateway.metrics().value("ringway_resolver_names", &[("state", state)])
}

#[test]
fn endpoints_follow_the_records_of_their_name() {
    let (_servers, port) = endpoints::<3>();
    let mut dns = Dns::start("db 1 A 127.0.0.2\nalias 1 CNAME other\nother 1 CNAME db");
    let address = free_address();
    let gateway = Gateway::start(&dns.config(address, &format!("\"alias.test:{port}\""), ""));
    assert_eq!(seen(address), BTreeSet::from([2]), "the first session has an endpoint already");
    let mut held = connect(address);
    dns.change("alias 1 A 127.0.0.3\nalias 1 A 127.0.0.4");
    wait_until("the new addresses are used", || seen(address) == BTreeSet::from([3, 4]));
    assert_eq!(names(&gateway, "resolved"), 1);
    // The name is gone, and then the server too.
    dns.change("");
    wait_until("the name can't be resolved", || names(&gateway, "kept") == 1);
    assert_eq!(seen(address), BTreeSet::from([3, 4]), "the last good addresses stay");
    gateway.says("there is no such name (NXDOMAIN)");
    dns.daemon = None;
    let failed = |gateway: &Gateway| {
        gateway.metrics().value("ringway_resolver_lookups_total", &[("result", "failed")])
    };
    let before = failed(&gateway);
    wait_until("a lookup fails without a server", || failed(&gateway) > before);
    assert_eq!(seen(address), BTreeSet::from([3, 4]));
    dns.zone("alias 86400 A 127.0.0.2");
    dns.serve();
    wait_until("the name is back", || seen(address) == BTreeSet::from([2]));
    held.write_all(&[9]).expect("a session stays with its endpoint");
    let mut said = [0; 2];
    held.read_exact(&mut said).expect("both bytes");
    assert_eq!(said, [2, 9]);
}

/// One of a name's addresses resets its sessions. That address alone is left out, however often the
/// name is resolved meanwhile.
#[test]
fn an_address_of_a_name_is_ejected() {
    let ([_good, other], port) = endpoints::<2>();
    drop(other);
    let at_bad = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 3), port));
    let _bad = Server::tcp_at(at_bad, |mut stream| {
        // Earlier, the gateway might take the reset for a failed connect.
        _ = stream.read_exact(&mut [0]);
        _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    });
    let mut dns = Dns::start("db 1 A 127.0.0.2\ndb 1 A 127.0.0.3");
    let address = free_address();
    let eject = "eject = { failures = 3, window = \"10s\", base = \"6s\" }\n";
    let config = dns.config(address, &format!("\"db.test:{port}\""), "") + eject;
    let gateway = Gateway::start(&config);
    let of_main = |name| gateway.metrics().value(name, &[("backend", "main")]);
    let lookups = || {
        let labels = [("result", "ok")];
        gateway.metrics().value("ringway_resolver_lookups_total", &labels)
    };
    assert_eq!(seen(address), BTreeSet::from([0, 2]), "it is in at first");
    wait_until("it is ejected", || of_main("ringway_endpoints_ejected") == 1);
    wait_until("all go to the good one", || seen(address) == BTreeSet::from([2]));
    let before = lookups();
    wait_until("the name is resolved anew", || lookups() > before);
    assert_eq!(seen(address), BTreeSet::from([2]), "the ejection is the address's own");
    assert_eq!(of_main("ringway_ejections_total"), 1);
    wait_until("it is tried again", || seen(address).contains(&0));
    // An address that is new is in at once.
    dns.change("db 1 A 127.0.0.2\ndb 1 A 127.0.0.4");
    let _new =
        Server::tcp_at(SocketAddr::from((Ipv4Addr::new(127, 0, 0, 4), port)), |mut stream| {
            if stream.write_all(&[4]).is_ok() {
                echo(stream);
            }
        });
    wait_until("the new address is used", || seen(address) == BTreeSet::from([2, 4]));
    wait_until("no ejection is left", || of_main("ringway_endpoints_ejected") == 0);
    gateway.stop();
}

#[test]
fn a_name_that_is_not_there_at_the_start_comes_later() {
    let (_servers, port) = endpoints::<1>();
    let mut dns = Dns::start("");
    let address = free_address();
    let config = dns.config(address, &format!("\"late.test:{port}\""), "keep = \"2s\"");
    let gateway = Gateway::start(&config);
    assert_eq!(seen(address), BTreeSet::from([0]), "no endpoint: refused");
    wait_until("the metric says so", || names(&gateway, "unresolved") == 1);
    dns.change("late 1 A 127.0.0.2");
    wait_until("the name is resolved", || seen(address) == BTreeSet::from([2]));
    dns.change("");
    wait_until("its address is dropped after `keep`", || seen(address) == BTreeSet::from([0]));
}

#[test]
fn services_have_weights_and_priorities() {
    let (_servers, port) = endpoints::<3>();
    let hosts = "a 1 A 127.0.0.2\nb 1 A 127.0.0.3\nc 1 A 127.0.0.4\n";
    let srv = |priority: u8, weight: u8, host: &str| {
        format!("_pg._tcp 1 SRV {priority} {weight} {port} {host}\n")
    };
    let records = hosts.to_owned() + &srv(1, 30, "a") + &srv(1, 10, "b") + &srv(9, 1, "c");
    let mut dns = Dns::start(&records);
    let address = free_address();
    let _gateway = Gateway::start(&dns.config(address, "\"srv:_pg._tcp.test\"", ""));
    assert_eq!(seen(address), BTreeSet::from([2, 3]), "the third is a backup");
    dns.change(&(hosts.to_owned() + &srv(9, 1, "c")));
    wait_until("the backup is all there is", || seen(address) == BTreeSet::from([4]));
    // Records without weights share alike: haproxy/haproxy issue 195.
    dns.change(&(hosts.to_owned() + &srv(1, 0, "a") + &srv(1, 0, "b")));
    wait_until("weight 0 is a weight", || seen(address) == BTreeSet::from([2, 3]));
}

/// The answer does not fit into a datagram: the server truncates it, and is asked over TCP.
#[test]
fn a_hundred_addresses_come_over_tcp() {
    in_own_network(|| {
        let port = 7_000;
        let many = (1..=100u8).map(|last| Ipv4Addr::new(127, 0, 1, last));
        let servers: Vec<_> = many
            .clone()
            .map(|ip| Server::tcp_at(SocketAddr::new(IpAddr::V4(ip), port), |_| {}))
            .collect();
        let mut records = String::new();
        many.for_each(|ip| _ = writeln!(records, "many 1 A {ip}"));
        let dns = Dns::start(&records);
        let answer = program(
            "dig",
            &[
                "@127.0.0.1",
                "-p",
                &dns.address.port().to_string(),
                "+notcp",
                "+ignore",
                "+bufsize=1232",
                "many.test",
            ],
        );
        assert!(answer.contains(" tc "), "the answer is truncated: {answer}");
        let address = free_address();
        let _gateway = Gateway::start(&dns.config(address, "\"many.test:7000\"", ""));
        (0..200).for_each(|_| drop(connect(address)));
        let served = || servers.iter().filter(|server| server.served() > 0).count();
        wait_until("each endpoint has had a session", || served() == 100);
    });
}

#[test]
fn a_thousand_names_are_resolved_and_flows_move_with_their_records() {
    let (first, second) = (udp("a", [127, 0, 0, 2], 0), udp("b", [127, 0, 0, 3], 0));
    let _second_too = udp("b", [127, 0, 0, 3], first.address.port());
    let mut records = "dns 1 A 127.0.0.2\n".to_owned();
    (0..1_000).for_each(|n| _ = writeln!(records, "n{n} 1 A 127.0.2.1"));
    let mut dns = Dns::start(&records);
    let address = free_address();
    let names_of = (0..1_000).map(|n| format!("\"n{n}.test:9\"")).collect::<Vec<_>>().join(", ");
    let resolver = format!(
        "lame_duck = \"1s\"\n[resolver]\nservers = [\"{}\"]\n\
                            min_ttl = \"1s\"\n",
        dns.address
    );
    let config = resolver
        + &listener("dns", "UDP", address, "")
        + &route("dns", "dns", &[("dns", 1)], "")
        + &format!(
            "[[backends]]\nname = \"dns\"\nendpoints = [\"dns.test:{}\"]\n\
             [[backends]]\nname = \"many\"\nendpoints = [{names_of}]\n",
            first.address.port()
        );
    let gateway = Gateway::start(&config);
    drop(second);
    wait_until("all names are resolved", || names(&gateway, "resolved") == 1_001);
    let client = udp_client(address);
    let ask = || {
        let mut answer = [0; 64];
        client.send(b"?").expect("sent");
        client.recv(&mut answer).map(|length| answer[..length].to_vec()).unwrap_or_default()
    };
    assert_eq!(ask(), b"a");
    dns.change(&records.replace("127.0.0.2", "127.0.0.3"));
    wait_until("the flow has moved", || ask() == b"b");
}

fn udp(tag: &'static str, ip: [u8; 4], port: u16) -> Server {
    Server::udp_at(SocketAddr::from((ip, port)), move |socket, _, from| {
        _ = socket.send_to(tag.as_bytes(), from);
    })
}

/// A server of our own for the names in `test`: each has one address, and the answer is what `say`
/// makes of the question, the count of answers so far, and whether TCP asks.
struct Liar {
    address: SocketAddr,
    asked: Arc<Mutex<BTreeMap<String, u32>>>,
    _servers: [Server; 2],
}

impl Liar {
    fn start(say: fn(&Question, u32, bool) -> Vec<u8>) -> Self {
        let asked: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
        let counts = Arc::clone(&asked);
        let answer = move |query: &[u8], tcp: bool| {
            let question = Question::read(query);
            let mut counts = counts.lock().expect("no panic");
            let count = counts.entry(question.name.clone()).or_default();
            *count += 1;
            say(&question, *count, tcp)
        };
        let address = free_address();
        let udp = answer.clone();
        let udp = Server::udp_at(address, move |socket, query, peer| {
            _ = socket.send_to(&udp(query, false), peer);
        });
        let tcp = Server::tcp_at(address, move |mut stream| {
            let mut query = vec![0; 512];
            while let Ok(len @ 3..) = stream.read(&mut query) {
                // An answer over TCP says its length itself.
                if stream.write_all(&answer(&query[2..len], true)).is_err() {
                    return;
                }
            }
        });
        Self { address, asked, _servers: [udp, tcp] }
    }

    fn asked(&self, name: &str) -> u32 {
        self.asked.lock().expect("no panic").get(name).copied().unwrap_or(0)
    }
}

struct Question {
    /// The first label.
    name: String,
    id: [u8; 2],
    /// As it stands in the query.
    bytes: Vec<u8>,
    is_v4: bool,
}

impl Question {
    fn read(query: &[u8]) -> Self {
        let end = query[12..].iter().position(|byte| *byte == 0).expect("a name") + 12;
        let name = &query[13..13 + usize::from(query[12])];
        Self {
            name: String::from_utf8_lossy(name).into_owned(),
            id: [query[0], query[1]],
            bytes: query[12..end + 5].to_vec(),
            is_v4: query[end + 2] == 1,
        }
    }

    /// A message with so many answers announced, and these bytes behind the question.
    fn message(&self, flags: u16, announced: u16, answers: &[u8]) -> Vec<u8> {
        let (flags, announced) = (flags.to_be_bytes(), announced.to_be_bytes());
        let head = [&self.id[..], &flags, &[0, 1], &announced, &[0; 4]].concat();
        [&head[..], &self.bytes, answers].concat()
    }

    /// The A record of the question's name.
    fn record(ttl: u32, announced: u16, address: &[u8]) -> Vec<u8> {
        let (ttl, announced) = (ttl.to_be_bytes(), announced.to_be_bytes());
        [&[0xc0, 12, 0, 1, 0, 1][..], &ttl, &announced, address].concat()
    }

    fn good(&self, ttl: u32) -> Vec<u8> {
        match self.is_v4 {
            true => self.message(0x8180, 1, &Self::record(ttl, 4, &[127, 0, 0, 2])),
            false => self.message(0x8180, 0, &[]),
        }
    }

    /// Answers in which a number says more or less than there is. `nth` chooses one.
    fn bad(&self, nth: u32, tcp: bool) -> Vec<u8> {
        let whole = Self::record(1, 4, &[127, 0, 0, 9]);
        let to_itself = 12 + self.bytes.len();
        let to_itself = [0xc0, u8::try_from(to_itself).expect("a short question")];
        let message = match nth % 8 {
            0 => self.message(0x8180, 1, &Self::record(1, u16::MAX, &[127, 0, 0, 9])),
            1 => self.message(0x8180, u16::MAX, &whole),
            2 => self.message(0x8180, 1, &[&to_itself[..], &whole[2..]].concat()),
            3 => self.message(0x8180, 1, &Self::record(1, 3, &[127, 0, 0])),
            4 => self.message(0x8180, 1, &[&[63][..], &whole].concat()),
            5 => self.message(0x8180, 1, &whole)[..11].to_vec(),
            // TC: the rest is to be had over TCP.
            6 if !tcp => self.message(0x8380, 0, &[]),
            _ => Vec::new(),
        };
        let announced = if nth.is_multiple_of(2) { u16::MAX } else { 1 };
        if tcp { [&announced.to_be_bytes()[..], &message].concat() } else { message }
    }
}

/// A server whose messages say wrong sizes takes no address away, and holds up no other name.
#[test]
fn answers_of_wrong_sizes_harm_nothing() {
    let dns = Liar::start(|question, count, tcp| match question.name.as_str() {
        "bad" if count > 2 || tcp => question.bad(count, tcp),
        _ => question.good(1),
    });
    let (_servers, port) = endpoints::<1>();
    let address = free_address();
    let resolver = format!("[resolver]\nservers = [\"{}\"]\nmin_ttl = \"1s\"\n", dns.address);
    let config = resolver
        + &listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &format!("[[backends]]\nname = \"main\"\nendpoints = [\"bad.test:{port}\"]\n")
        + &format!("[[backends]]\nname = \"other\"\nendpoints = [\"good.test:{port}\"]\n");
    let gateway = Gateway::start(&config);
    assert_eq!(seen(address), BTreeSet::from([2]));
    wait_until("the name can't be resolved", || names(&gateway, "kept") == 1);
    let before = dns.asked("good");
    wait_until("every kind of answer has come", || dns.asked("bad") >= 24);
    assert_eq!(seen(address), BTreeSet::from([2]), "the last good address stays");
    assert_eq!((names(&gateway, "resolved"), names(&gateway, "kept")), (1, 1));
    assert!(dns.asked("good") > before + 4, "the other name is resolved again and again");
    gateway.stop();
}

/// A TTL of 0 makes nobody ask all the time, and one of a day is waited for, up to `max_ttl`.
#[test]
fn short_and_long_times_to_live_are_bounded() {
    let dns = Liar::start(|question, _, _| match question.name.as_str() {
        "zero" => question.good(0),
        _ => question.good(86_400),
    });
    let config = |max_ttl: &str| {
        let resolver = format!("[resolver]\nservers = [\"{}\"]\nmin_ttl = \"1s\"\n", dns.address);
        resolver
            + max_ttl
            + &listener("main", "TCP", free_address(), "")
            + &route("main", "main", &[("main", 1)], "")
            + "[[backends]]\nname = \"main\"\nendpoints = [\"zero.test:1\", \"day.test:1\"]\n"
    };
    let gateway = Gateway::start(&config(""));
    wait_until("both are resolved", || names(&gateway, "resolved") == 2);
    let (zero, day) = (dns.asked("zero"), dns.asked("day"));
    std::thread::sleep(Duration::from_millis(4_500));
    // Each look-up asks for A and AAAA.
    let asked = dns.asked("zero") - zero;
    assert!((4..=10).contains(&asked), "{asked} questions in 4.5 s");
    assert_eq!(dns.asked("day"), day);
    gateway.reload(&config("max_ttl = \"1s\"\n"));
    wait_until("it is asked for again after `max_ttl`", || dns.asked("day") > day);
    gateway.stop();
}

/// DNS over TLS: the server's certificate must have the name, and an authority of the system.
#[test]
fn a_server_is_asked_over_tls() {
    let (_servers, port) = endpoints::<1>();
    let dns = Dns::start("db 1 A 127.0.0.2");
    let (pki, files) = (Pki::new(), Folder::new());
    let issued = pki.issue(&["dns.example"]);
    let path = |name: &str, text: &str| files.write(name, text).display().to_string();
    let (cert, key) = (path("cert.pem", &issued.cert), path("key.pem", &issued.key));
    let (ca, none) = (path("ca.pem", &pki.ca()), path("other.pem", &Pki::new().ca()));
    let at = free_address();
    let pair = format!("{{ cert = \"{cert}\", key = \"{key}\" }}");
    // Resolvers send no server name to DNS servers.
    let tls = format!(
        "default_hostname = \"dns.example\"\n\
         tls = {{ mode = \"Terminate\", certificates = [{pair}] }}"
    );
    let front = forward_as("dot", "TLS", at, [dns.address], &tls);
    let front = Gateway::start(&front);
    let asks = |name: &str, authorities: &str| {
        let address = free_address();
        let server = format!("servers = [\"tls:{at}#{name}\"]");
        let config = format!("[resolver]\n{server}\nmin_ttl = \"1s\"\n")
            + &listener("main", "TCP", address, "")
            + &route("main", "main", &[("main", 1)], "")
            + &format!("[[backends]]\nname = \"main\"\nendpoints = [\"db.test:{port}\"]\n");
        let trust = format!("SSL_CERT_FILE={authorities}");
        (Launch::default().under(&["env", &trust]).start(&config), address)
    };
    let (good, address) = asks("dns.example", &ca);
    assert_eq!(seen(address), BTreeSet::from([2]));
    wait_until("the metric says so", || names(&good, "resolved") == 1);
    for (name, authorities) in [("other.example", &ca), ("dns.example", &none)] {
        let (bad, address) = asks(name, authorities);
        wait_until("it is not resolved", || names(&bad, "unresolved") == 1);
        assert_eq!(seen(address), BTreeSet::from([0]), "{name}");
        bad.stop();
    }
    good.stop();
    front.stop();
}
