//! Gathers the datagrams of one turn into as few messages as the kernel allows, and sends them in
//! one submission.

use std::net::{IpAddr, SocketAddr};

use std::ptr;

use crate::contract::{BufferId, Event, Kind, Part, Token, Why, size};
use crate::ring::buffers::Buffers;
use crate::ring::queue::{Queue, Target};
use crate::ring::turn::Turn;
use crate::ring::udp::message::{Chunk, MAX_BYTES, MAX_SEGMENTS, NONE, Send};
use crate::ring::udp::path::Path;
use crate::ring::udp::train::Train;
use crate::ring::user_data::{UserData, What};

/// Bytes of the largest datagram over IPv4. A larger datagram is not sent at all.
const MAX_DATAGRAM: u32 = 65_507;

/// The fields of `SendDown`, of `Answer`, whose slot is [`NONE`], and of `SendVia`, which has them
/// for the other direction.
pub struct Down {
    pub buffer: BufferId,
    pub part: Part,
    pub from: u32,
    pub peer: SocketAddr,
    pub local: Option<IpAddr>,
}

impl Down {
    /// Bytes that no upstream slot received.
    pub fn answer(
        (buffer, part): (BufferId, Part),
        peer: SocketAddr,
        local: Option<IpAddr>,
    ) -> Self {
        Self { buffer, part, from: NONE, peer, local }
    }
}

pub struct Sends {
    sends: Vec<Send>,
    chunks: Vec<Chunk>,
    iovecs: Vec<libc::iovec>,
    /// Buffers that are given back when all datagrams were sent.
    used: Vec<BufferId>,
    /// By upstream slot: the send of this turn that further datagrams of the flow may join.
    open_up: Box<[u32]>,
    open_down: Box<[u32]>,
    /// By upstream slot.
    paths: Box<[Path]>,
    /// Sends that are tried again.
    again: Vec<u32>,
    /// Trains that the kernel would not cut.
    singly: Vec<u32>,
    failures: Vec<(u32, i32)>,
    singles: Singles,
}

/// Messages of one datagram each, for a train that the kernel would not cut.
struct Singles {
    messages: Vec<libc::msghdr>,
    iovecs: Vec<libc::iovec>,
    /// Where the iovecs of each message end.
    ends: Vec<usize>,
}

impl Sends {
    /// See [`Ring::growth`](crate::ring::Ring::growth).
    pub const fn growth(buffers: usize) -> usize {
        let sends = size_of::<Send>() + size_of::<Chunk>() + size_of::<libc::iovec>();
        2 * buffers * (sends + 2 * size_of::<u32>() + size_of::<(u32, i32)>())
            + buffers * size_of::<BufferId>()
    }

    pub fn new(buffers: u16, flows: u32) -> Self {
        // A buffer is cut into at most two messages: 65,536 bytes are less than twice MAX_BYTES.
        let most = 2 * usize::from(buffers);
        let none = || vec![NONE; flows as usize].into_boxed_slice();
        Self {
            sends: Vec::with_capacity(most),
            chunks: Vec::with_capacity(most),
            iovecs: Vec::with_capacity(most),
            used: Vec::with_capacity(usize::from(buffers)),
            open_up: none(),
            open_down: none(),
            paths: vec![Path::new(0); flows as usize].into(),
            again: Vec::with_capacity(most),
            singly: Vec::with_capacity(most),
            failures: Vec::with_capacity(most),
            singles: Singles {
                messages: Vec::with_capacity(MAX_SEGMENTS as usize),
                iovecs: Vec::with_capacity(MAX_SEGMENTS as usize),
                ends: Vec::with_capacity(MAX_SEGMENTS as usize),
            },
        }
    }

    /// The path of an upstream slot. If the slot is used anew, nobody has looked at its path yet.
    pub fn path(&mut self, token: Token) -> &mut Path {
        let path = &mut self.paths[token.slot as usize];
        if path.generation != token.generation {
            *path = Path::new(token.generation);
        }
        path
    }

    pub fn add_up(
        &mut self,
        token: Token,
        target: Option<Target>,
        (buffer, part): (BufferId, Part),
        train: Train,
        turn: &mut Turn,
    ) {
        self.use_up(buffer, part);
        let train = train.part(part);
        let Some(target) = target else { return turn.push(token, gone(train.count())) };
        let flow = Some(token.slot);
        self.add(Send::new(token, target, flow, None, None), buffer, part, train, turn);
    }

    pub fn add_down(
        &mut self,
        token: Token,
        target: Option<Target>,
        down: &Down,
        train: Train,
        turn: &mut Turn,
    ) {
        self.use_up(down.buffer, down.part);
        let train = train.part(down.part);
        let Some(target) = target else { return turn.push(token, gone(train.count())) };
        let flow = Some(down.from).filter(|slot| (*slot as usize) < self.open_down.len());
        let template = Send::new(token, target, flow, Some(down.peer.into()), down.local);
        self.add(template, down.buffer, down.part, train, turn);
    }

    fn use_up(&mut self, buffer: BufferId, part: Part) {
        if !part.more {
            self.used.push(buffer);
        }
    }

    /// Sends all datagrams, and gives the buffers back.
    pub fn flush(&mut self, buffers: &mut Buffers, queue: &mut Queue, turn: &mut Turn) {
        if !self.sends.is_empty() {
            self.build(buffers, &turn.output);
            self.sort_sends();
            for first_time in [true, false] {
                if !self.again.is_empty() {
                    self.round(queue);
                    self.sort_failures(first_time, turn);
                }
            }
            let mut singly = std::mem::take(&mut self.singly);
            singly.sort_unstable();
            for send in singly.drain(..) {
                self.send_singly(send, buffers, queue, turn);
            }
            self.singly = singly;
            self.forget();
        }
        for buffer in self.used.drain(..) {
            buffers.give_back(buffer);
        }
    }

    /// Adds a train to the flow's last send, or to a new one like `template`.
    fn add(&mut self, template: Send, buffer: BufferId, part: Part, train: Train, turn: &mut Turn) {
        if part.strip > 0 || part.head.1 > 0 {
            return self.add_changed(&template, buffer, part, train, turn);
        }
        let most = MAX_BYTES.checked_div(train.size).unwrap_or(1).clamp(1, MAX_SEGMENTS);
        let mut rest = train;
        loop {
            let len = rest.len.min(most.saturating_mul(train.size));
            let piece = Train { len, ..rest };
            let chunk = Chunk { buffer: Some(buffer.0), start: rest.start, len, next: NONE };
            self.add_piece(&template, piece, [chunk]);
            rest.start += len;
            rest.len -= len;
            if rest.len == 0 {
                return;
            }
        }
    }

    /// Adds datagrams with replaced heads, each by itself. Reports how many of them the path
    /// would have taken whole without the new head.
    fn add_changed(
        &mut self,
        template: &Send,
        buffer: BufferId,
        part: Part,
        train: Train,
        turn: &mut Turn,
    ) {
        let head = u32::from(part.head.1);
        let whole =
            u32::from(self.path_of(template).and_then(|path| path.whole).unwrap_or(u16::MAX));
        let mut grown = 0;
        for (start, len) in train.datagrams() {
            let strip = u32::from(part.strip).min(len);
            let head_chunk = Chunk { buffer: None, start: part.head.0, len: head, next: NONE };
            let (start, len) = (start + strip, len - strip);
            let too_large = whole < head + len && head + len <= MAX_DATAGRAM;
            grown += u32::from(len <= whole && too_large);
            let rest = Chunk { buffer: Some(buffer.0), start, len, next: NONE };
            let chunks = [head_chunk, rest].into_iter().filter(|chunk| chunk.len > 0);
            self.add_piece(template, Train::new(0, head + len), chunks);
        }
        if grown > 0 {
            turn.push(template.token, Event::Fragmented { count: grown });
        }
    }

    /// Adds datagrams that lie in these chunks.
    fn add_piece(
        &mut self,
        template: &Send,
        piece: Train,
        chunks: impl IntoIterator<Item = Chunk>,
    ) {
        let first = size(self.chunks.len());
        self.chunks.extend(chunks);
        let end = size(self.chunks.len());
        for chunk in first + 1..end {
            self.chunks[chunk as usize - 1].next = chunk;
        }
        let (first, last) = if first < end { (first, end - 1) } else { (NONE, NONE) };
        let open = self.open_slot(template).map_or(NONE, |slot| *slot);
        if let Some(send) = self.sends.get_mut(open as usize)
            && send.takes(template, piece)
        {
            self.chunks[send.last as usize].next = first;
            send.last = last;
            send.bytes += piece.len;
            send.count += piece.count();
            return;
        }
        let send = size(self.sends.len());
        if let Some(slot) = self.open_slot(template) {
            *slot = send;
        }
        self.sends.push(Send {
            size: piece.size,
            bytes: piece.len,
            count: piece.count(),
            first,
            last,
            ..template.clone()
        });
    }

    fn open_slot(&mut self, send: &Send) -> Option<&mut u32> {
        let slots = match send.token.kind {
            Kind::Upstream => &mut self.open_up,
            Kind::Socket | Kind::Session => &mut self.open_down,
        };
        slots.get_mut(send.flow? as usize)
    }

    /// The path to an endpoint. A client has no path.
    fn path_of(&self, send: &Send) -> Option<&Path> {
        let is_up = send.token.kind == Kind::Upstream;
        self.paths.get(send.flow.filter(|_| is_up)? as usize)
    }

    /// Fills in the messages. No datagram may be added until they were sent, because the messages
    /// point to each other.
    fn build(&mut self, buffers: &Buffers, output: &[u8]) {
        self.iovecs.clear();
        for send in &mut self.sends {
            send.message.msg_iovlen = self.iovecs.len();
            let mut next = send.first;
            while let Some(chunk) = self.chunks.get(next as usize) {
                self.iovecs.push(chunk.iovec(0, chunk.len, buffers, output));
                next = chunk.next;
            }
        }
        let mut end = self.iovecs.len();
        for send in self.sends.iter_mut().rev() {
            let begin = send.message.msg_iovlen;
            send.message.msg_iov = self.iovecs[begin..end].as_mut_ptr();
            send.message.msg_iovlen = end - begin;
            end = begin;
            send.address(if send.count > 1 { send.size } else { 0 });
        }
    }

    /// Sorts the sends: those that go as they are, and those that the path is known to refuse as a
    /// train.
    fn sort_sends(&mut self) {
        for at in 0..size(self.sends.len()) {
            let send = &self.sends[at as usize];
            let most = self.path_of(send).map_or(u32::MAX, |path| path.in_trains.into());
            let sorted =
                if send.count > 1 && send.size > most { &mut self.singly } else { &mut self.again };
            sorted.push(at);
        }
    }

    /// Sends the messages in `again`, empties `again`, and notes the failures.
    fn round(&mut self, queue: &mut Queue) {
        queue.failed_sends().clear();
        for index in self.again.drain(..) {
            let send = &self.sends[index as usize];
            let user_data = UserData::new(What::Send, index, 0);
            // SAFETY: the message, its name, control data, iovecs and buffers stay where they are
            // until `submit` has returned, below.
            unsafe { queue.send(send.target, &raw const send.message, user_data) };
        }
        queue.submit();
        self.failures.clear();
        let failed = queue.failed_sends().drain(..);
        self.failures
            .extend(failed.map(|completion| (completion.user_data.slot, -completion.result)));
    }

    fn sort_failures(&mut self, first_time: bool, turn: &mut Turn) {
        for (index, errno) in self.failures.drain(..) {
            let Some(send) = self.sends.get(index as usize) else { continue };
            match errno {
                // The error reports an earlier datagram's fate. This datagram was not sent.
                libc::ECONNREFUSED if first_time => self.again.push(index),
                // The path takes smaller packets than the train's, or the device can't cut the
                // train.
                libc::EMSGSIZE | libc::EINVAL | libc::EIO if send.count > 1 => {
                    self.singly.push(index);
                    if send.token.kind == Kind::Upstream
                        && let Some(path) = self.paths.get_mut(send.token.slot as usize)
                    {
                        path.refused(send.size);
                    }
                }
                _ => {
                    let why = send.why_failed(errno);
                    turn.push(send.token, Event::SendFailed { why, count: send.count });
                }
            }
        }
    }

    fn send_singly(
        &mut self,
        index_of_send: u32,
        buffers: &Buffers,
        queue: &mut Queue,
        turn: &mut Turn,
    ) {
        let send = &mut self.sends[index_of_send as usize];
        send.address(0);
        let Singles { messages, iovecs, ends } = &mut self.singles;
        messages.clear();
        iovecs.clear();
        ends.clear();
        // Bytes that the datagram still needs.
        let mut room = send.size;
        let mut next = send.first;
        while let Some(chunk) = self.chunks.get(next as usize) {
            let mut at = 0;
            while at < chunk.len {
                let len = room.min(chunk.len - at);
                iovecs.push(chunk.iovec(at, len, buffers, &turn.output));
                at += len;
                room -= len;
                if room == 0 {
                    ends.push(iovecs.len());
                    room = send.size;
                }
            }
            next = chunk.next;
        }
        if room < send.size {
            ends.push(iovecs.len());
        }
        let mut rest = iovecs.as_mut_slice();
        let mut begin = 0;
        for end in ends.drain(..) {
            let (own, others) = rest.split_at_mut(end - begin);
            let (msg_iov, msg_iovlen) = (own.as_mut_ptr(), own.len());
            messages.push(libc::msghdr { msg_iov, msg_iovlen, ..send.message });
            (rest, begin) = (others, end);
        }
        queue.failed_sends().clear();
        for (number, message) in messages.iter().enumerate() {
            let user_data = UserData::new(What::Send, size(number), 0);
            // SAFETY: messages, iovecs, and the memory that the send's message points to stay where
            // they are until `submit` has returned, below.
            unsafe { queue.send(send.target, ptr::from_ref(message), user_data) };
        }
        queue.submit();
        for completion in queue.failed_sends().drain(..) {
            let why = send.why_failed(-completion.result);
            turn.push(send.token, Event::SendFailed { why, count: 1 });
        }
    }

    fn forget(&mut self) {
        let mut sends = std::mem::take(&mut self.sends);
        for send in sends.drain(..) {
            if let Some(slot) = self.open_slot(&send) {
                *slot = NONE;
            }
        }
        self.sends = sends;
        self.chunks.clear();
    }
}

/// The event for a send through a socket that is gone.
fn gone(count: u32) -> Event {
    Event::SendFailed { why: Why::Other(libc::EBADF), count }
}

#[cfg(test)]
mod tests;
