//! Verbs that go on until somebody ends them: on a terminal, and through a pipe.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;
use ringway_tests::real::config::forward;
use ringway_tests::real::{
    Gateway, Launch, Server, binary, connect, echo, free_address, wait_for, wait_until, was_reset,
};
use vt100::Parser;

/// What begins and what ends the terminal's other screen.
const BEGIN: &str = "\x1b[?1049h\x1b[?25l";
const END: &str = "\x1b[?25h\x1b[?1049l";

fn gateway() -> (Server, Gateway) {
    let (server, gateway, _) = gateway_and_listener();
    (server, gateway)
}

fn gateway_and_listener() -> (Server, Gateway, SocketAddr) {
    let (server, listener) = (Server::tcp(echo), free_address());
    let config = forward("TCP", listener, [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    (server, gateway, listener)
}

fn parser(lines: u16, columns: u16) -> Parser {
    let size = |of| NonZero::new(of).expect("a size");
    Parser::new(size(lines), size(columns), 0)
}

/// A verb on a terminal of 80 columns and 24 lines.
struct OnTerminal {
    child: Child,
    said: String,
    screen: Parser,
    more: Receiver<Vec<u8>>,
    keys: File,
    /// The side of the verb. What the verb changes of the terminal is seen here.
    terminal: OwnedFd,
    before: Termios,
}

impl OnTerminal {
    fn start(words: &[&str], gateway: &Gateway) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).expect("a terminal");
        let side = || pty.slave.try_clone().expect("a file descriptor");
        let child = Command::new(binary())
            .args(words)
            .arg("--admin")
            .arg(gateway.socket())
            .stdin(side())
            .stdout(side())
            .spawn()
            .expect("the binary runs");
        let (sender, more) = channel();
        let keys = File::from(pty.master);
        let mut master = keys.try_clone().expect("a file descriptor");
        std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            while let Ok(count @ 1..) = master.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let before = tcgetattr(&pty.slave).expect("a terminal");
        let screen = parser(24, 80);
        Self { child, said: String::new(), screen, more, keys, terminal: pty.slave, before }
    }

    fn read(&mut self) {
        for bytes in self.more.try_iter() {
            self.screen.process(&bytes);
            self.said.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    fn says(&mut self, part: &str) {
        wait_until(part, || {
            self.read();
            self.said.contains(part)
        });
    }

    /// Waits until the text is on the screen.
    fn shows(&mut self, part: &str) {
        wait_until(part, || {
            self.read();
            self.screen.screen().contents().contains(part)
        });
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("a terminal");
    }

    /// Sends the signal. Returns how the verb has ended, and all that it has drawn.
    fn end(self, signal: Signal) -> (ExitStatus, String) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("it runs");
        self.ended()
    }

    /// Waits for the end. The terminal is as it was before.
    fn ended(mut self) -> (ExitStatus, String) {
        let status = wait_for("the end", || self.child.try_wait().expect("its status"));
        assert_eq!(tcgetattr(&self.terminal).expect("a terminal"), self.before);
        drop(self.terminal);
        // The channel ends with the thread that reads, once nobody has the verb's side any more.
        let rest: Vec<u8> = self.more.iter().flatten().collect();
        self.said.push_str(&String::from_utf8_lossy(&rest));
        (status, self.said)
    }
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let (_server, gateway) = gateway();
    for (words, drawn) in
        [(&["top", "--interval", "1s"][..], "Overview"), (&["backends", "--watch"], "BACKEND")]
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
    let (status, said) = verb.ended();
    assert_eq!(status.code(), Some(1));
    assert!(said.ends_with(END), "{said:?}");
}

#[test]
fn top_takes_keys_and_outlives_a_gateway_that_is_lost() {
    let (_server, gateway, listener) = gateway_and_listener();
    let mut client = connect(listener);
    let address = client.local_addr().expect("an address").to_string();
    client.write_all(b"hello").expect("sent");
    client.read_exact(&mut [0; 5]).expect("an echo");
    let mut top = OnTerminal::start(&["top", "--interval", "1s"], &gateway);
    top.shows("ready  sessions 1 of");
    top.press("2");
    top.shows("Listeners: 1  sort: bytes");
    top.press("3s");
    top.shows("Backends: 1  sort: bytes");
    top.press("6");
    top.shows("Events:");
    top.press("4");
    top.shows(&address);
    // A list of nothing: no such listener.
    top.press("/listener=none\r");
    top.shows("Sessions: 0  sort: bytes  filter: listener=none");
    top.press("\x1b");
    top.shows(&address);
    top.press("\r");
    top.shows("rtt_ms");
    top.press("x");
    top.shows("y: yes, other keys: no");
    top.press("n");
    top.shows("nothing is closed");
    top.press("x");
    top.shows("y: yes, other keys: no");
    top.press("y");
    top.shows("has ended; this was its last state");
    assert!(was_reset(&mut client));
    gateway.signal(Signal::SIGSTOP);
    top.shows("NO ANSWER for");
    gateway.signal(Signal::SIGCONT);
    top.shows("ready  sessions 0 of");
    narrow(&top);
    top.screen = parser(12, 40);
    top.press("1");
    top.shows(" 1 Overview  2  3  4  5  6");
    gateway.stop();
    top.shows("NO ANSWER for");
    top.press("q");
    let (status, said) = top.ended();
    assert_eq!(status.code(), Some(0), "{said:?}");
    assert!(said.ends_with(END), "{said:?}");
}

/// Makes the terminal small.
fn narrow(top: &OnTerminal) {
    let terminal = top.terminal.try_clone().expect("a file descriptor");
    let size = ["rows", "12", "cols", "40"];
    let status = Command::new("stty").args(size).stdin(terminal).status().expect("stty runs");
    assert!(status.success());
}

#[test]
fn ctrl_c_ends_top_and_a_pipe_gets_one_table() {
    let (_server, gateway) = gateway();
    let mut top = OnTerminal::start(&["top"], &gateway);
    top.shows("Overview");
    top.press("\x03");
    let (status, said) = top.ended();
    assert_eq!(status.code(), Some(0), "{said:?}");
    assert!(said.ends_with(END), "{said:?}");
    let output = gateway.verb(&["top", "--interval", "1s"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.starts_with("Listeners and endpoints: the last 1."), "{text}");
    assert!(!text.contains('\x1b'), "{text:?}");
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

#[test]
fn lists_of_sessions_are_shown_again_and_again() {
    let (_server, gateway, listener) = gateway_and_listener();
    let mut watch = OnTerminal::start(&["sessions", "--watch", "--sort", "bytes"], &gateway);
    watch.shows("no sessions");
    let mut client = connect(listener);
    client.write_all(b"hello").expect("sent");
    client.read_exact(&mut [0; 5]).expect("an echo");
    watch.shows("relaying");
    drop(client);
    watch.shows("no sessions");
    let (status, said) = watch.end(Signal::SIGINT);
    assert_eq!(status.code(), Some(0), "{said:?}");
    assert!(said.ends_with(END), "{said:?}");
}

/// What bash would write in place of the last word.
fn completed(words: &[&str]) -> Vec<String> {
    let script = Command::new(binary()).args(["completions", "bash"]).output().expect("a script");
    let (last, before) = (words.len() - 1, words.len() - 2);
    let list = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let ask = format!(
        "{}\nCOMP_WORDS=({list}); COMP_CWORD={last}\n\
         _ringway ringway '{}' '{}'\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
        String::from_utf8(script.stdout).expect("text"),
        words[last],
        words[before],
    );
    let output = Command::new("bash").args(["--norc", "-c", &ask]).output().expect("bash runs");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn bash_completes_verbs_options_and_values() {
    assert_eq!(completed(&["ringway", "dr"]), ["drain"]);
    assert_eq!(completed(&["ringway", "sess"]), ["sessions", "session"]);
    assert_eq!(completed(&["ringway", "top", "--inter"]), ["--interval"]);
    assert_eq!(completed(&["ringway", "top", "--by", "re"]), ["refused"]);
}
