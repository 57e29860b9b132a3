//! PostgreSQL.

use std::time::Duration;

use ringway_tests::pki::Pki;
use ringway_tests::real::{Folder, Postgres, program};

use crate::{answering, case, check, closing, judge, judge_and, patient_check, silent};

/// A server with the users that [`Postgres::with_tls`] knows, whose password is "secret".
fn postgres(pki: &Pki) -> Postgres {
    let server = Postgres::with_tls("primary", &pki.issue(&["db.internal"]));
    let port = server.address.port();
    let login = format!("host=127.0.0.1 port={port} user=postgres sslmode=disable");
    let users = "create role scram login password 'secret'; \
                 create role clear login password 'secret'; \
                 set password_encryption = 'md5'; create role md5 login password 'secret'";
    program("psql", &["-qX", "-c", users, &login]);
    server
}

#[test]
fn postgres_by_its_role_and_its_password() {
    let (folder, pki) = (Folder::new(), Pki::new());
    let ca = folder.write("ca.pem", &pki.ca()).display().to_string();
    let server = postgres(&pki);
    let (replica, cold) = (server.replica(&["ssl=off"]), server.replica(&["hot_standby=off"]));
    let password = folder.write("password", "secret\n").display().to_string();
    let wrong = folder.write("wrong", "guess").display().to_string();
    let asks = |keys: &str| patient_check(&format!("type = \"postgres\"{keys}"));
    let by = |user: &str| {
        asks(&format!(", user = \"{user}\", password_file = \"{password}\", role = \"primary\""))
    };
    let role = |role: &str| asks(&format!(", user = \"postgres\", role = \"{role}\""));
    let tls =
        |check: &str| format!("tls = {{ server_name = \"db.internal\", ca = \"{ca}\" }}\n{check}");
    let address = server.address;
    let cases = [
        case(address, asks(""), None),
        case(address, tls(&asks("")), None),
        case(address, asks(", user = \"postgres\""), None),
        case(address, role("primary"), None),
        case(address, role("replica"), Some("it is not in recovery, so it is a primary")),
        case(address, by("scram"), None),
        case(address, by("md5"), None),
        case(address, by("clear"), Some("it asks for the password in clear text")),
        case(address, tls(&by("clear")), None),
        case(address, tls(&by("scram")), None),
        case(address, asks(", user = \"scram\""), Some("the check has no `password_file`")),
        case(
            address,
            asks(&format!(", user = \"scram\", password_file = \"{wrong}\"")),
            Some("(28P01)"),
        ),
        case(address, asks(", user = \"nobody\""), Some("role \\\"nobody\\\" does not exist")),
        case(replica.address, asks(""), None),
        case(replica.address, asks(", tls = true, verify = false"), Some("it grants no TLS")),
        case(replica.address, role("replica"), None),
        case(replica.address, role("primary"), Some("it is in recovery, so it is a replica")),
        case(cold.address, role("replica"), Some("(57P03)")),
    ];
    judge_and(&cases, || {
        let logs = [server.log(), replica.log(), cold.log()];
        assert!(logs[0].contains("authentication failed"), "{logs:?}");
        // The checks leave no trace in a log, unless something is wrong with a login.
        for trace in ["could not", "incomplete", "unexpected", "protocol"] {
            assert!(logs.iter().all(|log| !log.contains(trace)), "{logs:?}");
        }
    });
}

/// Every check is given up before the server answers, as on a busy machine.
#[test]
fn postgres_that_answers_late_logs_no_broken_connection() {
    let server = Postgres::start(&["post_auth_delay=1"]);
    let late = Some("no answer within 500 ms");
    let login = check("type = \"postgres\", user = \"postgres\"");
    let role = check("type = \"postgres\", user = \"postgres\", role = \"primary\"");
    judge_and(&[case(server.address, login, late), case(server.address, role, late)], || {
        // The servers of the latest checks write after their delay.
        std::thread::sleep(Duration::from_millis(1_500));
        let log = server.log();
        assert!(!log.contains("could not") && !log.contains("connection to client lost"), "{log}");
    });
}

#[test]
fn postgres_servers_that_lie_stall_or_close() {
    let user = |keys: &str| check(&format!("type = \"postgres\", user = \"me\"{keys}"));
    let bare = |keys: &str| check(&format!("type = \"postgres\"{keys}"));
    let pieces = answering(&["R\0\0", "\0\x08\0\0\0\0S\0\0\0\x08a", "\0b\0Z\0\0", "\0\x05I"]);
    let early = answering(&["SR\0\0\0\x08\0\0\0\0"]);
    let (grants, refuses) = (answering(&["S"]), answering(&["N"]));
    let lies = answering(&["HTTP/1.1 400 Bad Request\r\n\r\n"]);
    let starts =
        answering(&["E\0\0\0\x39SFATAL\0C57P03\0Mthe database system is shutting down\0\0"]);
    let cut = answering(&["R\0\0\0"]);
    let huge = answering(&["R\x7f\0\0\0", "more"]);
    let (stalls, closes) = (silent(), closing());
    judge(&[
        case(pieces.address, user(""), None),
        case(pieces.address, bare(""), Some("the answer is no PostgreSQL: \"R")),
        case(early.address, bare(", tls = true, verify = false"), Some("more before TLS begins")),
        // What comes after the grant is the server's affair, if nobody needs TLS.
        case(grants.address, bare(""), None),
        case(grants.address, bare(", tls = true, verify = false"), Some("TLS with ")),
        case(refuses.address, bare(""), None),
        case(lies.address, bare(""), Some("the answer is no PostgreSQL: \"HTTP/1.1")),
        case(lies.address, user(""), Some("the answer is no PostgreSQL: \"HTTP/1.1")),
        case(starts.address, user(""), Some("the database system is shutting down\" (57P03)")),
        case(cut.address, user(""), Some("the answer does not end: \"R")),
        case(huge.address, user(""), Some("the answer is no PostgreSQL: ")),
        case(stalls.address, bare(""), Some("no answer within 500 ms")),
        case(stalls.address, user(""), Some("no answer within 500 ms")),
        case(closes.address, bare(""), Some("PostgreSQL at ")),
    ]);
}
