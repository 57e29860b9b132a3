//! UDP round trips: one thread, epoll, direct calls.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use socket2::{Domain, Socket, Type};

use super::Options;
use super::meter::{Meter, Start};
use super::pace::{GRACE, Schedule};
use crate::outcome::Outcome;

/// What is not back by then is lost, and the flow goes on. Tests that must lose nothing ask for
/// longer, in milliseconds: a machine that is busy with others may stand still for a while.
static PATIENCE: LazyLock<Duration> = LazyLock::new(|| {
    let asked = std::env::var("RINGWAY_PATIENCE").ok().and_then(|text| text.parse().ok());
    Duration::from_millis(asked.unwrap_or(200))
});

/// How often it is looked for.
const SWEEP: Duration = Duration::from_millis(50);

/// Of a train, and of a datagram.
pub const LARGEST: usize = 65_000;

/// A datagram is as long at least: flow, burst, place in the burst.
const HEADER: usize = 9;

pub fn requests(options: &Options) -> anyhow::Result<Outcome> {
    let mut load = Load::new(options)?;
    load.run()?;
    // Whole bursts of them, as they would have been counted one by one.
    let untaken = load.schedule.as_ref().map_or(0, |schedule| schedule.untaken(&load.meter));
    for _ in 0..untaken * u64::from(options.train) {
        load.meter.failed();
    }
    Ok(load.meter.outcome())
}

struct Load {
    ports: Vec<Port>,
    flows: Vec<Flow>,
    /// Those with nothing in flight.
    free: VecDeque<usize>,
    /// Bursts in flight at the most.
    window: usize,
    schedule: Option<Schedule>,
    epoll: Epoll,
    timer: TimerFd,
    meter: Meter,
    size: usize,
    /// One burst, and what arrives.
    burst: Vec<u8>,
    buffer: Vec<u8>,
}

struct Port {
    socket: UdpSocket,
    /// Bursts that are not back.
    in_flight: u32,
}

/// One burst at a time; several may share a socket, and so be one flow to everybody else.
struct Flow {
    port: usize,
    number: u32,
    burst: u32,
    start: Start,
    sent: Instant,
    /// A bit for each datagram of the burst that is still to come.
    awaited: u64,
}

/// The timer among the numbers of flows.
const TIMER: u64 = u64::MAX;

impl Load {
    fn new(options: &Options) -> anyhow::Result<Self> {
        let size = options.size(64) as usize;
        let train = usize::from(options.train);
        ensure!(size >= HEADER && size * train <= LARGEST, "a burst has {HEADER} to 65000 bytes");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, TIMER))?;
        let now = Instant::now();
        let mut ports = Vec::new();
        for number in 0..options.connections {
            let socket = client(options, number).with_context(|| format!("flow {number}"))?;
            epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, u64::from(number)))?;
            ports.push(Port { socket, in_flight: 0 });
        }
        let flows = (0..options.connections * u32::from(options.depth)).map(|number| Flow {
            port: (number % options.connections) as usize,
            number,
            burst: 0,
            start: Start::Sent(now),
            sent: now,
            awaited: 0,
        });
        let flows: Vec<_> = flows.collect();
        let now = options.begin()?;
        Ok(Self {
            free: (0..flows.len()).collect(),
            window: options.window.map_or(flows.len(), |window| window as usize),
            ports,
            flows,
            schedule: options.rate.map(|rate| Schedule::new(now, rate / train as f64)),
            epoll,
            timer,
            meter: Meter::new(now, options.warmup(), options.seconds()),
            size,
            burst: vec![0; size * train],
            buffer: vec![0; 1 << 16],
        })
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mut events = vec![EpollEvent::empty(); 1_024];
        let mut sweep = Instant::now() + SWEEP;
        self.begin()?;
        loop {
            let count = match self.epoll.wait(&mut events, 50_u8) {
                Err(Errno::EINTR) => continue,
                count => count?,
            };
            let now = Instant::now();
            for event in &events[..count] {
                if event.data() != TIMER {
                    self.receive(usize::try_from(event.data()).expect("a flow's number"));
                }
            }
            if now >= sweep {
                self.sweep(now);
                sweep = now + SWEEP;
            }
            self.begin()?;
            let answered = || self.flows.iter().all(|flow| flow.awaited == 0);
            if now > self.meter.until() + GRACE || self.all_begun(now) && answered() {
                return Ok(());
            }
        }
    }

    /// In an open loop, what was due in time is still sent when it is late.
    fn all_begun(&self, now: Instant) -> bool {
        self.meter.over(self.schedule.as_ref().map_or(now, Schedule::next))
    }

    /// Sends what may be sent now.
    fn begin(&mut self) -> anyhow::Result<()> {
        while self.flows.len() - self.free.len() < self.window
            && let Some(&index) = self.free.front()
        {
            let now = Instant::now();
            let start = match &self.schedule {
                _ if self.all_begun(now) => return Ok(()),
                None => Start::Sent(now),
                Some(schedule) => {
                    let wait = schedule.next().saturating_duration_since(now);
                    if !wait.is_zero() {
                        let expiration = Expiration::OneShot(wait.into());
                        self.timer.set(expiration, TimerSetTimeFlags::empty())?;
                        return Ok(());
                    }
                    Start::Due(schedule.take())
                }
            };
            self.free.pop_front();
            self.send(index, start, now);
        }
        Ok(())
    }

    fn send(&mut self, index: usize, start: Start, now: Instant) {
        let flow = &mut self.flows[index];
        flow.burst = flow.burst.wrapping_add(1);
        (flow.start, flow.sent) = (start, now);
        let header = u64::from(flow.burst) << 32 | u64::from(flow.number);
        for (place, datagram) in (0..).zip(self.burst.chunks_exact_mut(self.size)) {
            datagram[..8].copy_from_slice(&header.to_le_bytes());
            datagram[8] = place;
            flow.awaited |= 1 << place;
        }
        // What the kernel does not take is found missing by the sweep, which also paces the next
        // attempt.
        let port = &mut self.ports[flow.port];
        port.in_flight += 1;
        if port.socket.send(&self.burst).is_err() {
            self.meter.failed();
        }
    }

    /// Takes what has arrived on a socket, and lets flows go on whose bursts are whole.
    fn receive(&mut self, index: usize) {
        let port = &mut self.ports[index];
        loop {
            let length = match port.socket.recv(&mut self.buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.meter.failed(),
            };
            let now = Instant::now();
            for datagram in self.buffer[..length].chunks(self.size) {
                let number = datagram.first_chunk().map(|number| u32::from_le_bytes(*number));
                let flow = number.and_then(|number| self.flows.get_mut(number as usize));
                let Some(flow) = flow.filter(|flow| flow.port == index) else {
                    self.meter.failed();
                    continue;
                };
                match flow.check(datagram, self.size) {
                    Check::Awaited => self.meter.done(flow.start, now, self.size),
                    Check::Late => continue,
                    Check::Wrong => {
                        self.meter.failed();
                        continue;
                    }
                }
                if flow.awaited == 0 {
                    self.free.push_back(flow.number as usize);
                    port.in_flight -= 1;
                }
            }
            if port.in_flight == 0 {
                return;
            }
        }
    }

    fn sweep(&mut self, now: Instant) {
        for (index, flow) in self.flows.iter_mut().enumerate() {
            if flow.awaited != 0 && now.saturating_duration_since(flow.sent) > *PATIENCE {
                self.meter.lost(flow.awaited.count_ones().into());
                flow.awaited = 0;
                self.free.push_back(index);
                self.ports[flow.port].in_flight -= 1;
            }
        }
    }
}

impl Flow {
    fn check(&mut self, datagram: &[u8], size: usize) -> Check {
        let Some((&[a, b, c, d, e, f, g, h, place], rest)) = datagram.split_first_chunk() else {
            return Check::Wrong;
        };
        let header = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let burst = u64::from(self.burst) << 32 | u64::from(self.number);
        let place = 1_u64.checked_shl(place.into()).unwrap_or(0);
        if rest.len() + HEADER == size && header == burst && self.awaited & place != 0 {
            self.awaited &= !place;
            return Check::Awaited;
        }
        let mine = header & u64::from(u32::MAX) == u64::from(self.number);
        if mine && header < burst { Check::Late } else { Check::Wrong }
    }
}

enum Check {
    Awaited,
    /// Of a burst that was given up.
    Late,
    /// Another flow's, doubled, or of another size.
    Wrong,
}

/// A connected socket that does not wait, with room and offload for trains.
pub fn client(options: &Options, number: u32) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(options.to), Type::DGRAM.nonblocking(), None)?;
    if let Some(source) = options.source(number) {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect(&options.to.into())?;
    if options.train > 1 {
        let size = i32::try_from(options.size(64)).unwrap_or(i32::MAX);
        setsockopt(&socket, sockopt::UdpGsoSegment, &size)?;
        setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
        socket.set_recv_buffer_size(1 << 20)?;
    }
    Ok(socket.into())
}

/// Round trips each from another port, a window of them in flight. The sockets are asked in the
/// order in which they were opened: readiness for each would cost as much as the rest, and so
/// there is no latency.
pub fn new_flows(options: &Options) -> anyhow::Result<Outcome> {
    let size = options.size(64) as usize;
    ensure!((HEADER..=LARGEST).contains(&size), "a datagram has {HEADER} to {LARGEST} bytes");
    let now = options.begin()?;
    let meter = Meter::new(now, options.warmup(), options.seconds());
    let schedule = options.rate.map(|rate| Schedule::new(now, rate));
    let mut ports = Ports { options, next: 0 };
    let mut window = VecDeque::new();
    let (mut datagram, mut buffer) = (vec![0; size], vec![0; 1 << 16]);
    for number in 0_u64.. {
        if window.len() >= options.connections as usize {
            let oldest = window.pop_front().expect("the window holds one at least");
            collect(&oldest, &mut buffer, size, &meter);
        }
        let now = Instant::now();
        if meter.over(now) {
            break;
        }
        if let Some(schedule) = &schedule {
            std::thread::sleep(schedule.take().saturating_duration_since(now));
        }
        datagram[..8].copy_from_slice(&number.to_le_bytes());
        let socket = ports.open()?;
        match socket.send_to(&datagram, &options.to.into()) {
            Ok(_) => window.push_back((socket, number)),
            Err(_) => meter.failed(),
        }
    }
    for sent in window {
        collect(&sent, &mut buffer, size, &meter);
    }
    Ok(meter.outcome())
}

fn collect((socket, number): &(Socket, u64), buffer: &mut [u8], size: usize, meter: &Meter) {
    let flags = MsgFlags::MSG_DONTWAIT;
    let mut received = recv(socket.as_raw_fd(), buffer, flags);
    if received == Err(Errno::EAGAIN) {
        let mut watched = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(*PATIENCE).expect("fits");
        if poll(&mut watched, patience) == Ok(0) {
            return meter.lost(1);
        }
        received = recv(socket.as_raw_fd(), buffer, flags);
    }
    let right = |length| length == size && buffer[..8] == number.to_le_bytes();
    match received {
        Ok(length) if right(length) => {
            meter.moved(Instant::now(), size);
        }
        Ok(_) | Err(_) => meter.failed(),
    }
}

/// Gives out ports in turn, so that as much time as possible passes before one is used again.
struct Ports<'a> {
    options: &'a Options,
    next: u32,
}

impl Ports<'_> {
    const FIRST: u16 = 10_000;
    const COUNT: u32 = 50_000;

    /// A socket on the next source address and port that nobody holds.
    fn open(&mut self) -> anyhow::Result<Socket> {
        let domain = Domain::for_address(self.options.to);
        for _ in 0..Self::COUNT {
            let number = self.next;
            self.next = self.next.wrapping_add(1);
            let port = number / u32::from(self.options.sources.max(1)) % Self::COUNT;
            let port = Self::FIRST + u16::try_from(port).expect("below COUNT");
            let any = || match self.options.to {
                SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
                SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
            };
            let source = self.options.source(number).unwrap_or_else(any);
            let socket = Socket::new(domain, Type::DGRAM, None)?;
            match socket.bind(&SocketAddr::new(source, port).into()) {
                Ok(()) => return Ok(socket),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).context("bind"),
            }
        }
        bail!("no source port is free")
    }
}
