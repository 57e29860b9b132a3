//! Takes from a worker's thread the system calls that no worker makes (seccomp(2)).
//!
//! What goes through the ring is no system call, so [`crate::ring`] restricts its ring too.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::ffi::c_long;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

/// The calls of `ring/`, and those of the allocator, of locks, of channels, of a thread's end and
/// of a panic. None of them opens a file, starts a program or thread, or listens.
const CALLS: &[c_long] = &[
    // Sockets and pipes.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_fcntl,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_splice,
    libc::SYS_write,
    libc::SYS_writev,
    // Memory; `mmap` and `mprotect` are below.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Time, locks, random numbers, signals, and the thread itself.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_membarrier,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
];

/// From now on, each other call of the calling thread fails with `EPERM`. So do mappings that can
/// be executed, and sockets that are neither of IP nor Unix sockets.
///
/// # Errors
/// The kernel has no filters of system calls, or permits none.
pub fn confine_worker() -> io::Result<()> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let permitted = |argument, values: &[i32]| {
        let one_of = values.iter().map(|value| only_if(argument, SeccompCmpOp::Eq, *value));
        one_of.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)
    };
    let families = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX];
    rules.insert(libc::SYS_socket, permitted(0, &families)?);
    let questions = [SIOCATMARK, TIOCOUTQ, FIONREAD];
    rules.insert(libc::SYS_ioctl, permitted(1, &questions)?);
    rules.insert(libc::SYS_bpf, permitted(0, &ENTRIES)?);
    let executable = libc::PROT_EXEC.unsigned_abs().into();
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let data = only_if(2, SeccompCmpOp::MaskedEq(executable), 0).map_err(io::Error::other)?;
        rules.insert(call, vec![data]);
    }
    load(rules, SeccompAction::Errno(EPERM), SeccompAction::Allow)
}

/// From now on, each of these calls of the calling thread and its children fails with `EPERM`.
///
/// # Errors
/// The kernel has no filters of system calls, or permits none.
pub fn forbid(calls: &[c_long]) -> io::Result<()> {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    load(rules, SeccompAction::Allow, SeccompAction::Errno(EPERM))
}

const EPERM: u32 = libc::EPERM.unsigned_abs();

// Of bpf(2), what concerns entries of a map: look up, update, and take. A worker loads no program.
const ENTRIES: [i32; 3] = [1, 2, 21];

// The numbers of ioctl(2) that `calls.rs` asks.
const SIOCATMARK: i32 = 0x8905;
const TIOCOUTQ: i32 = 0x5411;
const FIONREAD: i32 = 0x541b;

fn only_if(argument: u8, how: SeccompCmpOp, value: i32) -> Result<SeccompRule, BackendError> {
    let value = value.unsigned_abs().into();
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, how, value)?])
}

fn load(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    others: SeccompAction,
    these: SeccompAction,
) -> io::Result<()> {
    let arch = TargetArch::try_from(ARCH).map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, others, these, arch).map_err(io::Error::other)?;
    let program = BpfProgram::try_from(filter).map_err(io::Error::other)?;
    apply_filter(&program).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd as _;
    use std::process::Command;
    use std::thread;

    use super::*;
    use crate::ring::sys::calls;

    fn errno<T>(result: io::Result<T>) -> Option<i32> {
        result.err()?.raw_os_error()
    }

    /// Runs `work` on a thread of its own, because a filter can't be taken off.
    fn confined<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = thread::spawn(move || {
            confine_worker().expect("this kernel has filters");
            work()
        });
        thread.join().expect("no panic")
    }

    #[test]
    fn a_worker_opens_no_file_and_starts_no_program_or_thread() {
        let found = confined(|| {
            let opened = errno(File::open("/etc/hostname"));
            let started = errno(Command::new("/bin/true").spawn().map(drop));
            let thread = errno(thread::Builder::new().spawn(|| ()).map(drop));
            [opened, started, thread]
        });
        assert_eq!(found, [Some(libc::EPERM); 3]);
    }

    #[test]
    fn a_worker_listens_nowhere_and_speaks_to_no_part_of_the_kernel() {
        let found = confined(|| {
            let listener = errno(TcpListener::bind("127.0.0.1:0"));
            // SAFETY: no memory is passed.
            let netlink = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0) };
            let why = (netlink < 0).then(|| io::Error::last_os_error().raw_os_error()).flatten();
            // SAFETY: no memory is passed.
            let traced = unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
            let traced = (traced < 0).then(|| io::Error::last_os_error().raw_os_error()).flatten();
            [listener, why, traced]
        });
        assert_eq!(found, [Some(libc::EPERM); 3]);
    }

    #[test]
    fn a_worker_maps_memory_for_data_alone() {
        let mapped = |protection| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: the kernel chooses a free place, which nobody else knows.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), 4_096, protection, flags, -1, 0) };
            at != libc::MAP_FAILED
        };
        let data = libc::PROT_READ | libc::PROT_WRITE;
        assert!(confined(move || mapped(data)));
        assert!(!confined(move || mapped(data | libc::PROT_EXEC)));
    }

    #[test]
    fn a_worker_connects_moves_bytes_and_allocates() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address");
        let moved = confined(move || {
            let stream = TcpStream::connect(address)?;
            let (reading, writing) = calls::pipe()?;
            calls::write(writing.as_fd(), &vec![7; 4_096])?;
            let moved = calls::splice(reading.as_fd(), stream.as_fd(), 4_096)?;
            calls::set_pipe_capacity(reading.as_fd(), 65_536)?;
            _ = (calls::unread(stream.as_fd()), calls::unacked(stream.as_fd()));
            UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", address)?;
            drop(vec![1_u8; 64 << 20]);
            io::Result::Ok(moved)
        });
        assert_eq!(moved.expect("a worker's own calls"), 4_096);
    }
}
