//! Has the ring open the kernel's path for UDP flows when a configuration asks for the path.

use config_sync::sync::fast_path::OpenFastPath;

use crate::ring::SharedPath;
use crate::ring::bpf::FastPath;

const FORBIDDEN: &str = "this process began without a `fast_path` and has given up the right to \
                         load programs into the kernel; start it again, or set `sandbox = false`";

/// Opens the path with room for the flows of all workers. If the path is open, new interfaces get
/// the program. Dropping what this returns takes the program off the interfaces. `None`: the
/// sandbox keeps the path out.
pub fn opener(
    shared: Option<SharedPath>,
    flows: u32,
    workers: usize,
    may_use_tcx: bool,
) -> OpenFastPath {
    let flows = flows.saturating_mul(u32::try_from(workers).unwrap_or(u32::MAX));
    let shared = shared.map(Attached);
    Box::new(move || {
        let Some(Attached(shared)) = &shared else { return Err(FORBIDDEN.to_owned()) };
        let Some(path) = shared.get() else {
            let opened = FastPath::open(flows, may_use_tcx).map_err(|error| error.to_string())?;
            _ = shared.set(opened);
            return Ok(());
        };
        // The path works, so a new interface that refuses the program is no reason to refuse a
        // configuration.
        if let Err(error) = path.attach() {
            tracing::warn!("new interfaces have no `fast_path`: {error}");
        }
        Ok(())
    })
}

/// Workers have the path too, and if one of them has died, the others may outlive the control
/// thread.
struct Attached(SharedPath);

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(path) = self.0.get() {
            path.detach();
        }
    }
}
