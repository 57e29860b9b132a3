//! What `check` and `doctor` say of files and of the machine.

use ringway_tests::pki::Pki;
use ringway_tests::real::config::forward;
use ringway_tests::real::{Folder, Server, binary, echo, free_address, limited, program};
use serde_json::Value;

use super::{EPERM, WITHOUT_IO_URING, ringway, text};

/// The admin API's files, which are no part of a table, are read too.
#[test]
fn check_reads_the_files_of_the_admin_api() {
    let (folder, pki) = (Folder::new(), Pki::new());
    let (own, other) = (pki.issue(&["127.0.0.1"]), pki.issue(&["127.0.0.1"]));
    let path = |name: &str| folder.file(name).display().to_string();
    folder.write("cert.pem", &own.cert);
    folder.write("key.pem", &own.key);
    folder.write("other.pem", &other.cert);
    folder.write("old.pem", &pki.issue_until(&["127.0.0.1"], 2024).cert);
    folder.write("short", "secret");
    let keys = |cert: &str, key: &str| format!("cert = {:?}, key = {:?}", path(cert), path(key));
    let good = keys("cert.pem", "key.pem");
    let check = |keys: &str| {
        let config = forward("TCP", free_address(), [free_address()], "");
        let file = folder.write("ringway.toml", &format!("admin = {{ {keys} }}\n{config}"));
        let output = ringway(&["check", &file.display().to_string()]);
        let said = text(&output.stderr);
        let said = said.strip_prefix(&format!("{}:1:", file.display())).unwrap_or(&said).to_owned();
        (output.status.success(), said)
    };
    assert_eq!(check(&good), (true, String::new()));
    for (keys, fault) in [
        (keys("none.pem", "key.pem"), "admin.cert: ".to_owned() + &path("none.pem")),
        (keys("key.pem", "key.pem"), "no certificate is in it".to_owned()),
        (keys("cert.pem", "cert.pem"), "admin.key: ".to_owned() + &path("cert.pem")),
        (keys("other.pem", "key.pem"), "is not the key of ".to_owned() + &path("other.pem")),
        (format!("{good}, client_ca = {:?}", path("key.pem")), "admin.client_ca: ".to_owned()),
        (format!("token_file = {:?}", path("short")), "admin.token_file: ".to_owned()),
    ] {
        let (is_good, said) = check(&keys);
        assert!(!is_good && said.contains(&fault), "{keys}: {said}");
    }
    // Warnings and hints are no faults.
    folder.write("cert.pem", &pki.issue_until(&["127.0.0.1"], 2024).cert);
    let (is_good, said) = check(&format!("socket = {:?}", path("none/admin.sock")));
    let hint = format!("hint: admin.socket: {} is not there", path("none"));
    assert!(is_good && said.contains(&hint) && said.contains("install -d"), "{said}");
    let output = ringway(&["run", &path("ringway.toml")]);
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("make its directory"), "{said}");
}

#[test]
fn check_says_every_error_at_once() {
    let folder = Folder::new();
    let bad = "[[listeners]]\n\
               name = \"a\"\n\
               protocol = \"SCTP\"\n\
               address = \"127.0.0.1\"\n\
               colour = \"blue\"\n\
               \n\
               [[listeners]]\n\
               name = \"b\"\n\
               protocol = \"TCP\"\n\
               address = \"127.0.0.1:7000\"\n\
               idle_timeout = 5\n\
               \n\
               [[routes]]\n\
               name = \"b\"\n\
               listeners = [\"b\", \"nobody\"]\n\
               backends = [{ name = \"absent\", weight = 1 }]\n\
               \n\
               [[routes]]\n\
               name = \"c\"\n\
               backends = [{ name = \"absent\", weight = 2000000 }]\n";
    let file = folder.write("bad.toml", bad).display().to_string();
    let output = ringway(&["check", &file]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout) + &text(&output.stderr);
    // The line of each fault, with some column, and the word in question.
    let faults = [
        (3, "protocol"),
        (4, "address"),
        (5, "colour"),
        (11, "idle_timeout"),
        (15, "nobody"),
        (16, "absent"),
        (20, "weight"),
    ];
    for (line, word) in faults {
        let place = format!("{file}:{line}:");
        let found = said.lines().any(|text| {
            let Some(rest) = text.strip_prefix(&place) else { return false };
            rest.starts_with(|first: char| first.is_ascii_digit()) && rest.contains(word)
        });
        assert!(found, "nothing of {word} in line {line}:\n{said}");
    }

    let good = forward("TCP", free_address(), [free_address()], "");
    let file = folder.write("good.toml", &good).display().to_string();
    let output = ringway(&["check", &file]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(ringway(&["check", "/nonexistent.toml"]).status.code(), Some(1));
}

#[test]
fn check_takes_several_files_and_stdin_and_may_be_strict() {
    let folder = Folder::new();
    let good = forward("TCP", free_address(), [free_address()], "");
    let good = folder.write("good.toml", &good).display().to_string();
    let doubtful = folder.write("doubtful.toml", "drain_timeout = \"9s\"\n").display().to_string();
    let bad = folder.write("bad.toml", "colour = 1\n").display().to_string();
    let worse = folder.write("worse.toml", "[[listeners]]\n").display().to_string();

    let output = ringway(&["check", &bad, &good, &worse]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains(&format!("{good}: valid")), "{output:?}");
    let faults = text(&output.stderr);
    assert!(faults.contains(&format!("{bad}:1:1: colour")), "{faults}");
    assert!(faults.contains(&format!("{worse}:1:")), "{faults}");

    assert_eq!(ringway(&["check", &good, &doubtful]).status.code(), Some(0));
    assert_eq!(ringway(&["check", "--strict", &good]).status.code(), Some(0));
    let strict = ringway(&["check", "--strict", &good, &doubtful]);
    assert_eq!(strict.status.code(), Some(1));
    let said = text(&strict.stderr);
    assert!(said.contains(&format!("{doubtful}: warnings (--strict): 1")), "{said}");

    let script = "cat \"$1\" | \"$0\" check -";
    let piped = limited("sh").args(["-c", script]).arg(binary()).arg(&bad).output().expect("sh");
    assert!(text(&piped.stderr).contains("the pipe:1:1: colour"), "{piped:?}");
}

#[test]
fn check_tells_machines_each_finding_with_its_place() {
    let folder = Folder::new();
    let good = forward("TCP", free_address(), [free_address()], "");
    let good = folder.write("good.toml", &good).display().to_string();
    let doubtful = folder.write("doubtful.toml", "drain_timeout = \"9s\"\n").display().to_string();
    let bad = "colour = 1\n[[listeners]]\nprotocol = \"TCQ\"\n";
    let bad = folder.write("bad.toml", bad).display().to_string();
    let output = ringway(&["check", "--json", &bad, &good, &doubtful, "/nonexistent.toml"]);
    assert_eq!((output.status.code(), output.stderr.len()), (Some(1), 0), "{output:?}");
    let reports: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let valid: Vec<_> = (0..4).map(|at| reports[at]["valid"].as_bool()).collect();
    assert_eq!(valid, [Some(false), Some(true), Some(true), Some(false)], "{reports}");
    let first = &reports[0]["findings"][0];
    assert_eq!((first["file"].as_str(), first["severity"].as_str()), (Some(&*bad), Some("fault")));
    assert_eq!((first["line"].as_u64(), first["column"].as_u64()), (Some(1), Some(1)));
    assert_eq!(first["field"], "colour");
    let all = reports[0]["findings"].as_array().expect("findings");
    let of_protocol = all.iter().find(|of| of["field"] == "listeners[0].protocol");
    assert_eq!(of_protocol.map(|of| of["line"].as_u64()), Some(Some(3)), "{all:?}");
    assert_eq!(reports[1]["findings"], Value::Array(Vec::new()));
    assert_eq!(reports[2]["findings"][0]["severity"], "warning", "{reports}");
    assert!(
        reports[3]["findings"][0]["message"].as_str().is_some_and(|of| of.contains("nonexist"))
    );
    assert_eq!(ringway(&["check", "--json", &good, &doubtful]).status.code(), Some(0));
    assert_eq!(ringway(&["check", "--json", "--strict", &doubtful]).status.code(), Some(1));
}

#[test]
fn check_refuses_objects_that_an_api_server_would_refuse_and_warns_of_those_without_effect() {
    let folder = Folder::new();
    let good = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g}\n\
                spec:\n  gatewayClassName: ringway\n  \
                listeners: [{name: a, protocol: TCP, port: 7000}]\n";
    let idle = folder.write("idle.yaml", good).display().to_string();
    let bad = folder.write("bad.yaml", &good.replace("port", "prot")).display().to_string();

    let output = ringway(&["check", &idle]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let warning =
        "idle.yaml:1: document 1: warning: Gateway default/g: spec.listeners[0]: no route";
    assert!(said.contains(warning), "{said}");
    assert_eq!(ringway(&["check", "--strict", &idle]).status.code(), Some(1));

    let output = ringway(&["check", &bad]);
    assert_eq!(output.status.code(), Some(1));
    let place = format!("{bad}:1: document 1: Gateway default/g: spec.listeners[0].");
    let said = text(&output.stderr);
    for fault in ["port: missing", "prot: Gateway has no such field here (did you mean \"port\"?)"]
    {
        assert!(said.contains(&format!("{place}{fault}")), "{fault}: {said}");
    }
    let output = ringway(&["check", "--json", &bad]);
    let reports: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let first = &reports[0]["findings"][0];
    assert_eq!((first["line"].as_u64(), first["document"].as_u64()), (Some(1), Some(1)), "{first}");
    assert_eq!(first["object"], "Gateway default/g", "{first}");
    assert_eq!(
        (&first["field"], &first["message"]),
        (&"spec.listeners[0].port".into(), &"missing".into())
    );
}

#[test]
fn doctor_judges_the_machine_and_the_timeouts_of_a_file() {
    let output = ringway(&["doctor", "--json"]);
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks: Vec<_> = findings.iter().filter_map(|one| one["check"].as_str()).collect();
    for check in ["kernel", "steering", "open files", "locked memory", "net.core.somaxconn"] {
        assert!(checks.contains(&check), "{check} is not in {checks:?}");
    }
    // Ringway runs on this machine, or no other test here would pass.
    assert!(findings.iter().all(|one| one["state"] != "fault"), "{findings:?}");
    assert_eq!(output.status.code(), Some(0));

    let folder = Folder::new();
    let config = forward("TCP", free_address(), [free_address()], "keepalive = \"0s\"");
    let file = folder.write("ringway.toml", &config).display().to_string();
    let output = ringway(&["doctor", "--strict", "--config", &file]);
    let said = text(&output.stdout);
    assert!(said.contains("listener main: no keepalive probe is sent"), "{said}");
    assert_eq!(output.status.code(), Some(1), "a warning is a failure with --strict");
    let run = ["-c", WITHOUT_IO_URING, EPERM, &binary().display().to_string(), "doctor"];
    let output = limited("python3").args(run).output().expect("python3");
    assert!(text(&output.stdout).contains("FAULT    kernel "), "{output:?}");
    assert_eq!(output.status.code(), Some(1));
}

/// What is no regular file is refused at once, wherever it is named; but for a pipe that the
/// command line names, which is read once.
#[test]
fn a_pipe_is_read_once_and_a_fifo_stops_nothing() {
    let (folder, server, address) = (Folder::new(), Server::tcp(echo), free_address());
    let config = forward("TCP", address, [server.address], "");
    let good = folder.write("good.toml", &config).display().to_string();
    let shell = |command: &str| {
        let script = format!("\"$0\" {command} <(cat \"$1\")");
        limited("bash").args(["-c", &script]).arg(binary()).arg(&good).output().expect("bash")
    };
    let output = shell("check");
    assert!(output.status.success(), "{}", text(&output.stderr));
    // As of a file, what is hardly meant is said.
    let file = folder.write("good.toml", "drain_timeout = \"9s\"\n").display().to_string();
    let [of_pipe, of_file] = [shell("check"), ringway(&["check", &file])];
    assert!(text(&of_pipe.stderr).contains("the pipe:1:1: warning: "), "{of_pipe:?}");
    assert_eq!(
        text(&of_pipe.stderr).replace("the pipe", &file),
        text(&of_file.stderr),
        "the same is said of both"
    );
    folder.write("good.toml", "");
    let output = shell("check");
    assert!(text(&output.stderr).contains("the pipe: the file is empty"), "{output:?}");
    let fifo = folder.file("fifo");
    program("mkfifo", &[&fifo.display().to_string()]);
    let fifo = "{ cert = \"fifo\", key = \"fifo\" }";
    let tls = &format!("tls = {{ mode = \"Terminate\", certificates = [{fifo}] }}");
    let config = forward("TLS", address, [server.address], tls);
    let file = folder.write("ringway.toml", &config).display().to_string();
    let output = ringway(&["check", &file]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("fifo can't be read: it is a FIFO"), "{said}");
}
