//! Servers: threads of the test, and real programs as child processes.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;
use socket2::{Domain, SockRef, Socket, Type};

use super::in_kernel::own_ip;
use super::wait_until;

/// A server on threads of the test. Stops listening when dropped; connections that are open go on
/// until their handler ends.
#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    /// Connections accepted, or datagrams received.
    pub served: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// `None` for UDP.
    listener: Option<TcpListener>,
}

impl Server {
    /// Calls `handler` with each connection, on a thread of its own.
    pub fn tcp(handler: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::tcp_at((Ipv4Addr::LOCALHOST, 0).into(), handler)
    }

    pub fn tcp_at(
        address: SocketAddr,
        handler: impl Fn(TcpStream) + Send + Sync + 'static,
    ) -> Self {
        let listener = listen(address, 4096);
        let address = listener.local_addr().expect("its address");
        let accepting = listener.try_clone().expect("a descriptor");
        let (served, handler) = (Arc::new(AtomicU64::new(0)), Arc::new(handler));
        let count = Arc::clone(&served);
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                count.fetch_add(1, Ordering::SeqCst);
                let handler = Arc::clone(&handler);
                std::thread::spawn(move || handler(stream));
            }
        });
        let over = Arc::new(AtomicBool::new(false));
        Self { address, served, over, thread: Some(thread), listener: Some(listener) }
    }

    /// Calls `handler` with each datagram.
    pub fn udp(handler: impl FnMut(&UdpSocket, &[u8], SocketAddr) + Send + 'static) -> Self {
        Self::udp_at((own_ip(), 0).into(), handler)
    }

    pub fn udp_at(
        address: SocketAddr,
        mut handler: impl FnMut(&UdpSocket, &[u8], SocketAddr) + Send + 'static,
    ) -> Self {
        let socket = UdpSocket::bind(address).expect("binding");
        // A burst of a test may be larger than the usual 208 KB. The kernel grants what it may.
        SockRef::from(&socket).set_recv_buffer_size(4 << 20).expect("a buffer size");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        let address = socket.local_addr().expect("its address");
        let (served, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&served), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            let mut bytes = vec![0; 65_536];
            while !stopped.load(Ordering::SeqCst) {
                if let Ok((len, peer)) = socket.recv_from(&mut bytes) {
                    count.fetch_add(1, Ordering::SeqCst);
                    handler(&socket, &bytes[..len], peer);
                }
            }
        });
        Self { address, served, over, thread: Some(thread), listener: None }
    }

    /// Answers each datagram with itself.
    pub fn udp_echo() -> Self {
        Self::udp(|socket, bytes, peer| {
            let _ = socket.send_to(bytes, peer);
        })
    }

    /// Answers each datagram with `tag`.
    pub fn udp_tag(tag: &'static str) -> Self {
        Self::udp(move |socket, _, peer| {
            let _ = socket.send_to(tag.as_bytes(), peer);
        })
    }

    /// Says `tag` and closes.
    pub fn tcp_tag(tag: &'static str) -> Self {
        Self::tcp(move |mut stream| {
            let _ = stream.write_all(tag.as_bytes());
        })
    }

    pub fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(listener) = &self.listener {
            // Linux wakes the thread out of its accept, with EINVAL, and nothing listens any more.
            let _ = SockRef::from(listener).shutdown(Shutdown::Both);
        }
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn listen(address: SocketAddr, backlog: i32) -> TcpListener {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    socket.bind(&address.into()).unwrap_or_else(|error| panic!("binding {address}: {error}"));
    socket.listen(backlog).expect("listening");
    socket.into()
}

/// An address where connecting neither succeeds nor fails: a listener with a full queue, so that
/// the kernel drops the SYN (tcp(7), listen(2)). It is so until the sockets are dropped.
pub fn accept_full() -> (SocketAddr, Vec<Socket>) {
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into(), 0);
    let address = listener.local_addr().expect("its address");
    let mut sockets = vec![Socket::from(listener)];
    loop {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let full = client.connect_timeout(&address.into(), Duration::from_millis(300)).is_err();
        sockets.push(client);
        if full {
            return (address, sockets);
        }
    }
}

/// Sends everything back, then its own FIN.
pub fn echo(mut stream: TcpStream) {
    let mut bytes = [0; 65_536];
    while let Ok(len) = stream.read(&mut bytes) {
        if len == 0 {
            let _ = stream.shutdown(Shutdown::Write);
            return;
        }
        if stream.write_all(&bytes[..len]).is_err() {
            return;
        }
    }
}

/// Reads to the end, and then sends everything back.
pub fn parrot(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    if stream.read_to_end(&mut bytes).is_ok() {
        let _ = stream.write_all(&bytes);
    }
}

/// A real server program, killed by its pid when dropped.
#[derive(Debug)]
pub struct Daemon(Child);

impl Daemon {
    /// Starts it and waits until something listens on TCP at `address`.
    pub fn start(address: SocketAddr, command: &mut Command) -> Self {
        let mut daemon = Self::spawn(command);
        wait_until(&format!("{command:?} listens"), || {
            if let Some(status) = daemon.0.try_wait().expect("its status") {
                panic!("{command:?} ended at once: {status}");
            }
            TcpStream::connect(address).is_ok()
        });
        daemon
    }

    /// Starts iperf3's server, for one transfer, and waits until it listens. It turns away whoever
    /// comes while it has another client, so nobody tries to connect.
    pub fn iperf3(address: SocketAddr) -> Self {
        let port = address.port().to_string();
        let mut command = Command::new("iperf3");
        let daemon = Self::spawn(command.args(["-s", "-1", "-B", "127.0.0.1", "-p", &port]));
        // proc_net_tcp(5): the address in the order of its bytes, and the state TCP_LISTEN.
        let line = format!(": 0100007F:{:04X} 00000000:0000 0A ", address.port());
        wait_until("iperf3 listens", || {
            std::fs::read_to_string("/proc/net/tcp").is_ok_and(|sockets| sockets.contains(&line))
        });
        daemon
    }

    /// Starts it, without waiting for anything.
    pub fn spawn(command: &mut Command) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self(child)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Daemon {
    pub fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).expect("a process id"));
        let _ = nix::sys::signal::kill(pid, signal);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SIGINT first: PostgreSQL takes its children along ("fast shutdown").
        self.signal(Signal::SIGINT);
        self.signal(Signal::SIGCONT);
        for _ in 0..200 {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
