//! Reads the keys of a TOML file, each key by itself. `REFERENCE.md` beside this crate describes
//! every key.

mod admission;
pub(crate) mod backend;
pub(crate) mod bind;
mod defaults;
pub(crate) mod dns_guard;
pub(crate) mod eject;
pub(crate) mod endpoint;
pub(crate) mod fallback;
pub(crate) mod files;
pub(crate) mod gone;
pub(crate) mod health_check;
pub(crate) mod limit;
mod lines;
pub(crate) mod listener;
mod process;
pub(crate) mod proxy;
pub mod reader;
mod resolver;
pub(crate) mod route;
mod short;
pub(crate) mod socket_options;
pub(crate) mod source_limit;
pub(crate) mod tls;
pub(crate) mod values;
mod variables;

use std::sync::Arc;

use toml::de::DeTable;

use crate::machine::Machine;
use crate::model::config::{Broken, Config, DRAIN_TIMEOUT, LAME_DUCK};
use crate::model::listener::Listener;
use crate::model::place::{At, Problem, Problems};
use crate::toml::backend::{BACKEND, backend};
use crate::toml::defaults::{DEFAULTS, defaults, drop_checks_of_udp, protocols};
use crate::toml::dns_guard::DNS_GUARD;
use crate::toml::eject::EJECT;
use crate::toml::endpoint::ENDPOINT;
use crate::toml::files::{merge, shifted};
use crate::toml::health_check::{HEALTH_CHECK, STEP};
use crate::toml::limit::{ENDPOINT_LIMIT, LIMIT, SHARED_LIMIT, shared_limit};
use crate::toml::listener::{LISTENER, listener, protocol};
use crate::toml::process::{
    ACCESS_LOG, ADMIN, LIMITS, WORKERS, access_log, admin, asked_limits, cores, user,
};
use crate::toml::proxy::ACCEPT_PROXY;
use crate::toml::reader::{Defaults, Reader, Section, Table, any, boolean, flawless, or, string};
use crate::toml::resolver::{RESOLVER, resolver};
use crate::toml::route::{ROUTE, ROUTE_BACKEND, route};
use crate::toml::short::{Own, own};
use crate::toml::source_limit::LIMIT_SOURCE;
use crate::toml::tls::{BACKEND_TLS, TLS, TLS_CERTIFICATE, TLS_DEFAULT};
use crate::toml::values::{duration, name};

/// The values of a file. Each value has the right form.
pub(crate) struct Parts {
    pub(crate) config: Config,
    /// Parts that have faults of their own. They are not in `config`.
    pub(crate) broken: Broken,
    pub(crate) problems: Vec<Problem>,
}

/// Reads the values of files, each a name and a text. `check` finds out whether the values fit
/// together. `may_include`: the files that these files include are among them.
///
/// # Errors
/// A text is not TOML.
pub(crate) fn read(
    files: &[(&str, &str)],
    may_include: bool,
    machine: &Machine,
) -> Result<Parts, Problems> {
    let mut reader = Reader::of(files);
    let (root, unset) = tree(&mut reader, files)?;
    let mut broken = Broken::default();
    let config = config(&mut reader, &root, machine, (&mut broken, may_include));
    // A variable without a value is the only fault of its string.
    let is_told = |problem: &Problem| {
        let place = |of: &Problem| (Arc::clone(&of.file), of.line, of.column);
        unset.iter().any(|unset| place(unset) == place(problem))
    };
    let mut problems = reader.problems;
    problems.retain(|problem| !is_told(problem));
    problems.extend(unset.iter().cloned());
    Ok(Parts { config, broken, problems })
}

/// One tree of all files, and problems with variables.
fn tree<'t>(
    reader: &mut Reader<'t>,
    files: &[(&str, &'t str)],
) -> Result<(DeTable<'t>, Vec<Problem>), Problems> {
    let mut root = DeTable::new();
    let (mut faults, mut unset) = (Vec::new(), Vec::new());
    for (nth, (_, text)) in files.iter().enumerate() {
        let start = reader.start_of(nth);
        let (one, errors) = DeTable::parse_recoverable(text);
        // The parser's values after an error would only lead to follow-up errors, so they are
        // dropped.
        let yaml = yaml(text);
        let first = if yaml.is_some() { 1 } else { errors.len() };
        for error in errors.iter().take(first) {
            let at = error.span().map_or(0, |span| span.start);
            let hint = yaml.map_or_else(|| unquoted(text, at), |hint| format!("; {hint}"));
            let place = reader.place(start + at, String::new());
            faults.push(place.problem(format!("not TOML: {}{hint}", error.message())));
        }
        if errors.is_empty() {
            let mut one = shifted(one.into_inner(), start);
            let get = |name: &str| std::env::var(name).ok();
            unset.extend(variables::replace(reader, &mut one, &get));
            merge(reader, &mut root, one, "");
        }
    }
    Problems::new(faults).or((root, unset))
}

/// Every table of the file and its keys: the whole schema.
pub const SCHEMA: &[&Section] = &[
    &ROOT,
    &WORKERS,
    &ADMIN,
    &DEFAULTS,
    &ACCESS_LOG,
    &LIMITS,
    &RESOLVER,
    &LISTENER,
    &ACCEPT_PROXY,
    &LIMIT_SOURCE,
    &LIMIT,
    &ENDPOINT_LIMIT,
    &DNS_GUARD,
    &TLS,
    &TLS_CERTIFICATE,
    &TLS_DEFAULT,
    &ROUTE,
    &ROUTE_BACKEND,
    &BACKEND,
    &ENDPOINT,
    &BACKEND_TLS,
    &HEALTH_CHECK,
    &EJECT,
    &STEP,
    &SHARED_LIMIT,
];

static ROOT: Section = Section {
    name: "",
    keys: &[
        any("include"),
        any("workers"),
        any("admin"),
        any("user"),
        any("sandbox"),
        any("drain_timeout"),
        any("drain_grace"),
        any("lame_duck"),
        any("access_log"),
        any("limits"),
        any("resolver"),
        any("defaults"),
        any("listeners"),
        any("routes"),
        any("backends"),
        any("shared_limits"),
    ],
};

/// A hint for a text that is YAML and not TOML.
fn yaml(text: &str) -> Option<&'static str> {
    let said = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let first = text.lines().find(said)?;
    let is_key = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let (key, rest) = first.split_at(first.find(|c| !is_key(c)).unwrap_or(first.len()));
    let is_yaml = first.trim_end() == "---" || (!key.is_empty() && rest.starts_with(':'));
    let is_object = text.lines().any(|line| line.starts_with("apiVersion:"));
    match (is_yaml, is_object) {
        (true, true) => Some("these are Kubernetes objects: their file's name must end in .yaml"),
        (true, false) => Some("this looks like YAML, and a TOML file has lines such as key = 1"),
        (false, _) => None,
    }
}

/// A hint for a line with a word that has no quotes: the line to write. Empty for any other line.
fn unquoted(text: &str, at: usize) -> String {
    let from = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[from..].lines().next().unwrap_or_default();
    let (key, value) = line.split_once('=').unwrap_or_default();
    let value = value.split('#').next().unwrap_or_default().trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    let is_word =
        value.starts_with(|c: char| c.is_ascii_alphanumeric()) && value.chars().all(plain);
    if !is_word || at < from + key.len() {
        return String::new();
    }
    format!("; text stands in quotes: {} = \"{value}\"", key.trim())
}

fn config<'t>(
    reader: &mut Reader<'t>,
    root: &'t DeTable<'t>,
    machine: &Machine,
    (broken, may_include): (&mut Broken, bool),
) -> Config {
    let top = reader.place(0, String::new());
    let root = &reader.open(root, &ROOT, top);
    for named in reader.list(root, "include", string).unwrap_or_default() {
        if !may_include {
            let message = "only a TOML file, or a directory of TOML files, can include others: \
                           not a pipe, and not a file beside Gateway API objects";
            reader.refuse(&named.place, message);
        }
    }
    let mut doubts = Vec::new();
    let admin = admin(reader, root, &mut doubts);
    let defaults = &defaults(reader, root, machine);
    let (listeners, own) = listeners(reader, root, machine, (defaults, broken));
    let (mut routes, mut backends) = (Vec::new(), Vec::new());
    for Own { route, backend } in own {
        routes.push(route);
        backends.extend(backend);
    }
    routes.extend(whole(reader, root, &ROUTE, &mut broken.routes, |r, t| route(r, &t)));
    routes.extend(listeners.iter().flat_map(fallback::routes));
    let protocols = protocols(&listeners, &routes);
    backends.extend(whole(reader, root, &BACKEND, &mut broken.backends, |r, t| {
        let name = r.peek(&t, "name", name);
        let protocol = name.and_then(|name| protocols.get(&name.value)).copied();
        let table = t.with_defaults(Defaults { protocol, ..defaults.clone() });
        flawless(r, |r| backend(r, &table, machine))
    }));
    drop_checks_of_udp(&mut backends, &protocols);
    let limits = asked_limits(reader, root);
    let shared = &mut broken.shared_limits;
    let shared_limits = whole(reader, root, &SHARED_LIMIT, shared, |r, t| shared_limit(r, &t));
    Config {
        cores: cores(reader, root),
        admin: admin.address,
        admin_socket: admin.socket,
        admin_token_file: admin.token_file,
        admin_tls: admin.tls,
        admin_overrides_file: admin.overrides_file,
        user: reader.get(root, "user", user),
        sandbox: or(reader.get(root, "sandbox", boolean), true),
        endpoint_labels: admin.endpoint_labels,
        drain_timeout: or(reader.get(root, "drain_timeout", duration), DRAIN_TIMEOUT),
        drain_grace: or(reader.get(root, "drain_grace", duration), 0),
        lame_duck: or(reader.get(root, "lame_duck", duration), LAME_DUCK),
        access_log: access_log(reader, root),
        limits: limits.limits,
        total_sessions: limits.total_sessions,
        memory_percent: limits.memory_percent,
        memory_readiness: limits.memory_readiness,
        readiness_percent: limits.readiness_percent,
        resolver: resolver(reader, root),
        listeners,
        routes,
        backends,
        shared_limits,
        doubts,
    }
}

/// The listeners, and the routes and backends of their own.
fn listeners<'t>(
    reader: &mut Reader<'t>,
    root: &Table<'t>,
    machine: &Machine,
    (defaults, broken): (&Defaults<'t>, &mut Broken),
) -> (Vec<Listener>, Vec<Own>) {
    let (mut listeners, mut all) = (Vec::new(), Vec::new());
    for At { value, place } in reader.tables(root, LISTENER.name) {
        let table = reader.open_with_guest(value, &LISTENER, &BACKEND, place);
        let table = table.with_defaults(defaults.clone());
        let protocol = reader.peek(&table, "protocol", protocol).map(|protocol| protocol.value);
        let table = &table.with_defaults(Defaults { protocol, ..defaults.clone() });
        let read = flawless(reader, |reader| {
            let listener = listener(reader, table, machine);
            let name = reader.peek(table, "name", name);
            let own = own(reader, table, name.as_ref(), machine);
            Some((listener?, own))
        });
        if let Some((listener, own)) = read {
            listeners.push(listener);
            all.extend(own);
        } else if let Some(name) = reader.peek(table, "name", name) {
            if table.has("endpoints") {
                broken.backends.push(name.clone());
            }
            if table.has("endpoints") || table.has("backends") {
                broken.routes.push(name.clone());
            }
            broken.listeners.push(name);
        }
    }
    (listeners, all)
}

/// The tables of a list that were read well enough to check how they fit together. Only the names
/// of the other tables are kept, so that a reference to such a name is not called wrong as well.
fn whole<'t, T>(
    reader: &mut Reader<'t>,
    root: &Table<'t>,
    section: &'static Section,
    broken: &mut Vec<At<String>>,
    read: impl Fn(&mut Reader<'t>, Table<'t>) -> Option<T>,
) -> Vec<T> {
    let mut items = Vec::new();
    for At { value, place } in reader.tables(root, section.name) {
        let table = reader.open(value, section, place);
        match read(reader, table.clone()) {
            Some(item) => items.push(item),
            None => broken.extend(reader.peek(&table, "name", name)),
        }
    }
    items
}
