//! Carries out one `Move`: bytes from one socket to another until it would block, the budget is
//! spent, or the source ends.

use std::io;
use std::os::fd::BorrowedFd;

use crate::contract::{Event, Mode, Side, Stop, size};
use crate::ring::sys::calls;
use crate::ring::sys::errno::why_failed;
use crate::ring::tcp::half::Half;
use crate::ring::tcp::pipes::Pipes;
use crate::ring::tcp::stream::Streams;
use crate::stats::counters::Counters;

/// How many bytes a `Move` reads.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// At most this many bytes.
    pub budget: u32,
    /// The source has announced its end, so a short read does not mean that no byte is left.
    pub to_eof: bool,
}

pub struct Transfer<'a> {
    pub from: Side,
    pub source: BorrowedFd<'a>,
    pub destination: BorrowedFd<'a>,
    pub half: &'a mut Half,
    pub pipes: &'a mut Pipes,
    pub streams: &'a mut Streams,
    pub scratch: &'a mut [u8],
    pub counters: &'a Counters,
}

/// The bytes that one `Move` has moved so far.
#[derive(Default)]
struct Tally {
    read: usize,
    sent: usize,
}

impl Wanted {
    /// Bytes that may still be read.
    fn left(self, tally: &Tally) -> usize {
        (self.budget as usize).saturating_sub(tally.read)
    }
}

impl Transfer<'_> {
    /// Sends the held bytes first. No byte is read while held bytes are left, so after `Eof` no
    /// bytes are held.
    pub fn run(mut self, mode: Mode, wanted: Wanted) -> Event {
        let mut tally = Tally::default();
        let stop = match self.drain_pipe(&mut tally).or_else(|| self.drain_stream(&mut tally)) {
            Some(stop) => stop,
            None => match mode {
                // Copying needs a pipe only for bytes that the destination does not take. The pipe
                // must be there before any byte is read.
                Mode::Copy if self.half.pipe.is_some() || self.pipes.ready() => {
                    self.copy(wanted, &mut tally)
                }
                Mode::Splice if self.take_large_pipe() => self.splice(wanted, &mut tally),
                Mode::Copy | Mode::Splice => {
                    self.counters.pipe_shortages.add(1);
                    self.copy_without_pipe(wanted, &mut tally)
                }
            },
        };
        self.half.release(self.pipes);
        Event::Moved {
            from: self.from,
            read: size(tally.read),
            sent: size(tally.sent),
            held: self.half.held(),
            stop,
        }
    }

    fn copy(&mut self, wanted: Wanted, tally: &mut Tally) -> Stop {
        loop {
            let room = wanted.left(tally).min(self.scratch.len());
            if room == 0 {
                return Stop::Budget;
            }
            let len = match calls::recv(self.source, &mut self.scratch[..room], 0) {
                Ok(0) => return Stop::Eof,
                Ok(len) => len,
                Err(error) => return self.source_stop(&error),
            };
            tally.read += len;
            let (sent, stop) = send_all(self.destination, &self.scratch[..len]);
            tally.sent += sent;
            match stop {
                Some(error) if is_blocked(&error) => return self.hold(sent, len),
                Some(error) => return self.destination_stop(&error),
                None if is_last(self.source, len, room, wanted) => return Stop::Drained,
                None => {}
            }
        }
    }

    /// Takes from the source only the bytes that the destination has taken, so no bytes are ever
    /// held. The price: bytes that do not fit are copied more than once.
    fn copy_without_pipe(&mut self, wanted: Wanted, tally: &mut Tally) -> Stop {
        loop {
            let room = wanted.left(tally).min(self.scratch.len());
            if room == 0 {
                return Stop::Budget;
            }
            let len = match calls::recv(self.source, &mut self.scratch[..room], libc::MSG_PEEK) {
                Ok(0) => return Stop::Eof,
                Ok(len) => len,
                Err(error) => return self.source_stop(&error),
            };
            let (sent, stop) = send_all(self.destination, &self.scratch[..len]);
            tally.sent += sent;
            let mut left = sent;
            while left > 0 {
                // MSG_TRUNC takes bytes off a TCP socket without copying them.
                match calls::recv(self.source, &mut self.scratch[..left], libc::MSG_TRUNC) {
                    Ok(0) => return Stop::Eof,
                    Ok(taken) => {
                        tally.read += taken;
                        left -= taken;
                    }
                    Err(error) => return self.source_stop(&error),
                }
            }
            match stop {
                Some(error) if is_blocked(&error) => return Stop::Blocked,
                Some(error) => return self.destination_stop(&error),
                None if is_last(self.source, len, room, wanted) => return Stop::Drained,
                None => {}
            }
        }
    }

    /// Splices into the pipe only while the pipe is empty, so EAGAIN means an empty socket or the
    /// mark of TCP's urgent data. splice(2) stops at the mark, and after the FIN it answers 0
    /// although bytes wait behind the mark. recv(2) goes past a mark, so recv decides in both
    /// cases. A short splice means nothing, because small segments fill the pipe's slots early.
    fn splice(&mut self, wanted: Wanted, tally: &mut Tally) -> Stop {
        loop {
            let Some(pipe) = &self.half.pipe else { return Stop::Budget };
            let room = wanted.left(tally).min(pipe.capacity());
            if room == 0 {
                return Stop::Budget;
            }
            match calls::splice(self.source, pipe.writing(), room) {
                Ok(0) => return self.copy(wanted, tally),
                Ok(len) => {
                    tally.read += len;
                    self.half.held = size(len);
                    self.counters.spliced.add(len as u64);
                }
                Err(error) if is_blocked(&error) && calls::is_at_mark(self.source) => {
                    return self.copy(wanted, tally);
                }
                Err(error) => return self.source_stop(&error),
            }
            if let Some(stop) = self.drain_pipe(tally) {
                return stop;
            }
        }
    }

    /// Gives the destination the bytes of the pipe. Returns `None` when the pipe is empty.
    fn drain_pipe(&mut self, tally: &mut Tally) -> Option<Stop> {
        let pipe = self.half.pipe.as_ref()?;
        while self.half.held > 0 {
            match calls::splice(pipe.reading(), self.destination, self.half.held as usize) {
                Ok(len) => {
                    tally.sent += len;
                    self.half.held -= size(len);
                }
                Err(error) if is_blocked(&error) => return Some(Stop::Blocked),
                Err(error) => return Some(self.destination_stop(&error)),
            }
        }
        None
    }

    /// Gives the destination the bytes that a stream has left. Bytes that the destination does not
    /// take go into the pipe if there is one, because buffers are few and other streams need them.
    fn drain_stream(&mut self, tally: &mut Tally) -> Option<Stop> {
        while let Some(bytes) = self.streams.first(&self.half.waiting) {
            let (sent, error) = send_all(self.destination, bytes);
            self.streams.pop(&mut self.half.waiting, size(sent));
            tally.sent += sent;
            match error {
                None => {}
                Some(error) if is_blocked(&error) => {
                    self.hold_stream();
                    return Some(Stop::Blocked);
                }
                Some(error) => return Some(self.destination_stop(&error)),
            }
        }
        None
    }

    fn hold_stream(&mut self) {
        if !self.take_pipe() {
            return self.counters.pipe_shortages.add(1);
        }
        let Some(pipe) = &self.half.pipe else { return };
        while let Some(bytes) = self.streams.first(&self.half.waiting) {
            // A full pipe leaves the rest where it is.
            let Ok(len) = calls::write(pipe.writing(), bytes) else { return };
            self.streams.pop(&mut self.half.waiting, size(len));
            self.half.held += size(len);
        }
    }

    /// Puts the bytes that the destination did not take into the pipe: `scratch[sent..len]`.
    fn hold(&mut self, sent: usize, len: usize) -> Stop {
        assert!(self.take_pipe(), "a pipe was made sure of before reading");
        let rest = &self.scratch[sent..len];
        let Some(pipe) = &self.half.pipe else { return Stop::Blocked };
        // An empty pipe takes all bytes of the scratch memory in one write, unless the kernel has
        // no memory for them. In that case the bytes are lost, and the session fails.
        match calls::write(pipe.writing(), rest) {
            Ok(len) if len == rest.len() => {
                self.half.held = size(len);
                Stop::Blocked
            }
            Ok(_) => self.destination_stop(&io::Error::from_raw_os_error(libc::ENOMEM)),
            Err(error) => self.destination_stop(&error),
        }
    }

    fn take_pipe(&mut self) -> bool {
        if self.half.pipe.is_none() {
            self.half.pipe = self.pipes.take();
        }
        self.half.pipe.is_some()
    }

    fn take_large_pipe(&mut self) -> bool {
        if self.half.pipe.is_none() {
            self.half.pipe = self.pipes.take_large();
        }
        self.half.pipe.is_some()
    }

    fn source_stop(&self, error: &io::Error) -> Stop {
        if is_blocked(error) {
            return Stop::Drained;
        }
        Stop::Failed { side: self.from, why: why_failed(error) }
    }

    fn destination_stop(&self, error: &io::Error) -> Stop {
        Stop::Failed { side: self.from.other(), why: why_failed(error) }
    }
}

/// Returns how many bytes went, and the error that stopped the rest.
pub fn send_all(to: BorrowedFd<'_>, bytes: &[u8]) -> (usize, Option<io::Error>) {
    let mut sent = 0;
    while sent < bytes.len() {
        match calls::send(to, &bytes[sent..]) {
            Ok(len) => sent += len,
            Err(error) => return (sent, Some(error)),
        }
    }
    (sent, None)
}

/// Whether a receive of `len` bytes, with `room` for more, shows that no byte is left. It does not
/// if the end was announced, nor at the mark of urgent data, where a receive stops early.
pub fn is_last(source: BorrowedFd<'_>, len: usize, room: usize, wanted: Wanted) -> bool {
    len < room && !wanted.to_eof && !calls::is_at_mark(source)
}

pub fn is_blocked(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAGAIN)
}
