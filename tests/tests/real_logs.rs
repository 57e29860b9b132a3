//! Where the logs go: a file that is rotated, and a syslog daemon.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Folder, Launch, Server, binary, closed_without_a_byte, connect, echo, exchange, free_address,
    limited, wait_until,
};

#[test]
fn a_renamed_log_is_opened_again_by_command() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = forward("TCP", address, [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    let log = gateway.socket().with_file_name("access.log");
    let lines =
        |path: &std::path::Path| fs::read_to_string(path).unwrap_or_default().lines().count();
    exchange(address, b"one").expect("an echo");
    wait_until("the first line is there", || lines(&log) == 1);
    let old = log.with_extension("1");
    fs::rename(&log, &old).expect("own file");
    exchange(address, b"two").expect("an echo");
    wait_until("it goes to the file that was renamed", || lines(&old) == 2);
    // A unit's `systemctl reload` asks for a reload, and must be enough for logrotate.
    for (verb, old) in [("log-reopen", &old), ("reload", &log.with_extension("2"))] {
        if !old.exists() {
            fs::rename(&log, old).expect("own file");
        }
        let before = lines(old);
        let said = gateway.verb(&[verb]);
        assert!(said.status.success(), "{said:?}");
        exchange(address, b"three").expect("an echo");
        wait_until("the next line is in the new file", || lines(&log) == 1);
        assert_eq!(lines(old), before, "{verb}");
    }
}

#[test]
fn reload_says_what_became_of_the_configuration() {
    let server = Server::tcp(echo);
    let (first, second) = (free_address(), free_address());
    let config = |address| forward("TCP", address, [server.address], "");
    let gateway = Launch::default().socket().start(&config(first));
    let before = gateway.asks(&["reload"])["generation"].as_u64().expect("a number");
    gateway.write(&config(second));
    let after = gateway.asks(&["reload"])["generation"].as_u64().expect("a number");
    assert!(after > before, "{before}, then {after}");
    exchange(second, b"after the reload").expect("an echo");

    gateway.write(&(config(first) + "colour = 1\n"));
    let refused = gateway.verb(&["reload"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("colour: unknown key"), "{said}");
    exchange(second, b"the one before stays").expect("an echo");
}

#[test]
fn the_access_log_goes_to_syslog_and_is_sampled() {
    let folder = Folder::new();
    let daemon = UnixDatagram::bind(folder.file("log")).expect("a socket");
    daemon.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let (server, address, shut) = (Server::tcp(echo), free_address(), free_address());
    let path = folder.file("log");
    let config = format!(
        "access_log = {{ path = \"syslog:{}\", sample = {{ client_fin = 3 }} }}\n",
        path.display()
    ) + &listener("web", "TCP", address, "")
        + &listener("shut", "TCP", shut, "deny = [\"127.0.0.0/8\"]")
        + &route("web", "web", &[("web", 1)], "")
        + &route("shut", "shut", &[("web", 1)], "")
        + &backend("web", [server.address], "");
    let gateway = Launch::default().blocked_log().socket().start(&config);
    let received = || {
        let mut buffer = [0; 4_096];
        let len = daemon.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let ended = || {
        let closes = gateway.asks(&["closes"]);
        let row =
            closes.as_array().and_then(|rows| rows.iter().find(|of| of["reason"] == "client_fin"));
        row.and_then(|row| row["count"].as_u64()).unwrap_or(0)
    };
    for count in 1..=4 {
        exchange(address, b"x").expect("an echo");
        wait_until("it has ended", || ended() == count);
    }
    assert!(closed_without_a_byte(&mut connect(shut)));
    // Two workers write lines, so these have no order among them.
    let messages = [(); 3].map(|()| received());
    let is_refused = |message: &&String| message.contains("\"reason\":\"source_denied\"");
    let (refused, served): (Vec<_>, Vec<_>) = messages.iter().partition(is_refused);
    assert_eq!((refused.len(), served.len()), (1, 2), "the first, and the fourth: {messages:?}");
    for message in served {
        assert!(message.starts_with("<30>1 ") && message.contains(" access - {"), "{message}");
        assert!(message.contains("\"sampled\":3"), "{message}");
    }
    assert!(!refused[0].contains("sampled"), "{}", refused[0]);
    let reopened = gateway.verb(&["log-reopen"]);
    assert!(reopened.status.success(), "{reopened:?}");
}

#[test]
fn the_own_log_goes_to_syslog() {
    let folder = Folder::new();
    let daemon = UnixDatagram::bind(folder.file("log")).expect("a socket");
    daemon.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let to = format!("syslog:{}", folder.file("log").display());
    let file = folder.write("ringway.toml", "admin.address = \"\"\n");
    let mut child = std::process::Command::new(binary())
        .args(["--log-to", &to, "run"])
        .arg(&file)
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let mut buffer = [0; 4_096];
    let len = daemon.recv(&mut buffer).expect("a message");
    let message = String::from_utf8_lossy(&buffer[..len]).into_owned();
    let process = format!(" ringway {} - - ", child.id());
    assert!(message.starts_with('<') && message.contains(&process), "{message}");
    child.kill().expect("it runs");
    child.wait().expect("it has ended");
    let nobody = limited(binary()).args(["--log-to", "syslog:/nonexistent", "features"]).output();
    let nobody = nobody.expect("it runs");
    let said = String::from_utf8_lossy(&nobody.stderr);
    assert!(!nobody.status.success() && said.contains("--log-to"), "{said}");
}
