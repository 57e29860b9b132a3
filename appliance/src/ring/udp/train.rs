//! Describes the content of a receive buffer: one datagram, or a train of equal ones.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::contract::{BufferId, Event, Part};

/// The content of a receive buffer: datagrams of one size. Only the last may be shorter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Train {
    pub start: u32,
    pub len: u32,
    /// Bytes of each datagram but the last. Never 0, unless the only datagram is empty.
    pub size: u32,
}

impl Train {
    pub fn new(start: u32, len: u32) -> Self {
        Self { start, len, size: len }
    }

    /// Sets the size that libc::UDP_GRO tells.
    pub fn set_size(&mut self, size: i32) {
        if let Ok(size @ 1..) = u32::try_from(size) {
            self.size = size.min(self.len);
        }
    }

    /// The place of the train in the buffer.
    pub fn range(self) -> Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }

    pub fn count(&self) -> u32 {
        if self.size == 0 { 1 } else { self.len.div_ceil(self.size) }
    }

    /// The datagrams of a part.
    pub fn part(self, part: Part) -> Self {
        let first = u32::from(part.first).saturating_mul(self.size).min(self.len);
        let len = match part.count {
            0 => self.len - first,
            count => u32::from(count).saturating_mul(self.size).min(self.len - first),
        };
        Self { start: self.start + first, len, size: self.size.min(len) }
    }

    /// The datagrams, one after the other. An empty datagram counts as one, too.
    pub fn datagrams(self) -> impl Iterator<Item = (u32, u32)> {
        (0..self.count()).map(move |number| {
            let at = number * self.size;
            (self.start + at, self.size.min(self.len - at))
        })
    }

    pub fn event(
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
