//! Sessions that speak TLS, in the simulated world.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use config_sync::check;
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::model::config::Config;
use config_sync::model::place::{At, Place};
use config_sync::model::tls::{Certificate, Origination, Pem, Termination};
use config_sync::table::routing::{Limits, RoutingTable};
use ringway::contract::{Event, Op, Side, Stop, Token, Why};
use ringway::proxy::Proxy;
use ringway::stats::counters::Counters;
use ringway::stats::records::{CloseReason, Record};
use ringway_tests::pki::{Issued, Pki, inline};
use ringway_tests::sim::rng::Rng;
use ringway_tests::sim::tls::case::{Case, Fault};
use ringway_tests::sim::tls::world;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{Acceptor, ResolvesServerCert as _, WebPkiClientVerifier};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
};

/// `SEED=n` runs that one; `SEEDS=n` so many.
#[test]
fn tls_sessions_keep_their_promises() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(600),
    };
    let many = seeds.end - seeds.start >= 300;
    let mut reasons = BTreeMap::new();
    for seed in seeds {
        eprintln!("seed {seed}");
        for reason in world::run(seed) {
            *reasons.entry(reason.word()).or_insert(0) += 1;
        }
    }
    for reason in [
        "client_fin",
        "endpoint_fin",
        "client_truncated",
        "endpoint_truncated",
        "client_tls_failed",
        "endpoint_tls_failed",
        "client_reset",
        "endpoint_reset",
        "starttls_early",
        "endpoint_starttls_failed",
    ] {
        assert!(!many || reasons.contains_key(reason), "no seed ended by {reason}: {reasons:?}");
    }
}

/// Far more than may take bytes at once; the world checks how long each waits.
#[test]
fn in_a_crowd_nobody_waits_for_all_others() {
    let ends_here = Case {
        client: true,
        endpoint: false,
        starttls: None,
        old: false,
        spare: false,
        fin: false,
        fault: Fault::None,
    };
    let through = Case { client: false, starttls: Some(false), ..ends_here };
    for case in [ends_here, through] {
        let reasons = world::crowd(1, 300, case);
        let fins = [CloseReason::ClientFin, CloseReason::EndpointFin];
        assert!(reasons.iter().all(|reason| fins.contains(reason)), "{reasons:?}");
    }
}

/// What comes before the relay has a deadline on every endpoint, and its passing is counted.
#[test]
fn a_silent_endpoint_is_given_up() {
    let plain = Case {
        client: true,
        endpoint: false,
        starttls: None,
        old: false,
        spare: false,
        fin: false,
        fault: Fault::Silence,
    };
    let tls = Case { endpoint: true, ..plain };
    let words = Case { starttls: Some(false), ..tls };
    let behind_tcp = Case { client: false, ..tls };
    for timeout in ["1s", "0s"] {
        for (case, send_proxy) in
            [(tls, ""), (words, ""), (behind_tcp, ""), (plain, "send_proxy = \"v2\"")]
        {
            let backend = format!("connect_timeout = \"{timeout}\"\n{send_proxy}");
            let silent = world::silent(case, &backend);
            assert_eq!(silent, (CloseReason::ConnectTimeout, 1), "{case:?} {backend}");
            if !send_proxy.is_empty() {
                continue;
            }
            // Nothing of the client's was sent to it: another endpoint has it.
            let case = Case { spare: true, ..case };
            let (reason, _) = world::silent(case, &backend);
            let fins = [CloseReason::ClientFin, CloseReason::EndpointFin];
            assert!(fins.contains(&reason), "{case:?} {backend}: {reason:?}");
        }
    }
}

/// Bytes that a fuzzer might give, and none: the world goes on by itself after them.
#[test]
fn a_world_can_be_made_of_bytes() {
    for len in [0, 1, 40, 4_000] {
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().step_by(7).take(len).collect();
        world::play(Rng::scripted(&bytes));
    }
}

const TEXT: &str = r#"
[[listeners]]
name = "l"
protocol = "TLS"
address = "10.0.0.1:443"
[[routes]]
name = "r"
listeners = ["l"]
backends = [{ name = "b" }]
[[backends]]
name = "b"
endpoints = ["10.0.1.1:80"]
"#;

fn configured(text: &str, shown: &Certificate, ca: &Pem) -> Config {
    let mut config = check::parse("test", text).expect("a configuration");
    config.listeners[0].tls =
        Some(Termination { certificates: vec![shown.clone()], ..Termination::default() });
    config.backends[0].tls = Some(Origination {
        server_name: "db.example.com".to_owned(),
        ca: Some(ca.clone()),
        certificate: None,
        subject_alt_names: Vec::new(),
        alpn: None,
        pins: Vec::new(),
    });
    config
}

/// Whether terminators and originators of two tables are the same.
fn same(a: &RoutingTable, b: &RoutingTable) -> (bool, bool) {
    let terminator = |table: &RoutingTable| table.listeners[0].tls.clone().expect("TLS");
    let originator = |table: &RoutingTable| table.backends[0].tls.clone().expect("TLS");
    let terminators = Arc::ptr_eq(&terminator(a), &terminator(b));
    (terminators, Arc::ptr_eq(&originator(a), &originator(b)))
}

#[test]
fn tls_is_made_anew_when_it_has_changed_and_only_then() {
    let pki = Pki::shared();
    let folder = std::env::temp_dir().join(format!("ringway-loaded-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let file = |name: &str, pem: &str| {
        fs::write(folder.join(name), pem).expect("written");
        let place = Place { file: "test".into(), line: 1, column: 1, field: String::new() };
        Pem::File(At { value: folder.join(name), place })
    };
    let mut names = Names::new();
    let mut compiled = |text: &str, shown: &Certificate, ca: &Pem| {
        let table = compile(&configured(text, shown, ca), &mut names, 1).expect("a table");
        #[expect(clippy::disallowed_methods, reason = "what is put in force is, at some time")]
        names.published(&table, table.generation, std::time::Instant::now());
        (table, names.expiries().to_vec())
    };
    let (first, second) = (pki.issue(&["a.test"]), pki.issue(&["a.test"]));
    let shown = Certificate { cert: file("cert", &first.cert), key: file("key", &first.key) };
    let ca = inline("ca", &pki.ca());
    let before = compiled(TEXT, &shown, &ca);
    let moved = compiled(&TEXT.replace("10.0.1.1", "10.0.1.2"), &shown, &ca);
    assert_eq!(same(&before.0, &moved.0), (true, true), "an endpoint has moved");
    assert_eq!(before.1, moved.1, "certificates are still reported");
    let other = inline("ca", &Pki::new().ca());
    let trusting = compiled(TEXT, &shown, &other);
    assert_eq!(same(&moved.0, &trusting.0), (true, false), "another CA");
    file("cert", &second.cert);
    file("key", &second.key);
    let renewed = compiled(TEXT, &shown, &other);
    assert_eq!(same(&trusting.0, &renewed.0), (false, true), "files have changed");
    let plain = check::parse("test", &TEXT.replace("TLS", "TCP")).expect("a configuration");
    compile(&plain, &mut names, 1).expect("a table");
    let mut compiled =
        |text: &str| compile(&configured(text, &shown, &other), &mut names, 1).expect("a table");
    assert_eq!(same(&renewed.0, &compiled(TEXT)), (false, false), "a table had neither");
    fs::remove_dir_all(&folder).expect("removed");
}

/// As routes are found (RFC 6066 forbids the dot; some clients send it).
#[test]
fn a_dot_behind_the_server_name_finds_its_certificate() {
    let issued = Pki::shared().issue(&["a.example.com"]);
    let config = configured(TEXT, &issued.configured(), &inline("ca", &Pki::shared().ca()));
    let table = compile(&config, &mut Names::new(), 1).expect("a table");
    let terminator = table.listeners[0].tls.as_ref().expect("TLS");
    let finds = |name: &str| {
        let mut acceptor = Acceptor::default();
        acceptor.read_tls(&mut hello(name).as_slice()).expect("memory");
        let accepted = acceptor.accept().ok().flatten().expect("a hello");
        terminator.certificates.resolve(accepted.client_hello()).is_some()
    };
    assert!(finds("a.example.com") && finds("a.example.com.") && finds("A.example.com."));
    assert!(!finds("b.example.com."));
}

/// A ClientHello with this name. rustls sends no dot at the end, so another byte takes its place
/// until it was made.
fn hello(name: &str) -> Vec<u8> {
    let stand_in = name.replace('.', "x");
    let mut client = client(&stand_in, RootCertStore::empty());
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("memory");
    let at = hello.windows(stand_in.len()).position(|bytes| bytes == stand_in.as_bytes());
    let at = at.expect("it has the name");
    hello[at..][..name.len()].copy_from_slice(name.as_bytes());
    hello
}

fn client(name: &str, roots: RootCertStore) -> ClientConnection {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = name.to_owned().try_into().expect("a name");
    ClientConnection::new(Arc::new(config), name).expect("a client")
}

/// Two backends of a listener at which TLS ends.
const PAIR: &str = r#"
[[listeners]]
name = "l"
protocol = "TLS"
address = "127.0.0.1:5000"
[[routes]]
name = "l"
listeners = ["l"]
ROUTE
[[backends]]
name = "a"
endpoints = [A]
[[backends]]
name = "b"
endpoints = [B]
"#;

/// `Connect` or `Close` of a session whose table changes during the handshake, and what the client
/// was told. `before`, `after`: the endpoints of both backends.
fn changes_meanwhile(
    route: &str,
    before: [&str; 2],
    after: [&str; 2],
) -> (Op, Option<rustls::Error>) {
    let pki = Pki::shared();
    let issued = pki.issue(&["a.test"]);
    let mut names = Names::new();
    let mut table = |[a, b]: [&str; 2], generation| {
        let text = PAIR.replace("ROUTE", route).replace("[A]", a).replace("[B]", b);
        let mut config = check::parse("test", &text).expect("a configuration");
        let certificates = vec![issued.configured()];
        config.listeners[0].tls = Some(Termination { certificates, ..Termination::default() });
        Arc::new(compile(&config, &mut names, generation).expect("a table"))
    };
    let (before, after) = (table(before, 1), table(after, 2));
    let socket = Token::socket(before.sockets[0].id);
    let limits =
        Limits { sessions: 1, flows: 1, buffers: 1, pipes: 1, turn_bytes: 1 << 18, bulk_bytes: 0 };
    let mut proxy = Proxy::new(limits, 1, Arc::new(Counters::new()));
    proxy.set_epoch(1_900_000_000_000_000);
    let mut ops = Vec::new();
    proxy.apply(1, before, &mut ops);
    ops.clear();
    let (peer, local) = (([127, 0, 0, 1], 4000).into(), ([127, 0, 0, 1], 5000).into());
    proxy.handle(2, socket, Event::Accepted { incoming: 0, peer, local }, &[], &mut ops);
    let token = ops.first().expect("the client is let in").0;
    let side = Side::Client;
    let ready =
        Event::Ready { side, readable: true, writable: false, ending: false, failed: false };
    let mut after = Some(after);
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(pki.ca().as_bytes()).expect("PEM");
    roots.add(ca).expect("an authority");
    let mut client = client("a.test", roots);
    let (mut said, mut told) = (Vec::new(), None);
    client.write_tls(&mut said).expect("memory");
    proxy.handle(3, token, ready, &[], &mut ops);
    for now in 4..100 {
        let output = std::mem::take(proxy.output());
        for (token, op) in std::mem::take(&mut ops) {
            let len = u32::try_from(said.len()).expect("a few bytes");
            match op {
                Op::Peek { .. } => {
                    let event = Event::Peeked { start: 0, len, end: false };
                    proxy.handle(now, token, event, &said, &mut ops);
                }
                Op::Take { .. } => {
                    let event = Event::Taken { from: side, start: 0, len, stop: Stop::Drained };
                    proxy.handle(now, token, event, &std::mem::take(&mut said), &mut ops);
                }
                Op::Give { start, len, .. } => {
                    let mut bytes = &output[start as usize..][..len as usize];
                    told = hear(&mut client, &mut bytes, &mut said).err().or(told);
                    let stop = Stop::Drained;
                    let event = Event::Given { to: side, sent: len, start: 0, len: 0, stop };
                    proxy.handle(now, token, event, &[], &mut ops);
                    // The gateway has answered the hello, so the backend is chosen.
                    if let Some(after) = after.take() {
                        proxy.apply(now, after, &mut ops);
                    }
                    proxy.handle(now, token, ready, &[], &mut ops);
                }
                Op::Connect { .. } | Op::Close { .. } => return (op, told),
                _ => {}
            }
        }
    }
    unreachable!("no handshake takes so long")
}

/// Clients of one listener at which TLS ends. Some of them stall after their ClientHello.
struct Crowd {
    proxy: Proxy,
    socket: Token,
    now: u64,
    ops: Vec<(Token, Op)>,
    clients: Vec<Shaking>,
}

struct Shaking {
    tls: ClientConnection,
    said: Vec<u8>,
    stalls: bool,
    token: Option<Token>,
    /// The handshake is over, and the endpoint is connected to.
    is_through: bool,
}

const READABLE: Event = Event::Ready {
    side: Side::Client,
    readable: true,
    writable: false,
    ending: false,
    failed: false,
};

impl Crowd {
    fn new(max_sessions: u32) -> Self {
        let keys = format!("max_sessions = {max_sessions}\n[[routes]]");
        let text = TEXT.replace("10.0.0.1:443", "127.0.0.1:5000").replace("[[routes]]", &keys);
        let mut config = check::parse("test", &text).expect("a configuration");
        let certificates = vec![Pki::shared().issue(&["a.test"]).configured()];
        config.listeners[0].tls = Some(Termination { certificates, ..Termination::default() });
        let table = compile(&config, &mut Names::new(), 1).expect("a table");
        let socket = Token::socket(table.sockets[0].id);
        let (flows, buffers, pipes, bulk_bytes) = (1, 1, 1, 0);
        let limits =
            Limits { sessions: 64, flows, buffers, pipes, turn_bytes: 1 << 18, bulk_bytes };
        let mut proxy = Proxy::new(limits, 1, Arc::new(Counters::new()));
        proxy.set_epoch(1_900_000_000_000_000);
        let mut ops = Vec::new();
        proxy.apply(1, Arc::new(table), &mut ops);
        ops.clear();
        Self { proxy, socket, now: 1, ops, clients: Vec::new() }
    }

    /// A client says hello, and the worker does all that follows.
    fn come(&mut self, stalls: bool) {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(Pki::shared().ca().as_bytes()).expect("PEM");
        roots.add(ca).expect("an authority");
        let (mut tls, mut said) = (client("a.test", roots), Vec::new());
        tls.write_tls(&mut said).expect("memory");
        let incoming = u32::try_from(self.clients.len()).expect("few");
        self.clients.push(Shaking { tls, said, stalls, token: None, is_through: false });
        let peer = ([127, 0, 0, 1], 4_000 + u16::try_from(incoming).expect("few")).into();
        let local = ([127, 0, 0, 1], 5_000).into();
        let accepted = Event::Accepted { incoming, peer, local };
        self.proxy.handle(self.now, self.socket, accepted, &[], &mut self.ops);
        for _ in 0..3 {
            self.settle();
            self.proxy.expire(self.now, &mut self.ops);
            self.proxy.resume(self.now, &mut self.ops);
        }
        self.settle();
    }

    fn settle(&mut self) {
        while !self.ops.is_empty() {
            let output = std::mem::take(self.proxy.output());
            for (token, op) in std::mem::take(&mut self.ops) {
                self.carry_out(token, op, &output);
            }
        }
    }

    fn carry_out(&mut self, token: Token, op: Op, output: &[u8]) {
        let Self { proxy, now, ops, clients, .. } = self;
        if let Op::Adopt { incoming } = op {
            clients[incoming as usize].token = Some(token);
            return proxy.handle(*now, token, READABLE, &[], ops);
        }
        let Some(client) = clients.iter_mut().find(|of| of.token == Some(token)) else { return };
        let len = u32::try_from(client.said.len()).expect("a few bytes");
        let side = Side::Client;
        match op {
            Op::Peek { .. } => {
                let event = Event::Peeked { start: 0, len, end: false };
                proxy.handle(*now, token, event, &client.said, ops);
            }
            Op::Take { from: Side::Client, .. } => {
                let event = Event::Taken { from: side, start: 0, len, stop: Stop::Drained };
                proxy.handle(*now, token, event, &std::mem::take(&mut client.said), ops);
            }
            Op::Give { to: Side::Client, start, len } => {
                let mut bytes = &output[start as usize..][..len as usize];
                if !client.stalls {
                    hear(&mut client.tls, &mut bytes, &mut client.said).expect("good TLS");
                }
                let stop = Stop::Drained;
                let event = Event::Given { to: side, sent: len, start: 0, len: 0, stop };
                proxy.handle(*now, token, event, &[], ops);
                proxy.handle(*now, token, READABLE, &[], ops);
            }
            Op::Connect { .. } => client.is_through = true,
            Op::Close { .. } => proxy.handle(*now, token, Event::Closed, &[], ops),
            _ => {}
        }
    }

    /// Those who have made room since the last call, by their numbers.
    fn crowded_out(&mut self) -> Vec<u16> {
        let closed = self.proxy.records().drain(..).filter_map(|record| match record {
            Record::Closed(record) => Some(record),
            _ => None,
        });
        let closed = closed.map(|record| {
            assert_eq!(record.reason, Some(CloseReason::CrowdedOut), "{record:?}");
            record.client.port() - 4_000
        });
        closed.collect()
    }
}

/// The handshake that has taken longest makes room at a full listener, and at one that is nearly
/// full if it has taken too long. A session that is through its handshake stays.
#[test]
fn handshakes_that_stall_make_room_at_their_listener() {
    let mut crowd = Crowd::new(8);
    crowd.come(false);
    assert!(crowd.clients[0].is_through);
    for _ in 1..8 {
        crowd.now += 1_000;
        crowd.come(true);
    }
    assert!(crowd.crowded_out().is_empty(), "each has a place");
    crowd.come(false);
    assert!(crowd.clients[8].is_through, "whoever comes has a place");
    assert_eq!(crowd.crowded_out(), [1]);
    // Now it is full of six who stall, and two who don't. Those who stall have taken 0.25 s.
    crowd.now += 300_000;
    crowd.come(false);
    assert!(crowd.clients[9].is_through);
    let made_room = crowd.crowded_out();
    let are_slow = made_room.iter().all(|of| (2..8).contains(of));
    assert!(made_room.starts_with(&[2]) && are_slow, "{made_room:?}");
}

fn hear(
    client: &mut ClientConnection,
    bytes: &mut &[u8],
    answer: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    while !bytes.is_empty() {
        client.read_tls(bytes).expect("memory");
        client.process_new_packets()?;
    }
    while client.wants_write() {
        client.write_tls(answer).expect("memory");
    }
    Ok(())
}

#[test]
fn a_backend_that_empties_during_the_handshake_is_chosen_again() {
    const A: &str = "[\"10.0.1.1:80\"]";
    const B: &str = "[\"10.0.1.2:80\"]";
    let next = "backends = [{ name = \"a\" }, { name = \"b\" }]\non_unavailable = \"next\"";
    let all_to_a = "backends = [{ name = \"a\", weight = 1 }, { name = \"b\", weight = 0 }]";
    let to = |op: Op| match op {
        Op::Connect { address, .. } => Some(address.to_string()),
        _ => None,
    };
    let moved = changes_meanwhile(next, [A, "[]"], ["[]", B]);
    assert_eq!(to(moved.0).as_deref(), Some("10.0.1.2:80"));
    let stayed = changes_meanwhile(next, [A, "[]"], [A, B]);
    assert_eq!(to(stayed.0).as_deref(), Some("10.0.1.1:80"), "an endpoint is left");
    let refused = changes_meanwhile(all_to_a, [A, B], ["[]", B]);
    let alert = rustls::Error::AlertReceived(AlertDescription::InternalError);
    let told = (Op::Close { reset: false }, Some(alert));
    assert_eq!(refused, told, "the whole share is of the empty backend");
}

/// A TCP listener whose two endpoints speak TLS.
const ORIGINATED: &str = r#"
[[listeners]]
name = "l"
protocol = "TCP"
address = "127.0.0.1:5000"
max_sessions = 1
[[routes]]
name = "l"
listeners = ["l"]
backends = [{ name = "b" }]
[[backends]]
name = "b"
endpoints = ["10.0.1.1:80", "10.0.1.2:80"]
"#;

/// A worker with that listener, and the listener's socket.
fn originating() -> (Proxy, Token) {
    let mut config = check::parse("test", ORIGINATED).expect("a configuration");
    config.backends[0].tls = Some(Origination {
        server_name: "a.test".to_owned(),
        ca: Some(inline("ca", &Pki::shared().ca())),
        certificate: None,
        subject_alt_names: Vec::new(),
        alpn: None,
        pins: Vec::new(),
    });
    let table = compile(&config, &mut Names::new(), 1).expect("a table");
    let socket = Token::socket(table.sockets[0].id);
    let limits =
        Limits { sessions: 2, flows: 1, buffers: 1, pipes: 1, turn_bytes: 1 << 18, bulk_bytes: 0 };
    let mut proxy = Proxy::new(limits, 1, Arc::new(Counters::new()));
    proxy.set_epoch(1_900_000_000_000_000);
    proxy.apply(1, Arc::new(table), &mut Vec::new());
    (proxy, socket)
}

/// A server that wants a certificate of its clients. With TLS 1.3 it refuses behind its handshake.
fn strict(issued: &Issued) -> ServerConnection {
    let mut roots = RootCertStore::empty();
    let pem = |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).expect("PEM");
    roots.add(pem(&Pki::shared().ca())).expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("a key");
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(vec![pem(&issued.cert)], key)
        .expect("a server");
    ServerConnection::new(Arc::new(config)).expect("a server")
}

/// The endpoint's refusal comes in the same turn in which the gateway's last words of the handshake
/// went out, or a turn later, as its end does. The silent client gets the other endpoint, and keeps
/// the only place of the listener.
#[test]
fn an_endpoint_that_refuses_at_once_behind_its_handshake_costs_nobody_a_session() {
    for late in [false, true] {
        refused_behind_its_handshake(late);
    }
}

fn refused_behind_its_handshake(late: bool) {
    let issued = Pki::shared().issue(&["a.test"]);
    let (mut proxy, socket) = originating();
    let (mut ops, mut connects, mut now) = (Vec::new(), 0, 1);
    let peer = ([127, 0, 0, 1], 4000).into();
    let comes = |incoming| {
        let local = ([127, 0, 0, 1], 5000).into();
        Event::Accepted { incoming, peer, local }
    };
    proxy.handle(now, socket, comes(0), &[], &mut ops);
    let (mut server, mut said, mut ended) = (strict(&issued), Vec::new(), false);
    while connects < 2 {
        now += 1;
        assert!(now < 100 && !ops.is_empty(), "the session is closed");
        let output = std::mem::take(proxy.output());
        // As in the ring, a turn's operations are all carried out before the first event is seen.
        let (mut events, mut bytes, mut ready) = (Vec::new(), Vec::new(), None);
        for (token, op) in std::mem::take(&mut ops) {
            let drained = Stop::Drained;
            match op {
                Op::Connect { .. } => {
                    connects += 1;
                    events.push((token, Event::Connected));
                }
                Op::Give { to, start, len } => {
                    assert_eq!(to, Side::Endpoint, "the client is told nothing");
                    let mut given = &output[start as usize..][..len as usize];
                    ended |= answer(&mut server, &mut given, &mut said);
                    let given = Event::Given { to, sent: len, start: 0, len: 0, stop: drained };
                    events.push((token, given));
                    let (side, readable, ending) = (to, true, ended);
                    let (writable, failed) = (false, false);
                    let comes = Event::Ready { side, readable, writable, ending, failed };
                    ready = Some((token, comes));
                }
                Op::Take { from, .. } => {
                    let waits = from == Side::Endpoint && !(late && ended && ready.is_some());
                    let taken = if waits { std::mem::take(&mut said) } else { Vec::new() };
                    let start = u32::try_from(bytes.len()).expect("few");
                    let len = u32::try_from(taken.len()).expect("few");
                    bytes.extend(taken);
                    events.push((token, Event::Taken { from, start, len, stop: drained }));
                }
                Op::Abandon => events.push((token, Event::ConnectFailed { why: Why::Abandoned })),
                _ => {}
            }
        }
        for (token, event) in events.into_iter().chain(ready) {
            proxy.handle(now, token, event, &bytes, &mut ops);
        }
    }
    assert!(ended, "the first endpoint has refused");
    ops.clear();
    proxy.handle(now, socket, comes(1), &[], &mut ops);
    let is_refused = matches!(ops[..], [(_, Op::Adopt { .. }), (_, Op::Close { reset: true })]);
    assert!(is_refused, "the place is taken: {ops:?}");
}

/// What the server answers. True: it has refused.
fn answer(server: &mut ServerConnection, given: &mut &[u8], said: &mut Vec<u8>) -> bool {
    let mut refused = false;
    while !given.is_empty() {
        server.read_tls(given).expect("memory");
        refused |= server.process_new_packets().is_err();
    }
    while server.wants_write() {
        server.write_tls(said).expect("memory");
    }
    refused
}
