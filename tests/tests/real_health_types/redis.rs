//! Redis.

use std::net::SocketAddr;
use std::process::Command;

use ringway_tests::real::{Daemon, Folder, free_address};

use crate::{answering, case, check, closing, judge, silent};

#[test]
fn redis_by_its_role_and_its_password() {
    let (folder, address, replica) = (Folder::new(), free_address(), free_address());
    let dir = folder.file("").display().to_string();
    let start = |address: SocketAddr, more: &[&str]| {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
        command.args(["--dir", &dir, "--save", "", "--requirepass", "secret"]).args(more);
        Daemon::start(address, &mut command)
    };
    let _primary = start(address, &[]);
    let of = ["--replicaof", "127.0.0.1", &address.port().to_string(), "--masterauth", "secret"];
    let _replica = start(replica, &of);
    let password = folder.write("password", "secret\n").display().to_string();
    let wrong = folder.write("wrong", "guess").display().to_string();
    let redis = |keys: &str| check(&format!("type = \"redis\"{keys}"));
    let with = |keys: &str| redis(&format!(", password_file = \"{password}\"{keys}"));
    let lies = answering(&["-LOADING Redis is loading the dataset in memory\r\n"]);
    let pieces = answering(&["+", "PO", "NG\r", "\n"]);
    let (stalls, closes) = (silent(), closing());
    judge(&[
        case(address, with(""), None),
        case(address, with(", user = \"default\""), None),
        case(address, with(", role = \"primary\""), None),
        case(address, with(", role = \"replica\""), Some("its role is \"master\"")),
        case(replica, with(", role = \"replica\""), None),
        case(replica, with(", role = \"primary\""), Some("its role is \"slave\"")),
        case(address, redis(""), Some("NOAUTH Authentication required.")),
        case(address, redis(&format!(", password_file = \"{wrong}\"")), Some("WRONGPASS")),
        case(lies.address, redis(""), Some("LOADING Redis is loading")),
        case(pieces.address, redis(""), None),
        case(stalls.address, redis(""), Some("no answer within 500 ms")),
        case(closes.address, redis(""), Some("Redis at ")),
    ]);
}
