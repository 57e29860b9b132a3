//! The keys that hold until the process ends.

use std::path::PathBuf;

use crate::model::config::Config;
use crate::model::place::At;

/// Warns of keys that a reload does not change. Workers, memory and the admin API are set up once;
/// the rest of the file is in force at once. `runs` is the configuration that the process was
/// started with.
pub(super) fn warn(runs: &Config, asked: &Config) {
    let target = |config: &Config| (config.access_log.target.clone(), config.access_log.format);
    let path = |file: &Option<At<PathBuf>>| file.as_ref().map(|file| file.value.clone());
    let tls = |config: &Config| {
        let tls = config.admin_tls.clone()?;
        Some((tls.cert.value, tls.key.value, tls.client_ca.map(|file| file.value)))
    };
    let user = |config: &Config| config.user.as_ref().map(|user| user.value.clone());
    let changes = [
        ("workers.cores", runs.cores.numbers() != asked.cores.numbers()),
        ("admin.address", runs.admin != asked.admin),
        ("admin.socket", runs.admin_socket() != asked.admin_socket()),
        ("admin.token_file", path(&runs.admin_token_file) != path(&asked.admin_token_file)),
        ("admin.cert, key, client_ca", tls(runs) != tls(asked)),
        (
            "admin.overrides_file",
            path(&runs.admin_overrides_file) != path(&asked.admin_overrides_file),
        ),
        ("user", user(runs) != user(asked)),
        ("sandbox", runs.sandbox != asked.sandbox),
        ("limits", runs.limits != asked.limits),
        ("access_log", target(runs) != target(asked)),
    ];
    for (key, _) in changes.iter().filter(|(_, changed)| *changed) {
        tracing::warn!("{key} is not what runs: the change takes effect after a restart");
    }
}
