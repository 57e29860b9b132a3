//! Health checks of a backend's endpoints: the settings and their defaults.

use std::ops::RangeInclusive;

/// How a backend's endpoints are checked. A check opens a TCP connection and closes the connection
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Milliseconds from one check of an endpoint to the next check, at least 100.
    pub interval: u32,
    /// Milliseconds for the connection to be established, at most `interval`.
    pub timeout: u32,
    /// Good checks in a row that bring an endpoint back: 1 to 100.
    pub rise: u8,
    /// Failed checks in a row that take an endpoint out: 1 to 100.
    pub fall: u8,
    /// The port to connect to. 0: the endpoint's own port.
    pub port: u16,
}

/// The values of keys that are not given.
pub(crate) const DEFAULT: HealthCheck =
    HealthCheck { interval: 5_000, timeout: 2_000, rise: 2, fall: 3, port: 0 };

/// The range of `rise` and `fall`.
pub(crate) const TIMES: RangeInclusive<u8> = 1..=100;

/// The timeout if only the interval is given.
pub(crate) fn timeout_of(interval: u32) -> u32 {
    DEFAULT.timeout.min(interval)
}
