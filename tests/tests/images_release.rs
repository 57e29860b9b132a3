//! The artefacts of images/release, installed from their own instructions in a Debian that has
//! nothing else. Needs root.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use ringway_tests::real::{
    Folder, Server, binary, connect, echo, exchange, in_own_network, limited, program, wait_until,
};
use serde_json::Value;

const RELEASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/release");
const OCI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/oci");

#[test]
fn artefacts_can_be_made_again() {
    let folder = Folder::new();
    let one = made();
    let two = make(&folder.file("again"));
    program("diff", &["-r", &text(one), &text(&two)]);

    let check = "cd \"$0\" && sha256sum --check --strict SHA256SUMS";
    let sums = program("sh", &["-euc", check, &text(one)]);
    let files = fs::read_dir(one).expect("the folder").count();
    assert_eq!(sums.lines().count(), files - 1, "all but SHA256SUMS itself: {sums}");

    let stripped = unpacked(&folder, one).join("bin/ringway");
    let sections = program("readelf", &["--sections", "--notes", "--wide", &text(&stripped)]);
    assert!(!sections.contains(".debug_info"), "{sections}");
    assert!(sections.contains(".gnu_debuglink"), "{sections}");
    let debug = only(one, ".debug");
    let debugged = program("readelf", &["--sections", "--notes", "--wide", &text(&debug)]);
    assert!(debugged.contains(".debug_info"), "{debugged}");
    let id = |said: &str| {
        let line = said.lines().find(|line| line.contains("Build ID:")).expect("a build id");
        line.trim().to_owned()
    };
    assert_eq!(id(&sections), id(&debugged));

    let bill = fs::read_to_string(only(one, ".cdx.json")).expect("the bill of materials");
    assert!(!bill.contains(env!("CARGO_MANIFEST_DIR")), "a path of this machine");
    let bill: Value = serde_json::from_str(&bill).expect("JSON");
    assert_eq!(bill["bomFormat"], "CycloneDX");
    let parts = bill["components"].as_array().expect("a list");
    let names: Vec<_> = parts.iter().filter_map(|part| part["name"].as_str()).collect();
    for name in ["config-sync", "io-uring", "rustls"] {
        assert!(names.contains(&name), "{name} of {names:?}");
    }
    assert!(!names.contains(&"proptest"), "what only tests have is in no release");
}

/// The archive has the image that the test of the container runs, and the tool that the page names
/// reads it. The bill of materials names it, and what is in it beside the binary.
#[test]
fn the_image_is_read_from_its_archive() {
    let folder = Folder::new();
    let archive = only(made(), ".oci.tar");
    let name = archive.file_name().and_then(|name| name.to_str()).expect("a name");
    let tag = name.strip_prefix("ringway-").and_then(|name| name.split("-x86_64.").next());
    let tag = tag.expect("a version").replace('~', "-");
    let unpacked = folder.file("unpacked");
    fs::create_dir(&unpacked).expect("a directory");
    program("tar", &["-C", &text(&unpacked), "-xf", &text(&archive)]);
    let layout = folder.file("layout");
    let again = ["layout", &text(&binary()), &text(&layout), "--tag", &tag];
    program("env", &[&["SOURCE_DATE_EPOCH=1700000000", OCI][..], &again].concat());
    program("diff", &["-r", &text(&layout), &text(&unpacked)]);

    let (from, to) = (format!("oci-archive:{}", text(&archive)), folder.file("copied"));
    let copied = format!("oci:{}:{tag}", text(&to));
    program("skopeo", &["--insecure-policy", "copy", "--quiet", &from, &copied]);
    let about = program("skopeo", &["--insecure-policy", "inspect", &copied]);
    let about: Value = serde_json::from_str(&about).expect("JSON");
    assert_eq!(about["Labels"]["org.opencontainers.image.title"], "ringway");

    let bill = fs::read_to_string(only(made(), ".cdx.json")).expect("the bill of materials");
    let bill: Value = serde_json::from_str(&bill).expect("JSON");
    let parts = bill["components"].as_array().expect("a list");
    let image = parts.iter().find(|part| part["type"] == "container").expect("the image");
    assert_eq!(image["version"], tag.as_str());
    assert_eq!(about["Digest"], image["bom-ref"]);
    let within = image["components"].as_array().expect("a list");
    let names: Vec<_> = within.iter().filter_map(|part| part["name"].as_str()).collect();
    for name in ["ca-certificates", "libc6"] {
        assert!(names.contains(&name), "{name} of {names:?}");
    }
}

/// tests/cluster/chart_test.go has Helm read one.
#[test]
fn the_chart_is_packed_with_the_version() {
    let folder = Folder::new();
    let chart = only(made(), ".tgz");
    let name = chart.file_stem().and_then(|name| name.to_str()).expect("a name");
    let version = name.strip_prefix("ringway-").expect("the name of the chart").to_owned();
    program("tar", &["-C", &text(&folder.file("")), "-xf", &text(&chart)]);
    let about = fs::read_to_string(folder.file("ringway/Chart.yaml")).expect("it is there");
    for key in ["version", "appVersion"] {
        assert!(about.contains(&format!("\n{key}: {version}\n")), "{about}");
    }
    let source = Path::new(RELEASE).with_file_name("helm");
    let all = ["-r", "--exclude=Chart.yaml", &text(&source), &text(&folder.file("ringway"))];
    program("diff", &all);
}

/// CHANGELOG.md and Cargo.toml must agree on the version.
#[test]
fn a_version_that_is_not_agreed_on_is_refused() {
    let folder = Folder::new();
    fs::create_dir(folder.file("images")).expect("a directory");
    let script = folder.file("images/release");
    fs::copy(RELEASE, &script).expect("copying it");
    let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    fs::copy(repository, folder.file("Cargo.toml")).expect("copying it");
    fs::create_dir(folder.file("images/helm")).expect("a directory");
    let version = env!("CARGO_PKG_VERSION");
    let chart = |version: &str| {
        folder.write(
            "images/helm/Chart.yaml",
            &format!("name: x\nversion: {version}\nappVersion: {version}\n"),
        );
    };
    let refused = |reason: &str| {
        let output = limited(&script).env("RINGWAY_BIN", binary()).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(reason), "{reason}: {said}");
    };
    chart(version);
    for (changes, reason) in [
        ("## 0.0.1 - 2026-01-01".into(), "the first heading must be"),
        (format!("## Unreleased\n\n## [{version}] - 2026-01-01"), "raise the version"),
    ] {
        folder.write("CHANGELOG.md", &changes);
        refused(reason);
    }
    folder.write("CHANGELOG.md", "## Unreleased");
    chart("0.0.1");
    refused("Chart.yaml has another version");
}

#[test]
fn the_tarball_is_installed_by_unpacking_it() {
    let folder = Folder::new();
    let root = clean_root(&folder);
    let page = instructions("Tarball");
    bring(".tar.gz", &root);
    // What comes after these needs systemd.
    for command in &page[..2] {
        inside(&root, command);
    }
    assert!(page[2].starts_with("systemctl "), "{page:?}");
    assert!(inside(&root, "ringway --version").starts_with("ringway 0."));
    inside(&root, "ringway check /etc/ringway/ringway.toml");
    for path in [
        "lib/systemd/system/ringway.service",
        "share/man/man1/ringway.1.gz",
        "share/man/man1/ringway-run.1.gz",
        "share/bash-completion/completions/ringway",
        "share/zsh/site-functions/_ringway",
        "share/fish/vendor_completions.d/ringway.fish",
        "share/doc/ringway/LICENSE",
        "share/doc/ringway/CHANGELOG.md",
    ] {
        assert!(root.join("usr/local").join(path).is_file(), "{path}");
    }
    in_own_network(move || {
        let server = Server::tcp(echo);
        configure(&root, server.address);
        inside(&root, "mkdir /run/ringway");
        let _gateway = Booted::start(&root, "ringway run --config /etc/ringway/ringway.toml");
        assert_eq!(exchange(address(), b"unpacked").expect("an echo"), b"unpacked");
    });
}

#[test]
fn the_package_is_installed_upgraded_removed_and_purged() {
    let folder = Folder::new();
    let root = clean_root(&folder);
    let before = listing(&root);
    let package = only(made(), ".deb");
    newer(&folder, &package, &root.join("new.deb"));
    // The root has no apt, and the package needs nothing that the root lacks.
    let install = instructions("Package").remove(0).replace("apt install", "dpkg --install");
    bring(".deb", &root);
    inside(&root, &install);
    fs::remove_dir_all(root.join("target")).expect("it was brought");
    assert!(inside(&root, "ringway --version").starts_with("ringway 0."));
    inside(&root, "ringway check /etc/ringway/ringway.toml");
    assert_eq!(inside(&root, "stat -c '%U %a' /run/ringway"), "ringway 750\n");
    assert_eq!(inside(&root, "dpkg --verify ringway"), "", "files are as packed");
    verify_unit(&root);

    let own_root = root.clone();
    in_own_network(move || {
        let root = own_root;
        let server = Server::tcp(echo);
        configure(&root, server.address);
        let user = "setpriv --reuid=ringway --regid=ringway --init-groups";
        let run = format!("{user} ringway run --config /etc/ringway/ringway.toml");
        let _gateway = Booted::start(&root, &run);
        let mut session = connect(address());
        talk(&mut session, b"before");

        // The file has changed, so dpkg asks, or is told, which one to keep.
        let printed = inside(&root, "dpkg --force-confold --install /new.deb 2>&1");
        assert!(printed.contains("Setting up ringway"), "{printed}");
        assert!(!printed.contains("goes on"), "the upgrade failed: {printed}");
        talk(&mut session, b"the session lives on");
        let mut other = connect(address());
        talk(&mut other, b"and this one in the new process");
        wait_until("the new process has both sessions", || {
            let status = inside(&root, "ringway status --json");
            serde_json::from_str::<Value>(&status).expect("JSON")["sessions"] == 2
        });
    });

    inside(&root, "dpkg --remove ringway");
    assert!(!root.join("usr/bin/ringway").exists());
    assert!(root.join("etc/ringway/ringway.toml").exists(), "the configuration stays");
    inside(&root, "dpkg --purge ringway");
    let left: Vec<_> = listing(&root).lines().map(str::to_owned).collect();
    let there: Vec<_> = before.lines().collect();
    let new: Vec<_> = left.iter().filter(|line| !there.contains(&line.as_str())).collect();
    assert!(new.is_empty(), "{new:?}");
    assert_eq!(inside(&root, "getent passwd ringway || echo none"), "none\n");
}

/// The commands below a heading of images/README.md, as they are.
fn instructions(heading: &str) -> Vec<String> {
    let page = fs::read_to_string(Path::new(RELEASE).with_file_name("README.md")).expect("it");
    let (_, rest) = page.split_once(&format!("**{heading}.** As root:\n\n```sh\n")).expect(heading);
    let (commands, _) = rest.split_once("```").expect("an end");
    let lines = commands.lines().map(|line| line.split("  #").next().unwrap_or_default());
    lines.map(|line| line.trim_end().to_owned()).collect()
}

/// Puts an artefact into the root where the page has it.
fn bring(end: &str, root: &Path) {
    let to = root.join("target/release-artefacts");
    fs::create_dir_all(&to).expect("a directory");
    let artefact = only(made(), end);
    fs::copy(&artefact, to.join(artefact.file_name().expect("a name"))).expect("copying it");
}

/// systemd-analyze of this machine looks at the unit as it is in the root.
fn verify_unit(root: &Path) {
    let unit = root.join("usr/lib/systemd/system/ringway.service");
    let content = fs::read_to_string(&unit).expect("the unit");
    assert!(content.contains("\nUser=ringway\n") && !content.contains("/usr/local"), "{content}");
    let copy = Folder::new();
    let program_in_root = root.join("usr/bin/ringway").display().to_string();
    let content = content.replace("/usr/bin/ringway", &program_in_root);
    let unit = copy.write("ringway.service", &content.replace("User=ringway\n", ""));
    program("systemd-analyze", &["verify", "--man=no", &text(&unit)]);
}

/// Where the gateway of the tests listens.
fn address() -> SocketAddr {
    "127.0.0.1:5432".parse().expect("an address")
}

/// Adds a listener to the configuration that was installed.
fn configure(root: &Path, endpoint: SocketAddr) {
    let file = root.join("etc/ringway/ringway.toml");
    let mut config = fs::read_to_string(&file).expect("it is installed");
    config += &format!(
        "\n[[listeners]]\nname = \"main\"\nprotocol = \"TCP\"\naddress = \"{}\"\n\
         endpoints = [\"{endpoint}\"]\n",
        address()
    );
    fs::write(file, config).expect("writing it");
}

fn talk(session: &mut TcpStream, bytes: &[u8]) {
    session.write_all(bytes).expect("it is open");
    let mut answer = vec![0; bytes.len()];
    session.read_exact(&mut answer).expect("an echo");
    assert_eq!(answer, bytes);
}

/// A gateway in the root, in a process namespace that ends with it. Process 1 of a namespace can't
/// hand over, so a shell is process 1.
struct Booted(Child);

impl Booted {
    fn start(root: &Path, command: &str) -> Self {
        let command = format!("{command} & while :; do wait; sleep 1; done");
        let child = Command::new("unshare")
            .args(into(root))
            .args(["sh", "-c", &command])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("unshare");
        let booted = Self(child);
        wait_until("the gateway is ready", || {
            let status = enter(root, "ringway status").output().expect("a shell");
            status.status.success()
        });
        booted
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command in the root, and returns what it printed. It must succeed.
fn inside(root: &Path, command: &str) -> String {
    let output = enter(root, command).output().expect("a shell");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {}\n{printed}\n{errors}", output.status);
    printed
}

fn enter(root: &Path, command: &str) -> Command {
    let mut shell = limited("unshare");
    shell.args(into(root)).args(["sh", "-euc", command]);
    shell.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    shell
}

/// Arguments of unshare(1), for a program that sees the root alone, and no other process.
fn into(root: &Path) -> Vec<String> {
    let flags = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"].map(str::to_owned);
    flags.into_iter().chain([format!("--root={}", root.display())]).collect()
}

/// Every path of the root but what dpkg keeps for itself, and the copies that the tools for users
/// make of their files.
fn listing(root: &Path) -> String {
    let find = "cd \"$0\" && find . -path ./proc -prune -o -path ./var/lib/dpkg -prune \
                -o -path ./var/log -prune -o -path './etc/*-' -prune -o -name '*.deb' -prune \
                -o -print | sort";
    program("sh", &["-euc", find, &text(root)])
}

/// A Debian with the packages that every system has, and systemd's tools for users and directories.
fn clean_root(folder: &Folder) -> PathBuf {
    let archive = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("clean-root.tar");
    if !archive.exists() {
        let part = archive.with_extension("part.tar");
        let include = "--include=passwd,systemd-standalone-sysusers,systemd-standalone-tmpfiles";
        // Ubuntu has these tools in another part of its archive.
        let part_of_archive = "--components=main,universe";
        let suite = ". /etc/os-release && [ $ID = ubuntu ] || set --; mmdebstrap \"$@\" \
                     --quiet --variant=essential \"$include\" $VERSION_CODENAME \"$archive\"";
        let mut shell = Command::new("sh");
        shell.args(["-euc", suite, "sh", part_of_archive]);
        let made = shell.env("include", include).env("archive", &part).status();
        assert!(made.expect("a shell").success(), "mmdebstrap");
        fs::rename(part, &archive).expect("renaming it");
    }
    let root = folder.file("root");
    fs::create_dir_all(root.join("proc")).expect("a directory");
    program("tar", &["-C", &text(&root), "-xf", &text(&archive)]);
    root
}

/// The artefacts, which the tests share.
fn made() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| make(&PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("artefacts")))
}

fn make(out: &Path) -> PathBuf {
    let status = Command::new(RELEASE)
        .args(["--out", &text(out)])
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .env("RINGWAY_BIN", binary())
        .status()
        .expect("images/release");
    assert!(status.success(), "{status}");
    out.into()
}

/// The same package with a newer version.
fn newer(folder: &Folder, package: &Path, to: &Path) {
    let contents = folder.file("contents");
    program("dpkg-deb", &["--raw-extract", &text(package), &text(&contents)]);
    program("sed", &["-i", "s/^Version: 0/Version: 1/", &text(&contents.join("DEBIAN/control"))]);
    program("dpkg-deb", &["-Znone", "--root-owner-group", "--build", &text(&contents), &text(to)]);
}

fn unpacked(folder: &Folder, made: &Path) -> PathBuf {
    let to = folder.file("unpacked");
    fs::create_dir(&to).expect("a directory");
    let archive = text(&only(made, ".tar.gz"));
    program("tar", &["-C", &text(&to), "--strip-components=1", "-xf", &archive]);
    to
}

/// The only file with that end.
fn only(folder: &Path, end: &str) -> PathBuf {
    let files = fs::read_dir(folder).expect("the folder").filter_map(Result::ok);
    let mut found: Vec<_> =
        files.map(|file| file.path()).filter(|path| text(path).ends_with(end)).collect();
    assert_eq!(found.len(), 1, "{end}: {found:?}");
    found.remove(0)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
