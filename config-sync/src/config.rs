//! What was asked for: the TOML file. `REFERENCE.md` beside this crate describes every key.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use toml::de::{DeTable, DeValue};

use crate::check::{self, Broken};
pub use crate::health::HealthCheck;
use crate::health::{self, HEALTH_CHECK};
use crate::machine::Machine;
use crate::problem::{At, Place, Problem, Problems};
use crate::proxy::{self, ACCEPT_PROXY};
use crate::reader::{Key, On, Reader, Section, Table, boolean, integer, named, string, word};
use crate::sources::{self, Admission};
use crate::table::routing::{
    Limits, OnTruncation, Protocol, SendProxy, SocketOptions, Sources, Starttls, Timeouts,
};
use crate::tls::{self, BACKEND_TLS, TLS, TLS_CERTIFICATE, TLS_DEFAULT};
pub use crate::tls::{Certificate, ClientAuth, MinVersion, Origination, Pem, Termination};
use crate::values::{
    duration, duration_from, endpoint, exact_hostname, hostname, keepalive, listen_address, name,
    range, source, user_timeout,
};

/// A configuration whose every value is of the right form and within its range. Whether its parts
/// fit together is said by `compile`. Durations are in milliseconds unless said otherwise; 0: off.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How many workers there are, and where. Not reloadable.
    pub cores: Cores,
    /// Where the admin API listens; `None`: nowhere. Not reloadable.
    pub admin: Option<SocketAddr>,
    /// How long sessions may live on after SIGTERM before they are closed.
    pub drain_timeout: u32,
    /// How long readiness fails before the drain begins, so that load balancers have looked.
    pub drain_grace: u32,
    /// How long a UDP flow stays with an endpoint that has left the table.
    pub lame_duck: u32,
    /// Not reloadable, but for `open`.
    pub access_log: AccessLog,
    /// As asked for, 0 where it is left to [`limits`]. Not reloadable.
    pub limits: Limits,
    pub listeners: Vec<Listener>,
    pub routes: Vec<Route>,
    pub backends: Vec<Backend>,
    /// What can be in force and is hardly meant, of the keys above `listeners`.
    pub doubts: Vec<Problem>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cores {
    /// One worker on each core that the process may use.
    Auto,
    /// One worker on each of these, in this order.
    List(Vec<At<usize>>),
}

impl Cores {
    /// Those that this machine does not have, or that this process may not use. No fault of a file:
    /// it may be meant for another machine.
    pub fn unusable(&self, machine: &Machine) -> Vec<Problem> {
        let Self::List(cores) = self else { return Vec::new() };
        let usable = machine.cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let message = |core| format!("core {core} is not usable; this process may use {usable}");
        let unusable = cores.iter().filter(|core| !machine.cores.contains(&core.value));
        unusable.map(|core| core.problem(message(core.value))).collect()
    }

    /// Their numbers, wherever they stand; `None`: automatic.
    pub(crate) fn numbers(&self) -> Option<Vec<usize>> {
        match self {
            Self::Auto => None,
            Self::List(cores) => Some(cores.iter().map(|core| core.value).collect()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    pub target: LogTarget,
    pub format: LogFormat,
    /// Log the beginning of sessions and flows too, not only their end.
    pub open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    Off,
    Stdout,
    Stderr,
    File(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    pub name: At<String>,
    pub protocol: Protocol,
    pub address: At<SocketAddr>,
    /// TLS only. In lower case, the first label may be `*`; `None`: every name, and none.
    pub hostname: Option<At<String>>,
    /// TLS only. The name that clients are taken to ask for that send none; in lower case.
    pub default_hostname: Option<At<String>>,
    /// TLS only. What clients may say before the ClientHello.
    pub starttls: Option<Starttls>,
    /// TLS only. `None`: passed through, as it is.
    pub tls: Option<Termination>,
    pub timeouts: Timeouts,
    pub on_truncation: OnTruncation,
    pub flow_timeout: u32,
    /// UDP: replies per client datagram after which a flow ends; 0: only by `flow_timeout`.
    pub responses: u32,
    /// Per worker; 0: only the worker's own limit.
    pub max_sessions: u32,
    /// Connections, or UDP: datagrams, from these sources must begin with a PROXY header; `None`:
    /// none.
    pub accept_proxy: Option<At<Vec<IpNet>>>,
    /// Of accepted connections.
    pub options: SocketOptions,
    pub admission: Admission,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub name: At<String>,
    pub listeners: Vec<At<String>>,
    /// TLS only. Empty: every name that the listener takes.
    pub hostnames: Vec<At<String>>,
    /// Of clients. Empty: all that no other route of the listener and name is for.
    pub sources: Vec<At<IpNet>>,
    pub admission: Admission,
    pub backends: Vec<WeightedBackend>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WeightedBackend {
    pub name: At<String>,
    /// 0 to 1,000,000; the share is this among the sum of the route's.
    pub weight: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    pub name: At<String>,
    /// Empty: what would go here is refused.
    pub endpoints: Vec<At<SocketAddr>>,
    pub balance: Balance,
    /// For one attempt; 0: as long as the kernel tries.
    pub connect_timeout: u32,
    /// 1 to 8.
    pub connect_attempts: u8,
    /// Local addresses to connect from, used in turn; empty: the kernel chooses.
    pub source: Vec<At<Sources>>,
    /// TCP and TLS listeners only. `None`: what the client sends, or what a listener has
    /// decrypted, goes as it is.
    pub tls: Option<Origination>,
    /// UDP: few sockets for all flows, which then differ by their local addresses.
    pub shared_sockets: Option<At<bool>>,
    /// UDP: between two flows of an upstream socket; `None`: [`UPSTREAM_REST`].
    pub upstream_rest: Option<At<u32>>,
    /// The PROXY header that endpoints are sent first, or, UDP, in every datagram; `None`: none.
    pub send_proxy: Option<At<SendProxy>>,
    /// Endpoints are connected to from clients' own addresses.
    pub transparent: Option<At<bool>>,
    /// `None`: all endpoints are used, whatever they do.
    pub health_check: Option<At<HealthCheck>>,
    pub options: SocketOptions,
    /// Where keys stand that mean nothing to UDP.
    pub stream_keys: Vec<Place>,
}

impl Config {
    /// Files that it names and that are read when it is compiled: certificates, keys, lists.
    pub fn files(&self) -> BTreeSet<PathBuf> {
        let listeners = self.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let backends = self.backends.iter().filter_map(|backend| backend.tls.as_ref());
        let pems =
            listeners.flat_map(Termination::pems).chain(backends.flat_map(Origination::pems));
        let file = |pem: &Pem| match pem {
            Pem::File(path) => Some(path.value.clone()),
            Pem::Inline { .. } => None,
        };
        let listeners = self.listeners.iter().flat_map(|listener| listener.admission.files());
        let ranges = listeners.chain(self.routes.iter().flat_map(|route| route.admission.files()));
        pems.filter_map(file).chain(ranges).collect()
    }
}

impl Backend {
    pub(crate) fn has_shared_sockets(&self) -> bool {
        self.shared_sockets.as_ref().is_some_and(|shared| shared.value)
    }

    pub(crate) fn is_transparent(&self) -> bool {
        self.transparent.as_ref().is_some_and(|transparent| transparent.value)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    LeastConnections,
    Random,
    SourceHash,
    SourcePortHash,
}

/// Reads a configuration for the machine that this runs on. `file` is what problems call it.
///
/// # Errors
/// Every fault of the text at once.
pub fn parse(file: &str, text: &str) -> Result<Config, Problems> {
    parse_for(file, text, &Machine::this())
}

/// The same for a given machine: its cores and its congestion controls are all that `parse` asks
/// the system for.
pub fn parse_for(file: &str, text: &str, machine: &Machine) -> Result<Config, Problems> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader::new(file, text);
    if !errors.is_empty() {
        // What the parser made of the rest would only lead to follow-up errors.
        let yaml = yaml(text);
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            let place = reader.place(at, String::new());
            let hint = yaml.map_or_else(|| unquoted(text, at), |hint| format!("; {hint}"));
            reader.refuse(&place, format!("not TOML: {}{hint}", error.message()));
            if yaml.is_some() {
                break;
            }
        }
        return Err(Problems::new(reader.problems));
    }
    let mut broken = Broken::default();
    let config = config(&mut reader, root.get_ref(), machine, &mut broken);
    if reader.problems.is_empty() {
        return Ok(config);
    }
    reader.problems.extend(check::check(&config, &broken));
    Err(Problems::new(reader.problems))
}

/// What to do with a text that is YAML rather than TOML.
fn yaml(text: &str) -> Option<&'static str> {
    let said = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let first = text.lines().find(said)?;
    let is_key = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let (key, rest) = first.split_at(first.find(|c| !is_key(c)).unwrap_or(first.len()));
    let is_yaml = first.trim_end() == "---" || (!key.is_empty() && rest.starts_with(':'));
    let is_object = text.lines().any(|line| line.starts_with("apiVersion:"));
    match (is_yaml, is_object) {
        (true, true) => Some("these are Kubernetes objects: their file's name must end in .yaml"),
        (true, false) => Some("this looks like YAML, and a TOML file has lines such as key = 1"),
        (false, _) => None,
    }
}

/// What to write in place of a word without quotes, if that is what stands in this line.
fn unquoted(text: &str, at: usize) -> String {
    let from = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[from..].lines().next().unwrap_or_default();
    let (key, value) = line.split_once('=').unwrap_or_default();
    let value = value.split('#').next().unwrap_or_default().trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    let is_word =
        value.starts_with(|c: char| c.is_ascii_alphanumeric()) && value.chars().all(plain);
    if !is_word || at < from + key.len() {
        return String::new();
    }
    format!("; text stands in quotes: {} = \"{value}\"", key.trim())
}

/// The limits asked for, with those that are left open filled in: for `workers` workers in a
/// process that may have `nofile` files open (`RLIMIT_NOFILE`).
///
/// A flow takes a source port, of which there are `ports` for each local address
/// (`net.ipv4.ip_local_port_range`).
///
/// A session takes two files, a pipe two; 512 are left for listeners, the admin API and the log.
/// Where a flow takes one too (`descriptors`), a quarter of what is left is for flows at the most.
pub fn limits(asked: Limits, workers: usize, nofile: u64, ports: u64, descriptors: bool) -> Limits {
    let workers = u32::try_from(workers.max(1)).unwrap_or(u32::MAX);
    let nofile = u32::try_from(nofile).unwrap_or(u32::MAX);
    let ports = u32::try_from(ports).unwrap_or(u32::MAX);
    let or = |asked: u32, automatic: u32| if asked == 0 { automatic } else { asked };
    let pipes = or(asked.pipes, 64);
    let reserved = pipes.saturating_mul(2).saturating_mul(workers).saturating_add(512);
    let left = nofile.saturating_sub(reserved);
    let most = if descriptors { left / 4 / workers } else { nofile };
    let flows = or(asked.flows, most.min((ports / workers).max(4_096)).clamp(1, 65_536));
    let taken = if descriptors { flows.saturating_mul(workers) } else { 0 };
    let sessions = left.saturating_sub(taken) / 2 / workers;
    let buffers = or(asked.buffers.into(), 256).next_power_of_two().min(MAX_BUFFERS.into());
    Limits {
        sessions: or(asked.sessions, sessions.clamp(1, 65_536)),
        flows,
        buffers: u16::try_from(buffers).unwrap_or(MAX_BUFFERS),
        pipes,
        turn_bytes: or(asked.turn_bytes, 1 << 18),
        bulk_bytes: or(asked.bulk_bytes, 8 << 20),
    }
}

/// Of a provided-buffer ring (`io_uring_register_buf_ring(3)`).
const MAX_BUFFERS: u16 = 32_768;

pub(crate) const fn key(name: &'static str, on: On) -> Key {
    Key { name, on }
}

pub(crate) const fn any(name: &'static str) -> Key {
    key(name, On::Any)
}

/// Every table of the file and its keys: the whole schema.
pub const SCHEMA: &[&Section] = &[
    &ROOT,
    &WORKERS,
    &ADMIN,
    &ACCESS_LOG,
    &LIMITS,
    &LISTENER,
    &ACCEPT_PROXY,
    &TLS,
    &TLS_CERTIFICATE,
    &TLS_DEFAULT,
    &ROUTE,
    &ROUTE_BACKEND,
    &BACKEND,
    &BACKEND_TLS,
    &HEALTH_CHECK,
];

static ROOT: Section = Section {
    name: "",
    keys: &[
        any("workers"),
        any("admin"),
        any("drain_timeout"),
        any("drain_grace"),
        any("lame_duck"),
        any("access_log"),
        any("limits"),
        any("listeners"),
        any("routes"),
        any("backends"),
    ],
};

static WORKERS: Section = Section { name: "workers", keys: &[any("cores")] };

static ADMIN: Section = Section { name: "admin", keys: &[any("address")] };

static ACCESS_LOG: Section =
    Section { name: "access_log", keys: &[any("path"), any("format"), any("open")] };

static LIMITS: Section = Section {
    name: "limits",
    keys: &[
        any("sessions"),
        any("flows"),
        any("buffers"),
        any("pipes"),
        any("turn_bytes"),
        any("bulk_bytes"),
    ],
};

static LISTENER: Section = Section {
    name: "listeners",
    keys: &[
        any("name"),
        any("protocol"),
        any("address"),
        key("hostname", On::Tls),
        key("default_hostname", On::Tls),
        key("starttls", On::Tls),
        key("tls", On::Tls),
        key("hello_timeout", On::Stream),
        key("idle_timeout", On::Stream),
        key("write_stall_timeout", On::Stream),
        key("half_close_timeout", On::Stream),
        key("max_lifetime", On::Stream),
        key("on_truncation", On::Stream),
        key("flow_timeout", On::Udp),
        key("responses", On::Udp),
        any("max_sessions"),
        key("nodelay", On::Stream),
        key("keepalive", On::Stream),
        key("user_timeout", On::Stream),
        key("congestion", On::Stream),
        any("accept_proxy"),
        any("allow"),
        any("deny"),
    ],
};

static ROUTE: Section = Section {
    name: "routes",
    keys: &[
        any("name"),
        any("listeners"),
        any("hostnames"),
        any("sources"),
        any("allow"),
        any("deny"),
        any("backends"),
    ],
};

static ROUTE_BACKEND: Section =
    Section { name: "routes.backends", keys: &[any("name"), any("weight")] };

static BACKEND: Section = Section {
    name: "backends",
    keys: &[
        any("name"),
        any("endpoints"),
        any("balance"),
        key("connect_timeout", On::Stream),
        key("connect_attempts", On::Stream),
        any("source"),
        key("upstream_sockets", On::Udp),
        key("upstream_rest", On::Udp),
        any("transparent"),
        any("health_check"),
        key("nodelay", On::Stream),
        key("keepalive", On::Stream),
        key("user_timeout", On::Stream),
        key("congestion", On::Stream),
        any("send_proxy"),
        any("proxy_tlvs"),
        key("tls", On::Stream),
    ],
};

const SECOND: u32 = 1_000;
const MINUTE: u32 = 60 * SECOND;
const HOUR: u32 = 60 * MINUTE;

fn config<'t>(
    reader: &mut Reader<'t>,
    root: &'t DeTable<'t>,
    machine: &Machine,
    broken: &mut Broken,
) -> Config {
    let top = reader.place(0, String::new());
    let root = &reader.open(root, &ROOT, top);
    let mut doubts = Vec::new();
    Config {
        cores: cores(reader, root),
        admin: admin(reader, root, &mut doubts),
        drain_timeout: or(reader.get(root, "drain_timeout", duration), 30 * SECOND),
        drain_grace: or(reader.get(root, "drain_grace", duration), 0),
        lame_duck: or(reader.get(root, "lame_duck", duration), 5 * SECOND),
        access_log: access_log(reader, root),
        limits: asked_limits(reader, root),
        listeners: whole(reader, root, &LISTENER, &mut broken.listeners, |r, t| {
            flawless(r, |r| listener(r, t, machine))
        }),
        routes: whole(reader, root, &ROUTE, &mut broken.routes, route),
        backends: whole(reader, root, &BACKEND, &mut broken.backends, |r, t| {
            flawless(r, |r| backend(r, t, machine))
        }),
        doubts,
    }
}

/// Those tables of a list of which enough could be read to check how they fit together. Of the
/// others only the names are kept, so that a reference to one of them is not called wrong as well.
fn whole<'t, T>(
    reader: &mut Reader<'t>,
    root: &Table<'t>,
    section: &'static Section,
    broken: &mut Vec<At<String>>,
    read: impl Fn(&mut Reader<'t>, &Table<'t>) -> Option<T>,
) -> Vec<T> {
    let mut items = Vec::new();
    for At { value, place } in reader.tables(root, section.name) {
        let table = reader.open(value, section, place);
        match read(reader, &table) {
            Some(item) => items.push(item),
            None => broken.extend(reader.peek(&table, "name", name)),
        }
    }
    items
}

/// What `read` gives, if it has found nothing wrong: a default in the place of a faulty value could
/// clash with something that is right.
fn flawless<'t, T>(
    reader: &mut Reader<'t>,
    read: impl FnOnce(&mut Reader<'t>) -> Option<T>,
) -> Option<T> {
    let before = reader.problems.len();
    read(reader).filter(|_| reader.problems.len() == before)
}

pub(crate) fn or<T>(given: Option<At<T>>, default: T) -> T {
    given.map_or(default, |given| given.value)
}

fn cores<'t>(reader: &mut Reader<'t>, root: &Table<'t>) -> Cores {
    let Some(workers) = reader.table(root, "workers", &WORKERS) else { return Cores::Auto };
    let listed = reader.get(&workers, "cores", |value| match value {
        DeValue::String(text) if text == "auto" => Ok(false),
        DeValue::Array(list) if list.is_empty() => Err("names no core; give at least one".into()),
        DeValue::Array(_) => Ok(true),
        _ => Err("must be \"auto\" or a list of core ids, such as [0, 1]".to_owned()),
    });
    if !or(listed, false) {
        return Cores::Auto;
    }
    let list =
        reader.list(&workers, "cores", |value| integer(0..=u16::MAX)(value).map(usize::from));
    let mut cores: Vec<At<usize>> = Vec::new();
    for core in list.unwrap_or_default() {
        if cores.iter().any(|before| before.value == core.value) {
            reader.refuse(&core.place, format!("core {} is named twice", core.value));
        }
        cores.push(core);
    }
    Cores::List(cores)
}

fn admin<'t>(
    reader: &mut Reader<'t>,
    root: &Table<'t>,
    doubts: &mut Vec<Problem>,
) -> Option<SocketAddr> {
    let default = Some(SocketAddr::from(([127, 0, 0, 1], 9900)));
    let Some(admin) = reader.table(root, "admin", &ADMIN) else { return default };
    let address = reader.get(&admin, "address", |value| match value {
        DeValue::String(text) if text.is_empty() => Ok(None),
        value => listen_address(value).map(Some),
    });
    if let Some(At { value: Some(open), place }) = &address
        && is_public(open.ip())
    {
        let (ip, port) = (open.ip(), open.port());
        let reached = if ip.is_unspecified() { "on every address" } else { "from the Internet" };
        doubts.push(place.problem(format!(
            "{ip} can be reached {reached}, and the admin API asks nobody who they are; write \
             \"127.0.0.1:{port}\" or a private address, or have a firewall in front"
        )));
    }
    or(address, default)
}

/// Every address of the machine, or one that the Internet routes (RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || shared)
        }
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local()),
    }
}

fn access_log<'t>(reader: &mut Reader<'t>, root: &Table<'t>) -> AccessLog {
    let mut log = AccessLog { target: LogTarget::Stdout, format: LogFormat::Json, open: false };
    if let Some(table) = &reader.table(root, "access_log", &ACCESS_LOG) {
        let target = reader.get(table, "path", |value| {
            Ok(match string(value)? {
                "off" => LogTarget::Off,
                "stdout" => LogTarget::Stdout,
                "stderr" => LogTarget::Stderr,
                path => LogTarget::File(path.into()),
            })
        });
        let formats = [("json", LogFormat::Json), ("text", LogFormat::Text)];
        log.target = or(target, log.target);
        log.format = or(reader.get(table, "format", word(&formats)), log.format);
        log.open = or(reader.get(table, "open", boolean), log.open);
    }
    log
}

fn asked_limits<'t>(reader: &mut Reader<'t>, root: &Table<'t>) -> Limits {
    let mut asked =
        Limits { sessions: 0, flows: 0, buffers: 0, pipes: 0, turn_bytes: 0, bulk_bytes: 0 };
    if let Some(table) = &reader.table(root, "limits", &LIMITS) {
        asked.sessions = or(reader.get(table, "sessions", integer(0..=MAX_SESSIONS)), 0);
        asked.flows = or(reader.get(table, "flows", integer(0..=MAX_SESSIONS)), 0);
        asked.buffers = or(reader.get(table, "buffers", integer(0..=MAX_BUFFERS)), 0);
        asked.pipes = or(reader.get(table, "pipes", integer(0..=65_536)), 0);
        asked.turn_bytes = or(reader.get(table, "turn_bytes", integer(0..=1 << 30)), 0);
        asked.bulk_bytes = or(reader.get(table, "bulk_bytes", integer(0..=u32::MAX)), 0);
    }
    asked
}

/// Of one worker; also the most that a listener may set for itself.
pub(crate) const MAX_SESSIONS: u32 = 1 << 20;

/// What is spoken on a listener.
fn protocol(value: &DeValue<'_>) -> Result<Protocol, String> {
    let protocols = [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("TLS", Protocol::Tls)];
    word(&protocols)(value).map_err(|message| {
        let given = value.as_str().unwrap_or_default().to_ascii_uppercase();
        let hint = match given.as_str() {
            "HTTP" | "WS" | "GRPC" => "HTTP is bytes here: write \"TCP\"",
            "HTTPS" | "SSL" | "SNI" | "WSS" => {
                "write \"TLS\": it passes through by server name, or ends here with \
                 tls = { mode = \"Terminate\", ... }"
            }
            "QUIC" | "HTTP3" | "DTLS" => "it runs on UDP: write \"UDP\"",
            _ => return message,
        };
        format!("{message}; {hint}")
    })
}

fn listener<'t>(reader: &mut Reader<'t>, table: &Table<'t>, machine: &Machine) -> Option<Listener> {
    let name = reader.need(table, "name", "every listener has a name of its own", name);
    let protocol = reader.need(table, "protocol", "\"TCP\", \"UDP\" or \"TLS\"", protocol);
    let form = "IP:PORT, such as \"0.0.0.0:5432\" or \"[::]:5432\"";
    let address = reader.need(table, "address", form, listen_address);
    if let Some(protocol) = &protocol {
        refuse_keys_of_other_protocols(reader, table, protocol.value);
        if protocol.value == Protocol::Tcp && !table.has("accept_proxy") {
            let nothing = "is for TLS listeners, and for TCP listeners with accept_proxy: there is \
                           nothing else to wait for";
            reader.get(table, "hello_timeout", |_| Err::<(), _>(nothing.to_owned()));
        }
    }
    let tls = tls::termination(reader, table);
    let accept_proxy = proxy::accept(reader, table);
    let least = Duration::from_millis(100);
    let timeouts = Timeouts {
        hello: or(reader.get(table, "hello_timeout", duration), TIMEOUTS.hello),
        idle: or(reader.get(table, "idle_timeout", duration), TIMEOUTS.idle),
        write_stall: or(reader.get(table, "write_stall_timeout", duration), TIMEOUTS.write_stall),
        half_close: or(reader.get(table, "half_close_timeout", duration), TIMEOUTS.half_close),
        lifetime: or(reader.get(table, "max_lifetime", duration), TIMEOUTS.lifetime),
    };
    let hostname = reader.get(table, "hostname", hostname);
    let default_hostname = reader.get(table, "default_hostname", exact_hostname);
    let starttls = reader.get(table, "starttls", word(&STARTTLS)).map(|given| given.value);
    let on_truncation = reader.get(table, "on_truncation", word(&ON_TRUNCATION));
    let flow_timeout = or(reader.get(table, "flow_timeout", duration_from(least)), FLOW_TIMEOUT);
    let responses = or(reader.get(table, "responses", integer(0..=65_535)), 0);
    let max_sessions = or(reader.get(table, "max_sessions", integer(0..=MAX_SESSIONS)), 0);
    let options = options(reader, table, machine);
    let admission = sources::admission(reader, table);
    Some(Listener {
        name: name?,
        protocol: protocol?.value,
        address: address?,
        hostname,
        default_hostname,
        starttls,
        tls,
        timeouts,
        on_truncation: on_truncation.map_or_else(OnTruncation::default, |given| given.value),
        flow_timeout,
        responses,
        max_sessions,
        accept_proxy,
        options,
        admission,
    })
}

/// As in the file.
pub(crate) const STARTTLS: [(&str, Starttls); 1] = [("postgres", Starttls::Postgres)];
pub(crate) const ON_TRUNCATION: [(&str, OnTruncation); 2] =
    [("reset", OnTruncation::Reset), ("fin", OnTruncation::Fin)];

fn refuse_keys_of_other_protocols<'t>(
    reader: &mut Reader<'t>,
    table: &Table<'t>,
    protocol: Protocol,
) {
    let wrong: Vec<_> = table.given(reader, |on| !on.is_for(protocol)).collect();
    for (on, place) in wrong {
        let whose = match on {
            On::Tls => "TLS listeners",
            On::Udp => "UDP listeners",
            On::Any | On::Stream | On::Later => "TCP and TLS listeners",
        };
        reader.refuse(&place, format!("is for {whose} only"));
    }
}

fn options<'t>(reader: &mut Reader<'t>, table: &Table<'t>, machine: &Machine) -> SocketOptions {
    let congestion = |value| congestion(value, machine);
    SocketOptions {
        nodelay: or(reader.get(table, "nodelay", boolean), OPTIONS.nodelay),
        keepalive: or(reader.get(table, "keepalive", keepalive), OPTIONS.keepalive),
        user_timeout: or(reader.get(table, "user_timeout", user_timeout), OPTIONS.user_timeout),
        congestion: or(reader.get(table, "congestion", congestion), OPTIONS.congestion),
    }
}

/// What holds where nothing is said.
pub(crate) const OPTIONS: SocketOptions =
    SocketOptions { nodelay: true, keepalive: 60, user_timeout: 0, congestion: [0; 16] };

/// Of listeners of which nothing is said.
pub(crate) const TIMEOUTS: Timeouts = Timeouts {
    hello: 5 * SECOND,
    idle: HOUR,
    write_stall: 5 * MINUTE,
    half_close: 5 * MINUTE,
    lifetime: 0,
};

/// Of UDP listeners of which nothing is said.
pub(crate) const FLOW_TIMEOUT: u32 = MINUTE;
/// Longer than endpoints that are alive, and paths to them, take with an answer.
pub(crate) const UPSTREAM_REST: u32 = 2 * SECOND;
pub(crate) const LEAST_UPSTREAM_REST: Duration = Duration::from_millis(100);

/// Of backends of which nothing is said.
pub(crate) const CONNECT_TIMEOUT: u32 = 5 * SECOND;
pub(crate) const CONNECT_ATTEMPTS: u8 = 3;

/// A congestion control that this kernel has.
pub(crate) fn congestion(value: &DeValue<'_>, machine: &Machine) -> Result<[u8; 16], String> {
    let name = string(value)?;
    let padded = padded(name).ok_or_else(|| "must be at most 15 characters".to_owned())?;
    if name.is_empty() || machine.congestion.iter().any(|known| known == name) {
        return Ok(padded);
    }
    let known = machine.congestion.join(", ");
    Err(format!("this kernel has no \"{name}\" loaded; it has {known}"))
}

/// NUL-terminated, in the 16 bytes that the kernel takes (`TCP_CA_NAME_MAX`).
fn padded(name: &str) -> Option<[u8; 16]> {
    let mut padded = [0; 16];
    padded[..15].get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    Some(padded)
}

fn route<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<Route> {
    let head = flawless(reader, |reader| {
        let name = reader.need(table, "name", "every route has a name of its own", name);
        reader.miss(table, "listeners", "the names of the listeners that the route is for");
        let listeners = reader.list(table, "listeners", name_of);
        if listeners.as_ref().is_some_and(Vec::is_empty) {
            reader.get(table, "listeners", |_| Err::<(), _>("names no listener".to_owned()));
        }
        let hostnames = reader.list(table, "hostnames", hostname).unwrap_or_default();
        let sources = reader.list(table, "sources", range);
        if sources.as_ref().is_some_and(Vec::is_empty) {
            let message = "names no range; without this key the route is for all others";
            reader.get(table, "sources", |_| Err::<(), _>(message.to_owned()));
        }
        let admission = sources::admission(reader, table);
        Some((name?, listeners?, hostnames, sources.unwrap_or_default(), admission))
    });
    reader.miss(table, "backends", "such as [{ name = \"pg-a\", weight = 90 }], or []");
    let backends = reader.list(table, "backends", named).unwrap_or_default();
    let backends = backends.into_iter().filter_map(|At { value, place }| {
        let table = &reader.open(value, &ROUTE_BACKEND, place);
        let name = reader.need(table, "name", "the name of a backend", name_of);
        let weight = or(reader.get(table, "weight", integer(0..=1_000_000)), 1);
        Some(WeightedBackend { name: name?, weight })
    });
    let backends = backends.collect();
    let (name, listeners, hostnames, sources, admission) = head?;
    Some(Route { name, listeners, hostnames, sources, admission, backends })
}

/// The name of something that stands elsewhere; whether it does is looked up later.
fn name_of<'t>(value: &'t DeValue<'t>) -> Result<String, String> {
    string(value).map(str::to_owned)
}

/// As in the file.
pub(crate) const BALANCES: [(&str, Balance); 5] = [
    ("round-robin", Balance::RoundRobin),
    ("least-connections", Balance::LeastConnections),
    ("source-hash", Balance::SourceHash),
    ("source-port-hash", Balance::SourcePortHash),
    ("random", Balance::Random),
];

fn backend<'t>(reader: &mut Reader<'t>, table: &Table<'t>, machine: &Machine) -> Option<Backend> {
    let name = reader.need(table, "name", "every backend has a name of its own", name);
    reader.miss(table, "endpoints", "such as [\"10.0.0.11:5432\"], or []");
    let endpoints = reader.list(table, "endpoints", endpoint);
    let balance = or(reader.get(table, "balance", word(&BALANCES)), Balance::RoundRobin);
    let connect_timeout = or(reader.get(table, "connect_timeout", duration), CONNECT_TIMEOUT);
    let connect_attempts =
        or(reader.get(table, "connect_attempts", integer(1..=8)), CONNECT_ATTEMPTS);
    let source = reader.list(table, "source", source).unwrap_or_default();
    let sockets = [("connected", false), ("shared", true)];
    let shared_sockets = reader.get(table, "upstream_sockets", word(&sockets));
    let upstream_rest = reader.get(table, "upstream_rest", duration_from(LEAST_UPSTREAM_REST));
    let transparent = reader.get(table, "transparent", boolean);
    let tls = tls::origination(reader, table);
    let send_proxy = proxy::send(reader, table);
    let health_check = health::read(reader, table);
    let options = options(reader, table, machine);
    let stream_keys = table.given(reader, |on| on == On::Stream).map(|(_, place)| place).collect();
    Some(Backend {
        name: name?,
        endpoints: endpoints?,
        balance,
        connect_timeout,
        connect_attempts,
        source,
        tls,
        shared_sockets,
        upstream_rest,
        send_proxy,
        transparent,
        health_check,
        options,
        stream_keys,
    })
}
