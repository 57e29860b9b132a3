//! TLS, and what is asked behind it.

use std::net::SocketAddr;
use std::process::Command;

use ringway_tests::pki::Pki;
use ringway_tests::real::{Daemon, Folder, free_address};

use crate::{answering, case, check, closing, in_pieces, judge, silent};

/// `openssl s_server`, which serves the files of its folder by HTTP.
fn openssl(folder: &Folder, pki: &Pki, name: &str, more: &[&str]) -> (SocketAddr, Daemon) {
    let issued = pki.issue(&[name]);
    folder.write(&format!("{name}.pem"), &issued.cert);
    folder.write(&format!("{name}.key"), &issued.key);
    folder.write("ca.pem", &pki.ca());
    let address = free_address();
    let mut command = Command::new("openssl");
    command.current_dir(folder.file("")).args(["s_server", "-WWW", "-quiet"]);
    command.args(["-accept", &address.to_string()]);
    command.args(["-cert", &format!("{name}.pem"), "-key", &format!("{name}.key")]).args(more);
    (address, Daemon::start(address, &mut command))
}

#[test]
fn tls_servers_with_the_right_certificate_and_others() {
    let (folder, pki) = (Folder::new(), Pki::new());
    folder.write("ready", "yes");
    let (right, _right) = openssl(&folder, &pki, "db.internal", &[]);
    let (wrong, _wrong) = openssl(&folder, &pki, "other.internal", &[]);
    let strict = ["-Verify", "1", "-verify_return_error", "-CAfile", "ca.pem"];
    let (strict, _strict) = openssl(&folder, &pki, "strict.internal", &strict);
    let (stalls, lies) = (silent(), answering(&["HTTP/1.1 400 Bad Request\r\n\r\n"]));
    let (closes, pieces) = (closing(), in_pieces(right));
    // A record begins, and the connection ends.
    let cut = answering(&["\x16\x03\x03\0\x40\x02"]);
    let ca = folder.file("ca.pem").display().to_string();
    let with = |name: &str, check: &str| {
        format!("tls = {{ server_name = \"{name}\", ca = \"{ca}\" }}\n{check}")
    };
    let (tls, http) = (check("type = \"tls\""), check("type = \"http\", path = \"/ready\""));
    let blind = check("type = \"tls\", verify = false");
    let own = |keys: &str| check(&format!("type = \"tls\", {keys}"));
    let stranger = folder.write("stranger.pem", &Pki::new().ca()).display().to_string();
    let beside =
        check(&format!("type = \"http\", path = \"/ready\", port = {}, tls = true", right.port()));
    judge(&[
        case(right, with("db.internal", &tls), None),
        case(wrong, with("db.internal", &tls), Some("only valid for DnsName(\"other.internal\")")),
        case(wrong, with("db.internal", &blind), None),
        // The check names its own authority, or its own name, or both.
        case(wrong, with("db.internal", &own("server_name = \"other.internal\"")), None),
        case(
            right,
            with("db.internal", &own("server_name = \"other.internal\"")),
            Some("only valid for DnsName(\"db.internal\")"),
        ),
        case(
            right,
            with("db.internal", &own(&format!("ca = \"{stranger}\""))),
            Some("BadSignature"),
        ),
        case(
            right,
            format!("tls = {{ server_name = \"db.internal\", ca = \"{stranger}\" }}\n")
                + &own(&format!("ca = \"{ca}\"")),
            None,
        ),
        case(right, own(&format!("ca = \"{ca}\", server_name = \"db.internal\"")), None),
        case(
            wrong,
            check(&format!(
                "type = \"http\", path = \"/ready\", tls = true, ca = \"{ca}\", \
                 server_name = \"db.internal\""
            )),
            Some("only valid for DnsName(\"other.internal\")"),
        ),
        case(right, blind.as_str(), None),
        case(right, with("db.internal", &http), None),
        case(wrong, beside.as_str().to_owned() + "\n" + &with("db.internal", ""), None),
        case(
            right,
            with("db.internal", &check("type = \"http\", status = 204")),
            Some("its status is 200 ok"),
        ),
        // The endpoint wants a certificate of the gateway, which has none.
        case(strict, with("strict.internal", &tls), Some("CertificateRequired")),
        case(stalls.address, with("db.internal", &tls), Some("no answer within 500 ms")),
        case(lies.address, with("db.internal", &tls), Some("TLS with ")),
        case(closes.address, with("db.internal", &tls), Some("TLS with ")),
        case(cut.address, with("db.internal", &tls), Some("TLS with ")),
        case(pieces.address, with("db.internal", &tls), None),
        case(pieces.address, with("db.internal", &http), None),
    ]);
}
