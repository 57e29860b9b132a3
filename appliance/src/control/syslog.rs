//! Sends log lines to a syslog daemon in the form of RFC 5424, over a Unix socket such as /dev/log.

use std::fs::read_to_string;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use nix::errno::Errno;
use socket2::{Domain, SockAddr, Type};

use crate::control::time_of_day::unix_micros;
use crate::control::timestamp::WallClock;

/// The facility `daemon` (RFC 5424, section 6.2.1).
const FACILITY: u8 = 3;

/// The severity of a line of the access log: informational.
const INFORMATIONAL: u8 = 6;

/// A daemon that takes nothing for this long loses a line. The lines behind it wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// The way to the daemon.
pub struct Syslog {
    path: PathBuf,
    /// `None` after an error: the daemon may have begun anew.
    socket: Option<Socket>,
    /// Host, program and process, which stand behind the time.
    who: String,
    message: Vec<u8>,
}

enum Socket {
    /// A message is a datagram.
    Datagrams(UnixDatagram),
    /// Each message ends with a line feed (RFC 6587, section 3.4.2).
    Stream(UnixStream),
}

impl Syslog {
    /// # Errors
    /// Nobody listens at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let host = read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host.trim().chars().filter(char::is_ascii_graphic).take(255).collect();
        let host = if host.is_empty() { "-".to_owned() } else { host };
        let who = format!("{host} ringway {}", std::process::id());
        let socket = Some(connect(path)?);
        Ok(Self { path: path.to_owned(), socket, who, message: Vec::new() })
    }

    /// Sends one message. `kind` is the message's MSGID. If the daemon has begun anew, the message
    /// goes to the new one.
    ///
    /// # Errors
    /// Nobody listens, or the daemon takes nothing. The next message tries again.
    pub fn send(&mut self, severity: u8, kind: &str, text: &[u8]) -> io::Result<()> {
        let time = WallClock::new(UNIX_EPOCH, 0).at(unix_micros());
        self.message.clear();
        write!(self.message, "<{}>1 {time} {} {kind} - ", FACILITY * 8 + severity, self.who)?;
        // A line feed within a message would end it on a stream.
        self.message.extend(text.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }));
        let was_open = self.socket.is_some();
        let sent = self.try_send();
        match sent {
            Err(error) if was_open && error.kind() != ErrorKind::WouldBlock => self.try_send(),
            sent => sent,
        }
    }

    /// Connects again before the next message.
    pub fn reopen(&mut self) {
        self.socket = None;
    }

    fn try_send(&mut self) -> io::Result<()> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => connect(&self.path)?,
        };
        match &socket {
            Socket::Datagrams(socket) => _ = socket.send(&self.message)?,
            Socket::Stream(socket) => {
                if self.message.last() != Some(&b'\n') {
                    self.message.push(b'\n');
                }
                let mut socket: &UnixStream = socket;
                socket.write_all(&self.message)?;
            }
        }
        self.socket = Some(socket);
        Ok(())
    }
}

fn connect(path: &Path) -> io::Result<Socket> {
    let socket = UnixDatagram::unbound()?;
    match socket.connect(path) {
        Ok(()) => {
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok(Socket::Datagrams(socket))
        }
        // The socket is one for streams.
        Err(error) if error.raw_os_error() == Some(Errno::EPROTOTYPE as i32) => {
            // The time limit holds for connecting, too: a daemon that is stopped accepts nobody.
            let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.set_write_timeout(Some(PATIENCE))?;
            socket.connect(&SockAddr::unix(path)?)?;
            Ok(Socket::Stream(UnixStream::from(OwnedFd::from(socket))))
        }
        Err(error) => Err(error),
    }
}

/// Sends batches of lines of the access log.
pub struct Lines {
    pub syslog: Syslog,
    pub reopen: Arc<AtomicBool>,
    /// The number of lines that were lost.
    pub failed: Arc<AtomicU64>,
    /// A line was lost since the last one that was sent, and the loss was logged.
    pub is_failing: bool,
}

impl Write for Lines {
    fn write(&mut self, batch: &[u8]) -> io::Result<usize> {
        if self.reopen.swap(false, Ordering::AcqRel) {
            self.syslog.reopen();
        }
        for line in batch.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match self.syslog.send(INFORMATIONAL, "access", line) {
                Ok(()) => self.is_failing = false,
                Err(error) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    if !std::mem::replace(&mut self.is_failing, true) {
                        let path = self.syslog.path.display();
                        tracing::error!(
                            "access log syslog:{path}: {error}; lines are lost until it works again"
                        );
                    }
                }
            }
        }
        Ok(batch.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends lines of the own log. `<N>` in front of a line is its severity.
pub struct OwnLines(pub Syslog);

impl Write for OwnLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (severity, text) = match line {
            [b'<', severity @ b'0'..=b'7', b'>', text @ ..] => (severity - b'0', text),
            text => (INFORMATIONAL, text),
        };
        // Where would the loss of a line of the log be logged?
        _ = self.0.send(severity, "-", text.trim_ascii_end());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn place(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ringway-{name}-{}", std::process::id()));
        _ = std::fs::remove_file(&path);
        path
    }

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let len = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    #[test]
    fn a_message_has_the_form_of_rfc_5424() {
        let path = place("syslog-form");
        let daemon = UnixDatagram::bind(&path).expect("a socket");
        let mut log = Syslog::open(&path).expect("somebody listens");
        log.send(4, "access", b"two\nlines").expect("it is taken");
        let message = received(&daemon);
        let fields: Vec<&str> = message.splitn(8, ' ').collect();
        assert_eq!(fields[0], "<28>1", "daemon (3) x 8 + warning (4): {message}");
        assert!(fields[1].len() == 27 && fields[1].ends_with('Z'), "{message}");
        assert_eq!(
            fields[3..],
            ["ringway", &std::process::id().to_string(), "access", "-", "two lines"]
        );
        std::fs::remove_file(&path).expect("own file");
    }

    #[test]
    fn a_daemon_that_begins_anew_gets_the_next_line() {
        let path = place("syslog-anew");
        assert!(Syslog::open(&path).is_err(), "nobody listens");
        let daemon = UnixDatagram::bind(&path).expect("a socket");
        let failed = Arc::<AtomicU64>::default();
        let mut lines = Lines {
            syslog: Syslog::open(&path).expect("somebody listens"),
            reopen: Arc::default(),
            failed: Arc::clone(&failed),
            is_failing: false,
        };
        lines.write_all(b"one\ntwo\n").expect("never fails");
        assert!(received(&daemon).ends_with(" access - one"));
        assert!(received(&daemon).ends_with(" access - two"));
        drop(daemon);
        std::fs::remove_file(&path).expect("own file");
        lines.write_all(b"lost\n").expect("never fails");
        assert_eq!(failed.load(Ordering::Relaxed), 1);
        let daemon = UnixDatagram::bind(&path).expect("a socket");
        lines.write_all(b"three\n").expect("never fails");
        assert!(received(&daemon).ends_with(" access - three"));
        std::fs::remove_file(&path).expect("own file");
    }

    #[test]
    fn a_stream_has_a_line_for_each_message() {
        let path = place("syslog-stream");
        let daemon = UnixListener::bind(&path).expect("a socket");
        let mut own = OwnLines(Syslog::open(&path).expect("somebody listens"));
        let (stream, _) = daemon.accept().expect("a connection");
        own.write_all(b"<3>it is broken\n").expect("never fails");
        own.write_all(b"plain\n").expect("never fails");
        let mut lines = BufReader::new(stream).lines().map(|line| line.expect("text"));
        let line = lines.next().expect("a line");
        assert!(line.starts_with("<27>1 ") && line.ends_with(" - - it is broken"), "{line}");
        assert!(lines.next().expect("a line").starts_with("<30>1 "));
        std::fs::remove_file(&path).expect("own file");
    }
}
