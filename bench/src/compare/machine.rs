//! What a comparison ran on.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::results::Session;

/// The machine, the command and the time; the rest is the caller's.
pub fn session() -> Session {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |file: &str, name: &str| {
        let line = file.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
    };
    let memory = field(&text("/proc/meminfo"), "MemTotal:");
    let kilobytes = memory.and_then(|line| line.split(' ').next()?.parse::<f64>().ok());
    Session {
        began: utc(SystemTime::now()),
        command: command(),
        kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
        // Processors of other kinds than x86 have no model name there.
        processor: field(&text("/proc/cpuinfo"), "model name")
            .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_gib: kilobytes.unwrap_or(0.0) / f64::from(1 << 20),
        ..Session::default()
    }
}

/// As it can be typed again; the program without its folder.
fn command() -> String {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    std::iter::once(program).chain(words).collect::<Vec<_>>().join(" ")
}

/// `2026-01-31T23-59-59Z`: fit for the name of a folder.
pub fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}-{minute:02}-{second:02}Z")
}

/// Of a number of days since 1970-01-01, in the Gregorian calendar.
fn date(mut days: u64) -> (u64, usize, u64) {
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00-00-00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00-00-00Z");
        assert_eq!(at(1_767_225_599), "2025-12-31T23-59-59Z");
    }

    #[test]
    fn this_machine_has_a_kernel_and_cores() {
        let session = session();
        assert!(!session.kernel.is_empty() && session.cores > 0 && session.memory_gib > 0.0);
    }
}
