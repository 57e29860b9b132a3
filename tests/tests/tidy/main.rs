//! The style of the house as a test. It reads text, not syntax trees: each rule is one that text
//! shows, and each is seen to fail on a planted violation at the end of this file.

mod imports;
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use source::{Source, balanced, files, is_word, line_of, root, sources, words};

/// Functions that may pass [`MAX_FUNCTION`] lines, as `file::function`, each with its reason. One
/// that no longer needs to stand here is reported too.
const LONG_FUNCTIONS: &[(&str, &str)] = &[(
    "tests/src/sim/tcp/relay.rs::relay",
    "the simulated `Move`: one loop whose exits are the `Stop`s of the contract, in their order",
)];

/// Files outside `appliance/src/ring/` that may say `unsafe`, each with its reason.
const UNSAFE_ELSEWHERE: &[(&str, &str)] = &[];

/// Files of `src` that may pass [`MAX_FILE`] lines, each with its reason. One that no longer needs
/// to stand here is reported too.
const LONG_FILES: &[(&str, &str)] = &[];

const MAX_WIDTH: usize = 100;
const MAX_FILE: usize = 600;
const MAX_FUNCTION: usize = 70;

/// What may not be named where. A path that ends in `/` stands for all files below it.
struct Ban {
    under: &'static [&'static str],
    names: &'static [&'static str],
    why: &'static str,
}

/// What is simulated: values in, values out.
const PURE: &[&str] = &[
    "appliance/src/contract.rs",
    "appliance/src/proxy/",
    "appliance/src/stats/",
    "appliance/src/wire/",
];

const BANS: &[Ban] = &[
    Ban {
        under: PURE,
        names: &[
            "RawFd",
            "OwnedFd",
            "BorrowedFd",
            "AsRawFd",
            "libc::",
            "nix::",
            "io_uring::",
            "socket2::",
            "std::fs",
            "std::thread",
            "std::io",
            "std::os",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "Instant",
            "SystemTime",
            "*const",
            "*mut",
            "unsafe",
        ],
        why: "the proxy decides and does nothing: no descriptor, pointer, socket, clock or thread",
    },
    Ban {
        under: &["appliance/src/ring/"],
        names: &[
            "Listener",
            "ListenerId",
            "Route",
            "RouteId",
            "Backend",
            "BackendId",
            "WeightedBackend",
            "EndpointId",
            "RoutingTable",
            "Hosts",
            "Balance",
        ],
        why: "the ring does and decides nothing: it knows sockets, not listeners or routes",
    },
    Ban {
        under: &["appliance/src/proxy/", "appliance/src/ring/", "appliance/src/worker.rs"],
        names: &["tokio", "kube", "serde", "serde_json", "axum"],
        why: "workers have no runtime, no cluster and no formats",
    },
    Ban {
        under: &["appliance/src/proxy/", "appliance/src/ring/", "appliance/src/worker.rs"],
        names: &[
            "clock_gettime",
            "UNIX_EPOCH",
            "RandomState::default",
            "AHashMap::new",
            "AHashMap::default",
            "std::collections::HashMap",
            "thread_rng",
            "getrandom",
        ],
        why: "a way round what clippy.toml bans: time and randomness are arguments",
    },
    Ban {
        under: &["appliance/src/proxy/", "appliance/src/ring/"],
        names: &[".elapsed()"],
        why: "only worker.rs reads the clock",
    },
    Ban {
        under: &["config-sync/src/table/"],
        names: &["crate::", "super::super"],
        why: "what workers see imports nothing of its crate",
    },
];

/// Where an attribute may lift what clippy.toml bans.
const MAY_ASK_THE_MACHINE: &[&str] = &[
    "appliance/src/main.rs",
    "appliance/src/worker.rs",
    "appliance/src/ring/",
    "appliance/src/control/",
    "config-sync/src/",
    "tests/",
    "bench/",
];

/// `cargo test` alone has no release binary, and installs no programs.
#[test]
fn what_needs_a_binary_is_run_by_name_only() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("the manifest");
    let files = fs::read_dir(folder.join("tests")).expect("the tests");
    let names = files.map(|file| file.expect("an entry").file_name().into_string());
    let names = names.map(|name| name.expect("a name in UTF-8"));
    let missing = names.filter_map(|name| {
        let name = name.strip_suffix(".rs")?;
        let needs = name.starts_with("real_") || name.starts_with("images_");
        let entry = format!("name = \"{name}\"\ntest = false\n");
        (needs && !manifest.contains(&entry)).then(|| format!("{name}: no `test = false`"))
    });
    report(missing.collect());
}

#[test]
fn every_line_fits() {
    report(sources().iter().flat_map(wide_lines).collect());
}

#[test]
fn files_are_short() {
    report(long_files(&sources(), LONG_FILES));
}

#[test]
fn functions_are_short() {
    let sources = sources();
    let mut problems = Vec::new();
    let mut excused = BTreeSet::new();
    for long in sources.iter().flat_map(long_functions) {
        match LONG_FUNCTIONS.iter().find(|(name, _)| *name == long.name) {
            Some((name, _)) => {
                excused.insert(*name);
            }
            None => problems.push(format!("{}: {} lines", long.name, long.lines)),
        }
    }
    for (name, _) in LONG_FUNCTIONS.iter().filter(|(name, _)| !excused.contains(name)) {
        problems.push(format!("{name}: needs no exception"));
    }
    report(problems);
}

#[test]
fn dependencies_point_one_way() {
    report(sources().iter().flat_map(banned_names).collect());
}

#[test]
fn unsafe_stays_in_the_ring() {
    report(sources().iter().flat_map(unsafe_outside_the_ring).collect());
}

#[test]
fn each_lifted_lint_says_why() {
    report(sources().iter().flat_map(lifted_lints).collect());
}

#[test]
fn no_file_is_dead() {
    let sources = sources();
    let manifests: Vec<_> =
        files(&root(), "Cargo.toml").into_iter().map(|path| Source::read(&path)).collect();
    report(dead_files(&sources, &manifests));
}

struct LongFunction {
    name: String,
    lines: usize,
}

fn wide_lines(source: &Source) -> Vec<String> {
    let lines = source.text.lines().enumerate();
    lines
        .filter(|(_, line)| line.chars().count() > MAX_WIDTH)
        .map(|(index, _)| format!("{}:{}: over {MAX_WIDTH} columns", source.path, index + 1))
        .collect()
}

fn long_files(sources: &[Source], excused: &[(&str, &str)]) -> Vec<String> {
    let long =
        |source: &&Source| source.path.contains("/src/") && source.text.lines().count() > MAX_FILE;
    let long: Vec<_> = sources.iter().filter(long).map(|source| source.path.as_str()).collect();
    let is_excused = |path: &str| excused.iter().any(|(name, _)| *name == path);
    let unexcused = long.iter().filter(|path| !is_excused(path));
    let unneeded = excused.iter().filter(|(path, _)| !long.contains(path));
    unexcused
        .map(|path| format!("{path}: over {MAX_FILE} lines"))
        .chain(unneeded.map(|(path, _)| format!("{path}: needs no exception")))
        .collect()
}

fn long_functions(source: &Source) -> Vec<LongFunction> {
    let code = &source.code;
    let mut long = Vec::new();
    for start in words(code, "fn") {
        let rest = code[start + 2..].trim_start();
        let name: String = rest.chars().take_while(|c| is_word(*c)).collect();
        let Some(open) = body_of(code, start).filter(|_| !name.is_empty()) else { continue };
        let end = open + balanced(&code[open..]);
        let lines = line_of(code, end) - line_of(code, start) + 1;
        if lines > MAX_FUNCTION {
            long.push(LongFunction { name: format!("{}::{name}", source.path), lines });
        }
    }
    long
}

fn banned_names(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    for ban in BANS.iter().filter(|ban| ban.under.iter().any(|path| source.is_under(path))) {
        for name in ban.names {
            for place in words(&source.code, name) {
                problems.push(source.problem(place, &format!("`{name}`: {}", ban.why)));
            }
        }
    }
    problems
}

fn unsafe_outside_the_ring(source: &Source) -> Vec<String> {
    let excused = UNSAFE_ELSEWHERE.iter().any(|(path, _)| source.is_under(path));
    if excused || source.is_under("appliance/src/ring/") {
        return Vec::new();
    }
    let places = words(&source.code, "unsafe");
    places.map(|place| source.problem(place, "`unsafe` outside appliance/src/ring/")).collect()
}

/// `allow` and `expect` attributes without a reason, and those that lift a ban of clippy.toml where
/// that is not foreseen.
fn lifted_lints(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    for (hash, _) in source.code.match_indices('#') {
        let after = source.code[hash + 1..].trim_start_matches('!');
        if !after.starts_with('[') {
            continue;
        }
        let attribute = &after[..balanced(after)];
        for word in ["allow", "expect"] {
            for place in words(attribute, word) {
                let list = &attribute[place + word.len()..];
                if !list.starts_with('(') {
                    continue;
                }
                let list = &list[..balanced(list)];
                if words(list, "reason").next().is_none() {
                    problems.push(source.problem(hash, &format!("`{word}` without a reason")));
                }
                let lifts_ban = list.contains("disallowed_");
                if lifts_ban && !MAY_ASK_THE_MACHINE.iter().any(|path| source.is_under(path)) {
                    problems.push(source.problem(hash, "lifts a ban of clippy.toml"));
                }
            }
        }
    }
    problems
}

/// Files that no `mod` leads to from a crate's root. Roots are where Cargo looks for them, and the
/// paths that manifests name.
fn dead_files(sources: &[Source], manifests: &[Source]) -> Vec<String> {
    let find = |path: &str| sources.iter().find(|source| source.path == path);
    let mut queue: Vec<&Source> = Vec::new();
    for manifest in manifests {
        let folder = manifest.path.trim_end_matches("Cargo.toml");
        let named = manifest.text.lines().filter_map(|line| {
            line.strip_prefix("path = \"").and_then(|rest| rest.strip_suffix('"'))
        });
        let usual = ["src/lib.rs", "src/main.rs", "build.rs"].into_iter();
        queue.extend(usual.chain(named).filter_map(|path| find(&format!("{folder}{path}"))));
        queue.extend(sources.iter().filter(|source| {
            let rest = source.path.strip_prefix(folder).unwrap_or_default();
            let kinds = ["src/bin/", "tests/", "benches/", "examples/"];
            kinds.iter().any(|kind| {
                rest.strip_prefix(kind)
                    .is_some_and(|name| !name.contains('/') || name.ends_with("/main.rs"))
            })
        }));
    }
    let roots: BTreeSet<_> = queue.iter().map(|source| source.path.clone()).collect();
    let mut alive = BTreeSet::new();
    while let Some(source) = queue.pop() {
        if alive.insert(source.path.clone()) {
            let is_root = roots.contains(&source.path);
            queue.extend(modules(source, is_root).iter().filter_map(|path| find(path)));
        }
    }
    let dead = sources.iter().filter(|source| !alive.contains(&source.path));
    dead.map(|source| format!("{}: no `mod` leads here", source.path)).collect()
}

/// The places where the modules that a file declares may be.
fn modules(source: &Source, is_root: bool) -> Vec<String> {
    let (folder, file) = source.path.rsplit_once('/').unwrap_or(("", &source.path));
    let stem = file.trim_end_matches(".rs");
    let folder =
        if is_root || stem == "mod" { folder.to_owned() } else { format!("{folder}/{stem}") };
    let mut paths = Vec::new();
    for place in words(&source.code, "mod") {
        let rest = source.code[place + 3..].trim_start();
        let name: String = rest.chars().take_while(|c| is_word(*c)).collect();
        if rest[name.len()..].trim_start().starts_with(';') {
            paths.push(format!("{folder}/{name}.rs"));
            paths.push(format!("{folder}/{name}/mod.rs"));
        }
    }
    paths
}

/// Where the body of the function at `start` opens; `None` for one that is only declared.
fn body_of(code: &str, start: usize) -> Option<usize> {
    let mut depth = 0;
    for (index, c) in code[start..].char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '{' if depth == 0 => return Some(start + index),
            ';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

#[track_caller]
fn report(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

// Each rule fails on a planted violation, and only on that.

#[test]
fn a_wide_line_is_found() {
    let fits = "é".repeat(100);
    assert!(wide_lines(&Source::new("a.rs", &fits)).is_empty());
    assert_eq!(
        wide_lines(&Source::new("a.rs", &format!("\n{fits}!"))),
        ["a.rs:2: over 100 columns"]
    );
}

#[test]
fn a_long_file_is_found() {
    let file = |path, lines: usize| Source::new(path, &"\n".repeat(lines));
    let files = [file("a/src/b.rs", 600), file("a/src/c.rs", 601), file("a/src/d.rs", 601)];
    assert_eq!(
        long_files(&files, &[("a/src/b.rs", ""), ("a/src/d.rs", "")]),
        ["a/src/c.rs: over 600 lines", "a/src/b.rs: needs no exception"]
    );
}

#[test]
fn a_long_function_is_found() {
    let function = |lines: usize| {
        let body = "    let x = '{';\n".repeat(lines - 2);
        format!("trait T {{ fn declared(&self, x: [u8; 2]); }}\nfn f(x: [u8; 2]) {{\n{body}}}\n")
    };
    assert!(long_functions(&Source::new("a.rs", &function(70))).is_empty());
    let found = long_functions(&Source::new("a.rs", &function(71)));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].name.as_str(), found[0].lines), ("a.rs::f", 71));
}

#[test]
fn a_wrong_dependency_is_found() {
    let in_proxy =
        |text| banned_names(&Source::new("appliance/src/proxy/udp/flows.rs", text)).len();
    assert_eq!(in_proxy("use std::os::fd::OwnedFd;"), 2);
    assert_eq!(in_proxy("let now = Instant::now();"), 1);
    assert_eq!(in_proxy("fn f(x: *mut u8) { unsafe { libc::close(0) } }"), 3);
    assert_eq!(in_proxy("use tokio::net;\nuse serde::Serialize;"), 2);
    assert_eq!(in_proxy("let map = AHashMap::new();"), 1);
    assert_eq!(in_proxy("#![forbid(unsafe_code)] // Instant\nlet s = \"libc::\"; x * mutable"), 0);

    let in_ring = |text| banned_names(&Source::new("appliance/src/ring/mod.rs", text)).len();
    assert_eq!(in_ring("use config_sync::table::routing::{Listener, Route, SocketId};"), 2);
    assert_eq!(in_ring("let x = std::net::TcpListener::from(fd); Side::Endpoint"), 0);

    let worker = Source::new("appliance/src/worker.rs", "use kube::Api;");
    assert_eq!(banned_names(&worker).len(), 1);
    let table = Source::new("config-sync/src/table/routing.rs", "\nuse crate::config::Config;");
    assert!(banned_names(&table)[0].starts_with("config-sync/src/table/routing.rs:2: `crate::`"));
    assert!(banned_names(&Source::new("appliance/src/control/log.rs", "SystemTime")).is_empty());
}

#[test]
fn stray_unsafe_is_found() {
    let unsafe_in = |path| unsafe_outside_the_ring(&Source::new(path, "unsafe { f() }")).len();
    assert_eq!(unsafe_in("appliance/src/worker.rs"), 1);
    assert_eq!(unsafe_in("tests/src/sim/kernel/ops.rs"), 1);
    assert_eq!(unsafe_in("appliance/src/ring/sys/calls.rs"), 0);
}

#[test]
fn a_silently_lifted_lint_is_found() {
    let lifted = |path, text| lifted_lints(&Source::new(path, text)).len();
    assert_eq!(lifted("a.rs", "#[allow(dead_code)] fn f() {}"), 1);
    assert_eq!(lifted("a.rs", "#![cfg_attr(test, expect(unused))]"), 1);
    assert_eq!(lifted("a.rs", "#[expect(dead_code, reason = \"kept\")] x.expect(\"y\");"), 0);
    let clock = "#[expect(clippy::disallowed_methods, reason = \"the clock\")]";
    assert_eq!(lifted("appliance/src/proxy/udp/flows.rs", clock), 1);
    assert_eq!(lifted("appliance/src/worker.rs", clock), 0);
}

#[test]
fn a_dead_file_is_found() {
    let sources = [
        Source::new("a/src/lib.rs", "pub mod one; // mod four;\nmod inline { }"),
        Source::new("a/src/one.rs", "mod two;"),
        Source::new("a/src/one/two.rs", ""),
        Source::new("a/src/two.rs", ""),
        Source::new("a/src/four.rs", ""),
        Source::new("a/tests/world.rs", "mod help;"),
        Source::new("a/tests/help/mod.rs", ""),
        Source::new("a/targets/t.rs", ""),
    ];
    let manifest = [Source::new("a/Cargo.toml", "[[bin]]\npath = \"targets/t.rs\"\n")];
    assert_eq!(
        dead_files(&sources, &manifest),
        ["a/src/two.rs: no `mod` leads here", "a/src/four.rs: no `mod` leads here",]
    );
}
