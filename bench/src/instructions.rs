//! Whether the proxy's hot paths execute more instructions than when someone last looked, and
//! whether what is done for many grows no faster than they do.
//!
//! `bench/instructions/benches/instructions.rs` counts them under Valgrind. The counts repeat
//! exactly, but hold for one compiler and one target only: both stand in the committed file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

#[derive(clap::Args)]
pub struct Options {
    /// Write what is counted to `bench/instructions.toml` instead of comparing with it.
    #[arg(long)]
    update: bool,
}

/// What is committed.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Baseline {
    /// The compiler's version, such as "1.95.0".
    rustc: String,
    /// Such as "x86_64-unknown-linux-gnu".
    target: String,
    instructions: Counts,
}

/// Instructions by benchmark.
type Counts = BTreeMap<String, u64>;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.toml");
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

const UPDATE: &str = "cargo run -p bench -- instructions --update";

/// Per cent. Inlining that falls out differently elsewhere in the crate stays well below.
const TOLERANCE: u64 = 5;

/// Counts and compares, or writes the baseline.
///
/// # Errors
/// The counts could not be had, or are not those of the baseline; each difference is printed.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let compiler = Command::new("rustc").arg("-vV").current_dir(WORKSPACE).output();
    let compiler = String::from_utf8(compiler.context("rustc -vV")?.stdout)?;
    let line = |key| compiler.lines().find_map(|line| line.strip_prefix(key));
    let (Some(rustc), Some(target)) = (line("release: "), line("host: ")) else {
        bail!("rustc -vV says nothing of its release and host: {compiler:?}");
    };
    let (rustc, target) = (rustc.to_owned(), target.to_owned());
    if options.update {
        let baseline = Baseline { rustc, target, instructions: count()? };
        is_in_proportion(&baseline.instructions)?;
        std::fs::write(FILE, baseline.text()?).with_context(|| FILE.to_owned())?;
        println!("{} counts are in {FILE}", baseline.instructions.len());
        return Ok(());
    }
    let baseline = Baseline::read(Path::new(FILE))?;
    if (&baseline.rustc, &baseline.target) != (&rustc, &target) {
        println!(
            "skipped: the counts are of rustc {} on {}, here is rustc {rustc} on {target}",
            baseline.rustc, baseline.target
        );
        return Ok(());
    }
    let now = count()?;
    let changes = compare(&baseline.instructions, &now);
    println!("{:34} {:>12} {:>12}", "instructions", "baseline", "now");
    for change in &changes {
        println!("{change}");
    }
    if changes.iter().any(|change| change.verdict() == Verdict::Fewer) {
        println!("Fewer than before: keep that with `{UPDATE}`.");
    }
    let failed = changes.iter().filter(|change| change.verdict().fails()).count();
    ensure!(
        failed == 0,
        "{failed} of {} differ from the baseline; if that is worth it: `{UPDATE}`",
        changes.len()
    );
    is_in_proportion(&now)
}

/// Of one benchmark's parameters `of_N`, each with the next.
///
/// # Errors
/// A larger one has more than half as much again as its share: something in it is compared with
/// everything else. The logarithm of look-ups in trees is well below.
fn is_in_proportion(counts: &Counts) -> anyhow::Result<()> {
    let mut growing: BTreeMap<&str, BTreeMap<u64, u64>> = BTreeMap::new();
    for (name, count) in counts {
        let Some((function, of)) = name.split_once(".of_") else { continue };
        if let Ok(size) = of.parse() {
            growing.entry(function).or_default().insert(size, *count);
        }
    }
    for (function, counts) in growing {
        for ((small, few), (large, many)) in counts.iter().zip(counts.iter().skip(1)) {
            ensure!(
                many * small * 2 <= few * large * 3,
                "{function}: {few} instructions for {small}, {many} for {large}: that is more than \
                 in proportion"
            );
        }
    }
    Ok(())
}

/// The data plane is built as in a release. All other code is that of the tests, because it would
/// take minutes to build it again: what the data plane takes of it is generic or `#[inline]`, and
/// so compiled with the data plane.
const PROFILE: [&str; 6] = [
    "profile.test.package.data-plane.codegen-units=1",
    "profile.test.package.data-plane.opt-level=3",
    "profile.test.package.data-plane.debug-assertions=false",
    "profile.test.package.data-plane.overflow-checks=false",
    "profile.test.package.instructions.opt-level=3",
    "profile.test.package.instructions.debug-assertions=false",
];

/// Runs the benchmarks.
fn count() -> anyhow::Result<Counts> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["bench", "--quiet", "--workspace", "--bench", "instructions", "--profile", "test"])
        .args(PROFILE.iter().flat_map(|setting| ["--config", setting]))
        .args(["--", "--output-format=json"])
        .current_dir(WORKSPACE)
        .stderr(Stdio::inherit())
        .output()
        .context("cargo bench")?;
    ensure!(
        output.status.success(),
        "cargo bench failed; it needs valgrind and gungraun-runner, which \
         `tests/run instructions` installs"
    );
    counts_of(&String::from_utf8(output.stdout)?)
}

/// From what gungraun prints: a JSON object per benchmark.
fn counts_of(text: &str) -> anyhow::Result<Counts> {
    let mut counts = Counts::new();
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let summary: serde_json::Value = serde_json::from_str(line)?;
        let word = |key: &str| summary[key].as_str().map(str::to_owned);
        let metrics = &summary["profiles"][0]["data"]["total"]["metrics"];
        let instructions = metrics["Ir"]["values"]["new"].as_u64();
        let (Some(function), Some(id), Some(instructions)) =
            (word("function_name"), word("id"), instructions)
        else {
            bail!("gungraun prints something new: {line}");
        };
        ensure!(
            counts.insert(format!("{function}.{id}"), instructions).is_none(),
            "two benchmarks are called {function}.{id}"
        );
    }
    ensure!(!counts.is_empty(), "cargo bench ran no benchmark");
    Ok(counts)
}

fn compare(baseline: &Counts, now: &Counts) -> Vec<Change> {
    let names: BTreeSet<&String> = baseline.keys().chain(now.keys()).collect();
    let change = |name: &String| Change {
        name: name.clone(),
        before: baseline.get(name).copied(),
        now: now.get(name).copied(),
    };
    names.into_iter().map(change).collect()
}

/// One benchmark, before and now.
struct Change {
    name: String,
    before: Option<u64>,
    now: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    More,
    Fewer,
    /// The baseline does not have it.
    Unknown,
    /// Only the baseline has it.
    Gone,
}

impl Verdict {
    /// What is better than before fails nobody.
    fn fails(self) -> bool {
        matches!(self, Self::More | Self::Unknown | Self::Gone)
    }
}

impl Change {
    fn verdict(&self) -> Verdict {
        match (self.before, self.now) {
            (None, _) => Verdict::Unknown,
            (_, None) => Verdict::Gone,
            (Some(before), Some(now)) if now * 100 > before * (100 + TOLERANCE) => Verdict::More,
            (Some(before), Some(now)) if now * 100 < before * (100 - TOLERANCE) => Verdict::Fewer,
            _ => Verdict::Same,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number =
            |count: Option<u64>| count.map_or_else(|| "-".into(), |count| count.to_string());
        write!(f, "{:34} {:>12} {:>12}", self.name, number(self.before), number(self.now))?;
        if let (Some(before), Some(now)) = (self.before, self.now) {
            write!(f, " {:>+8.2} %", (now as f64 / before as f64 - 1.0) * 100.0)?;
        }
        f.write_str(match self.verdict() {
            Verdict::Same => "",
            Verdict::More => "  MORE",
            Verdict::Fewer => "  fewer",
            Verdict::Unknown => "  NOT IN THE BASELINE",
            Verdict::Gone => "  ONLY IN THE BASELINE",
        })
    }
}

impl Baseline {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{}; `{UPDATE}` writes it", path.display()))?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }

    fn text(&self) -> anyhow::Result<String> {
        Ok(format!("# Written by `{UPDATE}`.\n{}", toml::to_string(self)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(&str, u64)]) -> Counts {
        of.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    fn verdicts(before: &[(&str, u64)], now: &[(&str, u64)]) -> Vec<Verdict> {
        compare(&counts(before), &counts(now)).iter().map(Change::verdict).collect()
    }

    fn fails(verdicts: &[Verdict]) -> Vec<bool> {
        verdicts.iter().map(|verdict| verdict.fails()).collect()
    }

    #[test]
    fn more_than_the_tolerance_fails_and_less_is_told() {
        let before = [("a", 1_000), ("b", 1_000), ("c", 1_000), ("d", 1_000)];
        let now = [("a", 1_050), ("b", 1_051), ("c", 950), ("d", 949)];
        let found = verdicts(&before, &now);
        assert_eq!(found, [Verdict::Same, Verdict::More, Verdict::Same, Verdict::Fewer]);
        assert_eq!(fails(&found), [false, true, false, false]);
    }

    #[test]
    fn a_benchmark_that_comes_or_goes_must_be_in_an_update() {
        let found = verdicts(&[("gone", 10), ("kept", 10)], &[("kept", 10), ("new", 10)]);
        assert_eq!(found, [Verdict::Gone, Verdict::Same, Verdict::Unknown]);
        assert_eq!(fails(&found), [true, false, true]);
    }

    #[test]
    fn what_grows_faster_than_its_size_fails() {
        let is_right = |of: &[(&str, u64)]| is_in_proportion(&counts(of)).is_ok();
        assert!(is_right(&[("a.of_10", 100), ("a.of_100", 1_500), ("b.of_100", 9_999)]));
        assert!(!is_right(&[("a.of_10", 100), ("a.of_100", 1_501)]));
        assert!(!is_right(&[("a.of_1", 10), ("a.of_20", 200), ("a.of_100", 2_000)]));
        assert!(is_right(&[("pick.of_4", 100), ("pick.other", 10_000)]));
    }

    #[test]
    fn counts_are_read_from_a_first_run_and_from_a_later_one() {
        let line = |id: &str, values: &str| {
            format!(
                r#"{{"function_name":"open","id":"{id}","profiles":[{{"data":{{"total":{{"metrics":
                {{"Dr":{{"values":{{"new":1}}}},"Ir":{{"values":{values}}}}}}}}}}}]}}"#
            )
            .replace('\n', "")
        };
        let first = line("tcp", r#"{"new":7}"#);
        let later = line("tls", r#"{"new":8,"old":9}"#);
        let found = counts_of(&format!("noise\n{first}\n{later}\n")).unwrap();
        assert_eq!(found, counts(&[("open.tcp", 7), ("open.tls", 8)]));
        assert!(counts_of(&format!("{first}\n{first}")).is_err(), "one name twice");
        assert!(counts_of(&line("tcp", r#"{"newest":7}"#)).is_err());
        assert!(counts_of("").is_err());
    }

    #[test]
    fn a_baseline_is_read_as_it_was_written() {
        let baseline = Baseline {
            rustc: "1.95.0".to_owned(),
            target: "x86_64-unknown-linux-gnu".to_owned(),
            instructions: counts(&[("open.tcp", 7), ("open.tls", 8)]),
        };
        assert_eq!(toml::from_str::<Baseline>(&baseline.text().unwrap()).unwrap(), baseline);
    }
}
