//! Listeners on Unix sockets: the file, every worker, and what goes through.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use ringway_tests::real::config::{backend, listener as tcp_listener, route};
use ringway_tests::real::{
    Folder, Gateway, Launch, LogLine, Pattern, Server, client_hello, connect as connect_tcp, echo,
    exchange, free_address, is_root, wait_for, wait_until,
};
use socket2::SockRef;

/// One listener on this address, with its route.
fn listener(protocol: &str, address: &str, options: &str) -> String {
    format!(
        "[[listeners]]\nname = \"main\"\nprotocol = \"{protocol}\"\naddress = \"unix:{address}\"\n\
         {options}\n"
    ) + &route("main", "main", &[("main", 1)], "")
}

fn forward(path: &Path, to: SocketAddr, options: &str) -> String {
    listener("TCP", &path.display().to_string(), options) + &backend("main", [to], "")
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap_or_else(|error| panic!("{error}"));
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("an option");
    stream
}

/// Sends bytes and an end, and returns the answer.
fn say(mut stream: UnixStream, bytes: &[u8]) -> Vec<u8> {
    stream.write_all(bytes).expect("sent");
    stream.shutdown(Shutdown::Write).expect("shut down");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("a clean end");
    answer
}

/// Much goes to an echo and comes back, over a socket of either kind.
fn carries_bulk(socket: OwnedFd) {
    let bulk = vec![7; 20 << 20];
    let (mut stream, sent) = (UnixStream::from(socket), bulk.clone());
    let mut sender = stream.try_clone().expect("a copy");
    let sending = std::thread::spawn(move || {
        sender.write_all(&sent).expect("sent");
        sender.shutdown(Shutdown::Write).expect("shut down");
    });
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("a clean end");
    sending.join().expect("sent");
    assert!(heard == bulk, "{} bytes of {}", heard.len(), bulk.len());
}

#[test]
fn clients_of_a_unix_socket_are_served_by_every_worker() {
    let (folder, server) = (Folder::new(), Server::tcp(echo));
    let path = folder.file("x.sock");
    // Only root gives files away.
    let owner = if is_root() { "owner = \"12:34\"" } else { "" };
    let options = format!("mode = \"0600\"\n{owner}");
    let gateway = Gateway::start(&forward(&path, server.address, &options));
    let found = fs::symlink_metadata(&path).expect("a file");
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    assert!(!is_root() || (found.uid(), found.gid()) == (12, 34), "{found:?}");
    let streams: Vec<_> = (0..200).map(|_| connect(&path)).collect();
    for stream in streams {
        assert_eq!(say(stream, b"to and fro"), b"to and fro");
    }
    carries_bulk(connect(&path).into());
    let lines = gateway.closes(201);
    for line in &lines {
        assert_eq!(line.text("client"), Some("unix"));
        assert_eq!(line.text("local"), Some(&*format!("unix:{}", path.display())));
        assert_eq!(line.text("reason"), Some("client_fin"), "{line:?}");
    }
    gateway.stop();
    assert!(!path.exists(), "the file is removed at the end");
}

#[test]
fn a_stale_file_is_replaced_and_a_file_in_use_is_not() {
    let (folder, server) = (Folder::new(), Server::tcp(echo));
    let path = folder.file("x.sock");
    drop(UnixListener::bind(&path).expect("bound"));
    assert!(path.exists(), "std leaves the file behind");
    let config = forward(&path, server.address, "");
    let gateway = Gateway::start(&config);
    assert_eq!(say(connect(&path), b"here"), b"here");

    // A socket of another process, and a file that is no socket, stay as they are.
    let (used, plain) = (folder.file("used.sock"), folder.write("plain", "text"));
    let other = UnixListener::bind(&used).expect("bound");
    for taken in [&used, &plain] {
        let more = format!(
            "{config}[[listeners]]\nname = \"more\"\nprotocol = \"TCP\"\n\
             address = \"unix:{}\"\n",
            taken.display()
        );
        gateway.write(&more);
        let expected = format!("unix:{}", taken.display());
        wait_until("the reload is refused", || {
            gateway
                .stderr()
                .lines()
                .any(|line| line.contains(&expected) && line.contains("or the file is no socket"))
        });
    }
    assert_eq!(fs::read_to_string(&plain).expect("a file"), "text");
    drop(UnixStream::connect(&used).expect("the other process still listens"));
    drop(other);

    // A file that somebody else has put there since is not removed.
    fs::remove_file(&path).expect("removed");
    let other = UnixListener::bind(&path).expect("bound");
    let before = fs::symlink_metadata(&path).expect("a file").ino();
    gateway.stop();
    assert_eq!(fs::symlink_metadata(&path).expect("a file").ino(), before);
    drop(other);
}

#[test]
fn a_listener_that_leaves_takes_its_file_along_and_may_come_back() {
    let (folder, server) = (Folder::new(), Server::tcp(echo));
    let (path, other) = (folder.file("x.sock"), folder.file("y.sock"));
    let config = |path: &Path| forward(path, server.address, "");
    let gateway = Gateway::start(&config(&path));
    let mut kept = connect(&path);
    kept.write_all(b"1").expect("sent");
    let mut byte = [0];
    kept.read_exact(&mut byte).expect("an echo");
    gateway.reload(&config(&other));
    wait_until("its file is gone", || !path.exists());
    assert_eq!(say(connect(&other), b"there"), b"there");
    gateway.reload(&config(&path));
    wait_until("it is back", || path.exists());
    assert_eq!(say(connect(&path), b"here"), b"here");
    assert_eq!(say(kept, b"2"), b"2", "a session outlives its listener");
}

#[test]
fn names_may_be_abstract() {
    let server = Server::tcp(echo);
    let name = format!("ringway-{}", std::process::id());
    let config = listener("TCP", &format!("@{name}"), "") + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let address = UnixAddr::from_abstract_name(&name).expect("a name");
    let connect = || UnixStream::connect_addr(&address);
    assert_eq!(say(connect().expect("connected"), b"here"), b"here");
    gateway.stop();
    assert!(connect().is_err());
}

#[test]
fn tls_passes_through_by_server_name_in_any_fragmentation() {
    let (folder, server) = (Folder::new(), Server::tcp(echo));
    let path = folder.file("tls.sock");
    let config = listener("TLS", &path.display().to_string(), "hostname = \"a.test\"")
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let hello = client_hello(Some("a.test"));
    for cut in [0, 1, 5, 40, hello.len() - 1] {
        let mut stream = connect(&path);
        stream.write_all(&hello[..cut]).expect("sent");
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(say(stream, &hello[cut..]), hello, "cut at {cut}");
    }
    assert!(gateway.closes(5).iter().all(|line| line.text("server_name") == Some("a.test")));
}

/// A proxy over the socket says who its client is; without one, the endpoint is told the socket.
#[test]
fn the_proxy_protocol_comes_in_and_goes_out() {
    let (folder, server) = (Folder::new(), Server::tcp(echo));
    let path = folder.file("x.sock");
    let config = |version: &str, options: &str| {
        let options = format!("{options}\nmode = \"0666\"");
        listener("TCP", &path.display().to_string(), &options)
            + &backend("main", [server.address], &format!("send_proxy = \"{version}\""))
    };
    let gateway = Gateway::start(&config("v2", ""));
    let heard = say(connect(&path), b"payload");
    let (header, payload) = heard.split_at(16 + 216);
    assert_eq!((&header[..12], header[13]), (&b"\r\n\r\n\0\r\nQUIT\n"[..], 0x31));
    let name = path.display().to_string();
    assert_eq!(&header[16 + 108..][..name.len()], name.as_bytes());
    assert_eq!(payload, b"payload");

    gateway.reload(&config("v1", ""));
    assert_eq!(say(connect(&path), b"payload"), b"PROXY UNKNOWN\r\npayload");

    gateway.reload(&config("v1", "accept_proxy = { from = [\"unix\"], only = true }"));
    let header = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n";
    let whole = [&header[..], b"payload"].concat();
    assert_eq!(say(connect(&path), &whole), whole);
    let lines = gateway.closes(3);
    let line = lines.last().expect("a line");
    assert_eq!(line.text("client"), Some("192.0.2.1:56324"));
    assert_eq!(line.text("peer"), Some("unix"));
}

/// A process that was killed leaves its file, and the next one starts all the same.
#[test]
fn the_file_of_a_killed_process_is_no_obstacle() {
    let (folder, server) = (Folder::new(), Server::tcp(echo));
    let path = folder.file("x.sock");
    let config = forward(&path, server.address, "");
    let mut gateway = Launch::default().start(&config);
    gateway.signal(Signal::SIGKILL);
    wait_until("it is gone", || gateway.ended().is_some());
    assert!(path.exists());
    let _gateway = Gateway::start(&config);
    assert_eq!(say(connect(&path), b"here"), b"here");
}

/// A server on a Unix socket that answers with all it was sent.
fn unix_echo(path: &Path) {
    let listener = UnixListener::bind(path).expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                let mut copy = stream.try_clone().expect("a copy");
                let _ = std::io::copy(&mut stream, &mut copy);
                let _ = copy.shutdown(Shutdown::Write);
            });
        }
    });
}

fn endpoints(of: &[&str], options: &str) -> String {
    let of: Vec<_> = of.iter().map(|address| format!("\"{address}\"")).collect();
    format!("[[backends]]\nname = \"main\"\nendpoints = [{}]\n{options}\n", of.join(", "))
}

#[test]
fn endpoints_are_unix_sockets() {
    let (folder, address) = (Folder::new(), free_address());
    let (good, gone) = (folder.file("good.sock"), folder.file("gone.sock"));
    unix_echo(&good);
    drop(UnixListener::bind(&gone).expect("bound"));
    let good = format!("unix:{}", good.display());
    let gone = format!("unix:{}", gone.display());
    let front =
        tcp_listener("main", "TCP", address, "") + &route("main", "main", &[("main", 1)], "");
    let config = |of: &[&str], options: &str| front.clone() + &endpoints(of, options);
    let gateway = Launch::default().one_worker().start(&config(&[&good], ""));
    assert_eq!(exchange(address, b"to and fro").expect("an echo"), b"to and fro");
    carries_bulk(connect_tcp(address).into());
    let lines = gateway.closes(2);
    for line in &lines {
        assert_eq!(line.text("endpoint"), Some(&*good));
        assert_eq!(line.text("reason"), Some("client_fin"), "{line:?}");
    }
    let labels = [("backend", "main"), ("endpoint", &*good)];
    assert_eq!(gateway.metrics().value("ringway_endpoint_sessions_opened_total", &labels), 2);

    // Nobody listens on one of two: the other has the clients, and the check sees the fault.
    gateway.reload(&config(&[&gone, &good], "balance = \"source-hash\""));
    for _ in 0..4 {
        assert_eq!(exchange(address, b"here").expect("an echo"), b"here");
    }
    gateway.reload(&config(&[&gone, &good], "health_check = { interval = \"200ms\" }"));
    let healthy = |of: &str| {
        let labels = [("backend", "main"), ("endpoint", of)];
        gateway.metrics().value("ringway_endpoint_healthy", &labels)
    };
    wait_until("the check finds it", || (healthy(&gone), healthy(&good)) == (0, 1));
    gateway.reload(&config(&[&gone], ""));
    let reset = exchange(address, b"").expect_err("no endpoint");
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    let failed = |line: &LogLine| line.text("reason") == Some("connect_failed");
    let line = wait_for("its line", || gateway.log().into_iter().find(failed));
    assert_eq!(line.text("detail"), Some("ECONNREFUSED"));
}

/// Endpoints are told of the client in a PROXY header, over a Unix socket as well; and a Unix
/// socket leads to another.
#[test]
fn from_unix_socket_to_unix_socket() {
    let folder = Folder::new();
    let (front, back) = (folder.file("front.sock"), folder.file("back.sock"));
    unix_echo(&back);
    let back = format!("unix:{}", back.display());
    let config = listener("TCP", &front.display().to_string(), "")
        + &endpoints(&[&back], "send_proxy = \"v1\"");
    let gateway = Gateway::start(&config);
    for _ in 0..20 {
        assert_eq!(say(connect(&front), b"payload"), b"PROXY UNKNOWN\r\npayload");
    }
    assert!(gateway.closes(20).iter().all(|line| line.text("reason") == Some("client_fin")));
}

/// Bulk goes by splice(2) where either side, or both, is a Unix socket; and it arrives whole.
#[test]
fn bulk_over_unix_sockets_is_spliced() {
    const BYTES: usize = 64 << 20;
    let (folder, tcp) = (Folder::new(), Server::tcp(echo));
    let back = folder.file("back.sock");
    unix_echo(&back);
    let back = format!("unix:{}", back.display());
    let (front, address) = (folder.file("front.sock"), free_address());
    let from_unix = listener("TCP", &front.display().to_string(), "");
    let from_tcp =
        tcp_listener("main", "TCP", address, "") + &route("main", "main", &[("main", 1)], "");
    let to_unix = endpoints(&[&back], "");
    let to_tcp = backend("main", [tcp.address], "");
    let gateway = Gateway::start(&(from_unix.clone() + &to_unix));
    let spliced = || gateway.metrics().value("ringway_spliced_bytes_total", &[]);
    for (client, config) in [
        (None, from_unix.clone() + &to_unix),
        (None, from_unix + &to_tcp),
        (Some(address), from_tcp + &to_unix),
    ] {
        gateway.reload(&config);
        let before = spliced();
        let bulk = Pattern::new(7).take(BYTES);
        let heard = match client {
            None => said_and_heard(connect(&front), bulk.clone()),
            Some(address) => said_and_heard(connect_tcp(address), bulk.clone()),
        };
        assert!(heard == bulk, "{} bytes of {BYTES}", heard.len());
        // Of each direction the first messages are copied.
        let moved = spliced() - before;
        assert!(moved > BYTES as u64, "{moved} bytes were spliced of {BYTES} each way");
    }
}

/// What comes back to the end while all of `bytes` is sent.
fn said_and_heard(stream: impl Into<OwnedFd>, bytes: Vec<u8>) -> Vec<u8> {
    let stream: OwnedFd = stream.into();
    let mut sender = File::from(stream.try_clone().expect("a copy"));
    let sending = std::thread::spawn(move || {
        sender.write_all(&bytes).expect("sent");
        SockRef::from(&sender).shutdown(Shutdown::Write).expect("shut down");
    });
    let mut heard = Vec::new();
    File::from(stream).read_to_end(&mut heard).expect("a clean end");
    sending.join().expect("sent");
    heard
}
