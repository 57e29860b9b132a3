//! SIP, by UDP and by TCP.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use ringway_tests::real::Server;

use crate::udp::nothing;
use crate::{answering, case, check, closing, judge, silent};

/// An answer to a request, with the headers that it must repeat.
fn answer(asked: &str, status: &str) -> String {
    let same = ["Via", "From", "To", "Call", "CSeq"];
    let same = asked.lines().filter(|line| same.iter().any(|word| line.starts_with(word)));
    let same = same.fold(String::new(), |text, line| text + line + "\r\n");
    format!("SIP/2.0 {status}\r\n{same}\r\n")
}

/// The request of a check by TCP.
fn request(stream: &mut TcpStream) -> Option<String> {
    let (mut asked, mut part) = (Vec::new(), [0; 1_024]);
    while !asked.ends_with(b"\r\n\r\n") {
        match stream.read(&mut part) {
            Ok(len @ 1..) => asked.extend_from_slice(&part[..len]),
            _ => return None,
        }
    }
    String::from_utf8(asked).ok()
}

/// Sends what `of` makes of the request, in pieces, and then says nothing more.
fn talker(of: impl Fn(&str) -> String + Send + Sync + 'static) -> Server {
    Server::tcp(move |mut stream| {
        let Some(asked) = request(&mut stream) else { return };
        for piece in of(&asked).as_bytes().chunks(31) {
            _ = stream.write_all(piece);
            std::thread::sleep(Duration::from_millis(3));
        }
        _ = std::io::copy(&mut stream, &mut std::io::sink());
    })
}

#[test]
fn sip_by_udp() {
    let sip = Server::udp(|socket, asked, peer| {
        let asked = String::from_utf8_lossy(asked);
        _ = socket.send_to(answer(&asked, "200 OK").as_bytes(), peer);
    });
    let (pong, mute, gone) = (Server::udp_tag("pong"), Server::udp(|_, _, _| {}), nothing());
    let options = check("type = \"sip\"");
    judge(&[
        case(sip.address, options.as_str(), None),
        case(sip.address, check("type = \"sip\", status = 503"), Some("its status is 200 OK")),
        case(pong.address, options.as_str(), Some("SIP at ")),
        case(gone, options.as_str(), Some("Connection refused")),
        case(mute.address, options.as_str(), Some("no answer within 500 ms")),
    ]);
}

#[test]
fn sip_servers_that_lie_stall_answer_in_pieces_or_close() {
    let good = talker(|asked| answer(asked, "100 Trying") + &answer(asked, "200 OK"));
    let busy = talker(|asked| answer(asked, "503 Service Unavailable"));
    let trying = talker(|asked| answer(asked, "100 Trying"));
    let half = talker(|asked| answer(asked, "200 OK").replace("\r\n\r\n", "\r\n"));
    let strange = talker(|_| "SIP/2.0 200 OK\r\nCall-ID: 7@127.0.0.1\r\n\r\n".to_owned());
    let lies = answering(&["HTTP/1.1 400 Bad Request\r\n\r\n"]);
    let cut = answering(&["SIP/2.0 200 OK\r\nVi"]);
    let endless = Server::tcp(|mut stream| while stream.write_all(&[b'x'; 4_096]).is_ok() {});
    let (stalls, closes) = (silent(), closing());
    let options = check("type = \"sip\", transport = \"tcp\"");
    let late = Some("no answer within 500 ms");
    judge(&[
        case(good.address, options.as_str(), None),
        case(busy.address, options.as_str(), Some("its status is 503 Service Unavailable")),
        case(trying.address, options.as_str(), late),
        case(half.address, options.as_str(), late),
        case(strange.address, options.as_str(), Some("the answer has another Call-ID")),
        case(lies.address, options.as_str(), Some("the answer is no SIP: ")),
        case(cut.address, options.as_str(), Some("the answer does not end: ")),
        case(endless.address, options.as_str(), Some("SIP at ")),
        case(stalls.address, options.as_str(), late),
        case(closes.address, options.as_str(), Some("SIP at ")),
    ]);
}
