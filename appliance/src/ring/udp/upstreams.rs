//! Receives datagrams on listening and upstream sockets, and opens and closes the upstream sockets.

use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use config_sync::table::routing::{Limits, SocketId};
use socket2::{SockRef, Socket};

use crate::contract::{BufferId, Event, Kind, Origin, Part, SHARED_SOCKETS, Token, Why, size};
use crate::ring::buffers::{Buffers, Shape, check_count};
use crate::ring::error::RingError;
use crate::ring::features::Features;
use crate::ring::listen::listeners::Listeners;
use crate::ring::queue::{Completion, OF_CLIENTS, OF_ENDPOINTS, Queue};
use crate::ring::sys::calls;
use crate::ring::sys::errno::{why, why_unopened};
use crate::ring::sys::options::{bind_interface, bind_source, set_datagram_options};
use crate::ring::turn::Turn;
use crate::ring::udp::batch::{Down, Sends};
use crate::ring::udp::control::{NAME, PKTINFO, control_room, parse_address, read_control};
use crate::ring::udp::files::Files;
use crate::ring::udp::path::{path_room, room_to};
use crate::ring::udp::promoted::{Promoted, SharedPath};
use crate::ring::udp::train::Train;
use crate::ring::user_data::{UserData, What};
use crate::stats::counters::Counters;

pub struct Udp {
    buffers: Buffers,
    /// By buffer: the datagrams in a received buffer.
    trains: Box<[Train]>,
    upstreams: Box<[Upstream]>,
    /// The upstream sockets.
    files: Files,
    /// Receives that begin at the end of the turn, when the buffers of this turn are back. Without
    /// any buffer, a receive fails at once.
    arming: Vec<(Kind, u32)>,
    /// Source addresses that had no free port in this round. Another search at once would find none
    /// either.
    out_of_ports: Vec<(bool, Origin, u32)>,
    /// Sockets of another process's flows, until they are attached.
    arrivals: Vec<Option<Arrival>>,
    sends: Sends,
    promoted: Promoted,
    down: Box<Shape>,
    up: Box<Shape>,
}

#[derive(Clone, Copy, Default)]
struct Upstream {
    generation: u32,
    /// The place of the socket in `files`.
    file: u32,
    life: Life,
    /// The socket is not connected, so each datagram carries the address of its sender.
    shared: bool,
    /// A receive is in flight or about to be.
    armed: bool,
    /// No receive may begin until `Receive`.
    halted: bool,
}

/// A connected socket that another process has too.
struct Arrival {
    /// The place of the socket in `files`.
    file: u32,
    peer: SocketAddr,
    /// Payload bytes that the path takes whole.
    room: u16,
    own: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    #[default]
    Free,
    Open,
    Closing,
}

impl Udp {
    /// See [`Ring::growth`](crate::ring::Ring::growth).
    pub const fn growth(limits: &Limits) -> usize {
        let buffers = 2 * if limits.buffers < 2 { 1 } else { limits.buffers as usize / 2 };
        let upstreams = limits.flows as usize + SHARED_SOCKETS as usize;
        buffers * OF_CLIENTS.size as usize + Sends::growth(buffers) + Promoted::growth(upstreams)
    }

    pub fn new(limits: Limits, features: &Features, queue: &Queue) -> Result<Self, RingError> {
        check_count(limits.buffers)?;
        let upstreams = limits.flows.saturating_add(SHARED_SOCKETS);
        let each = (limits.buffers / 2).max(1);
        Ok(Self {
            buffers: Buffers::new(&[OF_CLIENTS, OF_ENDPOINTS], each, queue)?,
            trains: vec![Train::default(); 2 * usize::from(each)].into(),
            upstreams: vec![Upstream::default(); upstreams as usize].into(),
            files: Files::new(upstreams, features, queue)?,
            arming: Vec::with_capacity(1024),
            out_of_ports: Vec::with_capacity(MOST_OUT_OF_PORTS),
            arrivals: Vec::new(),
            sends: Sends::new(2 * each, upstreams),
            promoted: Promoted::default(),
            down: Shape::new(NAME, control_room(&[size_of::<i32>(), PKTINFO])),
            up: Shape::new(0, control_room(&[size_of::<i32>()])),
        })
    }

    pub fn use_path(&mut self, path: SharedPath) {
        self.promoted.use_path(path);
    }

    /// `Promote`, `Tally` and `Demote` go there.
    pub fn promoted(&mut self) -> &mut Promoted {
        &mut self.promoted
    }

    pub fn buffers_free(&self) -> u64 {
        self.buffers.free()
    }

    /// `Receive`: begins when this turn's buffers are back.
    pub fn receive(&mut self, token: Token) {
        if token.kind == Kind::Upstream
            && let Some(upstream) = self.live(token.slot, token.generation)
        {
            upstream.halted = false;
        }
        self.arming.push((token.kind, token.slot));
    }

    /// `Halt` of an upstream socket.
    pub fn halt(&mut self, token: Token, queue: &mut Queue, turn: &mut Turn) {
        let Some(upstream) = self.live(token.slot, token.generation) else { return };
        upstream.halted = true;
        if upstream.armed {
            queue.cancel(UserData::new(What::ReceiveUp, token.slot, token.generation));
        } else {
            turn.push(token, Event::Stopped { why: None });
        }
    }

    /// Keeps a socket of another process's flow, and returns the number by which
    /// `Op::AttachUpstream` names it. `None`: there is no room, or the socket is not connected.
    pub fn arrive(&mut self, fd: OwnedFd, queue: &Queue) -> Option<u32> {
        let peer = SockRef::from(&fd).peer_addr().ok()?.as_socket()?;
        let (room, own) = (path_room(fd.as_fd(), &peer), self.promoted.own_address(fd.as_fd()));
        let file = self.files.put(fd, queue).ok()?;
        self.arrivals.push(Some(Arrival { file, peer, room, own }));
        Some(size(self.arrivals.len() - 1))
    }

    /// Closes what has arrived and was not attached.
    pub fn clear_arrivals(&mut self, queue: &Queue) {
        for Arrival { file, .. } in self.arrivals.drain(..).flatten() {
            self.files.close(file, queue);
        }
    }

    pub fn attach(&mut self, token: Token, incoming: u32) {
        let arrival = self.arrivals.get_mut(incoming as usize).and_then(Option::take);
        let Arrival { file, peer, room, own } =
            arrival.expect("a socket that arrived is attached once");
        let most = self.upstreams.len();
        let slot = &mut self.upstreams[token.slot as usize];
        assert_eq!(slot.life, Life::Free, "an upstream's slot is free before it is used again");
        let generation = token.generation;
        *slot =
            Upstream { generation, file, life: Life::Open, halted: true, ..Upstream::default() };
        self.sends.path(token).takes(room);
        self.promoted.arrived(token, own, &peer, most);
    }

    /// A copy of an upstream socket, for another process. `None`: no file is left.
    pub fn copy(&mut self, token: Token, queue: &mut Queue) -> Option<OwnedFd> {
        let file = self.live(token.slot, token.generation)?.file;
        self.files.copy(file, queue)
    }

    pub fn open(
        &mut self,
        token: Token,
        address: &SocketAddr,
        (source, interface): (Origin, u32),
        queue: &Queue,
        turn: &mut Turn,
    ) {
        let from = (address.is_ipv4(), source, interface);
        if self.out_of_ports.contains(&from) {
            return turn.push(token, Event::OpenFailed { why: Why::NoPorts });
        }
        let open = || open_connected(address, source, interface);
        let why = self.place(token, Some(address), open, queue, turn);
        if why == Some(Why::NoPorts) && self.out_of_ports.len() < MOST_OUT_OF_PORTS {
            self.out_of_ports.push(from);
        }
    }

    pub fn open_shared(&mut self, token: Token, ipv4: bool, queue: &Queue, turn: &mut Turn) {
        self.place(token, None, || open_shared(ipv4), queue, turn);
    }

    /// Opens a socket. `peer`: the address to connect to; `None`: the socket is shared. Returns why
    /// there is no socket.
    fn place(
        &mut self,
        token: Token,
        peer: Option<&SocketAddr>,
        open: impl FnOnce() -> io::Result<OwnedFd>,
        queue: &Queue,
        turn: &mut Turn,
    ) -> Option<Why> {
        let most = self.upstreams.len();
        let slot = &mut self.upstreams[token.slot as usize];
        assert_eq!(slot.life, Life::Free, "an upstream's slot is free before it is used again");
        if self.files.is_full() {
            turn.push(token, Event::OpenFailed { why: Why::NoFiles });
            return Some(Why::NoFiles);
        }
        let (files, promoted) = (&mut self.files, &mut self.promoted);
        let put = |fd: OwnedFd| {
            let room = peer.map(|peer| {
                promoted.opened(token, fd.as_fd(), peer, most);
                path_room(fd.as_fd(), peer)
            });
            Ok((files.put(fd, queue)?, room))
        };
        match open().and_then(put) {
            Ok((file, room)) => {
                if let Some(room) = room {
                    self.sends.path(token).takes(room);
                }
                let (generation, shared) = (token.generation, peer.is_none());
                let (life, fresh) = (Life::Open, Upstream::default());
                *slot = Upstream { generation, file, life, shared, ..fresh };
                None
            }
            Err(error) => {
                let why = why_unopened(&error);
                turn.push(token, Event::OpenFailed { why });
                Some(why)
            }
        }
    }

    pub fn close(&mut self, token: Token, queue: &mut Queue, turn: &mut Turn) {
        let Some(upstream) = self.live(token.slot, token.generation) else { return };
        upstream.life = Life::Closing;
        if upstream.armed {
            queue.cancel(UserData::new(What::ReceiveUp, token.slot, token.generation));
        } else {
            self.finish_close(token, queue, turn);
        }
    }

    pub fn send_up(&mut self, token: Token, buffer: BufferId, part: Part, turn: &mut Turn) {
        let file = self.live(token.slot, token.generation).map(|upstream| upstream.file);
        let target = file.map(|file| self.files.target(file));
        let train = self.trains[usize::from(buffer.0)];
        self.sends.add_up(token, target, (buffer, part), train, turn);
    }

    /// Sends through the shared socket in slot `via`. The token is that of the flow.
    pub fn send_via(&mut self, token: Token, via: u32, down: &Down, turn: &mut Turn) {
        let socket = self.upstreams.get(via as usize);
        let socket = socket.filter(|socket| socket.life == Life::Open && socket.shared);
        let target = socket.map(|socket| self.files.target(socket.file));
        let train = self.trains[usize::from(down.buffer.0)];
        let path = self.sends.path(token);
        // Only a header makes these calls worth their cost. The flow's pair keeps the answer.
        if down.part.head.1 > 0 && !path.is_known() {
            path.takes(room_to(&down.peer));
        }
        self.sends.add_down(token, target, down, train, turn);
    }

    pub fn send_down(&mut self, token: Token, down: Down, listeners: &Listeners, turn: &mut Turn) {
        let train = self.trains[usize::from(down.buffer.0)];
        self.sends.add_down(token, listeners.target(token.slot), &down, train, turn);
    }

    /// The payload of a buffer that was received and not answered: its datagrams in a row.
    pub fn payload(&self, buffer: BufferId) -> &[u8] {
        let Range { start, end } = self.trains[usize::from(buffer.0)].range();
        self.buffers.bytes(buffer.0, start, end)
    }

    pub fn recycle(&mut self, buffer: BufferId) {
        self.buffers.give_back(buffer);
    }

    /// Ends `carry_out`: sends, gives the buffers back, and only then begins receives.
    pub fn flush(&mut self, queue: &mut Queue, listeners: &mut Listeners, turn: &mut Turn) {
        self.flush_sends(queue, turn);
        self.out_of_ports.clear();
        self.buffers.publish();
        while let Some((kind, slot)) = self.arming.pop() {
            self.arm(kind, slot, queue, listeners);
        }
    }

    pub fn flush_sends(&mut self, queue: &mut Queue, turn: &mut Turn) {
        self.sends.flush(&mut self.buffers, queue, turn);
    }

    fn arm(&mut self, kind: Kind, slot: u32, queue: &mut Queue, listeners: &mut Listeners) {
        if kind == Kind::Socket {
            if let Some((target, user_data)) = listeners.arm_receive(slot) {
                // SAFETY: the shape lives as long as the ring, and the listener's descriptor is
                // closed only after the final completion.
                unsafe { queue.receive(target, (self.down.as_ptr(), OF_CLIENTS), user_data) };
            }
            return;
        }
        let upstream = &mut self.upstreams[slot as usize];
        if upstream.life == Life::Open && !upstream.armed && !upstream.halted {
            upstream.armed = true;
            let user_data = UserData::new(What::ReceiveUp, slot, upstream.generation);
            let target = self.files.target(upstream.file);
            let shape = if upstream.shared { &self.down } else { &self.up };
            // SAFETY: as above. The file is given up after the final completion.
            unsafe { queue.receive(target, (shape.as_ptr(), OF_ENDPOINTS), user_data) };
        }
    }

    /// Handles a completion of a receive on a listening socket.
    pub fn received_down(
        &mut self,
        completion: Completion,
        queue: &mut Queue,
        listeners: &mut Listeners,
        turn: &mut Turn,
        counters: &Counters,
    ) {
        let user_data = completion.user_data;
        let token = Token::socket(SocketId(user_data.slot));
        if let Some((id, filled)) = filled_buffer(&completion) {
            let received = self.buffers.receive(id, filled, &self.down);
            let (train, local) = read_control(&received);
            let peer = parse_address(received.name);
            let truncated = received.truncated;
            self.trains[usize::from(id)] = train;
            if listeners.is_live(user_data) {
                turn.push(token, train.event(BufferId(id), peer, local, truncated));
            } else {
                self.buffers.give_back(BufferId(id));
            }
        }
        if !completion.more() {
            let why = ending(&completion, counters);
            listeners.ended(user_data, why, queue, turn, counters);
        }
    }

    /// Handles a completion of a receive on an upstream socket.
    pub fn received_up(
        &mut self,
        completion: Completion,
        queue: &mut Queue,
        turn: &mut Turn,
        counters: &Counters,
    ) {
        let UserData { slot, generation, .. } = completion.user_data;
        let token = Token { kind: Kind::Upstream, slot, generation };
        let upstream = self.upstreams[slot as usize];
        let life = if upstream.generation == generation { upstream.life } else { Life::Free };
        if let Some((id, filled)) = filled_buffer(&completion) {
            let shape = if upstream.shared { &self.down } else { &self.up };
            let received = self.buffers.receive(id, filled, shape);
            let (train, local) = read_control(&received);
            let peer = parse_address(received.name);
            let truncated = received.truncated;
            self.trains[usize::from(id)] = train;
            match life {
                Life::Open => turn.push(token, train.event(BufferId(id), peer, local, truncated)),
                _ => self.buffers.give_back(BufferId(id)),
            }
        }
        if completion.more() || life == Life::Free {
            return;
        }
        self.upstreams[slot as usize].armed = false;
        if life == Life::Closing {
            return self.finish_close(token, queue, turn);
        }
        counters.rearms.add(1);
        turn.push(token, Event::Stopped { why: ending(&completion, counters) });
    }

    fn finish_close(&mut self, token: Token, queue: &mut Queue, turn: &mut Turn) {
        // Sends of this turn still name the file.
        self.flush_sends(queue, turn);
        let upstream = &mut self.upstreams[token.slot as usize];
        upstream.life = Life::Free;
        let file = upstream.file;
        self.files.close(file, queue);
        turn.push(token, Event::Closed);
    }

    fn live(&mut self, slot: u32, generation: u32) -> Option<&mut Upstream> {
        self.upstreams
            .get_mut(slot as usize)
            .filter(|upstream| upstream.generation == generation && upstream.life == Life::Open)
    }
}

/// The maximum number of addresses that are remembered within a round.
const MOST_OUT_OF_PORTS: usize = 16;

fn open_connected(address: &SocketAddr, source: Origin, interface: u32) -> io::Result<OwnedFd> {
    let fd = calls::socket(address, libc::SOCK_DGRAM)?;
    calls::set_option(fd.as_fd(), libc::SOL_UDP, libc::UDP_GRO, &1_i32)?;
    if interface > 0 {
        bind_interface(fd.as_fd(), interface)?;
    }
    bind_source(fd.as_fd(), source, false)?;
    calls::connect(fd.as_fd(), &(*address).into())?;
    Ok(fd)
}

/// Opens an unconnected UDP socket on a port of its own, for all local addresses of an IP version.
/// The kernel reports the destination address of each received datagram, and each sent datagram
/// states its source address.
///
/// # Errors
///
/// Errors of socket(2), setsockopt(2) and bind(2).
fn open_shared(ipv4: bool) -> io::Result<OwnedFd> {
    let all = if ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let address = SocketAddr::new(all, 0);
    let socket = calls::socket(&address, libc::SOCK_DGRAM)?;
    let socket = Socket::from(socket);
    if !ipv4 {
        socket.set_only_v6(true)?;
    }
    set_datagram_options(&socket, &address)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The buffer that a receive has filled, and how many bytes were filled.
fn filled_buffer(completion: &Completion) -> Option<(u16, usize)> {
    Some((completion.buffer()?, usize::try_from(completion.result).ok()?))
}

/// Why a receive has ended. A lack of buffers, an empty datagram and `Halt` are no errors.
fn ending(completion: &Completion, counters: &Counters) -> Option<Why> {
    match -completion.result {
        libc::ENOBUFS => {
            counters.buffer_shortages.add(1);
            None
        }
        libc::ECANCELED => None,
        errno if errno > 0 => Some(why(errno)),
        _ => None,
    }
}
