//! Hands tables to workers. Each worker has a bounded channel and an eventfd. The latest table
//! wins. Requests about sessions and flows go the same way.

pub mod hand_over;
mod open_sockets;
pub mod socket_file;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam_channel::{Sender, TrySendError};
use nix::net::if_::if_indextoname;

use crate::publish::open_sockets::OpenSockets;
use crate::publish::socket_file::SocketFile;
use crate::table::address::Address;
use crate::table::moving::{Moving, MovingFlow};
use crate::table::request::Request;
use crate::table::routing::{Bound, RoutingTable, Socket, SocketId, Transport};

/// A command to a worker.
#[derive(Debug)]
pub enum Command {
    /// Apply this table. `sockets` are this worker's listening sockets that are new in the table.
    /// The worker must take them over first.
    Table { table: Arc<RoutingTable>, sockets: Vec<(SocketId, Transport, Arc<OwnedFd>)> },
    /// Answer this request about sessions and flows.
    Ask(Request),
    /// Adopt these sessions of another process, as many as there is room for, and keep them still.
    /// The answer has this number, and the handles of those that were adopted: the first ones.
    /// `sockets`: the connections of each, with the client and with the endpoint.
    Adopt { number: u64, sessions: Vec<Moving>, sockets: Vec<[OwnedFd; 2]> },
    /// Adopt these flows of another process, as many as there is room for, and keep them still. The
    /// answer has this number, and says of each whether it was adopted. `sockets`: the socket of
    /// each towards its endpoint.
    AdoptFlows { number: u64, flows: Vec<MovingFlow>, sockets: Vec<OwnedFd> },
    /// Accept what waits on all sockets. Another process that had them too has gone, and the kernel
    /// may have woken only that process.
    Look,
    /// Close everything now.
    Stop,
}

/// The commands that a worker's channel holds. One would be enough, but in an upgrade flows are
/// given to a worker and then it hears clients, and clients wait meanwhile.
pub const COMMANDS: usize = 4;

/// The connection to one worker.
#[derive(Debug)]
pub struct Link {
    /// A bounded channel.
    pub commands: Sender<Command>,
    /// The eventfd that the worker waits for. The publisher writes to the eventfd after each
    /// command.
    pub wake: Arc<OwnedFd>,
}

/// Opens the listening sockets of an address: one for each worker, in the workers' order. The last
/// argument says whether sockets of this process may still hold the address or an overlapping one.
pub type OpenListeners = Box<dyn FnMut(&Socket, usize, bool) -> io::Result<Vec<OwnedFd>> + Send>;

/// An address could not be bound, so nothing of the table was published.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}: {error}{}", place(bound), hint(bound, error))]
pub struct PublishError {
    pub bound: Bound,
    #[source]
    pub error: io::Error,
}

/// Opens listening sockets, and gives every worker each whole table. A worker that is slower than
/// the tables come gets only the latest.
pub struct Publisher {
    workers: Vec<Outbox>,
    open: OpenListeners,
    /// The sockets of the latest table that was given out.
    listening: BTreeMap<SocketId, Bound>,
    /// Sockets that have left the tables, with the workers that have not closed theirs yet. During
    /// that time (a fraction of a second) a TCP address can't be bound again: new sockets would
    /// join the old ones in the kernel's group, and connections would still go to the old ones. A
    /// UDP address may take long, until its flows end. A UDP address is bound again at once, and a
    /// worker that still has the old socket keeps the old socket.
    closing: BTreeMap<SocketId, Closing>,
    /// The latest table, while one of its addresses is still closing.
    pending: Option<Pending>,
    /// Sockets that [`Self::prepare`] opened for the next table.
    prepared: BTreeMap<SocketId, Opened>,
    /// The files of the Unix sockets in `listening`.
    socket_files: BTreeMap<SocketId, SocketFile>,
    /// Another process still has the Unix sockets, and their files are its files.
    shares_files: bool,
    /// The sockets that workers were given, one each, as long as the workers have them open.
    open_sockets: OpenSockets,
}

impl Publisher {
    pub fn new(links: Vec<Link>, open: OpenListeners) -> Self {
        Self {
            workers: links.into_iter().map(Outbox::new).collect(),
            open,
            listening: BTreeMap::new(),
            closing: BTreeMap::new(),
            pending: None,
            prepared: BTreeMap::new(),
            socket_files: BTreeMap::new(),
            shares_files: false,
            open_sockets: OpenSockets::default(),
        }
    }

    /// Opens the new sockets of a table that is about to be published, as far as that is possible
    /// now. Returns the errors of the rest, so that the caller can make the table again without the
    /// rest.
    pub fn prepare(&mut self, table: &RoutingTable) -> Vec<PublishError> {
        let mut errors = Vec::new();
        let beside = self.beside(table);
        for socket in &table.sockets {
            let id = socket.id;
            let known = self.listening.contains_key(&id) || self.prepared.contains_key(&id);
            if known || must_wait_for(&self.closing, socket) {
                continue;
            }
            match self.open(socket, &beside) {
                Ok(opened) => _ = self.prepared.insert(id, opened),
                Err(error) => errors.push(error),
            }
        }
        errors
    }

    /// Closes the sockets that [`Self::prepare`] opened, because their table will not come.
    pub fn discard(&mut self) {
        self.prepared.clear();
    }

    /// Makes `table` the latest. If a worker is still closing one of the table's addresses, the
    /// table goes out later, from [`Self::unlistened`] or [`Self::flush`].
    ///
    /// # Errors
    /// An address can't be bound. Then no address is bound, and the table before stays the latest.
    pub fn publish(&mut self, table: impl Into<Arc<RoutingTable>>) -> Result<(), PublishError> {
        let mut pending = Pending { table: table.into(), ready: 0 };
        if pending.must_wait(&self.closing) {
            self.pending = Some(pending);
        } else {
            let given = self.give_out(pending.table);
            self.prepared.clear();
            given?;
            self.pending = None;
        }
        self.deliver();
        Ok(())
    }

    /// Notes that a worker has closed its socket of an address that left the table.
    ///
    /// # Errors
    /// A table that waited for this can't be published. The table before stays.
    pub fn unlistened(&mut self, worker: usize, socket: SocketId) -> Result<(), PublishError> {
        self.closed(worker, socket);
        self.flush()
    }

    /// Sends again what could not be sent because a channel was full or an address was closing.
    ///
    /// # Errors
    /// The errors of [`Self::unlistened`].
    pub fn flush(&mut self) -> Result<(), PublishError> {
        let result = match self.pending.take_if(|pending| !pending.must_wait(&self.closing)) {
            Some(Pending { table, .. }) => self.give_out(table),
            None => Ok(()),
        };
        self.deliver();
        result
    }

    /// Sockets that have left the tables and that some worker has not closed yet.
    pub fn closing(&self) -> impl Iterator<Item = SocketId> {
        self.closing.keys().copied()
    }

    /// Whether anything waits for [`Self::flush`].
    #[cfg(test)]
    fn has_pending(&self) -> bool {
        self.pending.is_some() || self.workers.iter().any(Outbox::is_waiting)
    }

    /// Passes a request on to a worker. False: the worker has ended, or there is no such worker.
    pub fn ask(&mut self, worker: usize, request: Request) -> bool {
        self.tell(worker, Command::Ask(request))
    }

    /// Passes a command about sessions on to a worker. False: the worker has ended, or there is no
    /// such worker.
    pub(crate) fn tell(&mut self, worker: usize, command: Command) -> bool {
        let Some(outbox) = self.workers.get_mut(worker).filter(|outbox| !outbox.gone) else {
            return false;
        };
        outbox.requests.push_back(command);
        self.deliver();
        !self.workers[worker].gone
    }

    /// Whether a worker has not been sent a request yet, because it has not taken the one before.
    pub fn has_requests(&self) -> bool {
        self.workers.iter().any(|worker| !worker.gone && !worker.requests.is_empty())
    }

    /// Wakes every worker, so that it makes a turn.
    pub fn wake(&self) {
        for worker in self.workers.iter().filter(|worker| !worker.gone) {
            worker.wake();
        }
    }

    /// Tells every worker to close everything now.
    pub fn stop(&mut self) {
        self.pending = None;
        for worker in &mut self.workers {
            worker.stop = true;
        }
        self.deliver();
    }

    /// Opens the new sockets of the table, all or none, and puts the table in every outbox.
    fn give_out(&mut self, table: Arc<RoutingTable>) -> Result<(), PublishError> {
        let mut opened = Vec::new();
        let beside = self.beside(&table);
        let is_new = |socket: &&Socket| !self.listening.contains_key(&socket.id);
        let new: Vec<_> = table.sockets.iter().filter(is_new).collect();
        for socket in new {
            opened.push((
                socket.id,
                socket.transport,
                match self.prepared.remove(&socket.id) {
                    Some(opened) => opened,
                    None => self.open(socket, &beside)?,
                },
            ));
        }
        self.open_sockets.forget_closed();
        for (id, transport, opened) in opened {
            self.socket_files.extend(opened.file.map(|file| (id, file)));
            for (index, file) in opened.sockets.into_iter().enumerate().take(self.workers.len()) {
                let file = Arc::new(file);
                self.open_sockets.add(id, index, &file);
                self.workers[index].sockets.push((id, transport, file));
            }
        }
        let wanted: BTreeMap<_, _> =
            table.sockets.iter().map(|socket| (socket.id, socket.bound())).collect();
        self.closing.retain(|id, _| !wanted.contains_key(id));
        // Nobody new comes in while workers close the socket.
        self.socket_files.retain(|id, _| wanted.contains_key(id));
        let mut leaving = std::mem::take(&mut self.listening);
        leaving.retain(|id, _| !wanted.contains_key(id));
        let mut users: BTreeMap<SocketId, BTreeSet<usize>> = BTreeMap::new();
        for (i, worker) in self.workers.iter_mut().enumerate().filter(|(_, worker)| !worker.gone) {
            // A worker that was never told of a socket will not report its close, so the publisher
            // closes the socket here.
            let untold = worker.take_back(&leaving);
            for id in leaving.keys().filter(|id| !untold.contains(id)) {
                users.entry(*id).or_default().insert(i);
            }
        }
        self.closing.extend(
            users
                .into_iter()
                .map(|(id, users)| (id, Closing { bound: leaving[&id].clone(), users })),
        );
        self.listening = wanted;
        for worker in &mut self.workers {
            worker.table = Some(Arc::clone(&table));
        }
        Ok(())
    }

    /// The places of sockets that exist beside the new sockets of `table`.
    fn beside(&self, table: &RoutingTable) -> Beside {
        let ids: BTreeSet<_> = table.sockets.iter().map(|socket| socket.id).collect();
        let listening = self.listening.iter().filter(|(id, _)| !ids.contains(id));
        let closing = self.closing.values().map(|closing| &closing.bound);
        Beside {
            stays: by_port(table.sockets.iter().map(Socket::bound)),
            leaves: by_port(listening.map(|(_, bound)| bound).chain(closing).cloned()),
        }
    }

    fn open(&mut self, socket: &Socket, beside: &Beside) -> Result<Opened, PublishError> {
        let bound = socket.bound();
        let rejoins = !has_overlapping(&beside.stays, &bound)
            && (self.closing.contains_key(&socket.id) || has_overlapping(&beside.leaves, &bound));
        let error = |error| PublishError { bound, error };
        let sockets = (self.open)(socket, self.workers.len(), rejoins).map_err(error)?;
        let file = if self.shares_files { None } else { SocketFile::of(&socket.address) };
        Ok(Opened { sockets, file })
    }

    fn deliver(&mut self) {
        for index in 0..self.workers.len() {
            if self.workers[index].deliver().is_err() {
                self.workers[index].gone = true;
                self.workers[index].requests.clear();
                self.closing.retain(|_, closing| {
                    closing.users.remove(&index);
                    !closing.users.is_empty()
                });
            }
        }
    }

    fn closed(&mut self, worker: usize, socket: SocketId) {
        let Some(closing) = self.closing.get_mut(&socket) else { return };
        closing.users.remove(&worker);
        if closing.users.is_empty() {
            self.closing.remove(&socket);
        }
    }
}

/// The sockets of an address, one for each worker.
struct Opened {
    sockets: Vec<OwnedFd>,
    file: Option<SocketFile>,
}

/// Sockets by transport, IP version and port. Only sockets that agree in all three can overlap.
type ByPort = BTreeMap<(Transport, bool, u16), Vec<Bound>>;

fn port_of(bound: &Bound) -> Option<(Transport, bool, u16)> {
    bound.address.ip().map(|address| (bound.transport, address.is_ipv4(), address.port()))
}

fn by_port(sockets: impl Iterator<Item = Bound>) -> ByPort {
    let mut by_port = ByPort::new();
    for bound in sockets {
        if let Some(port) = port_of(&bound) {
            by_port.entry(port).or_default().push(bound);
        }
    }
    by_port
}

/// Whether the kernel takes one of the sockets for the same as `bound`, in part: one of the two is
/// on all addresses, or on all interfaces.
fn has_overlapping(sockets: &ByPort, bound: &Bound) -> bool {
    let others = port_of(bound).and_then(|port| sockets.get(&port));
    others.into_iter().flatten().any(|other| other != bound && overlap(other, bound))
}

fn overlap(a: &Bound, b: &Bound) -> bool {
    let everywhere = |of: &Bound| of.address.ip().is_some_and(|at| at.ip().is_unspecified());
    let interfaces = a.interface == b.interface || a.interface == 0 || b.interface == 0;
    interfaces && (a.address == b.address || everywhere(a) || everywhere(b))
}

/// The workers that have not closed their socket of an address yet.
struct Closing {
    bound: Bound,
    users: BTreeSet<usize>,
}

/// A listener that moves from all addresses to one address, or back, has its new socket beside the
/// old one. The kernel allows this within one process, and gives new clients to the socket with the
/// address. Two sockets that are to stay side by side are refused in any order, because a process
/// that starts with both is refused as well.
struct Beside {
    stays: ByPort,
    leaves: ByPort,
}

/// A table that waits for addresses to be closed.
struct Pending {
    table: Arc<RoutingTable>,
    /// The first `ready` sockets of the table wait for nothing any more. No socket begins to close
    /// while a table waits, so these sockets are not checked again after each close.
    ready: usize,
}

impl Pending {
    fn must_wait(&mut self, closing: &BTreeMap<SocketId, Closing>) -> bool {
        let rest = &self.table.sockets[self.ready..];
        self.ready += rest.iter().take_while(|socket| !must_wait_for(closing, socket)).count();
        self.ready < self.table.sockets.len()
    }
}

fn must_wait_for(closing: &BTreeMap<SocketId, Closing>, socket: &Socket) -> bool {
    socket.transport == Transport::Tcp && closing.contains_key(&socket.id)
}

/// Commands that one worker has not been sent yet.
struct Outbox {
    link: Link,
    table: Option<Arc<RoutingTable>>,
    /// New sockets of this table, or of an earlier table that was never sent.
    sockets: Vec<(SocketId, Transport, Arc<OwnedFd>)>,
    requests: VecDeque<Command>,
    look: bool,
    stop: bool,
    /// The worker has hung up.
    gone: bool,
}

struct HungUp;

impl Outbox {
    fn new(link: Link) -> Self {
        Self {
            link,
            table: None,
            sockets: Vec::new(),
            requests: VecDeque::new(),
            look: false,
            stop: false,
            gone: false,
        }
    }

    #[cfg(test)]
    fn is_waiting(&self) -> bool {
        !self.gone && (self.table.is_some() || self.stop)
    }

    /// Drops the leaving sockets that were not sent yet, and returns their ids.
    fn take_back(&mut self, leaving: &BTreeMap<SocketId, Bound>) -> BTreeSet<SocketId> {
        let unsent = self.sockets.extract_if(.., |(id, _, _)| leaving.contains_key(id));
        unsent.map(|(id, _, _)| id).collect()
    }

    fn deliver(&mut self) -> Result<(), HungUp> {
        if self.gone {
            return Ok(());
        }
        if let Some(table) = self.table.take() {
            let sockets = std::mem::take(&mut self.sockets);
            let unsent = self.send(Command::Table { table, sockets })?;
            if let Some(Command::Table { table, sockets }) = unsent {
                self.table = Some(table);
                self.sockets = sockets;
                return Ok(());
            }
        }
        while let Some(command) = self.requests.pop_front() {
            if let Some(command) = self.send(command)? {
                self.requests.push_front(command);
                break;
            }
        }
        if self.look {
            self.look = self.send(Command::Look)?.is_some();
        }
        if self.stop {
            self.stop = self.send(Command::Stop)?.is_some();
        }
        Ok(())
    }

    /// Sends a command. Gives the command back if the channel is full.
    fn send(&self, command: Command) -> Result<Option<Command>, HungUp> {
        match self.link.commands.try_send(command) {
            Ok(()) => {
                self.wake();
                Ok(None)
            }
            Err(TrySendError::Full(command)) => Ok(Some(command)),
            Err(TrySendError::Disconnected(_)) => Err(HungUp),
        }
    }

    fn wake(&self) {
        // The write fails only if the eventfd's count is full. Then the eventfd wakes the worker
        // anyway.
        _ = nix::unistd::write(&self.link.wake, &1u64.to_ne_bytes());
    }
}

fn place(bound: &Bound) -> String {
    let Bound { transport, address, interface } = bound;
    let word = match (address, transport) {
        (Address::Unix(_), _) => "",
        (_, Transport::Tcp) => "TCP ",
        (_, Transport::Udp) => "UDP ",
    };
    match if_indextoname(*interface) {
        Ok(name) if *interface > 0 => format!("{word}{address} ({})", name.to_string_lossy()),
        _ => format!("{word}{address}"),
    }
}

/// Advice for the most common errors of bind(2).
fn hint(bound: &Bound, error: &io::Error) -> &'static str {
    let is_unix = bound.address.unix().is_some();
    match error.kind() {
        io::ErrorKind::PermissionDenied if is_unix => {
            "; this process may not create the file there, or not give it its owner"
        }
        io::ErrorKind::AddrInUse if is_unix => {
            "; another process listens there, or the file is no socket"
        }
        io::ErrorKind::NotFound if is_unix => "; the directory must be there",
        io::ErrorKind::PermissionDenied => {
            "; ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE"
        }
        io::ErrorKind::AddrInUse => "; another process listens there",
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has the address",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
