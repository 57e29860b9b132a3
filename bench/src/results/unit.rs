//! The units that the operations of a load are counted in.

use serde::{Deserialize, Serialize};

use crate::outcome::Outcome;

/// Of what one operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// 10^9 bytes that arrived.
    Gigabyte,
    Request,
    Connection,
    RoundTrip,
    Datagram,
    Query,
}

impl Unit {
    /// Of the operations of an outcome, in units of a thousand (gigabytes: in one).
    pub fn amount(self, outcome: &Outcome) -> f64 {
        match self {
            Self::Gigabyte => outcome.bytes as f64 / 1e9,
            _ => outcome.operations as f64,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Gigabyte => "GB",
            Self::Request => "request",
            Self::Connection => "connection",
            Self::RoundTrip => "round trip",
            Self::Datagram => "datagram",
            Self::Query => "query",
        }
    }
}
