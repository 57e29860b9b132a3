//! What `run` needs of the machine, and what it says where that is missing.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};

use ringway_tests::real::config::{forward, forward_as};
use ringway_tests::real::{
    Folder, Gateway, Launch, Server, binary, connect, echo, exchange, free_address, is_root,
    limited, udp_client, wait_for, wait_until,
};

use super::{EPERM, WITHOUT_IO_URING, ringway, text};

#[test]
fn run_refuses_a_bad_file() {
    let folder = Folder::new();
    let file = folder.write("bad.toml", "[[listeners]]\nname = 5\n").display().to_string();
    let output = ringway(&["run", "--config", &file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&format!("{file}:2:")), "{}", text(&output.stderr));
}

/// A file may be meant for another machine.
#[test]
fn a_core_that_is_not_there_is_a_warning_and_nothing_runs() {
    let (folder, server) = (Folder::new(), Server::tcp(echo));
    let config = "workers.cores = [0, 4095]\n".to_owned()
        + &forward("TCP", free_address(), [server.address], "");
    let file = folder.write("ringway.toml", &config).display().to_string();
    let place = format!("{file}:1:21: ");
    let what = "workers.cores[1]: core 4095 is not usable";
    let output = ringway(&["check", &file]);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&place) && said.contains(what), "{said}");
    let output = ringway(&["run", "--config", &file]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains(&place) && said.contains(what), "{said}");
}

/// Keys that need a restart are compared with what runs, not with the file before.
#[test]
fn keys_that_need_a_restart_are_compared_with_what_runs() {
    let (server, address) = (Server::tcp(echo), free_address());
    let config = |top: &str| top.to_owned() + &forward("TCP", address, [server.address], "");
    let gateway = Gateway::start(&config(""));
    // Of the latest reload: on a busy machine one change may be two, by the watch and by SIGHUP.
    let said = || {
        let said = gateway.stderr();
        let before = said.rsplit(" is in force\n").nth(1).unwrap_or_default();
        before.contains("limits is not what runs")
    };
    gateway.reload(&config("limits = { sessions = 10 }\n"));
    wait_until("it is not what runs", said);
    gateway.reload(&config("limits = { sessions = 10 }\nlame_duck = \"9s\"\n"));
    wait_until("it still is not what runs", said);
    gateway.reload(&config(""));
    wait_until("it is what runs again", || !said());
}

/// A killed gateway's listeners are in use for some milliseconds more, while the kernel ends its
/// rings. Another's stay in use.
#[test]
fn run_waits_for_the_addresses_of_a_killed_one_and_for_no_others() {
    let (server, tcp, udp) = (Server::tcp(echo), free_address(), free_address());
    let config = forward("TCP", tcp, [server.address], "")
        + &forward_as("dns", "UDP", udp, [server.address], "");
    for _ in 0..10 {
        // Dropped, that is killed, at the end of each turn.
        let gateway = Gateway::start(&config);
        assert_eq!(exchange(tcp, b"hello").expect("an answer"), b"hello");
        gateway.says("ready");
    }
    let _another = (
        wait_for("the TCP address to be free", || TcpListener::bind(tcp).ok()),
        wait_for("the UDP address to be free", || UdpSocket::bind(udp).ok()),
    );
    for (taken, protocol) in [(tcp, "TCP"), (udp, "UDP")] {
        let folder = Folder::new();
        let admin = format!("admin = {{ address = \"{}\" }}\n", free_address());
        let config = admin + &forward(protocol, taken, [server.address], "");
        let file = folder.write("taken.toml", &config).display().to_string();
        let output = ringway(&["run", "--config", &file]);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(said.contains(&format!("cannot listen on {protocol} {taken}")), "{said}");
        assert!(said.contains("another process listens there"), "{said}");
    }
}

#[test]
fn features_are_listed_and_can_be_masked() {
    let output = ringway(&["features"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let listed = text(&output.stdout);
    assert!(listed.lines().count() > 2, "{listed}");
    let optional = listed.lines().find(|line| line.contains("6.6")).expect("one newer than 6.1");
    let optional = optional.split_whitespace().next().expect("its name");
    let masked = text(&ringway(&["features", "--without", optional]).stdout);
    let line = masked.lines().find(|line| line.starts_with(optional)).expect("it is listed still");
    assert!(line.contains("masked"), "{line}");
    let output = ringway(&["features", "--without", "nonsense"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("nonsense"), "{}", text(&output.stderr));
}

/// Where io_uring is refused the error says so and what to change, and nothing is half started.
#[test]
fn refused_io_uring_is_one_clear_error() {
    const ENOSYS: &str = "38";
    let folder = Folder::new();
    let config = forward("TCP", free_address(), [free_address()], "");
    let file = folder.write("ringway.toml", &config).display().to_string();
    let binary = binary().display().to_string();
    for (errno, word) in [(EPERM, "seccomp"), (ENOSYS, "io_uring")] {
        let run = ["-c", WITHOUT_IO_URING, errno, &binary, "run", "--config", &file];
        let output = limited("python3").args(run).output().expect("python3");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("io_uring") && said.contains(word), "{said}");
        assert_eq!(said.matches("ringway: ").count(), 1, "one error: {said}");
    }
}

/// A user with no rights at all, on ports of 1024 and above.
#[test]
fn runs_without_root() {
    if !is_root() {
        return; // Then every other test has shown it.
    }
    let (tcp, udp) = (Server::tcp(echo), Server::udp_echo());
    let address = free_address();
    let config = "lame_duck = \"100ms\"\n".to_owned()
        + &forward_as("tcp", "TCP", address, [tcp.address], "")
        + &forward_as("udp", "UDP", address, [udp.address], "");
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let wrapper = [&nobody[..], &["env", "-i"]].concat();
    let gateway = Launch::default().under(&wrapper).start(&config);
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid()));
    let status = status.expect("the process runs");
    assert!(status.contains("Uid:\t65534\t65534") && status.contains("CapEff:\t0000000000000000"));
    let large = vec![7; 10_000_000];
    let mut session = connect(address);
    let mut writing = session.try_clone().expect("a descriptor");
    let sent = large.clone();
    let writer = std::thread::spawn(move || {
        writing.write_all(&sent).expect("sent");
        writing.shutdown(std::net::Shutdown::Write).expect("a FIN");
    });
    let mut back = Vec::new();
    session.read_to_end(&mut back).expect("an echo");
    writer.join().expect("no panic");
    assert!(back == large);
    let socket = udp_client(address);
    socket.send(b"datagram").expect("sent");
    let mut answer = [0; 16];
    assert_eq!(socket.recv(&mut answer).expect("an echo"), 8);
    gateway.stop();
}
