//! UDP and DNS.

use std::net::SocketAddr;
use std::net::UdpSocket;
use std::process::Command;

use ringway_tests::real::{Daemon, Folder, Server, free_address};

use crate::{case, check, closing, in_pieces, judge, silent};

/// An address where nothing listens for UDP.
pub fn nothing() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("its address")
}

#[test]
fn udp_servers_that_answer_or_say_nothing() {
    let pong = Server::udp_tag("pong");
    let mute = Server::udp(|_, _, _| {});
    let gone = nothing();
    let udp = |keys: &str| check(&format!("type = \"udp\", send = \"ping\"{keys}"));
    judge(&[
        case(pong.address, udp(""), None),
        case(pong.address, udp(", expect = \"pong\""), None),
        case(pong.address, udp(", expect_regex = \"^x\""), Some("but is \"pong\"")),
        case(mute.address, udp(""), None),
        case(mute.address, udp(", silence = \"down\""), Some("no answer within 500 ms")),
        case(mute.address, udp(", expect = \"pong\""), Some("no answer within 500 ms")),
        case(gone, udp(""), Some("Connection refused")),
    ]);
}

#[test]
fn dns_servers_that_know_the_name_and_others() {
    let (folder, address) = (Folder::new(), free_address());
    let zone = folder.write(
        "zone",
        "@ 60 SOA ns admin 1 60 60 60 60\n@ 60 NS ns\nns 60 A 127.0.0.1\ndb 60 A 10.0.0.1\n",
    );
    let conf = format!(
        "server:\n  ip-address: 127.0.0.1\n  port: {}\n  username: \"\"\n  chroot: \"\"\n  \
         database: \"\"\n  zonesdir: \"{dir}\"\n  pidfile: \"\"\n  xfrdfile: \"\"\n  \
         xfrdir: \"{dir}\"\n  zonelistfile: \"{dir}/list\"\nremote-control:\n  \
         control-enable: no\nzone:\n  name: example.com\n  zonefile: \"{}\"\n",
        address.port(),
        zone.display(),
        dir = folder.file("").display(),
    );
    let conf = folder.write("nsd.conf", &conf).display().to_string();
    let _nsd = Daemon::start(address, Command::new("nsd").args(["-d", "-c", &conf]));
    let dns = |keys: &str| check(&format!("type = \"dns\", {keys}"));
    let lies = Server::udp_tag("this is no DNS, but long enough");
    let mute = Server::udp(|_, _, _| {});
    let (closes, stalls, pieces) = (closing(), silent(), in_pieces(address));
    let lies_by_tcp = Server::tcp_tag("\0\x20this is no DNS, but long enough..");
    let cut = Server::tcp_tag("\0\x20cut");
    let by_tcp = dns("query = \"example.org\", transport = \"tcp\"");
    judge(&[
        case(address, dns("query = \"db.example.com\""), None),
        case(address, dns("query = \"Example.COM.\", record = \"SOA\", transport = \"tcp\""), None),
        case(address, dns("query = \"no.example.com\""), Some("its code is NXDOMAIN")),
        case(address, dns("query = \"no.example.com\", rcode = [\"NOERROR\", \"NXDOMAIN\"]"), None),
        case(address, dns("query = \"example.org\""), Some("its code is REFUSED")),
        case(lies.address, dns("query = \"example.org\""), Some("to another question")),
        case(nothing(), dns("query = \"example.org\""), Some("Connection refused")),
        case(mute.address, dns("query = \"example.org\""), Some("no answer within 500 ms")),
        case(closes.address, by_tcp.as_str(), Some("DNS ")),
        case(stalls.address, by_tcp.as_str(), Some("no answer within 500 ms")),
        case(lies_by_tcp.address, by_tcp.as_str(), Some("DNS ")),
        case(cut.address, by_tcp.as_str(), Some("DNS ")),
        case(
            pieces.address,
            dns("query = \"example.com\", record = \"SOA\", transport = \"tcp\""),
            None,
        ),
    ]);
}
