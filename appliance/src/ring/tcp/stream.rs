//! Streams: directions that are busy with small messages receive by a multishot into provided
//! buffers, which saves them a system call and a wake-up's bookkeeping for each.
//!
//! A buffer is taken only when bytes are there, and is given back once the other side's socket has
//! them. When that takes no more, the receive is cancelled; but it goes on eating until the
//! cancellation is through. What it brings is queued behind what was left, and all of it waits, in
//! order and in its buffers, for the next `Move`.

use std::os::fd::BorrowedFd;

use crate::contract::BufferId;
use crate::ring::buffers::Buffers;
use crate::ring::error::RingError;
use crate::ring::features::Features;
use crate::ring::queue::{Completion, Group, Queue};
use crate::ring::user_data::UserData;

/// Larger messages are not worth the copying. The odd 64 bytes keep the beginnings of the buffers,
/// which are all that small messages touch, from meeting in the same few sets of the caches.
const SMALL: Group = Group { id: 1, size: 8 * 1024 + 64 };

pub struct Streams {
    /// `None`: the kernel can't, or may not.
    buffers: Option<Buffers>,
    /// By buffer: what waits in it.
    chunks: Box<[Chunk]>,
}

/// What waits in a buffer, `start..end`, and the buffer behind it in its queue.
#[derive(Clone, Copy, Default)]
struct Chunk {
    start: u32,
    end: u32,
    next: u16,
}

/// Buffers of one direction that wait for their destination, oldest first.
#[derive(Clone, Copy, Default)]
pub struct Waiting {
    /// Bytes in all; the rest means something only if this is not 0.
    pub bytes: u32,
    first: u16,
    last: u16,
}

impl Streams {
    pub fn new(count: u16, features: &Features, queue: &Queue) -> Result<Self, RingError> {
        let usable = features.has("multishot_recv");
        let buffers = usable.then(|| Buffers::new(SMALL, count, queue)).transpose()?;
        Ok(Self { buffers, chunks: vec![Chunk::default(); usize::from(count)].into() })
    }

    /// Begins to receive; false if that can't be done here.
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

    /// Puts `start..end` of a buffer behind what waits.
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

    /// The oldest bytes that wait.
    pub fn first(&self, waiting: &Waiting) -> Option<&[u8]> {
        let Chunk { start, end, .. } = self.chunks[usize::from(waiting.first)];
        let buffers = self.buffers.as_ref().filter(|_| waiting.bytes > 0)?;
        Some(buffers.bytes(waiting.first, start as usize, end as usize))
    }

    /// Takes bytes off the oldest.
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

    /// Gives up what waits.
    pub fn clear(&mut self, waiting: &mut Waiting) {
        while waiting.bytes > 0 {
            let Chunk { start, end, .. } = self.chunks[usize::from(waiting.first)];
            self.pop(waiting, end - start);
        }
    }
}
