//! MySQL.

use std::io::Write as _;
use std::time::Duration;

use ringway_tests::pki::Pki;
use ringway_tests::real::{Folder, MariaDb, Server};

use crate::{case, check, closing, judge, judge_and, silent};

#[test]
fn mysql_by_its_role_and_its_password() {
    let (folder, pki) = (Folder::new(), Pki::new());
    let ca = folder.write("ca.pem", &pki.ca()).display().to_string();
    let issued = pki.issue(&["db.internal"]);
    // A host with two broken handshakes is shut out. Only 127.0.0.1 is exempt.
    let server = MariaDb::start(&issued, &["--max-connect-errors=2"]);
    let replica = MariaDb::start(&issued, &["--read-only=1", "--skip-ssl"]);
    let password = folder.write("password", "secret\n").display().to_string();
    let wrong = folder.write("wrong", "guess").display().to_string();
    let asks = |keys: &str| {
        format!("source = [\"127.0.0.2\"]\n{}", check(&format!("type = \"mysql\"{keys}")))
    };
    let me = |keys: &str| asks(&format!(", user = \"me\", password_file = \"{password}\"{keys}"));
    let tls =
        |check: &str| format!("tls = {{ server_name = \"db.internal\", ca = \"{ca}\" }}\n{check}");
    let (address, second) = (server.address, replica.address);
    judge_and(
        &[
            case(address, asks(""), None),
            case(address, tls(&asks("")), None),
            case(address, me(""), None),
            case(address, tls(&me("")), None),
            case(address, asks(", user = \"open\""), None),
            case(address, me(", role = \"primary\""), None),
            case(address, tls(&me(", role = \"primary\"")), None),
            case(
                address,
                me(", role = \"replica\""),
                Some("it is not read-only, so it is a primary"),
            ),
            case(second, me(", role = \"replica\""), None),
            case(second, me(", role = \"primary\""), Some("it is read-only, so it is a replica")),
            case(second, me(", tls = true, verify = false"), Some("it grants no TLS")),
            case(
                address,
                asks(&format!(", user = \"me\", password_file = \"{wrong}\"")),
                Some("(using password: YES)\" (1045)"),
            ),
        ],
        || {
            let broken = "select ifnull(sum(sum_connect_errors + count_handshake_errors), 0) \
                          from performance_schema.host_cache where ip = '127.0.0.2'";
            assert_eq!(server.ask(broken), "0");
            let aborted = "show global status like 'Aborted_clients'";
            assert_eq!(server.ask(aborted), "Aborted_clients\t0");
        },
    );
    // A user who logs in leaves nothing at all behind.
    let aborted = "show global status like 'Aborted_%'";
    let before = server.ask(aborted);
    judge_and(&[case(address, me(", role = \"primary\""), None)], || {
        assert_eq!(server.ask(aborted), before);
    });
}

#[test]
fn mysql_servers_that_lie_stall_or_close() {
    let bare = |keys: &str| check(&format!("type = \"mysql\"{keys}"));
    let speaking = |pieces: &'static [&'static [u8]]| {
        Server::tcp(move |mut stream| {
            for piece in pieces {
                _ = stream.write_all(piece);
                std::thread::sleep(Duration::from_millis(10));
            }
            _ = std::io::copy(&mut stream, &mut std::io::sink());
        })
    };
    const GREETING: &[u8] =
        b"\x4a\0\0\0\x0a8.0.36\0\x07\0\0\0abcdefgh\0\xff\xff\x2d\x02\0\xff\xff\x15\
        \0\0\0\0\0\0\0\0\0\0abcdefghijkl\0caching_sha2_password\0";
    const DENIAL: &[u8] = b"\x09\0\0\x02\xff\x15\x04#28000";
    let pieces = speaking(&[&[0x4a, 0], &[0], &[0, 0x0a], b"8.0.36\0"]);
    let whole = Server::tcp(|mut stream| {
        for piece in [GREETING, DENIAL].concat().chunks(7) {
            _ = stream.write_all(piece);
            std::thread::sleep(Duration::from_millis(2));
        }
        _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let denies = speaking(&[GREETING, DENIAL, b""]);
    let many = speaking(&[b"\x17\0\0\0\xff\x10\x04Too many connections"]);
    let full = speaking(&[GREETING, b"\x02\0\0\x02\x01\x04", b"\x03\0\0\x04\xff\x15\x04"]);
    let early = Server::tcp(|mut stream| {
        _ = stream.write_all(&[GREETING, b"\x16\x03"].concat());
        _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let lies = speaking(&[b"220 mail.example ESMTP\r\n"]);
    let (stalls, closes) = (silent(), closing());
    let user = bare(", user = \"me\"");
    judge(&[
        case(denies.address, bare(""), None),
        case(whole.address, bare(""), None),
        case(pieces.address, bare(""), Some("no answer within 500 ms")),
        case(many.address, bare(""), Some("\"Too many connections\" (1040)")),
        case(full.address, user.as_str(), Some("it asks for the password in clear text")),
        case(early.address, bare(", tls = true, verify = false"), Some("more before TLS begins")),
        case(lies.address, bare(""), Some("the answer is no MySQL: \"220 mail.example")),
        case(stalls.address, bare(""), Some("no answer within 500 ms")),
        case(closes.address, user.as_str(), Some("MySQL at ")),
    ]);
}
