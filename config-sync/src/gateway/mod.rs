//! The Gateway API: Kubernetes objects in, a [`Config`](crate::model::config::Config) and statuses
//! out. The rooms, each of which imports only those below it:
//!
//! | room | does |
//! |---|---|
//! | [`follow`] | a cluster as the source: what is to be run, whom to tell, which replica leads |
//! | [`files`] | objects out of YAML |
//! | [`print`] | a configuration as TOML, statuses as YAML |
//! | [`translate`] | objects to a configuration, and what becomes of each object; pure |
//! | [`status`] | that as statuses, and [`status::merge`]: into those that are there; pure |
//! | [`objects`] | the objects, as a cluster or YAML has them; the CRD of L4Policy |

pub mod files;
pub mod follow;
#[cfg(test)]
mod golden;
pub mod objects;
pub mod print;
pub mod status;
#[cfg(test)]
mod testing;
pub mod translate;
