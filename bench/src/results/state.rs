//! The state of the machine before a run: a virtual machine's cores come nearer and go farther,
//! faster and slower, while it is measured, and that moves figures more than what is compared. Only
//! runs in the same state are held against each other.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Nanoseconds for a cache line to go from core 0 to core 1 and back; 0 if there is one core.
    pub round_trip: f64,
    /// Nanoseconds of a fixed piece of arithmetic on core 0: the clock it runs at.
    pub spin: f64,
    /// `net.ipv4.tcp_congestion_control`.
    pub congestion: String,
}

impl State {
    /// Cores whose line takes this much longer share another cache, or none; a clock that differs
    /// by more than the 15 % is another machine.
    pub fn same(&self, other: &Self) -> bool {
        let within =
            |left: f64, right: f64, factor: f64| left.max(right) <= left.min(right) * factor;
        self.congestion == other.congestion
            && within(self.round_trip, other.round_trip, 1.6)
            && within(self.spin, other.spin, 1.15)
    }

    /// For people. The limit lies between the round trips of cores that share their last cache and
    /// of such that don't, on the server processors it was seen on.
    pub fn distance(&self) -> &'static str {
        if self.round_trip < 160.0 { "near" } else { "far" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_differ_by_clock_distance_or_congestion_control() {
        let state = State { round_trip: 100.0, spin: 1000.0, congestion: "cubic".into() };
        assert!(state.same(&State { round_trip: 120.0, spin: 1100.0, ..state.clone() }));
        assert!(!state.same(&State { round_trip: 250.0, ..state.clone() }));
        assert!(!state.same(&State { spin: 1200.0, ..state.clone() }));
        assert!(!state.same(&State { congestion: "bbr".into(), ..state.clone() }));
        assert_eq!(state.distance(), "near");
    }
}
