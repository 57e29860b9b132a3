//! Ringway's config thread as a library: turns a TOML file or Kubernetes objects into immutable
//! routing tables.
//!
//! The rooms, from the top down. Each room imports only rooms that stand below:
//!
//! | room | does |
//! |---|---|
//! | [`sync`] | reads, compiles, publishes and reports: [`sync::ConfigSync`] |
//! | [`source`] | gets a configuration's text, and notices when the text changes |
//! | [`gateway`] | turns Kubernetes objects of the Gateway API into a configuration and statuses |
//! | [`compile`] | turns what was asked into what runs; certificates and ids |
//! | [`check`] | finds parts of a configuration that do not fit together |
//! | `toml` | reads the keys of a TOML file, each key by itself |
//! | [`publish`] | opens listening sockets, and hands each worker the latest table |
//! | [`health`] | checks endpoints, and takes endpoints that are down out of the table |
//! | [`resolve`] | resolves the names of endpoints, again and again |
//! | [`model`] | has what was asked: [`model::config::Config`] and its parts |
//! | [`table`] | has what runs: the types that workers see |
//! | [`machine`], `disk`, `backoff` | facts of the machine; files that may hang; growing pauses |

mod backoff;
pub mod check;
pub mod compile;
mod disk;
pub mod gateway;
pub mod health;
pub mod machine;
pub mod model;
pub mod publish;
pub mod resolve;
pub mod source;
pub mod sync;
pub mod table;
pub mod toml;
