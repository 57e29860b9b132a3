//! Wraps system calls, explains their errors, and holds the memory for them.

pub mod calls;
pub mod clock;
pub mod confine;
pub mod errno;
pub mod memory;
pub mod options;
pub mod pass;
