//! Holds one message of sendmsg(2): the places of its datagrams, and its control data.

use std::net::IpAddr;
use std::ptr;

use socket2::SockAddr;

use crate::contract::{Token, Why};
use crate::ring::buffers::Buffers;
use crate::ring::queue::Target;
use crate::ring::sys::errno::why;
use crate::ring::udp::train::Train;

/// The maximum number of datagrams of one message (`UDP_MAX_SEGMENTS` of kernels before 6.9).
pub const MAX_SEGMENTS: u32 = 64;

/// The maximum number of bytes of one message: 65,507, the most over IPv4, less the bytes that a
/// path may add.
pub const MAX_BYTES: u32 = 65_000;

/// No send to append to.
pub const NONE: u32 = u32::MAX;

/// One message, of one flow and direction.
pub struct Send {
    pub token: Token,
    pub target: Target,
    pub flow: Option<u32>,
    pub peer: Option<SockAddr>,
    pub local: Option<IpAddr>,
    pub size: u32,
    pub bytes: u32,
    pub count: u32,
    pub first: u32,
    pub last: u32,
    pub message: libc::msghdr,
    pub control: Control,
}

/// A stretch of a receive buffer, or of the turn's output. A datagram lies in one chunk, or in two
/// if its head was replaced.
pub struct Chunk {
    /// `None`: the output.
    pub buffer: Option<u16>,
    pub start: u32,
    pub len: u32,
    pub next: u32,
}

/// Room for PKTINFO and UDP_SEGMENT messages, with the alignment that they need.
#[derive(Clone, Copy, Default)]
pub struct Control(pub [u64; 9]);

impl Send {
    pub fn new(
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

    /// Whether `piece` may follow in this message: only the last datagram may be shorter.
    pub fn takes(&self, template: &Self, piece: Train) -> bool {
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

    pub fn why_failed(&self, errno: i32) -> Why {
        match errno {
            // A single datagram of a valid size: the kernel can refuse only its source address.
            libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH if self.local.is_some() => {
                Why::BadSource
            }
            _ => why(errno),
        }
    }

    /// Fills in name and control data. `segment`: bytes per datagram, or 0 for a single one.
    pub fn address(&mut self, segment: u32) {
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
            self.control.push(&mut len, libc::SOL_UDP, libc::UDP_SEGMENT, &segment);
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
    /// Makes a new message like this one. `address` fills in the pointers into the message.
    fn clone(&self) -> Self {
        Self::new(self.token, self.target, self.flow, self.peer.clone(), self.local)
    }
}

impl Chunk {
    /// The place of `len` bytes of the chunk, from `at` on.
    pub fn iovec(&self, at: u32, len: u32, buffers: &Buffers, output: &[u8]) -> libc::iovec {
        let start = self.start + at;
        let iov_base = match self.buffer {
            Some(buffer) => buffers.at(buffer, start).as_ptr().cast(),
            None => output[start as usize..][..len as usize].as_ptr().cast_mut().cast(),
        };
        libc::iovec { iov_base, iov_len: len as usize }
    }
}

impl Control {
    /// Appends one message at `len`, and moves `len` to the place of the next.
    pub fn push(&mut self, len: &mut usize, level: i32, kind: i32, data: &[u8]) {
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
pub fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_ne_bytes(word)
}
