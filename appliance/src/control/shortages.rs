//! Says in the log when files, places or buffers run out, and when that is over. Counters say how
//! often something was refused or had to wait; this says so to people, once at both ends.

use std::time::Duration;

use config_sync::table::routing::Limits;
use tokio::time::Instant;

use crate::stats::counters::Counters;

/// A shortage is over when nothing has been refused for its sake for so long. In a flood, the log
/// has two lines in place of two a second.
const QUIET: Duration = Duration::from_secs(10);

/// What may run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Files,
    Sessions,
    Flows,
    Buffers,
}

const ALL: [Of; 4] = [Of::Files, Of::Sessions, Of::Flows, Of::Buffers];

/// In the order of `ALL`.
#[derive(Debug, Default)]
pub struct Shortages([Shortage; ALL.len()]);

#[derive(Debug, Default)]
struct Shortage {
    /// How often the limit had been reached at the last look.
    reached: u64,
    lasts: Option<Lasts>,
}

/// A shortage that is not over.
#[derive(Debug)]
struct Lasts {
    since: Instant,
    /// When the limit was last found to be reached again.
    latest: Instant,
    times: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum News {
    Begins,
    /// How long it has lasted, and how often the limit was reached.
    IsOver(Duration, u64),
}

impl Shortages {
    /// Logs what has begun and what is over.
    pub fn look<'c>(
        &mut self,
        workers: impl Iterator<Item = &'c Counters>,
        limits: Limits,
        now: Instant,
    ) {
        let reached = reached(workers);
        for ((shortage, of), reached) in self.0.iter_mut().zip(ALL).zip(reached) {
            match shortage.look(reached, now) {
                Some(News::Begins) => tracing::warn!("overload: {}", of.says(limits)),
                Some(News::IsOver(lasted, times)) => tracing::info!(
                    "the shortage of {} is over: it came {times} times in {} s",
                    of.name(),
                    lasted.as_secs()
                ),
                None => {}
            }
        }
    }
}

impl Shortage {
    /// `reached`: how often the limit has been reached so far.
    fn look(&mut self, reached: u64, now: Instant) -> Option<News> {
        let times = reached.saturating_sub(std::mem::replace(&mut self.reached, reached));
        match &mut self.lasts {
            None if times > 0 => {
                self.lasts = Some(Lasts { since: now, latest: now, times });
                Some(News::Begins)
            }
            Some(lasts) if times > 0 => {
                (lasts.latest, lasts.times) = (now, lasts.times + times);
                None
            }
            Some(lasts) if now >= lasts.latest + QUIET => {
                let news = News::IsOver(lasts.latest - lasts.since, lasts.times);
                self.lasts = None;
                Some(news)
            }
            _ => None,
        }
    }
}

impl Of {
    fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Sessions => "sessions",
            Self::Flows => "flows",
            Self::Buffers => "buffers",
        }
    }

    fn says(self, limits: Limits) -> String {
        let Limits { sessions, flows, buffers, .. } = limits;
        match self {
            Self::Files => "no file was left, or no memory for one: workers pause before they \
                            accept the next session, and what gets no socket to its endpoint is \
                            refused (local_limit); sessions and flows that live go on \
                            (LimitNOFILE= of the service, ulimit -n)"
                .to_owned(),
            Self::Sessions => format!(
                "the session table of a worker is full (limits.sessions = {sessions}); new \
                 sessions are refused, and those that live go on"
            ),
            Self::Flows => format!(
                "the flow table of a worker is full (limits.flows = {flows}); datagrams of new \
                 clients are dropped, and flows that live go on"
            ),
            Self::Buffers => format!(
                "a worker had no receive buffer left (limits.buffers = {buffers}); datagrams wait \
                 in their sockets, and those that find no room there are lost"
            ),
        }
    }
}

/// How often each limit has been reached, over all workers, in the order of `ALL`. The counters are
/// the workers' own: those of listeners come and go with the table.
fn reached<'c>(workers: impl Iterator<Item = &'c Counters>) -> [u64; ALL.len()] {
    let [mut files, mut sessions, mut flows, mut buffers] = [0; ALL.len()];
    for worker in workers {
        files += worker.accept_pauses.get() + worker.file_shortages.get();
        sessions += worker.session_shortages.get();
        flows += worker.flow_shortages.get();
        buffers += worker.buffer_shortages.get();
    }
    [files, sessions, flows, buffers]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_said_once_at_both_ends() {
        let (mut shortage, start) = (Shortage::default(), Instant::now());
        let mut look =
            |reached, seconds| shortage.look(reached, start + Duration::from_secs(seconds));
        assert_eq!(look(0, 0), None);
        assert_eq!(look(3, 1), Some(News::Begins));
        assert_eq!(look(3, 2), None);
        // It comes again before it is over.
        assert_eq!(look(10, 9), None);
        assert_eq!(look(10, 18), None);
        assert_eq!(look(10, 19), Some(News::IsOver(Duration::from_secs(8), 10)));
        assert_eq!(look(10, 40), None);
        assert_eq!(look(11, 42), Some(News::Begins));
        assert_eq!(look(11, 52), Some(News::IsOver(Duration::ZERO, 1)));
    }

    #[test]
    fn each_limit_has_its_counters() {
        let workers = [Counters::new(), Counters::new()];
        workers[0].accept_pauses.add(2);
        workers[1].file_shortages.add(3);
        workers[0].session_shortages.add(4);
        workers[1].session_shortages.add(5);
        workers[0].flow_shortages.add(6);
        workers[1].buffer_shortages.add(7);
        assert_eq!(reached(workers.iter()), [5, 9, 6, 7]);
        let limits = Limits { sessions: 11, flows: 12, buffers: 13, ..Limits::default() };
        let says = ALL.map(|of| of.says(limits));
        for (text, number) in says[1..].iter().zip(["= 11)", "= 12)", "= 13)"]) {
            assert!(text.contains(number), "{text}");
        }
    }
}
