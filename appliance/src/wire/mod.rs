//! Reads the bytes of protocols into values, and writes values as bytes: no state, no I/O.

#![forbid(unsafe_code)]

pub mod alert;
pub mod client_hello;
pub mod dns;
pub mod hand_over;
pub mod postgres;
pub mod proxy_header;
pub mod tcp_info;
