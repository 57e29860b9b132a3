//! What a load generator or backend asks of its machine: descriptors, a core, a ring.

use std::time::Duration;

use anyhow::Context;
use io_uring_06::IoUring;
use monoio::{IoUringDriver, RuntimeBuilder};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

/// Raises RLIMIT_NOFILE of this process to its hard limit.
pub fn raise_file_limit() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("RLIMIT_NOFILE")
}

/// Keeps this thread, and the threads that it starts, on one core.
pub fn pin(core: Option<usize>) -> anyhow::Result<()> {
    let Some(core) = core else { return Ok(()) };
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores).with_context(|| format!("core {core}"))
}

/// Runs `future` on a monoio runtime of this thread, set up as the gateway's own rings are
/// (SINGLE_ISSUER and DEFER_TASKRUN: Linux 6.1).
pub fn block_on<F: Future>(future: F) -> anyhow::Result<F::Output> {
    let build = || {
        let mut ring = IoUring::builder();
        ring.setup_single_issuer().setup_defer_taskrun().setup_cqsize(32_768);
        let builder = RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring);
        builder.with_entries(4_096).enable_timer().build()
    };
    // The kernel may have no free pages for a moment, although it could make room.
    let runtime = build().or_else(|_| {
        std::thread::sleep(Duration::from_millis(500));
        build()
    });
    let mut runtime = runtime.context("io_uring")?;
    let output = runtime.block_on(future);
    // Tasks may have receives in flight; dropping the runtime would free their buffers before the
    // kernel lets go of them. The process ends soon, and takes the ring down in the right order.
    std::mem::forget(runtime);
    Ok(output)
}
