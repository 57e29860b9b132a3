//! Opens listening sockets for all workers, steers sources to them, accepts from them, closes them.

pub mod given;
pub(super) mod listeners;
pub mod open;
pub mod steering;
pub mod unix;
