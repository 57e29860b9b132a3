//! System calls, what their errors mean, and the memory that they are given.

pub mod calls;
pub mod errno;
pub mod memory;
pub mod options;
