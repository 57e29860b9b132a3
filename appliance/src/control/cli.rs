//! Reads the arguments and gives the exit code: 0 on success, 1 after an error, 2 for wrong
//! arguments. `diff` and `migrate` have codes of their own.

use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use config_sync::gateway;
use config_sync::gateway::files::Options;
use config_sync::gateway::follow::cluster;
use config_sync::model::config::Config;
use config_sync::model::place::Warning;
use config_sync::source::{Source, Translated};
use config_sync::sync::dry_run::Checked;
use ipnet::IpNet;

use crate::control::check::{self, Severity};
use crate::control::client::arguments::Output;
use crate::control::client::diff;
use crate::control::client::verbs::Verb;
use crate::control::doctor::{self, State};
use crate::control::output::{BadConfig, Exit, completions, fast_path, features, print};
use crate::control::own_log::{self, LogFormat, LogLevel, LogTo};
use crate::control::process::{self, Origin, Start};
use crate::control::time_of_day::unix_seconds;
use crate::control::{access_log, demo, docs, migrate};

/// A Layer-4 gateway for Linux: TCP, UDP and TLS-by-SNI, one io_uring per core.
///
/// To see it work at once: `ringway demo`. To use it: write a TOML file with listeners, routes and
/// backends, try it with `ringway check FILE`, and start it with `ringway run --config FILE`.
#[derive(Debug, Parser)]
#[command(name = "ringway", version = env!("RINGWAY_VERSION"), arg_required_else_help = true)]
pub struct Cli {
    /// How much Ringway says about itself on stderr (the access log is apart from that).
    #[arg(long, global = true, value_enum, value_name = "LEVEL", default_value = "info")]
    log_level: LogLevel,
    /// How Ringway writes that: for people, one JSON object a line, or for the journal of systemd
    /// [default: journal if stderr is the journal, else text].
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Where Ringway writes that: stderr, syslog (the daemon at /dev/log), or syslog:/PATH for
    /// another Unix socket. Messages to syslog have the form of RFC 5424.
    #[arg(long, global = true, value_name = "WHERE", default_value = "stderr")]
    log_to: LogTo,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a gateway with built-in echo servers behind it, and print what to try.
    ///
    /// Needs no file and no root. Ctrl-C ends it.
    Demo(demo::Options),
    /// Run the gateway that a TOML file, Kubernetes objects in files, or a cluster describes.
    ///
    /// When the file is saved, or on SIGHUP, the new configuration is in force at once; live
    /// sessions are not touched. A file with a fault changes nothing: the faults are logged.
    /// SIGTERM or Ctrl-C lets live sessions end (drain_timeout in the file), a second one closes
    /// them at once.
    Run {
        /// The TOML file, or a directory of some; or Gateway API objects: a YAML file, or a
        /// directory of some, which may have one TOML file too. Beside objects, and with
        /// --kubernetes, a TOML file has what no object says: workers, admin, access_log, limits
        /// and how to drain.
        #[arg(long, value_name = "FILE|DIR", required_unless_present_any = ["kubernetes", "file"])]
        config: Option<PathBuf>,
        /// The same as --config.
        #[arg(value_name = "FILE|DIR", conflicts_with = "config")]
        file: Option<PathBuf>,
        /// Follow the Gateway API objects of a cluster.
        #[arg(long)]
        kubernetes: bool,
        /// Take the listening sockets of the gateway over that runs with this configuration, which
        /// then drains. If that fails, the other goes on. `ringway upgrade` does this by itself.
        #[arg(long, conflicts_with = "kubernetes")]
        take_over: bool,
        /// Write the number of the process that serves into this file. An upgrade writes that of
        /// the new process; the last one removes the file.
        #[arg(long, value_name = "FILE")]
        pid_file: Option<PathBuf>,
        #[command(flatten)]
        gateways: GatewayArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
        #[command(flatten)]
        files: FileArgs,
        #[command(flatten)]
        without: Without,
    },
    /// Say whether files are valid configurations, without running them.
    ///
    /// Each file is a configuration of its own. For a valid one Ringway prints one line; for
    /// another it prints every fault with its line, column, field and what is allowed there, and
    /// exits 1. What can be in force but will not work, or is hardly meant, is a warning on stderr,
    /// and no fault.
    Check {
        /// TOML files, YAML files, or directories; `-` is TOML on stdin.
        #[arg(required = true, value_name = "FILE|DIR")]
        files: Vec<PathBuf>,
        /// Print the configuration in its long form, as one TOML file that means the same.
        #[arg(long)]
        explain: bool,
        /// A warning makes the exit code 1 too.
        #[arg(long)]
        strict: bool,
        /// Print the findings as JSON: for each file whether it is valid, and its faults, warnings
        /// and hints with file, line, column, field and message.
        #[arg(long, conflicts_with = "explain")]
        json: bool,
        #[command(flatten)]
        gateways: GatewayArgs,
    },
    /// Print what Gateway API objects come to, as a TOML file that means the same.
    ///
    /// The statuses that a cluster would be given go to stderr, as YAML. Certificates and keys are
    /// left out and named, unless there is a directory to write them to.
    Translate {
        /// YAML files, and directories of some.
        #[arg(required = true, value_name = "FILE|DIR")]
        files: Vec<PathBuf>,
        /// Write the statuses to this file.
        #[arg(long, value_name = "FILE")]
        status: Option<PathBuf>,
        /// Write certificates and keys into this directory, as files that only their owner can read
        /// and to which the TOML refers.
        #[arg(long, value_name = "DIR")]
        secrets_dir: Option<PathBuf>,
        #[command(flatten)]
        gateways: GatewayArgs,
    },
    /// Print what another program's configuration comes to, as TOML: of HAProxy, nginx,
    /// ingress-nginx or Traefik.
    ///
    /// What could not be carried over goes to stderr, with file, line and reason; what is only
    /// different, as a note. The exit code is 0 if all was carried over, 2 if something was not,
    /// and 1 if a file can't be read. `ringway docs moving-here` says more.
    Migrate(migrate::Options),
    /// Print the CustomResourceDefinition of L4Policy, as YAML.
    Crd,
    /// Say whether this machine is fit for a gateway, and what to change.
    ///
    /// Looks at the kernel, limits, settings, network cards and connection tracking; and with
    /// --config, at the timeouts and ports of that configuration too. Changes nothing. Exits 1 if
    /// Ringway can't start here.
    Doctor {
        /// The TOML file, YAML file, or directory that Ringway is to run.
        #[arg(long, value_name = "FILE|DIR")]
        config: Option<PathBuf>,
        /// Print the findings as JSON.
        #[arg(long)]
        json: bool,
        /// A warning makes the exit code 1 too.
        #[arg(long)]
        strict: bool,
        #[command(flatten)]
        gateways: GatewayArgs,
    },
    /// Say what a configuration would change in a running gateway.
    ///
    /// Lists settings, listeners, routes, backends and endpoints that would come, go or change,
    /// with old and new values, and how many sessions live on what would go. Changes nothing. The
    /// exit code is 0 if nothing differs, 1 if something does, and 2 if they can't be compared.
    Diff {
        /// The candidate: a TOML file, a YAML file, or a directory; `-` is TOML on stdin.
        #[arg(value_name = "FILE|DIR")]
        file: PathBuf,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        gateways: GatewayArgs,
    },
    #[command(flatten)]
    Live(Verb),
    /// Print what a shell needs to complete Ringway's arguments.
    ///
    /// For bash: `ringway completions bash > /etc/bash_completion.d/ringway`.
    Completions { shell: Shell },
    /// Write the manual pages: ringway(1), and one for each command.
    ///
    /// For man(1): `ringway man /usr/local/share/man/man1`.
    Man {
        /// The directory for the pages. It must be there.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Print a page of the documentation: a protocol, operating, troubleshooting.
    ///
    /// Without a topic: lists the pages. They are Markdown; links lead to the project's files.
    Docs {
        /// Such as postgresql, kafka, dns, troubleshooting.
        topic: Option<String>,
    },
    /// List the kernel features that the gateway uses, and whether this kernel has them.
    Features {
        #[command(flatten)]
        without: Without,
    },
}

/// How objects become a configuration.
#[derive(Debug, Args)]
#[command(next_help_heading = "With Gateway API objects")]
struct GatewayArgs {
    /// Each Gateway gets an address of its own out of these; may be repeated. Without: Gateways
    /// share the node's addresses.
    #[arg(long, value_name = "CIDR")]
    address_pool: Vec<IpNet>,
    /// An address of this node, for the statuses of Gateways where there is no pool; may be
    /// repeated (default: those of the Node, or of this machine).
    #[arg(long, value_name = "IP")]
    node_address: Vec<IpAddr>,
    /// The zone of this node, for endpoints with topology hints (default: that of the Node).
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// ExternalName Services, EndpointSlices of type FQDN and XBackends lead to the addresses of
    /// their names.
    /// Without: such backends are refused, because whoever may write a Service could make the
    /// gateway connect to anything that the gateway can reach.
    #[arg(long)]
    external_names: bool,
}

impl GatewayArgs {
    fn options(self) -> Options {
        Options {
            address_pool: self.address_pool,
            node_addresses: self.node_address,
            zone: self.zone,
            external_names: self.external_names,
        }
    }
}

/// How files are followed.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "With files")]
struct FileArgs {
    /// Only SIGHUP reloads: files are not watched.
    #[arg(long, conflicts_with = "kubernetes")]
    no_watch: bool,
    /// A reload may take away all listeners, or more than half of at least 4. Without: such a file
    /// is refused, as it may have been cut off, unless `ringway reload --confirm` asks for it.
    #[arg(long, conflicts_with = "kubernetes")]
    allow_empty: bool,
}

/// Each of these needs --kubernetes.
#[derive(Debug, Args)]
#[command(next_help_heading = "With --kubernetes")]
struct ClusterArgs {
    /// Follow the objects of this namespace only; may be repeated.
    #[arg(long, value_name = "NAMESPACE", requires = "kubernetes")]
    namespace: Vec<String>,
    /// GatewayClasses with this controllerName are Ringway's.
    #[arg(long, value_name = "DOMAIN/NAME", default_value = gateway::objects::CONTROLLER,
        value_parser = controller_name)]
    controller_name: String,
    /// How to reach the cluster; without: as kubectl does, or as the Pod's ServiceAccount.
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    kubeconfig: Option<PathBuf>,
    /// The Node that this runs on, whose addresses and zone are looked up (default: $NODE_NAME).
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    node_name: Option<String>,
    /// What this replica is called among the replicas (default: $POD_NAME, the node's name, or the
    /// host's).
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    replica: Option<String>,
    /// The namespace for the Leases of replicas and leader (default: $POD_NAMESPACE, or that of the
    /// credentials).
    #[arg(long, value_name = "NAMESPACE", requires = "kubernetes")]
    lease_namespace: Option<String>,
}

impl ClusterArgs {
    /// `base` has the keys that no object has.
    fn options(self, gateways: Options, base: Config) -> anyhow::Result<cluster::Options> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let node_name = self.node_name.or_else(|| set("NODE_NAME"));
        let replica = self.replica.or_else(|| set("POD_NAME")).or_else(|| node_name.clone());
        let replica = match replica {
            Some(replica) => replica,
            None => std::fs::read_to_string("/proc/sys/kernel/hostname")
                .context("the host's name; give --replica NAME")?,
        };
        Ok(cluster::Options {
            kubeconfig: self.kubeconfig,
            namespaces: self.namespace,
            controller_name: self.controller_name,
            address_pool: gateways.address_pool,
            node_addresses: gateways.node_addresses,
            node_name,
            zone: gateways.zone,
            external_names: gateways.external_names,
            identity: lease_name(&replica)?,
            lease_namespace: self.lease_namespace.or_else(|| set("POD_NAMESPACE")),
            base,
        })
    }
}

/// Checks the form that the API wants (gateway.networking.k8s.io/v1, `GatewayController`). The name
/// is also a part of the names of Leases.
fn controller_name(text: &str) -> Result<String, String> {
    let (domain, path) = text.split_once('/').unwrap_or((text, ""));
    let valid = |part: &str| {
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        !part.is_empty()
            && part.split(['.', '/']).all(|label| {
                label.starts_with(letter)
                    && label.ends_with(letter)
                    && label.chars().all(|c| letter(c) || c == '-')
            })
    };
    if valid(domain) && valid(path) && text.len() <= 150 {
        Ok(text.to_owned())
    } else {
        Err("a DNS name, a slash and a path of a-z, 0-9, - and ., 150 characters at most".into())
    }
}

/// Turns a replica's name into a part of a Lease's name, which is a DNS name.
fn lease_name(replica: &str) -> anyhow::Result<String> {
    let letters = replica.trim().chars().map(|c| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9' | '-' | '.') => c,
        _ => '-',
    });
    let name: String = letters.take(100).collect();
    let name = name.trim_matches(['-', '.']);
    anyhow::ensure!(!name.is_empty(), "{replica:?} is no name for a replica; give --replica NAME");
    Ok(name.to_owned())
}

#[derive(Debug, Args)]
struct Without {
    /// Do as if the kernel lacked this optional feature (see `ringway features`); may be repeated.
    #[arg(long, value_name = "FEATURE")]
    without: Vec<String>,
}

pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = cli.log_format.unwrap_or_else(LogFormat::of_stderr);
    let log = match own_log::start(cli.log_level, format, &cli.log_to) {
        Ok(log) => log,
        Err(error) => {
            let _ = writeln!(io::stderr(), "ringway: --log-to: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = cli.run();
    access_log::flush(log);
    let Err(error) = result else { return ExitCode::SUCCESS };
    if let Some(Exit { code, text }) = error.downcast_ref::<Exit>() {
        if !text.is_empty() {
            let _ = writeln!(io::stderr(), "{text}");
        }
        return ExitCode::from(*code);
    }
    // Faults of a file begin with the file's own name, as in compilers' messages.
    let name = if error.is::<BadConfig>() { "" } else { "ringway: " };
    // If stderr is gone, nobody can be told.
    let _ = writeln!(io::stderr(), "{name}{error:#}");
    ExitCode::FAILURE
}

/// The configuration with --kubernetes and no file. The admin API listens on all addresses, because
/// the kubelet's probes and Prometheus come from outside.
const IN_A_POD: &str = "[admin]\naddress = \"0.0.0.0:9900\"\n";

/// The source at `path`. A pipe, such as `--config <(...)`, can be read only once, so its text is
/// the configuration until the process ends.
fn given(path: PathBuf, options: Options) -> anyhow::Result<Source> {
    let path = if path == Path::new("-") { "/dev/stdin".into() } else { path };
    if path.metadata().is_ok_and(|data| data.file_type().is_fifo()) {
        return Source::pipe(&path).map_err(anyhow::Error::msg);
    }
    Ok(Source::at(path, options))
}

impl Cli {
    fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Demo(options) => demo::run(&options),
            Command::Run {
                config,
                file,
                kubernetes,
                take_over,
                pid_file,
                gateways,
                cluster,
                files,
                without,
            } => {
                let gateways = gateways.options();
                let source = match config.or(file) {
                    Some(path) if kubernetes => Source::File(path),
                    Some(path) => given(path, gateways.clone())?,
                    None => Source::Text { name: "--kubernetes", text: IN_A_POD.into() },
                };
                let origin = if kubernetes {
                    let options = Box::new(cluster.options(gateways, process::check(&source)?)?);
                    Origin::Cluster { options, base: source }
                } else {
                    let FileArgs { no_watch, allow_empty } = files;
                    Origin::File { source, watch: !no_watch, allow_empty }
                };
                let without = without.without;
                process::run(origin, Start { take_over, pid_file, without })
            }
            Command::Check { files, strict, json: true, gateways, .. } => {
                let options = gateways.options();
                let given = files.into_iter().map(|file| given(file, options.clone()));
                check_json(&given.collect::<Result<Vec<_>, _>>()?, strict)
            }
            Command::Check { files, explain, strict, json: false, gateways } => {
                let options = gateways.options();
                let results = files.into_iter().map(|file| {
                    // The long form names files by whole paths, so that it can stand anywhere.
                    let file = match explain && file != Path::new("-") {
                        true => std::path::absolute(file)?,
                        false => file,
                    };
                    check(&given(file, options.clone())?, explain, strict)
                });
                all(results)
            }
            Command::Translate { files, status, secrets_dir, gateways } => {
                translate(&files, status.as_deref(), secrets_dir.as_deref(), &gateways.options())
            }
            Command::Doctor { config, json, strict, gateways } => {
                let source = config.map(|path| given(path, gateways.options())).transpose()?;
                doctor(source.as_ref(), json, strict)
            }
            Command::Migrate(options) => migrate::run(&options),
            Command::Crd => print(&gateway::objects::policy::crd()),
            Command::Diff { file, output, gateways } => {
                diff::run(&given(file, gateways.options())?, &output)
            }
            Command::Live(verb) => verb.run(),
            Command::Completions { shell } => print(&completions(shell, Self::command())?),
            Command::Man { directory } => clap_mangen::generate_to(Self::command(), &directory)
                .with_context(|| directory.display().to_string()),
            Command::Docs { topic } => print(&docs::text(topic.as_deref())?),
            Command::Features { without } => {
                let found = process::probe(&without.without)?;
                print(&(features(&found) + &fast_path(&found)))
            }
        }
    }
}

/// Ok if all results are. Every fault of every file is in the error.
fn all(results: impl Iterator<Item = anyhow::Result<()>>) -> anyhow::Result<()> {
    let faults: Vec<_> =
        results.filter_map(|result| Some(format!("{:#}", result.err()?))).collect();
    anyhow::ensure!(faults.is_empty(), BadConfig(faults.join("\n")));
    Ok(())
}

/// All is in the JSON, so an exit code of 1 comes without a text.
fn check_json(sources: &[Source], strict: bool) -> anyhow::Result<()> {
    let reports: Vec<_> =
        sources.iter().map(|source| check::report(source, unix_seconds())).collect();
    print(&(serde_json::to_string_pretty(&reports)? + "\n"))?;
    let is_bad = |severity| severity == Severity::Fault || strict && severity == Severity::Warning;
    let mut findings = reports.iter().flat_map(|report| &report.findings);
    match findings.any(|finding| is_bad(finding.severity)) {
        true => Err(Exit { code: 1, text: String::new() }.into()),
        false => Ok(()),
    }
}

fn check(source: &Source, explain: bool, strict: bool) -> anyhow::Result<()> {
    let checked = check::checked(source, unix_seconds()).map_err(BadConfig)?;
    let Checked { summary, warnings, hints, config } = checked;
    let hints = hints.iter().map(Warning::as_hint);
    for line in warnings.iter().map(Warning::marked).chain(hints) {
        writeln!(io::stderr(), "{line}").context("stderr")?;
    }
    match explain {
        true => print(&gateway::print::long(&config))?,
        false => print(&format!("{}: valid: {summary}\n", source.name()))?,
    }
    if strict && !warnings.is_empty() {
        let count = warnings.len();
        anyhow::bail!(BadConfig(format!("{}: warnings (--strict): {count}", source.name())));
    }
    Ok(())
}

fn doctor(source: Option<&Source>, json: bool, strict: bool) -> anyhow::Result<()> {
    let config = source.map(process::check).transpose()?;
    let findings = doctor::findings(&doctor::Facts::of_this_machine(), config.as_ref());
    print(&match json {
        true => serde_json::to_string_pretty(&findings)? + "\n",
        false => doctor::text(&findings),
    })?;
    let worst = findings.iter().map(|finding| finding.state).max();
    let bad = if strict { State::Warning } else { State::Fault };
    anyhow::ensure!(worst < Some(bad), "the machine is not fit; each fix stands under its fault");
    Ok(())
}

fn translate(
    paths: &[PathBuf],
    status: Option<&Path>,
    secrets: Option<&Path>,
    options: &Options,
) -> anyhow::Result<()> {
    let translated = config_sync::source::translate(paths, secrets, options);
    let Translated { warnings, toml, statuses } = translated.map_err(BadConfig)?;
    // Warnings are YAML comments, because the rest of stderr is YAML.
    for warning in warnings {
        writeln!(io::stderr(), "# {}", warning.marked()).context("stderr")?;
    }
    match status {
        Some(path) => std::fs::write(path, statuses)
            .with_context(|| format!("--status {}", path.display()))?,
        None => io::stderr().write_all(statuses.as_bytes()).context("stderr")?,
    }
    print(&toml)
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
        let Command::Run { config, without, .. } = cli.command else { panic!("{cli:?}") };
        assert_eq!(config.as_deref(), Some(Path::new("a.toml")));
        assert_eq!(without.without, ["x", "y"]);
        assert_eq!(cli.log_level, LogLevel::Info);
    }

    #[test]
    fn a_cluster_needs_no_file_and_its_flags_need_a_cluster() {
        let pools = ["--address-pool", "10.99.0.0/16", "--address-pool", "fd00::/64"];
        let run = |arguments: &[&str]| {
            Cli::try_parse_from([&["ringway", "run"], arguments, &pools].concat())
        };
        let cli = run(&["--kubernetes", "--replica", "Node_1."]).expect("valid arguments");
        let Command::Run { kubernetes: true, cluster, gateways, config: None, .. } = cli.command
        else {
            panic!("no cluster");
        };
        let text = Source::Text { name: "x", text: IN_A_POD.into() };
        let base = process::check(&text).expect("it is valid");
        assert_eq!(base.admin.map(|address| address.port()), Some(9900));
        let options = cluster.options(gateways.options(), base).expect("options");
        assert_eq!(options.address_pool.len(), 2);
        assert_eq!(options.identity, "node-1");
        assert_eq!(options.controller_name, "ringway.dev/gateway-controller");
        let error = run(&["--config", "a.toml", "--kubeconfig", "k"]).expect_err("no cluster");
        assert_eq!(error.kind(), ErrorKind::MissingRequiredArgument);
        for bad in ["ringway", "ringway.dev/", "/a", "Ringway.dev/a", "a..b/c", "a/-b"] {
            assert!(run(&["--kubernetes", "--controller-name", bad]).is_err(), "{bad}");
        }
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
