//! Has the process open the kernel's path for UDP flows, before a table that asks for the path.

use crate::model::backend::FastPath;
use crate::model::config::Config;

/// Opens the path, if it is not open yet. The error is for the operator.
pub type OpenFastPath = Box<dyn FnMut() -> Result<(), String> + Send>;

/// Opens the path if a backend asks for it.
///
/// # Errors
/// The path can't be had, and a backend requires it. The text has the place of the backend's key.
pub(super) fn open(open: Option<&mut OpenFastPath>, config: &Config) -> Result<(), String> {
    let asked = || config.backends.iter().filter_map(|backend| backend.fast_path.as_ref());
    let Some(open) = open.filter(|_| asked().any(|key| key.value != FastPath::Off)) else {
        return Ok(());
    };
    let Err(error) = open() else { return Ok(()) };
    match asked().find(|key| key.value == FastPath::Required) {
        Some(key) => Err(key.problem(format!("\"required\" can't be had: {error}")).to_string()),
        None => {
            tracing::warn!("`fast_path = \"auto\"`: workers forward all UDP flows: {error}");
            Ok(())
        }
    }
}
