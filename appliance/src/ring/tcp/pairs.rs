//! Holds the TCP sessions: up to two connections each, watched by multishot polls, or streaming.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use config_sync::table::address::Address;
use config_sync::table::routing::SocketOptions;

use crate::contract::{Event, Kind, Mode, Origin, Side, Stop, Token, Why, size};
use crate::ring::queue::{Completion, Queue};
use crate::ring::sys::calls;
use crate::ring::sys::errno::{why_failed, why_unopened};
use crate::ring::tcp::bytes;
use crate::ring::tcp::connection::{Connection, Phase, Stream, begin_connect};
use crate::ring::tcp::half::Half;
use crate::ring::tcp::info::{self, unpace};
use crate::ring::tcp::pipes::Pipes;
use crate::ring::tcp::stream::Streams;
use crate::ring::tcp::transfer::{Transfer, Wanted, is_blocked, send_all};
use crate::ring::turn::Turn;
use crate::ring::user_data::UserData;
use crate::stats::counters::Counters;

/// Bytes of the worker's one buffer for copying.
const SCRATCH: usize = 64 * 1024;

/// The events of a poll on each side. io_uring polls are edge-triggered unless told otherwise.
const NEWS: i32 = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP;

pub struct Tcp {
    pairs: Box<[Pair]>,
    pipes: Pipes,
    streams: Streams,
    scratch: Box<[u8]>,
    /// Both connections of sessions of another process, until they are attached.
    arrivals: Vec<Option<[OwnedFd; 2]>>,
}

/// One session's slot. An idle session costs this much memory.
#[derive(Default)]
struct Pair {
    generation: u32,
    life: Life,
    client: Connection,
    endpoint: Connection,
    /// The direction from the client, and the direction from the endpoint.
    up: Half,
    down: Half,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    #[default]
    Free,
    Live,
    /// The pair waits for the last completions of polls and streams.
    Closing {
        reset: bool,
    },
}

impl Tcp {
    /// See [`Ring::growth`](crate::ring::Ring::growth).
    pub const fn growth(pipes: u32) -> usize {
        Pipes::growth(pipes) + SCRATCH
    }

    pub fn new(sessions: u32, pipes: u32, streams: Streams) -> Self {
        Self {
            pairs: (0..sessions).map(|_| Pair::default()).collect(),
            pipes: Pipes::new(pipes),
            streams,
            scratch: vec![0; SCRATCH].into(),
            arrivals: Vec::new(),
        }
    }

    pub fn pipes_used(&self) -> u64 {
        self.pipes.used()
    }

    pub fn adopt(&mut self, token: Token, fd: OwnedFd, queue: &mut Queue) {
        let pair = &mut self.pairs[token.slot as usize];
        assert_eq!(pair.life, Life::Free, "a session's slot is free before it is used again");
        pair.life = Life::Live;
        pair.generation = token.generation;
        pair.client.open(fd, Phase::Open);
        pair.watch(token.slot, Side::Client, queue);
    }

    /// Keeps the connections of a session of another process, and returns their number.
    pub fn arrive(&mut self, sockets: [OwnedFd; 2]) -> u32 {
        self.arrivals.push(Some(sockets));
        size(self.arrivals.len() - 1)
    }

    /// Closes what has arrived and was not attached.
    pub fn clear_arrivals(&mut self) {
        self.arrivals.clear();
    }

    pub fn attach(&mut self, token: Token, incoming: u32, queue: &mut Queue) {
        let arrival = self.arrivals.get_mut(incoming as usize).and_then(Option::take);
        let [client, endpoint] = arrival.expect("connections that arrived are attached once");
        self.adopt(token, client, queue);
        let pair = &mut self.pairs[token.slot as usize];
        pair.endpoint.open(endpoint, Phase::Open);
        pair.watch(token.slot, Side::Endpoint, queue);
        for side in [Side::Client, Side::Endpoint] {
            // Both processes share the mark, and the other one may have raised it.
            pair.side(side).set_mark(1);
        }
    }

    /// Copies of a session's connections, with the client and with the endpoint. `None`: no file is
    /// left, or a connection is not there.
    pub fn copies(&mut self, token: Token) -> Option<[OwnedFd; 2]> {
        let pair = self.live(token)?;
        let copy = |of: &Connection| of.fd.as_ref()?.try_clone().ok();
        Some([copy(&pair.client)?, copy(&pair.endpoint)?])
    }

    pub fn connect(
        &mut self,
        token: Token,
        address: &Address,
        from: (Origin, u32),
        options: &SocketOptions,
        queue: &mut Queue,
        turn: &mut Turn,
    ) {
        let Some(pair) = self.live(token) else { return };
        assert_eq!(pair.endpoint.phase, Phase::Absent, "one endpoint at a time");
        match begin_connect(address, from, options) {
            Ok(fd) => {
                pair.endpoint.open(fd, Phase::Connecting);
                pair.watch(token.slot, Side::Endpoint, queue);
            }
            Err(error) => {
                turn.push(token, Event::ConnectFailed { why: why_unopened(&error) });
            }
        }
    }

    pub fn abandon(&mut self, token: Token, queue: &mut Queue, turn: &mut Turn) {
        let Some(pair) = self.live(token) else { return };
        // Leaving or Absent: the `ConnectFailed` for this op is already on its way.
        if matches!(pair.endpoint.phase, Phase::Connecting | Phase::Open) {
            pair.leave(token, Why::Abandoned, queue, turn);
        }
    }

    pub fn peek(&mut self, token: Token, at_least: u32, turn: &mut Turn) {
        let Some(pair) = self.live(token) else { return };
        let start = turn.bytes.len();
        let (mut len, mut end) = pair.client.peek(at_least, &mut turn.bytes);
        if len < at_least as usize && !end {
            // Raise the mark, so that fewer bytes wake nobody. Look again for bytes that came
            // before the mark was raised.
            pair.client.raise_mark(at_least);
            turn.bytes.truncate(start);
            (len, end) = pair.client.peek(at_least, &mut turn.bytes);
        }
        turn.push(token, Event::Peeked { start: size(start), len: size(len), end });
    }

    pub fn mark(&mut self, token: Token, from: Side, at_least: u32) {
        if let Some(pair) = self.live(token) {
            // If this fails, the mark stays low, which costs only more wake-ups.
            pair.side(from).set_mark(at_least);
        }
    }

    pub fn unpace(&mut self, token: Token, side: Side, counters: &Counters) {
        if let Some(pair) = self.live(token)
            && let Some(fd) = &pair.side(side).fd
            && unpace(fd.as_fd())
        {
            counters.unpaced.add(1);
        }
    }

    pub fn transfer(
        &mut self,
        token: Token,
        from: Side,
        mode: Mode,
        mut wanted: Wanted,
        (queue, turn): (&mut Queue, &mut Turn),
        counters: &Counters,
    ) {
        let Self { pairs, pipes, streams, scratch, .. } = self;
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

    pub fn stream(
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
        let user_data = UserData::stream(from, token.slot, token.generation);
        let fd = source.fd.as_ref().filter(|_| source.phase == Phase::Open);
        if !fd.is_some_and(|fd| streams.begin(fd.as_fd(), user_data, queue)) {
            return turn.push(token, moved(from, 0, 0, half, Stop::Budget));
        }
        source.stream = Stream::On;
        counters.streams.add(1);
        // The poll would wake the worker a second time for the bytes that the stream receives.
        if source.polling {
            queue.cancel(UserData::poll(from, token.slot, token.generation));
        }
    }

    pub fn unstream(&mut self, token: Token, from: Side, queue: &mut Queue) {
        if let Some(pair) = self.live(token) {
            pair.end_stream(token, from, queue);
        }
    }

    /// Handles a completion of a stream's receive.
    pub fn streamed(
        &mut self,
        completion: Completion,
        queue: &mut Queue,
        turn: &mut Turn,
        counters: &Counters,
    ) {
        let UserData { side: from, slot, generation, .. } = completion.user_data;
        let token = Token { kind: Kind::Session, slot, generation };
        let Self { pairs, streams, .. } = self;
        let pair = &mut pairs[slot as usize];
        assert_eq!(pair.generation, generation, "no session is over while it receives");
        if let Life::Closing { reset } = &mut pair.life {
            if let Some((id, bytes)) = streams.taken(&completion) {
                // Nobody will get these bytes, so the close must be a reset: a FIN would say that
                // all was delivered.
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

    pub fn take(&mut self, token: Token, from: Side, mut wanted: Wanted, turn: &mut Turn) {
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

    pub fn give(&mut self, token: Token, to: Side, range: (u32, u32), turn: &mut Turn) {
        let Some(pair) = self.live(token) else { return };
        let fd = pair.side(to).fd.as_ref().map(AsFd::as_fd);
        let given = bytes::give(to, fd, range, &turn.output, &mut turn.bytes);
        turn.push(token, given);
    }

    pub fn unacked(&mut self, token: Token, side: Side, turn: &mut Turn) {
        let Some(pair) = self.live(token) else { return };
        let bytes = pair.side(side).fd.as_ref().map_or(0, |fd| info::unacked(fd.as_fd()));
        turn.push(token, Event::Unacked { side, bytes });
    }

    pub fn inspect(&mut self, token: Token, side: Side, turn: &mut Turn) {
        let Some(pair) = self.live(token) else { return };
        let start = turn.bytes.len();
        if let Some(fd) = &pair.side(side).fd {
            info::inspect(fd.as_fd(), &mut turn.bytes);
        }
        let (start, end) = (size(start), size(turn.bytes.len()));
        turn.push(token, Event::Inspected { side, start, len: end - start });
    }

    pub fn shutdown(&mut self, token: Token, side: Side) {
        if let Some(pair) = self.live(token)
            && let Some(fd) = &pair.side(side).fd
        {
            calls::shutdown_write(fd.as_fd());
        }
    }

    pub fn close(&mut self, token: Token, reset: bool, queue: &mut Queue, turn: &mut Turn) {
        let Some(pair) = self.live(token) else { return };
        pair.life = Life::Closing { reset };
        for side in [Side::Client, Side::Endpoint] {
            let connection = pair.side(side);
            // The poll of a leaving side was cancelled already, and so was the poll of a streaming
            // side.
            if connection.polling && !matches!(connection.phase, Phase::Leaving(_)) {
                queue.cancel(UserData::poll(side, token.slot, token.generation));
            }
            pair.end_stream(token, side, queue);
        }
        // A stream may still bring bytes, which would make a reset of the close.
        if [pair.client.stream, pair.endpoint.stream] == [Stream::Off; 2] {
            pair.client.close_polled(reset, queue);
            pair.endpoint.close_polled(reset, queue);
        }
        self.finish_close(token, turn);
    }

    /// Handles a completion of a poll.
    pub fn polled(
        &mut self,
        completion: Completion,
        queue: &mut Queue,
        turn: &mut Turn,
        counters: &Counters,
    ) {
        let UserData { side, slot, generation, .. } = completion.user_data;
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
            // The stream sees the bytes that the poll had seen. The next poll sees the rest.
            return;
        }
        if completion.result == -libc::ECANCELED {
            // The poll was cancelled for a stream that is over already.
            return pair.watch(slot, side, queue);
        }
        if completion.result < 0 {
            // The poll could not go on (no memory for it), so this side can't be watched any more.
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
                calls::reset_on_close(fd.as_fd());
            }
        }
        // Closes the descriptors, and resets all fields but the generation.
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
        let user_data = UserData::poll(side, slot, self.generation);
        let connection = self.side(side);
        if let Some(fd) = &connection.fd {
            queue.poll(fd.as_fd(), NEWS, user_data);
            connection.polling = true;
        }
    }

    /// Gives the other side the bytes that a stream has received, or queues them behind the waiting
    /// bytes.
    fn arrived(
        &mut self,
        token: Token,
        completion: &Completion,
        streams: &mut Streams,
        queue: &mut Queue,
        turn: &mut Turn,
    ) {
        let Some((id, bytes)) = streams.taken(completion) else { return };
        let from = completion.user_data.side;
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
            // The destination must be watched, so the destination can't stream either.
            self.end_stream(token, from, queue);
            self.end_stream(token, from.other(), queue);
        }
    }

    /// Handles the last completion of a stream.
    fn stream_over(
        &mut self,
        token: Token,
        completion: &Completion,
        queue: &mut Queue,
        turn: &mut Turn,
        counters: &Counters,
    ) {
        let from = completion.user_data.side;
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

    /// Cancels the receive of a side's stream.
    fn end_stream(&mut self, token: Token, from: Side, queue: &mut Queue) {
        let connection = self.side(from);
        if connection.stream == Stream::On {
            connection.stream = Stream::Ending;
            queue.cancel(UserData::stream(from, token.slot, token.generation));
        }
    }

    /// Reports what a poll has shown.
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

    /// Gives the endpoint up. Its descriptor is closed when nothing is in flight.
    fn leave(&mut self, token: Token, why: Why, queue: &mut Queue, turn: &mut Turn) {
        self.endpoint.phase = Phase::Leaving(why);
        if self.endpoint.polling {
            queue.cancel(UserData::poll(Side::Endpoint, token.slot, token.generation));
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

fn moved(from: Side, read: u32, sent: u32, half: &Half, stop: Stop) -> Event {
    Event::Moved { from, read, sent, held: half.held(), stop }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_session_costs_no_more_than_96_bytes() {
        assert!(size_of::<Pair>() <= 96, "{} bytes", size_of::<Pair>());
    }
}
