//! An old process, which plays one act, and a real new process.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringway_tests::real::config::forward_as;
use ringway_tests::real::{
    Folder, Server, binary, connect, connect_from, echo, exchange, free_address, run_verb,
    udp_client, wait_for, wait_until,
};

use crate::{Act, DEADLINE};

/// An old process, which plays one act, and a real new process.
pub struct Play {
    pub old: Child,
    new: Child,
    pub folder: Folder,
    tcp: SocketAddr,
    /// The client of the old process's session, and that of its flow.
    pub client: TcpStream,
    pub player: UdpSocket,
    udp: SocketAddr,
    _servers: (Server, Server),
}

impl Play {
    pub fn begin(act: Act) -> Self {
        let servers = (
            Server::tcp(echo),
            Server::udp(|socket, bytes, peer| {
                let heard = format!("{} {}", peer.port(), String::from_utf8_lossy(bytes));
                let _ = socket.send_to(heard.as_bytes(), peer);
            }),
        );
        let (folder, tcp, udp) = (Folder::new(), free_address(), free_address());
        let player = udp_client(udp);
        let old = Command::new(std::env::current_exe().expect("this program"))
            .args(["--ignored", "--exact", "old::an_old_process_of_a_test", "--nocapture"])
            .env("RINGWAY_TEST_ACT", format!("{act:?}"))
            .env("RINGWAY_TEST_FOLDER", folder.file(""))
            .env("RINGWAY_TEST_TCP", tcp.to_string())
            .env("RINGWAY_TEST_UDP", udp.to_string())
            .env("RINGWAY_TEST_TCP_ENDPOINT", servers.0.address.to_string())
            .env("RINGWAY_TEST_UDP_ENDPOINT", servers.1.address.to_string())
            .env("RINGWAY_TEST_UDP_CLIENT", player.local_addr().expect("bound").to_string())
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        wait_until("the old process listens", || folder.file("listens").exists());
        let client = connect(tcp);
        wait_until("the old process serves", || folder.file("serves").exists());
        let config = format!(
            "admin = {{ address = \"{}\", socket = \"{}\" }}\nworkers = {{ cores = [0, 1] }}\n\
             access_log = {{ path = \"{}\" }}\n",
            free_address(),
            folder.file("admin.sock").display(),
            folder.file("access.log").display(),
        ) + &forward_as("tcp", "TCP", tcp, [servers.0.address], "")
            + &forward_as("udp", "UDP", udp, [servers.1.address], "");
        let file = folder.write("ringway.toml", &config);
        let stderr = std::fs::File::create(folder.file("stderr")).expect("a file");
        let new = Command::new(binary())
            .args(["run", "--take-over", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("it starts");
        Self { old, new, folder, tcp, client, player, udp, _servers: servers }
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(self.folder.file("stderr")).unwrap_or_default()
    }

    /// What a verb prints as JSON. `None`: the new process does not answer.
    pub fn asks(&self, words: &[&str]) -> Option<serde_json::Value> {
        let words: Vec<_> = words.iter().copied().chain(["--json"]).collect();
        let output = run_verb(&words, &self.folder.file("admin.sock").display().to_string());
        let answer = || serde_json::from_slice(&output.stdout).expect("JSON");
        output.status.success().then(answer)
    }

    /// The new process serves alone, with both of its workers, and hands over to the next one.
    pub fn serves_alone(&mut self) {
        let status = wait_for("the new process answers", || self.asks(&["status"]));
        assert_eq!(status["upgrade"]["generation"], 4, "{status}");
        // Each worker accepts: the kernel steers by source.
        for host in 1..=40 {
            let client = connect_from(&format!("127.0.0.{host}"), self.tcp);
            asks(&client, b"word");
        }
        wait_until("each worker has had a client", || self.workers() == [0, 1]);
        assert_eq!(self.hears(&udp_client(self.udp), "word").1, "word");
        let answer = self.asks(&["upgrade"]).expect("the next upgrade succeeds");
        assert_eq!(answer["generation"], 5, "{answer}");
        assert_eq!(exchange(self.tcp, b"word").expect("it serves"), b"word");
        let process = answer["process"].as_i64().and_then(|number| i32::try_from(number).ok());
        kill(Pid::from_raw(process.expect("a number")), Signal::SIGTERM).expect("it lives");
        let new = &mut self.new;
        let ended = wait_for("the new process has ended", || new.try_wait().expect("its status"));
        assert!(ended.success(), "{ended}");
    }

    /// Workers whose sessions the access log has.
    fn workers(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(self.folder.file("access.log")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        let mut workers: Vec<_> =
            lines.filter_map(|line: serde_json::Value| line["worker"].as_u64()).collect();
        workers.sort_unstable();
        workers.dedup();
        workers
    }

    /// The port that the endpoint sees, and what the client hears back.
    pub fn hears(&self, client: &UdpSocket, word: &str) -> (String, String) {
        client.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        client.send(word.as_bytes()).expect("it is sent");
        let mut answer = [0; 64];
        let len = client.recv(&mut answer).expect("an answer");
        let answer = String::from_utf8_lossy(&answer[..len]).into_owned();
        let (port, word) = answer.split_once(' ').expect("two words");
        (port.to_owned(), word.to_owned())
    }

    /// The new process ends with an error that says this.
    pub fn ends_with(&mut self, why: &str) {
        let new = &mut self.new;
        let ended = wait_for("the new process ends", || new.try_wait().expect("its status"));
        let said = self.said();
        assert!(!ended.success() && said.contains(why), "{ended}: {said}");
        assert!(!said.contains("goes on alone"), "{said}");
    }

    /// The old process still serves, and has its session.
    pub fn is_left_to_the_old_one(&mut self) {
        assert!(self.old.try_wait().expect("its status").is_none(), "the old process lives");
        for _ in 0..20 {
            assert_eq!(exchange(self.tcp, b"word").expect("the old one serves"), b"word");
        }
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        for child in [&mut self.old, &mut self.new] {
            _ = child.kill();
            _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- what the new process said ----\n{}", self.said());
        }
    }
}

pub fn asks(mut client: &TcpStream, word: &[u8]) {
    client.write_all(word).expect("the session lives");
    let mut answer = vec![0; word.len()];
    client.read_exact(&mut answer).expect("the session lives");
    assert_eq!(answer, word);
}
