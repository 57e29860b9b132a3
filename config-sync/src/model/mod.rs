//! What was asked: a configuration and its parts, as values. This room imports no room above,
//! because a TOML file and Kubernetes objects both become these types.

pub mod admission;
pub mod alt_name;
pub mod backend;
pub mod config;
pub mod eject;
pub mod endpoint;
pub mod gone;
pub mod health_check;
pub mod limit;
pub mod listener;
pub mod place;
pub mod resolver;
pub mod route;
pub mod source_limit;
pub(crate) mod time;
pub mod tls;
