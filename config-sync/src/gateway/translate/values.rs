//! The values that policies give listeners, routes and backends, in the units of the configuration.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::gateway::objects::reference::BackendTarget;
use crate::model::admission::{Admission, Ranges};
use crate::model::backend::{Balance, FastPath};
use crate::model::eject::Eject;
use crate::model::gone::OnGone;
use crate::model::health_check::HealthCheck;
use crate::model::limit::Limit;
use crate::model::source_limit::SourceLimit;
use crate::table::routing::{
    DnsGuard, OnRefusal, OnTruncation, OnUnavailable, RouteBalance, SendProxy, SocketOptions,
    Sources, Starttls,
};

/// A policy's values for a listener, in the units of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListenerValues<'o> {
    pub(super) hello: Option<u32>,
    pub(super) default_hostname: Option<String>,
    pub(super) starttls: Option<Starttls>,
    pub(super) not_tls: Option<Fallback<'o>>,
    pub(super) silent: Option<Fallback<'o>>,
    pub(super) on_refusal: Option<OnRefusal>,
    pub(super) idle: Option<u32>,
    pub(super) write_stall: Option<u32>,
    pub(super) half_close: Option<u32>,
    pub(super) lifetime: Option<u32>,
    pub(super) on_truncation: Option<OnTruncation>,
    pub(super) flow_timeout: Option<u32>,
    pub(super) responses: Option<u32>,
    pub(super) dns_guard: Option<DnsGuard>,
    pub(super) max_sessions: Option<u32>,
    pub(super) limit_source: Option<SourceLimit>,
    pub(super) limit: Option<Limit>,
    pub(super) accept_proxy: Option<Vec<IpNet>>,
    pub(super) socket: SocketValues,
    pub(super) admission: AdmissionValues,
}

/// A backend, as a policy of `namespace` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fallback<'o> {
    pub(super) namespace: &'o str,
    pub(super) reference: &'o BackendTarget,
}

/// A policy's values for the clients of a listener or route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AdmissionValues {
    pub(super) allow: Option<Vec<IpNet>>,
    pub(super) deny: Option<Vec<IpNet>>,
}

/// A policy's values for a route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RouteValues {
    pub(super) balance: Option<RouteBalance>,
    pub(super) on_unavailable: Option<OnUnavailable>,
    pub(super) alpn: Option<Vec<String>>,
    pub(super) limit_source: Option<SourceLimit>,
    pub(super) limit: Option<Limit>,
    pub(super) admission: AdmissionValues,
}

/// A policy's values for a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BackendValues {
    pub(super) balance: Option<Balance>,
    pub(super) connect_timeout: Option<u32>,
    pub(super) connect_attempts: Option<u8>,
    pub(super) source: Option<Vec<Sources>>,
    pub(super) shared_sockets: Option<bool>,
    pub(super) upstream_rest: Option<u32>,
    pub(super) fast_path: Option<FastPath>,
    pub(super) fast_path_after: Option<u32>,
    pub(super) send_proxy: Option<SendProxy>,
    pub(super) transparent: Option<bool>,
    pub(super) endpoint_max_sessions: Option<u32>,
    pub(super) queue: Option<u32>,
    pub(super) queue_timeout: Option<u32>,
    pub(super) limit: Option<Limit>,
    pub(super) endpoint_limit: Option<Limit>,
    pub(super) endpoints: Option<Vec<EndpointRule>>,
    pub(super) health_check: Option<Check>,
    pub(super) eject: Option<Eject>,
    pub(super) on_down: Option<OnGone>,
    pub(super) on_removed: Option<OnGone>,
    pub(super) close_after: Option<u32>,
    pub(super) failback: Option<bool>,
    pub(super) slow_start: Option<u32>,
    pub(super) socket: SocketValues,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) asked: HealthCheck,
    /// The policy names CA certificates, and none of them can be used.
    pub(super) lacks_ca: bool,
}

/// Values for the endpoints that fit: those that have everything that the rule names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EndpointRule {
    pub(super) pod: Option<String>,
    pub(super) node: Option<String>,
    pub(super) zone: Option<String>,
    /// An IP address or a name of the DNS, in the form that their types print.
    pub(super) address: Option<String>,
    pub(super) weight: Option<u32>,
    pub(super) backup: Option<bool>,
    /// 0: no limit.
    pub(super) max_sessions: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SocketValues {
    pub(super) nodelay: Option<bool>,
    pub(super) keepalive: Option<u32>,
    pub(super) user_timeout: Option<u32>,
    pub(super) congestion: Option<[u8; 16]>,
}

impl ListenerValues<'_> {
    /// Takes values that are not set from `under`.
    pub(super) fn fill(&mut self, under: &Self) {
        fill(&mut self.hello, &under.hello);
        fill(&mut self.default_hostname, &under.default_hostname);
        fill(&mut self.starttls, &under.starttls);
        fill(&mut self.not_tls, &under.not_tls);
        fill(&mut self.silent, &under.silent);
        fill(&mut self.on_refusal, &under.on_refusal);
        fill(&mut self.idle, &under.idle);
        fill(&mut self.write_stall, &under.write_stall);
        fill(&mut self.half_close, &under.half_close);
        fill(&mut self.lifetime, &under.lifetime);
        fill(&mut self.on_truncation, &under.on_truncation);
        fill(&mut self.flow_timeout, &under.flow_timeout);
        fill(&mut self.responses, &under.responses);
        fill(&mut self.dns_guard, &under.dns_guard);
        fill(&mut self.max_sessions, &under.max_sessions);
        fill(&mut self.limit_source, &under.limit_source);
        fill(&mut self.limit, &under.limit);
        fill(&mut self.accept_proxy, &under.accept_proxy);
        self.socket.fill(&under.socket);
        self.admission.fill(&under.admission);
    }
}

impl RouteValues {
    pub(super) fn fill(&mut self, under: &Self) {
        fill(&mut self.balance, &under.balance);
        fill(&mut self.on_unavailable, &under.on_unavailable);
        fill(&mut self.alpn, &under.alpn);
        fill(&mut self.limit_source, &under.limit_source);
        fill(&mut self.limit, &under.limit);
        self.admission.fill(&under.admission);
    }
}

impl AdmissionValues {
    pub(super) fn fill(&mut self, under: &Self) {
        fill(&mut self.allow, &under.allow);
        fill(&mut self.deny, &under.deny);
    }

    pub(super) fn both(&self) -> BTreeSet<IpNet> {
        let denied: BTreeSet<_> = self.deny.iter().flatten().collect();
        self.allow.iter().flatten().filter(|range| denied.contains(range)).copied().collect()
    }

    /// The admission in the configuration's form, with `of` as its place. A range that one policy
    /// allows and another denies is denied.
    pub(super) fn of(&self, of: &str) -> Admission {
        let at = |range: &IpNet| crate::gateway::translate::places::at(Ranges::Prefix(*range), of);
        let both = self.both();
        let allowed = |allow: &Vec<IpNet>| {
            allow.iter().filter(|range| !both.contains(range)).map(at).collect()
        };
        Admission {
            allow: self.allow.as_ref().map(allowed),
            deny: self.deny.iter().flatten().map(at).collect(),
        }
    }
}

impl BackendValues {
    pub(super) fn fill(&mut self, under: &Self) {
        fill(&mut self.balance, &under.balance);
        fill(&mut self.connect_timeout, &under.connect_timeout);
        fill(&mut self.connect_attempts, &under.connect_attempts);
        fill(&mut self.source, &under.source);
        fill(&mut self.shared_sockets, &under.shared_sockets);
        fill(&mut self.upstream_rest, &under.upstream_rest);
        fill(&mut self.fast_path, &under.fast_path);
        fill(&mut self.fast_path_after, &under.fast_path_after);
        fill(&mut self.send_proxy, &under.send_proxy);
        fill(&mut self.transparent, &under.transparent);
        fill(&mut self.endpoint_max_sessions, &under.endpoint_max_sessions);
        fill(&mut self.queue, &under.queue);
        fill(&mut self.queue_timeout, &under.queue_timeout);
        fill(&mut self.limit, &under.limit);
        fill(&mut self.endpoint_limit, &under.endpoint_limit);
        fill(&mut self.endpoints, &under.endpoints);
        fill(&mut self.health_check, &under.health_check);
        fill(&mut self.eject, &under.eject);
        fill(&mut self.on_down, &under.on_down);
        fill(&mut self.on_removed, &under.on_removed);
        fill(&mut self.close_after, &under.close_after);
        fill(&mut self.failback, &under.failback);
        fill(&mut self.slow_start, &under.slow_start);
        self.socket.fill(&under.socket);
    }
}

impl SocketValues {
    pub(super) fn fill(&mut self, under: &Self) {
        fill(&mut self.nodelay, &under.nodelay);
        fill(&mut self.keepalive, &under.keepalive);
        fill(&mut self.user_timeout, &under.user_timeout);
        fill(&mut self.congestion, &under.congestion);
    }

    /// The socket options, with `default` for those that are not set.
    pub(super) fn over(&self, default: SocketOptions) -> SocketOptions {
        SocketOptions {
            nodelay: self.nodelay.unwrap_or(default.nodelay),
            keepalive: self.keepalive.unwrap_or(default.keepalive),
            user_timeout: self.user_timeout.unwrap_or(default.user_timeout),
            congestion: self.congestion.unwrap_or(default.congestion),
        }
    }
}

fn fill<T: Clone>(value: &mut Option<T>, under: &Option<T>) {
    if value.is_none() {
        value.clone_from(under);
    }
}
