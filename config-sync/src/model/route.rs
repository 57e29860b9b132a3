//! A route: leads sessions of listeners to weighted backends.

use ipnet::IpNet;

use crate::model::admission::Admission;
use crate::model::limit::LimitOf;
use crate::model::place::At;
use crate::model::source_limit::SourceLimit;
use crate::table::routing::{OnUnavailable, RouteBalance};

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub name: At<String>,
    pub takes: Takes,
    pub listeners: Vec<At<String>>,
    /// TLS only. If the list is empty, the route is for every name that the listener takes.
    pub hostnames: Vec<At<String>>,
    /// TLS only. The route is for clients that offer one of these protocols. If the list is empty,
    /// the route is for all clients that no other route of the same listener and name is for.
    pub alpn: Vec<At<String>>,
    /// Source ranges of clients. If the list is empty, the route is for all clients that no other
    /// route of the same listener and name is for.
    pub sources: Vec<At<IpNet>>,
    pub admission: Admission,
    /// What each source of the route's clients may have and do.
    pub limit_source: Option<At<SourceLimit>>,
    /// What all sessions or flows of the route may have together.
    pub limit: Option<LimitOf>,
    pub balance: RouteBalance,
    /// `None`: nothing is said, which means `Refuse`.
    pub on_unavailable: Option<OnUnavailable>,
    pub backends: Vec<WeightedBackend>,
}

impl Route {
    /// A route of a listener's own, for all clients that come to the listener.
    pub(crate) fn of_listener(
        name: At<String>,
        listener: At<String>,
        backends: Vec<WeightedBackend>,
    ) -> Self {
        Self {
            name,
            takes: Takes::Usual,
            listeners: vec![listener],
            hostnames: Vec::new(),
            alpn: Vec::new(),
            sources: Vec::new(),
            admission: Admission { allow: None, deny: Vec::new() },
            limit_source: None,
            limit: None,
            balance: RouteBalance::RoundRobin,
            on_unavailable: None,
            backends,
        }
    }
}

/// Which sessions of its listeners a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Takes {
    /// Sessions with a ClientHello, and all sessions of a listener that reads none.
    Usual,
    /// Sessions whose first bytes are not those of a ClientHello.
    NotTls,
    /// Sessions of clients that have sent nothing within `hello_timeout`.
    Silent,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WeightedBackend {
    pub name: At<String>,
    /// From 0 to 1,000,000. A backend's share is its weight, divided by the sum of the route's
    /// weights.
    pub weight: u32,
}
