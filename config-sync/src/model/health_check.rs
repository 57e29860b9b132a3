//! How the endpoints of a backend are checked.

use std::ops::RangeInclusive;

/// How the endpoints of a backend are checked: by a TCP connection, opened and closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Milliseconds from one check of an endpoint to its next, at least 100.
    pub interval: u32,
    /// Milliseconds within which it must be connected, `interval` at the most.
    pub timeout: u32,
    /// Good checks in a row that bring an endpoint back, 1 to 100.
    pub rise: u8,
    /// Failed checks in a row that take it out, 1 to 100.
    pub fall: u8,
    /// Where to connect; 0: to the endpoint's own port.
    pub port: u16,
}

/// What holds where nothing is said.
pub(crate) const DEFAULT: HealthCheck =
    HealthCheck { interval: 5_000, timeout: 2_000, rise: 2, fall: 3, port: 0 };

/// Of `rise` and `fall`.
pub(crate) const TIMES: RangeInclusive<u8> = 1..=100;

/// Where only the interval is given.
pub(crate) fn timeout_of(interval: u32) -> u32 {
    DEFAULT.timeout.min(interval)
}
