//! Reads the whole configuration from its files.

mod include;
pub mod watch;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::check::warnings;
use crate::disk::{MAX_BYTES, read_text, text};
use crate::gateway::files::{self, Options, ReadFiles};
use crate::gateway::print;
use crate::machine::Machine;
use crate::model::config::Config;
use crate::model::place::Warning;
use crate::model::tls;
use crate::{check, disk, gateway, machine};

/// The name of a pipe in problems.
const PIPE: &str = "the pipe";

/// The place that a configuration's text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A TOML file, and the files that it includes.
    File(PathBuf),
    /// Kubernetes objects: a YAML file, or a directory of YAML files. The directory may have one
    /// TOML file, for keys that no object has. A directory of TOML files alone is one configuration
    /// in TOML.
    Objects { path: PathBuf, options: Options },
    /// TOML from a pipe, such as `--config <(...)`. The pipe was read once and can't be read again.
    Pipe(String),
    /// A text of this program, in memory. The text never changes. Problems use `name`.
    Text { name: &'static str, text: String },
}

impl Source {
    /// The TOML file, YAML file or directory at `path`. `options` are for YAML files and
    /// directories.
    pub fn at(path: PathBuf, options: Options) -> Self {
        let objects = path.is_dir() || has_end(&path, &YAML);
        if objects { Self::Objects { path, options } } else { Self::File(path) }
    }

    /// Reads the pipe at `path`, and waits for its writer.
    ///
    /// # Errors
    /// The errors of [`read_text`], except that a pipe is allowed.
    pub fn pipe(path: &Path) -> Result<Self, String> {
        let mut bytes = Vec::new();
        let file = File::open(path);
        let read = file.and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
        read.map_err(|error| format!("{}: {error}", path.display()))?;
        text(PIPE, bytes).map(Self::Pipe)
    }

    /// The name of the source in problems.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) | Self::Objects { path, .. } => path.display().to_string(),
            Self::Pipe(_) => PIPE.to_owned(),
            Self::Text { name, .. } => (*name).to_owned(),
        }
    }

    /// # Errors
    /// The errors of [`read_text`]; a directory has no file of a configuration, or several TOML
    /// files beside YAML; a file can't be included.
    pub fn read(&self) -> Result<String, String> {
        match self {
            Self::File(path) => include::file(path),
            Self::Objects { path, .. } => read_objects(path),
            Self::Pipe(text) | Self::Text { text, .. } => Ok(text.clone()),
        }
    }

    /// Parses a text of this source.
    ///
    /// # Errors
    /// Every fault of the text with its place, one fault per line.
    pub fn config(&self, text: &str) -> Result<Parsed, String> {
        if let Some(files) = self.toml(text) {
            let config = check::parse_files(&files, &Machine::this());
            let config = config.map_err(|problems| problems.to_string())?;
            let shown = files.iter().map(|(name, text)| format!("# {name}\n{}", after(text, "")));
            let shown = shown.collect::<Vec<_>>().join("\n");
            return Ok(Parsed::with_warnings(config, files[0].0, shown));
        }
        let Self::Objects { options, .. } = self else {
            let name = self.name();
            let config = check::parse(&name, text);
            let config = config.map_err(|problems| problems.to_string())?;
            let shown = text.to_owned();
            return Ok(match self {
                // The text of this program needs no warnings.
                Self::Text { .. } => {
                    Parsed { config, shown, warnings: Vec::new(), hints: Vec::new() }
                }
                _ => Parsed::with_warnings(config, &name, shown),
            });
        };
        let (settings, found) = settings_and_objects(text, options)?;
        let translation = gateway::translate::translate(&found.objects, &settings);
        let listeners = print::toml(&translation.config, &mut |_| None);
        Ok(Parsed {
            shown: after(base(text).1, &listeners),
            warnings: doubts(&found, &settings, &translation),
            hints: Vec::new(),
            config: translation.config,
        })
    }

    /// The names and texts of the TOML files in a text of several. `None`: the text is of one file,
    /// or has objects.
    fn toml<'t>(&self, text: &'t str) -> Option<Vec<(&'t str, &'t str)>> {
        let is_several = match self {
            Self::File(_) => text.contains('\0'),
            Self::Objects { .. } => parts(text).all(|part| is_base(&part) || is_folder(&part)),
            Self::Pipe(_) | Self::Text { .. } => false,
        };
        let files: Vec<_> = parts(text).filter(|part| !is_folder(part)).collect();
        (is_several && !files.is_empty()).then_some(files)
    }

    /// The files and directories to watch, if `text` is what was read.
    pub fn files(&self, text: &str) -> BTreeSet<PathBuf> {
        let all = self.toml(text).is_some().then(|| parts(text).map(|(name, _)| name.into()));
        all.into_iter().flatten().chain(self.path().map(Path::to_owned)).collect()
    }

    /// The file or directory, if the source has one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) | Self::Objects { path, .. } => Some(path),
            Self::Pipe(_) | Self::Text { .. } => None,
        }
    }
}

/// Warnings: parts of these objects that will not work, or that are hardly meant.
fn doubts(
    found: &ReadFiles,
    settings: &gateway::translate::settings::Settings,
    translation: &gateway::translate::Translation,
) -> Vec<Warning> {
    let outcome = gateway::status::Outcome::Applied;
    let mut all: Vec<Warning> = settings.base.doubts.iter().cloned().map(Warning::from).collect();
    all.extend(found.warnings.iter().cloned());
    // Problems that paths of files lead to are among the doubts already, by the field with the
    // path.
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

/// The translation of objects.
#[derive(Clone, Debug)]
pub struct Translated {
    /// Parts that will not work, or that are hardly meant.
    pub warnings: Vec<Warning>,
    /// The configuration as TOML. The keys of a TOML file among the objects come first.
    pub toml: String,
    /// The statuses as YAML, once the whole configuration is served.
    pub statuses: String,
}

/// Translates the objects of files and directories. Certificates and keys go into the folder
/// `secrets`, which is made if it is missing. `None`: the TOML leaves out certificates and keys,
/// and names them.
///
/// # Errors
/// The errors of [`Source::read`] and [`Source::config`]; a file of `secrets` can't be written;
/// several of the files are TOML.
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

/// The name and text of the TOML file among the parts. Both are empty if there is no TOML file.
fn base(text: &str) -> (&str, &str) {
    parts(text).find(is_base).unwrap_or(("", ""))
}

/// The keys that no object has, and then the translation of the objects.
fn after(base: &str, listeners: &str) -> String {
    let end = if base.is_empty() || base.ends_with('\n') { "" } else { "\n" };
    [base, end, listeners].concat()
}

fn is_base((name, _): &(&str, &str)) -> bool {
    !name.ends_with('/') && has_end(Path::new(name), &["toml"])
}

/// Whether this is a directory that a pattern of `include` looks into, and no file.
fn is_folder((name, _): &(&str, &str)) -> bool {
    name.ends_with('/')
}

fn settings_and_objects(
    text: &str,
    options: &Options,
) -> Result<(gateway::translate::settings::Settings, ReadFiles), String> {
    let settings = options.settings(base(text))?;
    let found = files::read(parts(text).filter(|part| !is_base(part)))?;
    Ok((settings, found))
}

/// A configuration that was parsed from a text.
#[derive(Clone, Debug)]
pub struct Parsed {
    pub config: Config,
    /// The configuration as TOML, without keys.
    pub shown: String,
    /// Parts that will not work, or that are hardly meant.
    pub warnings: Vec<Warning>,
    /// Parts that are in order, and do what an operator may not expect.
    pub hints: Vec<Warning>,
}

impl Parsed {
    /// The configuration of TOML files, the first of which is `file`.
    fn with_warnings(config: Config, file: &str, shown: String) -> Self {
        let warnings = warnings::of(&config, file, &machine::addresses());
        let hints = warnings::hints(&config).into_iter().map(Warning::from).collect();
        Self { warnings: warnings.into_iter().map(Warning::from).collect(), hints, shown, config }
    }
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

/// The names and texts of files, one after another, with NUL between. Neither a name nor YAML nor
/// TOML can have a NUL.
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
            // An editor's hidden file is no part of the configuration.
            let hidden = |path: &Path| {
                path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
            };
            let paths: Vec<_> = paths.into_iter().filter(|path| !hidden(path)).collect();
            return match paths.is_empty() {
                true => {
                    Err(format!("{name}: has no file that ends in .toml, .yaml, .yml or .json"))
                }
                false => include::directory(&paths),
            };
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

/// The configuration files of a directory. `None`: the path is no directory.
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

/// Whether a file with this name belongs to the configuration of its directory.
pub(crate) fn is_part(path: &Path) -> bool {
    has_end(path, &YAML) || has_end(path, &["toml"])
}

/// The names and texts in the result of [`read_objects`].
fn parts(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = text.split('\0');
    std::iter::from_fn(move || Some((rest.next()?, rest.next()?)))
}
