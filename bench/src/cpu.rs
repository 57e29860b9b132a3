//! What a set of processes cost: their CPU time with all kernel work done in their name, their
//! memory, their open files.
//!
//! CPU comes from a cgroup v2 of their own where one can be made: `usage_usec` of cpu.stat is in
//! every cgroup, with or without the cpu controller, and keeps what ended threads and children
//! used. Otherwise from the sum of /proc/PID/task/*/schedstat: nanoseconds on a CPU per thread.
//! io_uring's worker threads are threads of the process that made the ring, so both count them.
//! Work of the kernel's own threads (softirq in ksoftirqd, kworkers) is in neither: it cannot be
//! charged to anybody.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::ClockId;
use serde::{Deserialize, Serialize};

/// Counts the CPU time of processes and their descendants. Takes its cgroup away when dropped.
pub struct Meter {
    roots: Vec<i32>,
    group: Option<PathBuf>,
}

impl Meter {
    /// To be called when the processes have made their children and before they carry load: what
    /// they used until now is not counted.
    pub fn of(name: &str, roots: &[i32]) -> Self {
        let group = cgroup2_mount().and_then(|mount| {
            static MADE: AtomicU64 = AtomicU64::new(0);
            let number = MADE.fetch_add(1, Ordering::Relaxed);
            let name = format!("ringway-bench-{}-{number}-{name}", std::process::id());
            let group = mount.join(name);
            fs::create_dir(&group).ok().map(|()| group)
        });
        let mut meter = Self { roots: roots.to_vec(), group };
        // All or none: a process left outside would be missing from the sum.
        if let Some(group) = &meter.group {
            let procs = group.join("cgroup.procs");
            let moved = family(roots).iter().all(|pid| fs::write(&procs, pid.to_string()).is_ok());
            if !moved {
                meter.leave();
            }
        }
        meter
    }

    /// Seconds of CPU since some moment before the first call.
    pub fn seconds(&self) -> io::Result<f64> {
        match &self.group {
            Some(group) => usage(&fs::read_to_string(group.join("cpu.stat"))?),
            None => family(&self.roots).iter().map(|pid| of_threads(*pid)).sum(),
        }
    }

    /// How it counts, for the report.
    pub fn method(&self) -> &'static str {
        if self.group.is_some() { "cgroup cpu.stat" } else { "schedstat of all threads" }
    }

    pub fn usage(&self) -> Usage {
        let mut all = Usage::default();
        for pid in family(&self.roots) {
            // A process that ended between the listing and here uses nothing any more.
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let one = rollup(&text);
            all.rss += one.rss;
            all.pss += one.pss;
            all.anonymous += one.anonymous;
            all.files += fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count) as u64;
        }
        all
    }

    fn leave(&mut self) {
        let Some(group) = self.group.take() else { return };
        let Some(parent) = group.parent() else { return };
        let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines() {
            let _ = fs::write(parent.join("cgroup.procs"), pid);
        }
        // The last process may be dead but not yet gone.
        for _ in 0..50 {
            if fs::remove_dir(&group).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Seconds that the cores of the machine have worked since some moment before the first call: the
/// time that is neither idle nor waiting for a disk, in proc(5)'s /proc/stat, in steps of 10 ms for
/// each core. It has what no process is charged with, such as packets that the kernel forwards.
pub fn of_machine() -> io::Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let cores = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
    let rested = cores.clone().map(idle).sum::<Option<f64>>();
    let rested = rested.ok_or_else(|| io::Error::other("/proc/stat without idle times"))?;
    let now = ClockId::CLOCK_MONOTONIC.now().map_err(io::Error::from)?;
    Ok(Duration::from(now).as_secs_f64() * cores.count() as f64 - rested)
}

/// The seconds in which a core was idle or waited for a disk. The unit is USER_HZ, which is 1/100 s
/// wherever Ringway runs.
fn idle(line: &str) -> Option<f64> {
    let mut fields = line.split(' ').skip(4);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / 100.0)
}

/// Of all processes together, in bytes; `files` are open descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    pub rss: u64,
    pub pss: u64,
    /// Heap, stacks and private mappings: what grows with sessions.
    pub anonymous: u64,
    pub files: u64,
}

/// Where cgroup v2 is mounted, on its own or beside v1.
fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let path = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// These processes and all that descend from them. By parent, because /proc/PID/task/TID/children
/// is not in every kernel (CONFIG_PROC_CHILDREN).
pub fn family(roots: &[i32]) -> BTreeSet<i32> {
    let parents: Vec<(i32, i32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((pid, parent(&stat)?))
        })
        .collect();
    let mut found: BTreeSet<i32> = roots.iter().copied().collect();
    let mut unvisited = roots.to_vec();
    while let Some(pid) = unvisited.pop() {
        let children = parents.iter().filter(|(_, parent)| *parent == pid);
        unvisited.extend(children.map(|(child, _)| *child).filter(|child| found.insert(*child)));
    }
    found
}

/// The name in parentheses may hold blanks and parentheses; the state and the parent follow it.
fn parent(stat: &str) -> Option<i32> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn of_threads(pid: i32) -> io::Result<f64> {
    let mut nanos = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        nanos += on_cpu(&task.path());
    }
    Ok(nanos / 1e9)
}

fn on_cpu(task: &Path) -> f64 {
    let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or_default()
}

fn usage(cpu_stat: &str) -> io::Result<f64> {
    cpu_stat
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec ")?.parse::<f64>().ok())
        .map(|micros| micros / 1e6)
        .ok_or_else(|| io::Error::other("cpu.stat without usage_usec"))
}

fn rollup(smaps: &str) -> Usage {
    let field = |name: &str| {
        let line = smaps.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kilobytes = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
        kilobytes.unwrap_or(0) * 1024
    };
    Usage { rss: field("Rss"), pss: field("Pss"), anonymous: field("Anonymous"), files: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_is_charged_and_one_that_sleeps_is_not() {
        let spawn = |script: &str| {
            std::process::Command::new("sh").args(["-c", script]).spawn().expect("sh")
        };
        let mut busy = spawn("while :; do :; done");
        let mut idle = spawn("exec sleep 60");
        let pid = |child: &std::process::Child| i32::try_from(child.id()).expect("a pid");
        let meters = [Meter::of("busy", &[pid(&busy)]), Meter::of("idle", &[pid(&idle)])];
        let at = || meters.each_ref().map(|meter| meter.seconds().expect("readable"));
        let [busy_before, idle_before] = at();
        // Until the busy one was charged, however loaded the machine is.
        let [busy_used, idle_used] = loop {
            std::thread::sleep(Duration::from_millis(5));
            let [busy, idle] = at();
            if busy > busy_before + 0.02 {
                break [busy - busy_before, idle - idle_before];
            }
        };
        let memory = meters[1].usage();
        for child in [&mut busy, &mut idle] {
            child.kill().expect("ours");
            child.wait().expect("ours");
        }
        assert!(idle_used < busy_used, "{idle_used} and {busy_used}");
        assert!(memory.rss >= memory.anonymous && memory.anonymous > 0, "{memory:?}");
        assert!(memory.files >= 3, "{memory:?}");
    }

    #[test]
    fn the_machine_works_no_more_than_its_cores_can() {
        let (began, before) = (std::time::Instant::now(), of_machine().expect("readable"));
        while began.elapsed() < Duration::from_millis(300) {
            std::hint::black_box(began);
        }
        let worked = of_machine().expect("readable") - before;
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        assert!(worked > 0.1 && worked < cores * began.elapsed().as_secs_f64() + 0.1, "{worked}");
        assert_eq!(idle("cpu1 10 20 30 400 50 6 7 8 9 0"), Some(4.5));
    }

    #[test]
    fn reads_what_the_kernel_prints() {
        let stat = "usage_usec 1500000\nuser_usec 1\nsystem_usec 2\n";
        assert!((usage(stat).expect("there") - 1.5).abs() < 1e-9);
        assert!(usage("nothing").is_err());
        let smaps = "5600-7f ---p 0 0:0 0 [rollup]\nRss:  12 kB\nPss:   8 kB\nAnonymous:  4 kB\n";
        let expected = Usage { rss: 12_288, pss: 8192, anonymous: 4096, files: 0 };
        assert_eq!(rollup(smaps), expected);
    }

    #[test]
    fn children_belong_to_the_family() {
        let mut parent = std::process::Command::new("sh")
            .args(["-c", "sleep 60 & echo up; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("sh");
        let mut line = [0; 3];
        let out = parent.stdout.as_mut().expect("piped");
        io::Read::read_exact(out, &mut line).expect("up");
        let pid = i32::try_from(parent.id()).expect("a pid");
        let all = family(&[pid]);
        for member in &all {
            let member = nix::unistd::Pid::from_raw(*member);
            let _ = nix::sys::signal::kill(member, nix::sys::signal::Signal::SIGKILL);
        }
        parent.wait().expect("ours");
        assert_eq!(all.len(), 2, "{all:?}");
    }
}
