//! TCP peers with habits: how much they send and read at a time, when they pause, how they leave.

use crate::sim::kernel::Kernel;
use crate::sim::rng::Rng;
use crate::sim::tcp::conn::ConnId;

#[derive(Debug)]
pub struct Peer {
    pub conn: ConnId,
    left: u64,
    write: u64,
    read: u64,
    pause: u64,
    /// The pause grows while nothing moves.
    idle: u64,
    /// Reads nothing before this, microseconds.
    deaf_until: u64,
    /// Sends nothing before the other end has sent something, or has ended.
    listens: bool,
    leaves: Leaves,
    pub done: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    /// A FIN after its last byte; reads on until the other end's.
    Fin,
    /// A FIN only when the other end has sent its own.
    FinSecond,
    /// Closes its socket after its last byte, read or not.
    Close,
    /// Resets once so many bytes have gone either way.
    ResetAt(u64),
    /// Is gone without a word once so many bytes have gone either way.
    VanishAt(u64),
    /// Keeps the connection for ever.
    Never,
}

impl Peer {
    pub fn random(rng: &mut Rng, conn: ConnId, now: u64, prefix: u64) -> Self {
        let bytes = match rng.below(10) {
            0 => 0,
            1 => rng.scale(1 << 16, 8 << 20),
            _ => rng.scale(1, 1 << 16),
        };
        let leaves = match rng.below(20) {
            0..8 => Leaves::Fin,
            8..13 => Leaves::FinSecond,
            13 => Leaves::Close,
            14..17 => Leaves::ResetAt(rng.scale(1, 2 * bytes.max(1)) - 1),
            17 => Leaves::VanishAt(rng.scale(1, 2 * bytes.max(1)) - 1),
            _ => Leaves::Never,
        };
        let deaf = if rng.per_mille(150) { rng.scale(1_000, 10_000_000) } else { 0 };
        Self {
            conn,
            left: prefix + bytes,
            // A hello may trickle in, a byte at a time.
            write: if prefix > 0 && rng.per_mille(200) { 1 } else { rng.scale(16, 1 << 20) },
            read: rng.scale(64, 1 << 20),
            pause: rng.scale(10, 20_000),
            idle: 0,
            deaf_until: now + deaf,
            listens: false,
            leaves,
            done: false,
        }
    }

    /// Sends nothing after the PROXY header, if there is one, and ends after the other end.
    pub fn says_nothing(&mut self, header: u64) {
        self.left = header;
        self.leaves = Leaves::FinSecond;
    }

    /// Waits for the other end's first words.
    pub fn listens(&mut self) {
        self.listens = true;
    }

    /// One step; returns when the next is due, microseconds.
    pub fn step(&mut self, kernel: &mut Kernel, rng: &mut Rng) -> Option<u64> {
        if self.done || self.is_over(kernel) {
            self.done = true;
            return None;
        }
        let mut moved = 0;
        if kernel.now >= self.deaf_until {
            moved += kernel.peer_read(self.conn, self.read);
        }
        let heard = &kernel.conn(self.conn).outbound;
        let waits = self.listens && heard.taken == 0 && !heard.fin_seen;
        let most = if waits { 0 } else { self.left.min(self.write) };
        let written = kernel.peer_write(self.conn, most);
        self.left -= written;
        moved += written;
        self.idle = if moved > 0 { 0 } else { (2 * self.idle).clamp(10, 50_000) };
        self.leave(kernel, rng);
        let conn = kernel.conn(self.conn);
        self.done |= conn.outbound.fin_seen && conn.inbound.fin;
        Some(kernel.now + rng.between(1, self.pause) + self.idle)
    }

    fn leave(&mut self, kernel: &mut Kernel, rng: &mut Rng) {
        let conn = kernel.conn(self.conn);
        let moved = conn.inbound.written + conn.outbound.taken;
        let ended = conn.outbound.fin_seen;
        match self.leaves {
            Leaves::Fin if self.left == 0 => kernel.peer_fin(self.conn),
            Leaves::FinSecond if self.left == 0 && ended => kernel.peer_fin(self.conn),
            Leaves::Close if self.left == 0 => {
                kernel.peer_close(self.conn);
                self.done = true;
            }
            Leaves::ResetAt(at) if moved >= at => {
                kernel.peer_reset(self.conn);
                self.done = true;
            }
            Leaves::VanishAt(at) if moved >= at => {
                kernel.peer_vanish(self.conn, rng.scale(1_000, 3_000_000));
                self.done = true;
            }
            _ => {}
        }
    }

    fn is_over(&self, kernel: &Kernel) -> bool {
        let conn = kernel.conn(self.conn);
        conn.refused || conn.reset_seen || conn.error.is_some()
    }

    /// From now on: reads everything, sends no more, and leaves politely.
    pub fn quiet(&mut self) {
        if self.leaves != Leaves::Never {
            self.leaves = Leaves::Fin;
        }
        self.left = 0;
        self.read = u64::MAX;
        self.pause = 1_000;
        self.deaf_until = 0;
        self.listens = false;
    }

    /// It never leaves by itself.
    pub fn stays(&self) -> bool {
        self.leaves == Leaves::Never
    }
}
