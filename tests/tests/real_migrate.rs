//! `ringway migrate`: HAProxy and nginx run their own configuration, and Ringway runs beside them
//! what it comes to. The same clients get the same answers.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Output};
use std::time::Duration;

use ringway_tests::pki::Pki;
use ringway_tests::real::{
    Daemon, Folder, Launch, Server, binary, client_hello, free_address, limited, udp_client,
    wait_until,
};

/// Says its name and how what it got begins, and waits for the client's end.
fn tagged(tag: &'static str) -> Server {
    Server::tcp(move |mut stream| {
        let mut bytes = [0; 4_096];
        let len = stream.read(&mut bytes).unwrap_or(0);
        let kind = match &bytes[..len] {
            got if got.starts_with(b"PROXY TCP4 127.0.0.1 ") => "v1",
            got if got.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21\x11") => "v2",
            [22, ..] => "hello",
            [b'x', ..] => "plain",
            _ => "else",
        };
        let _ = stream.write_all(format!("{tag} {kind}").as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
        while stream.read(&mut bytes).is_ok_and(|len| len > 0) {}
    })
}

/// The whole answer; nothing if there is none.
fn ask(address: SocketAddr, bytes: &[u8]) -> String {
    let mut answer = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let _ = stream.write_all(bytes);
        let _ = stream.read_to_end(&mut answer);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// How often each answer came.
fn count(address: SocketAddr, times: usize) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for _ in 0..times {
        *all.entry(ask(address, b"x")).or_default() += 1;
    }
    all
}

/// Where the original listens, and where Ringway does.
struct Ports(Vec<(SocketAddr, SocketAddr)>);

impl Ports {
    fn new(count: usize) -> Self {
        Self((0..count).map(|_| (free_address(), free_address())).collect())
    }

    fn moved(&self, toml: &str) -> String {
        self.0.iter().fold(toml.to_owned(), |toml, (from, to)| {
            toml.replace(&format!("\"{from}\""), &format!("\"{to}\""))
        })
    }

    /// Asks both, and expects the same.
    fn same(&self, nth: usize, bytes: &[u8], expected: &str) {
        let (original, own) = self.0[nth];
        let answers = [original, own].map(|address| ask(address, bytes));
        assert_eq!(answers, [expected, expected], "{nth}");
    }
}

fn migrate(file: &std::path::Path) -> Output {
    limited(binary()).arg("migrate").arg(file).output().expect("it runs")
}

/// What the file comes to. Nothing is lost.
fn migrated(file: &std::path::Path) -> String {
    let output = migrate(file);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn haproxy_and_ringway_answer_alike() {
    let folder = Folder::new();
    let pki = Pki::new();
    let issued = pki.issue(&["mqtt.example.com"]);
    let pem = folder.write("site.pem", &(issued.cert + &issued.key));
    let servers = ["a", "b", "one", "two", "header"].map(tagged);
    let [a, b, one, two, header] = servers.each_ref().map(|server| server.address);
    let (dead, ports) = (free_address(), Ports::new(7));
    let at = |nth: usize| ports.0[nth].0;
    let text = format!(
        "defaults\n mode tcp\n timeout connect 2s\n timeout client 10s\n timeout server 10s\n\
         frontend plain\n bind {plain}\n default_backend tags\n\
         frontend sni\n bind {sni}\n tcp-request inspect-delay 1s\n \
         tcp-request content accept if {{ req.ssl_hello_type 1 }}\n \
         use_backend one if {{ req.ssl_sni -i one.example.com }}\n \
         use_backend two if {{ req.ssl_sni -m end .example.org }}\n default_backend tag\n\
         frontend closed\n bind {closed}\n \
         tcp-request connection reject if {{ src 127.0.0.0/8 }}\n default_backend tag\n\
         frontend sources\n bind {sources}\n use_backend one if {{ src 127.0.0.0/8 }}\n \
         default_backend tag\n\
         frontend proxied\n bind {proxied} accept-proxy\n default_backend header\n\
         listen backup\n bind {backup}\n server dead {dead} check inter 200ms\n \
         server alive {b} check inter 200ms backup\n\
         frontend tls\n bind {tls} ssl crt {pem}\n default_backend one\n\
         backend tags\n balance roundrobin\n server a {a} weight 3\n server b {b}\n\
         backend tag\n server a {a}\n\
         backend one\n server one {one}\n\
         backend two\n server two {two} send-proxy-v2\n\
         backend header\n server header {header} send-proxy\n",
        plain = at(0),
        sni = at(1),
        closed = at(2),
        sources = at(3),
        proxied = at(4),
        backup = at(5),
        tls = at(6),
        pem = pem.display(),
    );
    let file = folder.write("haproxy.cfg", &text);
    let config = ports.moved(&migrated(&file));
    let mut haproxy = Command::new("/usr/sbin/haproxy");
    let _haproxy = Daemon::start(at(0), haproxy.arg("-db").arg("-f").arg(&file));
    let _gateway = Launch::default().one_worker().start(&config);

    let (original, own) = ports.0[0];
    assert_eq!(count(original, 8), count(own, 8));
    let hello = |name| client_hello(Some(name));
    ports.same(1, &hello("ONE.example.com"), "one hello");
    ports.same(1, &hello("x.y.example.org"), "two v2");
    ports.same(1, &hello("else.example.net"), "a hello");
    ports.same(1, &client_hello(None), "a hello");
    ports.same(1, b"x", "a plain");
    ports.same(2, b"x", "");
    ports.same(3, b"x", "one plain");
    ports.same(4, b"PROXY TCP4 127.0.0.1 127.0.0.2 5 6\r\nx", "header v1");
    for address in [ports.0[5].0, ports.0[5].1] {
        wait_until("the backup serves", || ask(address, b"x") == "b plain");
    }
    for address in [ports.0[6].0, ports.0[6].1] {
        assert_eq!(ask_by_tls(&folder, &pki, address), "one plain");
    }
}

#[test]
fn nginx_and_ringway_answer_alike() {
    let folder = Folder::new();
    let servers = ["a", "b", "one", "two"].map(tagged);
    let [a, b, one, two] = servers.each_ref().map(|server| server.address);
    let datagrams = Server::udp_tag("datagram");
    let (dead, ports) = (free_address(), Ports::new(6));
    let at = |nth: usize| ports.0[nth].0;
    let text = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\n\
         worker_processes 1;\npid {pid};\nerror_log /dev/null;\nevents {{}}\nstream {{\n\
         upstream tags {{ server {a} weight=3; server {b}; }}\n\
         upstream one {{ server {one}; }}\n\
         upstream failing {{ server {dead} max_fails=1 fail_timeout=30s; \
         server {b} max_fails=1 fail_timeout=30s; }}\n\
         map $ssl_preread_server_name $name {{ hostnames; one.example.com one; \
         *.example.org {two}; default {a}; }}\n\
         server {{ listen {plain}; proxy_pass tags; }}\n\
         server {{ listen {sni}; ssl_preread on; proxy_pass $name; }}\n\
         server {{ listen {closed}; allow 127.0.0.2; deny all; proxy_pass one; }}\n\
         server {{ listen {header}; proxy_protocol on; proxy_pass one; }}\n\
         server {{ listen {failing}; proxy_connect_timeout 1s; proxy_pass failing; }}\n\
         server {{ listen {udp} udp; proxy_responses 1; proxy_timeout 5s; \
         proxy_pass {to}; }}\n}}\n",
        pid = folder.file("nginx.pid").display(),
        plain = at(0),
        sni = at(1),
        closed = at(2),
        header = at(3),
        failing = at(4),
        udp = at(5),
        to = datagrams.address,
    );
    let file = folder.write("nginx.conf", &text);
    let config = ports.moved(&migrated(&file));
    let mut nginx = Command::new("/usr/sbin/nginx");
    let _nginx = Daemon::start(at(0), nginx.arg("-c").arg(&file));
    let _gateway = Launch::default().one_worker().start(&config);

    let (original, own) = ports.0[0];
    // The start of nginx was waited for by a connection.
    let [of_nginx, of_ringway] = [original, own].map(|address| count(address, 8));
    assert_eq!(of_nginx, of_ringway);
    let hello = |name| client_hello(Some(name));
    ports.same(1, &hello("one.example.com"), "one hello");
    ports.same(1, &hello("x.example.org"), "two hello");
    ports.same(1, &hello("else.example.net"), "a hello");
    ports.same(1, &client_hello(None), "a hello");
    ports.same(1, b"xxxxx", "a plain");
    ports.same(2, b"x", "");
    ports.same(3, b"x", "one v1");
    for _ in 0..4 {
        ports.same(4, b"x", "b plain");
    }
    for address in [ports.0[5].0, ports.0[5].1] {
        let client = udp_client(address);
        client.send(b"x").expect("sent");
        let mut answer = [0; 64];
        let len = client.recv(&mut answer).expect("an answer");
        assert_eq!(&answer[..len], b"datagram");
    }
}

/// A verb for people: what is lost is told with file and line, and the exit code says so.
#[test]
fn losses_have_a_place_and_an_exit_code() {
    let folder = Folder::new();
    let file =
        folder.write("haproxy.cfg", "listen a\n bind :80\n balance first\n server a 10.0.0.1:1\n");
    let output = migrate(&file);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let place = format!("{}:3: balance first: ", file.display());
    assert!(said.starts_with(&place), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"10.0.0.1:1\""));
    let none = folder.write("notes.txt", "hello\n");
    assert_eq!(migrate(&none).status.code(), Some(1));
    assert_eq!(migrate(&folder.file("missing")).status.code(), Some(1));
}

fn ask_by_tls(folder: &Folder, pki: &Pki, address: SocketAddr) -> String {
    let ca = folder.write("ca.pem", &pki.ca());
    let script = format!(
        "printf x | openssl s_client -connect {address} -servername mqtt.example.com -CAfile {} \
         -verify_return_error -quiet 2>/dev/null",
        ca.display()
    );
    let output = limited("sh").args(["-c", &script]).output().expect("it runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
