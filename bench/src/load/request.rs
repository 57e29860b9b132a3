//! Requests over kept connections, alone or beside bulk.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use monoio::io::AsyncReadRent;
use monoio::net::TcpStream;

use super::meter::Meter;
use super::pace::{Pace, drive, finish};
use super::{Options, bulk};
use crate::outcome::Outcome;
use crate::serve::stream::{connect, discard, send_all};
use crate::serve::wire;

pub async fn requests(options: &Options) -> anyhow::Result<Outcome> {
    let clients = connect_all(options).await?;
    let meter = Rc::new(Meter::new(options.begin()?, options.warmup(), options.seconds()));
    drive(clients, options.rate, &meter, Client::run).await?;
    Ok(meter.outcome())
}

/// Operations and latency of the requests; bytes and errors of both.
pub async fn mixed(options: &Options) -> anyhow::Result<Outcome> {
    let bulk_to = options.bulk_to.unwrap_or(options.to);
    let streams = bulk::connect(options, bulk_to, options.streams).await?;
    if options.bulk_to.is_none() {
        for stream in &streams {
            send_all(stream, &wire::request(wire::ENDLESS, wire::Sequence::default())).await?;
        }
    }
    let clients = connect_all(options).await?;
    let now = options.begin()?;
    let meter = Rc::new(Meter::new(now, options.warmup(), options.seconds()));
    let bulk = Rc::new(Meter::new(now, options.warmup(), options.seconds()));
    let rate = options.bulk_rate.map(|rate| rate * 1e6 / f64::from(options.streams.max(1)));
    let downloads: Vec<_> = streams
        .into_iter()
        .map(|stream| monoio::spawn(bulk::download(stream, Rc::clone(&bulk), rate)))
        .collect();
    drive(clients, options.rate, &meter, Client::run).await?;
    finish(downloads, &bulk).await;
    let (mut outcome, bulk) = (meter.outcome(), bulk.outcome());
    outcome.bytes += bulk.bytes;
    outcome.errors += bulk.errors;
    Ok(outcome)
}

async fn connect_all(options: &Options) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::new();
    for number in 0..options.connections {
        let source = options.source(number);
        clients.push(Client {
            stream: connect(options.to, source).await.context("connect")?,
            to: options.to,
            source,
            number,
            sent: 0,
            size: options.size(64),
            head: Vec::with_capacity(HEAD),
            scratch: vec![0; 256 << 10],
        });
    }
    Ok(clients)
}

/// As much of an answer is read, in case it is all; of longer ones the rest is discarded.
const HEAD: usize = 4_096;

struct Client {
    stream: TcpStream,
    to: SocketAddr,
    source: Option<IpAddr>,
    number: u32,
    sent: u32,
    size: u32,
    head: Vec<u8>,
    /// Never touched, and takes no memory: what stands behind the head is only counted.
    scratch: Vec<u8>,
}

impl Client {
    async fn run(mut self, pace: Pace, meter: Rc<Meter>) {
        while let Some(start) = pace.next(&meter).await {
            match self.exchange().await {
                Ok(()) => meter.done(start, Instant::now(), self.size as usize),
                Err(_) => {
                    meter.failed();
                    self.reconnect().await;
                }
            }
        }
    }

    async fn exchange(&mut self) -> io::Result<()> {
        self.sent = self.sent.wrapping_add(1);
        let number = u64::from(self.number) << 32 | u64::from(self.sent);
        let sequence = number.to_le_bytes();
        send_all(&self.stream, &wire::request(self.size, sequence)).await?;
        let size = self.size as usize;
        let mut received = 0;
        // Until the sequence number is whole; nearly always that is one read.
        while received < size.min(sequence.len()) {
            let (count, head) = self.stream.read(std::mem::take(&mut self.head)).await;
            self.head = head;
            let count = count?;
            let expected = &sequence[received..];
            let checked = count.min(expected.len()).min(size - received);
            if count == 0 || count > size - received || self.head[..checked] != expected[..checked]
            {
                return Err(io::ErrorKind::InvalidData.into());
            }
            received += count;
        }
        while received < size {
            let most = self.scratch.len().min(size - received);
            match discard(&self.stream, &mut self.scratch[..most]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => received += count,
            }
        }
        Ok(())
    }

    /// An answer may be on its way on the old connection: that one is of no more use.
    async fn reconnect(&mut self) {
        monoio::time::sleep(Duration::from_millis(10)).await;
        if let Ok(stream) = connect(self.to, self.source).await {
            self.stream = stream;
        }
    }
}
