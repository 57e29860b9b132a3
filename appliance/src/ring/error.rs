//! Explains why there is no io_uring to work with.

use std::io;

/// The oldest kernel that has all required features.
pub const FLOOR: &str = "6.1";

/// The file with a seccomp profile that lets io_uring through.
const PROFILE: &str = "images/seccomp.json";

/// Why there is no io_uring to work with. The text tells the operator what to change.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error(
        "io_uring is switched off on this machine (kernel.io_uring_disabled = {0}): run \
         `sysctl kernel.io_uring_disabled=0`{1}"
    )]
    SwitchedOff(u8, &'static str),
    #[error(
        "this process may not use io_uring (EPERM): a seccomp profile forbids it, as those of \
         container runtimes do by default; run it with the profile {PROFILE}, or unconfined"
    )]
    Forbidden,
    #[error(
        "this kernel has no io_uring (ENOSYS): Linux {FLOOR} or newer with CONFIG_IO_URING is \
         needed; in a container or sandbox, its seccomp profile may say so too (see {PROFILE})"
    )]
    Absent,
    #[error(
        "no memory for the ring (ENOMEM): raise the limit of locked memory \
         (`ulimit -l`, LimitMEMLOCK=) or the memory limit of the cgroup"
    )]
    NoMemory,
    #[error(
        "no file for the ring ({0}): raise the limit of open files (`ulimit -n`, LimitNOFILE=)"
    )]
    NoFiles(io::Error),
    #[error("Linux {FLOOR} or newer is needed: this kernel ({kernel}) lacks {missing}")]
    TooOld { missing: String, kernel: String },
    #[error("{what}: {source}")]
    Failed {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

impl RingError {
    /// Explains a failed io_uring_setup(2).
    pub fn setup(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => match disabled() {
                Some(2) => Self::SwitchedOff(2, ""),
                Some(1) => Self::SwitchedOff(
                    1,
                    ", or give the process CAP_SYS_ADMIN or the group of kernel.io_uring_group",
                ),
                _ => Self::Forbidden,
            },
            Some(libc::ENOSYS) => Self::Absent,
            Some(libc::ENOMEM) => Self::NoMemory,
            Some(libc::EMFILE | libc::ENFILE) => Self::NoFiles(error),
            Some(libc::EINVAL) => Self::TooOld {
                missing: "single_issuer (6.0) or defer_taskrun (6.1)".to_owned(),
                kernel: kernel(),
            },
            _ => Self::Failed { what: "io_uring_setup failed", source: error },
        }
    }
}

fn disabled() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

pub fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|_| "unknown".to_owned(), |release| release.trim().to_owned())
}
