//! Hands tables to workers: a bounded channel and an eventfd each. The latest table wins.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam_channel::{Sender, TrySendError};

use crate::routing::{RoutingTable, Socket, SocketId, Transport};

/// What a worker is told.
#[derive(Debug)]
pub enum Command {
    /// Apply this table. `sockets` are this worker's own of the listening sockets that are new in
    /// it; they must be taken over first.
    Table { table: Arc<RoutingTable>, sockets: Vec<(SocketId, Transport, OwnedFd)> },
    /// Close everything now.
    Stop,
}

/// The way to one worker.
#[derive(Debug)]
pub struct Link {
    /// Bounded; one command of room is enough.
    pub commands: Sender<Command>,
    /// An eventfd that the worker waits for, written after each command.
    pub wake: Arc<OwnedFd>,
}

/// Opens the listening sockets of an address for so many workers, in their order.
pub type OpenListeners = Box<dyn FnMut(&Socket, usize) -> io::Result<Vec<OwnedFd>> + Send>;

/// An address could not be bound, and so nothing of the table was published.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {transport:?} {address}: {error}{}", hint(error))]
pub struct PublishError {
    pub transport: Transport,
    pub address: SocketAddr,
    #[source]
    pub error: io::Error,
}

/// Opens listening sockets and gives every worker each table whole, or, where workers are slower
/// than tables come, the latest.
pub struct Publisher {
    workers: Vec<Outbox>,
    open: OpenListeners,
    /// Sockets of the latest table that was given out.
    listening: BTreeSet<SocketId>,
    /// Sockets that have left the tables, with the workers that have not closed theirs yet. A TCP
    /// address can't be bound again in that time (a fraction of a second): new sockets would join
    /// the old ones in the kernel's group, and connections would still go to these. A UDP address
    /// may take long, until its flows are over; it is bound again at once, and a worker that still
    /// has the old socket keeps that one.
    closing: BTreeMap<SocketId, BTreeSet<usize>>,
    /// The latest table, while an address of it is still closing.
    pending: Option<Arc<RoutingTable>>,
}

impl Publisher {
    pub fn new(links: Vec<Link>, open: OpenListeners) -> Self {
        Self {
            workers: links.into_iter().map(Outbox::new).collect(),
            open,
            listening: BTreeSet::new(),
            closing: BTreeMap::new(),
            pending: None,
        }
    }

    /// Makes `table` the latest. If one of its addresses is still being closed by a worker, it goes
    /// out from [`Self::unlistened`] or [`Self::flush`] once that is done.
    ///
    /// # Errors
    /// An address can't be bound: then none is, and the table before stays the latest.
    pub fn publish(&mut self, table: RoutingTable) -> Result<Arc<RoutingTable>, PublishError> {
        let table = Arc::new(table);
        if must_wait(&self.closing, &table) {
            self.pending = Some(Arc::clone(&table));
        } else {
            self.give_out(Arc::clone(&table))?;
            self.pending = None;
        }
        self.deliver();
        Ok(table)
    }

    /// A worker has closed its socket of an address that left the table.
    ///
    /// # Errors
    /// A table that waited for this can't be published; the one before stays.
    pub fn unlistened(&mut self, worker: usize, socket: SocketId) -> Result<(), PublishError> {
        self.closed(worker, socket);
        self.flush()
    }

    /// Tries again what could not be sent because a channel was full or an address was closing.
    ///
    /// # Errors
    /// As [`Self::unlistened`].
    pub fn flush(&mut self) -> Result<(), PublishError> {
        let result = match self.pending.take_if(|table| !must_wait(&self.closing, table)) {
            Some(table) => self.give_out(table),
            None => Ok(()),
        };
        self.deliver();
        result
    }

    /// Whether anything waits for [`Self::flush`].
    pub fn has_pending(&self) -> bool {
        self.pending.is_some() || self.workers.iter().any(Outbox::is_waiting)
    }

    /// Tells every worker to close everything now.
    pub fn stop(&mut self) {
        self.pending = None;
        for worker in &mut self.workers {
            worker.stop = true;
        }
        self.deliver();
    }

    /// Opens what is new in the table, all or nothing, and puts the table in every outbox.
    fn give_out(&mut self, table: Arc<RoutingTable>) -> Result<(), PublishError> {
        let mut opened = Vec::new();
        for socket in table.sockets.iter().filter(|socket| !self.listening.contains(&socket.id)) {
            let error = |error| PublishError {
                transport: socket.transport,
                address: socket.address,
                error,
            };
            let files = (self.open)(socket, self.workers.len()).map_err(error)?;
            opened.push((socket.id, socket.transport, files));
        }
        for (id, transport, files) in opened {
            for (worker, file) in self.workers.iter_mut().zip(files) {
                worker.sockets.push((id, transport, file));
            }
        }
        let wanted: BTreeSet<_> = table.sockets.iter().map(|socket| socket.id).collect();
        self.closing.retain(|id, _| !wanted.contains(id));
        for id in self.listening.difference(&wanted) {
            // A worker that was never told of the socket will not report it: close it here.
            let workers = self.workers.iter_mut().enumerate();
            let users: BTreeSet<_> = workers
                .filter_map(|(i, worker)| (!worker.gone && !worker.take_back(*id)).then_some(i))
                .collect();
            if !users.is_empty() {
                self.closing.insert(*id, users);
            }
        }
        self.listening = wanted;
        for worker in &mut self.workers {
            worker.table = Some(Arc::clone(&table));
        }
        Ok(())
    }

    fn deliver(&mut self) {
        for index in 0..self.workers.len() {
            if self.workers[index].deliver().is_err() {
                self.workers[index].gone = true;
                self.closing.retain(|_, users| {
                    users.remove(&index);
                    !users.is_empty()
                });
            }
        }
    }

    fn closed(&mut self, worker: usize, socket: SocketId) {
        let Some(users) = self.closing.get_mut(&socket) else { return };
        users.remove(&worker);
        if users.is_empty() {
            self.closing.remove(&socket);
        }
    }
}

fn must_wait(closing: &BTreeMap<SocketId, BTreeSet<usize>>, table: &RoutingTable) -> bool {
    let tcp = |socket: &&Socket| socket.transport == Transport::Tcp;
    table.sockets.iter().filter(tcp).any(|socket| closing.contains_key(&socket.id))
}

/// What one worker has not been sent yet.
struct Outbox {
    link: Link,
    table: Option<Arc<RoutingTable>>,
    /// New sockets, of this table or of one before it that was never sent.
    sockets: Vec<(SocketId, Transport, OwnedFd)>,
    stop: bool,
    /// The worker has hung up.
    gone: bool,
}

struct HungUp;

impl Outbox {
    fn new(link: Link) -> Self {
        Self { link, table: None, sockets: Vec::new(), stop: false, gone: false }
    }

    fn is_waiting(&self) -> bool {
        !self.gone && (self.table.is_some() || self.stop)
    }

    /// Drops a socket that was not sent yet; false if it was.
    fn take_back(&mut self, id: SocketId) -> bool {
        let before = self.sockets.len();
        self.sockets.retain(|(socket, _, _)| *socket != id);
        self.sockets.len() < before
    }

    fn deliver(&mut self) -> Result<(), HungUp> {
        if self.gone {
            return Ok(());
        }
        if let Some(table) = self.table.take() {
            let sockets = std::mem::take(&mut self.sockets);
            match self.send(Command::Table { table, sockets })? {
                Some(Command::Table { table, sockets }) => {
                    self.table = Some(table);
                    self.sockets = sockets;
                    return Ok(());
                }
                Some(Command::Stop) | None => {}
            }
        }
        if self.stop {
            self.stop = self.send(Command::Stop)?.is_some();
        }
        Ok(())
    }

    /// Gives the command back if the channel is full.
    fn send(&self, command: Command) -> Result<Option<Command>, HungUp> {
        match self.link.commands.try_send(command) {
            Ok(()) => {
                // It fails only where the eventfd's count is full, and then it wakes anyway.
                _ = nix::unistd::write(&self.link.wake, &1u64.to_ne_bytes());
                Ok(None)
            }
            Err(TrySendError::Full(command)) => Ok(Some(command)),
            Err(TrySendError::Disconnected(_)) => Err(HungUp),
        }
    }
}

/// What to do about the commonest errors of bind(2).
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE"
        }
        io::ErrorKind::AddrInUse => "; another process listens there",
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has the address",
        _ => "",
    }
}
