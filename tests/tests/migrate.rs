//! `ringway migrate` on every directory of `tests/migrate`: other programs' configurations, written
//! after their documentation, become `ringway.toml`, and `stderr` says what was left behind. To
//! accept the present results: `RINGWAY_UPDATE_GOLDEN=1 cargo test --workspace --test migrate`.

use std::fs;
use std::path::{Path, PathBuf};

use config_sync::source::Source;
use config_sync::sync::dry_run;
use ringway::control::migrate::{Kind, Migrated, kind_of, migrate};
use ringway_tests::pki::Pki;
use ringway_tests::real::Folder;

#[test]
fn every_directory_is_as_it_was_accepted() {
    let update = std::env::var_os("RINGWAY_UPDATE_GOLDEN").is_some();
    let mut faults = Vec::new();
    for directory in directories() {
        let Migrated { toml, said, whole } = migrated(&directory);
        let code = if whole { 0 } else { 2 };
        for (file, now) in [("ringway.toml", toml), ("stderr", format!("{said}exit code {code}\n"))]
        {
            let path = directory.join(file);
            if update {
                fs::write(&path, &now).expect("the directory can be written");
            }
            let accepted = fs::read_to_string(&path).unwrap_or_default();
            if accepted != now {
                let at = accepted.lines().zip(now.lines()).position(|(was, is)| was != is);
                let at = at.unwrap_or_else(|| accepted.lines().count().min(now.lines().count()));
                let line = |text: &str| text.lines().nth(at).unwrap_or("(ends)").to_owned();
                let (was, is) = (line(&accepted), line(&now));
                faults.push(format!("{}:{}:\n  was {was}\n  is  {is}", path.display(), at + 1));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// As `ringway check` has it, with certificates where the configurations name them.
#[test]
fn every_result_is_a_valid_configuration() {
    let folder = Folder::new();
    let pki = Pki::new();
    let leaf = pki.issue(&["mqtt.example.com"]);
    folder.write("mqtt.pem", &format!("{}{}", leaf.cert, leaf.key));
    for name in ["clients.pem", "servers.pem"] {
        folder.write(name, &pki.ca());
    }
    folder.write("blocked.txt", "203.0.113.0/24\n");
    let there = folder.file("").display().to_string();
    for directory in directories() {
        let Migrated { toml, .. } = migrated(&directory);
        let file = folder.write("ringway.toml", &toml.replace("/etc/ssl/site/", &there));
        let now = 1_767_225_600;
        let checked = dry_run::check(&Source::File(file), now);
        assert!(checked.is_ok(), "{}: {}", directory.display(), checked.unwrap_err());
    }
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_with_its_place() {
    for (kind, text, says) in [
        (Kind::Haproxy, "bind :80\n", "x:1: \"bind\" stands in no section"),
        (Kind::Nginx, "stream {\n", "x:1: the block of \"stream\" has no end"),
        (Kind::IngressNginx, "a: b\n", "x:1: there is no ConfigMap"),
        (Kind::Traefik, "a: [\n", "x:"),
    ] {
        let error = migrate(kind, &[("x", text)], &[], &|_| None).expect_err("no configuration");
        assert!(error.starts_with(says), "{kind:?}: {error}");
    }
}

/// What is cut off in any place, or has lost any line, is read or is an error, and what is printed
/// is TOML.
#[test]
fn a_part_of_a_file_is_read_or_refused() {
    for directory in directories() {
        let (kind, files) = files(&directory);
        for (name, text) in &files {
            let ends = (0..text.len()).step_by(11).filter(|end| text.is_char_boundary(*end));
            let cut = ends.map(|end| text[..end].to_owned());
            let lines: Vec<_> = text.lines().collect();
            let without = (0..lines.len()).map(|at| {
                let kept = lines.iter().enumerate().filter(|(other, _)| *other != at);
                kept.map(|(_, line)| format!("{line}\n")).collect()
            });
            for part in cut.chain(without) {
                let Ok(migrated) = migrate(kind, &[(name, &part)], &[], &|_| None) else {
                    continue;
                };
                if let Err(faults) = config_sync::check::parse("x", &migrated.toml) {
                    assert!(!faults.to_string().contains("no TOML"), "{faults}\n{part}");
                }
            }
        }
    }
}

#[test]
fn entry_points_may_stand_on_the_command_line() {
    let text = "udp:\n  routers:\n    a: {entryPoints: [dns], service: a}\n  services:\n    \
                a: {loadBalancer: {servers: [{address: '10.0.0.1:53'}]}}\n";
    let of = |points: &[(String, String)]| {
        migrate(Kind::Traefik, &[("x.yaml", text)], points, &|_| None).expect("it can be read")
    };
    assert!(of(&[]).said.contains("--entry-point dns=:PORT"), "{}", of(&[]).said);
    let given = of(&[("dns".to_owned(), "127.0.0.1:53/udp".to_owned())]);
    assert!(given.whole && given.toml.contains("address = \"127.0.0.1:53\""), "{}", given.toml);
}

fn migrated(directory: &Path) -> Migrated {
    let (kind, files) = files(directory);
    let files: Vec<_> = files.iter().map(|(name, text)| (&**name, &**text)).collect();
    migrate(kind, &files, &[], &|_| None).expect("it can be read")
}

/// The originals, each with its name, and whose they are.
fn files(directory: &Path) -> (Kind, Vec<(String, String)>) {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if name != "ringway.toml" && name != "stderr" {
            files.push((name, fs::read_to_string(&path).expect("a text")));
        }
    }
    files.sort();
    let kind = files.iter().find_map(|(name, text)| kind_of(name, text));
    (kind.unwrap_or_else(|| panic!("{}: of which kind?", directory.display())), files)
}

fn directories() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrate");
    let entries = fs::read_dir(root).expect("the directory");
    let mut all: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    all.sort();
    assert!(all.len() >= 12, "{all:?}");
    all
}
