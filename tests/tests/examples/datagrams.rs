//! What goes by UDP, and what of it goes by TCP too.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use ringway_tests::real::{
    Daemon, Namespace, Server, echo, exchange, program, udp_client, wait_until,
};

use crate::{GATEWAY, Running, with_machines};

#[test]
fn dns_to_nsd() {
    with_machines(|mut on| {
        let own = on.file("");
        on.write(
            "zone",
            "$ORIGIN example.com.\n@ 60 SOA ns admin 1 60 60 60 60\n@ 60 NS ns\n\
             ns 60 A 10.0.0.53\nwww 60 A 192.0.2.80\n",
        );
        let conf = format!(
            "server:\n  ip-address: 10.0.0.53\n  ip-address: 10.0.1.53\n  username: \"\"\n  \
             zonesdir: \"{own}\"\n  database: \"\"\n  pidfile: \"\"\n  xfrdfile: \"\"\n  \
             xfrdir: \"{own}\"\n  zonelistfile: \"{own}/zones\"\n  server-count: 1\n\
             remote-control:\n  control-enable: no\nzone:\n  name: example.com\n  \
             zonefile: zone\n"
        );
        let conf = on.write("nsd.conf", &conf);
        on.serve(&["10.0.0.53:53", "10.0.1.53:53"], &["nsd", "-d", "-c", &conf]);
        on.ringway("dns.toml");
        let at = format!("@{GATEWAY}");
        for transport in ["+notcp", "+tcp"] {
            let dig = ["dig", &at, "+short", "+tries=3", transport, "www.example.com"];
            assert_eq!(on.client(&dig), "192.0.2.80\n", "{transport}");
        }
        on.checked(&[("dns", 2), ("dns-tcp", 2)]);
    });
}

/// A registrar for phones, and a media server that sends back what it hears.
#[test]
fn sip_to_kamailio() {
    with_machines(|mut on| {
        let conf = on.write("kamailio.cfg", KAMAILIO);
        let listens = ["10.0.0.11:5060", "10.0.0.12:5060"];
        let own = on.file("");
        let words = ["kamailio", "-DD", "-E", "-Y", &own, "-m", "32", "-M", "4", "-f", &conf];
        on.serve(&listens, &words);
        let media = ["sipp", "-sn", "uas", "-nostdin", "-rtp_echo", "-i", "10.0.0.21"];
        let ports = ["-mi", "10.0.0.21", "-mp", "20000", "-p", "5060"];
        on.serve(&[], &[&["env", "TERM=dumb"][..], &media, &ports].concat());
        on.ringway("sip.toml");
        let phone = format!("sip:alice@{GATEWAY}:5060");
        for transport in ["udp", "tcp"] {
            let register = ["sipsak", "-E", transport, "-U", "-C", "sip:alice@10.0.0.9"];
            on.client(&[&register[..], &["-s", &phone]].concat());
            // OPTIONS, as a phone's keepalive.
            on.client(&["sipsak", "-E", transport, "-s", &phone]);
        }
        let heard = on.client.run(|| {
            let media: SocketAddr = format!("{GATEWAY}:20000").parse().expect("an address");
            let socket = udp_client(media);
            socket
                .set_read_timeout(Some(std::time::Duration::from_millis(200)))
                .expect("a timeout");
            // A packet of RTP with 20 ms of silence.
            let packet = [&[0x80, 0, 0, 1, 0, 0, 0, 160, 1, 2, 3, 4][..], &[0xff; 160]].concat();
            let mut bytes = [0; 1_024];
            wait_until("the media server listens", || {
                socket.send(&packet).expect("sent");
                socket.recv(&mut bytes).is_ok_and(|len| bytes[..len] == packet)
            });
            packet.len()
        });
        assert_eq!(heard, 172);
        on.checked(&[("registrars", 2), ("registrars-tcp", 2)]);
    });
}

const KAMAILIO: &str = r#"
debug=0
log_stderror=yes
fork=yes
children=1
tcp_children=1
auto_aliases=no
listen=udp:10.0.0.11:5060
listen=udp:10.0.0.12:5060
listen=tcp:10.0.0.11:5060
listen=tcp:10.0.0.12:5060
loadmodule "sl.so"
loadmodule "pv.so"
loadmodule "usrloc.so"
loadmodule "registrar.so"
request_route {
    if (method == "OPTIONS") { sl_send_reply("200", "OK"); exit; }
    if (method == "REGISTER") { save("location"); exit; }
    sl_send_reply("404", "Not here");
}
"#;

/// The servers end TLS themselves: QUIC by UDP, and HTTPS by TCP.
#[test]
fn quic_and_https_to_servers_of_their_own() {
    with_machines(|mut on| {
        on.certificate(&["www.example.com"]);
        let (cert, key) = (on.file("server.pem"), on.file("server.key"));
        on.write("index.html", "Through the gateway.\n");
        let own = on.file("");
        let mut conf = format!(
            "daemon off;\nuser root;\npid {own}nginx.pid;\nerror_log {own}nginx.log;\n\
             events {{}}\nhttp {{\n access_log off;\n"
        );
        for at in ["10.0.0.11", "10.0.0.12"] {
            conf += &format!(
                "server {{ listen {at}:443 ssl http2; ssl_certificate {cert};\n \
                 ssl_certificate_key {key}; root {own}; }}\n"
            );
            on.serve(&[], &["gtlsserver", "-q", "-d", &own, at, "443", &key, &cert]);
        }
        let conf = on.write("nginx.conf", &(conf + "}\n"));
        on.serve(&["10.0.0.11:443", "10.0.0.12:443"], &["nginx", "-c", &conf]);
        on.ringway("quic.toml");
        let ca = on.file("ca.pem");
        let name = format!("www.example.com:443:{GATEWAY}");
        let url = "https://www.example.com/index.html";
        let said = on.client(&["curl", "-sS", "--cacert", &ca, "--resolve", &name, url]);
        assert_eq!(said, "Through the gateway.\n");
        let got = on.file("got");
        std::fs::create_dir(&got).expect("a directory");
        on.client(&[
            "gtlsclient",
            "-q",
            "--exit-on-all-streams-close",
            "--download",
            &got,
            GATEWAY,
            "443",
            url,
        ]);
        assert_eq!(on.read("got/index.html"), "Through the gateway.\n");
        on.checked(&[("quic", 2), ("https", 2)]);
    });
}

/// WireGuard's own program, which needs no module of the kernel. Each server is a machine of its
/// own, because it listens on all addresses.
#[test]
fn wireguard_tunnels() {
    with_machines(|mut on| {
        let [server, peer] = ["server", "peer"].map(|name| {
            let key = program("wg", &["genkey"]);
            let secret = on.write(name, &key);
            let public = program("sh", &["-c", "wg pubkey < \"$0\"", &secret]);
            (secret, public.trim().to_owned())
        });
        // The first server, on a machine of its own. The other one is down: no SSH answers there.
        let machine = Namespace::new();
        on.servers.run(|| drop(program("ip", &["address", "flush", "dev", "eth0"])));
        machine.plug("br0", "wireguard", "eth0", "10.0.0.11/24");
        let _ssh = machine.run(|| Server::tcp_at(([10, 0, 0, 11], 22).into(), echo));
        let here = ["10.9.0.1/24", "listen-port", "51820"];
        let _server = tunnel(&machine, "ringway-s", &server.0, here, &[&peer.1, "10.9.0.2/32"]);
        on.ringway("wireguard.toml");
        let to = ["10.9.0.1/32", "endpoint", "10.0.0.2:51820"];
        let here = ["10.9.0.2/24", "listen-port", "0"];
        let to = [&[server.1.as_str()][..], &to].concat();
        let _client = tunnel(&on.client, "ringway-c", &peer.0, here, &to);
        let to: SocketAddr = ([10, 9, 0, 1], 7).into();
        let _echo = machine.run(move || Server::tcp_at(to, echo));
        let answer = on.client.run(move || exchange(to, b"through the tunnel").expect("an echo"));
        assert_eq!(answer, b"through the tunnel");
    });
}

/// An interface of WireGuard with an address and a port, and its peer: public key, allowed
/// addresses, and further settings.
fn tunnel(
    on: &Namespace,
    name: &'static str,
    secret: &str,
    own: [&str; 3],
    peer: &[&str],
) -> Running {
    let [address, port @ ..] = own.map(str::to_owned);
    let secret = secret.to_owned();
    let peer: Vec<_> = peer.iter().map(ToString::to_string).collect();
    on.run(move || {
        let daemon = Daemon::spawn(Command::new("wireguard-go").args(["--foreground", name]));
        let set = |words: &[&str]| {
            let words = [&["set", name][..], words].concat();
            Command::new("wg").args(words).stderr(Stdio::null()).status().expect("wg").success()
        };
        wait_until("WireGuard takes its key", || {
            set(&["private-key", &secret, &port[0], &port[1]])
        });
        let peer: Vec<_> = peer.iter().map(String::as_str).collect();
        let words = [&["peer", peer[0], "allowed-ips"][..], &peer[1..]].concat();
        assert!(set(&words), "{words:?}");
        program("ip", &["address", "add", &address, "dev", name]);
        program("ip", &["link", "set", name, "up"]);
        Running(daemon)
    })
}
