//! Texts for people: the output of commands, and the texts of errors.

use std::any::Any;
use std::io::{self, Write as _};

use anyhow::{Context as _, anyhow};
use clap::Command;
use clap_complete::Shell;

use crate::ring::Features;
use crate::ring::bpf::FastPath;

/// One line per feature, in columns.
pub fn features(features: &Features) -> String {
    let mut text = format!("{:<20} {:<6} {:<8} USED FOR\n", "FEATURE", "SINCE", "STATE");
    for feature in features.list() {
        let state = match (feature.present, feature.masked) {
            (false, _) => "absent",
            (true, true) => "masked",
            (true, false) => "used",
        };
        let (name, since, used_for) = (feature.name, feature.since, feature.used_for);
        text.push_str(&format!("{name:<20} {since:<6} {state:<8} {used_for}\n"));
    }
    text
}

/// The program that completes `command`'s words in a shell.
pub fn completions(shell: Shell, mut command: Command) -> anyhow::Result<String> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "ringway", &mut text);
    Ok(String::from_utf8(text)?)
}

/// The line of the kernel's path for UDP flows, under the features of io_uring.
pub fn fast_path(features: &Features) -> String {
    let state = match FastPath::probe(features.may_use_tcx()) {
        Ok(hook) => format!("there, attached by {hook}"),
        Err(error) => format!("absent: {error}"),
    };
    format!("\nfast_path, for UDP flows in the kernel: {state}\n")
}

/// Prints to stdout. A reader that stops reading is no error (`ringway features | head -1`).
pub fn print(text: &str) -> anyhow::Result<()> {
    write(text).map(|_| ())
}

/// As [`print`], for what would go on without end: if nobody reads any more, the command ends.
pub fn print_again(text: &str) -> anyhow::Result<()> {
    match write(text)? {
        true => Ok(()),
        false => Err(Exit { code: 0, text: String::new() }.into()),
    }
}

/// False: nobody reads any more.
fn write(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(anyhow!(error)).context("stdout"),
        Ok(()) => Ok(true),
    }
}

/// A configuration that can't be used: every fault with its place, one fault per line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadConfig(pub String);

/// The end of a command with this exit code. The text may be empty: then all was said before.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Exit {
    pub code: u8,
    pub text: String,
}

/// The message of a thread that has panicked.
pub fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
