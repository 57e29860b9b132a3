//! The Gateway API: Kubernetes objects in, a [`Config`](crate::model::config::Config) and statuses
//! out.
//!
//! | module | does |
//! |---|---|
//! | [`objects`] | the objects, as a cluster or YAML has them |
//! | `translate` | [`translate()`]: objects to a configuration, and what becomes of each object |
//! | `unfit` | objects at which that panics, to leave them out |
//! | [`status`] | that as statuses, and [`status::merge`]: into those that are there |
//! | [`files`], [`print`] | objects out of YAML; a configuration as TOML, statuses as YAML |
//! | `schema`, `doubts` | what of objects in files has no effect: by themselves, together |
//! | [`policy`] | [`policy::L4Policy`]: what the Gateway API has no field for |
//! | [`cluster`] | a cluster as the source: what is to be run, and whom to tell |
//! | [`discovery`], [`watch`], [`store`] | what is served, what there is, the latest of it |
//! | [`lease`], [`outline`] | which replica leads, and whether all serve the same |
//! | [`causes`] | what requests fail by, in the log |
//! | `report`, `contests`, `promise`, `events`, `infrastructure` | what the leader writes |
//! | `tasks` | what runs beside, and outlives its own panics |

mod address;
mod backend_tls;
mod backends;
mod build;
pub mod causes;
mod certificates;
pub mod cluster;
mod conflicts;
mod contests;
pub mod discovery;
mod doubts;
mod events;
pub mod files;
#[cfg(test)]
mod golden;
mod index;
mod infrastructure;
pub mod lease;
mod listeners;
pub mod objects;
pub mod outline;
pub mod policy;
pub mod print;
mod promise;
mod render;
mod report;
mod routes;
mod schema;
pub mod status;
pub mod store;
mod tasks;
#[cfg(test)]
mod testing;
mod translate;
mod unfit;
pub mod watch;

pub(crate) use doubts::of as doubts;
pub use objects::Objects;
pub use status::{Outcome, StatusOf};
pub use translate::{Infrastructure, Notice, Settings, Translation, translate};

/// What GatewayClasses name to be Ringway's.
pub const CONTROLLER: &str = "ringway.dev/gateway-controller";

/// Condition of a TCPRoute or UDPRoute that is accepted and gets no traffic, because an older one
/// has its listeners.
pub const SUPERSEDED: &str = "ringway.dev/Superseded";
