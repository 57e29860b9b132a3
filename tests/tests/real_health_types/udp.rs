//! UDP, SIP and DNS.

use std::net::SocketAddr;
use std::net::UdpSocket;
use std::process::Command;

use ringway_tests::real::{Daemon, Folder, Server, free_address};

use crate::{case, check, closing, judge, silent};

/// An address where nothing listens for UDP.
fn nothing() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("its address")
}

#[test]
fn udp_servers_that_answer_or_say_nothing() {
    let pong = Server::udp_tag("pong");
    let mute = Server::udp(|_, _, _| {});
    let gone = nothing();
    let udp = |keys: &str| check(&format!("type = \"udp\", send = \"ping\"{keys}"));
    let sip = Server::udp(|socket, asked, peer| {
        let asked = String::from_utf8_lossy(asked);
        let same: String = asked
            .lines()
            .filter(|line| {
                ["Via", "From", "To", "Call", "CSeq"].iter().any(|w| line.starts_with(w))
            })
            .fold(String::new(), |text, line| text + line + "\r\n");
        _ = socket.send_to(format!("SIP/2.0 200 OK\r\n{same}\r\n").as_bytes(), peer);
    });
    let options = check("type = \"sip\"");
    judge(&[
        case(pong.address, udp(""), None),
        case(pong.address, udp(", expect = \"pong\""), None),
        case(pong.address, udp(", expect_regex = \"^x\""), Some("but is \"pong\"")),
        case(mute.address, udp(""), None),
        case(mute.address, udp(", silence = \"down\""), Some("no answer within 500 ms")),
        case(mute.address, udp(", expect = \"pong\""), Some("no answer within 500 ms")),
        case(gone, udp(""), Some("Connection refused")),
        case(sip.address, options.as_str(), None),
        case(sip.address, check("type = \"sip\", status = 503"), Some("its status is 200 OK")),
        case(pong.address, options.as_str(), Some("SIP at ")),
        case(gone, options.as_str(), Some("Connection refused")),
        case(mute.address, options.as_str(), Some("no answer within 500 ms")),
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
    let (closes, stalls) = (closing(), silent());
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
    ]);
}
