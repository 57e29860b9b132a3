//! The control thread: everything that may block, allocate or speak HTTP.
//!
//! [`cli`] reads the arguments, [`process`] starts the workers, [`run`] goes on until they have
//! ended. The [`admin`] API has a thread of its own, which reads what is posted for it.

pub mod access_log;
pub mod admin;
pub mod cli;
pub mod cluster;
pub mod demo;
pub mod metrics;
mod output;
pub mod process;
pub mod run;
mod spare_files;
