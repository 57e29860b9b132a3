//! Follows a cluster: reads its objects, and writes statuses and events. All I/O with the API
//! server is in this room.

mod causes;
pub mod cluster;
mod contests;
pub mod discovery;
mod events;
mod infrastructure;
pub mod lease;
mod object;
mod report;
pub mod store;
mod tasks;
pub mod watch;
