//! Refuses new sessions and flows while the memory of the process is nearly used up. Those that
//! live go on. Near that and other limits, the process may also say that it is not ready. When
//! another limit is reached, the log says so.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::control::admin::server;
use crate::control::memory::Reading;
use crate::control::metrics::process;
use crate::control::own_log;
use crate::control::own_memory::Start;
use crate::control::run::Control;
use crate::stats::counters::Counters;

/// How often the memory is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How often the other limits are looked at. On kernels before 6.2, open files are counted one by
/// one.
const LOOK_AT_LIMITS: Duration = Duration::from_secs(1);

impl Control {
    /// Notes what the process uses, before many clients have come.
    pub fn note_own_memory(&self) {
        let queues = self.log.most_waiting() + own_log::MOST_WAITING + server::MOST_READ;
        let table = self.sync.whole().unwrap_or_else(|| self.sync.table());
        *self.board.start.lock() = Start::now(table, queues);
    }

    /// Tells the workers whether to refuse what is new, if it is time to look.
    pub fn look_at_memory(&mut self) {
        let now = Instant::now();
        if now < self.looks.memory + LOOK {
            return;
        }
        self.looks.memory = now;
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
        for worker in self.board.workers() {
            worker.overloaded.set(u64::from(is_over));
        }
        if now >= self.looks.limits + LOOK_AT_LIMITS {
            self.looks.limits = now;
            self.look_at_limits();
            let workers = self.board.workers().iter().map(|worker| &**worker);
            self.looks.shortages.look(workers, self.board.limits(), now);
        }
        self.board.hides.store(is_over && hides || self.looks.is_near, Ordering::Relaxed);
    }

    /// Finds out whether a limit of the process is so nearly reached that the process is not ready.
    fn look_at_limits(&mut self) {
        let config = self.sync.in_force().map(|in_force| &in_force.config);
        let percent = config.map_or(0, |config| config.readiness_percent);
        let was = self.looks.is_near;
        let near = self.readings().into_iter().find_map(|(limit, reading)| match reading {
            Some(reading) => reading.is_over(was, percent).then_some((limit, reading)),
            None => None,
        });
        // A process without a free file can't count its files any more.
        let can_count = process::files().is_some();
        let is_near = near.is_some() || percent > 0 && self.looks.has_counted && !can_count;
        self.looks.has_counted |= can_count;
        match near.filter(|_| !was) {
            Some((limit, Reading { used, most })) => tracing::warn!(
                "not ready: {used} of {most} are in use of the limit {limit} \
                 (limits.readiness_percent = {percent})"
            ),
            None if was && !is_near => tracing::info!("ready again: no limit is nearly reached"),
            None => {}
        }
        self.looks.is_near = is_near;
    }

    /// What is in use of each limit that new work meets: those of the process, and those of the
    /// worker that has most in use, by the names of `ringway limits`.
    fn readings(&self) -> [(&'static str, Option<Reading>); 5] {
        let files = process::files().map(|(used, most)| Reading { used, most });
        let limits = self.board.limits();
        let fullest = |most: u32, used: &dyn Fn(&Counters) -> u64| {
            let used = self.board.workers().iter().map(|worker| used(worker)).max();
            used.map(|used| Reading { used, most: most.into() })
        };
        let buffers = u32::from(limits.buffers);
        let taken = |of: &Counters| u64::from(buffers).saturating_sub(of.buffers_free.get());
        [
            ("memory", *self.board.memory.lock()),
            ("files", files),
            ("sessions", fullest(limits.sessions, &|of| of.sessions.get())),
            ("flows", fullest(limits.flows, &|of| of.flows.get())),
            ("buffers", fullest(buffers, &taken)),
        ]
    }
}
