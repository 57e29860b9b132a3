//! What workers do often, each as a batch that one thread does again and again.

use std::hint::black_box;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use config_sync::table::routing::{Protocol, SocketId};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use data_plane::stats::counters::Counter;
use data_plane::stats::records::{Record, SessionRecord};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use socket2::Socket;

use crate::contention::accept;

/// Something that workers do often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    /// socket(2) and close(2): a place in the descriptor table.
    Socket,
    /// recv(2) from a socket that has nothing: a look at the descriptor table. While others share
    /// the table, the kernel counts who uses the socket.
    Receive,
    /// A connection, from connect to close, both sides of it. With a group of listening sockets,
    /// each thread accepts what comes to its own.
    Connection,
    /// A count of all workers, as of `max_sessions` and of a source's sessions.
    Count,
    /// A counter for the metrics. It has one writer.
    Counter,
    /// A line of the access log, on its way to the control thread.
    Record,
    /// The control thread's part of it, without the line's text.
    Receipt,
    /// 4 KiB of the allocator's, there and back. Sessions and flows have their memory from the
    /// start.
    Allocate,
}

/// Whether threads share what they work on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum With {
    All,
    Oneself,
}

/// A cache line of its own, and the next, which some processors load with it.
#[repr(align(128))]
#[derive(Default)]
struct Line<T>(T);

/// The most records that wait in a channel, as in Ringway.
const RECORDS: usize = 8_192;

/// What threads of a run may share.
pub struct Shared {
    count: Line<AtomicU64>,
    /// One for each thread, side by side.
    counters: Vec<Counter>,
    /// One for all threads, or one for each.
    channels: Vec<(Sender<Record>, Receiver<Record>)>,
    /// One for each thread.
    listeners: Vec<(SocketAddr, Socket)>,
    /// All threads have ended but the one that receives.
    pub over: AtomicBool,
}

impl Shared {
    pub fn new(act: Act, with: With, threads: usize) -> anyhow::Result<Self> {
        let channels = match (act, with) {
            (Act::Record | Act::Receipt, With::All) => 1,
            (Act::Record | Act::Receipt, With::Oneself) => threads,
            _ => 0,
        };
        let mut listeners = Vec::new();
        let groups = match (act, with) {
            (Act::Connection, With::All) => vec![threads],
            (Act::Connection, With::Oneself) => vec![1; threads],
            _ => Vec::new(),
        };
        for sockets in groups {
            let (address, group) = accept::listen(sockets, true)?;
            listeners.extend(group.into_iter().map(|socket| (address, socket)));
        }
        Ok(Self {
            count: Line::default(),
            counters: (0..threads).map(|_| Counter::default()).collect(),
            channels: (0..channels).map(|_| bounded(RECORDS)).collect(),
            listeners,
            over: AtomicBool::new(false),
        })
    }

    /// Takes records until all other threads have ended. Returns how many.
    pub fn receive(&self) -> u64 {
        let mut received = 0;
        while !self.channels.is_empty() && !self.over.load(Ordering::Relaxed) {
            let before = received;
            for (_, receiver) in &self.channels {
                received += receiver.try_iter().fold(0, |count, _| count + 1);
            }
            if received == before {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        received
    }
}

/// Does some acts, and returns how many.
pub type Batch<'s> = Box<dyn FnMut() -> anyhow::Result<u64> + 's>;

/// Batches of an act, for one of the threads.
pub fn batch(act: Act, with: With, shared: &Shared, thread: usize) -> anyhow::Result<Batch<'_>> {
    if matches!(act, Act::Socket | Act::Receive) && with == With::Oneself {
        unshare(CloneFlags::CLONE_FILES).context("a descriptor table of one's own")?;
    }
    Ok(match act {
        Act::Socket => repeated(|| {
            let flags = SockFlag::SOCK_CLOEXEC;
            drop(socket(AddressFamily::Inet, SockType::Stream, flags, None)?);
            Ok(())
        }),
        Act::Receive => {
            let socket = UdpSocket::bind(("127.0.0.1", 0))?;
            socket.set_nonblocking(true)?;
            repeated(move || {
                anyhow::ensure!(socket.recv(&mut [0]).is_err(), "nobody sends");
                Ok(())
            })
        }
        Act::Connection => {
            let (address, listener) = &shared.listeners[thread];
            repeated(move || {
                drop(accept::connect(*address)?);
                while let Ok(accepted) = listener.accept() {
                    drop(accepted);
                }
                Ok(())
            })
        }
        Act::Count => {
            let own = (with == With::Oneself).then(Line::<AtomicU64>::default);
            repeated(move || {
                let Line(count) = own.as_ref().unwrap_or(&shared.count);
                count.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        }
        Act::Counter => {
            let own = (with == With::Oneself).then(Line::<Counter>::default);
            repeated(move || {
                let counter = own.as_ref().map_or(&shared.counters[thread], |own| &own.0);
                black_box(counter).add(1);
                Ok(())
            })
        }
        Act::Record | Act::Receipt => {
            let (sender, _) = &shared.channels[thread % shared.channels.len()];
            repeated(move || send(sender))
        }
        Act::Allocate => repeated(|| {
            drop(black_box(Vec::<u8>::with_capacity(4_096)));
            Ok(())
        }),
    })
}

fn repeated<'s>(mut act: impl FnMut() -> anyhow::Result<()> + 's) -> Batch<'s> {
    const ACTS: u64 = 64;
    Box::new(move || {
        for _ in 0..ACTS {
            act()?;
        }
        Ok(ACTS)
    })
}

/// Sends a record, as that of a session's end.
fn send(sender: &Sender<Record>) -> anyhow::Result<()> {
    let at = SocketAddr::from(([192, 0, 2, 1], 443));
    let session = SessionRecord::new(Protocol::Tcp, SocketId(0), (at, at), 1, 2);
    let mut record = Record::Closed(black_box(session));
    loop {
        record = match sender.try_send(record) {
            Ok(()) => return Ok(()),
            // A worker leaves the line out. Here the receiver is given time.
            Err(TrySendError::Full(record)) => {
                std::thread::sleep(Duration::from_millis(1));
                record
            }
            Err(TrySendError::Disconnected(_)) => anyhow::bail!("nobody receives"),
        };
    }
}
