//! When the next operation may begin: at once (closed loop), or by the clock (open loop).

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use monoio::net::TcpStream;
use monoio::task::JoinHandle;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::meter::{Meter, Start};

/// How long answers may take after the interval; what is later counts as failed.
pub const GRACE: Duration = Duration::from_secs(2);

/// Lets the clients work until the meter's interval is over. With a `rate`, in operations per
/// second, they share an open loop; what they did not get to is counted as failed.
pub async fn drive<C, F: Future<Output = ()> + 'static>(
    clients: impl IntoIterator<Item = C>,
    rate: Option<f64>,
    meter: &Rc<Meter>,
    run: impl Fn(C, Pace, Rc<Meter>) -> F,
) -> io::Result<()> {
    let schedule = rate.map(|rate| Rc::new(Schedule::new(Instant::now(), rate)));
    let mut tasks = Vec::new();
    for client in clients {
        let pace = Pace::of(schedule.as_ref())?;
        tasks.push(monoio::spawn(run(client, pace, Rc::clone(meter))));
    }
    finish(tasks, meter).await;
    for _ in 0..schedule.map_or(0, |schedule| schedule.untaken(meter)) {
        meter.failed();
    }
    Ok(())
}

/// Waits for tasks that end with the interval; those that do not have failed.
pub async fn finish(tasks: Vec<JoinHandle<()>>, meter: &Meter) {
    let end = monoio::time::Instant::from_std(meter.until() + GRACE);
    for task in tasks {
        if monoio::time::timeout_at(end, task).await.is_err() {
            meter.failed();
        }
    }
}

/// The operations of an open loop: number n is due at `start + n / rate`, whatever became of those
/// before it. Who is free takes the next; if all are late, it is late too, and its latency says so.
pub struct Schedule {
    start: Instant,
    nanos_each: f64,
    taken: Cell<u64>,
}

impl Schedule {
    pub fn new(start: Instant, per_second: f64) -> Self {
        Self { start, nanos_each: 1e9 / per_second, taken: Cell::new(0) }
    }

    /// When the next operation is due.
    pub fn next(&self) -> Instant {
        self.due(self.taken.get())
    }

    /// Takes the next operation: nobody else will do it.
    pub fn take(&self) -> Instant {
        let due = self.next();
        self.taken.set(self.taken.get() + 1);
        due
    }

    /// How many are due before the meter's interval ends and were taken by nobody.
    pub fn untaken(&self, meter: &Meter) -> u64 {
        (self.taken.get()..).take_while(|n| !meter.over(self.due(*n))).count() as u64
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and 2^64 ns are 584 years"
    )]
    fn due(&self, number: u64) -> Instant {
        self.start + Duration::from_nanos((number as f64 * self.nanos_each) as u64)
    }
}

/// The pace of one connection.
pub enum Pace {
    Closed,
    Open(Rc<Schedule>, Timer),
}

impl Pace {
    /// All connections of a run share its schedule.
    pub fn of(schedule: Option<&Rc<Schedule>>) -> io::Result<Self> {
        Ok(match schedule {
            None => Self::Closed,
            Some(schedule) => Self::Open(Rc::clone(schedule), Timer::new()?),
        })
    }

    /// Waits until the next operation may begin; `None` when the run is over.
    pub async fn next(&self, meter: &Meter) -> Option<Start> {
        let now = Instant::now();
        match self {
            Self::Closed => (!meter.over(now)).then_some(Start::Sent(now)),
            Self::Open(schedule, timer) => {
                if meter.over(schedule.next()) {
                    return None;
                }
                let due = schedule.take();
                timer.until(due, now).await.ok()?;
                Some(Start::Due(due))
            }
        }
    }
}

/// The runtime's timers have steps of 1 ms; a timerfd has those of the machine.
pub struct Timer {
    timer: TimerFd,
    /// The same descriptor, for its readiness: the ring does not care that it is no socket.
    ring: TcpStream,
}

impl Timer {
    fn new() -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
        let copy = timer.as_fd().try_clone_to_owned()?;
        Ok(Self { timer, ring: TcpStream::from_std(copy.into())? })
    }

    async fn until(&self, due: Instant, now: Instant) -> io::Result<()> {
        let Some(wait) = due.checked_duration_since(now).filter(|wait| !wait.is_zero()) else {
            return Ok(());
        };
        // Setting it forgets that it fired before; it never has to be read.
        self.timer.set(Expiration::OneShot(wait.into()), TimerSetTimeFlags::empty())?;
        self.ring.readable(false).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const QUICK: Duration = Duration::from_micros(50);
    const STALL: Duration = Duration::from_millis(100);

    /// One connection at 1,000 a second, on which operation 500 stalls; no clock is asked.
    fn stalled_once(start_of: impl Fn(Instant, Instant) -> Start) -> crate::outcome::Outcome {
        let begin = Instant::now();
        let (meter, schedule) =
            (Meter::new(begin, Duration::ZERO, SECOND), Schedule::new(begin, 1_000.0));
        let mut free = begin;
        let mut number = 0;
        while !meter.over(schedule.next()) {
            let due = schedule.take();
            let sent = due.max(free);
            free = sent + if number == 500 { STALL } else { QUICK };
            meter.done(start_of(due, sent), free, 64);
            number += 1;
        }
        assert_eq!(schedule.untaken(&meter), 0);
        meter.outcome()
    }

    #[test]
    fn a_stall_delays_all_that_it_made_wait() {
        let outcome = stalled_once(|due, _| Start::Due(due));
        assert_eq!((outcome.operations, outcome.bytes), (1_000, 64_000));
        let latency = outcome.latency.expect("1,000 operations");
        assert!(latency.p50 < 60.0, "{latency:?}");
        // About 105 of 1,000 were due while the server stood still or caught up.
        assert!(latency.p90 > 1_000.0 && latency.p99 > 80_000.0, "{latency:?}");
        assert!(latency.max > 99_000.0, "{latency:?}");
    }

    #[test]
    fn counted_from_when_they_were_sent_it_would_hide() {
        let latency = stalled_once(|_, sent| Start::Sent(sent)).latency.expect("operations");
        assert!(latency.p99 < 60.0 && latency.max > 99_000.0, "{latency:?}");
    }

    #[test]
    fn operations_nobody_took_are_known() {
        let begin = Instant::now();
        let meter = Meter::new(begin, Duration::ZERO, SECOND);
        let schedule = Schedule::new(begin, 100.0);
        for number in 0..40 {
            assert_eq!(schedule.take(), begin + Duration::from_millis(10) * number);
        }
        assert_eq!(schedule.untaken(&meter), 60);
    }
}
