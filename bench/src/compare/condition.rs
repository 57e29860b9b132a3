//! Measures the state of the machine, before each run.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::Context;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::results::State;

/// Takes about 10 ms.
pub fn measure() -> anyhow::Result<State> {
    let congestion = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")
        .context("tcp_congestion_control")?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let round_trip = if cores > 1 { ping_pong()? } else { 0.0 };
    Ok(State { round_trip, spin: spin()?, congestion: congestion.trim().to_owned() })
}

const BOUNCES: u32 = 500;
const BATCHES: u32 = 40;

/// The best of some batches: whatever else ran can only have made it slower.
fn ping_pong() -> anyhow::Result<f64> {
    let ball = AtomicU32::new(0);
    let total = BOUNCES * BATCHES;
    std::thread::scope(|scope| {
        let back = scope.spawn(|| {
            pin(1)?;
            for bounce in 0..total {
                wait_for(&ball, 2 * bounce + 1);
                ball.store(2 * bounce + 2, Ordering::Release);
            }
            anyhow::Ok(())
        });
        let forth = scope.spawn(|| {
            pin(0)?;
            let mut best = f64::INFINITY;
            for batch in 0..BATCHES {
                let began = Instant::now();
                for bounce in batch * BOUNCES..(batch + 1) * BOUNCES {
                    ball.store(2 * bounce + 1, Ordering::Release);
                    wait_for(&ball, 2 * bounce + 2);
                }
                best = best.min(began.elapsed().as_nanos() as f64 / f64::from(BOUNCES));
            }
            anyhow::Ok(best)
        });
        back.join().expect("does not panic")?;
        forth.join().expect("does not panic")
    })
}

/// Yields now and then: on a busy machine the other side may need this core.
fn wait_for(ball: &AtomicU32, value: u32) {
    let mut tries = 0_u32;
    while ball.load(Ordering::Acquire) != value {
        tries += 1;
        if tries.is_multiple_of(10_000) {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

fn spin() -> anyhow::Result<f64> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            pin(0)?;
            let once = || {
                let began = Instant::now();
                black_box((0..200_000_u64).fold(1, |state: u64, n| {
                    black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n))
                }));
                began.elapsed().as_nanos() as f64
            };
            anyhow::Ok((0..8).map(|_| once()).fold(f64::INFINITY, f64::min))
        });
        thread.join().expect("does not panic")
    })
}

fn pin(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("core {core}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_state() {
        let state = measure().expect("a Linux machine");
        assert!(state.spin > 0.0 && state.round_trip.is_finite(), "{state:?}");
        assert!(!state.congestion.is_empty());
    }
}
