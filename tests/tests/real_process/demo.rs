//! The demonstration that the README begins with.

use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringway_tests::real::{Lines, binary, free_address, program, wait_for};

/// `ringway demo` as a child process, interrupted when dropped.
struct Demo {
    child: Child,
    says: Lines,
}

impl Demo {
    /// Starts it on free ports and returns it with what it prints before it gets to work.
    fn start() -> (Self, String) {
        let mut command = Command::new(binary());
        command.arg("demo");
        for option in ["--tcp-port", "--udp-port", "--tls-port", "--admin-port"] {
            command.args([option, &free_address().port().to_string()]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the binary");
        let says = Lines::of(child.stdout.take().expect("its output"));
        let mut printed = String::new();
        while !printed.contains("Ctrl-C ends the demo") {
            printed += &says.take();
            printed.push('\n');
        }
        (Self { child, says }, printed)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every command that it prints is tried as it stands, and answers as the line below it says.
#[test]
fn demo_keeps_its_word() {
    let (mut demo, printed) = Demo::start();
    let mut tried = 0;
    let mut lines = printed.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(command) = line.strip_prefix("  ").filter(|line| !line.starts_with(' ')) else {
            continue;
        };
        let mut promise = String::new();
        while let Some(line) = lines.next_if(|line| line.starts_with("      ")) {
            promise += line.trim_start();
        }
        // Typed by hand the line would come before the end of input by a while.
        let typed = format!("(echo typed; sleep 0.5) | timeout 2 {command} 2>/dev/null || true");
        let answer = wait_for(command, || {
            let answer = program("sh", &["-c", &typed]);
            (!answer.is_empty()).then_some(answer)
        });
        if let Some(quoted) = promise.split('"').nth(1) {
            assert!(answer.contains(quoted), "{command} said {answer}");
        }
        if promise.contains("line") {
            assert!(answer.contains("typed"), "{command} said {answer}");
        }
        if command.contains("metrics") {
            assert!(answer.contains("ringway_sessions_opened_total"), "{answer}");
        }
        tried += 1;
    }
    assert_eq!(tried, 5, "{printed}");

    let pid = Pid::from_raw(i32::try_from(demo.child.id()).expect("a process id"));
    kill(pid, Signal::SIGINT).expect("the demo runs");
    let status = wait_for("the demo's end", || demo.child.try_wait().expect("its status"));
    assert_eq!(status.code(), Some(0));
    let log = demo.says.rest().join("\n");
    assert!(log.contains("server_name=\"a.demo.test\"") && log.contains("close"), "{log}");
}
