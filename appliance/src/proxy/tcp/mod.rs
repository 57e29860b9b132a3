//! Serves TCP sessions, from the accepted connection to the last byte.

mod accounting;
pub mod bulk_marks;
pub mod choose;
mod close;
mod connect;
pub mod delay;
mod direction;
pub mod memory;
pub mod moving;
mod proxy_header;
pub mod queue;
mod refuse;
mod relay;
mod retry;
pub mod session;
mod starttls;
pub mod state;
mod tls;
mod tls_alert;
mod tls_connection;
mod tls_port;
mod tls_relay;
