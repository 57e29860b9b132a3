//! Tells the program its version: that of Cargo.toml and, in a release build, the commit.
//!
//! A build without git, or outside of a repository, has no commit, unless RINGWAY_COMMIT names one.
//! A debug build has none, so that a commit does not compile everything again.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=RINGWAY_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    let number = env("CARGO_PKG_VERSION").unwrap_or_default();
    let release = env("PROFILE").as_deref() == Some("release");
    let commit = env("RINGWAY_COMMIT").or_else(|| release.then(commit).flatten());
    let version = match commit {
        Some(commit) => format!("{number} ({commit})"),
        None => number,
    };
    println!("cargo::rustc-env=RINGWAY_VERSION={version}");
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The commit, and whether files differ from it.
fn commit() -> Option<String> {
    // A commit moves one of these; a change of a file is seen by the file.
    for name in ["HEAD", "logs/HEAD", "index"] {
        if let Some(path) = git(&["rev-parse", "--path-format=absolute", "--git-path", name]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    for folder in ["src", "../config-sync/src"] {
        println!("cargo::rerun-if-changed={folder}");
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let differs = git(&["status", "--porcelain", "--untracked-files=no"]).is_some();
    Some(if differs { format!("{commit}, modified") } else { commit })
}

/// What git prints; nothing if it prints nothing or fails.
fn git(arguments: &[&str]) -> Option<String> {
    // Without the option `git status` writes the index, and every build would begin anew.
    let mut command = Command::new("git");
    let output = command.arg("--no-optional-locks").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
