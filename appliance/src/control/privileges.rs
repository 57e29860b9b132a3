//! Gives up the rights of root. The process goes on as another user, and keeps the capabilities
//! that its sockets need.

use std::ffi::CString;

use anyhow::{Context as _, anyhow, bail};
use caps::securebits::set_keepcaps;
use caps::{CapSet, Capability, CapsHashSet};
use config_sync::model::backend::{Backend, FastPath};
use config_sync::model::config::Config;
use config_sync::model::place::At;
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::unistd::{Uid, User, getgrouplist, getuid, setgroups, setresgid, setresuid};

/// Goes on as the `user` of the configuration, if it names one. Threads and programs that are
/// started later have the same user and capabilities, and no program gives them more. True if
/// anything has changed.
///
/// The calling thread must be the only one that works: capabilities are a thread's own.
///
/// # Errors
/// There is no such user, the process is neither that user nor root, or the system refuses. The
/// text is for the operator.
pub fn give_up(config: &Config, is_cluster: bool) -> anyhow::Result<bool> {
    let Some(asked) = &config.user else { return Ok(false) };
    let user = find(asked)?;
    if getuid() == user.uid {
        keep_memory_private()?;
        return Ok(false);
    }
    if !getuid().is_root() {
        bail!(asked.problem(format!(
            "only root can become {}, and this process is user {}; start it as root, or leave \
             `user` out",
            user.name,
            getuid()
        )));
    }
    become_user(&user, &needed(config, is_cluster)?)
        .with_context(|| format!("becoming user {}", user.name))?;
    tracing::info!("goes on as user {} ({})", user.name, user.uid);
    Ok(true)
}

fn find(asked: &At<String>) -> anyhow::Result<User> {
    let found = match asked.value.parse() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(&asked.value),
    };
    let found = found.map_err(|error| anyhow!(asked.problem(format!("the users: {error}"))))?;
    found.ok_or_else(|| anyhow!(asked.problem("this machine has no such user")))
}

/// A reload may bring a port below 1024. Endpoints see clients' own addresses only with
/// `CAP_NET_ADMIN` (ip(7), `IP_TRANSPARENT`), for which a reload that brings the first such backend
/// is too late. In a cluster nobody knows yet whether there will be one.
fn needed(config: &Config, is_cluster: bool) -> anyhow::Result<CapsHashSet> {
    let mut needed = CapsHashSet::from([Capability::CAP_NET_BIND_SERVICE]);
    let has = |capability| caps::has_cap(None, CapSet::Permitted, capability);
    let may_come = is_cluster && has(Capability::CAP_NET_ADMIN)?;
    if may_come || config.backends.iter().any(|backend| backend.is_transparent()) {
        needed.insert(Capability::CAP_NET_ADMIN);
    }
    // Only `"required"` insists on these two.
    let paths = || config.backends.iter().map(Backend::fast_path);
    let may_come = fast_path_may_come(is_cluster)?;
    for capability in FAST_PATH {
        let is_there = has(capability)?;
        let asks = |of| of == FastPath::Required || (of == FastPath::Auto && is_there);
        if may_come || paths().any(asks) {
            needed.insert(capability);
        }
    }
    Ok(needed)
}

/// What the kernel's path for UDP flows needs.
const FAST_PATH: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN];

/// Whether an L4Policy may have `fastPath`. In a cluster nobody knows yet whether one will, so who
/// gives the process these capabilities decides.
///
/// # Errors
/// The kernel does not tell the process its capabilities.
pub fn fast_path_may_come(is_cluster: bool) -> anyhow::Result<bool> {
    let has = |capability| caps::has_cap(None, CapSet::Permitted, capability);
    Ok(is_cluster && has(FAST_PATH[0])? && has(FAST_PATH[1])?)
}

/// No core dump has keys in it, and no other process of the user reads them (prctl(2),
/// `PR_SET_DUMPABLE`).
pub fn keep_memory_private() -> anyhow::Result<()> {
    set_dumpable(false).context("no core dumps")
}

/// The order matters: each step takes a right that a later step does not need (capabilities(7)).
fn become_user(user: &User, needed: &CapsHashSet) -> anyhow::Result<()> {
    // Rings are locked memory, and root has no limit for it. Without the right to raise the limit,
    // it stays.
    _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let has = caps::read(None, CapSet::Permitted)?;
    let missing: Vec<_> = needed.difference(&has).map(Capability::to_string).collect();
    if !missing.is_empty() {
        bail!("this process lacks {}", missing.join(", "));
    }
    let bounding = caps::read(None, CapSet::Bounding)?;
    for capability in bounding.difference(needed) {
        caps::drop(None, CapSet::Bounding, *capability)?;
    }
    let name = CString::new(user.name.as_str())?;
    setgroups(&getgrouplist(&name, user.gid)?).context("its groups")?;
    setresgid(user.gid, user.gid, user.gid).context("its group")?;
    set_keepcaps(true)?;
    setresuid(user.uid, user.uid, user.uid)?;
    caps::set(None, CapSet::Permitted, needed)?;
    caps::set(None, CapSet::Effective, needed)?;
    // The program that takes over in an upgrade has the same.
    caps::set(None, CapSet::Inheritable, needed)?;
    caps::set(None, CapSet::Ambient, needed)?;
    set_no_new_privs()?;
    keep_memory_private()
}
