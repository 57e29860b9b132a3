//! Who may change things, and what an answer to a bad request says.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use ringway_tests::real::config::forward;
use ringway_tests::real::{
    Folder, Gateway, Launch, Server, echo, free_address, run_verb, session, wait_until, was_reset,
};

#[test]
fn only_the_socket_and_the_token_may_change_things() {
    let server = Server::tcp(echo);
    let address = free_address();
    let folder = Folder::new();
    let token = folder.write("token", "0123456789abcdef0123\n").display().to_string();
    let config = forward("TCP", address, [server.address], "");
    let closed = Launch::default().socket().start(&config);
    let mode = fs::symlink_metadata(closed.socket()).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut stream = session(address);
    let refused = |gateway: &Gateway, more: &[&str]| {
        let words = [&["kill", "--listener", "main"], more].concat();
        let output = run_verb(&words, &format!("http://{}", gateway.admin));
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (done, said) = refused(&closed, &[]);
    assert!(!done && said.contains("reading only") && said.contains("admin.socket"), "{said}");
    let (done, said) = refused(&closed, &["--token-file", &token]);
    assert!(!done && said.contains("reading only"), "nobody asked for a token: {said}");
    stream.write_all(b"y").expect("it lives");
    stream.read_exact(&mut [0]).expect("it lives");
    let path = closed.socket();
    drop(stream);
    closed.stop();
    assert!(!path.exists(), "the socket's file is left");

    let launch = Launch::default().admin(&format!("token_file = {token:?}"));
    let open = launch.start(&config);
    let mut stream = session(address);
    let (done, said) = refused(&open, &[]);
    assert!(!done && said.contains("token"), "{said}");
    let wrong = folder.write("wrong", "0123456789abcdef0124").display().to_string();
    let (done, said) = refused(&open, &["--token-file", &wrong]);
    assert!(!done && said.contains("is not that of"), "{said}");
    let (done, said) = refused(&open, &["--token-file", &token]);
    assert!(done, "{said}");
    assert!(was_reset(&mut stream));
}

#[test]
fn a_stale_socket_is_replaced_and_bad_requests_are_explained() {
    let server = Server::tcp(echo);
    let config = forward("TCP", free_address(), [server.address], "");
    let folder = Folder::new();
    let socket = folder.file("stale.sock");
    drop(UnixListener::bind(&socket).expect("a socket"));
    let gateway = Launch::default()
        .admin(&format!("socket = {:?}", socket.display().to_string()))
        .start(&config);
    let output = run_verb(&["sessions"], &socket.display().to_string());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "no sessions\n", "{output:?}");
    for (path, status, said) in [
        ("sessions?colour=1", 400, "colour"),
        ("sessions?client=10.0.0.0%2F99", 400, "no address or prefix"),
        ("sessions?limit=5001", 400, "5000 at the most"),
        ("sessions?cursor=9.9", 400, "cursor"),
        ("sessions?listener=nope", 400, "no listener is called"),
        ("sessions?endpoint=127.0.0.1:1", 400, "no endpoint is called"),
        ("session/nonsense", 400, "no id of a session"),
        ("session/s0-0-0-00000000", 404, "has ended"),
        ("nope", 404, "no such path"),
    ] {
        let (found, body) = gateway.get(&format!("/api/v1/{path}")).expect("an answer");
        assert!(found == status && body.contains(said), "{path}: {found} {body}");
    }
    wait_until("the gateway is ready", || {
        gateway.get("/readyz").is_some_and(|(status, _)| status == 200)
    });
}
