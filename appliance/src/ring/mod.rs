//! Runs one worker's io_uring: ops in, events out. All unsafe code of Ringway is in this folder,
//! because only here do indices become descriptors and pointers.
//!
//! Multishot polls report the readiness of TCP connections, and direct non-blocking calls move the
//! bytes. Connections that are busy with small messages receive by multishots into provided
//! buffers. Datagrams come by multishot receives into provided buffers, and leave as batches.

pub mod bpf;
mod buffers;
pub mod error;
pub mod features;
pub mod listen;
mod queue;
pub mod sys;
mod tcp;
mod turn;
mod udp;
mod user_data;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use config_sync::table::routing::{Limits, SocketId, Transport};

use crate::contract::{BufferId, Kind, Op, Part, Token};
use crate::stats::counters::Counters;

pub use self::error::RingError;
pub use self::features::{Feature, Features};
pub use self::turn::Turn;
pub use self::udp::promoted::SharedPath;

use crate::ring::listen::listeners::Listeners;
use crate::ring::queue::{Completion, Queue};
use crate::ring::sys::calls;
use crate::ring::tcp::pairs::Tcp;
use crate::ring::tcp::stream::Streams;
use crate::ring::tcp::transfer::Wanted;
use crate::ring::udp::batch::Down;
use crate::ring::udp::upstreams::Udp;
use crate::ring::user_data::{UserData, What};

/// New connections that a turn takes. More of them wait for the next turn, so that in a flood the
/// sessions that live have their turn soon, and those that make room are gone.
const ACCEPTS: u32 = 64;

/// One io_uring with the sockets, pipes and buffers of a worker. All memory is allocated when the
/// ring is made, as the limits say. A ring belongs to the thread that made it.
pub struct Ring {
    /// The first field, so that the queue is closed first: the kernel must be done with the memory
    /// of the other fields.
    queue: Queue,
    listeners: Listeners,
    tcp: Tcp,
    udp: Udp,
    wake: OwnedFd,
    counters: Arc<Counters>,
}

impl Ring {
    /// The most bytes by which the ring's memory grows once it is made: what it fills then, and
    /// what it has written already is not in it. The rings that it shares with the kernel, pipes
    /// and sockets are the kernel's memory.
    pub const fn growth(limits: &Limits) -> usize {
        Queue::growth()
            + Udp::growth(limits)
            + Streams::growth(limits.buffers)
            + Tcp::growth(limits.pipes)
    }

    /// Opens the ring, on the thread that will use it. `wake` is an eventfd: a write to the eventfd
    /// ends a [`Ring::wait`].
    ///
    /// # Errors
    ///
    /// The kernel refuses the ring, or the memory or files for the ring.
    pub fn new(
        limits: Limits,
        features: &Features,
        wake: OwnedFd,
        counters: Arc<Counters>,
    ) -> Result<Self, RingError> {
        let queue = Queue::new(features)?;
        let udp = Udp::new(limits, features, &queue)?;
        let streams = Streams::new(limits.buffers, features, &queue)?;
        let tcp = Tcp::new(limits.sessions, limits.pipes, streams);
        queue.enable()?;
        let mut ring = Self { queue, listeners: Listeners::new(), tcp, udp, wake, counters };
        ring.watch_wake();
        Ok(ring)
    }

    /// Promoted flows go this way, once it is there.
    pub fn use_path(&mut self, path: SharedPath) {
        self.udp.use_path(path);
    }

    /// Takes over a listening socket, before the table that names it is applied. The socket accepts
    /// or receives when an op says so.
    pub fn listen(&mut self, socket: SocketId, transport: Transport, fd: impl Into<Arc<OwnedFd>>) {
        self.listeners.add(socket, transport, fd.into());
    }

    /// Keeps both connections of a session of another process, and returns the number by which
    /// `Op::Attach` names them.
    pub fn arrive(&mut self, sockets: [OwnedFd; 2]) -> u32 {
        self.tcp.arrive(sockets)
    }

    /// Keeps the socket of a flow of another process, and returns the number by which
    /// `Op::AttachUpstream` names it. `None`: there is no room, or the socket is not connected.
    pub fn arrive_upstream(&mut self, socket: OwnedFd) -> Option<u32> {
        self.udp.arrive(socket, &self.queue)
    }

    /// Closes what has arrived and was not attached.
    pub fn clear_arrivals(&mut self) {
        self.tcp.clear_arrivals();
        self.udp.clear_arrivals(&self.queue);
    }

    /// A copy of an upstream socket. `None`: no file is left.
    pub fn copy_upstream(&mut self, token: Token) -> Option<OwnedFd> {
        self.udp.copy(token, &mut self.queue)
    }

    /// Copies of a session's connections, with the client and with the endpoint. `None`: no file is
    /// left, or a connection is not there.
    pub fn copies(&mut self, token: Token) -> Option<[OwnedFd; 2]> {
        self.tcp.copies(token)
    }

    /// Accepts what waits on sockets that accept, though the kernel has told this ring of nothing.
    /// The events are added to `turn`.
    pub fn look(&mut self, turn: &mut Turn) {
        self.listeners.look(turn);
    }

    /// Carries out `ops` in their order. Afterwards `ops` and the turn's output are empty. The
    /// events of direct ops are added to `turn`.
    pub fn carry_out(&mut self, ops: &mut Vec<(Token, Op)>, turn: &mut Turn) {
        for (token, op) in ops.drain(..) {
            self.carry_out_one(token, op, turn);
        }
        self.udp.flush(&mut self.queue, &mut self.listeners, turn);
        turn.output.clear();
    }

    /// Submits the pending entries, and waits for events until `timeout` (`None`: without end;
    /// zero: not at all). Empties `turn` first, and then puts the events into it. Returns true if
    /// `wake` was written.
    ///
    /// # Errors
    ///
    /// Errors of io_uring_enter(2) that do not pass: the ring is of no use any more.
    pub fn wait(&mut self, timeout: Option<Duration>, turn: &mut Turn) -> io::Result<bool> {
        turn.events.clear();
        turn.bytes.clear();
        if self.queue.wait(timeout)? {
            self.counters.cq_overflows.add(1);
        }
        let (mut woken, mut accepts) = (false, 0);
        // Completions beyond the room for incoming connections wait for the next turn.
        for _ in 0..self.queue.waiting() {
            if self.listeners.is_full() {
                break;
            }
            let Some(completion) = self.queue.next() else { break };
            if completion.user_data.what != What::Accept {
                woken |= self.complete(completion, turn);
            } else if accepts < ACCEPTS {
                accepts += 1;
                self.complete(completion, turn);
            } else if let Some(oldest) = self.queue.put_off(completion) {
                self.complete(oldest, turn);
            }
        }
        self.queue.put_back();
        self.counters.turns.add(1);
        self.counters.aborted.set(self.listeners.aborted());
        self.counters.buffers_free.set(self.udp.buffers_free());
        self.counters.pipes_used.set(self.tcp.pipes_used());
        Ok(woken)
    }

    /// The datagrams of a buffer that came with `Datagrams`, one after the other, until the buffer
    /// was answered.
    pub fn payload(&self, buffer: BufferId) -> &[u8] {
        self.udp.payload(buffer)
    }

    fn carry_out_one(&mut self, token: Token, op: Op, turn: &mut Turn) {
        let Self { queue, listeners, tcp, udp, counters, .. } = self;
        match op {
            Op::Accept => listeners.accept(token.slot, queue),
            Op::AcceptOne => listeners.accept_one(token.slot, queue),
            Op::Configure(options) => listeners.configure(token.slot, &options),
            Op::Unlisten => {
                // Replies of this turn still name the descriptor.
                udp.flush_sends(queue, turn);
                listeners.unlisten(token.slot, queue, turn);
            }
            Op::Release => listeners.release(token.slot, queue, turn),
            Op::Refuse { incoming } => listeners.refuse(incoming),
            Op::Adopt { incoming } => {
                let fd = listeners.take(incoming).expect("incoming connections are answered once");
                tcp.adopt(token, fd, queue);
            }
            Op::Attach { incoming } => tcp.attach(token, incoming, queue),
            Op::Peek { at_least } => tcp.peek(token, at_least, turn),
            Op::Mark { from, at_least } => tcp.mark(token, from, at_least),
            Op::Unpace { side } => tcp.unpace(token, side, counters),
            Op::Connect { address, source, interface, options } => {
                tcp.connect(token, &address, (source, interface), &options, queue, turn);
            }
            Op::Abandon => tcp.abandon(token, queue, turn),
            Op::Move { from, mode, budget, to_eof } => {
                let wanted = Wanted { budget, to_eof };
                tcp.transfer(token, from, mode, wanted, (queue, turn), counters);
            }
            Op::Stream { from } => tcp.stream(token, from, queue, turn, counters),
            Op::Unstream { from } => tcp.unstream(token, from, queue),
            Op::Take { from, at_most, to_eof } => {
                tcp.take(token, from, Wanted { budget: at_most, to_eof }, turn);
            }
            Op::Give { to, start, len } => tcp.give(token, to, (start, len), turn),
            Op::Unacked { side } => tcp.unacked(token, side, turn),
            Op::Inspect { side } => tcp.inspect(token, side, turn),
            Op::Shutdown { side } => tcp.shutdown(token, side),
            Op::Close { reset } => tcp.close(token, reset, queue, turn),
            Op::Receive => receive(token, listeners, udp),
            Op::Halt => halt(token, (listeners, udp), queue, turn),
            Op::AttachUpstream { incoming } => udp.attach(token, incoming),
            Op::Open { address, source, interface } => {
                udp.open(token, &address, (source, interface), queue, turn);
            }
            Op::OpenShared { ipv4 } => udp.open_shared(token, ipv4, queue, turn),
            Op::SendUp { buffer, part } => udp.send_up(token, buffer, part, turn),
            Op::SendDown { buffer, from, peer, local } => {
                let part = Part::default();
                udp.send_down(token, Down { buffer, part, from, peer, local }, listeners, turn);
            }
            Op::Answer { buffer, part, peer, local } => {
                udp.send_down(token, Down::answer((buffer, part), peer, local), listeners, turn);
            }
            Op::SendVia { buffer, part, via, peer, local } => {
                let down = Down { buffer, part, from: token.slot, peer, local: Some(local) };
                udp.send_via(token, via, &down, turn);
            }
            Op::Recycle { buffer } => udp.recycle(buffer),
            Op::Promote { client, listener } => {
                udp.promoted().promote(token, (client, listener), turn);
            }
            Op::Tally => udp.promoted().tally(token, turn),
            Op::Demote => udp.promoted().demote(token, turn),
            Op::CloseUpstream => udp.close(token, queue, turn),
        }
    }

    fn complete(&mut self, completion: Completion, turn: &mut Turn) -> bool {
        let Self { queue, listeners, tcp, udp, counters, .. } = self;
        match completion.user_data.what {
            What::Wake => return self.woken(completion),
            What::Accept => listeners.accepted(completion, queue, turn, counters),
            What::Lull => listeners.lulled(completion.user_data, queue, turn),
            What::Poll => tcp.polled(completion, queue, turn, counters),
            What::Stream => tcp.streamed(completion, queue, turn, counters),
            What::ReceiveDown => udp.received_down(completion, queue, listeners, turn, counters),
            What::ReceiveUp => udp.received_up(completion, queue, turn, counters),
            // Failed sends are looked for right after their submission.
            What::Send | What::Install | What::Ignored => {}
        }
        false
    }

    fn woken(&mut self, completion: Completion) -> bool {
        calls::clear_eventfd(self.wake.as_fd());
        if !completion.more() {
            self.counters.rearms.add(1);
            self.watch_wake();
        }
        true
    }

    fn watch_wake(&mut self) {
        self.queue.poll(self.wake.as_fd(), libc::EPOLLIN, UserData::new(What::Wake, 0, 0));
    }
}

fn receive(token: Token, listeners: &mut Listeners, udp: &mut Udp) {
    if token.kind == Kind::Socket {
        listeners.hear(token.slot);
    }
    udp.receive(token);
}

fn halt(
    token: Token,
    (listeners, udp): (&mut Listeners, &mut Udp),
    queue: &mut Queue,
    turn: &mut Turn,
) {
    match token.kind {
        Kind::Socket => listeners.halt(token.slot, queue, turn),
        Kind::Session | Kind::Upstream => udp.halt(token, queue, turn),
    }
}
