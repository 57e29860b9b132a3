//! Plants one bug at a time in a copy of the proxy, and expects the simulation to find each.
//!
//! `cargo run -p ringway-tests --bin mutants [NAME...]`; exits with 1 if a bug survives, with 2 if
//! one can't be planted (the code has changed: change the list with it). `MUTANTS=n` plants only n
//! of the list, which `MUTANTS_SEED=s` chooses; without the seed, the time does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::UNIX_EPOCH;

use ringway_tests::sim::rng::Rng;

/// A bug: what stands in a file of `appliance/src/proxy` exactly once, and what stands there
/// instead.
struct Mutant {
    name: &'static str,
    file: &'static str,
    find: &'static str,
    replace: &'static str,
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "half-close-order",
        file: "tcp/direction.rs",
        find: "                self.blocked = true;
                self.news = true;
                Next::Wait",
        replace: "                self.blocked = true;
                self.news = true;
                self.ended = self.ending;
                if self.ended { Next::Ended } else { Next::Wait }",
    },
    Mutant {
        name: "missing-re-arm",
        file: "core.rs",
        find: "            _ => self.start(id),",
        replace: "            _ => {}",
    },
    Mutant {
        name: "generation",
        file: "mod.rs",
        find: "let Some(session) = self.sessions.get_mut(token.slot, token.generation) else \
               { return };",
        replace: "let Some(session) = self.sessions.at_mut(token.slot) else { return };",
    },
    Mutant {
        name: "lost-held-bytes",
        file: "tcp/relay.rs",
        find: "self.has_failed() || self.ending.is_some() || self.up.held() > 0 || \
               self.down.held() > 0",
        replace: "self.has_failed() || self.ending.is_some()",
    },
    Mutant {
        name: "offered-while-it-receives",
        file: "udp/parting.rs",
        find: "self.upstreams.at(flow.upstream).is_some_and(|of| of.halt == Halt::Done);",
        replace: "self.upstreams.at(flow.upstream).is_some();",
    },
    Mutant {
        name: "retry-with-a-clients-bytes",
        file: "tcp/retry.rs",
        find: "let is_silent = up.has_brought_nothing() && !up.is_ending()",
        replace: "let is_silent = !up.is_ending()",
    },
    Mutant {
        name: "leak-on-cancel",
        file: "tcp/close.rs",
        find: "        core.push(self.token, Op::Close { reset });",
        replace: "        if relay.is_some() || self.endpoint.is_none() {
            core.push(self.token, Op::Close { reset });
        }",
    },
    Mutant {
        name: "place-of-a-source-kept",
        file: "held.rs",
        find: "self.put_source(place.flatten());",
        replace: "std::mem::forget(place);",
    },
    Mutant {
        name: "weight-bias",
        file: "balance.rs",
        find: "credits[best].1 -= total;",
        replace: "credits[best].1 -= total / 2;",
    },
    Mutant {
        name: "dead-endpoint-forgotten",
        file: "of_endpoint.rs",
        find: "self.rest = now + 1_000 * u64::from(self.rests_for);",
        replace: "self.rest = now;",
    },
    Mutant {
        name: "quarantine-skipped",
        file: "udp/resting.rs",
        find: "            seen >= upstream.rests_since + rest",
        replace: "            seen + rest >= upstream.rests_since",
    },
    Mutant {
        name: "closed-before-it-has-rested",
        file: "udp/resting.rs",
        find: "        self.has_rested(slot) && (unwanted ||",
        replace: "        (unwanted || self.has_rested(slot)) && (unwanted ||",
    },
    Mutant {
        name: "asks-for-ports-without-a-pause",
        file: "udp/ports.rs",
        find: "pause.from != from || pause.until <= now",
        replace: "pause.from != from || pause.until <= now + LONGEST",
    },
    Mutant {
        name: "closed-port-is-fed-on",
        file: "udp/moving.rs",
        find: "        if std::mem::take(&mut flow.refused) {",
        replace: "        if std::mem::take(&mut flow.refused) && slot == u32::MAX {",
    },
    Mutant {
        name: "closed-port-is-fed-by-the-kernel",
        file: "udp/flows.rs",
        find: "            self.demote(core, slot, Demotion::EndpointRefused);",
        replace: "            let _ = Demotion::EndpointRefused;",
    },
    Mutant {
        name: "promotes-with-a-limit-of-bytes",
        file: "udp/promotion.rs",
        find: "            && !flow.held.limits_bytes()",
        replace: "",
    },
    Mutant {
        name: "promotes-with-a-routes-limit-of-datagrams",
        file: "udp/promotion.rs",
        find: "            && !flow.held.limits_datagrams()",
        replace: "",
    },
    Mutant {
        name: "promotes-a-flow-that-ends-with-its-answers",
        file: "udp/promotion.rs",
        find: "            && flow.responses == 0",
        replace: "",
    },
    Mutant {
        name: "promotes-a-flow-behind-a-proxy",
        file: "udp/promotion.rs",
        find: "            && flow.proxied.is_none()",
        replace: "",
    },
    Mutant {
        name: "promotes-what-a-new-table-bars",
        file: "udp/promotion.rs",
        find: "        if self.bar(core, flow).is_some() {
            // A new table bars the flow.",
        replace: "        if flow.refused {",
    },
    Mutant {
        name: "new-table-demotes-nothing",
        file: "udp/promotion.rs",
        find: "                self.demote(core, slot, why);
            } else if",
        replace: "                let _ = why;
            } else if",
    },
    Mutant {
        name: "one-side-goes-on-for-ever",
        file: "udp/trial.rs",
        find: "    now - since >= ALONE <<",
        replace: "    now - since >= ALONE * 100 <<",
    },
    Mutant {
        name: "receives-again-without-a-pause",
        file: "udp/flows.rs",
        find: "        let at_once = why.is_none_or(Why::is_of_peer);",
        replace: "        let at_once = why.is_none_or(|_| true);",
    },
    Mutant {
        name: "double-close",
        file: "tcp/close.rs",
        find: "        core.push(self.token, Op::Close { reset });",
        replace: "        core.push(self.token, Op::Close { reset });
        if relay.is_some() {
            core.push(self.token, Op::Close { reset });
        }",
    },
    Mutant {
        name: "stall-under-backpressure",
        file: "tcp/direction.rs",
        find: "    pub fn destination_ready(&mut self) {
        self.blocked = false;",
        replace: "    pub fn destination_ready(&mut self) {
        self.blocked &= self.held > 0;",
    },
    Mutant {
        name: "stream-from-a-side-whose-space-is-waited-for",
        file: "tcp/relay.rs",
        find: "if !other.blocked() && !other.queued() {",
        replace: "if !other.queued() {",
    },
    Mutant {
        name: "moves-while-it-streams",
        file: "tcp/direction.rs",
        find: "        let waits = self.queued || self.streaming || self.blocked;
        if waits || self.ended",
        replace: "        let waits = self.queued || self.blocked;
        if waits || self.ended",
    },
    Mutant {
        name: "reads-what-it-offers",
        file: "tcp/moving.rs",
        find: "        relay.pause = Pause::Offered;",
        replace: "        relay.pause = Pause::No;",
    },
    Mutant {
        name: "a-flow-forgets-what-it-carried-since-it-was-announced",
        file: "udp/parting.rs",
        find: "            [flow.bytes_up, flow.bytes_down] = figures.bytes;",
        replace: "",
    },
    Mutant {
        name: "accepts-no-more-while-it-waits-for-flows",
        file: "core.rs",
        find: "            Some(Transport::Udp) if self.hearing.is_deaf(id) => return,",
        replace: "            _ if self.hearing.is_deaf(id) => return,",
    },
    Mutant {
        name: "hears-clients-before-their-flows-come",
        file: "hearing.rs",
        find: "        self.waits = true;",
        replace: "        self.waits = !self.deaf.is_empty();",
    },
    Mutant {
        name: "endpoint-keeps-the-load-of-a-flow-that-has-gone",
        file: "udp/parting.rs",
        find: "            core.leaves(flow.endpoint);
            core.leave_source(flow.source);",
        replace: "            core.leave_source(flow.source);",
    },
    Mutant {
        name: "place-of-a-flow-that-has-gone-kept",
        file: "udp/parting.rs",
        find: "            core.places.leave(flow.listener);
            core.leaves(flow.endpoint);",
        replace: "            core.leaves(flow.endpoint);",
    },
    Mutant {
        name: "a-session-that-nobody-took-stands-still",
        file: "parting.rs",
        find: "            true => session.go_on(core),",
        replace: "            true => {}",
    },
    Mutant {
        name: "closes-before-it-has-rested-beside-another-process",
        file: "udp/sweep.rs",
        find: "self.close_some(core, has_heir && reason == CloseReason::Drained);",
        replace: "self.close_some(core, has_heir && reason == CloseReason::Stopped);",
    },
    Mutant {
        name: "mark-without-a-deadline",
        file: "tcp/bulk_marks.rs",
        find: "        let due = now + PATIENCE;",
        replace: "        let due = now + 5 * PATIENCE;",
    },
    Mutant {
        name: "train-of-several-clients",
        file: "udp/flows.rs",
        find: ".take_while(|number| datagram(*number).starts_with(header))",
        replace: ".take_while(|number| datagram(*number).len() >= header.len())",
    },
    Mutant {
        name: "sockets-overtake-ops-of-tables",
        file: "table_queue.rs",
        find: "        self.steps.push_back(Step::Listen(id, transport, socket));",
        replace: "        self.steps.push_front(Step::Listen(id, transport, socket));",
    },
    Mutant {
        name: "backend-tried-again",
        file: "tcp/connect.rs",
        find: "has_endpoint && !self.failed_backends.contains(&share.id)",
        replace: "has_endpoint && self.backend != Some(share.id)",
    },
    Mutant {
        name: "flows-go-on-though-the-route-refuses",
        file: "udp/moving.rs",
        find: "route.id != flow.route || route.on_unavailable != OnUnavailable::Next",
        replace: "route.id != flow.route || route.on_unavailable == OnUnavailable::Next",
    },
    Mutant {
        name: "shifts-the-clients-own-port",
        file: "tcp/connect.rs",
        find: "endpoint.address.for_client_of(self.local.port())",
        replace: "endpoint.address.for_client_of(self.client.port())",
    },
    Mutant {
        name: "other-clients-get-the-route-of-a-protocol",
        file: "tcp/choose.rs",
        find: "by_alpn.values(name, offered.iter())",
        replace: "by_alpn.values(name, [&b\"acme-tls/1\"[..]].into_iter())",
    },
    Mutant {
        name: "unix-clients-are-named",
        file: "tcp/proxy_header.rs",
        find: "(self.client == UNIX_CLIENT).then(",
        replace: "(self.client != UNIX_CLIENT).then(",
    },
    Mutant {
        name: "sockets-of-another-interface-go-on",
        file: "udp/resting.rs",
        find: "upstream.role = Role::Own;",
        replace: "upstream.role = Role::Socket;",
    },
    Mutant {
        name: "table-swap-while-connecting",
        file: "tables.rs",
        find: "        if let Some(position) = find(&self.current) {",
        replace: "        if !self.is_leaving(socket)
            && let Some(position) = find(&self.current)
        {",
    },
];

/// What of the appliance runs in the simulator.
const PURE: [&str; 4] = ["contract.rs", "proxy", "stats", "wire"];

/// Enough for every bug of the list to show; a run ends at the first broken promise.
const SEEDS: &str = "1000";

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned();
    let copy = root.join("target/mutants");
    lay_out(&root, &copy);
    // All of them, because a sample would meet such a bug in few runs.
    for mutant in MUTANTS {
        if subject(&copy, mutant).1.matches(mutant.find).count() != 1 {
            eprintln!("{}: what is to be replaced does not stand there once", mutant.name);
            return ExitCode::from(2);
        }
    }
    eprintln!("without a bug ...");
    if let Some(message) = found(&copy) {
        eprintln!("the simulation fails without any bug:\n{message}");
        return ExitCode::from(2);
    }
    let mut survivors = 0;
    for mutant in chosen(&wanted) {
        let (path, original) = subject(&copy, mutant);
        write(&path, &original.replacen(mutant.find, mutant.replace, 1));
        let message = found(&copy);
        write(&path, &original);
        survivors += u32::from(message.is_none());
        eprintln!("{:<28} {}", mutant.name, message.as_deref().unwrap_or("SURVIVED"));
    }
    ExitCode::from(u8::from(survivors > 0))
}

/// The file that a bug is planted in, and its text.
fn subject(copy: &Path, mutant: &Mutant) -> (PathBuf, String) {
    let path = copy.join("appliance/src/proxy").join(mutant.file);
    let original = fs::read_to_string(&path).expect("a file of the proxy");
    (path, original)
}

/// The bugs of these names; of no name, all bugs or a sample of them.
fn chosen(wanted: &[String]) -> Vec<&'static Mutant> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let mut chosen: Vec<_> = MUTANTS.iter().collect();
    if !wanted.is_empty() {
        chosen.retain(|mutant| wanted.iter().any(|name| name == mutant.name));
    } else if let Some(count) = number("MUTANTS") {
        let time = || UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let seed = number("MUTANTS_SEED").unwrap_or_else(time);
        eprintln!("{count} of {} bugs, MUTANTS_SEED={seed}", MUTANTS.len());
        let mut rng = Rng::new(seed);
        while chosen.len() as u64 > count {
            let at = usize::try_from(rng.below(chosen.len() as u64)).expect("few");
            chosen.swap_remove(at);
        }
    }
    chosen
}

/// Runs the simulation in the copy: the message of the first promise that was broken.
fn found(copy: &Path) -> Option<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["test", "--offline", "--quiet", "-p", "ringway-tests", "--test", "simulation"])
        .current_dir(copy)
        .env("CARGO_TARGET_DIR", copy.join("target"))
        // It is built again for each bug.
        .env("CARGO_INCREMENTAL", "1")
        .env("SEEDS", SEEDS)
        .env("RUST_BACKTRACE", "0")
        .env_remove("SEED")
        .output()
        .expect("cargo can be run");
    if output.status.success() {
        return None;
    }
    let text = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    let text: String = text.concat();
    let mut lines = text.lines().skip_while(|line| !line.contains("panicked at tests/"));
    // A copy that does not compile, or a panic elsewhere, is not a finding.
    assert!(lines.next().is_some(), "the simulation has found nothing, and failed:\n{text}");
    lines.next().map(str::to_owned)
}

/// Copies what the simulation consists of, and nothing else: the rest of the appliance need not be
/// compiled again for each bug.
fn lay_out(root: &Path, copy: &Path) {
    for old in ["appliance", "config-sync", "tests"] {
        let old = copy.join(old);
        if old.exists() {
            fs::remove_dir_all(&old).expect("the last copy can be removed");
        }
    }
    for part in PURE {
        copy_files(root, copy, &format!("appliance/src/{part}"));
    }
    // The only room of config-sync that the proxy imports.
    copy_files(root, copy, "config-sync/src/table");
    for part in ["lib.rs", "hello.rs", "sim"] {
        copy_files(root, copy, &format!("tests/src/{part}"));
    }
    fs::remove_dir_all(copy.join("tests/src/sim/tls")).expect("it was just copied");
    leave_out(&copy.join("tests/src/lib.rs"), &["pki", "real", "stage"]);
    leave_out(&copy.join("tests/src/sim/mod.rs"), &["tls"]);
    copy_files(root, copy, "tests/tests/simulation");
    copy_files(root, copy, "Cargo.lock");
    let modules = PURE.map(|part| part.trim_end_matches(".rs"));
    let declared = modules.map(|module| format!("pub mod {module};\n"));
    write(&copy.join("appliance/src/data_plane.rs"), &declared.concat());
    let again = format!("pub use data_plane::{{{}}};\n", modules.join(", "));
    write(&copy.join("appliance/src/lib.rs"), &again);
    write(&copy.join("config-sync/src/lib.rs"), "pub mod table;\n");
    for (part, sources) in [
        ("appliance", "appliance"),
        ("appliance/src", "appliance/src"),
        ("config-sync", "config-sync"),
        ("tests", "tests"),
    ] {
        let manifest = fs::read_to_string(root.join(part).join("Cargo.toml")).expect("a manifest");
        write(&copy.join(part).join("Cargo.toml"), &lean(&manifest, &copy.join(sources)));
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("the manifest");
    let others = r#", "tests/fuzz", "bench", "bench/instructions"]"#;
    assert!(manifest.contains(others), "the members of the workspace have changed");
    write(&copy.join("Cargo.toml"), &manifest.replace(others, "]"));
}

/// Modules that the simulation of plain sessions and flows does without: what drives real sockets,
/// and what has TLS in it.
fn leave_out(file: &Path, modules: &[&str]) {
    let mut text = fs::read_to_string(file).expect("a file that declares modules");
    for module in modules {
        text = text.replacen(&format!("pub mod {module};\n"), "", 1);
    }
    write(file, &text);
}

/// The manifest with only those dependencies that the copied sources name.
fn lean(manifest: &str, part: &Path) -> String {
    let mut sources = String::new();
    for file in files(part).iter().filter(|file| file.extension().is_some_and(|e| e == "rs")) {
        sources += &fs::read_to_string(file).expect("a source");
    }
    let mut kept = String::new();
    // Targets and development dependencies belong to files that are not here.
    let mut wanted = true;
    let mut dependencies = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            wanted = !line.starts_with("[[") && line != "[dev-dependencies]";
            dependencies = line == "[dependencies]";
        } else if dependencies {
            let name = line.split(['.', ' ']).next().unwrap_or_default().replace('-', "_");
            wanted = !name.is_empty() && sources.contains(&format!("{name}::"));
        }
        if wanted {
            kept += line;
            kept.push('\n');
        }
    }
    kept
}

fn copy_files(root: &Path, copy: &Path, what: &str) {
    for file in files(&root.join(what)) {
        let to = copy.join(file.strip_prefix(root).expect("a file of the workspace"));
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder can be made");
        fs::copy(&file, &to).expect("a file can be copied");
    }
}

fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).expect("a folder");
    entries.flat_map(|entry| files(&entry.expect("an entry").path())).collect()
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder can be made");
    fs::write(path, text).expect("a file can be written");
}
