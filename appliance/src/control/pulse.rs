//! Whether all workers live: each makes a turn of its loop after it was woken.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// How often workers are woken, unless systemd asks for signs of life more often.
const EVERY: Duration = Duration::from_secs(5);

/// The most time that a worker can be said to hang between two looks. If the whole process was
/// stopped, no worker hangs.
const STEP: Duration = Duration::from_millis(200);

/// What the control thread knows of its workers' turns.
pub struct Pulse {
    /// systemd hears of life.
    pub is_told: bool,
    /// How often workers are woken.
    every: Duration,
    /// How long ago that was.
    passed: Duration,
    /// The same as far as this thread has looked meanwhile.
    looked_for: Duration,
    workers: Vec<Worker>,
    looked: Instant,
}

#[derive(Clone, Copy, Default)]
struct Worker {
    /// The turns that the worker had made when it was woken. `None`: it has made more since, or it
    /// has ended.
    turns: Option<u64>,
    /// The log says that it hangs.
    hangs: bool,
}

/// What a look finds.
#[derive(Debug, Default)]
pub struct Found {
    /// All workers have made a turn since they were woken, and it is time to wake them again.
    pub all_live: bool,
    /// Workers that have not made a turn for too long, since this look.
    pub hang: Vec<usize>,
    /// Workers that have hung before this look.
    pub go_on: Vec<usize>,
    /// How long ago the workers were woken.
    pub lasted: Duration,
}

/// A worker that hangs, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hang {
    pub worker: usize,
    pub lasts: Duration,
}

impl fmt::Display for Hang {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} has made no turn for {} s", self.worker, self.lasts.as_secs())
    }
}

impl Pulse {
    /// `watchdog`: how often systemd is to hear that the process lives.
    pub fn new(watchdog: Option<Duration>) -> Self {
        let every = watchdog.map_or(EVERY, |every| every.min(EVERY));
        let (passed, looked_for) = (Duration::ZERO, Duration::ZERO);
        let (is_told, workers) = (watchdog.is_some(), Vec::new());
        Self { is_told, every, passed, looked_for, workers, looked: Instant::now() }
    }

    /// `turns`: of each worker, if it has not ended.
    pub fn look_now(&mut self, turns: &[Option<u64>]) -> Found {
        let now = Instant::now();
        let passed = now - std::mem::replace(&mut self.looked, now);
        self.look(passed, turns)
    }

    /// `passed`: since the look before.
    fn look(&mut self, passed: Duration, turns: &[Option<u64>]) -> Found {
        self.passed += passed;
        self.looked_for += passed.min(STEP);
        self.workers.resize(turns.len(), Worker::default());
        let is_late = self.looked_for >= self.every + self.every / 2;
        let mut found = Found { lasted: self.looked_for, ..Found::default() };
        for (index, (worker, turns)) in self.workers.iter_mut().zip(turns).enumerate() {
            if worker.turns.is_some() && worker.turns != *turns {
                worker.turns = None;
                if std::mem::take(&mut worker.hangs) {
                    found.go_on.push(index);
                }
            }
            if worker.turns.is_some() && is_late && !worker.hangs {
                worker.hangs = true;
                found.hang.push(index);
            }
        }
        found.all_live =
            self.passed >= self.every && self.workers.iter().all(|worker| worker.turns.is_none());
        if found.all_live {
            (self.passed, self.looked_for) = (Duration::ZERO, Duration::ZERO);
            for (worker, turns) in self.workers.iter_mut().zip(turns) {
                worker.turns = *turns;
            }
        }
        found
    }

    /// The first worker that hangs.
    pub fn hang(&self) -> Option<Hang> {
        let worker = self.workers.iter().position(|worker| worker.hangs)?;
        Some(Hang { worker, lasts: self.looked_for })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    /// Looks `count` times. Returns how often all lived, and which workers were said to hang or to
    /// go on.
    fn looks(
        pulse: &mut Pulse,
        count: u32,
        mut turns: impl FnMut(u32) -> Vec<Option<u64>>,
    ) -> (u32, Vec<usize>, Vec<usize>) {
        let (mut fed, mut hang, mut go_on) = (0, Vec::new(), Vec::new());
        for number in 0..count {
            let found = pulse.look(TICK, &turns(number));
            fed += u32::from(found.all_live);
            hang.extend(found.hang);
            go_on.extend(found.go_on);
        }
        (fed, hang, go_on)
    }

    /// Two looks in a second.
    fn pulse() -> Pulse {
        Pulse::new(Some(Duration::from_millis(500)))
    }

    #[test]
    fn workers_that_turn_are_a_sign_of_life_each_time() {
        let turning = |number: u32| vec![Some(u64::from(number)), Some(7 + u64::from(number))];
        assert_eq!(looks(&mut pulse(), 50, turning), (10, vec![], vec![]));
    }

    #[test]
    fn one_worker_that_hangs_is_enough_for_silence() {
        let mut pulse = pulse();
        let one = |number: u32| vec![Some(u64::from(number)), Some(7)];
        // The first time nothing was asked before.
        assert_eq!(looks(&mut pulse, 100, one), (1, vec![1], vec![]));
        let hang = pulse.hang().expect("it hangs");
        assert_eq!((hang.worker, hang.lasts), (1, Duration::from_millis(9_500)));
        let again = |number: u32| vec![Some(u64::from(number)), Some(8 + u64::from(number))];
        let (fed, hang, go_on) = looks(&mut pulse, 11, again);
        assert_eq!((fed, hang, go_on), (3, vec![], vec![1]));
        assert_eq!(pulse.hang(), None);
    }

    #[test]
    fn a_worker_that_has_ended_does_not_hang() {
        let mut pulse = pulse();
        assert_eq!(looks(&mut pulse, 5, |_| vec![Some(1)]).0, 1);
        assert_eq!(looks(&mut pulse, 50, |_| vec![None]), (10, vec![], vec![]));
    }

    #[test]
    fn a_stop_of_the_whole_process_is_no_hang() {
        let mut pulse = pulse();
        assert_eq!(looks(&mut pulse, 5, |_| vec![Some(1)]).0, 1);
        let found = pulse.look(Duration::from_secs(3_600), &[Some(1)]);
        assert!(!found.all_live && found.hang.is_empty(), "{found:?}");
        // systemd has waited as long.
        assert_eq!(looks(&mut pulse, 1, |_| vec![Some(2)]).0, 1);
    }
}
