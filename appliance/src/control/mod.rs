//! The control thread: all work that may block, allocate or speak HTTP.
//!
//! [`cli`] reads the arguments, [`process`] starts the workers, and [`run`] works until the workers
//! have ended. The [`admin`] API has a thread of its own, which reads the values that the control
//! thread posts.

pub mod access_log;
pub mod admin;
mod changes;
mod check;
pub mod cli;
mod client;
mod closes;
pub mod cluster;
pub mod demo;
mod diff;
mod docs;
mod doctor;
mod events;
mod fast_path;
mod fd_store;
mod id;
mod limited;
mod line_of;
mod live;
mod log_line;
mod looking;
mod memory;
pub mod metrics;
pub mod migrate;
mod output;
mod overload;
pub mod own_log;
mod own_memory;
mod page;
mod passed;
mod pid_file;
mod privileges;
pub mod process;
mod pulse;
mod reloading;
pub mod run;
mod sample;
mod sandbox;
mod shortages;
mod shown;
mod spare_files;
mod syslog;
mod systemd;
mod tcp;
mod time_of_day;
mod timestamp;
mod tls_fields;
mod top;
mod upgrade;
mod watchdog;
pub mod why;
