//! What goes by UDP, and what of it goes by TCP too.

use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

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
            socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
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

/// Debian has no server that is asked by A2S, so Teeworlds' own question stands in its place.
#[test]
fn games_of_teeworlds() {
    with_machines(|mut on| {
        for (name, address) in [("arena-1", "10.0.0.11"), ("arena-2", "10.0.0.12")] {
            let settings = format!("sv_name {name};sv_port 27015;bindaddr {address};sv_register 0");
            on.serve(&[], &["/usr/games/teeworlds-server", &settings]);
        }
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let asks = format!(
            "send_hex = \"{}\"\nexpect_hex = \"{}\"",
            hex(&teeworlds_token_request()),
            hex(&TEEWORLDS_TOKEN)
        );
        let a2s = "send_hex = \"ff ff ff ff 54 53 6f 75 72 63 65 20 45 6e 67 69 6e 65 20 51 75 65 \
                   72 79 00\"\nexpect_hex = \"ff ff ff ff\"";
        on.ringway_as("games.toml", a2s, &asks);
        let visit = || on.client.run(teeworlds_server_name);
        let arena = visit();
        assert!(arena.starts_with("arena-"), "{arena}");
        assert_eq!(visit(), arena, "a player who comes back finds the same server");
        on.checked(&[("game", 4)]);
    });
}

const TEEWORLDS_OWN: [u8; 4] = [1, 2, 3, 4];
/// How the answer to [`teeworlds_token_request`] begins; the server's token follows.
const TEEWORLDS_TOKEN: [u8; 8] = [4, 0, 0, 1, 2, 3, 4, 5];

/// Teeworlds 0.7: a control message that asks for a token and gives one. It is as long as an answer
/// could be, so that nobody is flooded through the server.
fn teeworlds_token_request() -> Vec<u8> {
    let mut request = [&[4, 0, 0, 0xff, 0xff, 0xff, 0xff, 5][..], &TEEWORLDS_OWN].concat();
    request.resize(8 + 512, 0);
    request
}

/// Asks the server behind the gateway for its name, as the list of servers in the game does.
fn teeworlds_server_name() -> String {
    let socket = udp_client(format!("{GATEWAY}:27015").parse().expect("an address"));
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let mut bytes = [0; 1_500];
    wait_until("the server gives a token", || {
        socket.send(&teeworlds_token_request()).expect("sent");
        socket.recv(&mut bytes).is_ok_and(|len| len == 12 && bytes[..8] == TEEWORLDS_TOKEN)
    });
    let question = [&[0x21][..], &bytes[8..12], &TEEWORLDS_OWN, b"\xff\xff\xff\xffgie3\x07"];
    socket.send(&question.concat()).expect("sent");
    let len = socket.recv(&mut bytes).expect("what the server is");
    let answer = bytes[..len].strip_prefix(&[0x21]).expect("a message without a connection");
    let told = answer[8..].strip_prefix(b"\xff\xff\xff\xffinf3\x07").expect("what was asked");
    let name = told.split(|byte| *byte == 0).nth(1).expect("a name behind the version");
    String::from_utf8_lossy(name).into_owned()
}

/// WireGuard's own program, which needs no module of the kernel. Each server is a machine of its
/// own, because it listens on all addresses. The first one goes, and the peer's tunnel goes on
/// with the second one, by itself.
#[test]
fn wireguard_tunnels() {
    with_machines(|mut on| {
        let [server, peer] = ["server", "peer"].map(|name| {
            let key = program("wg", &["genkey"]);
            let secret = on.write(name, &key);
            let public = program("sh", &["-c", "wg pubkey < \"$0\"", &secret]);
            (secret, public.trim().to_owned())
        });
        on.servers.run(|| drop(program("ip", &["address", "flush", "dev", "eth0"])));
        let within: SocketAddr = ([10, 9, 0, 1], 7).into();
        let machines = [("ringway-1", "10.0.0.11/24"), ("ringway-2", "10.0.0.12/24")];
        let servers = machines.map(|(name, address)| {
            let machine = Namespace::new();
            machine.plug("br0", name, "eth0", address);
            let here = ["10.9.0.1/24", "listen-port", "51820"];
            let tunnel = tunnel(&machine, name, &server.0, here, &[&peer.1, "10.9.0.2/32"]);
            let echoes = machine.run(move || {
                let ssh = address.replace("/24", ":22").parse().expect("an address");
                [ssh, within].map(|at| Server::tcp_at(at, echo))
            });
            (machine, tunnel, echoes)
        });
        on.ringway("wireguard.toml");
        let to = ["10.9.0.1/32", "endpoint", "10.0.0.2:51820"];
        let here = ["10.9.0.2/24", "listen-port", "0"];
        let to = [&[server.1.as_str()][..], &to].concat();
        let _client = tunnel(&on.client, "ringway-c", &peer.0, here, &to);
        let through = || {
            let answer = on.client.run(move || exchange(within, b"through the tunnel"));
            assert_eq!(answer.expect("an echo"), b"through the tunnel");
        };
        through();
        let [(first, _, [_, of_first]), (.., [_, of_second])] = &servers;
        assert_eq!((of_first.served(), of_second.served()), (1, 0));
        first.run(|| drop(program("ip", &["link", "set", "eth0", "down"])));
        // Ringway notices within some seconds, and the peer shakes hands again after 15 s.
        let within_a_second =
            move || TcpStream::connect_timeout(&within, Duration::from_secs(1)).is_ok();
        wait_until("the second server answers", || on.client.run(within_a_second));
        through();
        assert_eq!(of_first.served(), 1);
        assert!(of_second.served() >= 2);
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
