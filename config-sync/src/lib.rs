//! Ringway's config thread as a library: a TOML file or Kubernetes objects in, immutable routing
//! tables out.
//!
//! The rooms, from the top down. Each imports only rooms that stand below it:
//!
//! | room | does |
//! |---|---|
//! | [`sync`] | reads, compiles, publishes and reports: [`sync::ConfigSync`] |
//! | [`source`] | where a configuration's text comes from, and when that changes |
//! | [`gateway`] | the Gateway API: Kubernetes objects in, a configuration and statuses out |
//! | [`compile`] | from what was asked to what runs; certificates and ids |
//! | [`check`] | whether the parts of a configuration fit together |
//! | `toml` | the keys of a TOML file, each by itself |
//! | [`publish`] | opens listening sockets, and hands each worker the latest table |
//! | [`health`] | checks of endpoints, and the table without those that are down |
//! | [`model`] | what was asked: [`model::config::Config`] and its parts |
//! | [`table`] | what runs: the types that workers see |
//! | [`machine`], `disk`, `backoff` | what the machine has; files that may hang; pauses that grow |

mod backoff;
pub mod check;
pub mod compile;
mod disk;
pub mod gateway;
pub mod health;
pub mod machine;
pub mod model;
pub mod publish;
pub mod source;
pub mod sync;
pub mod table;
pub mod toml;
