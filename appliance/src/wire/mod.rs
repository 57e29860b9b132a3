//! Bytes in, values out, and the other way round: no state, no I/O.

#![forbid(unsafe_code)]

pub mod client_hello;
pub mod postgres;
pub mod proxy_header;
