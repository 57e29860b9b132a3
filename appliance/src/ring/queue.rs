//! Holds the io_uring: entries in, completions out.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::types::{Fd, Fixed, SubmitArgs, TimeoutFlags, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use crate::ring::error::RingError;
use crate::ring::features::{FILE_RELEASE, Features, builder};
use crate::ring::user_data::{UserData, What};

const SUBMISSIONS: u32 = 1024;
const COMPLETIONS: u32 = 16_384;

/// Completions that may be put off: an accept queue, as long as the kernel usually makes it.
const MOST_PUT_OFF: usize = 4_096;

/// How long to wait until the kernel has memory again, or room for completions.
const RETRY: Duration = Duration::from_millis(1);

/// What a worker asks of its ring. The kernel refuses all else, such as to open a file.
const OPERATIONS: [u8; 8] = [
    opcode::AcceptMulti::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Close::CODE,
    opcode::PollAdd::CODE,
    opcode::RecvMsgMulti::CODE,
    opcode::RecvMulti::CODE,
    opcode::SendMsg::CODE,
    opcode::Timeout::CODE,
];
/// An operation of a ring with registered files. Kernels without it know no such restriction.
const INSTALL: u8 = opcode::FixedFdInstall::CODE;

/// `IORING_REGISTER_FILES_UPDATE`: the one registration that a worker makes later.
const FILES_UPDATE: u8 = 6;

/// A group of provided buffers, all of one size.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub id: u16,
    pub size: u32,
}

/// A buffer has room for a datagram or train of the greatest size, and for the header of recvmsg in
/// front. A shorter buffer would cut a whole train.
const DATAGRAM: u32 = 65_536 + 256;

/// The datagrams of clients. However many come, endpoints have buffers of their own for replies.
pub const OF_CLIENTS: Group = Group { id: 0, size: DATAGRAM };
/// The datagrams of endpoints.
pub const OF_ENDPOINTS: Group = Group { id: 2, size: DATAGRAM };

pub struct Queue {
    ring: IoUring,
    /// Entries that had no room in the submission queue, oldest first.
    backlog: VecDeque<squeue::Entry>,
    /// Completions that were seen while the queue looked for the completions of sends.
    kept: VecDeque<Completion>,
    /// Completions that this turn leaves to the next.
    put_off: VecDeque<Completion>,
    /// Failed sends of the last submission.
    failed_sends: Vec<Completion>,
    /// The result of the last `install`.
    installed: Option<i32>,
    may_install: bool,
    wait_flags: EnterFlags,
    /// An error of an `enter` that had no way to report it.
    broken: Option<io::Error>,
}

#[derive(Clone, Copy, Debug)]
pub struct Completion {
    pub user_data: UserData,
    pub result: i32,
    flags: u32,
}

impl Completion {
    /// Whether the multishot of this completion goes on.
    pub fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    pub fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// The socket of a send or receive: a descriptor, or a slot of the registered files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Plain(RawFd),
    Registered(u32),
}

impl Queue {
    /// See [`Ring::growth`](crate::ring::Ring::growth). As many entries wait at the most as there
    /// is room for completions.
    pub const fn growth() -> usize {
        let completions = COMPLETIONS as usize + 2 * MOST_PUT_OFF + SUBMISSIONS as usize;
        completions * size_of::<Completion>() + COMPLETIONS as usize * size_of::<squeue::Entry>()
    }

    /// Must be called on the thread that will use the queue, because the kernel binds the ring to
    /// one task. The ring takes entries after [`Queue::enable`].
    pub fn new(features: &Features) -> Result<Self, RingError> {
        let mut builder = builder();
        builder.setup_cqsize(COMPLETIONS).setup_r_disabled();
        if features.has("no_sqarray") {
            builder.setup_no_sqarray();
        }
        let ring = patiently(|| builder.build(SUBMISSIONS)).map_err(RingError::setup)?;
        let wait_flags =
            if features.has("no_iowait") { EnterFlags::NO_IOWAIT } else { EnterFlags::empty() };
        Ok(Self {
            ring,
            backlog: VecDeque::new(),
            kept: VecDeque::with_capacity(COMPLETIONS as usize + MOST_PUT_OFF),
            put_off: VecDeque::with_capacity(MOST_PUT_OFF + 1),
            failed_sends: Vec::with_capacity(SUBMISSIONS as usize),
            installed: None,
            may_install: features.has(FILE_RELEASE),
            wait_flags,
            broken: None,
        })
    }

    /// Lets the ring begin, with no other operations than a worker's. A filter of system calls does
    /// not see what goes through a ring, so the ring has bounds of its own
    /// (`IORING_REGISTER_RESTRICTIONS`, Linux 5.10).
    pub fn enable(&self) -> Result<(), RingError> {
        let mut permitted = vec![
            Restriction::register_op(FILES_UPDATE),
            Restriction::sqe_flags_allowed(squeue::Flags::all().bits()),
        ];
        permitted.extend(OPERATIONS.map(Restriction::sqe_op));
        permitted.extend(self.may_install.then(|| Restriction::sqe_op(INSTALL)));
        let submitter = self.submitter();
        submitter
            .register_restrictions(&mut permitted)
            .and_then(|()| submitter.register_enable_rings())
            .map_err(RingError::setup)
    }

    pub fn submitter(&self) -> io_uring::Submitter<'_> {
        self.ring.submitter()
    }

    /// Begins a multishot poll, edge-triggered. `fd` must stay open until the final completion.
    pub fn poll(&mut self, fd: BorrowedFd<'_>, events: i32, user_data: UserData) {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), events.unsigned_abs()).multi(true);
        // SAFETY: the entry holds no pointer.
        unsafe { self.push(entry.build().user_data(user_data.encode())) };
    }

    /// Begins a multishot accept. `fd` must stay open until the final completion.
    pub fn accept(&mut self, fd: BorrowedFd<'_>, user_data: UserData) {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let entry = opcode::AcceptMulti::new(Fd(fd.as_raw_fd())).flags(flags);
        // SAFETY: the entry holds no pointer.
        unsafe { self.push(entry.build().user_data(user_data.encode())) };
    }

    /// Begins an accept of one connection. `fd` must stay open until the completion.
    pub fn accept_one(&mut self, fd: BorrowedFd<'_>, user_data: UserData) {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let none = std::ptr::null_mut();
        let entry = opcode::Accept::new(Fd(fd.as_raw_fd()), none, none.cast()).flags(flags);
        // SAFETY: the entry's pointers are null, which says that no address is wanted.
        unsafe { self.push(entry.build().user_data(user_data.encode())) };
    }

    /// Cancels the request that was pushed with `user_data`. The request's final completion
    /// follows. POLL_REMOVE is never used: if a wake-up of the poll is pending, POLL_REMOVE fails
    /// and leaks the socket.
    pub fn cancel(&mut self, user_data: UserData) {
        let ignored = UserData::new(What::Ignored, 0, 0);
        let entry = opcode::AsyncCancel::new(user_data.encode())
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(ignored.encode());
        // SAFETY: the entry holds no pointer.
        unsafe { self.push(entry) };
    }

    /// Closes a descriptor. Entries are executed in their order, so a request that was cancelled
    /// before holds the descriptor's socket no longer.
    pub fn close(&mut self, fd: OwnedFd) {
        let ignored = UserData::new(What::Ignored, 0, 0);
        let entry = opcode::Close::new(Fd(fd.into_raw_fd()))
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(ignored.encode());
        // SAFETY: the entry holds no pointer, and nobody else owns the descriptor.
        unsafe { self.push(entry) };
    }

    /// Asks for one completion after `time`.
    pub fn timeout(&mut self, time: &'static Timespec, user_data: UserData) {
        let entry = opcode::Timeout::new(time).flags(TimeoutFlags::empty());
        // SAFETY: `time` lives for ever.
        unsafe { self.push(entry.build().user_data(user_data.encode())) };
    }

    /// Begins a multishot recv into the buffers of a group. `fd` must stay open until the final
    /// completion.
    pub fn stream(&mut self, fd: BorrowedFd<'_>, group: Group, user_data: UserData) {
        let entry = opcode::RecvMulti::new(Fd(fd.as_raw_fd()), group.id);
        // SAFETY: the entry holds no pointer.
        unsafe { self.push(entry.build().user_data(user_data.encode())) };
    }

    /// Begins a multishot recvmsg into the buffers of a group.
    ///
    /// # Safety
    ///
    /// `shape` must live until the entry was submitted, and the socket until the final completion.
    pub unsafe fn receive(
        &mut self,
        target: Target,
        (shape, group): (*const libc::msghdr, Group),
        user_data: UserData,
    ) {
        let entry = match target {
            Target::Plain(fd) => opcode::RecvMsgMulti::new(Fd(fd), shape, group.id).build(),
            Target::Registered(slot) => {
                opcode::RecvMsgMulti::new(Fixed(slot), shape, group.id).build()
            }
        };
        // SAFETY: the caller keeps `shape` alive.
        unsafe { self.push(entry.user_data(user_data.encode())) };
    }

    /// Sends by sendmsg without waiting. The send runs inside the submission, and only a failure
    /// makes a completion.
    ///
    /// # Safety
    ///
    /// `message` and all memory that it points to must live until [`Queue::submit`] has returned.
    pub unsafe fn send(
        &mut self,
        target: Target,
        message: *const libc::msghdr,
        user_data: UserData,
    ) {
        let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL).unsigned_abs();
        let entry = match target {
            Target::Plain(fd) => opcode::SendMsg::new(Fd(fd), message).flags(flags).build(),
            Target::Registered(slot) => {
                opcode::SendMsg::new(Fixed(slot), message).flags(flags).build()
            }
        };
        let entry = entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(user_data.encode());
        // SAFETY: the caller keeps the message alive.
        unsafe { self.push(entry) };
    }

    /// Opens a descriptor of a registered file (`IORING_OP_FIXED_FD_INSTALL`, Linux 6.8). Submits
    /// all entries. `None`: no descriptor is left, or this ring has no registered files.
    pub fn install(&mut self, slot: u32) -> Option<OwnedFd> {
        if !self.may_install {
            return None;
        }
        let user_data = UserData::new(What::Install, slot, 0);
        let entry = opcode::FixedFdInstall::new(Fixed(slot), 0).build();
        // SAFETY: the entry holds no pointer.
        unsafe { self.push(entry.user_data(user_data.encode())) };
        self.submit();
        let fd = self.installed.take().filter(|result| *result >= 0)?;
        // SAFETY: the kernel has just opened this descriptor, and nobody else has it.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// # Safety
    ///
    /// The memory that `entry` points to must live until the entry was submitted. The memory that
    /// its operation uses must live until the operation has completed.
    unsafe fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() {
            return self.backlog.push_back(entry);
        }
        // SAFETY: the caller's promise.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            return;
        }
        let pending = self.pending();
        // A failure leaves the queue full. The next wait meets the failure again and reports it.
        let _ = self.enter(pending, None, EnterFlags::empty());
        // SAFETY: the caller's promise.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }

    /// Submits all entries, and returns when the kernel has consumed them. GETEVENTS is not set, so
    /// no completions of other requests run and the sends run inline. Afterwards
    /// [`Queue::failed_sends`] has the sends that failed.
    pub fn submit(&mut self) {
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

    pub fn failed_sends(&mut self) -> &mut Vec<Completion> {
        &mut self.failed_sends
    }

    /// Submits the pending entries, and waits for a completion or for `timeout` (`None`: without
    /// end), in one system call. Does not wait if completions are there already. Returns true if
    /// the completion queue has overflowed.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        self.refill();
        let busy =
            !self.kept.is_empty() || !self.backlog.is_empty() || !self.ring.completion().is_empty();
        let timeout = if busy { Some(Duration::ZERO) } else { timeout };
        let pending = self.pending();
        let mut result = self.enter_and_wait(pending, timeout);
        // EBUSY: overflowed completions must be taken first. EAGAIN: no memory for a request. In
        // both cases, submit nothing for a moment, and take the completions that come.
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

    /// Takes the oldest completion.
    pub fn next(&mut self) -> Option<Completion> {
        self.kept.pop_front().or_else(|| self.ring.completion().next().as_ref().map(read))
    }

    /// The number of completions that wait now.
    pub fn waiting(&mut self) -> usize {
        self.kept.len() + self.ring.completion().len()
    }

    /// Keeps a completion for the next turn. Returns the oldest that was put off, if there are too
    /// many: each of them is an open file.
    pub fn put_off(&mut self, completion: Completion) -> Option<Completion> {
        self.put_off.push_back(completion);
        if self.put_off.len() > MOST_PUT_OFF { self.put_off.pop_front() } else { None }
    }

    /// Ends the turn: what was put off is first in the next one.
    pub fn put_back(&mut self) {
        while let Some(completion) = self.put_off.pop_back() {
            self.kept.push_front(completion);
        }
    }

    fn keep(&mut self) {
        for entry in self.ring.completion() {
            let completion = read(&entry);
            match completion.user_data.what {
                What::Send => self.failed_sends.push(completion),
                What::Install => self.installed = Some(completion.result),
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
            // Deferred completions run only under GETEVENTS, even if the call does not wait.
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

fn read(entry: &cqueue::Entry) -> Completion {
    Completion {
        user_data: UserData::decode(entry.user_data()),
        result: entry.result(),
        flags: entry.flags(),
    }
}

/// Tries again for a second if there is no memory. The kernel takes a ring's pages at once or not
/// at all (Linux 6.14), and may have too few that are free while its caches have plenty. It then
/// makes room.
fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    const TRIES: u32 = 20;
    for _ in 1..TRIES {
        match attempt() {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                std::thread::sleep(Duration::from_millis(50));
            }
            done => return done,
        }
    }
    attempt()
}

fn transient(result: &io::Result<usize>) -> bool {
    let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
    matches!(errno, Some(libc::EBUSY | libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_opens_no_file() {
        let mut queue = Queue::new(&Features::probe().expect("io_uring")).expect("a ring");
        queue.enable().expect("it begins");
        let ask = UserData::new(What::Ignored, 1, 0);
        let entry = opcode::OpenAt::new(Fd(libc::AT_FDCWD), c"/etc/hostname".as_ptr()).build();
        // SAFETY: the path lives for ever.
        unsafe { queue.push(entry.user_data(ask.encode())) };
        queue.wait(Some(Duration::ZERO)).expect("the ring works");
        let completion = queue.next().expect("an answer");
        assert_eq!(completion.result, -libc::EACCES);
    }
}
