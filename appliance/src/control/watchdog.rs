//! Tells the log, the admin API and systemd whether all workers live.

use std::sync::atomic::Ordering;

use crate::control::run::Control;
use crate::control::systemd;

impl Control {
    /// Says which workers hang. If none does, wakes them again, and tells systemd that this process
    /// lives.
    pub fn look_at_workers(&mut self) {
        let counters = self.board.workers().iter();
        let turns: Vec<_> = counters
            .zip(&self.workers)
            .map(|(counters, worker)| worker.thread.is_some().then(|| counters.turns.get()))
            .collect();
        let found = self.pulse.look_now(&turns);
        let seconds = found.lasted.as_secs_f64();
        let is_told = self.pulse.is_told && !self.board.handed_over.load(Ordering::Relaxed);
        for worker in found.hang {
            tracing::error!(
                "worker {worker} hangs: it has made no turn for {seconds:.1} s{}",
                match is_told {
                    true => "; systemd hears no more that this gateway lives",
                    false => "",
                }
            );
        }
        for worker in found.go_on {
            tracing::warn!("worker {worker} goes on after {seconds:.1} s");
        }
        *self.board.hang.lock() = self.pulse.hang();
        if !found.all_live {
            return;
        }
        self.sync.wake_workers();
        if is_told {
            systemd::tell("WATCHDOG=1");
        }
    }
}
