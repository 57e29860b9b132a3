//! The Gateway API: turns Kubernetes objects into a [`Config`](crate::model::config::Config) and
//! statuses. Each room imports only rooms that stand below:
//!
//! | room | does |
//! |---|---|
//! | [`follow`] | reads a cluster, writes statuses and events, and chooses the replica that leads |
//! | [`files`] | reads objects from YAML |
//! | [`print`] | writes a configuration as TOML, and statuses as YAML |
//! | [`tree`] | makes a tree of values of a configuration, for comparisons |
//! | [`translate`] | turns objects into a configuration and a report for each object; pure |
//! | [`status`] | turns reports into statuses, and merges them into existing ones; pure |
//! | [`objects`] | has the objects of a cluster or of YAML, and the CRD of L4Policy |

pub mod files;
pub mod follow;
#[cfg(test)]
mod golden;
pub mod objects;
pub mod print;
mod print_check;
mod print_values;
pub mod status;
#[cfg(test)]
mod testing;
pub mod translate;
pub mod tree;
