//! TLS for a table: reads certificates and keys, and makes of them what rustls needs.

pub(crate) mod cache;
pub(crate) mod endpoint_verifier;
pub mod expiry;
pub(crate) mod load;
pub(crate) mod pem;
pub(crate) mod tickets;
