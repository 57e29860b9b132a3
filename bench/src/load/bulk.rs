//! Bulk: streams as fast as they go, one direction.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use monoio::io::AsyncReadRentExt;
use monoio::net::TcpStream;
use nix::sys::socket::{Shutdown, shutdown};

use super::Options;
use super::meter::Meter;
use super::pace::finish;
use crate::outcome::Outcome;
use crate::serve::stream::{self, Drain, send_some};
use crate::serve::wire;

#[derive(Clone, Copy)]
pub enum Direction {
    Up,
    Down,
}

pub async fn run(options: &Options, direction: Direction) -> anyhow::Result<Outcome> {
    let streams = connect(options, options.to, options.connections).await?;
    let meter = Rc::new(Meter::new(options.begin()?, options.warmup(), options.seconds()));
    let pattern: Rc<[u8]> = wire::pattern().into();
    let size = (options.size(256 << 10) as usize).min(wire::PERIOD);
    let tasks = streams.into_iter().map(|stream| {
        let (meter, pattern) = (Rc::clone(&meter), Rc::clone(&pattern));
        match direction {
            Direction::Down => monoio::spawn(download(stream, meter, None)),
            Direction::Up => monoio::spawn(async move {
                if upload(stream, &pattern, size, &meter).await.is_err() {
                    meter.failed();
                }
            }),
        }
    });
    finish(tasks.collect(), &meter).await;
    Ok(meter.outcome())
}

pub async fn connect(
    options: &Options,
    to: SocketAddr,
    count: u32,
) -> anyhow::Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for index in 0..count {
        let stream = stream::connect(to, options.source(index)).await;
        streams.push(stream.with_context(|| format!("connect to {to}"))?);
    }
    Ok(streams)
}

/// Ends with the interval; an end of the stream before that is an error. Reads no faster than
/// `rate`, in bytes per second.
pub async fn download(stream: TcpStream, meter: Rc<Meter>, rate: Option<f64>) {
    let (began, mut total) = (Instant::now(), 0_usize);
    let mut drain = Drain::new();
    loop {
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64(total as f64 / rate);
            monoio::time::sleep(due.saturating_sub(began.elapsed())).await;
        }
        let received = drain.receive(&stream).await;
        let now = Instant::now();
        match received {
            _ if meter.over(now) => return,
            Ok(count @ 1..) => {
                total += count;
                meter.moved(now, count)
            }
            Ok(0) | Err(_) => return meter.failed(),
        };
    }
}

/// Bytes count when the kernel takes them, which in the long run is when the sink does.
///
/// # Errors
/// Of the stream, and `InvalidData` if the sink did not get all that was sent.
async fn upload(
    mut stream: TcpStream,
    pattern: &[u8],
    size: usize,
    meter: &Meter,
) -> io::Result<()> {
    let mut sent = 0;
    loop {
        let position = sent % wire::PERIOD;
        let count = send_some(&stream, &pattern[position..position + size]).await?;
        sent += count;
        let now = Instant::now();
        if meter.over(now) {
            break;
        }
        meter.moved(now, count);
    }
    shutdown(stream.as_raw_fd(), Shutdown::Write)?;
    let (read, count) = stream.read_exact(Box::new([0; 8])).await;
    read?;
    if u64::from_le_bytes(*count) == sent as u64 {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}
