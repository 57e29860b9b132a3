//! Two PostgreSQL servers behind one port, told apart by the server name in TLS, through the
//! release binary: psql, openssl, and sockets where a client must be cut or rude.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringway_tests::pki::Pki;
use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Daemon, Folder, Gateway, LogLine, Postgres, Server, alert, client_hello, closed_without_a_byte,
    connect, free_address, limited, program, wait_until,
};

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
const CANCEL_REQUEST: [u8; 16] = [0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e, 0, 0, 0, 9, 1, 2, 3, 4];

/// Servers `a` and `b`, with the names `a.db.test` and `b.db.test`.
struct World {
    pki: Pki,
    folder: Folder,
    a: Postgres,
    b: Postgres,
    /// What stands for each server's certificate in a configuration.
    certificates: [String; 2],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Passthrough,
    /// TLS ends at the gateway.
    Terminate,
    /// And begins there anew.
    Encrypt,
}

const DEFAULT: &str = "default_hostname = \"b.db.test\"";

impl World {
    fn new() -> Self {
        let (pki, folder) = (Pki::new(), Folder::new());
        folder.write("ca.pem", &pki.ca());
        let issued = ["a", "b"].map(|name| {
            let issued = pki.issue(&[&format!("{name}.db.test")]);
            folder.write(&format!("{name}.pem"), &issued.cert);
            folder.write(&format!("{name}.key"), &issued.key);
            issued
        });
        let certificates = ["a", "b"].map(|name| {
            let path = |end: &str| folder.file(&format!("{name}.{end}")).display().to_string();
            format!("{{ cert = \"{}\", key = \"{}\" }}", path("pem"), path("key"))
        });
        let (a, b) = (Postgres::with_tls("a", &issued[0]), Postgres::with_tls("b", &issued[1]));
        Self { pki, folder, a, b, certificates }
    }

    fn ca(&self) -> String {
        self.folder.file("ca.pem").display().to_string()
    }

    fn config(&self, address: SocketAddr, mode: Mode, options: &str) -> String {
        let [a, b] = &self.certificates;
        let tls = match mode {
            Mode::Passthrough => String::new(),
            _ => format!("tls = {{ mode = \"Terminate\", certificates = [{a}, {b}] }}"),
        };
        let mut text =
            listener("pg", "TLS", address, &format!("starttls = \"postgres\"\n{tls}\n{options}"));
        for (name, server) in [("a", &self.a), ("b", &self.b)] {
            let host = format!("{name}.db.test");
            let tls = match mode {
                Mode::Encrypt => {
                    format!("tls = {{ server_name = \"{host}\", ca = \"{}\" }}", self.ca())
                }
                _ => String::new(),
            };
            text += &route(name, "pg", &[(name, 1)], &format!("hostnames = [\"{host}\"]"));
            text += &backend(name, [server.address], &tls);
        }
        text
    }

    /// The words after `psql` that ask a server by name.
    fn login(&self, address: SocketAddr, host: &str, more: &str) -> String {
        format!(
            "host={host} hostaddr={} port={} user=postgres dbname=postgres sslrootcert={} {more}",
            address.ip(),
            address.port(),
            self.ca()
        )
    }

    fn ask(&self, address: SocketAddr, host: &str, more: &str, query: &str) -> String {
        let login = self.login(address, host, more);
        program("psql", &["-AtX", "-c", query, &login]).trim().to_owned()
    }

    /// What psql says where it can't get in: its exit code is 2.
    /// What psql says when it is refused.
    fn refused(&self, address: SocketAddr, host: &str, more: &str) -> String {
        let login = self.login(address, host, more);
        let output = limited("psql").args(["-AtX", "-c", "select 1", &login]).output();
        let output = output.expect("psql");
        assert_eq!(output.status.code(), Some(2), "{login}: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// psql with a query that takes long, once the server has begun with it.
    fn sleeper(&self, address: SocketAddr, name: &str, server: &Postgres) -> Child {
        let login = self.login(address, &format!("{name}.db.test"), "sslmode=verify-full");
        let mut command = Command::new("psql");
        command.args(["-AtX", "-c", "select pg_sleep(600)", &login]);
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("psql");
        let query = "select count(*) from pg_stat_activity \
                     where state = 'active' and query = 'select pg_sleep(600)'";
        wait_until("the query runs", || {
            self.ask(server.address, "direct", "sslmode=disable", query) == "1"
        });
        child
    }
}

#[test]
fn psql_reaches_each_server_by_name_in_every_mode() {
    let world = World::new();
    for (mode, encrypted) in
        [(Mode::Passthrough, "t"), (Mode::Terminate, "f"), (Mode::Encrypt, "t")]
    {
        let address = free_address();
        let gateway = Gateway::start(&world.config(address, mode, DEFAULT));
        let query = "select current_setting('cluster_name'), ssl from pg_stat_ssl \
                     where pid = pg_backend_pid()";
        for how in ["sslmode=require", "sslmode=verify-full"] {
            for name in ["a", "b"] {
                let said = world.ask(address, &format!("{name}.db.test"), how, query);
                assert_eq!(said, format!("{name}|{encrypted}"));
            }
        }
        // Without a name: the default. It is not for names that nobody has.
        let said = world.ask(address, "a.db.test", "sslmode=require sslsni=0", query);
        assert_eq!(said, format!("b|{encrypted}"));
        let said = world.refused(address, "c.db.test", "sslmode=require");
        assert!(said.contains("unrecognized name"), "{said}");
        let said = world.refused(address, "a.db.test", "sslmode=disable");
        assert!(said.contains("FATAL") && said.contains("sslmode=require"), "{said}");
        let lines = gateway.closes(7);
        let of = |field: &str, value: &str| {
            lines.iter().filter(|line| line.text(field) == Some(value)).count()
        };
        assert_eq!((of("backend", "a"), of("backend", "b")), (2, 3));
        assert_eq!((of("reason", "unknown_server_name"), of("reason", "starttls_missing")), (1, 1));
        assert_eq!((of("server_name", "a.db.test"), of("server_name", "b.db.test")), (2, 2));
    }
}

/// SCRAM binds itself to the server's certificate where both sides of it are TLS: the gateway's
/// must be the endpoint's then, or the client must not ask for that.
#[test]
fn passwords_bound_to_the_channel() {
    let world = World::new();
    let role = "create role scram login password 'secret'";
    world.ask(world.a.address, "direct", "sslmode=disable", role);
    let own = world.certificates[0].clone();
    let other = world.pki.issue(&["a.db.test"]);
    let other = format!(
        "{{ cert = \"{}\", key = \"{}\" }}",
        world.folder.write("other.pem", &other.cert).display(),
        world.folder.write("other.key", &other.key).display()
    );
    // Without a word of it, required, and disabled.
    for (mode, certificate, lets_in) in [
        (Mode::Passthrough, &own, [true, true, true]),
        (Mode::Terminate, &own, [true, false, true]),
        (Mode::Encrypt, &own, [true, true, true]),
        (Mode::Encrypt, &other, [false, false, true]),
    ] {
        let address = free_address();
        let config = world.config(address, mode, "").replace(&own, certificate);
        let _gateway = Gateway::start(&config);
        for (binding, lets_in) in ["prefer", "require", "disable"].iter().zip(lets_in) {
            let more =
                format!("sslmode=verify-full user=scram password=secret channel_binding={binding}");
            if lets_in {
                assert_eq!(world.ask(address, "a.db.test", &more, "select 1"), "1", "{more}");
            } else {
                world.refused(address, "a.db.test", &more);
            }
        }
    }
}

/// libpq before 17 cancels without TLS: that goes to the default's server, or is refused.
#[test]
fn a_running_query_is_cancelled_where_the_default_leads() {
    let world = World::new();
    for mode in [Mode::Passthrough, Mode::Terminate, Mode::Encrypt] {
        let address = free_address();
        let gateway = Gateway::start(&world.config(address, mode, DEFAULT));
        let child = world.sleeper(address, "b", &world.b);
        // As Ctrl-C does.
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).expect("signalled");
        let output = child.wait_with_output().expect("psql");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("canceling statement due to user request"), "{said}");
        let lines = gateway.closes(2);
        assert!(lines.iter().all(|line| line.text("backend") == Some("b")), "{lines:?}");
        assert_eq!(lines.iter().filter(|line| !line.has("server_name")).count(), 1);

        gateway.reload(&world.config(address, mode, ""));
        connect(address).write_all(&CANCEL_REQUEST).expect("sent");
        assert_eq!(gateway.closes(3)[2].text("reason"), Some("starttls_cancel"));
        let query = "select pg_cancel_backend(pid) from pg_stat_activity \
                     where query = 'select pg_sleep(600)'";
        let child = world.sleeper(address, "a", &world.a);
        let said = world.ask(address, "a.db.test", "sslmode=verify-full", query);
        assert_eq!(said, "t");
        assert!(!child.wait_with_output().expect("psql").status.success());
    }
}

/// It names nobody, and need not where there is only one who can be meant.
#[test]
fn a_cancel_request_goes_where_alone_it_can_go() {
    let server = Server::tcp(|mut stream| {
        let mut heard = [0; CANCEL_REQUEST.len()];
        let whole = stream.read_exact(&mut heard).is_ok() && heard == CANCEL_REQUEST;
        let _ = stream.write_all(if whole { b"cancelled" } else { b"what?" });
    });
    let address = free_address();
    let named = |name: &str, hosts: &str| {
        route(name, "main", &[("main", 1)], &format!("hostnames = [{hosts}]"))
    };
    let one = listener("main", "TLS", address, "starttls = \"postgres\"")
        + &named("a", "\"a.db.test\", \"*.a.db.test\"")
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&one);
    let cancel = || {
        let mut stream = connect(address);
        stream.write_all(&CANCEL_REQUEST).expect("sent");
        let mut said = String::new();
        stream.read_to_string(&mut said).is_ok().then_some(said)
    };
    assert_eq!(cancel().as_deref(), Some("cancelled"));
    gateway.reload(&(one + &named("b", "\"b.db.test\"")));
    assert_eq!(cancel(), None);
    // Of two workers, whichever's line comes first.
    let closes = gateway.closes(2);
    assert!(closes.iter().any(|line| line.text("reason") == Some("starttls_cancel")), "{closes:?}");
}

/// It would reach the server without the certificate that every other client must show.
#[test]
fn who_needs_a_certificate_can_not_cancel_without() {
    let (world, address) = (World::new(), free_address());
    let config = world.config(address, Mode::Terminate, DEFAULT);
    let ends = "mode = \"Terminate\", ";
    assert!(config.contains(ends), "{config}");
    let asks = format!("{ends}client_ca = \"{}\", ", world.ca());
    let gateway = Gateway::start(&config.replace(ends, &asks));
    connect(address).write_all(&CANCEL_REQUEST).expect("sent");
    assert_eq!(gateway.closes(1)[0].text("reason"), Some("starttls_cancel"));
}

/// psql can't do that before version 17, and neither can its server: where TLS passes through,
/// OpenSSL's stands for it.
#[test]
fn clients_may_begin_with_tls() {
    let world = World::new();
    let (through, ending) = (free_address(), free_address());
    let endpoint = free_address();
    let mut command = Command::new("openssl");
    command.args(["s_server", "-quiet", "-WWW", "-key", "a.key", "-cert", "a.pem"]);
    command.args(["-alpn", "postgresql", "-accept", &endpoint.to_string()]);
    let _server = Daemon::start(endpoint, command.current_dir(world.folder.file("")));
    let config = forward("TLS", through, [endpoint], "starttls = \"postgres\"")
        + &world.config(ending, Mode::Terminate, "");
    let gateway = Gateway::start(&config);
    for address in [through, ending] {
        let command = format!(
            "printf 'GET /ca.pem HTTP/1.0\\r\\n\\r\\n' | timeout 60 openssl s_client \
             -connect {address} -CAfile {} -alpn postgresql -servername a.db.test \
             -verify_return_error -verify_hostname a.db.test 2>&1 || true",
            world.ca()
        );
        let said = program("sh", &["-c", &command]);
        assert!(said.contains("ALPN protocol: postgresql"), "{said}");
        assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
    }
    let lines = gateway.closes(2);
    let to = |line: &LogLine| line.text("backend").map(str::to_owned);
    let mut backends: Vec<_> = lines.iter().map(to).collect();
    backends.sort();
    assert_eq!(backends, [Some("a".to_owned()), Some("main".to_owned())]);
}

/// An endpoint that is asked for TLS, says `answer`, and then sends back what it is sent.
fn asked(answer: &'static [u8]) -> Server {
    Server::tcp(move |mut stream| {
        let mut request = [0; 8];
        if stream.read_exact(&mut request).is_err() || request != SSL_REQUEST {
            return;
        }
        let _ = stream.write_all(answer);
        let _ = std::io::copy(&mut stream.try_clone().expect("a socket"), &mut stream);
    })
}

fn gateway_to(server: &Server, address: SocketAddr) -> Gateway {
    Gateway::start(&forward("TLS", address, [server.address], "starttls = \"postgres\""))
}

/// Every byte in a segment of its own, and all cuts in two.
#[test]
fn requests_come_in_any_pieces() {
    let (server, address) = (asked(b"S"), free_address());
    let gateway = gateway_to(&server, address);
    let hello = client_hello(Some("a.db.test"));
    let say = |stream: &mut TcpStream, bytes: &[u8], cut: usize| {
        let (first, rest) = bytes.split_at(cut);
        stream.write_all(first).expect("sent");
        // Lets the gateway see the first piece alone, most times.
        std::thread::sleep(std::time::Duration::from_millis(2));
        stream.write_all(rest).expect("sent");
    };
    let mut byte = [0];
    for cut in 0..hello.len() {
        let mut stream = connect(address);
        stream.set_nodelay(true).expect("nodelay");
        if cut % 2 == 0 {
            say(&mut stream, &GSS_REQUEST, cut % 8);
            stream.read_exact(&mut byte).expect("an answer");
            assert_eq!(&byte, b"N");
        }
        say(&mut stream, &SSL_REQUEST, cut % 8);
        stream.read_exact(&mut byte).expect("an answer");
        assert_eq!(&byte, b"S");
        say(&mut stream, &hello, cut);
        stream.shutdown(Shutdown::Write).expect("shut down");
        let mut back = Vec::new();
        stream.read_to_end(&mut back).expect("all of it");
        assert_eq!(back, hello);
    }
    let lines = gateway.closes(hello.len());
    assert!(lines.iter().all(|line| line.text("reason") == Some("client_fin")));
    assert!(lines.iter().all(|line| line.number("bytes_up") == hello.len() as u64));
}

#[test]
fn what_breaks_the_order_is_closed() {
    let (server, address) = (asked(b"S"), free_address());
    let gateway = gateway_to(&server, address);
    let hello = client_hello(Some("a.db.test"));
    let cases: [(&[&[u8]], &str); 5] = [
        (&[&SSL_REQUEST, &hello], "starttls_early"),
        (&[&SSL_REQUEST, b"Q"], "starttls_early"),
        (&[&GSS_REQUEST, &SSL_REQUEST], "starttls_early"),
        (&[b"GET / HTTP/1.1\r\n\r\n"], "hello_invalid"),
        (&[b"\0\0\0\x08\x04\xd2\x16\x31"], "hello_invalid"),
    ];
    for (nth, (pieces, reason)) in cases.into_iter().enumerate() {
        let mut stream = connect(address);
        stream.write_all(&pieces.concat()).expect("sent");
        assert!(closed_without_a_byte(&mut stream), "{reason}");
        assert_eq!(gateway.closes(nth + 1)[nth].text("reason"), Some(reason));
    }
    assert_eq!(server.served(), 0);
}

/// In the words of its protocol, before and behind the choice of an endpoint.
#[test]
fn a_client_without_tls_is_told_why_it_is_refused() {
    let (server, address, open) = (asked(b"S"), free_address(), free_address());
    let config = forward("TLS", address, [server.address], "starttls = \"postgres\"")
        + &listener("open", "TLS", open, "starttls = \"postgres\"\nnot_tls = \"down\"")
        + &route("open", "open", &[("down", 1)], "")
        + &backend("down", [free_address()], "");
    let gateway = Gateway::start(&config);
    let cases = [(address, "C28000", "starttls_missing"), (open, "C57P03", "connect_failed")];
    for (nth, (address, code, reason)) in cases.into_iter().enumerate() {
        let mut stream = connect(address);
        stream.write_all(b"\0\0\0\x13\0\x03\0\0user\0alice\0\0").expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer and a FIN");
        let said = String::from_utf8_lossy(&answer).into_owned();
        assert!(said.starts_with('E') && said.contains(code) && said.contains(reason), "{said:?}");
        assert_eq!(gateway.closes(nth + 1)[nth].text("reason"), Some(reason));
    }
    assert_eq!(server.served(), 0);
}

#[test]
fn an_endpoint_that_does_not_grant_tls_is_not_used() {
    for answer in [&b"N"[..], b"E", b"SS", b""] {
        let (server, address) = (asked(answer), free_address());
        // The last one says nothing, and is waited for in vain.
        let config = forward("TLS", address, [server.address], "starttls = \"postgres\"")
            + "connect_timeout = \"1s\"\n";
        let gateway = Gateway::start(&config);
        let mut stream = connect(address);
        stream.write_all(&SSL_REQUEST).expect("sent");
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        stream.write_all(&client_hello(Some("a.db.test"))).expect("sent");
        // No endpoint can be had: internal_error (RFC 8446, section 6.2).
        assert_eq!(alert(&mut stream), Some(80));
        let reason = if answer.is_empty() { "connect_timeout" } else { "endpoint_starttls_failed" };
        assert!(gateway.closed_for(reason).has("detail"));
    }
}
