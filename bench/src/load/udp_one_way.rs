//! Datagrams that nobody answers, counted by the backend that they reach.

use std::io;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::Options;
use super::pace::Schedule;
use super::udp::{LARGEST, client};
use crate::outcome::Outcome;
use crate::serve::udp::ASK;

/// Operations are datagrams that the backend counted between two answers it gave in the flood;
/// what is lost is of the whole run, and known when all has arrived.
pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut flood = Flood::new(options)?;
    let before = flood.settled()?;
    flood.schedule = options.rate.map(|rate| {
        let bursts = rate / f64::from(options.train);
        Schedule::new(Instant::now(), bursts)
    });
    let first = flood.send_until(options.begin()? + options.warmup())?;
    let last = flood.send_until(first.at + options.seconds())?;
    let arrived = flood.settled()?.saturating_sub(before);
    let operations = last.count.saturating_sub(first.count);
    Ok(Outcome {
        seconds: (last.at - first.at).as_secs_f64(),
        operations,
        bytes: operations * flood.size as u64,
        errors: flood.errors,
        lost: flood.sent.saturating_sub(arrived),
        latency: None,
    })
}

/// How long an answer may take before the question is asked again: it may be lost in the flood.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// How long the backend may be silent, and how long its count may go on rising after the flood.
const PATIENCE: Duration = Duration::from_secs(5);

struct Flood {
    flows: Vec<UdpSocket>,
    next: usize,
    /// Asks, and sends nothing else.
    control: UdpSocket,
    /// `None`: as fast as the kernel takes them.
    schedule: Option<Schedule>,
    size: usize,
    burst: Vec<u8>,
    /// Datagrams.
    sent: u64,
    errors: u64,
}

/// What the backend had counted when it answered.
struct Answer {
    count: u64,
    at: Instant,
}

impl Flood {
    fn new(options: &Options) -> anyhow::Result<Self> {
        let size = options.size(512) as usize;
        let length = size * usize::from(options.train);
        // A datagram as short as the question could be taken for one.
        ensure!(size > ASK.len() && length <= LARGEST, "a burst has 2 to {LARGEST} bytes");
        let flows = (0..options.connections)
            .map(|number| client(options, number))
            .collect::<io::Result<_>>()
            .context("flows")?;
        Ok(Self {
            flows,
            next: 0,
            control: client(options, options.connections).context("control")?,
            schedule: None,
            size,
            burst: vec![0; length],
            sent: 0,
            errors: 0,
        })
    }

    /// Sends until `end`, and then until a question asked at that time is answered.
    fn send_until(&mut self, end: Instant) -> anyhow::Result<Answer> {
        // The clock and the answer are looked at once in so many bursts.
        const BURSTS: usize = 16;
        let mut ask = end;
        loop {
            let now = Instant::now();
            if now >= end
                && let Some(count) = self.answer()?
            {
                return Ok(Answer { count, at: now });
            }
            if now >= ask {
                self.ask()?;
                ask = now + ASK_AGAIN;
            }
            if now > end + PATIENCE {
                bail!("the backend does not answer");
            }
            for _ in 0..BURSTS {
                self.send(now);
            }
        }
    }

    /// The next flow's burst, if it is due.
    fn send(&mut self, now: Instant) {
        if let Some(schedule) = &self.schedule {
            let wait = schedule.next().saturating_duration_since(now);
            if !wait.is_zero() {
                // Short, so that the end and the answer are not overslept.
                return std::thread::sleep(wait.min(Duration::from_millis(1)));
            }
            schedule.take();
        }
        match self.flows[self.next].send(&self.burst) {
            Ok(bytes) => self.sent += (bytes / self.size) as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.errors += 1,
        }
        self.next = (self.next + 1) % self.flows.len();
    }

    /// The count when it no longer rises.
    fn settled(&self) -> anyhow::Result<u64> {
        let end = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < end {
            self.ask()?;
            std::thread::sleep(ASK_AGAIN);
            let count = self.answer()?;
            if count.is_some() && count == last {
                break;
            }
            last = count.or(last);
        }
        last.context("the backend does not answer")
    }

    fn ask(&self) -> anyhow::Result<()> {
        match self.control.send(ASK) {
            // Asked again before long; the patience ends that.
            Err(error) if is_passing(&error) => Ok(()),
            result => result.map(drop).context("ask"),
        }
    }

    /// The newest answer that has come.
    fn answer(&self) -> anyhow::Result<Option<u64>> {
        let mut newest = None;
        let mut buffer = [0; 8];
        loop {
            match self.control.recv(&mut buffer) {
                Ok(8) => newest = Some(u64::from_le_bytes(buffer)),
                Ok(length) => bail!("an answer of {length} bytes"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(newest),
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error).context("answer"),
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock)
}
