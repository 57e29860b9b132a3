//! The keys of a backend.

use std::time::Duration;

use crate::machine::Machine;
use crate::model::backend::{
    Backend, Balance, CONNECT_ATTEMPTS, CONNECT_TIMEOUT, FastPath, LEAST_UPSTREAM_REST, OPTIONS,
};
use crate::toml::limit::{Owner, endpoint_limit, limit};
use crate::toml::reader::{On, Reader, Section, Table, any, boolean, integer, key, or, word};
use crate::toml::socket_options::options;
use crate::toml::values::{duration, duration_from, interface, name, source};
use crate::toml::{eject, endpoint, gone, health_check, proxy, tls};

pub(crate) static BACKEND: Section = Section {
    name: "backends",
    keys: &[
        any("name"),
        any("endpoints"),
        any("balance"),
        key("connect_timeout", On::Stream),
        key("connect_attempts", On::Stream),
        key("queue", On::Stream),
        key("queue_timeout", On::Stream),
        any("limit"),
        any("endpoint_limit"),
        any("source"),
        any("interface"),
        key("upstream_sockets", On::Udp),
        key("upstream_rest", On::Udp),
        key("fast_path", On::Udp),
        key("fast_path_after", On::Udp),
        any("transparent"),
        any("health_check"),
        any("failback"),
        any("slow_start"),
        any("eject"),
        any("on_down"),
        any("on_removed"),
        any("close_after"),
        key("nodelay", On::Stream),
        key("keepalive", On::Stream),
        key("user_timeout", On::Stream),
        key("congestion", On::Stream),
        any("send_proxy"),
        any("proxy_tlvs"),
        key("tls", On::Stream),
    ],
};

pub(crate) fn backend<'t>(
    reader: &mut Reader<'t>,
    table: &Table<'t>,
    machine: &Machine,
) -> Option<Backend> {
    let name = reader.need(table, "name", "every backend has a name of its own", name);
    reader.miss(table, "endpoints", "such as [\"10.0.0.11:5432\"], or []");
    let endpoints = endpoint::read(reader, table);
    let balance = or(reader.get(table, "balance", word(&BALANCES)), Balance::RoundRobin);
    let connect_timeout = or(reader.get(table, "connect_timeout", duration), CONNECT_TIMEOUT);
    let connect_attempts =
        or(reader.get(table, "connect_attempts", integer(1..=8)), CONNECT_ATTEMPTS);
    let queue = reader.get(table, "queue", integer(0..=MOST_WAIT));
    let queue_timeout = reader.get(table, "queue_timeout", duration_from(LEAST_QUEUE_TIMEOUT));
    let limit = limit(reader, table, Owner::Other);
    let endpoint_limit = endpoint_limit(reader, table, "endpoint_limit");
    let source = reader.list(table, "source", source).unwrap_or_default();
    let interface = reader.get(table, "interface", interface);
    let sockets = [("connected", false), ("shared", true)];
    let shared_sockets = reader.get(table, "upstream_sockets", word(&sockets));
    let upstream_rest = reader.get(table, "upstream_rest", duration_from(LEAST_UPSTREAM_REST));
    let fast_path = reader.get(table, "fast_path", word(&FAST_PATHS));
    let fast_path_after = reader.get(table, "fast_path_after", integer(1..=MOST_AFTER));
    let transparent = reader.get(table, "transparent", boolean);
    let tls = tls::origination(reader, table);
    let send_proxy = proxy::send(reader, table);
    let health_check = health_check::read(reader, table, tls.is_some() || table.has("tls"));
    let failback = or(reader.get(table, "failback", boolean), true);
    let slow_start = or(reader.get(table, "slow_start", duration), 0);
    let eject = eject::read(reader, table);
    let when_gone = gone::read(reader, table);
    let options = options(reader, table, machine, OPTIONS);
    let stream_keys = table.given(reader, |on| on == On::Stream).map(|(_, place)| place).collect();
    Some(Backend {
        name: name?,
        endpoints: endpoints?,
        balance,
        connect_timeout,
        connect_attempts,
        queue,
        queue_timeout,
        limit,
        endpoint_limit,
        source,
        interface,
        tls,
        shared_sockets,
        upstream_rest,
        fast_path,
        fast_path_after,
        send_proxy,
        transparent,
        health_check,
        eject,
        when_gone,
        failback,
        slow_start,
        options,
        stream_keys,
    })
}

/// More sessions than workers have slots for.
pub(crate) const MOST_WAIT: u32 = 1_000_000;
/// Workers look for free places every 10 ms.
pub(crate) const LEAST_QUEUE_TIMEOUT: Duration = Duration::from_millis(10);

/// The most datagrams each way before the kernel forwards a flow.
pub(crate) const MOST_AFTER: u32 = 1_000_000;

/// The words of the file.
pub(crate) const BALANCES: [(&str, Balance); 5] = [
    ("round-robin", Balance::RoundRobin),
    ("least-connections", Balance::LeastConnections),
    ("source-hash", Balance::SourceHash),
    ("source-port-hash", Balance::SourcePortHash),
    ("random", Balance::Random),
];

pub(crate) const FAST_PATHS: [(&str, FastPath); 3] =
    [("off", FastPath::Off), ("auto", FastPath::Auto), ("required", FastPath::Required)];
