//! The configuration's files, read whole.

pub mod watch;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::check::warnings;
use crate::disk::{MAX_BYTES, read_text, text};
use crate::gateway::files::{self, Found, Options};
use crate::gateway::print;
use crate::model::config::Config;
use crate::model::place::Warning;
use crate::model::tls;
use crate::{check, disk, gateway, machine};

/// What problems call a pipe.
const PIPE: &str = "the pipe";

/// Where a configuration's text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A TOML file.
    File(PathBuf),
    /// Kubernetes objects: a YAML file, or a directory with some, and one TOML file at the most,
    /// for what no object says.
    Objects { path: PathBuf, options: Options },
    /// TOML that came through a pipe, as `--config <(...)` names one. It was read once: there is
    /// nothing to read again.
    Pipe(String),
    /// Ours: it is in memory and never changes; problems call it by its name.
    Text { name: &'static str, text: String },
}

impl Source {
    /// The TOML file, YAML file or directory at `path`; `options` are for the latter two.
    pub fn at(path: PathBuf, options: Options) -> Self {
        let objects = path.is_dir() || has_end(&path, &YAML);
        if objects { Self::Objects { path, options } } else { Self::File(path) }
    }

    /// Reads the pipe at `path`, and waits for whoever writes to it.
    ///
    /// # Errors
    /// As [`read_text`], but that it is no regular file.
    pub fn pipe(path: &Path) -> Result<Self, String> {
        let mut bytes = Vec::new();
        let file = File::open(path);
        let read = file.and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
        read.map_err(|error| format!("{}: {error}", path.display()))?;
        text(PIPE, bytes).map(Self::Pipe)
    }

    /// What problems call it.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) | Self::Objects { path, .. } => path.display().to_string(),
            Self::Pipe(_) => PIPE.to_owned(),
            Self::Text { name, .. } => (*name).to_owned(),
        }
    }

    /// # Errors
    /// As [`read_text`]; a directory has no YAML file, or several TOML files.
    pub fn read(&self) -> Result<String, String> {
        match self {
            Self::File(path) => read_text(path),
            Self::Objects { path, .. } => read_objects(path),
            Self::Pipe(text) | Self::Text { text, .. } => Ok(text.clone()),
        }
    }

    /// The configuration that this text of the source is.
    ///
    /// # Errors
    /// Every fault of the text, one a line, each with its place.
    pub fn config(&self, text: &str) -> Result<Parsed, String> {
        let Self::Objects { options, .. } = self else {
            let name = self.name();
            let config = check::parse(&name, text);
            let config = config.map_err(|problems| problems.to_string())?;
            let warnings = match self {
                Self::File(_) | Self::Pipe(_) => {
                    warnings::of(&config, &name, &machine::addresses())
                }
                // Ours.
                Self::Objects { .. } | Self::Text { .. } => Vec::new(),
            };
            let warnings = warnings.into_iter().map(Warning::from).collect();
            return Ok(Parsed { config, shown: text.to_owned(), warnings });
        };
        let (settings, found) = settings_and_objects(text, options)?;
        let translation = gateway::translate::translate(&found.objects, &settings);
        let listeners = print::toml(&translation.config, &mut |_| None);
        Ok(Parsed {
            shown: after(base(text).1, &listeners),
            warnings: doubts(&found, &settings, &translation),
            config: translation.config,
        })
    }

    /// The file or directory, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) | Self::Objects { path, .. } => Some(path),
            Self::Pipe(_) | Self::Text { .. } => None,
        }
    }
}

/// What of these objects will not work, or is hardly meant.
fn doubts(
    found: &Found,
    settings: &gateway::translate::settings::Settings,
    translation: &gateway::translate::Translation,
) -> Vec<Warning> {
    let outcome = gateway::status::Outcome::Applied;
    let mut all: Vec<Warning> = settings.base.doubts.iter().cloned().map(Warning::from).collect();
    all.extend(found.warnings.iter().cloned());
    // What files lead to is among the doubts, by the field that leads there.
    let notices = translation.notices(&outcome).into_iter().filter(|notice| !notice.passes);
    all.extend(notices.map(|notice| {
        let namespace = notice.namespace.as_deref().unwrap_or("default");
        let (group, kind) = (notice.kind.group(), notice.kind.name());
        let place = found.place(group, kind, namespace, &notice.name);
        Warning { place, message: notice.to_string() }
    }));
    let statuses = translation.statuses(&outcome);
    all.extend(
        gateway::translate::doubts::of(&found.objects, settings, &statuses).into_iter().map(
            |doubt| {
                let [group, kind, namespace, name] = doubt.object.each_ref().map(String::as_str);
                let message = format!("{kind} {namespace}/{name}: {}", doubt.message);
                Warning { place: found.place(group, kind, namespace, name), message }
            },
        ),
    );
    let circles = warnings::circles(&translation.config, &settings.node_addresses);
    all.extend(circles.into_iter().map(Warning::from));
    all
}

/// What objects come to.
#[derive(Clone, Debug)]
pub struct Translated {
    /// What will not work, or is hardly meant.
    pub warnings: Vec<Warning>,
    /// With what stands in a TOML file among them.
    pub toml: String,
    /// As they would be once all is served, as YAML.
    pub statuses: String,
}

/// Translates the objects of files and directories. Certificates and keys go into `secrets`, which
/// is made if it is not there; `None`: they are left out of the TOML, and named in it.
///
/// # Errors
/// As [`Source::read`] and [`Source::config`]; a file of `secrets` can't be written; several of the
/// files are TOML.
pub fn translate(
    paths: &[PathBuf],
    secrets: Option<&Path>,
    options: &Options,
) -> Result<Translated, String> {
    let texts = paths.iter().map(|path| read_objects(path)).collect::<Result<Vec<_>, _>>()?;
    let text = texts.concat();
    let bases: Vec<_> = parts(&text).filter(is_base).map(|(name, _)| name).collect();
    if bases.len() > 1 {
        let names = bases.join(", ");
        return Err(format!("{names}: only one file that ends in .toml may be given"));
    }
    let (settings, found) = settings_and_objects(&text, options)?;
    let translation = gateway::translate::translate(&found.objects, &settings);
    let mut failed = None;
    let mut write = |pem: &tls::Pem| {
        let directory = secrets?;
        let written =
            std::fs::create_dir_all(directory).and_then(|()| files::write_secret(directory, pem));
        let named = |error| format!("--secrets-dir {}: {error}", directory.display());
        match written.map_err(named) {
            Ok(path) => Some(path.display().to_string()),
            Err(error) => {
                failed = Some(error);
                None
            }
        }
    };
    let listeners = print::toml(&translation.config, &mut write);
    let statuses = translation.statuses(&gateway::status::Outcome::Applied);
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    match failed {
        Some(error) => Err(error),
        None => Ok(Translated {
            warnings: doubts(&found, &settings, &translation),
            toml: after(base(&text).1, &listeners),
            statuses: print::yaml(&statuses, &now),
        }),
    }
}

/// The TOML file among the parts, its name and text; both empty: there is none.
fn base(text: &str) -> (&str, &str) {
    parts(text).find(is_base).unwrap_or(("", ""))
}

/// The keys that no object has, and behind them what objects come to.
fn after(base: &str, listeners: &str) -> String {
    let end = if base.is_empty() || base.ends_with('\n') { "" } else { "\n" };
    [base, end, listeners].concat()
}

fn is_base((name, _): &(&str, &str)) -> bool {
    has_end(Path::new(name), &["toml"])
}

fn settings_and_objects(
    text: &str,
    options: &Options,
) -> Result<(gateway::translate::settings::Settings, Found), String> {
    let settings = options.settings(base(text))?;
    let found = files::read(parts(text).filter(|part| !is_base(part)))?;
    Ok((settings, found))
}

/// A configuration out of a text.
#[derive(Clone, Debug)]
pub struct Parsed {
    pub config: Config,
    /// It as TOML, without keys.
    pub shown: String,
    /// What of it will not work, or is hardly meant.
    pub warnings: Vec<Warning>,
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self::at(path, Options::default())
    }
}

const YAML: [&str; 3] = ["yaml", "yml", "json"];

fn has_end(path: &Path, ends: &[&str]) -> bool {
    path.extension().and_then(OsStr::to_str).is_some_and(|end| ends.contains(&end))
}

/// Files one behind the other, each as its name and its text. NUL stands between: neither a name
/// nor YAML nor TOML can have one.
fn read_objects(path: &Path) -> Result<String, String> {
    let owned = path.to_owned();
    let listed = disk::within(path, disk::DEADLINE, move || listed(&owned));
    let name = path.display();
    let listed = listed.map_err(|error| format!("{name}: {error}"))?;
    let is_directory = listed.is_some();
    let paths = listed.unwrap_or_else(|| vec![path.to_owned()]);
    if is_directory {
        let is_toml = |path: &&PathBuf| has_end(path, &["toml"]);
        let toml = paths.iter().filter(is_toml).count();
        if toml == paths.len() {
            return Err(format!("{name}: has no file that ends in .yaml, .yml or .json"));
        }
        if toml > 1 {
            return Err(format!("{name}: has {toml} files that end in .toml; one may be there"));
        }
    }
    let mut all = String::new();
    for path in paths {
        let text = read_text(&path)?;
        if text.contains('\0') {
            return Err(format!("{}: has a NUL character", path.display()));
        }
        all.extend([&path.display().to_string(), "\0", &text, "\0"]);
    }
    Ok(all)
}

/// The files of a directory that a configuration is made of; `None`: it is no directory.
fn listed(path: &Path) -> io::Result<Option<Vec<PathBuf>>> {
    if !path.is_dir() {
        return Ok(None);
    }
    let entries = std::fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = entries.collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| is_part(path) && !path.is_dir());
    paths.sort();
    Ok(Some(paths))
}

/// Whether a file of this name counts, in a directory.
pub(crate) fn is_part(path: &Path) -> bool {
    has_end(path, &YAML) || has_end(path, &["toml"])
}

/// The names and texts in what [`read_objects`] gives.
fn parts(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = text.split('\0');
    std::iter::from_fn(move || Some((rest.next()?, rest.next()?)))
}
