//! `ringway migrate`: HAProxy, nginx and Traefik run their own configuration, and Ringway runs
//! beside them what it comes to. The same clients get the same answers. ingress-nginx needs a
//! cluster: in its place stands nginx with the configuration that its controller writes.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
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
fn count(address: SocketAddr, times: usize, bytes: &[u8]) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for _ in 0..times {
        *all.entry(ask(address, bytes)).or_default() += 1;
    }
    all
}

/// The answer to a datagram; nothing if there is none.
fn ask_by_datagram(address: SocketAddr) -> String {
    let client = udp_client(address);
    let mut answer = [0; 64];
    let len = client.send(b"x").and_then(|_| client.recv(&mut answer)).unwrap_or(0);
    String::from_utf8_lossy(&answer[..len]).into_owned()
}

/// Where the original listens, and where Ringway does.
struct Ports(Vec<(SocketAddr, SocketAddr)>);

impl Ports {
    fn new(count: usize) -> Self {
        Self((0..count).map(|_| (free_address(), free_address())).collect())
    }

    fn moved(&self, toml: &str) -> String {
        self.0.iter().fold(toml.to_owned(), |toml, (from, to)| {
            toml.replace(&format!(":{}\"", from.port()), &format!(":{}\"", to.port()))
        })
    }

    /// Asks both, and expects the same.
    fn same(&self, nth: usize, bytes: &[u8], expected: &str) {
        let (original, own) = self.0[nth];
        let answers = [original, own].map(|address| ask(address, bytes));
        assert_eq!(answers, [expected, expected], "{nth}");
    }

    /// Asks both so many times, and expects that all servers answer both alike.
    fn same_shares(&self, nth: usize, times: usize, bytes: &[u8], shares: &[(&str, usize)]) {
        let (original, own) = self.0[nth];
        let shares: BTreeMap<_, _> =
            shares.iter().map(|(answer, times)| ((*answer).to_owned(), *times)).collect();
        assert_eq!(count(original, times, bytes), shares, "{nth}");
        assert_eq!(count(own, times, bytes), shares, "{nth}");
    }
}

fn migrate(files: &[&Path]) -> Output {
    limited(binary()).arg("migrate").args(files).output().expect("it runs")
}

/// What the files come to. Nothing is lost.
fn migrated(files: &[&Path]) -> String {
    let output = migrate(files);
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
    let config = ports.moved(&migrated(&[&file]));
    let mut haproxy = Command::new("/usr/sbin/haproxy");
    let _haproxy = Daemon::start(at(0), haproxy.arg("-db").arg("-f").arg(&file));
    let _gateway = Launch::default().one_worker().start(&config);

    ports.same_shares(0, 8, b"x", &[("a plain", 6), ("b plain", 2)]);
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
    let config = ports.moved(&migrated(&[&file]));
    let mut nginx = Command::new("/usr/sbin/nginx");
    let _nginx = Daemon::start(at(0), nginx.arg("-c").arg(&file));
    let _gateway = Launch::default().one_worker().start(&config);

    ports.same_shares(0, 8, b"x", &[("a plain", 6), ("b plain", 2)]);
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
        assert_eq!(ask_by_datagram(address), "datagram");
    }
}

/// The controller of ingress-nginx writes this nginx.conf from the ConfigMaps, but for the list of
/// Pods, which it keeps in Lua and leads clients to in turn.
#[test]
fn nginx_as_ingress_nginx_writes_it_and_ringway_answer_alike() {
    let folder = Folder::new();
    let servers = ["a", "b"].map(tagged);
    let [a, b] = servers.each_ref().map(|server| server.address);
    let datagrams = Server::udp_tag("datagram");
    let ports = Ports::new(5);
    let [plain, inward, outward, through, udp] = [0, 1, 2, 3, 4].map(|nth| ports.0[nth].0.port());
    let maps = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: tcp-services}}\ndata:\n  \
         {plain}: default/echo:80\n  {inward}: default/echo:80:PROXY\n  \
         {outward}: default/echo:80::PROXY\n  {through}: default/echo:80:PROXY:PROXY\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: udp-services}}\ndata:\n  \
         {udp}: default/dns:53\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ingress-nginx-controller}}\ndata:\n  \
         enable-real-ip: \"true\"\n  proxy-real-ip-cidr: 127.0.0.0/8\n"
    );
    let server = |port: u16, kind: &str, rest: &str| {
        format!(
            "server {{ listen {port}{kind}; listen [::]:{port}{kind}; proxy_timeout 600s; \
             proxy_next_upstream on; proxy_next_upstream_timeout 600s; \
             proxy_next_upstream_tries 3; {rest} }}\n"
        )
    };
    let text = [
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\n\
         worker_processes 1;\nerror_log /dev/null;\nevents {}\n",
        &format!("pid {};\nstream {{\n", folder.file("nginx.pid").display()),
        &format!("upstream echo {{ server {a}; server {b}; }}\n"),
        &format!("upstream dns {{ server {}; }}\n", datagrams.address),
        "set_real_ip_from 127.0.0.0/8;\n",
        &server(plain, "", "proxy_pass echo;"),
        &server(inward, " proxy_protocol", "proxy_pass echo;"),
        &server(outward, "", "proxy_pass echo; proxy_protocol on;"),
        &server(through, " proxy_protocol", "proxy_pass echo; proxy_protocol on;"),
        &server(udp, " udp", "proxy_responses 1; proxy_pass dns;"),
        "}\n",
    ];
    let (file, original) =
        (folder.write("maps.yaml", &maps), folder.write("nginx.conf", &text.concat()));
    let config = ports.moved(&migrated(&[&file]));
    // There is no cluster whose DNS knows the Services.
    let config = config.replace("\"echo.default.svc:80\"", &format!("\"{a}\", \"{b}\""));
    let dns = format!("\"{}\"", datagrams.address);
    let config = config.replace("\"dns.default.svc:53\"", &dns);
    let mut nginx = Command::new("/usr/sbin/nginx");
    let _nginx = Daemon::start(ports.0[0].0, nginx.arg("-c").arg(&original));
    let _gateway = Launch::default().one_worker().start(&config);

    let header = b"PROXY TCP4 127.0.0.1 127.0.0.2 5 6\r\nx";
    ports.same_shares(0, 4, b"x", &[("a plain", 2), ("b plain", 2)]);
    ports.same_shares(1, 4, header, &[("a plain", 2), ("b plain", 2)]);
    ports.same_shares(2, 4, b"x", &[("a v1", 2), ("b v1", 2)]);
    ports.same_shares(3, 4, header, &[("a v1", 2), ("b v1", 2)]);
    for address in [ports.0[4].0, ports.0[4].1] {
        assert_eq!(ask_by_datagram(address), "datagram");
    }
}

/// The servers that Traefik's files name.
struct OfTraefik {
    tagged: [Server; 5],
    dead: SocketAddr,
    datagrams: Server,
}

impl OfTraefik {
    const POINTS: [&str; 8] =
        ["plain", "sni", "closed", "sources", "proxied", "tls", "checked", "udp"];

    /// The static configuration.
    fn points(ports: &Ports, dynamic: &Path) -> String {
        let head = format!(
            "global: {{checkNewVersion: false, sendAnonymousUsage: false}}\n\
             providers: {{file: {{filename: {}}}}}\nentryPoints:\n",
            dynamic.display()
        );
        let point = |(name, (at, _)): (&str, &(SocketAddr, SocketAddr))| match name {
            "udp" => format!("  {name}: {{address: \"{at}/udp\"}}\n"),
            "proxied" => {
                let trusted = "proxyProtocol: {trustedIPs: [127.0.0.0/8]}";
                format!("  {name}: {{address: \"{at}\", {trusted}}}\n")
            }
            _ => format!("  {name}: {{address: \"{at}\"}}\n"),
        };
        head + &Self::POINTS.into_iter().zip(&ports.0).map(point).collect::<String>()
    }

    /// What the file provider reads: routers, services, a certificate.
    fn dynamic(&self, pem: &Path) -> String {
        let router = |name: &str, point: &str, rule: &str, service: &str, rest: &str| {
            let points = format!("entryPoints: [{point}]");
            format!("    {name}: {{{points}, rule: \"{rule}\", service: {service}{rest}}}\n")
        };
        let service = |name: &str, server: SocketAddr, rest: &str| {
            let servers = format!("servers: [{{address: \"{server}\"}}]");
            format!("    {name}: {{loadBalancer: {{{servers}{rest}}}}}\n")
        };
        let [a, b, one, two, header] = self.tagged.each_ref().map(|server| server.address);
        let (pass, all) = (", tls: {passthrough: true}", "HostSNI(`*`)");
        [
            "tcp:\n  routers:\n",
            &router("plain", "plain", all, "tags", ""),
            &router("one", "sni", "HostSNI(`one.example.com`)", "one", pass),
            &router("two", "sni", "HostSNI(`two.example.org`)", "two", pass),
            &router("others", "sni", all, "a", pass),
            &router("no-tls", "sni", all, "b", ""),
            &router("closed", "closed", all, "a", ", middlewares: [far]"),
            &router("near", "sources", "HostSNI(`*`) && ClientIP(`127.0.0.0/8`)", "one", ""),
            &router("far", "sources", all, "a", ""),
            &router("proxied", "proxied", all, "header", ""),
            &router("tls", "tls", "HostSNI(`mqtt.example.com`)", "one", ", tls: {}"),
            &router("checked", "checked", all, "checked", ""),
            "  middlewares:\n    far: {ipAllowList: {sourceRange: [192.0.2.0/24]}}\n",
            "  services:\n",
            "    tags: {weighted: {services: [{name: a, weight: 3}, {name: b, weight: 1}]}}\n",
            &service("a", a, ""),
            &service("b", b, ""),
            &service("one", one, ""),
            &service("two", two, ", proxyProtocol: {version: 2}"),
            &service("header", header, ", proxyProtocol: {version: 1}"),
            &format!(
                "    checked: {{loadBalancer: {{servers: [{{address: \"{}\"}}, \
                 {{address: \"{b}\"}}], healthCheck: {{interval: 1s, timeout: 1s}}}}}}\n",
                self.dead
            ),
            "udp:\n  routers:\n    udp: {entryPoints: [udp], service: datagrams}\n  services:\n",
            &service("datagrams", self.datagrams.address, ""),
            &format!("tls: {{certificates: [{{certFile: {0}, keyFile: {0}}}]}}\n", pem.display()),
        ]
        .concat()
    }
}

/// `TRAEFIK_BIN` names the program.
#[test]
#[ignore = "no package has Traefik, and its build takes minutes"]
fn traefik_and_ringway_answer_alike() {
    let folder = Folder::new();
    let pki = Pki::new();
    let issued = pki.issue(&["mqtt.example.com"]);
    let pem = folder.write("site.pem", &(issued.cert + &issued.key));
    let servers = OfTraefik {
        tagged: ["a", "b", "one", "two", "header"].map(tagged),
        dead: free_address(),
        datagrams: Server::udp_tag("datagram"),
    };
    let ports = Ports::new(OfTraefik::POINTS.len());
    let dynamic = folder.write("dynamic.yaml", &servers.dynamic(&pem));
    let points = folder.write("static.yaml", &OfTraefik::points(&ports, &dynamic));
    let config = ports.moved(&migrated(&[&dynamic, &points]));
    let mut traefik = Command::new(std::env::var_os("TRAEFIK_BIN").expect("TRAEFIK_BIN"));
    let traefik = traefik.arg(format!("--configFile={}", points.display()));
    let _traefik = Daemon::start(ports.0[0].0, traefik);
    let _gateway = Launch::default().one_worker().start(&config);

    // Traefik listens before it knows its routers.
    wait_until("Traefik has its routers", || ask(ports.0[0].0, b"x").ends_with(" plain"));
    wait_until("Traefik has its UDP router", || ask_by_datagram(ports.0[7].0) == "datagram");
    ports.same_shares(0, 8, b"x", &[("a plain", 6), ("b plain", 2)]);
    let hello = |name| client_hello(Some(name));
    ports.same(1, &hello("one.example.com"), "one hello");
    ports.same(1, &hello("two.example.org"), "two v2");
    ports.same(1, &hello("else.example.net"), "a hello");
    ports.same(1, &client_hello(None), "a hello");
    ports.same(1, b"x", "b plain");
    ports.same(2, b"x", "");
    ports.same(3, b"x", "one plain");
    ports.same(4, b"PROXY TCP4 127.0.0.1 127.0.0.2 5 6\r\nx", "header v1");
    for address in [ports.0[5].0, ports.0[5].1] {
        assert_eq!(ask_by_tls(&folder, &pki, address), "one plain");
    }
    for address in [ports.0[6].0, ports.0[6].1] {
        let alive = || (0..4).all(|_| ask(address, b"x") == "b plain");
        wait_until("the dead server has no client", alive);
    }
    assert_eq!(ask_by_datagram(ports.0[7].1), "datagram");
}

/// A verb for people: what is lost is told with file and line, and the exit code says so.
#[test]
fn losses_have_a_place_and_an_exit_code() {
    let folder = Folder::new();
    let file =
        folder.write("haproxy.cfg", "listen a\n bind :80\n balance first\n server a 10.0.0.1:1\n");
    let output = migrate(&[&file]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let place = format!("{}:3: balance first: ", file.display());
    assert!(said.starts_with(&place), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"10.0.0.1:1\""));
    let none = folder.write("notes.txt", "hello\n");
    assert_eq!(migrate(&[&none]).status.code(), Some(1));
    assert_eq!(migrate(&[&folder.file("missing")]).status.code(), Some(1));
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
