//! `ringway migrate`: other programs' configurations as Ringway's TOML.
//!
//! Each parser is pure: texts in, a [`Plan`](plan::Plan) and [`Findings`] out. Nothing is guessed
//! in silence: what a plan does not have, a finding names with its file and line.

mod admission;
pub mod findings;
mod haproxy;
mod ingress_nginx;
mod nginx;
pub mod plan;
mod rules;
mod traefik;
mod tree;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use config_sync::check::parse_for;
use config_sync::machine::Machine;

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::plan::Plan;
use crate::control::output::{BadConfig, Exit, print};

#[derive(Debug, Args)]
pub struct Options {
    /// Files of one program: haproxy.cfg, nginx.conf, ingress-nginx's ConfigMaps in YAML, or
    /// Traefik's YAML or TOML. Several are read as that program would read them together.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Whose files they are [default: found by their names and texts].
    #[arg(long, value_enum, value_name = "PROGRAM")]
    from: Option<Kind>,
    /// Where an entry point of Traefik listens, such as `postgres=:5432` or `dns=:53/udp`, if its
    /// static configuration is not among the files; may be repeated.
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = entry_point)]
    entry_point: Vec<(String, String)>,
}

/// Whose configuration it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Haproxy,
    Nginx,
    IngressNginx,
    Traefik,
}

fn entry_point(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, address)) if !name.is_empty() => Ok((name.to_owned(), address.to_owned())),
        _ => Err("a name, =, and an address, such as postgres=:5432".to_owned()),
    }
}

/// What became of files.
#[derive(Debug)]
pub struct Migrated {
    pub toml: String,
    /// One line for each finding.
    pub said: String,
    /// Nothing of the traffic was left behind.
    pub whole: bool,
}

/// Reads files, each a name and a text. `directory` lists the files of a directory with
/// certificates, or is `None` if it is no directory.
///
/// # Errors
/// A file can't be read as what it is said to be; the place stands in the text.
pub fn migrate(
    kind: Kind,
    files: &[(&str, &str)],
    entry_points: &[(String, String)],
    directory: &dyn Fn(&str) -> Option<Vec<String>>,
) -> Result<Migrated, String> {
    let mut findings = Findings::default();
    let texts: Vec<_> = files.iter().map(|(_, text)| *text).collect();
    let names: Vec<_> = files.iter().map(|(name, _)| *name).collect();
    let plan = match kind {
        Kind::Haproxy => haproxy::migrate(&texts, directory, &mut findings),
        Kind::Nginx => nginx::migrate(&texts, &mut findings),
        Kind::IngressNginx => ingress_nginx::migrate(&texts, &mut findings),
        Kind::Traefik => traefik::migrate(files, entry_points, &mut findings),
    };
    let plan: Plan = plan.map_err(|(At { file, line }, why)| {
        format!("{}:{line}: {why}", names.get(file).copied().unwrap_or_default())
    })?;
    let whole = !findings.has_losses();
    Ok(Migrated { toml: plan.toml(&names), said: findings.text(&names), whole })
}

/// Finds out whose file it is.
pub fn kind_of(name: &str, text: &str) -> Option<Kind> {
    let file = Path::new(name).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let begins = |words: &[&str]| {
        text.lines().any(|line| {
            words.iter().any(|word| {
                let rest = line.strip_prefix(word);
                rest.is_some_and(|rest| {
                    rest.is_empty() || rest.starts_with([' ', '\t', ':', '{', '.'])
                })
            })
        })
    };
    let has = |word: &str| text.contains(word);
    if file.ends_with(".yaml") || file.ends_with(".yml") || file.ends_with(".toml") {
        return match (has("kind: ConfigMap"), begins(&["tcp", "udp", "[tcp", "[udp"])) {
            (true, _) => Some(Kind::IngressNginx),
            (false, true) => Some(Kind::Traefik),
            _ if begins(&["entryPoints", "[entryPoints"]) => Some(Kind::Traefik),
            _ => None,
        };
    }
    if file.starts_with("haproxy") || begins(&["frontend", "backend", "listen", "defaults"]) {
        return Some(Kind::Haproxy);
    }
    let is_nginx = file.starts_with("nginx") || begins(&["stream", "server", "upstream", "http"]);
    is_nginx.then_some(Kind::Nginx)
}

/// Prints the TOML on stdout and the findings on stderr.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for path in &options.files {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        files.push((path.display().to_string(), text));
    }
    let files: Vec<_> = files.iter().map(|(name, text)| (&**name, &**text)).collect();
    let found = files.iter().find_map(|(name, text)| kind_of(name, text));
    let kind = options.from.or(found);
    let kind = kind.context("neither name nor text says whose file it is; give --from PROGRAM")?;
    let migrated = migrate(kind, &files, &options.entry_point, &files_of);
    let Migrated { toml, mut said, whole } = migrated.map_err(BadConfig)?;
    // What the parsers can't know, the check does: files that are missing, addresses that conflict.
    let checked = parse_for("the result", &toml, &Machine::this());
    let fits = match &checked {
        Ok(_) => true,
        Err(faults) => {
            said.push_str(&format!("{faults}\n"));
            false
        }
    };
    io::stderr().write_all(said.as_bytes()).context("stderr")?;
    print(&toml)?;
    match whole && fits {
        true => Ok(()),
        false => Err(Exit { code: 2, text: String::new() }.into()),
    }
}

/// The files of a directory, in the order of their names.
fn files_of(directory: &str) -> Option<Vec<String>> {
    let entries = std::fs::read_dir(directory).ok()?;
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file())
        .map(|path| path.display().to_string())
        .collect();
    files.sort();
    Some(files)
}
