//! The io_uring itself: entries in, completions out, and how a completion is told apart.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use io_uring::types::{Fd, Fixed, SubmitArgs, TimeoutFlags, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use crate::proxy::op::Side;

use super::RingError;
use super::buffers::{DATAGRAMS, Group};
use super::features::Features;

const SUBMISSIONS: u32 = 1024;
const COMPLETIONS: u32 = 16_384;

/// How long to wait for the kernel to have memory again, or room for completions.
const RETRY: Duration = Duration::from_millis(1);

pub(super) struct Queue {
    ring: IoUring,
    /// Entries for which the submission queue had no room, oldest first.
    backlog: VecDeque<squeue::Entry>,
    /// Completions that were seen while looking for those of sends.
    kept: VecDeque<Completion>,
    /// Failed sends of the submission that was just made.
    failed_sends: Vec<Completion>,
    wait_flags: EnterFlags,
    /// An error of an `enter` that could not report it.
    broken: Option<io::Error>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) mark: Mark,
    pub(super) result: i32,
    flags: u32,
}

impl Completion {
    /// Whether the multishot that this came from goes on.
    pub(super) fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    pub(super) fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// What an entry is for; it comes back in its completions. 64 bits: what (4), side (4), slot (32),
/// generation (24).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) what: What,
    pub(super) side: Side,
    pub(super) slot: u32,
    pub(super) generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Nothing waits for it: a cancellation that found nothing.
    Ignored = 0,
    /// The eventfd of commands.
    Wake = 1,
    /// Multishot accept on a listening socket.
    Accept = 2,
    /// The pause before a listening socket is closed.
    Lull = 3,
    /// Multishot poll on one side of a session.
    Poll = 4,
    /// Multishot receive on a UDP listening socket.
    ReceiveDown = 5,
    /// Multishot receive on an upstream socket.
    ReceiveUp = 6,
    /// The slot is an index into the sends of one turn.
    Send = 7,
    /// Multishot receive on one side of a session.
    Stream = 8,
}

impl Mark {
    pub(super) fn new(what: What, slot: u32, generation: u32) -> Self {
        Self { what, side: Side::Client, slot, generation }
    }

    pub(super) fn poll(side: Side, slot: u32, generation: u32) -> Self {
        Self { what: What::Poll, side, slot, generation }
    }

    pub(super) fn stream(side: Side, slot: u32, generation: u32) -> Self {
        Self { what: What::Stream, side, slot, generation }
    }

    fn encode(self) -> u64 {
        let side = u64::from(self.side == Side::Endpoint);
        (self.what as u64)
            | side << 4
            | u64::from(self.slot) << 8
            | u64::from(self.generation & 0xff_ffff) << 40
    }

    #[expect(clippy::cast_possible_truncation, reason = "the fields are taken out of their bits")]
    fn decode(data: u64) -> Self {
        let what = match data & 15 {
            1 => What::Wake,
            2 => What::Accept,
            3 => What::Lull,
            4 => What::Poll,
            5 => What::ReceiveDown,
            6 => What::ReceiveUp,
            7 => What::Send,
            8 => What::Stream,
            _ => What::Ignored,
        };
        let side = if data >> 4 & 1 == 0 { Side::Client } else { Side::Endpoint };
        Self { what, side, slot: (data >> 8) as u32, generation: (data >> 40) as u32 }
    }
}

/// The socket of a send or receive: a descriptor, or a slot of the registered files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Plain(RawFd),
    Registered(u32),
}

impl Queue {
    /// Must be called on the thread that will use it: the kernel holds the ring to one task.
    pub(super) fn new(features: &Features) -> Result<Self, RingError> {
        let mut builder = builder();
        builder.setup_cqsize(COMPLETIONS);
        if features.has("no_sqarray") {
            builder.setup_no_sqarray();
        }
        let ring = builder.build(SUBMISSIONS).map_err(RingError::setup)?;
        let wait_flags =
            if features.has("no_iowait") { EnterFlags::NO_IOWAIT } else { EnterFlags::empty() };
        Ok(Self {
            ring,
            backlog: VecDeque::new(),
            kept: VecDeque::with_capacity(COMPLETIONS as usize),
            failed_sends: Vec::with_capacity(SUBMISSIONS as usize),
            wait_flags,
            broken: None,
        })
    }

    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.ring.submitter()
    }

    /// Multishot poll, edge-triggered. `fd` must stay open until the final completion.
    pub(super) fn poll(&mut self, fd: BorrowedFd<'_>, events: i32, mark: Mark) {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), events.unsigned_abs()).multi(true);
        // SAFETY: the entry holds no pointer.
        unsafe { self.push(entry.build().user_data(mark.encode())) };
    }

    /// Multishot accept. `fd` must stay open until the final completion.
    pub(super) fn accept(&mut self, fd: BorrowedFd<'_>, mark: Mark) {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let entry = opcode::AcceptMulti::new(Fd(fd.as_raw_fd())).flags(flags);
        // SAFETY: the entry holds no pointer.
        unsafe { self.push(entry.build().user_data(mark.encode())) };
    }

    /// Cancels what was pushed with `mark`; its final completion follows. Never by POLL_REMOVE,
    /// which fails, and leaks the socket, when a wake-up of the poll is pending.
    pub(super) fn cancel(&mut self, mark: Mark) {
        let ignored = Mark::new(What::Ignored, 0, 0);
        let entry = opcode::AsyncCancel::new(mark.encode())
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(ignored.encode());
        // SAFETY: the entry holds no pointer.
        unsafe { self.push(entry) };
    }

    /// One completion after `time`.
    pub(super) fn timeout(&mut self, time: &'static Timespec, mark: Mark) {
        let entry = opcode::Timeout::new(time).flags(TimeoutFlags::empty());
        // SAFETY: `time` lives for ever.
        unsafe { self.push(entry.build().user_data(mark.encode())) };
    }

    /// Multishot recv into the buffers of a group. `fd` must stay open until the final completion.
    pub(super) fn stream(&mut self, fd: BorrowedFd<'_>, group: Group, mark: Mark) {
        let entry = opcode::RecvMulti::new(Fd(fd.as_raw_fd()), group.id);
        // SAFETY: the entry holds no pointer.
        unsafe { self.push(entry.build().user_data(mark.encode())) };
    }

    /// Multishot recvmsg into the buffers for datagrams.
    ///
    /// # Safety
    ///
    /// `shape` must live until the entry was submitted, and the socket until the final completion.
    pub(super) unsafe fn receive(
        &mut self,
        target: Target,
        shape: *const libc::msghdr,
        mark: Mark,
    ) {
        let entry = match target {
            Target::Plain(fd) => opcode::RecvMsgMulti::new(Fd(fd), shape, DATAGRAMS.id).build(),
            Target::Registered(slot) => {
                opcode::RecvMsgMulti::new(Fixed(slot), shape, DATAGRAMS.id).build()
            }
        };
        // SAFETY: the caller keeps `shape` alive.
        unsafe { self.push(entry.user_data(mark.encode())) };
    }

    /// sendmsg without waiting: it runs inside the submission, and only a failure completes.
    ///
    /// # Safety
    ///
    /// `message` and all that it points to must live until [`Queue::submit`] has returned.
    pub(super) unsafe fn send(&mut self, target: Target, message: *const libc::msghdr, mark: Mark) {
        let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL).unsigned_abs();
        let entry = match target {
            Target::Plain(fd) => opcode::SendMsg::new(Fd(fd), message).flags(flags).build(),
            Target::Registered(slot) => {
                opcode::SendMsg::new(Fixed(slot), message).flags(flags).build()
            }
        };
        let entry = entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(mark.encode());
        // SAFETY: the caller keeps the message alive.
        unsafe { self.push(entry) };
    }

    /// # Safety
    ///
    /// What `entry` points to must live until it was submitted, and what its operation uses until
    /// that has completed.
    unsafe fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() {
            return self.backlog.push_back(entry);
        }
        // SAFETY: the caller's promise.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            return;
        }
        let pending = self.pending();
        // A failure leaves the queue full, and the next wait meets it again and reports it.
        let _ = self.enter(pending, None, EnterFlags::empty());
        // SAFETY: the caller's promise.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }

    /// Submits everything without running completions of other requests (which would need
    /// GETEVENTS), so that sends run inline; returns when the kernel has consumed all of it. Then
    /// [`Queue::failed_sends`] are those that failed.
    pub(super) fn submit(&mut self) {
        loop {
            self.refill();
            let pending = self.pending();
            if pending == 0 {
                break;
            }
            let Err(error) = self.enter(pending, None, EnterFlags::empty()) else { continue };
            self.keep();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EBUSY | libc::EAGAIN) => drop(self.enter_and_wait(0, Some(RETRY))),
                _ => {
                    self.broken = Some(error);
                    break;
                }
            }
        }
        self.keep();
        while self.ring.submission().cq_overflow() {
            if self.enter_and_wait(0, Some(Duration::ZERO)).is_err() {
                break;
            }
            self.keep();
        }
    }

    pub(super) fn failed_sends(&mut self) -> &mut Vec<Completion> {
        &mut self.failed_sends
    }

    /// Submits what is pending and waits for a completion or for `timeout` (`None`: without end):
    /// one system call. Does not wait if there are completions already. True if the completion
    /// queue has overflowed.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        self.refill();
        let busy =
            !self.kept.is_empty() || !self.backlog.is_empty() || !self.ring.completion().is_empty();
        let timeout = if busy { Some(Duration::ZERO) } else { timeout };
        let pending = self.pending();
        let mut result = self.enter_and_wait(pending, timeout);
        // EBUSY: overflowed completions must be taken first. EAGAIN: no memory for a request.
        // Either way, submit nothing for a moment and take what comes.
        if transient(&result) {
            let retry = timeout.map_or(RETRY, |timeout| timeout.min(RETRY));
            result = self.enter_and_wait(0, Some(retry));
        }
        if let Err(error) = result
            && !matches!(
                error.raw_os_error(),
                Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN)
            )
        {
            return Err(error);
        }
        Ok(self.ring.submission().cq_overflow())
    }

    /// The oldest completion.
    pub(super) fn next(&mut self) -> Option<Completion> {
        self.kept.pop_front().or_else(|| self.ring.completion().next().as_ref().map(read))
    }

    /// Completions that wait now.
    pub(super) fn waiting(&mut self) -> usize {
        self.kept.len() + self.ring.completion().len()
    }

    fn keep(&mut self) {
        for entry in self.ring.completion() {
            let completion = read(&entry);
            match completion.mark.what {
                What::Send => self.failed_sends.push(completion),
                _ => self.kept.push_back(completion),
            }
        }
    }

    fn refill(&mut self) {
        let mut submission = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: whoever pushed the entry has promised that its memory lives.
            if unsafe { submission.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    fn pending(&mut self) -> u32 {
        u32::try_from(self.ring.submission().len()).unwrap_or(u32::MAX)
    }

    fn enter_and_wait(&self, submit: u32, timeout: Option<Duration>) -> io::Result<usize> {
        match timeout {
            // Deferred completions run only under GETEVENTS, also where nothing is waited for.
            Some(Duration::ZERO) => {
                let submitter = self.ring.submitter();
                let flags = EnterFlags::GETEVENTS.bits();
                // SAFETY: there is no argument.
                unsafe { submitter.enter::<libc::sigset_t>(submit, 0, flags, None) }
            }
            _ => self.enter(submit, timeout, EnterFlags::GETEVENTS | self.wait_flags),
        }
    }

    fn enter(
        &self,
        submit: u32,
        timeout: Option<Duration>,
        flags: EnterFlags,
    ) -> io::Result<usize> {
        let wanted = u32::from(flags.contains(EnterFlags::GETEVENTS));
        let submitter = self.ring.submitter();
        let Some(timeout) = timeout else {
            // SAFETY: there is no argument.
            return unsafe {
                submitter.enter::<libc::sigset_t>(submit, wanted, flags.bits(), None)
            };
        };
        let timeout = Timespec::from(timeout);
        let arguments = SubmitArgs::new().timespec(&timeout);
        let flags = flags | EnterFlags::EXT_ARG;
        // SAFETY: `arguments` is what EXT_ARG asks for, and outlives the call with its timespec.
        unsafe { submitter.enter(submit, wanted, flags.bits(), Some(&arguments)) }
    }
}

/// The flags that every ring of ours has. The kernel then runs completions only when the worker
/// asks for them, on its own core, in one batch (DEFER_TASKRUN, 6.1).
pub(super) fn builder() -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_submit_all()
        .setup_clamp();
    builder
}

fn read(entry: &cqueue::Entry) -> Completion {
    Completion {
        mark: Mark::decode(entry.user_data()),
        result: entry.result(),
        flags: entry.flags(),
    }
}

fn transient(result: &io::Result<usize>) -> bool {
    let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
    matches!(errno, Some(libc::EBUSY | libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_survive_their_64_bits() {
        let slots = [0, 1, 0x8000_0001, u32::MAX];
        for what in [What::Ignored, What::Wake, What::Accept, What::Lull, What::Poll, What::Stream]
        {
            for (side, slot) in [Side::Client, Side::Endpoint].iter().zip(slots.repeat(2)) {
                let mark = Mark { what, side: *side, slot, generation: 0xff_fffe };
                assert_eq!(Mark::decode(mark.encode()), mark);
            }
        }
    }
}
