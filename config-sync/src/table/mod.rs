//! What runs: the types that workers see. This room imports nothing else of the crate, so that a
//! worker's look-ups can be read alone.
//!
//! | module | has |
//! |---|---|
//! | [`routing`] | the immutable routing table |
//! | [`ranges`] | ranges of clients' addresses, as flat tables |
//! | [`terminator`] | TLS: certificates, and how rustls is to be used |
//! | `maglev` | hash tables of backends |
//! | `fnv` | a hash that is the same on every machine |
//! | [`x509`] | what rustls does not tell of a certificate: when it ends, whose it is |

pub(crate) mod fnv;
pub(crate) mod maglev;
pub mod ranges;
pub mod routing;
pub mod terminator;
pub mod x509;
