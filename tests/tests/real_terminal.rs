//! Verbs that go on until somebody ends them: on a terminal, and through a pipe.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringway_tests::real::config::forward;
use ringway_tests::real::{
    Gateway, Launch, Server, binary, echo, free_address, wait_for, wait_until,
};

/// What begins and what ends the terminal's other screen.
const BEGIN: &str = "\x1b[?1049h\x1b[?25l";
const END: &str = "\x1b[?25h\x1b[?1049l";

fn gateway() -> (Server, Gateway) {
    let server = Server::tcp(echo);
    let config = forward("TCP", free_address(), [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    (server, gateway)
}

/// A verb on a terminal of 80 columns and 24 lines.
struct OnTerminal {
    child: Child,
    said: String,
    more: Receiver<String>,
}

impl OnTerminal {
    fn start(words: &[&str], gateway: &Gateway) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).expect("a terminal");
        let child = Command::new(binary())
            .args(words)
            .arg("--admin")
            .arg(gateway.socket())
            .stdin(Stdio::null())
            .stdout(pty.slave)
            .spawn()
            .expect("the binary runs");
        let (sender, more) = channel();
        let mut master = File::from(pty.master);
        std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            // Reading fails when the verb has ended, and with it the other side of the terminal.
            while let Ok(count @ 1..) = master.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
        Self { child, said: String::new(), more }
    }

    fn says(&mut self, part: &str) {
        wait_until(part, || {
            self.said.extend(self.more.try_iter());
            self.said.contains(part)
        });
    }

    /// Sends the signal. Returns how the verb has ended, and all that it has drawn.
    fn end(mut self, signal: Signal) -> (ExitStatus, String) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("it runs");
        let status = wait_for("the end", || self.child.try_wait().expect("its status"));
        // The channel ends with the thread that reads.
        self.said.extend(self.more.iter());
        (status, self.said)
    }
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let (_server, gateway) = gateway();
    for (words, drawn) in
        [(&["top", "--interval", "1s"][..], "CLIENT"), (&["backends", "--watch"], "BACKEND")]
    {
        for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 0), (Signal::SIGHUP, 129)] {
            let mut verb = OnTerminal::start(words, &gateway);
            verb.says(BEGIN);
            verb.says(drawn);
            let (status, said) = verb.end(signal);
            assert_eq!(status.code(), Some(code), "{words:?}, {signal}: {said:?}");
            assert!(said.ends_with(END), "{words:?}, {signal}: {said:?}");
            assert_eq!(said.matches(BEGIN).count(), 1, "{said:?}");
        }
    }
}

#[test]
fn a_gateway_that_ends_leaves_the_terminal_as_it_was() {
    let (_server, gateway) = gateway();
    let mut verb = OnTerminal::start(&["status", "--watch"], &gateway);
    verb.says("ready");
    gateway.stop();
    let status = wait_for("the end", || verb.child.try_wait().expect("its status"));
    verb.said.extend(verb.more.iter());
    assert_eq!(status.code(), Some(1));
    assert!(verb.said.ends_with(END), "{:?}", verb.said);
}

#[test]
fn events_are_followed_and_each_is_told_once() {
    let server = Server::tcp(echo);
    let config = forward("TCP", free_address(), [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    let mut watch = Command::new(binary())
        .args(["events", "--watch", "--json", "--limit", "1", "--admin"])
        .arg(gateway.socket())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(watch.stdout.take().expect("a pipe")).lines();
    let mut number = || {
        let line = lines.next().expect("a line").expect("text");
        let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let text = event["text"].as_str().expect("a text").to_owned();
        (event["number"].as_u64().expect("a number"), text)
    };
    let (first, _) = number();
    gateway.reload(&format!("{config}connect_timeout = \"4s\"\n"));
    gateway.write(&format!("{config}color = 1\n"));
    let mut last = first;
    loop {
        let (next, text) = number();
        assert_eq!(next, last + 1, "{text}");
        last = next;
        if text.contains("color") {
            break;
        }
    }
    drop(lines);
    // The next line finds that nobody reads.
    gateway.write(&config);
    wait_until("the command ends", || watch.try_wait().expect("its status").is_some());
}
