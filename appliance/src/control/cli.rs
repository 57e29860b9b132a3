//! Arguments in, exit code out: 0 if all went well, 1 after an error, 2 for wrong arguments.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use clap::{Args, Parser, Subcommand, ValueEnum};
use config_sync::file::Source;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};

use super::{access_log, demo, process};
use crate::ring::Features;

/// A Layer-4 gateway for Linux: TCP, UDP and TLS-by-SNI, one io_uring per core.
///
/// To see it work at once: `ringway demo`. To use it: write a TOML file with listeners, routes and
/// backends, try it with `ringway check FILE`, and start it with `ringway run --config FILE`.
#[derive(Debug, Parser)]
#[command(name = "ringway", version, arg_required_else_help = true)]
pub struct Cli {
    /// How much Ringway says about itself on stderr (the access log is apart from that).
    #[arg(long, global = true, value_enum, value_name = "LEVEL", default_value = "info")]
    log_level: LogLevel,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a gateway with built-in echo servers behind it, and print what to try.
    ///
    /// Needs no file and no root. Ctrl-C ends it.
    Demo(demo::Options),
    /// Run the gateway that a TOML file describes.
    ///
    /// When the file is saved, or on SIGHUP, the new configuration is in force at once; live
    /// sessions are not touched. A file with a fault changes nothing: the faults are logged.
    /// SIGTERM or Ctrl-C lets live sessions end (drain_timeout in the file), a second one closes
    /// them at once.
    Run {
        /// The TOML file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        without: Without,
    },
    /// Say whether a TOML file is a valid configuration, without running it.
    ///
    /// Prints one line and exits 0 if it is; else prints every fault with its line, column, field
    /// and what is allowed there, and exits 1.
    Check {
        /// The TOML file.
        file: PathBuf,
    },
    /// List the kernel features that the gateway uses, and whether this kernel has them.
    Features {
        #[command(flatten)]
        without: Without,
    },
}

#[derive(Debug, Args)]
struct Without {
    /// Do as if the kernel lacked this optional feature (see `ringway features`); may be repeated.
    #[arg(long, value_name = "FEATURE")]
    without: Vec<String>,
}

pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = log_to_stderr(cli.log_level);
    let result = cli.run();
    access_log::flush(log);
    let Err(error) = result else { return ExitCode::SUCCESS };
    // Faults of a file begin with the file's own name, as compilers and editors have it.
    let name = if error.is::<process::BadConfig>() { "" } else { "ringway: " };
    // Nobody can be told that stderr is gone.
    let _ = writeln!(io::stderr(), "{name}{error:#}");
    ExitCode::FAILURE
}

impl Cli {
    fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Demo(options) => demo::run(&options),
            Command::Run { config, without } => {
                process::run(Source::File(config), &without.without)
            }
            Command::Check { file } => check(&file),
            Command::Features { without } => print(&features(&process::probe(&without.without)?)),
        }
    }
}

/// Ringway's own log. Through a queue, as the access log: a terminal that is blocked must not stop
/// whoever has something to say.
fn log_to_stderr(level: LogLevel) -> WorkerGuard {
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let (queue, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(8_192)
        .thread_name("ringway-stderr")
        .finish(io::stderr());
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_target(false)
        .with_writer(queue)
        .init();
    guard
}

fn check(file: &Path) -> anyhow::Result<()> {
    let summary = config_sync::check(file).map_err(process::BadConfig)?;
    print(&format!("{}: valid: {summary}\n", file.display()))
}

/// A line per feature, in columns.
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

/// Prints to stdout; that nobody reads it is no error (`ringway features | head -1`).
pub fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow!(error)).context("stdout")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_a_file_and_features_to_leave_out() {
        let arguments =
            ["ringway", "run", "--config", "a.toml", "--without", "x", "--without", "y"];
        let cli = Cli::try_parse_from(arguments).expect("valid arguments");
        let Command::Run { config, without } = cli.command else { panic!("{cli:?}") };
        assert_eq!(config, Path::new("a.toml"));
        assert_eq!(without.without, ["x", "y"]);
        assert_eq!(cli.log_level, LogLevel::Info);
    }

    #[test]
    fn log_level_may_stand_after_the_command() {
        let cli = Cli::try_parse_from(["ringway", "check", "f", "--log-level", "debug"]);
        assert_eq!(cli.expect("valid arguments").log_level, LogLevel::Debug);
    }

    #[test]
    fn wrong_arguments_are_told_apart() {
        let kind = |arguments: &[&str]| {
            Cli::try_parse_from(arguments).expect_err("wrong arguments").kind()
        };
        assert_eq!(kind(&["ringway", "run"]), ErrorKind::MissingRequiredArgument);
        assert_eq!(kind(&["ringway", "walk"]), ErrorKind::InvalidSubcommand);
        assert_eq!(kind(&["ringway", "check"]), ErrorKind::MissingRequiredArgument);
        assert_eq!(kind(&["ringway", "demo", "--tcp-port", "x"]), ErrorKind::ValueValidation);
        assert_eq!(kind(&["ringway"]), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,);
    }
}
