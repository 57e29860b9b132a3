//! Makes the TLS parts of a table: reads certificates and keys, and makes the settings for rustls.

pub(crate) mod cache;
pub(crate) mod endpoint_verifier;
pub mod expiry;
pub(crate) mod load;
pub(crate) mod pem;
pub mod ticketer;
pub mod tickets;
