//! Takes from the control thread, and from all threads that the control thread starts later, what
//! none of them needs. [`crate::ring::sys::confine`] does more of that to workers.
//!
//! Filters and Landlock domains belong to a thread. The thread that starts the program of an
//! upgrade stays free of both, because that program may write other files. The access log's thread
//! has the filter, but no domain, because a rotated log is a new file. Neither reads bytes from
//! outside.

use std::ffi::c_long;

use anyhow::Context as _;
use config_sync::model::backend::FastPath;
use config_sync::model::config::Config;
use landlock::{
    ABI, Access as _, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus,
};
use nix::sys::prctl::set_no_new_privs;

use crate::control::privileges::{fast_path_may_come, keep_memory_private};
use crate::ring::sys::confine::forbid;

/// What no version of Ringway calls: other processes' memory, mounts and namespaces, the kernel's
/// modules, programs and keys, and the machine's clock and name. A list of what is permitted would
/// be shorter to attack, but the C library of the next release may call something else.
const NEVER: &[c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

const PROGRAMS: &[c_long] = &[libc::SYS_execve, libc::SYS_execveat];

/// What loads programs into the kernel, for `fast_path`.
const KERNEL_PROGRAMS: &[c_long] = &[libc::SYS_bpf];

/// The steps come in the order of the functions.
pub struct Sandbox {
    is_on: bool,
    /// A kubeconfig may name a program that logs in, and that program writes files of its own.
    starts_programs: bool,
    /// A backend has `fast_path`, or in a cluster an L4Policy may bring it.
    has_fast_path: bool,
}

impl Sandbox {
    /// From now on the calling thread, and those that it starts, gain no right.
    ///
    /// # Errors
    /// The kernel refuses what every kernel has.
    pub fn begin(config: &Config, is_cluster: bool) -> anyhow::Result<Self> {
        let has_fast_path = fast_path_may_come(is_cluster)?
            || config.backends.iter().any(|backend| backend.fast_path() != FastPath::Off);
        let sandbox = Self { is_on: config.sandbox, starts_programs: is_cluster, has_fast_path };
        if sandbox.is_on {
            set_no_new_privs().context("sandbox: no_new_privs")?;
            keep_memory_private()?;
        }
        Ok(sandbox)
    }

    /// Whether later configurations may not have a `fast_path` either.
    pub fn keeps_out_fast_path(&self) -> bool {
        self.is_on && !self.has_fast_path
    }

    /// For workers.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// The thread that starts programs must be there, and no other that works.
    pub fn enter(&self) {
        if !self.is_on {
            return;
        }
        let programs = if self.starts_programs { &[] } else { PROGRAMS };
        let kernel_programs = if self.has_fast_path { &[] } else { KERNEL_PROGRAMS };
        if let Err(error) = forbid(&[NEVER, programs, kernel_programs].concat()) {
            tracing::warn!("sandbox: system calls can't be filtered here: {error}");
        }
    }

    /// The access log must be open, and no worker may have been started.
    pub fn hold_files(&self) {
        if !self.is_on {
            return;
        }
        let held = if self.starts_programs {
            "files are not held, because a kubeconfig may start programs"
        } else {
            match read_only() {
                Ok(RulesetStatus::FullyEnforced) => "no file is written (Landlock)",
                Ok(RulesetStatus::PartiallyEnforced) => {
                    "no file is written, as far as this kernel's Landlock goes"
                }
                Ok(RulesetStatus::NotEnforced) => "files are not held: the kernel has no Landlock",
                Err(error) => {
                    tracing::warn!("sandbox: Landlock: {error:#}");
                    "files are not held"
                }
            }
        };
        tracing::info!("sandbox: no new privileges, system calls are filtered, {held}");
    }

    /// The workers have their rings.
    pub fn no_more_rings(&self) {
        if self.is_on
            && let Err(error) = forbid(&[libc::SYS_io_uring_setup])
        {
            tracing::debug!("sandbox: rings: {error}");
        }
    }
}

/// A reload may name files anywhere, so all may be read. A reload may bring a Unix listener
/// anywhere, so sockets may be made, and the file of one that is gone may be removed.
fn read_only() -> anyhow::Result<RulesetStatus> {
    let kept = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::MakeSock | AccessFs::RemoveFile;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new("/")?, kept))?
        .restrict_self()?;
    Ok(status.ruleset)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::io;
    use std::os::unix::net::UnixListener;
    use std::process::Command;
    use std::thread;

    use io::ErrorKind::PermissionDenied;
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// On a thread of its own, because nothing of this can be taken back.
    fn within<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = thread::spawn(move || {
            let sandbox = Sandbox { is_on: true, starts_programs: false, has_fast_path: false };
            set_no_new_privs().expect("every kernel has this");
            sandbox.enter();
            sandbox.hold_files();
            sandbox.no_more_rings();
            work()
        });
        thread.join().expect("no panic")
    }

    fn refused<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|error| error.kind() == PermissionDenied)
    }

    #[test]
    fn the_control_thread_starts_no_program_and_enters_no_namespace() {
        let (started, entered, ring) = within(|| {
            let started = Command::new("/bin/true").status();
            let entered = unshare(CloneFlags::CLONE_NEWNET);
            (started, entered, crate::ring::Features::probe())
        });
        assert!(refused(started));
        assert_eq!(entered, Err(nix::errno::Errno::EPERM));
        assert!(ring.is_err(), "no other ring");
    }

    #[test]
    fn the_control_thread_loads_no_program_into_the_kernel() {
        let loaded = within(|| crate::ring::bpf::FastPath::probe(true));
        assert!(matches!(loaded, Err(crate::ring::bpf::BpfError::Forbidden(_))), "{loaded:?}");
    }

    #[test]
    fn the_control_thread_reads_files_and_makes_sockets_and_writes_nothing() {
        let folder = std::env::temp_dir().join(format!("sandbox-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let there = folder.join("there");
        fs::write(&there, "text").expect("a file");
        let at = folder.clone();
        let (read, socket, removed, written) = within(move || {
            let socket = UnixListener::bind(at.join("socket")).map(drop);
            let removed = fs::remove_file(at.join("socket"));
            let written = [
                File::create(at.join("new")).map(drop),
                OpenOptions::new().append(true).open(at.join("there")).map(drop),
                fs::create_dir(at.join("folder")),
                fs::rename(at.join("there"), at.join("elsewhere")),
                std::os::unix::fs::symlink("there", at.join("link")),
            ];
            (fs::read_to_string(at.join("there")), socket, removed, written)
        });
        fs::remove_dir_all(&folder).expect("own folder");
        assert_eq!(read.expect("it may be read"), "text");
        socket.expect("a socket may be made");
        removed.expect("a socket's file may be removed");
        // Where the kernel has no Landlock, the log says so.
        if has_landlock() {
            for result in written {
                assert!(refused(result));
            }
        }
    }

    fn has_landlock() -> bool {
        thread::spawn(|| read_only().is_ok_and(|status| status != RulesetStatus::NotEnforced))
            .join()
            .expect("no panic")
    }
}
