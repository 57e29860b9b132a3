//! Refuses new sessions and flows while the memory of the process is nearly used up. Those that
//! live go on.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::control::run::Control;

/// How often the memory is looked at.
const LOOK: Duration = Duration::from_millis(100);

impl Control {
    /// Tells the workers whether to refuse what is new, if it is time to look.
    pub fn look_at_memory(&mut self) {
        let now = Instant::now();
        if now < self.memory_seen + LOOK {
            return;
        }
        self.memory_seen = now;
        let config = self.sync.in_force().map(|in_force| &in_force.config);
        let (percent, hides) =
            config.map_or((0, false), |config| (config.memory_percent, config.memory_readiness));
        let reading = self.memory.read();
        let was = self.board.overloaded.load(Ordering::Relaxed);
        let is_over = reading.is_some_and(|reading| reading.is_over(was, percent));
        if let Some(reading) = reading.filter(|_| is_over != was) {
            let (used, most) = (reading.used >> 20, reading.most >> 20);
            match is_over {
                true => tracing::warn!(
                    "overload: {used} of {most} MiB of memory are in use \
                     (limits.memory_percent = {percent}); new sessions and flows are refused"
                ),
                false => tracing::info!(
                    "the overload is over: {used} of {most} MiB of memory are in use"
                ),
            }
        }
        *self.board.memory.lock() = reading;
        self.board.overloaded.store(is_over, Ordering::Relaxed);
        self.board.hides.store(is_over && hides, Ordering::Relaxed);
        for worker in self.board.workers() {
            worker.overloaded.set(u64::from(is_over));
        }
    }
}
