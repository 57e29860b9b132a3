//! Connections themselves: made and ended as fast as they go, or kept.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use monoio::io::{AsyncReadRent, AsyncReadRentExt};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::Options;
use super::meter::Meter;
use super::pace::{Pace, drive};
use crate::outcome::Outcome;
use crate::serve::{stream, wire};

/// The server closes first, so TIME_WAIT is at its port, and at a proxy's listener: the client's
/// ports are free at once, and no reset, which a proxy would treat otherwise than a FIN, is needed
/// to keep them from running out.
pub async fn connect(options: &Options) -> anyhow::Result<Outcome> {
    let visitor = |number| Visitor {
        to: options.to,
        source: options.source(number),
        request: wire::request(ANSWER, u64::from(number).to_le_bytes()),
    };
    // A server that is not there should be an error at once, not a run full of them.
    visitor(0).visit().await.context("the first connection")?;
    let meter = Rc::new(Meter::new(options.begin()?, options.warmup(), options.seconds()));
    drive((0..options.connections).map(visitor), options.rate, &meter, Visitor::run).await?;
    Ok(meter.outcome())
}

/// Bytes of the answer.
const ANSWER: u32 = 64;

struct Visitor {
    to: SocketAddr,
    source: Option<IpAddr>,
    request: [u8; wire::REQUEST],
}

impl Visitor {
    async fn run(self, pace: Pace, meter: Rc<Meter>) {
        while let Some(start) = pace.next(&meter).await {
            match self.visit().await {
                Ok(()) => meter.done(start, Instant::now(), ANSWER as usize),
                Err(_) => {
                    meter.failed();
                    monoio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    }

    /// One connection from SYN to FIN.
    async fn visit(&self) -> io::Result<()> {
        let mut stream = stream::connect(self.to, self.source).await?;
        stream::send_all(&stream, &self.request).await?;
        let (read, answer) = stream.read_exact(Box::new([0; ANSWER as usize])).await;
        read?;
        let (end, _) = stream.read(Box::new([0; 1])).await;
        let (_, sequence) = wire::parse_request(&self.request);
        if end? == 0 && answer.starts_with(&sequence) {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

/// Opens connections one after the other, says so, and keeps them until its input ends.
pub async fn idle(options: &Options) -> anyhow::Result<Outcome> {
    let mut streams = Vec::new();
    for number in 0..options.connections {
        let stream = stream::connect(options.to, options.source(number)).await;
        streams.push(stream.with_context(|| format!("connection {number}"))?);
    }
    let began = Instant::now();
    println!("ready");
    io::stdout().flush()?;
    // Blocks the ring too, which has nothing to do.
    io::stdin().read_to_end(&mut Vec::new())?;
    let open = streams.iter().filter(|stream| {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(stream.as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
    });
    let operations = open.count() as u64;
    Ok(Outcome {
        seconds: began.elapsed().as_secs_f64(),
        operations,
        errors: streams.len() as u64 - operations,
        ..Outcome::default()
    })
}
