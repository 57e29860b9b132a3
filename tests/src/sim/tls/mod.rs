//! Sessions that speak TLS, in a small world of their own: bytes are real here, and all peers are
//! rustls' buffered connections. Several sessions share a proxy, as they share its buffers; in some
//! worlds more than may take bytes at once. A seed makes the cuts, the order of ends, and the
//! faults.
//!
//! What of rustls is an argument here, and what is not:
//!
//! - The time by which the gateway verifies certificates and issues and takes tickets is the
//!   proxy's, so virtual. That by which ticket keys are changed is the system's (rustls' `Ticketer`
//!   reads it); a run would have to last 6 hours for that to show. The peers' is the system's, too.
//! - Keys, nonces, hello randoms and session ids are drawn by aws-lc-rs. rustls takes another
//!   source for the last two in a provider, but Ringway has one provider, and no configuration
//!   names another; key exchange and signatures draw from the system whatever the provider says.
//!
//! So bytes differ from run to run. Their number does not (see `pki`), and that is all that the
//! schedule depends on: a seed is a run but for the bytes' values.

pub mod case;
mod check;
mod life;
mod ops;
mod peer;
pub mod world;
