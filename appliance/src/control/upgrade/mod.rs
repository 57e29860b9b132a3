//! One process takes the listening sockets of another over, and the other drains.
//!
//! Both processes have the same open sockets then (SCM_RIGHTS, unix(7)), so their queues carry over
//! what comes in the meantime. [`crate::wire::hand_over`] has the order of messages. The new
//! process serves before the old one stops, and the old one stops only after the new one's last
//! word. Whatever fails before, the old one goes on.

pub mod door;
mod flows;
mod giving;
mod moves;
mod named;
mod signals;
pub mod starter;
pub mod state;
mod steps;
pub mod taking;
pub mod under_way;
mod voice;
