//! How much of its memory the process uses, as its cgroup counts, and whether that is so much that
//! nothing new should begin.
//!
//! The files are opened once, because a process that has run out of files or memory can open
//! nothing.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::str;

use tokio::time::Instant;

use crate::control::shortages::Shortages;

/// The cgroups of the process, from its own up to the root. Each may have a limit.
#[derive(Debug, Default)]
pub struct Memory {
    groups: Vec<Group>,
}

/// The files of one cgroup.
#[derive(Debug)]
struct Group {
    used: File,
    stat: File,
    /// Those that exist: the kernel kills somebody above one, and slows the process down above
    /// another.
    limits: Vec<File>,
}

/// What counts in the cgroup that has the largest part of its memory in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Bytes, without what the kernel can take back: files that can be read again, and caches.
    pub used: u64,
    pub most: u64,
}

/// When the memory and the other limits were last looked at.
#[derive(Debug)]
pub struct Looks {
    pub memory: Instant,
    pub limits: Instant,
    /// A limit of the process is nearly reached.
    pub is_near: bool,
    /// The process could count its files before.
    pub has_counted: bool,
    /// What has run out, and is not known to be over.
    pub shortages: Shortages,
}

impl Looks {
    pub fn new() -> Self {
        let now = Instant::now();
        let shortages = Shortages::default();
        Self { memory: now, limits: now, is_near: false, has_counted: false, shortages }
    }
}

/// So many per cent less must be in use before new work is accepted again.
const RECOVERY: u64 = 5;

/// A limit of cgroups of version 1 above this is none.
const NO_LIMIT: u64 = 1 << 60;

impl Memory {
    /// Opens the files of this process's cgroups.
    pub fn open() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::of(&own, Path::new("/sys/fs/cgroup"))
    }

    /// `own`: what /proc/self/cgroup says (cgroups(7)). `root`: where cgroups are mounted.
    fn of(own: &str, root: &Path) -> Self {
        let lines = || own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        let v1 = lines().find(|(controllers, _)| controllers.split(',').any(|of| of == "memory"));
        let v2 = || lines().find(|(controllers, _)| controllers.is_empty());
        let (root, own) = match v1 {
            Some((_, own)) => (root.join("memory"), own),
            None => (root.to_owned(), v2().map_or("/", |(_, own)| own)),
        };
        // In a container, the path may be the host's, and the root the container's.
        let dir = root.join(own.trim_start_matches('/'));
        let dir = if dir.is_dir() { dir } else { root.clone() };
        let dirs = dir.ancestors().take_while(|dir| dir.starts_with(&root));
        Self { groups: dirs.filter_map(Group::open).collect() }
    }

    /// `None`: no cgroup of the process has a limit, or the kernel does not tell.
    pub fn read(&self) -> Option<Reading> {
        let readings = self.groups.iter().filter_map(Group::read);
        readings.max_by(|one, other| one.part().total_cmp(&other.part()))
    }
}

impl Group {
    fn open(dir: &Path) -> Option<Self> {
        let open = |name: &str| File::open(dir.join(name)).ok();
        let first = |names: [&str; 2]| names.into_iter().find_map(open);
        let limits = ["memory.max", "memory.high", "memory.limit_in_bytes"];
        Some(Self {
            used: first(["memory.current", "memory.usage_in_bytes"])?,
            stat: open("memory.stat")?,
            limits: limits.into_iter().filter_map(open).collect(),
        })
    }

    fn read(&self) -> Option<Reading> {
        let number = |file: &File| text(file)?.trim().parse::<u64>().ok();
        // "max" is no number.
        let limits = self.limits.iter().filter_map(number);
        let most = limits.filter(|most| (1..NO_LIMIT).contains(most)).min()?;
        let stat = text(&self.stat)?;
        Some(Reading { used: number(&self.used)?.saturating_sub(reclaimable(&stat)), most })
    }
}

/// The bytes that the kernel can take back at once. In version 1, `total_` is with the cgroups
/// below.
fn reclaimable(stat: &str) -> u64 {
    let lines = stat.lines().filter_map(|line| line.split_once(' '));
    let of = |names: &[&str]| -> u64 {
        let found = lines.clone().filter(|(name, _)| names.contains(name));
        found.filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok()).sum()
    };
    match of(&["total_active_file", "total_inactive_file"]) {
        0 => of(&["active_file", "inactive_file", "slab_reclaimable"]),
        bytes => bytes,
    }
}

/// The file's text, as the kernel makes it now. `memory.stat` has some 2 KiB.
fn text(file: &File) -> Option<String> {
    let mut bytes = [0; 8 * 1024];
    let len = file.read_at(&mut bytes, 0).ok()?;
    str::from_utf8(&bytes[..len]).ok().map(str::to_owned)
}

impl Reading {
    fn part(self) -> f64 {
        self.used as f64 / self.most as f64
    }

    /// Whether so much is in use that nothing new should begin. `was`: whether it was so before.
    /// `percent`: 0 is never.
    pub fn is_over(self, was: bool, percent: u8) -> bool {
        let percent = u64::from(percent);
        let used = u128::from(self.used) * 100;
        let at = |percent: u64| u128::from(self.most) * u128::from(percent);
        match was {
            _ if percent == 0 => false,
            true => used >= at(percent.saturating_sub(RECOVERY).max(1)),
            false => used >= at(percent),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A folder of cgroups.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let name = format!("ringway-cgroup-{name}-{}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            _ = fs::remove_dir_all(&self.0);
        }
    }

    const STAT: &str = "anon 100\nfile 90\nactive_file 20\ninactive_file 30\nslab_reclaimable 10\n";

    #[test]
    fn the_fullest_cgroup_up_to_the_root_counts() {
        let tree = Tree::new("v2");
        for (dir, current, max, high) in [
            ("a", "1000", "max", "2000"),
            ("a/b", "500", "600", "max"),
            ("a/b/c", "90", "max", "max"),
        ] {
            tree.write(&format!("{dir}/memory.current"), current);
            tree.write(&format!("{dir}/memory.max"), max);
            tree.write(&format!("{dir}/memory.high"), high);
            tree.write(&format!("{dir}/memory.stat"), STAT);
        }
        let memory = Memory::of("0::/a/b/c\n", &tree.0);
        assert_eq!(memory.read(), Some(Reading { used: 440, most: 600 }));
        // The files are read anew each time.
        tree.write("a/b/memory.max", "6000\n");
        assert_eq!(memory.read(), Some(Reading { used: 940, most: 2000 }));
        tree.write("a/memory.high", "max\n");
        tree.write("a/b/memory.max", "max\n");
        assert_eq!(memory.read(), None);
        // The host's path, in a container.
        tree.write("memory.current", "70\n");
        tree.write("memory.max", "100\n");
        tree.write("memory.stat", "anon 70\n");
        let memory = Memory::of("0::/kubepods/pod1\n", &tree.0);
        assert_eq!(memory.read(), Some(Reading { used: 70, most: 100 }));
    }

    #[test]
    fn version_1_counts_too() {
        let tree = Tree::new("v1");
        tree.write("memory/x/memory.usage_in_bytes", "500\n");
        tree.write("memory/x/memory.limit_in_bytes", "1000\n");
        let stat = "active_file 1\ntotal_active_file 100\ntotal_inactive_file 150\n";
        tree.write("memory/x/memory.stat", stat);
        let memory = Memory::of("4:memory:/x\n1:cpu:/y\n0::/\n", &tree.0);
        assert_eq!(memory.read(), Some(Reading { used: 250, most: 1000 }));
        tree.write("memory/x/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(memory.read(), None);
        assert_eq!(Memory::of("", &tree.0.join("none")).read(), None);
    }

    #[test]
    fn an_overload_ends_a_little_below_where_it_began() {
        let is_over = |used, was| Reading { used, most: 1000 }.is_over(was, 90);
        assert_eq!([899, 900].map(|used| is_over(used, false)), [false, true]);
        assert_eq!([849, 850].map(|used| is_over(used, true)), [false, true]);
        assert!(!Reading { used: 2000, most: 1000 }.is_over(true, 0));
        assert!(!Reading { used: 0, most: 1000 }.is_over(false, 3));
        assert!(!Reading { used: 0, most: 1000 }.is_over(true, 3), "it recovers");
    }
}
