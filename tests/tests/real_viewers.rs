//! Pages that are open but do not read cost the gateway no memory, and others no time.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ringway_tests::real::config::forward;
use ringway_tests::real::{
    Gateway, Server, SetWhenDropped, deadline, echo, free_address, now, wait_until,
};
use socket2::{Domain, Socket, Type};

/// The viewers that do not read.
const SLOW: usize = 8;

/// Asks for the stream with a buffer for few bytes.
fn viewer(gateway: &Gateway) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    socket.connect(&gateway.admin.into()).expect("the admin address");
    let mut stream = TcpStream::from(socket);
    stream.write_all(b"GET /api/v1/stream HTTP/1.0\r\n\r\n").expect("sending");
    stream
}

/// Whether the gateway has ended the connection. All that it has sent before is read.
fn has_ended(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let mut bytes = vec![0; 1 << 16];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn viewers_that_do_not_read_cost_no_memory_and_delay_nobody() {
    let server = Server::tcp(echo);
    let mut config = forward("TCP", free_address(), [server.address], "");
    // Backends make a snapshot long, so that the kernel's buffers are full soon.
    for number in 0..2_000 {
        let address = server.address;
        let text = format!("[[backends]]\nname = \"b{number}\"\nendpoints = [\"{address}\"]\n");
        config.write_str(&text).expect("a string");
    }
    let gateway = Gateway::start(&config);
    let reader = TcpStream::connect(gateway.admin).expect("the admin address");
    reader.set_read_timeout(Some(deadline())).expect("a timeout");
    (&reader).write_all(b"GET /api/v1/stream HTTP/1.0\r\n\r\n").expect("sending");
    let lines = BufReader::new(reader).lines().map(|line| line.expect("a line"));
    let mut events = lines.filter(|line| line.starts_with("data: "));
    let size = events.next().expect("an event").len() as u64;
    events.next().expect("an event");
    let before = gateway.anonymous();
    let slow: Vec<_> = (0..SLOW).map(|_| viewer(&gateway)).collect();
    let done = AtomicBool::new(false);
    let (gap, most) = thread::scope(|scope| {
        let reads = scope.spawn(|| {
            let (mut last, mut gap) = (now(), Duration::ZERO);
            while !done.load(Ordering::Relaxed) {
                events.next().expect("an event");
                gap = gap.max(last.elapsed());
                last = now();
            }
            gap
        });
        let done = SetWhenDropped(&done);
        let mut most = 0;
        wait_until("each viewer that does not read is dropped", || {
            most = most.max(gateway.anonymous());
            open(&gateway) == 1
        });
        drop(done);
        (reads.join().expect("the reader"), most)
    });
    let grown = most.saturating_sub(before);
    eprintln!("events of {size} B: longest gap {gap:?}, {grown} kB more memory");
    assert!(gap < Duration::from_secs(4), "an event each second: {gap:?}");
    // A viewer keeps the snapshot that it writes and one more, which all have in common.
    let most = 4 * SLOW as u64 * size / 1_024 + 8_192;
    assert!(grown < most, "{grown} kB more memory, at most {most} kB");
    let ended = slow.into_iter().map(|mut stream| has_ended(&mut stream));
    assert!(ended.into_iter().all(|ended| ended), "a viewer that did not read is still there");
}

/// The connections of the gateway's admin address that the gateway has open.
fn open(gateway: &Gateway) -> usize {
    let all = std::fs::read_to_string(format!("/proc/{}/net/tcp", gateway.pid()));
    let all = all.expect("the process runs");
    let local = format!(":{:04X} ", gateway.admin.port());
    let is_open = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let has = fields.next().is_some_and(|address| format!("{address} ").ends_with(&local));
        has && fields.nth(1) == Some("01")
    };
    all.lines().filter(is_open).count()
}
