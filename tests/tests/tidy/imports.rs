//! Who imports whom: no circle of files, and folders that import each other in one direction.
//!
//! An import is a path that begins with `crate`, `self` or `super`, in a `use` or elsewhere. That a
//! module declares its children and passes their names on is none. Tests may import anything.

use std::collections::{BTreeMap, BTreeSet};

use crate::report;
use crate::source::{Source, balanced, is_word, sources, words};

/// Folders within which files may still stand in a circle, each with its reason. One that no longer
/// needs to stand here is reported too.
const CIRCLES: &[(&str, &str)] = &[];

/// What a room may import of its crate. A room is a folder or a file right below `src`. Each folder
/// must have a row. A file without a row stands on top of the rooms: it may import all of them, and
/// none of them may import it.
struct Row {
    src: &'static str,
    room: &'static str,
    may: &'static [&'static str],
}

const fn row(src: &'static str, room: &'static str, may: &'static [&'static str]) -> Row {
    Row { src, room, may }
}

const APPLIANCE: &str = "appliance/src/";
const CONFIG_SYNC: &str = "config-sync/src/";
const BENCH: &str = "bench/src/";
const TESTS: &str = "tests/src/";

const ROWS: &[Row] = &[
    row(APPLIANCE, "contract", &[]),
    row(APPLIANCE, "wire", &[]),
    row(APPLIANCE, "stats", &["contract"]),
    row(APPLIANCE, "proxy", &["contract", "stats", "wire"]),
    row(APPLIANCE, "ring", &["contract", "stats"]),
    row(APPLIANCE, "worker", &["contract", "proxy", "ring", "stats"]),
    row(APPLIANCE, "control", &["contract", "proxy", "ring", "stats", "wire", "worker"]),
    row(CONFIG_SYNC, "backoff", &[]),
    row(CONFIG_SYNC, "disk", &[]),
    row(CONFIG_SYNC, "machine", &[]),
    row(CONFIG_SYNC, "table", &[]),
    row(CONFIG_SYNC, "model", &["machine", "table"]),
    row(CONFIG_SYNC, "toml", &["machine", "model", "table"]),
    row(CONFIG_SYNC, "check", &["machine", "model", "table"]),
    row(CONFIG_SYNC, "compile", &["check", "disk", "model", "table"]),
    row(CONFIG_SYNC, "publish", &["table"]),
    row(CONFIG_SYNC, "health", &["backoff", "model", "table"]),
    row(CONFIG_SYNC, "resolve", &["backoff", "model", "table"]),
    row(
        CONFIG_SYNC,
        "gateway",
        &["backoff", "check", "compile", "machine", "model", "table", "toml"],
    ),
    row(CONFIG_SYNC, "source", &["check", "disk", "gateway", "machine", "model", "toml"]),
    row(TESTS, "hello", &[]),
    row(TESTS, "pki", &[]),
    row(TESTS, "sim", &["hello", "pki"]),
    row(TESTS, "real", &["hello", "pki"]),
    row(BENCH, "cpu", &[]),
    row(BENCH, "net", &[]),
    row(BENCH, "outcome", &[]),
    row(BENCH, "stats", &[]),
    row(BENCH, "contention", &["stats"]),
    row(BENCH, "serve", &[]),
    row(BENCH, "load", &["outcome", "serve"]),
    row(BENCH, "peers", &["cpu", "serve"]),
    row(BENCH, "results", &["cpu", "outcome"]),
    row(BENCH, "report", &["peers", "results", "stats"]),
    row(
        BENCH,
        "compare",
        &["cpu", "load", "net", "outcome", "peers", "report", "results", "stats"],
    ),
    row(
        CONFIG_SYNC,
        "sync",
        &[
            "backoff", "check", "compile", "disk", "gateway", "health", "machine", "model",
            "publish", "resolve", "source", "table",
        ],
    ),
];

/// Imports that [`ROWS`] forbid and the tree still has: `src`, the importing room, the imported
/// room, the reason. One that no longer needs to stand here is reported too.
const AGAINST: &[(&str, &str, &str, &str)] =
    &[(CONFIG_SYNC, "check", "toml", "faults are written with the reader's words")];

#[test]
fn no_files_import_each_other_in_a_circle() {
    report(circles(&imports(&sources()), CIRCLES));
}

#[test]
fn folders_import_in_one_direction() {
    report(wrong_directions(&imports(&sources()), ROWS, AGAINST));
}

/// The files that each file imports. Both are paths from the repository's root.
type Imports = BTreeMap<String, BTreeSet<String>>;

fn imports(sources: &[Source]) -> Imports {
    let is_subject =
        |source: &&Source| source.path.contains("/src/") && !source.path.ends_with("/tests.rs");
    let modules: BTreeMap<_, _> = sources
        .iter()
        .filter(is_subject)
        .map(|source| (Module::of(&source.path), source.path.as_str()))
        .collect();
    let subjects = sources.iter().filter(is_subject);
    subjects.map(|source| (source.path.clone(), imported_by(source, &modules))).collect()
}

fn imported_by(source: &Source, modules: &BTreeMap<Module, &str>) -> BTreeSet<String> {
    let module = Module::of(&source.path);
    let found = paths(without_tests(&source.code));
    let files = found.iter().filter_map(|path| module.resolve(path, modules));
    files.filter(|path| *path != source.path).map(str::to_owned).collect()
}

/// A crate's folder and the names that lead to a module of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Module {
    src: String,
    names: Vec<String>,
}

impl Module {
    fn of(path: &str) -> Self {
        let (src, rest) = path.split_once("/src/").unwrap();
        let names = rest.trim_end_matches(".rs").split('/').map(str::to_owned);
        let mut names: Vec<_> = names.collect();
        if names.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
            names.pop();
        }
        Self { src: src.to_owned(), names }
    }

    /// The file of the longest module that `path`, seen from here, leads through.
    fn resolve<'a>(&self, path: &[String], modules: &BTreeMap<Self, &'a str>) -> Option<&'a str> {
        let mut path = path.iter().peekable();
        let mut at = self.clone();
        match path.next()?.as_str() {
            "crate" => at.names.clear(),
            "self" => {}
            "super" => {
                at.names.pop();
                while path.next_if(|name| *name == "super").is_some() {
                    at.names.pop();
                }
            }
            _ => return None,
        }
        for name in path {
            at.names.push(name.clone());
            if !modules.contains_key(&at) {
                at.names.pop();
                break;
            }
        }
        modules.get(&at).copied()
    }
}

/// What stands before the tests of a file.
fn without_tests(code: &str) -> &str {
    const ATTRIBUTE: &str = "#[cfg(test)]";
    let mut places = code.match_indices(ATTRIBUTE).map(|(place, _)| place);
    let tests =
        |place: &usize| code[place + ATTRIBUTE.len()..].trim_start().starts_with("mod tests {");
    &code[..places.find(tests).unwrap_or(code.len())]
}

/// All paths that begin with `crate`, `self` or `super`, as their names.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for place in words(code, "use") {
        let rest = &code[place + 3..];
        expand(&[], &rest[..rest.find(';').unwrap_or(rest.len())], &mut found);
    }
    for start in ["crate", "super", "self"] {
        for place in words(code, start).filter(|place| !code[..*place].ends_with("::")) {
            let path = code[place..].split(|c| !is_word(c) && c != ':').next().unwrap();
            // What ends in `::` is an import with braces, and already found.
            if path.contains("::") && !path.ends_with("::") {
                expand(&[], path, &mut found);
            }
        }
    }
    found
}

/// Writes out the braces of an import.
fn expand(before: &[String], tree: &str, found: &mut Vec<Vec<String>>) {
    let mut rest = tree;
    while !rest.trim().is_empty() {
        let end = rest.find([',', '{']).unwrap_or(rest.len());
        let names = rest[..end].split(" as ").next().unwrap().split("::").map(str::trim);
        let mut path = before.to_vec();
        path.extend(names.filter(|name| !name.is_empty()).map(str::to_owned));
        let group = &rest[end..];
        let mut next = end;
        if group.starts_with('{') {
            let len = balanced(group);
            expand(&path, &group[1..len - 1], found);
            next += len;
        } else {
            found.push(path);
        }
        rest = rest[next..].trim_start().trim_start_matches(',');
    }
}

fn circles(imports: &Imports, excused: &[(&str, &str)]) -> Vec<String> {
    let reach: BTreeMap<_, _> =
        imports.keys().map(|path| (path.as_str(), reachable(path, imports))).collect();
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for (path, reached) in &reach {
        if !reached.contains(path) || seen.contains(path) {
            continue;
        }
        let circle: Vec<&str> =
            reached.iter().copied().filter(|other| reach[other].contains(path)).collect();
        seen.extend(circle.iter().copied());
        let within = |folder: &str| circle.iter().all(|path| path.starts_with(folder));
        match excused.iter().find(|(folder, _)| within(folder)) {
            Some((folder, _)) => {
                used.insert(*folder);
            }
            None => problems.push(format!("a circle: {}", circle.join(", "))),
        }
    }
    let unneeded = excused.iter().filter(|(folder, _)| !used.contains(folder));
    problems.extend(unneeded.map(|(folder, _)| format!("{folder}: needs no exception")));
    problems
}

/// What imports lead to from a file; that file too if it stands in a circle.
fn reachable<'a>(path: &str, imports: &'a Imports) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut queue: Vec<&str> = imports[path].iter().map(String::as_str).collect();
    while let Some(path) = queue.pop() {
        if reached.insert(path) {
            queue.extend(imports[path].iter().map(String::as_str));
        }
    }
    reached
}

fn wrong_directions(
    imports: &Imports,
    rows: &[Row],
    against: &[(&str, &str, &str, &str)],
) -> Vec<String> {
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    for (path, imported) in imports {
        let Some(src) = rows.iter().map(|row| row.src).find(|src| path.starts_with(src)) else {
            continue;
        };
        let from = room(path, src);
        let row = rows.iter().find(|row| row.src == src && row.room == from);
        if row.is_none() && path[src.len()..].contains('/') && !path.contains("/bin/") {
            problems.push(format!("{path}: `{from}` has no row in the table of directions"));
        }
        for other in imported {
            let to = room(other, src);
            let may = row.is_none_or(|row| to == from || row.may.contains(&to));
            let excuse = (src, from, to);
            if may {
            } else if against.iter().any(|(src, from, to, _)| (*src, *from, *to) == excuse) {
                used.insert(excuse);
            } else {
                problems.push(format!("{path}: `{from}` may not import `{to}` ({other})"));
            }
        }
    }
    let unneeded = against.iter().filter(|(src, from, to, _)| !used.contains(&(*src, *from, *to)));
    problems.extend(
        unneeded.map(|(src, from, to, _)| format!("{src}: {from} -> {to} needs no exception")),
    );
    problems
}

/// The first name of a file's path below `src`.
fn room<'a>(path: &'a str, src: &str) -> &'a str {
    path[src.len()..].split(['/', '.']).next().unwrap()
}

fn planted(files: &[(&str, &str)]) -> Imports {
    let sources: Vec<_> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
    imports(&sources)
}

#[test]
fn a_circle_is_found() {
    let tree = planted(&[
        ("a/src/lib.rs", "mod one; mod two; pub use self::one::One;"),
        ("a/src/one.rs", "use crate::{x, two::{self, deep::{A, B as C}}};"),
        ("a/src/two/mod.rs", "mod deep;"),
        ("a/src/two/deep.rs", "fn f() -> super::super::one::One {}"),
        ("a/src/two/tests.rs", "use super::deep;"),
        ("a/src/three.rs", "// crate::four\n#[cfg(test)]\nmod tests { use crate::four; }"),
        ("a/src/four.rs", "use crate::three::T;"),
    ]);
    let found = circles(&tree, &[("b/src/", "")]);
    assert!(found[0].ends_with("a/src/one.rs, a/src/two/deep.rs"), "{found:?}");
    assert_eq!(found[1..], ["b/src/: needs no exception"]);
    assert!(circles(&tree, &[("a/src/", "")]).is_empty());
}

#[test]
fn a_wrong_direction_is_found() {
    let rows = [row("a/src/", "low", &[]), row("a/src/", "high", &["low"])];
    let tree = planted(&[
        ("a/src/lib.rs", "use crate::high::x; use crate::low;"),
        ("a/src/low/mod.rs", "use crate::high::X;"),
        ("a/src/high.rs", "use crate::low::X;"),
        ("a/src/other/x.rs", ""),
    ]);
    let unknown = "a/src/other/x.rs: `other` has no row in the table of directions";
    let wrong = "a/src/low/mod.rs: `low` may not import `high` (a/src/high.rs)";
    assert_eq!(wrong_directions(&tree, &rows, &[]), [wrong, unknown]);
    assert_eq!(wrong_directions(&tree, &rows, &[("a/src/", "low", "high", "")]), [unknown]);
    let unneeded = wrong_directions(&tree, &rows, &[("a/src/", "high", "low", "")]);
    assert_eq!(unneeded.last().unwrap(), "a/src/: high -> low needs no exception");
}
