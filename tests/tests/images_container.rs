//! What images/ ships, tried: the container image under a container runtime, the seccomp profile,
//! the systemd unit.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringway_tests::real::config::forward;
use ringway_tests::real::{
    Folder, Gateway, Launch, Server, binary, connect, echo, exchange, free_address, in_own_network,
    program, run_verb, wait_for, wait_until,
};
use serde_json::{Value, json};

/// As the runtimes have it, crun being one: the user of the image, the capabilities, the read-only
/// root and the seccomp profile of the DaemonSet, no new privileges, the host's network. On port
/// 80, which that user may have only by the capability.
#[test]
fn the_image_runs_as_the_manifest_has_it() {
    let folder = Folder::new();
    let layout = layout(&folder, "layout");
    let bundle = folder.file("bundle");
    let image = format!("{}:latest", layout.display());
    program("umoci", &["unpack", "--image", &image, &bundle.display().to_string()]);
    restrict(&bundle.join("config.json"));
    in_own_network(move || {
        let server = Server::tcp(echo);
        let address = "127.0.0.1:80".parse().expect("an address");
        let config = forward("TCP", address, [server.address], "");
        let bundle = bundle.display().to_string();
        // A process namespace around the runtime, so that nothing outlives the test.
        let wrapper = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-euc",
            RUN,
            bundle.as_str(),
        ];
        let mut gateway = Launch::default().under(&wrapper).start(&config);
        assert_eq!(exchange(address, b"through the image").expect("an echo"), b"through the image");

        let pid = wait_for("the process in the container", || descendant(gateway.pid(), "ringway"));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).expect("a field");
            line[name.len()..].trim_start_matches(':').trim().to_owned()
        };
        assert_eq!(field("Uid"), "65532\t65532\t65532\t65532");
        // CAP_NET_BIND_SERVICE is bit 10 (linux/capability.h); none but it, nor can it be had.
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(field(set), "0000000000000400", "{set}");
        }
        assert_eq!(field("CapAmb"), "0000000000000000");
        assert_eq!(field("NoNewPrivs"), "1");
        assert_eq!(field("Seccomp"), "2", "SECCOMP_MODE_FILTER");

        let pid = Pid::from_raw(i32::try_from(pid).expect("a process id"));
        drains_with_a_session(&mut gateway, pid, address);
    });
}

/// As at the end of a pod, SIGTERM comes while a session lives. The container accepts nobody any
/// more, the session goes on, and the container ends with it.
fn drains_with_a_session(gateway: &mut Gateway, pid: Pid, address: SocketAddr) {
    let mut client = connect(address);
    let mut asks = |word: &[u8; 6]| {
        client.write_all(word).expect("the session lives");
        let mut answer = [0; 6];
        client.read_exact(&mut answer).expect("the session lives");
        assert_eq!(answer, *word);
    };
    asks(b"before");
    kill(pid, Signal::SIGTERM).expect("it runs");
    wait_until("nobody is accepted any more", || TcpStream::connect(address).is_err());
    asks(b"during");
    assert!(gateway.ended().is_none(), "the container ends before its last session");
    drop(client);
    // The runtime gives the exit code on.
    let log = gateway.wait();
    let mut ends = log.iter().filter(|line| line.text("reason") == Some("client_fin"));
    assert!(ends.any(|line| line.number("bytes_up") == 12), "{log:?}");
}

#[test]
fn the_image_can_be_made_again() {
    let folder = Folder::new();
    let (one, two) = (layout(&folder, "one"), layout(&folder, "two"));
    program("diff", &["-r", &one.display().to_string(), &two.display().to_string()]);

    let index: Value = read_json(&one.join("index.json"));
    let blob = |descriptor: &Value| {
        let digest =
            descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
        let digest = digest.expect("a SHA-256");
        let path = one.join("blobs/sha256").join(digest);
        let size = fs::metadata(&path).expect("the blob").len();
        assert_eq!(descriptor["size"], size);
        assert!(program("sha256sum", &[&path.display().to_string()]).starts_with(digest));
        path
    };
    let manifest = read_json(&blob(&index["manifests"][0]));
    let layer = blob(&manifest["layers"][0]);
    let config = read_json(&blob(&manifest["config"]));
    let unpacked = folder.file("layer.tar");
    let commands = format!("gzip -dc {} > {}", layer.display(), unpacked.display());
    program("sh", &["-c", &commands]);
    let sum = program("sha256sum", &[&unpacked.display().to_string()]);
    let sum = sum.split_whitespace().next().expect("a sum");
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{sum}"));

    let files = program("tar", &["-tf", &unpacked.display().to_string()]);
    let size = fs::metadata(&layer).expect("the layer").len();
    assert!(size < 24 << 20, "{size} bytes:\n{files}");
    let shells = files.lines().filter(|path| path.starts_with("bin/") || path.ends_with("/sh"));
    assert_eq!(shells.count(), 0, "{files}");
    assert_eq!(dockerfile(), config["config"], "images/Dockerfile and images/oci say the same");
}

/// What a container has no use for is refused, and what Ringway needs is not.
#[test]
fn the_profile_refuses_what_a_container_has_no_use_for() {
    let under = |command: &[&str]| under_profile(command);
    let binary = binary().display().to_string();
    let features = under(&[&binary, "features"]);
    assert!(features.status.success(), "{}", String::from_utf8_lossy(&features.stderr));

    // By number, as the C library has no function for all of them: (name, arguments).
    let refused = [
        ("unshare", "0x10000000"),
        ("mount", "b'none', b'/mnt', b'tmpfs', 0, 0"),
        ("ptrace", "0, 0, 0, 0"),
        ("bpf", "0, 0, 0"),
        ("keyctl", "0, 0"),
        ("setns", "-1, 0"),
        ("perf_event_open", "0, 0, -1, -1, 0"),
        ("userfaultfd", "0"),
        ("process_vm_readv", "1, 0, 0, 0, 0, 0"),
        ("clone", "0x10000000 | 17, 0, 0, 0, 0"),
        ("socket", "17, 3, 0"),
    ];
    for (name, arguments) in refused {
        let code = format!(
            "import ctypes, seccomp, os\n\
             libc = ctypes.CDLL(None, use_errno=True)\n\
             number = seccomp.resolve_syscall(seccomp.Arch(), '{name}')\n\
             result = libc.syscall(number, {arguments})\n\
             if result == 0 and '{name}' == 'clone': os._exit(0)\n\
             print(result, ctypes.get_errno())"
        );
        let output = under(&["/usr/bin/python3", "-c", &code]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.trim(), "-1 1", "{name} is to fail with EPERM: {errors}");
    }
}

/// A pod with a volume for it may have an admin socket: made for the gateway's user alone, made
/// again where a process left the file of one, and removed at the end.
#[test]
fn the_profile_permits_an_admin_socket() {
    let folder = Folder::new();
    let path = folder.file("admin.sock");
    drop(UnixListener::bind(&path).expect("a file that nobody listens on"));
    let (server, address) = (Server::tcp(echo), free_address());
    let (script, profile) = (script("seccomp"), images().join("seccomp.json"));
    let wrapper = [&*script, "run", profile.to_str().expect("a name")];
    let launch = Launch::default().admin(&format!("socket = {path:?}")).under(&wrapper);
    let gateway = launch.start(&forward("TCP", address, [server.address], ""));
    let mode = fs::symlink_metadata(&path).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let path_text = path.display().to_string();
    let output = run_verb(&["drain", &server.address.to_string()], &path_text);
    assert!(output.status.success(), "{output:?}");
    // What `kubectl exec` runs has the profile too.
    for admin in [path_text, format!("http://{}", gateway.admin)] {
        let ringway = binary().display().to_string();
        let output = under_profile(&[&ringway, "top", "--once", "--admin", &admin]);
        assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
    }
    gateway.stop();
    assert!(!path.exists(), "the file is left");
}

/// The unit has filters of its own, made of systemd's sets. None of them may take away what the
/// profile's first rule, which was recorded, says that Ringway calls.
#[test]
fn the_unit_permits_what_the_process_calls() {
    let allowed =
        permitted(&fs::read_to_string(images().join("ringway.service")).expect("the unit"));
    let profile = read_json(&images().join("seccomp.json"));
    let called = profile["syscalls"][0]["names"].as_array().expect("names");
    let called: BTreeSet<_> = called.iter().map(|name| name.as_str().expect("a name")).collect();
    assert!(called.contains("io_uring_enter"), "{called:?}");
    let missing: Vec<_> = called.iter().filter(|name| !allowed.contains(**name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for name in ["mount", "ptrace", "bpf", "setuid", "reboot", "swapon"] {
        assert!(!allowed.contains(name), "{name}");
    }
}

#[test]
fn the_unit_is_valid_and_hardened() {
    let folder = Folder::new();
    let text = fs::read_to_string(images().join("ringway.service")).expect("the unit");
    // Where it is installed there is nothing on this machine.
    let text = text.replace("/usr/local/bin/ringway", &binary().display().to_string());
    let unit = folder.write("ringway.service", &text).display().to_string();
    program("systemd-analyze", &["verify", "--man=no", &unit]);
    // In tenths; 100 is a unit without any protection, and what is left is what a gateway is for.
    program("systemd-analyze", &["security", "--offline=true", "--threshold=16", &unit]);
    // An upgrade names another main process, a gateway that hangs is ended, and the sockets of one
    // that crashes are kept.
    let has = |wanted: &str| text.lines().any(|line| line == wanted);
    for line in ["Type=notify", "NotifyAccess=main", "WatchdogSec=60s", "Restart=on-failure"] {
        assert!(has(line), "{line}");
    }
    let kept = text.lines().find_map(|line| line.strip_prefix("FileDescriptorStoreMax="));
    let kept: u32 = kept.and_then(|text| text.parse().ok()).expect("a number");
    assert!(kept >= 1_024, "{kept} are too few for a socket for each listening address and worker");
    let patience = text.lines().find_map(|line| line.strip_prefix("TimeoutStopSec="));
    let patience = patience.and_then(|text| text.strip_suffix('s')).expect("seconds");
    let defaults = config_sync::check::parse("", "").expect("an empty file is valid");
    let drain = (defaults.drain_grace + defaults.drain_timeout) / 1_000 + 5;
    assert!(patience.parse::<u32>().expect("a number") > drain, "{patience} s for {drain} s");
}

/// The bundle's folder is $0; then the program, `run`, `--config` and its file. With the older
/// control groups beside the newer ones, crun takes only the newer; the test's own mount goes with
/// its namespace.
const RUN: &str = "
[ ! -d /sys/fs/cgroup/unified ] || mount --rbind /sys/fs/cgroup/unified /sys/fs/cgroup
sed -i \"s|/etc/ringway/ringway.toml|$4|\" \"$0/config.json\"
exec crun --root \"$0/state\" --cgroup-manager=disabled run --bundle \"$0\" ringway
";

/// Makes the runtime's configuration of what the DaemonSet says. The configuration file and the
/// access log are where the test has them.
fn restrict(path: &Path) {
    let mut config = read_json(path);
    let capabilities = json!(["CAP_NET_BIND_SERVICE"]);
    let process = config["process"].as_object_mut().expect("an object");
    process.insert("terminal".into(), json!(false));
    process.insert("noNewPrivileges".into(), json!(true));
    process.remove("rlimits");
    // Runtimes give a user that is not root no ambient ones.
    process.insert(
        "capabilities".into(),
        json!({ "bounding": capabilities, "effective": capabilities, "permitted": capabilities }),
    );
    config["root"]["readonly"] = json!(true);
    let linux = config["linux"].as_object_mut().expect("an object");
    linux.insert("seccomp".into(), read_json(&images().join("seccomp.json")));
    linux.remove("resources");
    let host_network = ["pid", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
    linux.insert("namespaces".into(), json!(host_network));
    let mounts = config["mounts"].as_array_mut().expect("a list");
    mounts.retain(|mount| {
        let at = mount["destination"].as_str().expect("a path");
        !at.starts_with("/sys") && at != "/etc/resolv.conf"
    });
    let own = std::env::temp_dir();
    mounts.push(
        json!({ "destination": own, "source": own, "type": "bind", "options": ["rbind", "rw"] }),
    );
    fs::write(path, config.to_string()).expect("writing it");
}

fn layout(folder: &Folder, name: &str) -> PathBuf {
    let path = folder.file(name);
    let (binary, path_text) = (binary().display().to_string(), path.display().to_string());
    program("/usr/bin/python3", &[&script("oci"), "layout", &binary, &path_text]);
    path
}

/// The image's configuration as images/Dockerfile has it, in its last stage.
fn dockerfile() -> Value {
    let text = fs::read_to_string(images().join("Dockerfile")).expect("the file");
    let (_, stage) = text.rsplit_once("FROM scratch").expect("the last stage");
    let lines = stage.replace("\\\n", "");
    let instructions = lines.lines().filter_map(|line| line.split_once(' '));
    let list = |text: &str| -> Value { serde_json::from_str(text).expect("a list") };
    let mut config = json!({});
    for (word, rest) in instructions {
        match word {
            "USER" => config["User"] = json!(rest),
            "ENV" => config["Env"] = json!([rest]),
            "WORKDIR" => config["WorkingDir"] = json!(rest),
            "STOPSIGNAL" => config["StopSignal"] = json!(rest),
            "ENTRYPOINT" => config["Entrypoint"] = list(rest),
            "CMD" => config["Cmd"] = list(rest),
            "LABEL" => {
                let pairs = rest.split("\" ").map(|pair| pair.trim().trim_end_matches('"'));
                for (key, value) in pairs.filter_map(|pair| pair.split_once("=\"")) {
                    config["Labels"][key] = json!(value);
                }
            }
            _ => {}
        }
    }
    // Only the script can ask the binary.
    let version = program(&binary().display().to_string(), &["--version"]);
    let version = version.split_whitespace().nth(1).expect("a version");
    config["Labels"]["org.opencontainers.image.version"] = json!(version);
    config
}

/// The system calls that a unit's `SystemCallFilter=` lines leave: an allow list is begun by the
/// first, `~` takes away (systemd.exec(5)).
fn permitted(unit: &str) -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (names, add) = line.strip_prefix('~').map_or((line, true), |names| (names, false));
        for name in names.split_whitespace().flat_map(members) {
            if add {
                allowed.insert(name);
            } else {
                allowed.remove(&name);
            }
        }
    }
    // systemd permits these whatever the filter says, because it needs them to start the process.
    allowed.extend(["execve", "prctl"].map(ToString::to_string));
    allowed.extend(members("@default"));
    allowed
}

/// The calls in one of systemd's sets, which may hold other sets.
fn members(name: &str) -> Vec<String> {
    if !name.starts_with('@') {
        return vec![name.into()];
    }
    let listed = program("systemd-analyze", &["--no-pager", "syscall-filter", name]);
    let lines = listed.lines().skip(1).map(str::trim);
    let names = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    names.flat_map(members).collect()
}

fn under_profile(command: &[&str]) -> Output {
    Command::new(script("seccomp"))
        .arg("run")
        .arg(images().join("seccomp.json"))
        .args(command)
        .output()
        .expect("images/seccomp")
}

/// The process below `pid` that runs `name`.
fn descendant(pid: u32, name: &str) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().filter_map(|child| child.parse().ok()).find_map(|child: u32| {
        let comm = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
        if comm.trim() == name { Some(child) } else { descendant(child, name) }
    })
}

fn read_json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

fn images() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../images"))
}

fn script(name: &str) -> String {
    images().join(name).display().to_string()
}
