//! Passive ejection: the settings and their defaults. Times are in milliseconds.

use std::ops::RangeInclusive;

use crate::model::time::SECOND;

/// When endpoints are left out because sessions and flows fail with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eject {
    /// So many failures within `window` take an endpoint out.
    pub failures: u32,
    pub window: u32,
    /// How long the first ejection lasts. Each further one lasts as much longer, up to `max`.
    pub base: u32,
    pub max: u32,
    /// Per cent of the backend's endpoints that may be out at once.
    pub max_share: u8,
    /// If no endpoint would be left, all are in.
    pub fail_open: bool,
}

pub(crate) const DEFAULT: Eject = Eject {
    failures: 5,
    window: 10 * SECOND,
    base: 30 * SECOND,
    max: 300 * SECOND,
    max_share: 50,
    fail_open: true,
};

pub(crate) const FAILURES: RangeInclusive<u32> = 1..=10_000;
pub(crate) const MAX_SHARE: RangeInclusive<u8> = 1..=100;
