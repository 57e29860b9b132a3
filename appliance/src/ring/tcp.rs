//! TCP sessions: up to two connections each, watched by multishot polls, or streaming.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use config_sync::table::routing::SocketOptions;

use crate::proxy::counters::Counters;
use crate::proxy::op::{Event, Kind, Mode, Origin, Side, Stop, Token, Why};

use super::Turn;
use super::bytes;
use super::pipes::{Pipe, Pipes};
use super::queue::{Completion, Mark, Queue};
use super::sockets::{
    self, bind_source, pending_error, set_new_tcp_options, unpace, why_failed, why_unopened,
};
use super::stream::{Streams, Waiting};
use super::sys;
use super::transfer::{Transfer, Wanted, is_blocked, send_all};

/// Bytes of the worker's one buffer for copying.
const SCRATCH: usize = 64 * 1024;

/// The most that `Peek` looks at, and the steps in which it looks further. All that is seen in one
/// round is in memory at once, and most clients have said all within the first step; bulk may wait
/// behind it.
const MOST_PEEKED: usize = 64 * 1024;
const PEEKED: usize = 4 * 1024;

/// What every side is watched for. Edges: io_uring polls are edge-triggered unless told otherwise.
const NEWS: i32 = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP;

pub(super) struct Tcp {
    pairs: Box<[Pair]>,
    pipes: Pipes,
    streams: Streams,
    scratch: Box<[u8]>,
}

/// One session's slot: what an idle session costs.
#[derive(Default)]
struct Pair {
    generation: u32,
    life: Life,
    client: Connection,
    endpoint: Connection,
    /// From the client, and from the endpoint.
    up: Half,
    down: Half,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    #[default]
    Free,
    Live,
    /// Waiting for the last completions of polls and streams.
    Closing {
        reset: bool,
    },
}

#[derive(Default)]
struct Connection {
    fd: Option<OwnedFd>,
    phase: Phase,
    /// A poll is in flight; the descriptor must not be closed.
    polling: bool,
    /// The descriptor must not be closed before this is `Off`.
    stream: Stream,
    /// The peer has sent its FIN, or worse.
    ending: bool,
    /// SO_RCVLOWAT was raised by `Peek`.
    raised: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Absent,
    Connecting,
    Open,
    /// The poll was cancelled; `ConnectFailed` once it is over and the descriptor closed.
    Leaving(Why),
}

/// The multishot receive that a connection has instead of a poll.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stream {
    #[default]
    Off,
    On,
    /// It was cancelled; a `Moved` will say that it is over.
    Ending,
    /// It was cancelled, and a `Moved` has said that it failed.
    Failed,
}

/// One direction: what was taken from its source and not yet given to its destination.
#[derive(Default)]
pub(super) struct Half {
    pub(super) pipe: Option<Pipe>,
    /// Bytes in the pipe.
    pub(super) held: u32,
    /// What a stream has left, behind those.
    pub(super) waiting: Waiting,
}

impl Tcp {
    pub(super) fn new(sessions: u32, pipes: u32, streams: Streams) -> Self {
        Self {
            pairs: (0..sessions).map(|_| Pair::default()).collect(),
            pipes: Pipes::new(pipes),
            streams,
            scratch: vec![0; SCRATCH].into(),
        }
    }

    pub(super) fn pipes_used(&self) -> u64 {
        self.pipes.used()
    }

    pub(super) fn adopt(&mut self, token: Token, fd: OwnedFd, queue: &mut Queue) {
        let pair = &mut self.pairs[token.slot as usize];
        assert_eq!(pair.life, Life::Free, "a session's slot is free before it is used again");
        pair.life = Life::Live;
        pair.generation = token.generation;
        pair.client.open(fd, Phase::Open);
        pair.watch(token.slot, Side::Client, queue);
    }

    pub(super) fn connect(
        &mut self,
        token: Token,
        address: &SocketAddr,
        source: Origin,
        options: &SocketOptions,
        queue: &mut Queue,
        turn: &mut Turn,
    ) {
        let Some(pair) = self.live(token) else { return };
        assert_eq!(pair.endpoint.phase, Phase::Absent, "one endpoint at a time");
        match begin_connect(address, source, options) {
            Ok(fd) => {
                pair.endpoint.open(fd, Phase::Connecting);
                pair.watch(token.slot, Side::Endpoint, queue);
            }
            Err(error) => {
                turn.push(token, Event::ConnectFailed { why: why_unopened(&error) });
            }
        }
    }

    pub(super) fn abandon(&mut self, token: Token, queue: &mut Queue, turn: &mut Turn) {
        let Some(pair) = self.live(token) else { return };
        // Leaving or Absent: the `ConnectFailed` that answers is already on its way.
        if matches!(pair.endpoint.phase, Phase::Connecting | Phase::Open) {
            pair.leave(token, Why::Abandoned, queue, turn);
        }
    }

    pub(super) fn peek(&mut self, token: Token, at_least: u32, turn: &mut Turn) {
        let Some(pair) = self.live(token) else { return };
        let start = turn.bytes.len();
        let (mut len, mut end) = pair.client.peek(at_least, &mut turn.bytes);
        if len < at_least as usize && !end {
            // Fewer bytes are to wake nobody; those that came before the mark was set are
            // seen by looking again.
            pair.client.raise_mark(at_least);
            turn.bytes.truncate(start);
            (len, end) = pair.client.peek(at_least, &mut turn.bytes);
        }
        turn.push(token, Event::Peeked { start: size(start), len: size(len), end });
    }

    pub(super) fn mark(&mut self, token: Token, from: Side, at_least: u32) {
        if let Some(pair) = self.live(token) {
            // If it fails the mark stays low, which is only more wake-ups.
            pair.side(from).set_mark(at_least);
        }
    }

    pub(super) fn unpace(&mut self, token: Token, side: Side, counters: &Counters) {
        if let Some(pair) = self.live(token)
            && let Some(fd) = &pair.side(side).fd
            && unpace(fd.as_fd())
        {
            counters.unpaced.add(1);
        }
    }

    pub(super) fn transfer(
        &mut self,
        token: Token,
        from: Side,
        mode: Mode,
        mut wanted: Wanted,
        (queue, turn): (&mut Queue, &mut Turn),
        counters: &Counters,
    ) {
        let Self { pairs, pipes, streams, scratch } = self;
        let Some(pair) = find_live(pairs, token) else { return };
        if from == Side::Client && pair.client.raised {
            pair.client.clear_mark();
        }
        let (source, destination, half) = match from {
            Side::Client => (&pair.client, &pair.endpoint, &mut pair.up),
            Side::Endpoint => (&pair.endpoint, &pair.client, &mut pair.down),
        };
        let (Some(source_fd), Some(destination_fd)) = (&source.fd, &destination.fd) else {
            let side = if source.fd.is_none() { from } else { from.other() };
            let stop = Stop::Failed { side, why: Why::Other(libc::EBADF) };
            let held = half.held();
            return turn.push(token, Event::Moved { from, read: 0, sent: 0, held, stop });
        };
        wanted.to_eof |= source.ending;
        let moved = Transfer {
            from,
            source: source_fd.as_fd(),
            destination: destination_fd.as_fd(),
            half,
            pipes,
            streams,
            scratch,
            counters,
        }
        .run(mode, wanted);
        if matches!(moved, Event::Moved { stop: Stop::Blocked, .. }) {
            pair.end_stream(token, from.other(), queue);
        }
        turn.push(token, moved);
    }

    pub(super) fn stream(
        &mut self,
        token: Token,
        from: Side,
        queue: &mut Queue,
        turn: &mut Turn,
        counters: &Counters,
    ) {
        let Self { pairs, streams, .. } = self;
        let Some(pair) = find_live(pairs, token) else { return };
        let (source, half) = match from {
            Side::Client => (&mut pair.client, &pair.up),
            Side::Endpoint => (&mut pair.endpoint, &pair.down),
        };
        assert!(half.held() == 0 && source.stream == Stream::Off, "a stream begins with nothing");
        let mark = Mark::stream(from, token.slot, token.generation);
        let fd = source.fd.as_ref().filter(|_| source.phase == Phase::Open);
        if !fd.is_some_and(|fd| streams.begin(fd.as_fd(), mark, queue)) {
            return turn.push(token, moved(from, 0, 0, half, Stop::Budget));
        }
        source.stream = Stream::On;
        counters.streams.add(1);
        // It would wake the worker a second time for the same bytes.
        if source.polling {
            queue.cancel(Mark::poll(from, token.slot, token.generation));
        }
    }

    pub(super) fn unstream(&mut self, token: Token, from: Side, queue: &mut Queue) {
        if let Some(pair) = self.live(token) {
            pair.end_stream(token, from, queue);
        }
    }

    /// A completion of a stream's receive.
    pub(super) fn streamed(
        &mut self,
        completion: Completion,
        queue: &mut Queue,
        turn: &mut Turn,
        counters: &Counters,
    ) {
        let Mark { side: from, slot, generation, .. } = completion.mark;
        let token = Token { kind: Kind::Session, slot, generation };
        let Self { pairs, streams, .. } = self;
        let pair = &mut pairs[slot as usize];
        assert_eq!(pair.generation, generation, "no session is over while it receives");
        if let Life::Closing { reset } = &mut pair.life {
            if let Some((id, bytes)) = streams.taken(&completion) {
                // Nobody will get them: a FIN would say that all was delivered.
                *reset |= !bytes.is_empty();
                streams.give_back(id);
            }
            if !completion.more() {
                pair.side(from).stream = Stream::Off;
                self.finish_close(token, turn);
            }
            return;
        }
        pair.arrived(token, &completion, streams, queue, turn);
        if !completion.more() {
            pair.stream_over(token, &completion, queue, turn, counters);
        }
    }

    pub(super) fn take(&mut self, token: Token, from: Side, mut wanted: Wanted, turn: &mut Turn) {
        let Some(pair) = self.live(token) else { return };
        if from == Side::Client && pair.client.raised {
            pair.client.clear_mark();
        }
        let source = pair.side(from);
        wanted.to_eof |= source.ending;
        let fd = source.fd.as_ref().map(AsFd::as_fd);
        let taken = bytes::take(from, fd, wanted, &mut turn.bytes);
        turn.push(token, taken);
    }

    pub(super) fn give(&mut self, token: Token, to: Side, range: (u32, u32), turn: &mut Turn) {
        let Some(pair) = self.live(token) else { return };
        let fd = pair.side(to).fd.as_ref().map(AsFd::as_fd);
        let given = bytes::give(to, fd, range, &turn.output, &mut turn.bytes);
        turn.push(token, given);
    }

    pub(super) fn unacked(&mut self, token: Token, side: Side, turn: &mut Turn) {
        let Some(pair) = self.live(token) else { return };
        let bytes = pair.side(side).fd.as_ref().map_or(0, |fd| sockets::unacked(fd.as_fd()));
        turn.push(token, Event::Unacked { side, bytes });
    }

    pub(super) fn shutdown(&mut self, token: Token, side: Side) {
        if let Some(pair) = self.live(token)
            && let Some(fd) = &pair.side(side).fd
        {
            sys::shutdown_write(fd.as_fd());
        }
    }

    pub(super) fn close(&mut self, token: Token, reset: bool, queue: &mut Queue, turn: &mut Turn) {
        let Some(pair) = self.live(token) else { return };
        pair.life = Life::Closing { reset };
        for side in [Side::Client, Side::Endpoint] {
            let connection = pair.side(side);
            // A side that is leaving has been cancelled already, and so has one that streams.
            if connection.polling && !matches!(connection.phase, Phase::Leaving(_)) {
                queue.cancel(Mark::poll(side, token.slot, token.generation));
            }
            pair.end_stream(token, side, queue);
        }
        self.finish_close(token, turn);
    }

    /// A completion of a poll.
    pub(super) fn polled(
        &mut self,
        completion: Completion,
        queue: &mut Queue,
        turn: &mut Turn,
        counters: &Counters,
    ) {
        let Mark { side, slot, generation, .. } = completion.mark;
        let token = Token { kind: Kind::Session, slot, generation };
        let Some(pair) = self.pairs.get_mut(slot as usize) else { return };
        if pair.generation != generation || pair.life == Life::Free {
            return;
        }
        let ended = !completion.more();
        let connection = pair.side(side);
        connection.polling &= !ended;
        if let Life::Closing { .. } = pair.life {
            return self.finish_close(token, turn);
        }
        if let Phase::Leaving(_) = pair.side(side).phase {
            return pair.finish_leaving(token, turn);
        }
        if pair.side(side).stream != Stream::Off {
            // What it had seen, the stream sees as well; the rest is seen when it is armed again.
            return;
        }
        if completion.result == -libc::ECANCELED {
            // For the sake of a stream that is over already.
            return pair.watch(slot, side, queue);
        }
        if completion.result < 0 {
            // The poll could not go on (no memory for it): this side can't be watched any more.
            return pair.news(token, side, libc::EPOLLERR | libc::EPOLLHUP, queue, turn);
        }
        if ended {
            counters.rearms.add(1);
            pair.watch(slot, side, queue);
        }
        pair.news(token, side, completion.result, queue, turn);
    }

    /// Closes both sides once nothing is in flight.
    fn finish_close(&mut self, token: Token, turn: &mut Turn) {
        let Self { pairs, pipes, streams, .. } = self;
        let pair = &mut pairs[token.slot as usize];
        let Life::Closing { reset } = pair.life else { return };
        if pair.client.in_flight() || pair.endpoint.in_flight() {
            return;
        }
        for half in [&mut pair.up, &mut pair.down] {
            streams.clear(&mut half.waiting);
            half.release(pipes);
            if let Some(pipe) = half.pipe.take() {
                pipes.discard(pipe);
            }
        }
        for connection in [&pair.client, &pair.endpoint] {
            if let Some(fd) = connection.fd.as_ref().filter(|_| reset) {
                sys::reset_on_close(fd.as_fd());
            }
        }
        // Closes the descriptors, and sets everything but the generation back.
        *pair = Pair { generation: token.generation, ..Pair::default() };
        turn.push(token, Event::Closed);
    }

    fn live(&mut self, token: Token) -> Option<&mut Pair> {
        find_live(&mut self.pairs, token)
    }
}

/// The pair of a session that has not been closed.
fn find_live(pairs: &mut [Pair], token: Token) -> Option<&mut Pair> {
    pairs
        .get_mut(token.slot as usize)
        .filter(|pair| pair.generation == token.generation && pair.life == Life::Live)
}

impl Pair {
    fn side(&mut self, side: Side) -> &mut Connection {
        match side {
            Side::Client => &mut self.client,
            Side::Endpoint => &mut self.endpoint,
        }
    }

    fn half(&self, from: Side) -> &Half {
        match from {
            Side::Client => &self.up,
            Side::Endpoint => &self.down,
        }
    }

    fn watch(&mut self, slot: u32, side: Side, queue: &mut Queue) {
        let mark = Mark::poll(side, slot, self.generation);
        let connection = self.side(side);
        if let Some(fd) = &connection.fd {
            queue.poll(fd.as_fd(), NEWS, mark);
            connection.polling = true;
        }
    }

    /// Gives what a stream has received to the other side, or puts it behind what waits for that.
    fn arrived(
        &mut self,
        token: Token,
        completion: &Completion,
        streams: &mut Streams,
        queue: &mut Queue,
        turn: &mut Turn,
    ) {
        let Some((id, bytes)) = streams.taken(completion) else { return };
        let from = completion.mark.side;
        let (source, destination, half) = match from {
            Side::Client => (&mut self.client, &self.endpoint, &mut self.up),
            Side::Endpoint => (&mut self.endpoint, &self.client, &mut self.down),
        };
        let fd = destination.fd.as_ref().filter(|_| source.stream != Stream::Failed);
        let Some(fd) = fd else { return streams.give_back(id) };
        let read = size(bytes.len());
        let (sent, error) = match half.waiting.bytes {
            0 => send_all(fd.as_fd(), bytes),
            _ => (0, None),
        };
        let sent = size(sent);
        match error {
            Some(error) if !is_blocked(&error) => {
                streams.give_back(id);
                let stop = Stop::Failed { side: from.other(), why: why_failed(&error) };
                turn.push(token, moved(from, read, sent, half, stop));
                self.end_stream(token, from, queue);
                self.side(from).stream = Stream::Failed;
                return;
            }
            _ if sent == read => streams.give_back(id),
            _ => streams.push(&mut half.waiting, id, sent, read),
        }
        turn.push(token, moved(from, read, sent, half, Stop::Drained));
        if sent < read {
            // The destination must be watched, so it can't stream either.
            self.end_stream(token, from, queue);
            self.end_stream(token, from.other(), queue);
        }
    }

    /// The last completion of a stream.
    fn stream_over(
        &mut self,
        token: Token,
        completion: &Completion,
        queue: &mut Queue,
        turn: &mut Turn,
        counters: &Counters,
    ) {
        let from = completion.mark.side;
        let told = self.side(from).stream == Stream::Failed;
        self.side(from).stream = Stream::Off;
        if !self.side(from).polling {
            self.watch(token.slot, from, queue);
        }
        let half = self.half(from);
        let stop = match -completion.result {
            0 if half.held() == 0 => Stop::Eof,
            libc::ENOBUFS => {
                counters.buffer_shortages.add(1);
                Stop::Budget
            }
            errno if errno > 0 && errno != libc::ECANCELED => {
                let error = io::Error::from_raw_os_error(errno);
                Stop::Failed { side: from, why: why_failed(&error) }
            }
            _ => Stop::Budget,
        };
        if !told {
            turn.push(token, moved(from, 0, 0, half, stop));
        }
    }

    /// Cancels what receives from a side.
    fn end_stream(&mut self, token: Token, from: Side, queue: &mut Queue) {
        let connection = self.side(from);
        if connection.stream == Stream::On {
            connection.stream = Stream::Ending;
            queue.cancel(Mark::stream(from, token.slot, token.generation));
        }
    }

    /// Says what a poll has shown.
    fn news(&mut self, token: Token, side: Side, events: i32, queue: &mut Queue, turn: &mut Turn) {
        let failed = events & libc::EPOLLERR != 0;
        let ending = events & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) != 0;
        let readable = ending || events & libc::EPOLLIN != 0;
        let writable = events & libc::EPOLLOUT != 0;
        let connection = self.side(side);
        if connection.phase == Phase::Connecting {
            if events & (libc::EPOLLERR | libc::EPOLLHUP) != 0 {
                let why = connection.pending_error();
                return self.leave(token, why, queue, turn);
            }
            connection.phase = Phase::Open;
            turn.push(token, Event::Connected);
            if !readable {
                return;
            }
        }
        self.side(side).ending |= ending;
        turn.push(token, Event::Ready { side, readable, writable, ending, failed });
    }

    /// Gives the endpoint up: nothing may be in flight when its descriptor is closed.
    fn leave(&mut self, token: Token, why: Why, queue: &mut Queue, turn: &mut Turn) {
        self.endpoint.phase = Phase::Leaving(why);
        if self.endpoint.polling {
            queue.cancel(Mark::poll(Side::Endpoint, token.slot, token.generation));
        }
        self.finish_leaving(token, turn);
    }

    fn finish_leaving(&mut self, token: Token, turn: &mut Turn) {
        if let Phase::Leaving(why) = self.endpoint.phase
            && !self.endpoint.polling
        {
            self.endpoint = Connection::default();
            turn.push(token, Event::ConnectFailed { why });
        }
    }
}

impl Connection {
    fn open(&mut self, fd: OwnedFd, phase: Phase) {
        *self = Self { fd: Some(fd), phase, ..Self::default() };
    }

    fn in_flight(&self) -> bool {
        self.polling || self.stream != Stream::Off
    }

    /// How much of what waits to be read was put into `arena`, and whether no more will come.
    fn peek(&self, at_least: u32, arena: &mut Vec<u8>) -> (usize, bool) {
        let Some(fd) = &self.fd else { return (0, true) };
        let room = (at_least.max(1) as usize).next_multiple_of(PEEKED).min(MOST_PEEKED);
        match sys::recv_behind(fd.as_fd(), arena, room, libc::MSG_PEEK) {
            Ok(0) => (0, true),
            // There may be more than was looked at.
            Ok(len) => (len, self.ending && (len < room || room == MOST_PEEKED)),
            Err(error) => (0, error.raw_os_error() != Some(libc::EAGAIN)),
        }
    }

    fn raise_mark(&mut self, bytes: u32) {
        self.raised |= self.set_mark(bytes.min(size(MOST_PEEKED)));
    }

    fn clear_mark(&mut self) {
        self.raised = !self.set_mark(1);
    }

    fn set_mark(&self, bytes: u32) -> bool {
        let Some(fd) = &self.fd else { return false };
        let bytes = bytes.cast_signed();
        sys::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, &bytes).is_ok()
    }

    fn pending_error(&self) -> Why {
        let error = self.fd.as_ref().and_then(|fd| pending_error(fd.as_fd()));
        error.map_or(Why::Reset, |error| why_unopened(&error))
    }
}

impl Half {
    /// Bytes that were taken and not given.
    pub(super) fn held(&self) -> u32 {
        self.held + self.waiting.bytes
    }

    /// Gives the pipe back if nothing is in it.
    pub(super) fn release(&mut self, pipes: &mut Pipes) {
        if self.held == 0
            && let Some(pipe) = self.pipe.take()
        {
            pipes.give_back(pipe);
        }
    }
}

fn moved(from: Side, read: u32, sent: u32, half: &Half, stop: Stop) -> Event {
    Event::Moved { from, read, sent, held: half.held(), stop }
}

/// A socket on its way to `address`.
fn begin_connect(
    address: &SocketAddr,
    source: Origin,
    options: &SocketOptions,
) -> io::Result<OwnedFd> {
    let fd = sys::socket(address, libc::SOCK_STREAM)?;
    set_new_tcp_options(fd.as_fd(), options);
    bind_source(fd.as_fd(), source, true)?;
    match sys::connect(fd.as_fd(), address) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(fd),
    }
}

fn size(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a turn looks at less than 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_session_costs_no_more_than_96_bytes() {
        assert!(size_of::<Pair>() <= 96, "{} bytes", size_of::<Pair>());
    }
}
