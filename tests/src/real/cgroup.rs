//! Limits of memory.

use std::fs;
use std::path::PathBuf;

use super::wait_until;

/// A cgroup of memory for one gateway alone.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    limit: PathBuf,
    used: PathBuf,
}

impl Cgroup {
    /// `None`: none can be made here.
    pub fn new() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let of = |line: &str, key: &str| line.split_once(key).map(|(_, own)| own.to_owned());
        let v1 = own.lines().find_map(|line| of(line, ":memory:"));
        let (root, own, limit, used) = match v1 {
            Some(own) => {
                ("/sys/fs/cgroup/memory", own, "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            None => {
                let own = own.lines().find_map(|line| of(line, "0::"))?;
                ("/sys/fs/cgroup", own, "memory.max", "memory.current")
            }
        };
        let name = format!("ringway-test-{}", std::process::id());
        let dir = PathBuf::from(format!("{root}{own}")).join(name);
        fs::create_dir(&dir).ok()?;
        let cgroup = Self { limit: dir.join(limit), used: dir.join(used), dir };
        cgroup.set("1000000000").then_some(cgroup)
    }

    /// A command for `sh -c`, which enters the cgroup and becomes the program behind it.
    pub fn join(&self) -> String {
        format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", self.dir.display())
    }

    /// Whether the kernel takes the limit.
    pub fn set(&self, bytes: &str) -> bool {
        fs::write(&self.limit, bytes).is_ok()
    }

    pub fn used(&self) -> u64 {
        let used = fs::read_to_string(&self.used).expect("what is in use");
        used.trim().parse().expect("a number")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The kernel may not have noticed yet that the gateway has ended.
        wait_until("the cgroup is gone", || {
            !self.dir.exists() || fs::remove_dir(&self.dir).is_ok()
        });
    }
}
