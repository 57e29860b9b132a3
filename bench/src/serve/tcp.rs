//! TCP backends: one thread, one ring, a task for each connection.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::Context;
use monoio::io::{AsyncReadRent, AsyncReadRentExt};
use monoio::net::{TcpListener, TcpStream};
use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

use super::stream::{Drain, send_all, send_now, send_some};
use super::{Kind, host, wire};

/// No answer is longer, whatever a request asks for.
const MAX_ANSWER: u32 = 64 << 20;

/// Calls `ready` when all addresses are bound, and returns only with an error.
pub fn serve(
    kind: Kind,
    listen: &[SocketAddr],
    size: usize,
    ready: fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let listeners: Vec<_> = listen.iter().copied().map(bind).collect::<anyhow::Result<_>>()?;
    host::block_on(async move {
        let shared = Rc::new(Shared { size, bulk: wire::pattern(), answers: RefCell::default() });
        let mut tasks = Vec::new();
        for listener in listeners {
            let listener = TcpListener::from_std(listener)?;
            tasks.push(monoio::spawn(accept(kind, listener, Rc::clone(&shared))));
        }
        ready()?;
        for task in tasks {
            task.await?;
        }
        Ok(())
    })?
}

/// What all connections send from.
struct Shared {
    /// Bytes given to the kernel at once in bulk.
    size: usize,
    bulk: Vec<u8>,
    answers: RefCell<Vec<u8>>,
}

fn bind(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let bound = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(4_096)?;
        Ok::<_, io::Error>(socket.into())
    };
    bound().with_context(|| format!("listen on {address}"))
}

async fn accept(kind: Kind, listener: TcpListener, shared: Rc<Shared>) -> io::Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                let shared = Rc::clone(&shared);
                monoio::spawn(async move {
                    // A connection that fails is the client's to notice and to count.
                    let _ = converse(kind, stream, &shared).await;
                });
            }
            // The client is gone, or descriptors ran out, which the client sees as a connection
            // that is never answered.
            Err(_) => monoio::time::sleep(std::time::Duration::from_millis(1)).await,
        }
    }
}

async fn converse(kind: Kind, mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    match kind {
        Kind::Echo => echo(stream).await,
        Kind::Respond => loop {
            let (size, sequence) = asked(&mut stream).await?;
            if size == wire::ENDLESS {
                return source(stream, shared).await;
            }
            answer(&stream, shared, size, sequence).await?;
        },
        // The drop that follows sends the FIN.
        Kind::Close => {
            let (size, sequence) = asked(&mut stream).await?;
            answer(&stream, shared, size, sequence).await
        }
        Kind::Http => http(stream).await,
        Kind::Sink => sink(stream).await,
        Kind::Source => source(stream, shared).await,
        Kind::Hold | Kind::UdpEcho | Kind::UdpSink => hold(stream).await,
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(64 << 10);
    loop {
        let (count, filled) = stream.read(buffer).await;
        if count? == 0 {
            return Ok(());
        }
        send_all(&stream, &filled).await?;
        buffer = filled;
    }
}

/// One request at a time, as wrk sends them; a header's end may be cut anywhere.
async fn http(mut stream: TcpStream) -> io::Result<()> {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let mut request = Vec::with_capacity(4 << 10);
    loop {
        request.clear();
        while !request.ends_with(b"\r\n\r\n") {
            let (count, filled) = stream.read(Vec::with_capacity(4 << 10)).await;
            if count? == 0 {
                return Ok(());
            }
            request.extend_from_slice(&filled);
        }
        send_all(&stream, ANSWER).await?;
    }
}

async fn asked(stream: &mut TcpStream) -> io::Result<(u32, wire::Sequence)> {
    let (read, request) = stream.read_exact(Box::new([0; wire::REQUEST])).await;
    read?;
    Ok(wire::parse_request(&request))
}

async fn answer(
    stream: &TcpStream,
    shared: &Shared,
    size: u32,
    sequence: wire::Sequence,
) -> io::Result<()> {
    let size = size.min(MAX_ANSWER) as usize;
    let mut sent = 0;
    while sent < size {
        match send_answer(stream, &mut shared.answers.borrow_mut(), size, sent, sequence) {
            Ok(count) => sent += count,
            Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        if sent < size {
            stream.writable(false).await?;
        }
    }
    Ok(())
}

/// All answers come from the same bytes, which then stay in the cache; only their beginnings
/// differ, and are written each time, since another connection may have sent in between.
fn send_answer(
    stream: &TcpStream,
    bytes: &mut Vec<u8>,
    size: usize,
    sent: usize,
    sequence: wire::Sequence,
) -> nix::Result<usize> {
    if bytes.len() < size.max(sequence.len()) {
        bytes.resize(size.max(sequence.len()), 0);
    }
    bytes[..sequence.len()].copy_from_slice(&sequence);
    send_now(stream, &bytes[sent..size])
}

async fn sink(stream: TcpStream) -> io::Result<()> {
    let mut drain = Drain::new();
    let count = loop {
        match drain.receive(&stream).await {
            Ok(0) => break drain.received(),
            Ok(_) => {}
            // No stream is so long: the client counts it as an error.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => break u64::MAX,
            Err(error) => return Err(error),
        }
    };
    send_all(&stream, &count.to_le_bytes()).await
}

async fn source(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut position = 0;
    loop {
        let sent = send_some(&stream, &shared.bulk[position..position + shared.size]).await?;
        position = (position + sent) % wire::PERIOD;
    }
}

async fn hold(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Box::new([0; 64]);
    loop {
        let (count, unread) = stream.read(buffer).await;
        if count? == 0 {
            return Ok(());
        }
        buffer = unread;
    }
}
