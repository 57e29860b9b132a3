//! Has tests that know nothing of it go through the kernel's path for UDP flows.
//!
//! With `RINGWAY_IN_KERNEL=FILE` gateways run in a network namespace of their own, joined to that
//! of the tests, where clients and servers are. UDP backends get `fast_path`, from one datagram
//! each way on. Each gateway adds a line to the file: how many flows its kernel has begun to
//! forward. The tests must have a network namespace of their own, and nothing else in there.

use std::cell::Cell;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::sync::OnceLock;

use super::{Namespace, program};

/// What the kernel needs to look up routes for the program.
pub const FORWARDING: &str =
    "for v in ipv4 ipv6; do echo 1 > /proc/sys/net/$v/conf/lo/forwarding; done";

const FILE: &str = "RINGWAY_IN_KERNEL";

static GATEWAYS: OnceLock<Option<Namespace>> = OnceLock::new();

thread_local! {
    /// The test makes its own network.
    static IS_APART: Cell<bool> = const { Cell::new(false) };
}

/// Gateways of this thread run where the thread is.
pub fn stay_apart() {
    IS_APART.set(true);
}

/// The namespace of gateways, if they have one.
pub fn gateways() -> Option<&'static Namespace> {
    if IS_APART.get() {
        return None;
    }
    let made = GATEWAYS.get_or_init(|| {
        std::env::var_os(FILE)?;
        program("ip", &["link", "set", "lo", "up"]);
        let gateways = Namespace::new();
        gateways.join("gateways", "10.1.0", "fd01");
        gateways.run(|| program("sh", &["-c", FORWARDING]));
        Some(gateways)
    });
    made.as_ref()
}

/// The address of gateways.
pub fn gateway_ip() -> Ipv4Addr {
    if gateways().is_some() { Ipv4Addr::new(10, 1, 0, 2) } else { Ipv4Addr::LOCALHOST }
}

/// The address of clients and servers.
pub fn own_ip() -> Ipv4Addr {
    if gateways().is_some() { Ipv4Addr::new(10, 1, 0, 1) } else { Ipv4Addr::LOCALHOST }
}

/// Further keys of a UDP backend with these.
pub fn keys(options: &str) -> &'static str {
    let others = ["upstream_sockets", "send_proxy", "transparent", "interface", "fast_path"];
    let is_plain = !others.iter().any(|other| options.contains(other));
    if gateways().is_some() && is_plain {
        "fast_path = \"required\"\nfast_path_after = 1\n"
    } else {
        ""
    }
}

/// Adds a gateway's count to the file.
pub fn report(promotions: u64) {
    let Some(path) = std::env::var_os(FILE) else { return };
    let file = OpenOptions::new().create(true).append(true).open(path);
    writeln!(file.expect("the file of counts"), "{promotions}").expect("writing a count");
}
