//! Keeps the table in force, and the listening sockets that have left it but have not closed yet.

use std::sync::Arc;

use config_sync::table::limit::Limit;
use config_sync::table::routing::{
    Backend, BackendId, ListenerId, Route, RouteId, RoutingTable, Socket, SocketId, Transport,
};

use crate::contract::Op;

#[derive(Debug)]
pub struct Tables {
    current: Arc<RoutingTable>,
    /// By `SocketId`: the position in the current table's `sockets`, or `ABSENT`.
    positions: Vec<u32>,
    leaving: Vec<Leaving>,
    /// By `SocketId`: the position in `leaving`, or `ABSENT`. Each datagram of a drain needs this
    /// look-up.
    places: Vec<u32>,
}

/// A socket that is not in the table in force. Connections and datagrams still in its queue are
/// routed by the last table that had the socket.
#[derive(Debug)]
struct Leaving {
    id: SocketId,
    table: Arc<RoutingTable>,
    position: usize,
    /// The ring was told to close the socket.
    closing: bool,
    /// Another process goes on with the socket. `Some(true)`: this process still receives.
    released: Option<bool>,
}

const ABSENT: u32 = u32::MAX;

/// The one listener of all clients of a socket, whatever they send. `None`: the ClientHello
/// decides.
pub fn sole_listener(table: &RoutingTable, socket: &Socket) -> Option<ListenerId> {
    let position = socket.listeners.any().filter(|_| !socket.reads_hello);
    position.map(|position| table.listeners[position].id)
}

/// The limit of a socket's listener, if it delays new sessions.
fn delaying<'t>(table: &'t RoutingTable, socket: &Socket) -> Option<&'t Limit> {
    let position = socket.listeners.any().filter(|_| !socket.reads_hello)?;
    table.listeners[position].limit.as_deref().filter(|limit| limit.delays)
}

/// The ops that a new table asks of the ring, and the table that the new one replaces.
pub struct Changes {
    pub ops: Vec<(SocketId, Op)>,
    pub previous: Arc<RoutingTable>,
    /// Older tables that nothing needs any more.
    pub retired: Vec<Arc<RoutingTable>>,
}

impl Tables {
    pub fn new() -> Self {
        Self {
            current: Arc::new(RoutingTable::empty()),
            positions: Vec::new(),
            leaving: Vec::new(),
            places: Vec::new(),
        }
    }

    pub fn current(&self) -> &RoutingTable {
        &self.current
    }

    /// The socket, and the table by which the socket's connections are routed.
    pub fn of(&self, id: SocketId) -> Option<(&RoutingTable, &Socket)> {
        if let Some(position) = self.position(id) {
            return Some((&self.current, &self.current.sockets[position]));
        }
        let leaving = &self.leaving[self.place(id)?];
        Some((&leaving.table, &leaving.table.sockets[leaving.position]))
    }

    /// The backend in the table in force, or else in the table that the socket left with.
    pub fn backend(&self, socket: SocketId, id: BackendId) -> Option<&Backend> {
        let find = |table: &RoutingTable| {
            table.backends.binary_search_by_key(&id, |backend| backend.id).ok()
        };
        if let Some(position) = find(&self.current) {
            return Some(&self.current.backends[position]);
        }
        let leaving = &self.leaving[self.place(socket)?];
        find(&leaving.table).map(|position| &leaving.table.backends[position])
    }

    /// The route in the table in force.
    pub fn route(&self, id: RouteId) -> Option<&Route> {
        self.current.routes.iter().find(|route| route.id == id)
    }

    /// The transport of the socket, if the socket should be listening.
    pub fn transport(&self, id: SocketId) -> Option<Transport> {
        self.of(id).map(|(_, socket)| socket.transport)
    }

    /// The limit of the socket's listener, if it delays new sessions.
    pub fn delays(&self, id: SocketId) -> Option<&Limit> {
        self.of(id).and_then(|(table, socket)| delaying(table, socket))
    }

    /// Whether the ring was told to close the socket.
    pub fn is_closing(&self, id: SocketId) -> bool {
        self.place(id).is_some_and(|place| self.leaving[place].closing)
    }

    /// Whether another process goes on with the socket, which is open here for sends.
    pub fn is_released(&self, id: SocketId) -> bool {
        let leaving = self.place(id).map(|place| &self.leaving[place]);
        leaving.is_some_and(|leaving| leaving.released.is_some() && !leaving.closing)
    }

    /// Whether datagrams may still come through a socket with which another process goes on.
    pub fn still_receives(&self, id: SocketId) -> bool {
        self.place(id).is_some_and(|place| self.leaving[place].released == Some(true))
    }

    /// The ring receives nothing more on a socket with which another process goes on.
    pub fn receives_no_more(&mut self, id: SocketId) {
        if let Some(place) = self.place(id) {
            self.leaving[place].released = Some(false);
        }
    }

    pub fn is_leaving(&self, id: SocketId) -> bool {
        self.place(id).is_some()
    }

    pub fn leaving(&self) -> impl Iterator<Item = SocketId> {
        self.leaving.iter().map(|leaving| leaving.id)
    }

    /// The number of open sockets, in the table or leaving.
    pub fn open_sockets(&self) -> usize {
        self.current.sockets.len() + self.leaving.len()
    }

    /// Whether the last table is in force, and no socket is open.
    pub fn are_over(&self) -> bool {
        self.current.drain.is_some() && self.open_sockets() == 0
    }

    pub fn apply(&mut self, table: Arc<RoutingTable>) -> Changes {
        debug_assert!(table.backends.is_sorted_by_key(|backend| backend.id), "see RoutingTable");
        let previous = std::mem::replace(&mut self.current, table);
        let size = self.current.sockets.iter().map(|socket| socket.id.index() + 1).max();
        let mut positions = vec![ABSENT; size.unwrap_or(0)];
        for (position, socket) in (0..).zip(&self.current.sockets) {
            positions[socket.id.index()] = position;
        }
        let old = std::mem::replace(&mut self.positions, positions);
        let mut ops = Vec::new();
        let mut retired = Vec::new();
        for socket in &self.current.sockets {
            let before = old.get(socket.id.index()).filter(|position| **position != ABSENT);
            let delays = delaying(&self.current, socket).is_some();
            match before {
                Some(before) => {
                    let before = &previous.sockets[*before as usize];
                    if before.options != socket.options && socket.transport == Transport::Tcp {
                        ops.push((socket.id, Op::Configure(socket.options)));
                    }
                    if delays && delaying(&previous, before).is_none() {
                        ops.push((socket.id, Op::AcceptOne));
                    }
                }
                None if socket.transport == Transport::Tcp => {
                    let accept = if delays { Op::AcceptOne } else { Op::Accept };
                    ops.extend([Op::Configure(socket.options), accept].map(|op| (socket.id, op)));
                }
                None => {
                    let back = take_back(&mut self.leaving, &mut self.places, socket.id);
                    // A UDP socket that comes back before its flows were over has been receiving
                    // all the time.
                    if back.as_ref().is_none_or(|leaving| leaving.closing) {
                        ops.push((socket.id, Op::Receive));
                    }
                    retired.extend(back.map(|leaving| leaving.table));
                }
            }
        }
        for (position, socket) in previous.sockets.iter().enumerate() {
            if self.position(socket.id).is_none() {
                let table = Arc::clone(&previous);
                // A UDP socket stays until its flows are over, because they still send through the
                // socket.
                let closing = socket.transport == Transport::Tcp;
                let handed_over = self.current.handed_over.contains(&socket.id);
                if handed_over {
                    ops.push((socket.id, Op::Release));
                } else if closing {
                    ops.push((socket.id, Op::Unlisten));
                }
                let released = handed_over.then_some(true);
                let at = socket.id.index();
                if self.places.len() <= at {
                    self.places.resize(at + 1, ABSENT);
                }
                self.places[at] = u32::try_from(self.leaving.len()).expect("ids are u32");
                self.leaving.push(Leaving { id: socket.id, table, position, closing, released });
            }
        }
        Changes { ops, previous, retired }
    }

    /// Notes that the ring must close a leaving socket. Returns true the first time.
    pub fn close(&mut self, id: SocketId) -> bool {
        let leaving = self.place(id).map(|place| &mut self.leaving[place]);
        leaving.is_some_and(|leaving| !std::mem::replace(&mut leaving.closing, true))
    }

    /// The ring has closed a leaving socket. Returns the table that the socket kept alive.
    pub fn unlistened(&mut self, id: SocketId) -> Option<Arc<RoutingTable>> {
        take_back(&mut self.leaving, &mut self.places, id).map(|leaving| leaving.table)
    }

    fn position(&self, id: SocketId) -> Option<usize> {
        at(&self.positions, id)
    }

    fn place(&self, id: SocketId) -> Option<usize> {
        at(&self.places, id)
    }
}

fn at(positions: &[u32], id: SocketId) -> Option<usize> {
    let position = positions.get(id.index()).filter(|position| **position != ABSENT);
    position.map(|position| *position as usize)
}

/// Takes a socket out of `leaving`. The last one moves to its place.
fn take_back(leaving: &mut Vec<Leaving>, places: &mut [u32], id: SocketId) -> Option<Leaving> {
    let place = at(places, id)?;
    let taken = leaving.swap_remove(place);
    places[id.index()] = ABSENT;
    if let Some(moved) = leaving.get(place) {
        places[moved.id.index()] = u32::try_from(place).expect("ids are u32");
    }
    Some(taken)
}
