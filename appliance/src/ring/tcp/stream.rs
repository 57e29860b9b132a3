//! Holds the streams. A direction that is busy with small messages receives by a multishot into
//! provided buffers. A stream saves a system call and the work of a wake-up for each message.
//!
//! The kernel takes a buffer only when bytes are there. The ring gives the buffer back when the
//! other side's socket has taken the bytes. When that socket takes no more, the receive is
//! cancelled, but still receives until the cancellation is through. These bytes are queued behind
//! the bytes left over. All of them wait, in order and in their buffers, for the next `Move`.

use std::os::fd::BorrowedFd;

use crate::contract::BufferId;
use crate::ring::buffers::Buffers;
use crate::ring::error::RingError;
use crate::ring::features::Features;
use crate::ring::queue::{Completion, Group, Queue};
use crate::ring::user_data::UserData;

/// Larger messages are not worth the copying. The odd 64 bytes spread the beginnings of the buffers
/// over the sets of the caches, because small messages touch only these beginnings.
const SMALL: Group = Group { id: 1, size: 8 * 1024 + 64 };

pub struct Streams {
    /// `None`: the kernel has no streams, or they are masked.
    buffers: Option<Buffers>,
    /// By buffer: the bytes that wait in the buffer.
    chunks: Box<[Chunk]>,
}

/// The bytes `start..end` that wait in a buffer, and the buffer behind this one in its queue.
#[derive(Clone, Copy, Default)]
struct Chunk {
    start: u32,
    end: u32,
    next: u16,
}

/// Buffers of one direction that wait for their destination, oldest first.
#[derive(Clone, Copy, Default)]
pub struct Waiting {
    /// Bytes in all. The other fields have a meaning only if this is not 0.
    pub bytes: u32,
    first: u16,
    last: u16,
}

impl Streams {
    /// See [`Ring::growth`](crate::ring::Ring::growth).
    pub const fn growth(buffers: u16) -> usize {
        buffers as usize * SMALL.size as usize
    }

    pub fn new(count: u16, features: &Features, queue: &Queue) -> Result<Self, RingError> {
        let usable = features.has("multishot_recv");
        let buffers = usable.then(|| Buffers::new(&[SMALL], count, queue)).transpose()?;
        Ok(Self { buffers, chunks: vec![Chunk::default(); usize::from(count)].into() })
    }

    /// Begins to receive. Returns false if streams are not available here.
    pub fn begin(&mut self, fd: BorrowedFd<'_>, user_data: UserData, queue: &mut Queue) -> bool {
        if self.buffers.is_none() {
            return false;
        }
        queue.stream(fd, SMALL, user_data);
        true
    }

    /// The buffer that a completion has brought, and its bytes.
    pub fn taken(&mut self, completion: &Completion) -> Option<(u16, &[u8])> {
        let id = completion.buffer()?;
        let filled = usize::try_from(completion.result).unwrap_or(0);
        Some((id, self.buffers.as_mut()?.take(id, filled)))
    }

    pub fn give_back(&mut self, id: u16) {
        if let Some(buffers) = &mut self.buffers {
            buffers.give_back(BufferId(id));
            buffers.publish();
        }
    }

    /// Puts `start..end` of a buffer behind the waiting bytes.
    pub fn push(&mut self, waiting: &mut Waiting, id: u16, start: u32, end: u32) {
        self.chunks[usize::from(id)] = Chunk { start, end, next: id };
        if waiting.bytes == 0 {
            waiting.first = id;
        } else {
            self.chunks[usize::from(waiting.last)].next = id;
        }
        waiting.last = id;
        waiting.bytes += end - start;
    }

    /// The oldest waiting bytes.
    pub fn first(&self, waiting: &Waiting) -> Option<&[u8]> {
        let Chunk { start, end, .. } = self.chunks[usize::from(waiting.first)];
        let buffers = self.buffers.as_ref().filter(|_| waiting.bytes > 0)?;
        Some(buffers.bytes(waiting.first, start as usize, end as usize))
    }

    /// Takes bytes off the oldest buffer.
    pub fn pop(&mut self, waiting: &mut Waiting, len: u32) {
        let id = waiting.first;
        let chunk = &mut self.chunks[usize::from(id)];
        chunk.start += len;
        waiting.bytes -= len;
        if chunk.start == chunk.end {
            waiting.first = chunk.next;
            self.give_back(id);
        }
    }

    /// Drops the waiting bytes.
    pub fn clear(&mut self, waiting: &mut Waiting) {
        while waiting.bytes > 0 {
            let Chunk { start, end, .. } = self.chunks[usize::from(waiting.first)];
            self.pop(waiting, end - start);
        }
    }
}
