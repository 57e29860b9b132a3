//! The examples of the pages by protocol, tried: Ringway runs each file as it is, between real
//! servers and their own clients, on machines that have the addresses of the file. Needs root.
//!
//! Debian has no Kafka, so of its example only the names are tried.

mod databases;
mod datagrams;
mod messages;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use ringway_tests::real::{
    Daemon, Folder, Namespace, binary, deadline, in_own_network, limited, program, wait_until,
};

/// Runs `test` with three machines: servers, a gateway, and a client.
fn with_machines(test: impl FnOnce(Machines) + Send + 'static) {
    in_own_network(|| test(Machines::new()));
}

/// Machines on one network. The one of the servers has all addresses that the examples name.
struct Machines {
    servers: Namespace,
    gateway: Namespace,
    client: Namespace,
    folder: Folder,
    /// Gateway first: it is not to see its servers go.
    running: Vec<Running>,
}

/// Ended by force: nobody needs what it has.
struct Running(Daemon);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.signal(Signal::SIGKILL);
    }
}

const GATEWAY: &str = "10.0.0.2";
const CLIENT: &str = "10.0.0.9";

impl Machines {
    fn new() -> Self {
        program("ip", &["link", "add", "br0", "type", "bridge"]);
        program("ip", &["link", "set", "br0", "up"]);
        let machine = |name, address| {
            let machine = Namespace::new();
            machine.plug("br0", name, "eth0", address);
            machine
        };
        let servers = machine("servers", "10.0.0.11/24");
        servers.run(|| {
            let more = ["10.0.0.12/24", "10.0.0.13/24", "10.0.0.21/24", "10.0.0.53/24"];
            for address in more.into_iter().chain(["10.0.1.53/24"]) {
                program("ip", &["address", "add", address, "dev", "eth0"]);
            }
        });
        let gateway = machine("gateway", "10.0.0.2/24");
        gateway.run(|| drop(program("ip", &["route", "add", "10.0.1.0/24", "dev", "eth0"])));
        let client = machine("client", "10.0.0.9/24");
        Self { servers, gateway, client, folder: Folder::new(), running: Vec::new() }
    }

    /// Starts a server, with all that it starts itself in a process namespace that ends with it.
    /// Waits until something listens on TCP at each of the addresses.
    fn serve(&mut self, at: &[&str], words: &[&str]) {
        let at: Vec<SocketAddr> = at.iter().map(|at| at.parse().expect("an address")).collect();
        let words: Vec<_> = words.iter().map(ToString::to_string).collect();
        let daemon = self.servers.run(move || {
            let mut command = Command::new("unshare");
            command.args(["--pid", "--fork", "--kill-child"]).args(words);
            let daemon = Daemon::spawn(&mut command);
            for address in at {
                wait_until(&format!("{command:?} listens at {address}"), || {
                    TcpStream::connect(address).is_ok()
                });
            }
            daemon
        });
        self.running.push(Running(daemon));
    }

    /// Starts Ringway with the file of an example.
    fn ringway(&mut self, example: &str) {
        self.ringway_with(examples().join(example));
    }

    /// The same with another path in the file, which must be there.
    fn ringway_as(&mut self, example: &str, path: &str, ours: &str) {
        let text = std::fs::read_to_string(examples().join(example)).expect("the example");
        assert!(text.contains(path), "{example} has {path}");
        let file = self.write(example, &text.replace(path, ours));
        self.ringway_with(file.into());
    }

    fn ringway_with(&mut self, file: PathBuf) {
        let daemon = self.gateway.run(move || {
            let mut command = Command::new(binary());
            Daemon::start(ADMIN, command.arg("run").arg(file))
        });
        self.running.insert(0, Running(daemon));
    }

    /// What a program of the client prints, if it succeeds.
    fn try_to(&self, words: &[&str]) -> Result<String, String> {
        let words: Vec<_> = words.iter().map(ToString::to_string).collect();
        self.client.run(move || {
            let output = limited(&words[0]).args(&words[1..]).output().expect("it starts");
            let said = [output.stdout, output.stderr]
                .map(|said| String::from_utf8_lossy(&said).into_owned());
            match output.status.success() {
                true => Ok(said[0].clone()),
                false => Err(format!("{words:?}: {}\n{}\n{}", output.status, said[0], said[1])),
            }
        })
    }

    /// The same for a program that must succeed.
    fn client(&self, words: &[&str]) -> String {
        self.try_to(words).unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// Waits until each of the backends has had as many good health checks, and none that failed.
    fn checked(&self, backends: &[(&str, u64)]) {
        for (backend, wanted) in backends {
            let checks = |result: &str| {
                let of = format!(
                    "ringway_health_checks_total{{backend=\"{backend}\",result=\"{result}\"}} "
                );
                let text = self.gateway.run(|| get("/metrics"));
                let line = text.lines().find_map(|line| line.strip_prefix(&of));
                line.map_or(0, |count| count.parse().expect("a number"))
            };
            wait_until(&format!("{wanted} health checks of {backend}"), || {
                assert_eq!(checks("failed"), 0, "{backend}");
                checks("ok") >= *wanted
            });
        }
    }

    /// Writes a certificate for the addresses of gateway and servers, and who has signed it:
    /// `server.pem`, `server.key`, `ca.pem`.
    fn certificate(&self, names: &[&str]) {
        let pki = ringway_tests::pki::Pki::new();
        let issued = pki.issue(names);
        self.folder.write("server.pem", &issued.cert);
        self.folder.write("server.key", &issued.key);
        self.folder.write("ca.pem", &pki.ca());
    }

    /// The path of a file of the test.
    fn file(&self, name: &str) -> String {
        self.folder.file(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        self.folder.write(name, text).display().to_string()
    }

    /// What is in a file of the test by now.
    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.file(name)).unwrap_or_default()
    }
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/examples")
}

/// Where an example without `admin` has it.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9900);

fn get(path: &str) -> String {
    let mut stream = TcpStream::connect(ADMIN).expect("Ringway listens");
    stream.set_read_timeout(Some(deadline())).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}
