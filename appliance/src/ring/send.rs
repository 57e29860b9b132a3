//! Datagrams out: what one turn sends is gathered into as few messages as the kernel allows, and
//! sent in one submission.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::ptr;

use socket2::SockAddr;

use crate::proxy::op::{BufferId, Event, Kind, Part, Token, Why};

use super::Turn;
use super::buffers::Buffers;
use super::queue::{Mark, Queue, Target, What};
use super::sockets::{UDP_SEGMENT, why};

/// Datagrams of one message (`UDP_MAX_SEGMENTS` of kernels before 6.9).
const MAX_SEGMENTS: u32 = 64;

/// Bytes of one message: 65,507 is the most over IPv4, less what a path may add.
const MAX_BYTES: u32 = 65_000;

/// Bytes of the largest datagram over IPv4. What is larger is not sent at all.
const MAX_DATAGRAM: u32 = 65_507;

/// No send to append to.
const NONE: u32 = u32::MAX;

/// What a receive buffer holds: datagrams of one size, of which the last may be shorter.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Train {
    start: u32,
    len: u32,
    /// Bytes of each datagram but the last; never 0 unless the only one is empty.
    size: u32,
}

/// The fields of `SendDown`, and of `SendVia`, which does the same the other way.
pub(super) struct Down {
    pub(super) buffer: BufferId,
    pub(super) part: Part,
    pub(super) from: u32,
    pub(super) peer: SocketAddr,
    pub(super) local: Option<IpAddr>,
}

pub(super) struct Sends {
    sends: Vec<Send>,
    chunks: Vec<Chunk>,
    iovecs: Vec<libc::iovec>,
    /// Given back once everything was sent.
    used: Vec<BufferId>,
    /// By upstream slot: the send of this turn that more of the same flow may join.
    open_up: Box<[u32]>,
    open_down: Box<[u32]>,
    /// By upstream slot.
    paths: Box<[Path]>,
    /// Sends that get another chance.
    again: Vec<u32>,
    /// Trains that the kernel would not cut.
    singly: Vec<u32>,
    failures: Vec<(u32, i32)>,
    singles: Singles,
}

/// The way to a slot's endpoint.
#[derive(Clone, Copy)]
pub(super) struct Path {
    generation: u32,
    /// Payload bytes of the largest datagram that took it whole when it was looked at; `None`: it
    /// was not.
    whole: Option<u16>,
    /// Payload bytes of the largest datagrams that may go as a train: at first the same, less once
    /// the kernel has refused some.
    in_trains: u16,
}

/// One message, of one flow and direction.
struct Send {
    token: Token,
    target: Target,
    flow: Option<u32>,
    peer: Option<SockAddr>,
    local: Option<IpAddr>,
    size: u32,
    bytes: u32,
    count: u32,
    first: u32,
    last: u32,
    message: libc::msghdr,
    control: Control,
}

/// A stretch of a receive buffer, or of the turn's output. A datagram is in one chunk, or, if it
/// has got another head, in two.
struct Chunk {
    /// `None`: the output.
    buffer: Option<u16>,
    start: u32,
    len: u32,
    next: u32,
}

/// Room for PKTINFO and UDP_SEGMENT messages, aligned as they must be.
#[derive(Clone, Copy, Default)]
struct Control([u64; 9]);

/// Messages of one datagram each, for a train that the kernel would not cut.
struct Singles {
    messages: Vec<libc::msghdr>,
    iovecs: Vec<libc::iovec>,
    /// Where the pieces of each end.
    ends: Vec<usize>,
}

impl Train {
    pub(super) fn new(start: u32, len: u32) -> Self {
        Self { start, len, size: len }
    }

    /// The size that UDP_GRO tells.
    pub(super) fn set_size(&mut self, size: i32) {
        if let Ok(size @ 1..) = u32::try_from(size) {
            self.size = size.min(self.len);
        }
    }

    /// Where in the buffer it is.
    pub(super) fn range(self) -> Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }

    pub(super) fn count(&self) -> u32 {
        if self.size == 0 { 1 } else { self.len.div_ceil(self.size) }
    }

    /// The datagrams of a part.
    fn part(self, part: Part) -> Self {
        let first = u32::from(part.first).saturating_mul(self.size).min(self.len);
        let len = match part.count {
            0 => self.len - first,
            count => u32::from(count).saturating_mul(self.size).min(self.len - first),
        };
        Self { start: self.start + first, len, size: self.size.min(len) }
    }

    /// One after the other. An empty one is one, too.
    fn datagrams(self) -> impl Iterator<Item = (u32, u32)> {
        (0..self.count()).map(move |number| {
            let at = number * self.size;
            (self.start + at, self.size.min(self.len - at))
        })
    }

    pub(super) fn event(
        &self,
        buffer: BufferId,
        peer: Option<SocketAddr>,
        local: Option<IpAddr>,
        truncated: bool,
    ) -> Event {
        let Self { len: bytes, size, .. } = *self;
        Event::Datagrams { buffer, peer, local, bytes, size, count: self.count(), truncated }
    }
}

impl Sends {
    pub(super) fn new(buffers: u16, flows: u32) -> Self {
        // A buffer is cut into at most two: 65,536 bytes are less than twice MAX_BYTES.
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

    /// The path of an upstream slot, to which nobody has looked yet if the slot is used anew.
    pub(super) fn path(&mut self, token: Token) -> &mut Path {
        let path = &mut self.paths[token.slot as usize];
        if path.generation != token.generation {
            *path = Path::new(token.generation);
        }
        path
    }

    pub(super) fn add_up(
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

    pub(super) fn add_down(
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

    /// Sends everything and gives the buffers back.
    pub(super) fn flush(&mut self, buffers: &mut Buffers, queue: &mut Queue, turn: &mut Turn) {
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

    /// The same of datagrams whose heads are other ones: each by itself. Says how many of them the
    /// path would have taken whole without the new head.
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

    /// Adds datagrams that are in these chunks.
    fn add_piece(
        &mut self,
        template: &Send,
        piece: Train,
        chunks: impl IntoIterator<Item = Chunk>,
    ) {
        let first = index(self.chunks.len());
        self.chunks.extend(chunks);
        let end = index(self.chunks.len());
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
        let send = index(self.sends.len());
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

    /// The path to an endpoint; none to a client.
    fn path_of(&self, send: &Send) -> Option<&Path> {
        let is_up = send.token.kind == Kind::Upstream;
        self.paths.get(send.flow.filter(|_| is_up)? as usize)
    }

    /// Fills in the messages. Nothing may be added before they were sent: they point to each other.
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

    /// Which sends go as they are, and of which it is known that they can't.
    fn sort_sends(&mut self) {
        for at in 0..index(self.sends.len()) {
            let send = &self.sends[at as usize];
            let most = self.path_of(send).map_or(u32::MAX, |path| path.in_trains.into());
            let sorted =
                if send.count > 1 && send.size > most { &mut self.singly } else { &mut self.again };
            sorted.push(at);
        }
    }

    /// Sends those in `again`, which is emptied, and notes the failures.
    fn round(&mut self, queue: &mut Queue) {
        queue.failed_sends().clear();
        for index in self.again.drain(..) {
            let send = &self.sends[index as usize];
            let mark = Mark::new(What::Send, index, 0);
            // SAFETY: the message, its name, control data, iovecs and buffers stay where they are
            // until `submit` has returned, below.
            unsafe { queue.send(send.target, &raw const send.message, mark) };
        }
        queue.submit();
        self.failures.clear();
        let failed = queue.failed_sends().drain(..);
        self.failures.extend(failed.map(|completion| (completion.mark.slot, -completion.result)));
    }

    fn sort_failures(&mut self, first_time: bool, turn: &mut Turn) {
        for (index, errno) in self.failures.drain(..) {
            let Some(send) = self.sends.get(index as usize) else { continue };
            match errno {
                // It reports an earlier datagram's fate; this one was not sent.
                libc::ECONNREFUSED if first_time => self.again.push(index),
                // The path takes smaller packets than the train's, or the device can't cut it.
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
        // What the datagram has yet to get.
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
            let mark = Mark::new(What::Send, index(number), 0);
            // SAFETY: messages, iovecs, and what the send's message points to stay where they are
            // until `submit` has returned, below.
            unsafe { queue.send(send.target, ptr::from_ref(message), mark) };
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

impl Path {
    fn new(generation: u32) -> Self {
        Self { generation, whole: None, in_trains: u16::MAX }
    }

    pub(super) fn is_known(&self) -> bool {
        self.whole.is_some()
    }

    /// Payload bytes of the largest datagram that it takes whole. What changes later it learns of
    /// by trains that are refused, and not at all if it takes more than before: until the socket is
    /// closed, its trains then go singly, as they did.
    pub(super) fn takes(&mut self, whole: u16) {
        self.whole = Some(whole);
        self.in_trains = self.in_trains.min(whole);
    }

    /// A train of datagrams of this size was refused: so would the next be.
    fn refused(&mut self, size: u32) {
        let less = u16::try_from(size.saturating_sub(1)).unwrap_or(u16::MAX);
        self.in_trains = self.in_trains.min(less);
    }
}

impl Send {
    fn new(
        token: Token,
        target: Target,
        flow: Option<u32>,
        peer: Option<SockAddr>,
        local: Option<IpAddr>,
    ) -> Self {
        // SAFETY: all zero is a message without anything.
        let message = unsafe { std::mem::zeroed() };
        let control = Control::default();
        let (size, bytes, count, first, last) = (0, 0, 0, NONE, NONE);
        Self { token, target, flow, peer, local, size, bytes, count, first, last, message, control }
    }

    /// Whether `piece` may follow in the same message: only the last datagram may be shorter.
    fn takes(&self, template: &Self, piece: Train) -> bool {
        let fits = piece.size == self.size || (piece.count() == 1 && piece.len < self.size);
        fits && piece.len > 0
            && self.size > 0
            && self.bytes.is_multiple_of(self.size)
            && self.count + piece.count() <= MAX_SEGMENTS
            && self.bytes + piece.len <= MAX_BYTES
            && self.token == template.token
            && self.target == template.target
            && self.peer == template.peer
            && self.local == template.local
    }

    fn why_failed(&self, errno: i32) -> Why {
        match errno {
            // A single datagram of a valid size: what is left to object to is its source.
            libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH if self.local.is_some() => {
                Why::BadSource
            }
            _ => why(errno),
        }
    }

    /// Fills in name and control data; `segment`: bytes per datagram, or 0 for a single one.
    fn address(&mut self, segment: u32) {
        let mut len = 0;
        match self.local {
            Some(IpAddr::V4(ip)) => {
                // Interface index, source address, destination (which sendmsg ignores).
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&ip.octets());
                self.control.push(&mut len, libc::SOL_IP, libc::IP_PKTINFO, &info);
            }
            Some(IpAddr::V6(ip)) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&ip.octets());
                self.control.push(&mut len, libc::SOL_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        if let Ok(segment @ 1..) = u16::try_from(segment) {
            let segment = segment.to_ne_bytes();
            self.control.push(&mut len, libc::SOL_UDP, UDP_SEGMENT, &segment);
        }
        self.message.msg_controllen = len;
        self.message.msg_control = match len {
            0 => ptr::null_mut(),
            _ => self.control.0.as_mut_ptr().cast(),
        };
        if let Some(peer) = &self.peer {
            self.message.msg_name = peer.as_ptr().cast_mut().cast();
            self.message.msg_namelen = peer.len();
        }
    }
}

impl Clone for Send {
    /// A new message like this one: what points into a message is filled in by `address`.
    fn clone(&self) -> Self {
        Self::new(self.token, self.target, self.flow, self.peer.clone(), self.local)
    }
}

impl Chunk {
    /// Where `len` bytes of it are, from `at` on.
    fn iovec(&self, at: u32, len: u32, buffers: &Buffers, output: &[u8]) -> libc::iovec {
        let start = self.start + at;
        let iov_base = match self.buffer {
            Some(buffer) => buffers.at(buffer, start).as_ptr().cast(),
            None => output[start as usize..][..len as usize].as_ptr().cast_mut().cast(),
        };
        libc::iovec { iov_base, iov_len: len as usize }
    }
}

impl Control {
    /// Appends one message at `len`, which moves on to where the next would be.
    fn push(&mut self, len: &mut usize, level: i32, kind: i32, data: &[u8]) {
        const WORD: usize = size_of::<u64>();
        let message = (2 * WORD + data.len()) as u64;
        let mut kinds = [0; 8];
        kinds[..4].copy_from_slice(&level.to_ne_bytes());
        kinds[4..].copy_from_slice(&kind.to_ne_bytes());
        let words = &mut self.0[*len / WORD..];
        words[0] = message;
        words[1] = u64::from_ne_bytes(kinds);
        for (word_at, chunk) in words[2..].iter_mut().zip(data.chunks(WORD)) {
            *word_at = word(chunk);
        }
        *len += 2 * WORD + data.len().next_multiple_of(WORD);
    }
}

/// Up to eight bytes as they lie in memory.
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_ne_bytes(word)
}

/// What is said of a send through a socket that is gone.
fn gone(count: u32) -> Event {
    Event::SendFailed { why: Why::Other(libc::EBADF), count }
}

fn index(at: usize) -> u32 {
    u32::try_from(at).expect("a turn's sends are few")
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::{AsFd, AsRawFd};

    use crate::proxy::op::Kind;

    use super::super::buffers::{DATAGRAMS, Shape};
    use super::super::features::Features;
    use super::super::sys;
    use super::*;

    /// The kernel does not cut trains on a socket without checksums (EINVAL): each datagram then
    /// goes by itself, as it does where the path's MTU is below the train's.
    #[test]
    fn a_train_that_the_kernel_does_not_cut_is_sent_singly() {
        let mut queue = Queue::new(&Features::probe().expect("io_uring")).expect("a ring");
        let mut buffers = Buffers::new(DATAGRAMS, 2, &queue).expect("buffers");
        let mut sends = Sends::new(2, 1);
        let mut turn = Turn::default();
        let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
        client.connect(server.local_addr().expect("bound")).expect("connected");
        sys::set_option(client.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, &1_i32).expect("set");

        buffers.receive(0, 0, &Shape::new(0, 0));
        let mut train = Train::new(16, 250);
        train.set_size(100);
        let token = Token { kind: Kind::Upstream, slot: 0, generation: 1 };
        let target = Some(Target::Plain(client.as_raw_fd()));
        sends.add_up(token, target, (BufferId(0), Part::default()), train, &mut turn);
        sends.flush(&mut buffers, &mut queue, &mut turn);

        let sizes: Vec<_> =
            (0..3).map(|_| server.recv(&mut [0; 1000]).expect("a datagram")).collect();
        assert_eq!(sizes, [100, 100, 50]);
        assert_eq!((turn.events.len(), buffers.free()), (0, 2));
        // The next is not tried as a train first; a smaller one may be.
        assert_eq!(sends.paths[0].in_trains, 99);
        let small = Train { start: 16, len: 60, size: 30 };
        for train in [train, small] {
            let part = Part { more: true, ..Part::default() };
            sends.add_up(token, target, (BufferId(0), part), train, &mut turn);
        }
        sends.sort_sends();
        assert_eq!((&sends.singly[..], &sends.again[..]), (&[0][..], &[1][..]));
    }

    #[test]
    fn datagrams_that_a_header_makes_too_large_for_their_path_are_told_of() {
        let mut sends = Sends::new(2, 2);
        let mut turn = Turn::default();
        let token = |slot| Token { kind: Kind::Upstream, slot, generation: 1 };
        let target = Some(Target::Registered(0));
        sends.path(token(0)).takes(1_000);
        let mut add = |slot, head, sizes: (u32, u32)| {
            let train = Train { start: 0, len: sizes.0, size: sizes.1 };
            let part = Part { strip: 8, head: (0, head), more: true, ..Part::default() };
            sends.add_up(token(slot), target, (BufferId(0), part), train, &mut turn);
            let fragmented = |(_, event): (_, Event)| match event {
                Event::Fragmented { count } => count,
                other => panic!("{other:?}"),
            };
            turn.events.drain(..).map(fragmented).sum::<u32>()
        };
        // With 28 bytes for 8: 1,000 in the end, and 1,001.
        assert_eq!((add(0, 28, (980, 980)), add(0, 28, (981, 981))), (0, 1));
        // Two of the three; and two that were too large before.
        assert_eq!((add(0, 28, (2_500, 990)), add(0, 28, (2_020, 1_010))), (2, 0));
        assert_eq!((add(0, 0, (990, 990)), add(1, 28, (990, 990))), (0, 0), "no head, no path");
    }

    #[test]
    fn trains_are_cut_at_the_limits_of_one_message() {
        let mut sends = Sends::new(4, 1);
        let token = Token { kind: Kind::Upstream, slot: 0, generation: 1 };
        let (target, whole) = (Some(Target::Registered(0)), Part::default());
        let mut train = Train::new(0, 65_500);
        train.set_size(1_000);
        sends.add_up(token, target, (BufferId(0), whole), train, &mut Turn::default());
        let mut small = Train::new(0, 128);
        small.set_size(2);
        sends.add_up(token, target, (BufferId(1), whole), small, &mut Turn::default());
        let last = Train::new(0, 2);
        sends.add_up(token, target, (BufferId(2), whole), last, &mut Turn::default());
        let counts: Vec<_> = sends.sends.iter().map(|send| (send.count, send.bytes)).collect();
        assert_eq!(counts, [(64, 64_000), (2, 1_500), (64, 128), (1, 2)]);
    }
}
