//! The verbs that look into a running gateway and act on it.

pub mod arguments;
pub mod diff;
mod http;
mod list;
mod save;
mod screen;
mod show;
mod table;
mod tls;
mod top;
pub mod verbs;
