//! Maps memory that the kernel fills, and sets what the allocator does with freed blocks.

use std::io;
use std::ptr::{self, NonNull};

/// Anonymous memory, page-aligned and zero. The kernel gives a page only when the page is touched.
pub struct Memory {
    start: NonNull<u8>,
    len: usize,
}

impl Memory {
    pub fn new(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping, at an address of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start =
            NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { start, len })
    }

    /// A pointer to the byte at `offset`. The pointer is valid as long as `self`.
    pub fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.len, "inside the mapping");
        // SAFETY: the offset was just checked to be inside.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, and only `drop` gives it up.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Makes glibc give large blocks back to the kernel when they are freed (mallopt(3)). By default,
/// glibc raises its mapping threshold to the largest block that was ever freed (at most 32 MiB),
/// and its trimming threshold to twice that size. After one large configuration, the process would
/// keep the memory of reading that configuration for good.
pub fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    for threshold in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: mallopt takes two numbers and changes the allocator's own settings, under its
        // lock. It can refuse none of these, and a refusal would only keep memory for longer.
        unsafe { libc::mallopt(threshold, LARGE_BLOCK) };
    }
}

/// Bytes. Workers have no blocks of this size that come and go with sessions.
#[cfg(target_env = "gnu")]
const LARGE_BLOCK: std::ffi::c_int = 1 << 20;
