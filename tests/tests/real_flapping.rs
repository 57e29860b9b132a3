//! 10,000 endpoints, a tenth of which go down and come back all the time: what that costs the
//! control thread and the workers. It measures, so it is not run with the tests:
//! `cargo build --release && cargo test --workspace --test real_flapping -- --ignored --nocapture`.
//! It takes 80 seconds.

#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "it measures, and prints")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{Gateway, connect, free_address};

const ENDPOINTS: u32 = 10_000;
/// Of so many endpoints one flaps.
const ONE_IN: u32 = 10;
/// A flapping endpoint changes once in this time.
const PERIOD: Duration = Duration::from_secs(10);
const MEASURED: Duration = Duration::from_secs(12);

/// An address of the loopback network for each endpoint.
fn address(nth: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 0)) + nth)
}

/// Agents and servers of all endpoints in one: it says how the endpoint is that was connected to.
fn serve(is_flapping: Arc<AtomicBool>) -> u16 {
    let socket = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = socket.local_addr().expect("its address").port();
    let began = Instant::now();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = socket.accept() {
            let Ok(IpAddr::V4(ip)) = stream.local_addr().map(|at| at.ip()) else { continue };
            let nth = u32::from(ip) - u32::from(address(0));
            // Endpoints change one after the other, and not together.
            let phase = PERIOD * (nth / ONE_IN) / (ENDPOINTS / ONE_IN);
            let turn = (began.elapsed() + phase).as_millis() / PERIOD.as_millis();
            let flaps = is_flapping.load(Ordering::Relaxed) && nth % ONE_IN == 0;
            let is_down = flaps && turn % 2 == 1;
            _ = stream.write_all(if is_down { b"down\n" } else { b"up\n" });
        }
    });
    port
}

/// Ticks of 10 ms of the threads whose names begin so.
fn ticks(gateway: &Gateway, name: &str) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).expect("its threads");
    let of = |task: std::fs::DirEntry| {
        let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if !read("comm").starts_with(name) {
            return 0;
        }
        let stat = read("stat");
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        // User and system time (proc(5)), counted from the state.
        let number = |at: usize| fields[at].parse::<u64>().expect("a number");
        number(11) + number(12)
    };
    tasks.flatten().map(of).sum()
}

/// Prints what a time of `MEASURED` costs.
fn measure(gateway: &Gateway, what: &str) {
    const TURN: &str = "ringway_worker_turn_seconds";
    let generation = |page: &ringway_tests::real::Metrics| {
        page.series("ringway_table_generation").into_iter().max().unwrap_or_default()
    };
    // Both scrapes take some time, so the time counts from begin to begin.
    let (began, control) = (Instant::now(), ticks(gateway, "ringway-control"));
    let before = gateway.metrics();
    thread::sleep(MEASURED.saturating_sub(began.elapsed()));
    let took = began.elapsed().as_secs_f64();
    let control_after = ticks(gateway, "ringway-control");
    let after = gateway.metrics();
    let checks = |result| {
        let of = |page: &ringway_tests::real::Metrics| {
            page.value("ringway_health_checks_total", &[("result", result)])
        };
        of(&after) - of(&before)
    };
    let micros = |share| after.quantile_since(&before, TURN, share) * 1e6;
    println!(
        "{what}: {:.0} checks/s, {:.1} tables/s, control thread {:.1} % of a core, a worker's turn \
         p99 {:.0} us, p99.9 {:.0} us, not made {}",
        (checks("ok") + checks("failed")) as f64 / took,
        (generation(&after) - generation(&before)) as f64 / took,
        (control_after - control) as f64 / took,
        micros(0.99),
        micros(0.999),
        checks("not_made"),
    );
}

#[test]
#[ignore = "it measures, and asserts little"]
fn ten_thousand_endpoints_of_which_a_tenth_flap() {
    for pools in [100, 1] {
        let is_flapping = Arc::new(AtomicBool::new(false));
        let (port, at) = (serve(Arc::clone(&is_flapping)), free_address());
        let name = |pool: u32| format!("pool-{pool}");
        let names: Vec<_> = (0..pools).map(name).collect();
        let shares: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let mut config = listener("main", "TCP", at, "") + &route("main", "main", &shares, "");
        let check = "health_check = { type = \"agent\", fall = 1, rise = 1 }";
        for pool in 0..pools {
            let endpoints = (pool..ENDPOINTS).step_by(pools as usize);
            let endpoints = endpoints.map(|nth| SocketAddr::from((address(nth), port)));
            config += &backend(&name(pool), endpoints, check);
        }
        let gateway = Gateway::start(&config);
        let is_over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_over);
        let client = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let mut said = String::new();
                _ = connect(at).read_to_string(&mut said);
                thread::sleep(Duration::from_millis(1));
            }
        });
        // All have been checked once.
        thread::sleep(Duration::from_secs(6));
        measure(&gateway, &format!("{pools} backends, all up"));
        is_flapping.store(true, Ordering::Relaxed);
        // Every flapping endpoint is in its rhythm.
        thread::sleep(Duration::from_secs(6));
        measure(&gateway, &format!("{pools} backends, a tenth flap"));
        is_over.store(true, Ordering::Relaxed);
        client.join().expect("the client");
        gateway.stop();
    }
}
