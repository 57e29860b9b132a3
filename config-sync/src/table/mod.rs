//! What runs: the types that workers see. This room imports nothing else of the crate, so that a
//! reader can read a worker's look-ups alone.
//!
//! | module | has |
//! |---|---|
//! | [`routing`] | the immutable routing table |
//! | [`address`] | addresses of sockets: IP addresses and Unix sockets |
//! | [`hosts`], [`alpn`] | look-up by server name, and by the protocols that a client offers |
//! | [`limit`], [`rate`] | what the sessions of a part have together, over all workers |
//! | [`load`] | counts that all workers share |
//! | [`moving`] | a session or flow that goes from one process to another |
//! | [`steering`] | which worker hears a client |
//! | [`request`] | requests to a worker about its sessions and flows |
//! | [`source_limit`] | what each source of sessions has and does, over all workers |
//! | [`ranges`] | ranges of clients' addresses, as flat tables |
//! | [`tier`] | which of a backend's endpoints get sessions: those in front, or the backups |
//! | [`terminator`] | TLS: certificates, and settings for rustls |
//! | `maglev` | hash tables of backends |
//! | `fnv` | a hash that is equal on every machine |
//! | [`x509`] | fields of a certificate that rustls does not give: its end, its common name |
//! | [`subject`] | whom a certificate is of, for the log: its subject, its fingerprint |

pub mod address;
pub mod alpn;
pub(crate) mod fnv;
pub mod hosts;
pub mod limit;
pub mod load;
pub(crate) mod maglev;
pub mod moving;
pub mod ranges;
pub mod rate;
pub mod request;
pub mod routing;
pub mod source_limit;
pub mod steering;
pub mod subject;
pub mod terminator;
pub mod tier;
pub mod turns;
pub mod x509;
