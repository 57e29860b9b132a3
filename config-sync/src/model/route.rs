//! A route: from listeners to weighted backends.

use ipnet::IpNet;

use crate::model::admission::Admission;
use crate::model::place::At;

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
