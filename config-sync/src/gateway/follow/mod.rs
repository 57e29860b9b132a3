//! Follows a cluster: reads its objects, and writes what became of them. All I/O with the API
//! server is in this room.

mod causes;
pub mod cluster;
mod contests;
pub mod discovery;
mod events;
mod infrastructure;
pub mod lease;
mod report;
pub mod store;
mod tasks;
pub mod watch;
