//! The verbs that look into a running gateway and act on it.

mod http;
mod show;
mod table;
pub mod verbs;
