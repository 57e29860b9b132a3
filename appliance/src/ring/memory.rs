//! What becomes of memory that is freed.

/// Makes glibc give large blocks back to the kernel as soon as they are freed, as mallopt(3) has
/// it. By itself it raises both of its thresholds to the largest block that was ever freed (32 MiB
/// at the most, and twice that): after one large configuration, the process would keep for good
/// what reading it took.
pub fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    for threshold in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: it takes two numbers and changes the allocator's own settings, under its lock.
        // It can refuse none of these, and memory would merely be kept longer if it did.
        unsafe { libc::mallopt(threshold, LARGE_BLOCK) };
    }
}

/// Bytes. Workers have no blocks of that size that come and go with sessions.
#[cfg(target_env = "gnu")]
const LARGE_BLOCK: std::ffi::c_int = 1 << 20;
