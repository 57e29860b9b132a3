//! What systemd says to a service and hears of it: passed sockets, stored sockets, reloads.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::fstat;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use ringway::ring::sys::pass;
use ringway_tests::real::config::{forward_as, listener};
use ringway_tests::real::{
    Folder, Gateway, Launch, Server, echo, exchange, free_address, udp_client, wait_for, wait_until,
};

/// The receiving end of `NOTIFY_SOCKET`.
struct Systemd {
    folder: Folder,
    socket: UnixDatagram,
}

/// What the service says, and the descriptors beside it.
type Said = (String, Vec<OwnedFd>);

impl Systemd {
    fn new() -> Self {
        let folder = Folder::new();
        let socket = UnixDatagram::bind(folder.file("notify")).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        Self { folder, socket }
    }

    fn hear(&self) -> Said {
        let mut bytes = [0; 1_024];
        let (len, beside) = pass::receive(self.socket.as_fd(), &mut bytes).expect("a word");
        (String::from_utf8_lossy(&bytes[..len]).into_owned(), beside)
    }

    fn expect(&self, start: &str) -> Said {
        loop {
            let said = self.hear();
            if said.0.starts_with(start) {
                return said;
            }
        }
    }

    /// Nothing that begins so is said for this long, whatever was said before.
    fn hears_nothing_like(&self, start: &str, span: Duration) {
        self.socket.set_nonblocking(true).expect("a flag");
        while self.socket.recv(&mut [0; 1_024]).is_ok() {}
        std::thread::sleep(span);
        let mut bytes = [0; 1_024];
        while let Ok(len) = self.socket.recv(&mut bytes) {
            let said = String::from_utf8_lossy(&bytes[..len]);
            assert!(!said.starts_with(start), "{said}");
        }
        self.socket.set_nonblocking(false).expect("a flag");
    }

    /// The next socket that is stored, and its name.
    fn stores(&self) -> (String, OwnedFd) {
        let (said, mut sockets) = self.expect("FDSTORE=1\nFDPOLL=0\nFDNAME=stored_");
        assert_eq!(sockets.len(), 1, "{said}");
        let name = said.rsplit('=').next().expect("a name").to_owned();
        (name, sockets.remove(0))
    }

    /// A launch that passes `sockets` as systemd does: from number 3 on, with the number of the
    /// process that gets them.
    fn launch(&self, names: &str, sockets: &[OwnedFd]) -> Launch {
        self.launch_with("", names, sockets)
    }

    /// The same with further words on the command line.
    fn launch_with(&self, words: &str, names: &str, sockets: &[OwnedFd]) -> Launch {
        self.launch_by(String::new(), words, names, sockets)
    }

    /// The same with further variables.
    fn launch_with_variables(&self, more: &str, names: &str, sockets: &[OwnedFd]) -> Launch {
        self.launch_by(format!("export {more}\n"), "", names, sockets)
    }

    fn launch_by(
        &self,
        mut script: String,
        words: &str,
        names: &str,
        sockets: &[OwnedFd],
    ) -> Launch {
        // First to numbers that are free, because 3 may be one of the sockets.
        for (number, socket) in (3..).zip(sockets) {
            fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).expect("it is open");
            script += &format!("exec {}<&{}\n", 100 + number, socket.as_raw_fd());
        }
        for socket in sockets {
            script += &format!("exec {}<&-\n", socket.as_raw_fd());
        }
        for number in (3..).take(sockets.len()) {
            script += &format!("exec {number}<&{0} {0}<&-\n", 100 + number);
        }
        script += &format!(
            "export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={names} FDSTORE=100 \
             NOTIFY_SOCKET={}\nexec \"$0\" \"$@\" {words}",
            sockets.len(),
            self.folder.file("notify").display(),
        );
        Launch::default().socket().under(&["bash", "-c", &script])
    }
}

fn config(tcp: SocketAddr, udp: SocketAddr, servers: &[Server; 2]) -> String {
    forward_as("tcp", "TCP", tcp, [servers[0].address], "")
        + &forward_as("udp", "UDP", udp, [servers[1].address], "")
}

fn servers() -> [Server; 2] {
    [Server::tcp(echo), Server::udp_echo()]
}

/// What a datagram's sender hears back.
fn ask_udp(address: SocketAddr) -> Vec<u8> {
    let client = udp_client(address);
    client.send(b"word").expect("it is sent");
    let mut bytes = [0; 16];
    let len = client.recv(&mut bytes).expect("an answer");
    bytes[..len].to_vec()
}

/// systemd opens a TCP socket once, and a UDP socket for each worker.
fn of_a_socket_unit() -> (SocketAddr, SocketAddr, Vec<OwnedFd>) {
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let udp = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        socket.set_reuse_port(true)?;
        std::io::Result::Ok(socket)
    };
    let first = udp().expect("a socket");
    first.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bound");
    let address = first.local_addr().expect("bound").as_socket().expect("IPv4");
    let second = udp().expect("a socket");
    second.bind(&address.into()).expect("it joins");
    let at = tcp.local_addr().expect("bound");
    (at, address, vec![tcp.into(), first.into(), second.into()])
}

#[test]
fn sockets_of_a_socket_unit_are_used_and_others_are_warned_of() {
    let (systemd, servers) = (Systemd::new(), servers());
    let (tcp, udp, mut sockets) = of_a_socket_unit();
    let other = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let elsewhere = other.local_addr().expect("bound");
    sockets.push(other.into());
    // This client waits in the queue of the socket since before the gateway.
    let mut early = TcpStream::connect(tcp).expect("the socket listens");
    let gateway = systemd.launch("tcp:udp:udp:tcp", &sockets).start(&config(tcp, udp, &servers));
    drop(sockets);
    systemd.expect("READY=1");
    early.write_all(b"early").expect("it is sent");
    let mut bytes = [0; 5];
    early.read_exact(&mut bytes).expect("it comes back");
    assert_eq!(&bytes, b"early");
    for _ in 0..20 {
        assert_eq!(exchange(tcp, b"word").expect("it serves"), b"word");
        assert_eq!(ask_udp(udp), b"word");
    }
    gateway.says(&format!("the listener of this name does not listen on {elsewhere} (TCP)"));
    assert!(TcpStream::connect(elsewhere).is_err(), "it is closed");
    // An upgrade takes sockets of systemd's along too.
    gateway.asks(&["upgrade"]);
    wait_until("the next process serves", || exchange(tcp, b"next").is_ok());
    assert_eq!(ask_udp(udp), b"word");
}

#[test]
fn connections_wait_in_stored_sockets_while_the_gateway_is_down() {
    let (systemd, servers) = (Systemd::new(), servers());
    let (tcp, udp) = (free_address(), free_address());
    let text = config(tcp, udp, &servers);
    let mut gateway = systemd.launch("", &[]).start(&text);
    // One message for each listener and each of two workers.
    let mut all: Vec<_> = (0..4).map(|_| systemd.stores()).collect();
    // systemd may give them back in any order.
    all.reverse();
    let before = by_inode(&all);
    let (names, stored): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    gateway.signal(Signal::SIGKILL);
    wait_for("the end", || gateway.ended());
    let mut waits = TcpStream::connect(tcp).expect("the stored socket listens");
    waits.write_all(b"waits").expect("it is sent");

    let next = systemd.launch(&names.join(":"), &stored).start(&text);
    drop(stored);
    let again: Vec<_> = (0..4).map(|_| systemd.stores()).collect();
    assert_eq!(by_inode(&again), before, "each worker has its own socket again");
    drop(again);
    let mut bytes = [0; 5];
    waits.read_exact(&mut bytes).expect("the next gateway serves it");
    assert_eq!(&bytes, b"waits");
    for _ in 0..20 {
        assert_eq!(exchange(tcp, b"word").expect("it serves"), b"word");
        assert_eq!(ask_udp(udp), b"word");
    }
    // A listener that is gone is not stored any more, and at the end none is.
    next.reload(&text.replace(&tcp.to_string(), &free_address().to_string()));
    for worker in 0..2 {
        systemd.expect(&removal(&names, "tcp", worker));
    }
    next.signal(Signal::SIGTERM);
    systemd.expect("STOPPING=1");
    for _ in 0..4 {
        systemd.expect("FDSTOREREMOVE=1");
    }
}

/// In an upgrade the configuration loses an address: nobody accepts there any more, so systemd must
/// not keep the sockets of the process before. What the next process has more is stored.
#[test]
fn sockets_that_only_the_process_before_has_had_are_stored_no_longer() {
    let (systemd, servers) = (Systemd::new(), servers());
    let (tcp, udp, other) = (free_address(), free_address(), free_address());
    let text = config(tcp, udp, &servers);
    let gateway = systemd.launch_with("--no-watch", "", &[]).start(&text);
    let names: Vec<_> = (0..4).map(|_| systemd.stores().0).collect();
    gateway.write_in_place(&text.replace(&tcp.to_string(), &other.to_string()));
    gateway.asks(&["upgrade"]);
    for worker in 0..2 {
        systemd.expect(&removal(&names, "tcp", worker));
    }
    let port = other.port().to_string();
    let name = std::iter::from_fn(|| Some(systemd.stores().0)).find(|name| name.contains(&port));
    assert!(name.is_some_and(|name| name.contains("tcp")));
    assert_eq!(exchange(other, b"word").expect("it serves"), b"word");
    assert_eq!(ask_udp(udp), b"word");
}

/// The word with which systemd is to drop the socket of a worker.
fn removal(names: &[String], of: &str, worker: usize) -> String {
    let is_it = |name: &&String| name.contains(of) && name.ends_with(&format!("_{worker}"));
    let name = names.iter().find(is_it).expect("stored");
    format!("FDSTOREREMOVE=1\nFDNAME={name}")
}

/// The names of sockets, each with the number by which the kernel knows the socket.
fn by_inode(all: &[(String, OwnedFd)]) -> BTreeMap<String, u64> {
    let inode = |socket: &OwnedFd| fstat(socket).expect("it is open").st_ino;
    all.iter().map(|(name, socket)| (name.clone(), inode(socket))).collect()
}

#[test]
fn a_reload_is_told_from_its_start_to_its_end() {
    let (systemd, servers) = (Systemd::new(), servers());
    let (tcp, udp) = (free_address(), free_address());
    let text = config(tcp, udp, &servers);
    let gateway = systemd.launch("", &[]).start(&text);
    systemd.expect("READY=1");
    let began = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    for (written, status) in [
        (text.replace("\"udp\"", "\"udq\""), "configuration "),
        ("listeners = 1\n".to_owned(), "the new configuration is refused: "),
    ] {
        gateway.write(&written);
        gateway.signal(Signal::SIGHUP);
        let (said, _) = systemd.expect("RELOADING=1\nMONOTONIC_USEC=");
        let micros: i64 = said.rsplit('=').next().expect("a time").parse().expect("a number");
        assert!(micros >= began.tv_sec() * 1_000_000, "{said}");
        let (said, _) = systemd.expect("READY=1\nSTATUS=");
        assert!(said.contains(status), "{said}");
    }
}

/// A file of `images/`.
fn image(name: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/");
    std::fs::read_to_string(format!("{path}{name}")).expect("it is there")
}

/// `systemctl reload` runs a command of the unit, which says what became of the reload.
#[test]
fn the_command_of_a_reload_fails_if_the_configuration_is_refused() {
    const SOCKET: &str = "/run/ringway/admin.sock";
    let unit = image("ringway.service");
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecReload="));
    let words: Vec<_> = command.expect("a command").split(' ').collect();
    assert_eq!(words, ["/usr/local/bin/ringway", "reload", "--admin", SOCKET]);
    assert!(image("ringway.toml").contains(&format!("\nsocket = \"{SOCKET}\"\n")));
    let reload = |gateway: &Gateway| gateway.verb(&words[1..2]);

    let (server, address) = (Server::tcp(echo), free_address());
    let good = listener("a", "TCP", address, &format!("endpoints = [\"{}\"]\n", server.address));
    let launch = Launch::default().under(&["sh", "-c", "exec \"$0\" \"$@\" --no-watch"]);
    let gateway = launch.socket().start(&good);
    let other = free_address();
    gateway.write(&good.replace(&address.to_string(), &other.to_string()));
    let done = reload(&gateway);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(exchange(other, b"word").expect("the new file is in force"), b"word");
    gateway.write(&format!("{good}colour = 1\n"));
    let refused = reload(&gateway);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("colour"), "{said}");
    assert_eq!(exchange(other, b"word").expect("the file before is in force"), b"word");

    // An operator has removed the socket from the file.
    let gateway = Gateway::start(&good);
    let failed = reload(&gateway);
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && said.contains("`admin.socket`"), "{said}");
}

/// Stops one thread of a process, and no other, until it is dropped.
struct Stopped(Pid);

impl Stopped {
    fn thread(process: u32, name: &str) -> Self {
        let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("it lives");
        let is_it = |path: &std::path::Path| {
            std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let path =
            threads.filter_map(Result::ok).map(|entry| entry.path()).find(|path| is_it(path));
        let path = path.expect("a thread of this name");
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        let thread = Pid::from_raw(number.expect("a number"));
        ptrace::seize(thread, ptrace::Options::empty()).expect("this needs root");
        ptrace::interrupt(thread).expect("it is traced");
        let stops = waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
        assert!(matches!(stops, WaitStatus::PtraceEvent(..)), "{stops:?}");
        Self(thread)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // If the thread has ended, it stands still no more.
        _ = ptrace::detach(self.0, None);
    }
}

/// systemd hears that the gateway lives as long as all workers do, and no longer.
#[test]
fn the_watchdog_is_fed_while_all_workers_live() {
    let (systemd, servers) = (Systemd::new(), servers());
    let (tcp, udp) = (free_address(), free_address());
    let gateway = systemd
        .launch_with_variables("WATCHDOG_USEC=1000000", "", &[])
        .start(&config(tcp, udp, &servers));
    systemd.expect("READY=1");
    (0..4).for_each(|_| drop(systemd.expect("WATCHDOG=1")));
    let stopped = Stopped::thread(gateway.pid(), "ringway-1");
    gateway.says("worker 1 hangs: it has");
    gateway.says("systemd hears no more that this gateway lives");
    let (status, body) = gateway.get("/readyz").expect("the control thread lives");
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("not ready: worker 1 has made no turn for "), "{body}");
    assert_eq!(gateway.get("/healthz").expect("an answer").0, 200, "it may go on yet");
    // More than the time after which systemd would end the gateway.
    systemd.hears_nothing_like("WATCHDOG=1", Duration::from_secs(2));
    drop(stopped);
    systemd.expect("WATCHDOG=1");
    wait_until("it is ready again", || {
        gateway.get("/readyz").is_some_and(|(status, _)| status == 200)
    });
    gateway.says("worker 1 goes on after ");
    for _ in 0..20 {
        assert_eq!(exchange(tcp, b"word").expect("it serves"), b"word");
    }
    // The next process feeds it, and this one does not.
    gateway.asks(&["upgrade"]);
    (0..4).for_each(|_| drop(systemd.expect("WATCHDOG=1")));
}

#[test]
fn the_pid_file_names_the_process_that_serves() {
    let (folder, server) = (Folder::new(), Server::tcp(echo));
    let (file, address) = (folder.file("ringway.pid"), free_address());
    let config = listener("a", "TCP", address, &format!("endpoints = [\"{}\"]", server.address));
    let script = format!("exec \"$0\" \"$@\" --pid-file {}", file.display());
    let gateway = Launch::default().socket().under(&["sh", "-c", &script]).start(&config);
    let number = || {
        let text = std::fs::read_to_string(&file).ok()?;
        text.trim().parse::<u32>().ok()
    };
    wait_until("the number is there", || number() == Some(gateway.pid()));
    let answer = gateway.asks(&["upgrade"]);
    let process = answer["process"].as_u64().and_then(|number| number.try_into().ok());
    wait_until("the new number is there", || number() == process);
    let process = process.expect("a number");
    kill(Pid::from_raw(process.try_into().expect("a number")), Signal::SIGTERM).expect("it lives");
    wait_until("the last process has ended", || !file.exists());
}
