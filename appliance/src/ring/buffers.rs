//! Holds receive buffers: memory that the kernel fills from provided-buffer rings.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use crate::contract::BufferId;
use crate::ring::error::RingError;
use crate::ring::queue::{Group, Queue};
use crate::ring::sys::memory::Memory;

/// The fields that a multishot recvmsg writes in front of the payload. The kernel reads only the
/// two lengths, and lays the buffer out as header, name, control data, payload.
pub struct Shape(libc::msghdr);

/// `struct io_uring_recvmsg_out`: the lengths of name, control data and payload, and flags.
const HEADER: usize = 16;

impl Shape {
    pub fn new(name: usize, control: usize) -> Box<Self> {
        // SAFETY: all zero is a message without anything.
        let mut shape: libc::msghdr = unsafe { std::mem::zeroed() };
        shape.msg_namelen = libc::socklen_t::try_from(name).expect("a short name");
        shape.msg_controllen = control;
        Box::new(Self(shape))
    }

    pub fn as_ptr(&self) -> *const libc::msghdr {
        &raw const self.0
    }
}

/// The parts of a received buffer.
pub struct Received<'a> {
    pub name: &'a [u8],
    pub control: &'a [u8],
    /// Where the payload begins in the buffer.
    pub start: u32,
    /// Bytes of payload in the buffer.
    pub len: u32,
    pub truncated: bool,
}

/// The buffers of one group or of several, all of one size. Each group has as many as the others,
/// in the order of their numbers.
pub struct Buffers {
    /// Bytes of a buffer.
    size: u32,
    memory: Memory,
    rings: Box<[Entries]>,
    /// The buffers of a ring: two to this power.
    shift: u32,
    /// By buffer: whether the buffer was received and not given back.
    taken: Box<[bool]>,
}

/// The buffers of one group that the kernel has.
struct Entries {
    memory: Memory,
    /// `publish` writes this value to the ring's shared tail.
    tail: u16,
    /// Buffers of this group that were received and not given back.
    outside: u16,
}

impl Buffers {
    /// Gives `each` buffers (a power of two) to each group; at most 65,536 in all. The kernel
    /// allocates a page only when bytes are received into it.
    pub fn new(groups: &[Group], each: u16, queue: &Queue) -> Result<Self, RingError> {
        let failed = |source| RingError::Failed { what: "cannot map receive buffers", source };
        let (count, size) = (groups.len() * usize::from(each), groups[0].size);
        assert!(groups.iter().all(|group| group.size == size), "one size");
        let memory = Memory::new(count * size as usize).map_err(failed)?;
        let rings = groups.iter().map(|group| Entries::new(*group, each, queue));
        let rings = rings.collect::<Result<_, _>>()?;
        let taken = vec![false; count].into();
        let mut buffers = Self { size, memory, rings, shift: each.trailing_zeros(), taken };
        for id in 0..count {
            buffers.provide(u16::try_from(id).expect("at most 65,536 buffers"));
        }
        buffers.publish();
        Ok(buffers)
    }

    /// The number of buffers that the kernel has, if each group had as few as the group with the
    /// fewest: a group that has none receives nothing, however many others have.
    pub fn free(&self) -> u64 {
        let most = self.rings.iter().map(|ring| ring.outside).max().unwrap_or(0);
        (self.taken.len() - self.rings.len() * usize::from(most)) as u64
    }

    /// Notes that the kernel has filled `filled` bytes of a buffer, and returns the buffer's parts.
    pub fn receive(&mut self, id: u16, filled: usize, shape: &Shape) -> Received<'_> {
        take_apart(self.take(id, filled), shape)
    }

    /// Notes that the kernel has filled `filled` bytes of a buffer, and returns these bytes.
    pub fn take(&mut self, id: u16, filled: usize) -> &[u8] {
        let taken = &mut self.taken[usize::from(id)];
        assert!(!*taken, "the kernel fills only buffers that it has");
        *taken = true;
        self.ring_of(id).outside += 1;
        self.bytes(id, 0, filled)
    }

    /// The bytes from `start` to `end` that the kernel has put into a taken buffer.
    pub fn bytes(&self, id: u16, start: usize, end: usize) -> &[u8] {
        assert!(self.taken[usize::from(id)], "the kernel may write into any other");
        let end = end.min(self.size as usize);
        // SAFETY: these bytes are inside the buffer, which is anonymous memory and so initialised.
        // The kernel does not touch the buffer before it is provided again.
        let bytes = unsafe { std::slice::from_raw_parts(self.at(id, 0).as_ptr(), end) };
        &bytes[start..]
    }

    /// The address of a byte of a buffer.
    pub fn at(&self, id: u16, offset: u32) -> NonNull<u8> {
        self.memory.at(usize::from(id) * self.size as usize + offset as usize)
    }

    /// Takes a buffer back. The kernel sees the buffer after the next `publish`.
    pub fn give_back(&mut self, id: BufferId) {
        let taken = &mut self.taken[usize::from(id.0)];
        assert!(*taken, "each buffer is answered once");
        *taken = false;
        self.ring_of(id.0).outside -= 1;
        self.provide(id.0);
    }

    /// Lets the kernel see all buffers that were given back.
    pub fn publish(&self) {
        self.rings.iter().for_each(Entries::publish);
    }

    fn provide(&mut self, id: u16) {
        let address = self.at(id, 0).as_ptr() as u64;
        let (size, mask) = (self.size, (1 << self.shift) - 1);
        self.ring_of(id).provide(id, (address, size), mask);
    }

    fn ring_of(&mut self, id: u16) -> &mut Entries {
        &mut self.rings[usize::from(id) >> self.shift]
    }
}

impl Entries {
    fn new(group: Group, count: u16, queue: &Queue) -> Result<Self, RingError> {
        let failed = |source| RingError::Failed { what: "cannot map receive buffers", source };
        let memory = Memory::new(usize::from(count) * size_of::<BufRingEntry>()).map_err(failed)?;
        let address = memory.at(0).as_ptr() as u64;
        // SAFETY: `memory` has room for `count` entries, and is unmapped only after the ring was
        // closed (field order of `Ring`).
        let registered =
            unsafe { queue.submitter().register_buf_ring_with_flags(address, count, group.id, 0) };
        registered.map_err(|source| match source.raw_os_error() {
            Some(libc::ENOMEM) => RingError::NoMemory,
            _ => RingError::Failed { what: "cannot register receive buffers", source },
        })?;
        Ok(Self { memory, tail: 0, outside: 0 })
    }

    fn publish(&self) {
        let base = self.memory.at(0).cast::<BufRingEntry>();
        // SAFETY: `base` is the registered ring.
        let tail = unsafe { BufRingEntry::tail(base.as_ptr()) };
        // SAFETY: the tail is a u16 within the mapping, aligned, and shared with the kernel, which
        // reads the tail atomically.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// `mask`: one less than the number of entries.
    fn provide(&mut self, id: u16, (address, len): (u64, u32), mask: usize) {
        let index = usize::from(self.tail) & mask;
        let entry = self.memory.at(index * size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        // SAFETY: the entry is inside the mapping and aligned, and all zero is a valid entry. The
        // kernel does not read the entry before the tail has passed it. The tail lies in the
        // padding of the first entry, which the setters leave alone.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(address);
        entry.set_len(len);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }
}

fn take_apart<'a>(bytes: &'a [u8], shape: &Shape) -> Received<'a> {
    let word = |at: usize| {
        bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b))
    };
    let (name_len, control_len, flags) = (word(0) as usize, word(4) as usize, word(12));
    let name_room = shape.0.msg_namelen as usize;
    let control_at = HEADER + name_room;
    let start = control_at + shape.0.msg_controllen;
    let part = |at: usize, len: usize| bytes.get(at..at + len).unwrap_or_default();
    Received {
        name: part(HEADER, name_len.min(name_room)),
        control: part(control_at, control_len.min(shape.0.msg_controllen)),
        start: u32::try_from(start).expect("a short header"),
        len: u32::try_from(bytes.len().saturating_sub(start)).expect("a buffer's length"),
        truncated: flags & libc::MSG_TRUNC.unsigned_abs() != 0,
    }
}

/// The error for a limit that the kernel would not take.
pub fn check_count(count: u16) -> Result<(), RingError> {
    if count.is_power_of_two() && count <= 32_768 {
        return Ok(());
    }
    let source = io::Error::from_raw_os_error(libc::EINVAL);
    Err(RingError::Failed { what: "limits.buffers must be a power of two up to 32768", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_taken_apart_as_the_kernel_laid_it_out() {
        let shape = Shape::new(4, 8);
        let mut bytes = Vec::new();
        for word in [4_u32, 3, 5, libc::MSG_TRUNC.unsigned_abs()] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(b"nameCON.....pay");
        let received = take_apart(&bytes, &shape);
        assert_eq!((received.name, received.control), (&b"name"[..], &b"CON"[..]));
        assert_eq!((received.start, received.len, received.truncated), (28, 3, true));
        assert_eq!(take_apart(&bytes[..10], &shape).len, 0);
    }
}
