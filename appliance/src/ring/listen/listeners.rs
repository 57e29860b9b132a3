//! Holds a worker's listening sockets: accepts, and gives a socket up without harm to any client.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use config_sync::table::address::UNIX_CLIENT;
use config_sync::table::routing::{SocketId, SocketOptions, Transport};
use io_uring::types::Timespec;
use socket2::SockRef;

use crate::contract::{Event, Token, Why};
use crate::ring::listen::steering;
use crate::ring::queue::{Completion, Queue, Target};
use crate::ring::sys::calls;
use crate::ring::sys::errno::why;
use crate::ring::sys::options::set_tcp_options;
use crate::ring::turn::Turn;
use crate::ring::user_data::{UserData, What};
use crate::stats::counters::Counters;

/// The maximum number of connections that were accepted and not yet adopted or refused, all of one
/// turn.
const INCOMING: u32 = 4096;

/// How long a handshake that has begun may still take when its listening socket is given up.
static LULL: Timespec = Timespec::new().nsec(200_000_000);
static AT_ONCE: Timespec = Timespec::new();

pub struct Listeners {
    /// By `SocketId`.
    sockets: Vec<Option<ListenSocket>>,
    incoming: Incoming,
    /// Connections that the client reset before they were handed over.
    aborted: u64,
    /// Counts all sockets so far, so that completions of two sockets in one slot differ.
    generation: u32,
}

struct ListenSocket {
    /// The control thread can find the descriptor as long as the socket is open here.
    fd: Arc<OwnedFd>,
    transport: Transport,
    /// The address that the socket is bound to. `None`: a Unix socket.
    local: Option<SocketAddr>,
    generation: u32,
    /// An accept or a receive is in flight: a multishot, unless `one`.
    armed: bool,
    /// UDP: no receive may begin until `Receive`.
    halted: bool,
    /// The accept in flight is for one connection, or was cancelled so that the next one is.
    one: bool,
    state: State,
    /// UDP: a socket for all addresses receives the datagrams for this address. This socket only
    /// sends.
    deaf: bool,
    /// UDP: the socket that was handed over anew. It takes this one's place when the receive is
    /// over.
    successor: Option<Arc<OwnedFd>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// TCP: for `LULL`, the socket turns new connections away.
    Lull,
    /// Another process goes on with the socket. The multishot was cancelled. Then a TCP socket is
    /// closed, and a UDP socket stays for sends.
    Released,
    /// The multishot was cancelled. The rest of the queue is handed over, and then the socket is
    /// closed.
    Closing,
}

impl Listeners {
    pub fn new() -> Self {
        Self { sockets: Vec::new(), incoming: Incoming::new(INCOMING), aborted: 0, generation: 0 }
    }

    /// Takes over a socket, which accepts or receives only when an op says so. If a UDP socket is
    /// still open under this id, the old socket is kept, because flows send through it. If the old
    /// socket is being closed, the new one follows it, and `Stopped` reports when.
    pub fn add(&mut self, socket: SocketId, transport: Transport, fd: Arc<OwnedFd>) {
        if self.sockets.len() <= socket.index() {
            self.sockets.resize_with(socket.index() + 1, || None);
        }
        if transport == Transport::Udp {
            self.deafen_beside(&fd);
        }
        match &mut self.sockets[socket.index()] {
            None => self.place(socket, transport, fd),
            Some(listener) => {
                assert_eq!(
                    transport,
                    Transport::Udp,
                    "a TCP socket's id is free before it is reused"
                );
                if listener.state == State::Closing {
                    listener.successor = Some(fd);
                } else if std::mem::take(&mut listener.deaf) {
                    let _ = calls::disconnect(listener.fd.as_fd());
                }
            }
        }
    }

    /// `fd` may be a socket for all addresses. Then all other sockets of its port are leaving. The
    /// kernel would give them the datagrams to their addresses, of new clients too, as long as
    /// their last flows are in use. So each of them is connected to itself: then it receives from
    /// nobody else, and can still send to anyone. If the connect fails, new clients of that address
    /// wait.
    fn deafen_beside(&mut self, fd: &OwnedFd) {
        let Some(local) = local_address(fd).filter(|local| local.ip().is_unspecified()) else {
            return;
        };
        for listener in self.sockets.iter_mut().flatten() {
            let Some(of) = listener.local else { continue };
            listener.deaf |= listener.transport == Transport::Udp
                && of.port() == local.port()
                && of.is_ipv4() == local.is_ipv4()
                && !of.ip().is_unspecified()
                && calls::connect(listener.fd.as_fd(), &of.into()).is_ok();
        }
    }

    fn place(&mut self, socket: SocketId, transport: Transport, fd: Arc<OwnedFd>) {
        let local = local_address(&fd);
        self.generation = self.generation.wrapping_add(1) & Token::MAX_GENERATION;
        let (generation, state) = (self.generation, State::Open);
        self.sockets[socket.index()] = Some(ListenSocket {
            fd,
            transport,
            local,
            generation,
            armed: false,
            halted: false,
            one: false,
            state,
            deaf: false,
            successor: None,
        });
    }

    pub fn aborted(&self) -> u64 {
        self.aborted
    }

    /// Whether no more connections can be handed over before some are adopted or refused.
    pub fn is_full(&self) -> bool {
        self.incoming.free.is_empty()
    }

    pub fn take(&mut self, incoming: u32) -> Option<OwnedFd> {
        self.incoming.take(incoming)
    }

    pub fn refuse(&mut self, incoming: u32) {
        if let Some(fd) = self.incoming.take(incoming) {
            calls::reset_on_close(fd.as_fd());
        }
    }

    pub fn configure(&self, slot: u32, options: &SocketOptions) {
        if let Some(listener) = self.get(slot) {
            // If the kernel does not take a value, the old value stays in force.
            let _ = set_tcp_options(listener.fd.as_fd(), options);
        }
    }

    pub fn accept(&mut self, slot: u32, queue: &mut Queue) {
        let Some(listener) = self.get_mut(slot) else { return };
        if !listener.armed && listener.state == State::Open {
            (listener.armed, listener.one) = (true, false);
            queue.accept(
                listener.fd.as_fd(),
                UserData::new(What::Accept, slot, listener.generation),
            );
        }
    }

    /// Accepts one connection. A multishot in flight is cancelled.
    pub fn accept_one(&mut self, slot: u32, queue: &mut Queue) {
        let Some(listener) = self.get_mut(slot) else { return };
        if listener.state != State::Open || listener.one && listener.armed {
            return;
        }
        let user_data = UserData::new(What::Accept, slot, listener.generation);
        listener.one = true;
        match std::mem::replace(&mut listener.armed, true) {
            true => queue.cancel(user_data),
            false => queue.accept_one(listener.fd.as_fd(), user_data),
        }
    }

    /// The socket of a UDP listener that must receive now, and the user data for the receive.
    pub fn arm_receive(&mut self, slot: u32) -> Option<(Target, UserData)> {
        let listener = self.get_mut(slot)?;
        if listener.armed || listener.halted || listener.state != State::Open {
            return None;
        }
        listener.armed = true;
        let user_data = UserData::new(What::ReceiveDown, slot, listener.generation);
        Some((Target::Plain(listener.fd.as_raw_fd()), user_data))
    }

    /// `Halt` of a UDP listener.
    pub fn halt(&mut self, slot: u32, queue: &mut Queue, turn: &mut Turn) {
        let Some(listener) = self.get_mut(slot) else { return };
        if listener.state != State::Open {
            return;
        }
        listener.halted = true;
        if listener.armed {
            queue.cancel(UserData::new(What::ReceiveDown, slot, listener.generation));
        } else {
            turn.push(Token::socket(SocketId(slot)), Event::Stopped { why: None });
        }
    }

    /// `Receive` of a UDP listener.
    pub fn hear(&mut self, slot: u32) {
        if let Some(listener) = self.get_mut(slot) {
            listener.halted = false;
        }
    }

    /// The socket to send replies from.
    pub fn target(&self, slot: u32) -> Option<Target> {
        Some(Target::Plain(self.get(slot)?.fd.as_raw_fd()))
    }

    pub fn unlisten(&mut self, slot: u32, queue: &mut Queue, turn: &mut Turn) {
        let Some(listener) = self.get_mut(slot) else { return };
        match listener.transport {
            Transport::Tcp => {
                listener.state = State::Lull;
                let lull = match listener.local {
                    // A connection to a Unix socket has no handshake that takes time.
                    None => &AT_ONCE,
                    Some(_) => &LULL,
                };
                // Without the filter (no memory for it), new connections are still accepted during
                // the lull. There is no other harm.
                if listener.local.is_some() {
                    let _ = steering::refuse_new_connections(listener.fd.as_fd());
                }
                queue.timeout(lull, UserData::new(What::Lull, slot, listener.generation));
            }
            Transport::Udp => {
                listener.state = State::Closing;
                listener.successor = None;
                if listener.armed {
                    queue.cancel(UserData::new(What::ReceiveDown, slot, listener.generation));
                } else {
                    self.close(slot, queue, turn);
                }
            }
        }
    }

    /// Accepts what waits on all sockets that accept, as far as there is room.
    pub fn look(&mut self, turn: &mut Turn) {
        for slot in 0..u32::try_from(self.sockets.len()).unwrap_or(u32::MAX) {
            while !self.is_full()
                && let Some(listener) = self.get(slot)
                && listener.transport == Transport::Tcp
                && listener.state == State::Open
                && listener.armed
            {
                let one = listener.one;
                match calls::accept(listener.fd.as_fd()) {
                    Ok(fd) => {
                        self.hand_over(slot, fd, turn);
                        // The proxy asks for the next one, if there is a place.
                        if one {
                            break;
                        }
                    }
                    Err(error) if is_passing(&error) => {}
                    Err(_) => break,
                }
            }
        }
    }

    /// Stops accepting or receiving on a socket that another process has too.
    pub fn release(&mut self, slot: u32, queue: &mut Queue, turn: &mut Turn) {
        let Some(listener) = self.get_mut(slot) else { return };
        listener.state = State::Released;
        if listener.armed {
            let what = match listener.transport {
                Transport::Tcp => What::Accept,
                Transport::Udp => What::ReceiveDown,
            };
            queue.cancel(UserData::new(what, slot, listener.generation));
        } else if listener.one {
            // It rests, and leaves what waits to the other process.
            self.sockets[slot as usize] = None;
            turn.push(Token::socket(SocketId(slot)), Event::Unlistened);
        } else {
            self.released(slot, queue, turn);
        }
    }

    /// Nothing more comes by itself through a socket that another process has too. For each new
    /// connection the kernel wakes one of the two processes. It may have woken this one in vain, so
    /// what waits now is accepted here.
    fn released(&mut self, slot: u32, queue: &mut Queue, turn: &mut Turn) {
        match self.get(slot).map(|listener| listener.transport) {
            Some(Transport::Tcp) => self.close(slot, queue, turn),
            Some(Transport::Udp) => {
                turn.push(Token::socket(SocketId(slot)), Event::Stopped { why: None });
            }
            None => {}
        }
    }

    /// The lull is over.
    pub fn lulled(&mut self, user_data: UserData, queue: &mut Queue, turn: &mut Turn) {
        let Some(listener) = self.get_live(user_data) else { return };
        listener.state = State::Closing;
        if listener.armed {
            queue.cancel(UserData { what: What::Accept, ..user_data });
        } else {
            self.close(user_data.slot, queue, turn);
        }
    }

    pub fn accepted(
        &mut self,
        completion: Completion,
        queue: &mut Queue,
        turn: &mut Turn,
        counters: &Counters,
    ) {
        let Completion { user_data, result, .. } = completion;
        if result >= 0 {
            // SAFETY: the kernel has just opened this descriptor, and nobody else has it.
            let fd = unsafe { OwnedFd::from_raw_fd(result) };
            self.hand_over(user_data.slot, fd, turn);
        }
        if !completion.more() {
            let why = if result < 0 { why_not_accepted(-result) } else { None };
            self.ended(user_data, why, queue, turn, counters);
        }
    }

    /// The multishot of a socket has made its last completion.
    pub fn ended(
        &mut self,
        user_data: UserData,
        why: Option<Why>,
        queue: &mut Queue,
        turn: &mut Turn,
        counters: &Counters,
    ) {
        let Some(listener) = self.get_live(user_data) else { return };
        listener.armed = false;
        match listener.state {
            State::Open => {
                counters.rearms.add(u64::from(!listener.one));
                turn.push(Token::socket(SocketId(user_data.slot)), Event::Stopped { why });
            }
            State::Lull => {}
            State::Released => self.released(user_data.slot, queue, turn),
            State::Closing => match listener.successor.take() {
                Some(fd) => {
                    self.place(SocketId(user_data.slot), Transport::Udp, fd);
                    turn.push(
                        Token::socket(SocketId(user_data.slot)),
                        Event::Stopped { why: None },
                    );
                }
                None => self.close(user_data.slot, queue, turn),
            },
        }
    }

    /// Whether a completion belongs to a socket that still exists.
    pub fn is_live(&self, user_data: UserData) -> bool {
        self.get(user_data.slot).is_some_and(|listener| listener.generation == user_data.generation)
    }

    /// Hands over the rest of the accept queue, and closes the socket.
    fn close(&mut self, slot: u32, queue: &mut Queue, turn: &mut Turn) {
        while let Some(listener) = self.get(slot)
            && listener.transport == Transport::Tcp
        {
            if self.is_full() {
                // The rest is handed over when this turn's connections have been adopted or
                // refused.
                return queue
                    .timeout(&AT_ONCE, UserData::new(What::Lull, slot, listener.generation));
            }
            match calls::accept(listener.fd.as_fd()) {
                Ok(fd) => self.hand_over(slot, fd, turn),
                Err(error) if is_passing(&error) => {}
                Err(_) => break,
            }
        }
        self.sockets[slot as usize] = None;
        turn.push(Token::socket(SocketId(slot)), Event::Unlistened);
    }

    fn hand_over(&mut self, slot: u32, fd: OwnedFd, turn: &mut Turn) {
        let Some(listener) = self.get(slot) else { return };
        let Some(bound) = listener.local else {
            return self.announce(slot, fd, (UNIX_CLIENT, UNIX_CLIENT), turn);
        };
        let socket = SockRef::from(&fd);
        // The peer may have reset the connection already. Then the connection has no peer address,
        // and is not handed over.
        let Some(peer) = socket.peer_addr().ok().and_then(|address| address.as_socket()) else {
            self.aborted += 1;
            return;
        };
        let local = if bound.ip().is_unspecified() {
            socket.local_addr().ok().and_then(|address| address.as_socket())
        } else {
            Some(bound)
        };
        if let Some(local) = local {
            self.announce(slot, fd, (peer, local), turn);
        }
    }

    fn announce(
        &mut self,
        slot: u32,
        fd: OwnedFd,
        (peer, local): (SocketAddr, SocketAddr),
        turn: &mut Turn,
    ) {
        if let Some(incoming) = self.incoming.insert(fd) {
            let token = Token::socket(SocketId(slot));
            turn.push(token, Event::Accepted { incoming, peer, local });
        }
    }

    fn get(&self, slot: u32) -> Option<&ListenSocket> {
        self.sockets.get(slot as usize)?.as_ref()
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut ListenSocket> {
        self.sockets.get_mut(slot as usize)?.as_mut()
    }

    fn get_live(&mut self, user_data: UserData) -> Option<&mut ListenSocket> {
        self.get_mut(user_data.slot).filter(|listener| listener.generation == user_data.generation)
    }
}

fn local_address(fd: &OwnedFd) -> Option<SocketAddr> {
    SockRef::from(fd).local_addr().ok().and_then(|address| address.as_socket())
}

/// Why accepting stopped, if a pause makes sense. Errors of a single connection need no pause.
fn why_not_accepted(errno: i32) -> Option<Why> {
    match errno {
        libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => Some(why(errno)),
        libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP => Some(Why::Other(errno)),
        _ => None,
    }
}

/// An error of accept4(2) that concerns only the connection that it would have returned.
fn is_passing(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINTR
                | libc::ECONNABORTED
                | libc::ENETDOWN
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
        )
    )
}

/// Accepted connections between `Accepted` and its answer.
struct Incoming {
    slots: Vec<Option<OwnedFd>>,
    free: Vec<u32>,
}

impl Incoming {
    fn new(limit: u32) -> Self {
        Self { slots: (0..limit).map(|_| None).collect(), free: (0..limit).rev().collect() }
    }

    fn insert(&mut self, fd: OwnedFd) -> Option<u32> {
        let slot = self.free.pop()?;
        self.slots[slot as usize] = Some(fd);
        Some(slot)
    }

    fn take(&mut self, slot: u32) -> Option<OwnedFd> {
        let fd = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        Some(fd)
    }
}
