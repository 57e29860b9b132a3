//! `ringway why` and the proxy agree: over random configurations and clients, a client goes where
//! `why` says, and is refused for the reason that `why` gives.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use config_sync::check::parse_for;
use config_sync::compile::names::Names;
use config_sync::compile::whole;
use config_sync::machine::Machine;
use config_sync::model::config::Config;
use config_sync::model::endpoint::{Resolved, Standing};
use config_sync::table::limit::Place;
use config_sync::table::routing::{Limits, Protocol, RoutingTable, Transport};
use ringway::contract::{BufferId, Event, Kind, Op, Side, Stop, Token};
use ringway::control::why::asked::{Client, Running, Speaks};
use ringway::control::why::{Answer, Outcome, why};
use ringway::proxy::Proxy;
use ringway::stats::counters::Counters;
use ringway::stats::records::Record;
use ringway_tests::hello::offering;
use ringway_tests::pki::Pki;
use ringway_tests::real::Folder;
use ringway_tests::sim::rng::Rng;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

/// Microseconds. `hello_timeout` is 5 s, and its timer a little late.
const IS_SILENT: u64 = 6_000_000;

const NAMES: [&str; 6] = ["a.test", "b.test", "x.a.test", "y.x.a.test", "test", "other.example"];
const PATTERNS: [&str; 5] = ["a.test", "b.test", "x.a.test", "*.test", "*.a.test"];
const RANGES: [&str; 4] = ["10.0.0.0/8", "10.9.0.0/16", "10.9.9.0/24", "192.0.2.0/24"];
const PROTOCOLS: [&str; 3] = ["h2", "http/1.1", "acme"];
const BALANCES: [&str; 5] =
    ["round-robin", "least-connections", "random", "source-hash", "source-port-hash"];

/// A list of some of these, without the one that stands twice.
fn some(rng: &mut Rng, of: &[&str], most: u64) -> String {
    let mut chosen: Vec<&str> = (0..=rng.below(most)).map(|_| rng.pick(of)).collect();
    chosen.sort_unstable();
    chosen.dedup();
    format!("{chosen:?}")
}

fn one_in(rng: &mut Rng, n: u64) -> bool {
    rng.below(n) == 0
}

/// The lists of a listener or route. No range is in both.
fn admission(rng: &mut Rng) -> String {
    match rng.below(6) {
        0 => format!("deny = [{:?}]\n", rng.pick(&RANGES)),
        1 => format!("allow = {}\n", some(rng, &RANGES[..2], 2)),
        2 => format!("allow = [\"10.0.0.0/8\"]\ndeny = [{:?}]\n", rng.pick(&RANGES[1..3])),
        _ => String::new(),
    }
}

fn top(rng: &mut Rng) -> String {
    let total = if one_in(rng, 16) { "limits.total_sessions = 1\n" } else { "" };
    format!("{total}[[shared_limits]]\nname = \"all\"\nsessions = 1\n")
}

const OF_SOURCE: &str = "limit_source = { sessions = 2, new_per_second = 1, burst = 2 }\n";

fn listeners(rng: &mut Rng) -> String {
    let mut text = String::new();
    // The records of sources are some megabytes, so few configurations have them.
    let limits = one_in(rng, 16);
    for (name, protocol, port, count) in
        [("tls", "TLS", 443, 1 + rng.below(3)), ("tcp", "TCP", 80, 1), ("udp", "UDP", 53, 1)]
    {
        for number in 0..count {
            text +=
                &format!("[[listeners]]\nname = \"{name}{number}\"\nprotocol = \"{protocol}\"\n");
            text += &format!("address = \"127.0.0.1:{port}\"\n");
            text += &admission(rng);
            if protocol == "TLS" && (number > 0 || one_in(rng, 2)) {
                text += &format!("hostnames = {}\n", some(rng, &PATTERNS, 2));
            }
            if protocol == "TLS" && count == 1 && one_in(rng, 3) {
                text += "default_hostname = \"a.test\"\n";
            }
            if protocol == "TLS" && number == 0 && one_in(rng, 2) {
                let silent = if one_in(rng, 2) { "silent = \"t1\"\n" } else { "" };
                text += &format!("not_tls = \"t0\"\n{silent}");
            }
            if protocol == "TLS" && one_in(rng, 3) {
                text += &certificates(rng);
            }
            text += if limits && one_in(rng, 2) { OF_SOURCE } else { "" };
            text += if one_in(rng, 16) { "limit = \"all\"\n" } else { "" };
            if protocol != "TLS" && one_in(rng, 8) {
                text += "accept_proxy = { from = [\"10.8.0.0/16\"], only = true }\n";
            }
        }
        for number in 0..rng.below(3) + u64::from(protocol != "TLS") {
            text += &format!("[[routes]]\nname = \"{name}-route{number}\"\n");
            let of: Vec<_> = (0..count).filter(|_| number > 0 || one_in(rng, 2)).collect();
            let of = if of.is_empty() { vec![0] } else { of };
            let of: Vec<_> = of.iter().map(|number| format!("{name}{number}")).collect();
            text += &format!("listeners = {of:?}\n");
            text += &admission(rng);
            if protocol == "TLS" && one_in(rng, 2) {
                text += &format!("hostnames = {}\n", some(rng, &PATTERNS, 2));
            }
            if protocol == "TLS" && one_in(rng, 3) {
                text += &format!("alpn = {}\n", some(rng, &PROTOCOLS, 2));
            }
            if number > 0 || one_in(rng, 4) {
                text += &format!("sources = {}\n", some(rng, &RANGES, 2));
            }
            if one_in(rng, 3) {
                text += "balance = \"source-hash\"\n";
            }
            if one_in(rng, 3) {
                text += "on_unavailable = \"next\"\n";
            }
            let kind = if protocol == "UDP" { "u" } else { "t" };
            let mut shares = BTreeMap::new();
            (0..=rng.below(2)).for_each(|_| _ = shares.insert(rng.below(3), rng.below(4)));
            let shares = shares.iter().map(|(backend, weight)| {
                format!("{{ name = \"{kind}{backend}\", weight = {weight} }}")
            });
            text += &format!("backends = [{}]\n", shares.collect::<Vec<_>>().join(", "));
            let limit = "limit = { sessions = 1, new_per_second = 1 }\n";
            text += if one_in(rng, 16) { limit } else { "" };
            text += if limits && one_in(rng, 2) { OF_SOURCE } else { "" };
        }
    }
    text
}

/// TLS ends at the listener. The files are made once.
fn certificates(rng: &mut Rng) -> String {
    static FILES: OnceLock<Folder> = OnceLock::new();
    let folder = FILES.get_or_init(|| {
        let (folder, issued) = (Folder::new(), Pki::shared().issue(&["a.test", "*.a.test"]));
        folder.write("cert.pem", &issued.cert);
        folder.write("key.pem", &issued.key);
        folder
    });
    let file = |name| folder.file(name).display().to_string();
    let pair = format!("{{ cert = {:?}, key = {:?} }}", file("cert.pem"), file("key.pem"));
    let default = match one_in(rng, 3) {
        true => format!(", default_certificate = {pair}"),
        false => String::new(),
    };
    format!("tls = {{ mode = \"Terminate\", certificates = [{pair}]{default} }}\n")
}

/// Endpoints are told apart by their last byte and their port: that of their backend.
fn backends(rng: &mut Rng) -> String {
    let mut text = String::new();
    for (kind, backend) in ["t", "u"].iter().flat_map(|kind| (0..3).map(move |at| (kind, at))) {
        text += &format!("[[backends]]\nname = \"{kind}{backend}\"\n");
        text += &format!("balance = {:?}\n", rng.pick(&BALANCES));
        if *kind == "t" && one_in(rng, 3) {
            text += "queue = 4\n";
        }
        // Nobody resolves names here, so this endpoint has no address.
        let mut endpoints = vec!["\"nobody.invalid:1\"".to_owned()];
        for at in 0..rng.below(4) {
            let limit = if one_in(rng, 3) { ", max_sessions = 1" } else { "" };
            let backup = if one_in(rng, 6) { ", backup = true" } else { "" };
            let (weight, port) = (rng.below(3), 1_000 + backend);
            endpoints.push(format!(
                "{{ address = \"10.1.1.{at}:{port}\", weight = {weight}{limit}{backup} }}"
            ));
        }
        text += &format!("endpoints = [{}]\n", endpoints.join(", "));
        if one_in(rng, 16) {
            text += rng.pick(&["limit = \"all\"\n", "limit = { sessions = 1 }\n"]);
        }
    }
    text
}

/// A table as it may be in force: some endpoints are down, drained or full.
fn table(rng: &mut Rng, config: &Config) -> Option<RoutingTable> {
    let whole = whole(config, &Resolved::default(), &mut Names::new()).ok()?;
    let seed = rng.number();
    let standing = |backend: &str, endpoint| {
        let text = format!("{seed} {backend} {endpoint}");
        let hash = text.bytes().fold(seed, |hash, byte| hash.rotate_left(5) ^ u64::from(byte));
        let mut own = Rng::new(hash);
        let drained = one_in(&mut own, 5);
        Standing { is_up: !one_in(&mut own, 4), weight: drained.then_some(0), ..Standing::UP }
    };
    let table = whole.pickable(1, &standing, None);
    for load in table.backends.iter().flat_map(|of| &of.loads).flatten() {
        load.sessions.add(u32::from(one_in(rng, 3)));
    }
    Some(table)
}

fn client(rng: &mut Rng, table: &RoutingTable) -> Option<Client> {
    let places: Vec<usize> = (0..table.listeners.len()).collect();
    let listener = &table.listeners[rng.pick(&places)];
    let start = rng.pick(&["10.0.0", "10.8.1", "10.9.1", "10.9.9", "192.0.2", "198.51.100"]);
    let address = format!("{start}.{}:{}", rng.below(256), 1_024 + rng.below(60_000));
    let tls = listener.protocol == Protocol::Tls;
    let alpn = match tls && one_in(rng, 2) {
        true => (0..rng.below(3)).map(|_| rng.pick(&PROTOCOLS).to_owned()).collect(),
        false => Vec::new(),
    };
    Some(Client {
        address: address.parse().ok()?,
        port: true,
        listener: listener.name.to_string(),
        local: None,
        server_name: (tls && !one_in(rng, 5)).then(|| rng.pick(&NAMES).to_owned()),
        alpn,
        speaks: match tls {
            true => rng.pick(&[Speaks::Tls, Speaks::Tls, Speaks::NotTls, Speaks::Silent]),
            false => Speaks::Tls,
        },
    })
}

/// Other sessions of the client's source, at the same time.
fn earlier_sessions(rng: &mut Rng, table: &RoutingTable, client: &Client, now: u64) -> Vec<Place> {
    let listeners = table.listeners.iter().filter_map(|of| of.limit.as_ref());
    let routes = table.routes.iter().filter_map(|of| of.limit.as_ref());
    let backends = table.backends.iter().filter_map(|of| of.limit.as_ref());
    let limits = table.total.iter().chain(listeners).chain(routes).chain(backends);
    let limits: Vec<_> = limits.filter(|_| one_in(rng, 3)).collect();
    let places: Vec<_> = limits.iter().filter_map(|limit| limit.enter(now).ok()).collect();
    let listener = table.listeners.iter().find(|of| *of.name == *client.listener);
    let of_listener = listener.and_then(|of| of.limit_source.as_ref());
    let of_routes = table.routes.iter().filter_map(|of| of.limit_source.as_ref());
    let limits = of_listener.into_iter().chain(of_routes);
    for limit in limits.filter(|_| one_in(rng, 2)).collect::<Vec<_>>() {
        for _ in 0..=rng.below(2) {
            // Some go on, and others have ended.
            if let Ok(Some(record)) = limit.enter(client.address.ip(), now)
                && one_in(rng, 2)
            {
                limit.records.leave(record);
            }
        }
    }
    places
}

/// What the proxy does with a client.
#[derive(Debug, PartialEq)]
enum Done {
    Connects(String),
    Refuses(&'static str),
    /// The session waits for a place at an endpoint.
    Waits,
}

struct Worker {
    proxy: Proxy,
    ops: Vec<(Token, Op)>,
}

impl Worker {
    fn new(table: &RoutingTable, seed: u64) -> Self {
        let limits = Limits {
            sessions: 8,
            flows: 8,
            buffers: 8,
            pipes: 8,
            turn_bytes: 65_536,
            bulk_bytes: u32::MAX,
        };
        let mut worker =
            Self { proxy: Proxy::new(limits, seed, Arc::new(Counters::new())), ops: Vec::new() };
        worker.proxy.apply(0, Arc::new(table.clone()), &mut worker.ops);
        worker.ops.clear();
        worker.proxy.records().clear();
        worker
    }

    fn event(&mut self, token: Token, event: Event, bytes: &[u8]) {
        self.proxy.handle(1, token, event, bytes, &mut self.ops);
    }

    /// Lets the client come, and says what the proxy does, and by which route.
    fn serves(&mut self, table: &RoutingTable, client: &Client) -> (Done, Option<String>) {
        let at = table.listeners.iter().position(|of| *of.name == *client.listener);
        let socket = table.sockets.iter().find(|of| of.listeners.values().any(|i| Some(i) == at));
        let socket = socket.expect("each listener has a socket");
        let (token, local) = (Token::socket(socket.id), socket.address.ip().expect("an address"));
        match socket.transport {
            Transport::Udp => self.event(token, datagram(client.address), &[0]),
            Transport::Tcp => {
                // The name that the client sends may lead to another listener of the socket.
                let mut listeners = socket.listeners.values();
                let terminates = listeners.any(|at| table.listeners[at].tls.is_some());
                self.connection((token, local), client, terminates);
            }
        }
        let mut done = Done::Waits;
        for (_, op) in self.ops.drain(..) {
            match op {
                Op::Connect { address, .. } => done = Done::Connects(address.to_string()),
                Op::Open { address, .. } => done = Done::Connects(address.to_string()),
                _ => {}
            }
        }
        let refused = self.record();
        if let Some((reason, route)) = refused {
            return (Done::Refuses(reason), route);
        }
        self.proxy.stop(IS_SILENT + 1, &mut self.ops);
        // Flows end by and by.
        let mut ends = (0..100).map(|at| {
            self.proxy.expire(IS_SILENT + 1 + at * 10_000, &mut self.ops);
            self.record()
        });
        let ended = ends.find_map(|ended| ended).expect("a session or flow that was stopped");
        (done, ended.1)
    }

    fn connection(
        &mut self,
        (socket, local): (Token, SocketAddr),
        client: &Client,
        terminates: bool,
    ) {
        let accepted = Event::Accepted { incoming: 0, peer: client.address, local };
        self.event(socket, accepted, &[]);
        let of_session = |(token, _): &(Token, Op)| token.kind == Kind::Session;
        let Some((token, _)) = self.ops.iter().copied().find(of_session) else { return };
        let (side, ending, failed) = (Side::Client, false, false);
        let readable = client.speaks != Speaks::Silent;
        let ready = Event::Ready { side, readable, writable: true, ending, failed };
        self.event(token, ready, &[]);
        if !readable {
            return self.proxy.expire(IS_SILENT, &mut self.ops);
        }
        let alpn: Vec<&str> = client.alpn.iter().map(String::as_str).collect();
        let mut tls = terminates.then(|| tls_client(client));
        let hello = match (client.speaks, &mut tls) {
            (Speaks::NotTls, _) => b"SSH-2.0-client\r\n".to_vec(),
            (_, Some(tls)) => flight(tls),
            (_, None) => offering(&alpn, client.server_name.as_deref(), 0, 16_384),
        };
        // A client that has found its listener full looks again in the next turn.
        for _ in 0..2 {
            self.proxy.resume(1, &mut self.ops);
            self.peeks(&hello, ready);
        }
        if let Some(tls) = tls.filter(|_| client.speaks == Speaks::Tls) {
            self.shake_hands(tls, hello, ready);
        }
    }

    /// Shows the client's first bytes, as many as are asked for.
    fn peeks(&mut self, hello: &[u8], ready: Event) {
        while let Some(at) = self.ops.iter().position(|(_, op)| matches!(op, Op::Peek { .. })) {
            let (token, Op::Peek { at_least }) = self.ops.remove(at) else { unreachable!() };
            let all = u32::try_from(hello.len()).expect("a hello is short");
            let len = at_least.clamp(1, all);
            let peeked = Event::Peeked { start: 0, len, end: false };
            self.event(token, peeked, &hello[..len as usize]);
            self.event(token, ready, &[]);
        }
    }

    /// Carries the handshake of a client on whose TLS ends at the gateway.
    fn shake_hands(&mut self, mut tls: ClientConnection, hello: Vec<u8>, ready: Event) {
        let mut unread = hello;
        let of_client = |(_, op): &(Token, Op)| {
            matches!(op, Op::Take { from: Side::Client, .. } | Op::Give { to: Side::Client, .. })
        };
        while let Some(at) = self.ops.iter().position(of_client) {
            let (token, op) = self.ops.remove(at);
            match op {
                Op::Take { at_most, .. } => {
                    let count = unread.len().min(at_most as usize);
                    let bytes: Vec<u8> = unread.drain(..count).collect();
                    let len = u32::try_from(count).expect("a handshake is short");
                    let stop = Stop::Drained;
                    let taken = Event::Taken { from: Side::Client, start: 0, len, stop };
                    self.event(token, taken, &bytes);
                }
                Op::Give { start, len, .. } => {
                    let given = &self.proxy.output()[start as usize..][..len as usize];
                    tls.read_tls(&mut &*given).expect("bytes in memory");
                    // A client that is refused gets an alert.
                    let goes_on = tls.process_new_packets().is_ok();
                    let stop = Stop::Drained;
                    let to = Side::Client;
                    self.event(token, Event::Given { to, sent: len, start: 0, len: 0, stop }, &[]);
                    if goes_on && tls.wants_write() {
                        unread.extend(flight(&mut tls));
                        self.event(token, ready, &[]);
                    }
                }
                _ => unreachable!("only these are looked for"),
            }
        }
    }

    /// The reason and the route of the one record about a session or flow.
    fn record(&mut self) -> Option<(&'static str, Option<String>)> {
        let records: Vec<_> = self.proxy.records().drain(..).collect();
        records.into_iter().find_map(|record| match record {
            Record::Closed(of) => {
                let route = of.route.filter(|route| route.0 != u32::MAX);
                Some((of.reason?.word(), route.map(|route| route.0.to_string())))
            }
            _ => None,
        })
    }
}

/// The bytes that a TLS client sends next.
fn flight(tls: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut bytes).expect("memory");
    }
    bytes
}

fn tls_client(client: &Client) -> ClientConnection {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Anyone(Arc::clone(&provider)));
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().expect("versions");
    let config = config.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = client.alpn.iter().map(|name| name.clone().into_bytes()).collect();
    config.enable_sni = client.server_name.is_some();
    let name = client.server_name.clone().unwrap_or_else(|| "nobody.test".to_owned());
    let name = ServerName::try_from(name).expect("a name");
    ClientConnection::new(Arc::new(config), name).expect("a client")
}

/// Takes every certificate, because which one is shown is not the question here.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn datagram(client: SocketAddr) -> Event {
    Event::Datagrams {
        buffer: BufferId(0),
        peer: Some(client),
        local: None,
        bytes: 1,
        size: 1,
        count: 1,
        truncated: false,
    }
}

fn agree(answer: &Answer, done: &Done) -> bool {
    let endpoints = answer.backends.iter().flat_map(|of| &of.endpoints);
    let mut able = endpoints.filter(|of| of.chance > 0.0);
    // If no backend has a place, each may have a reason of its own.
    let none: Vec<_> = answer.refusals.iter().map(|of| of.reason).collect();
    match (answer.outcome, done) {
        (Outcome::Endpoint, Done::Connects(to)) => answer.endpoint.as_ref() == Some(to),
        (Outcome::OneOf, Done::Connects(to)) => able.any(|of| of.endpoint == *to),
        (Outcome::OneOf, Done::Refuses(reason)) => none.contains(reason),
        (Outcome::OneOf, Done::Waits) => none.contains(&"queue_timeout"),
        (Outcome::Refused, Done::Refuses(reason)) => {
            answer.reason == Some(reason) || none.contains(reason)
        }
        (Outcome::Refused, Done::Waits) => none.contains(&"queue_timeout"),
        (Outcome::Endpoint, _) | (Outcome::Refused, Done::Connects(_)) => false,
    }
}

#[test]
fn why_says_what_the_proxy_does_in_1000_random_configurations() {
    const CONFIGURATIONS: u32 = 1_000;
    let machine = Machine { cores: vec![0], congestion: Vec::new() };
    let mut rng = Rng::new(14);
    let (mut tried, mut used) = (0, 0);
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    while used < CONFIGURATIONS {
        tried += 1;
        assert!(tried < 4 * CONFIGURATIONS, "most configurations have faults: {used} of {tried}");
        let text = top(&mut rng) + &listeners(&mut rng) + &backends(&mut rng);
        let Ok(config) = parse_for("f", &text, &machine) else { continue };
        let Some(table) = table(&mut rng, &config) else { continue };
        used += 1;
        for _ in 0..4 {
            let Some(client) = client(&mut rng, &table) else { continue };
            let now = match client.speaks {
                Speaks::Silent => IS_SILENT,
                Speaks::Tls | Speaks::NotTls => 1,
            };
            let _places = earlier_sessions(&mut rng, &table, &client, now);
            let running = Running { table: &table, config: &config, endpoints: &[], now };
            let answer = why(&running, &client).unwrap_or_else(|fault| panic!("{fault}\n{text}"));
            let waits_for_header = answer
                .rules
                .iter()
                .any(|rule| rule.passed && rule.said.starts_with("accept_proxy.from"));
            if waits_for_header {
                continue;
            }
            let (done, route) = Worker::new(&table, rng.number()).serves(&table, &client);
            assert!(
                agree(&answer, &done),
                "{client:?}\n{done:?}\n{}\n{text}",
                serde_json::to_string_pretty(&answer).expect("JSON")
            );
            let by_name = table.routes.iter().find(|of| Some(&*of.name) == answer.route.as_deref());
            assert_eq!(by_name.map(|of| of.id.0.to_string()), route, "{client:?}\n{text}");
            rules_fit(&answer, &text);
            for word in words(&table, &client, &answer, &done) {
                *seen.entry(word.to_owned()).or_default() += 1;
            }
        }
    }
    eprintln!("{used} of {tried} configurations: {seen:?}");
    for word in [
        "exactly",
        "one of",
        "waits",
        "source_denied",
        "source_limit",
        "limit",
        "hello_invalid",
        "hello_timeout",
        "unknown_server_name",
        "no_route",
        "no_certificate",
        "connects behind a handshake",
        "no_backend",
        "no_endpoint",
        "endpoints_full",
    ] {
        assert!(seen.get(word).is_some_and(|count| *count >= 5), "{word} is rare: {seen:?}");
    }
}

/// What the case is an example of.
fn words(table: &RoutingTable, client: &Client, answer: &Answer, done: &Done) -> Vec<&'static str> {
    let word = match done {
        Done::Connects(_) if answer.outcome == Outcome::Endpoint => "exactly",
        Done::Connects(_) => "one of",
        Done::Refuses(reason) => reason,
        Done::Waits => "waits",
    };
    let listener = table.listeners.iter().find(|of| *of.name == *answer.listener);
    let shakes_hands = listener.is_some_and(|of| of.tls.is_some()) && client.speaks == Speaks::Tls;
    let connects = shakes_hands && matches!(done, Done::Connects(_));
    std::iter::once(word).chain(connects.then_some("connects behind a handshake")).collect()
}

/// The reasons beside the rules fit the outcome.
fn rules_fit(answer: &Answer, text: &str) {
    let matched: Vec<_> = answer.routes.iter().filter(|of| of.matched).collect();
    assert!(matched.len() <= 1, "{text}");
    assert_eq!(matched.first().map(|of| &of.route), answer.route.as_ref(), "{text}");
    for route in &answer.routes {
        let fails = route.why.contains("the client has none of these");
        assert!(!(route.matched && fails), "{route:?}\n{text}");
        let beaten = route.why.contains("more specific");
        assert!(route.matched || fails || beaten, "no reason: {route:?}\n{text}");
    }
    let failed = answer.rules.iter().filter(|rule| !rule.passed).count();
    assert!(failed <= 1 && (failed == 0 || answer.outcome == Outcome::Refused), "{text}");
    let sum: f64 = answer.backends.iter().map(|of| of.chance).sum();
    assert!(answer.backends.is_empty() || sum < 1e-9 || (sum - 1.0).abs() < 1e-9, "{sum}\n{text}");
}
