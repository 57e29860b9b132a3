//! The socket on which the next process comes, and the messages that go through it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use config_sync::table::address::{Address, UNIX, UnixPath};
use nix::unistd::geteuid;
use socket2::Type;

use crate::control::upgrade::under_way::FlowBatch;
use crate::control::upgrade::voice::{MOST_REASON, Voice};
use crate::ring::listen::unix;
use crate::ring::sys::pass::{self, CUT, Process};
use crate::wire::hand_over::{
    Figures, MOST_BYTES, MOST_FIGURES, Message, Session, forget, read, write,
};

/// How long either process waits for a message of the other. A large configuration takes seconds to
/// be in force.
pub const PATIENCE: Duration = Duration::from_secs(25);

/// How long sessions wait for the new process's answer. They move no bytes meanwhile, but without
/// an answer no other session can go.
const SESSION_PATIENCE: Duration = Duration::from_secs(3);

/// An upgrade leaves fewer messages unread.
const MOST_UNREAD: u32 = 16;

/// More packets than there are of sockets, overrides and keys.
const MOST_PACKETS: u32 = 10_000;

/// How long a process may take to end once it says nothing more.
const END: Duration = Duration::from_secs(2);

/// The name of the socket: that of the admin API's socket, with `.upgrade` behind.
///
/// # Errors
/// The configuration has no `admin.socket`, or its name is too long.
pub fn path(admin_socket: Option<UnixPath>) -> Result<UnixPath, String> {
    let Some(admin) = admin_socket else {
        return Err(
            "an upgrade needs `admin.socket` in the configuration: the processes meet on a \
                    socket beside it"
                .to_owned(),
        );
    };
    let admin = Address::Unix(admin).to_string();
    let name = format!("{}.upgrade", admin.strip_prefix(UNIX).unwrap_or(&admin));
    UnixPath::new(&name).map_err(|why| format!("the socket for upgrades, unix:{name}: {why}"))
}

/// Opens the socket.
///
/// # Errors
/// Errors of bind(2).
pub fn open(path: UnixPath) -> io::Result<OwnedFd> {
    unix::open_private(path, Type::SEQPACKET)
}

/// A connection between the old process and the new one.
pub struct Link {
    socket: OwnedFd,
    buffer: Vec<u8>,
    is_over: bool,
    /// Sessions came without all of their connections.
    is_cut: bool,
    /// The other process has refused.
    is_refused: bool,
    /// `None`: its end could not be seen.
    process: Option<Process>,
}

impl Link {
    /// Connects to the process that serves now.
    ///
    /// # Errors
    /// The text is for the operator.
    pub fn connect(path: UnixPath) -> Result<Self, String> {
        let shown = Address::Unix(path);
        let socket = unix::connect(path, Type::SEQPACKET);
        let socket = socket
            .map_err(|error| format!("{shown}: no gateway can be taken over there: {error}"))?;
        Self::new(socket)
    }

    /// # Errors
    /// The peer is of another user.
    pub fn new(socket: OwnedFd) -> Result<Self, String> {
        let peer = pass::peer(socket.as_fd()).and_then(|(user, _)| {
            pass::set_patience(socket.as_fd(), PATIENCE)?;
            Ok(user)
        });
        let user = peer.map_err(|error| format!("the connection of an upgrade: {error}"))?;
        if user != geteuid().as_raw() && user != 0 {
            return Err(format!("user {user} may not take this gateway's sockets over"));
        }
        let number = pass::peer(socket.as_fd()).map_or(0, |(_, number)| number);
        let process = Process::open(number).ok();
        let buffer = vec![0; MOST_BYTES];
        Ok(Self { socket, buffer, is_over: false, is_cut: false, is_refused: false, process })
    }

    /// The number of the process at the other end.
    pub fn peer(&self) -> u32 {
        pass::peer(self.socket.as_fd()).map_or(0, |(_, process)| process)
    }

    /// # Errors
    /// The other process has ended, or does not read.
    pub fn send(&self, message: &Message, beside: &[BorrowedFd<'_>]) -> Result<(), String> {
        let bytes = write(message);
        let sent = self.send_bytes(&bytes, beside);
        if matches!(message, Message::Tickets(_)) {
            forget(bytes);
        }
        sent
    }

    fn send_bytes(&self, bytes: &[u8], beside: &[BorrowedFd<'_>]) -> Result<(), String> {
        let sent = pass::send(self.socket.as_fd(), bytes, beside);
        sent.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => "the other process has ended".to_owned(),
            _ => format!("sending to the other process: {error}"),
        })
    }

    /// # Errors
    /// The other process has ended, has refused, says nothing, or says something else than a
    /// message.
    pub fn receive(&mut self) -> Result<(Message, Vec<OwnedFd>), String> {
        let received = pass::receive_what_fits(self.socket.as_fd(), &mut self.buffer);
        let (len, mut beside, is_cut) = received.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                format!("the other process has said nothing for {} s", PATIENCE.as_secs())
            }
            _ => format!("receiving from the other process: {error}"),
        })?;
        if len == 0 {
            return Err("the other process has ended, or has hung up".to_owned());
        }
        let message = read(&self.buffer[..len]);
        if matches!(message, Ok(Message::Tickets(_))) {
            forget(std::mem::replace(&mut self.buffer, vec![0; MOST_BYTES]));
        }
        match message.map_err(|fault| fault.to_string())? {
            Message::Refused { why } => {
                self.is_refused = true;
                Err(format!("the other process refuses: {why}"))
            }
            // Without their connections they stay where they are.
            message @ Message::Sessions(_) if is_cut => {
                beside.clear();
                if !std::mem::replace(&mut self.is_cut, true) {
                    tracing::warn!("sessions stay in the process before: {CUT}");
                }
                Ok((message, beside))
            }
            _ if is_cut => Err(CUT.to_owned()),
            message => Ok((message, beside)),
        }
    }

    /// Offers sessions to the new process. Returns which of them it has adopted. `None`: there was
    /// no answer in time. Then this connection is over: an answer that comes later reaches nobody,
    /// and its sender knows.
    pub fn offer(&mut self, sessions: &[Session], sockets: &[[OwnedFd; 2]]) -> Option<Vec<bool>> {
        let beside: Vec<_> = sockets.as_flattened().iter().map(AsFd::as_fd).collect();
        let socket = self.socket.as_fd();
        let sent = pass::set_patience(socket, SESSION_PATIENCE)
            .map_err(|error| error.to_string())
            .and_then(|()| self.send(&Message::Sessions(sessions.to_vec()), &beside));
        let answer = match sent {
            Ok(()) => self.receive(),
            Err(why) => Err(why),
        };
        match answer {
            Ok((Message::Adopted(adopted), _)) if adopted.len() == sessions.len() => Some(adopted),
            other => {
                let why = other.map_or_else(|why| why, |(message, _)| out_of_order(&message));
                tracing::warn!("the sessions that are left drain here: {why}");
                self.last_word(sessions.len())
            }
        }
    }

    /// Offers flows to the new process. Returns which of them it can have. Datagrams of clients may
    /// wait meanwhile, so the answer must come soon.
    ///
    /// # Errors
    /// There is no answer in time, or none that can be understood.
    pub fn offer_flows(&mut self, batch: FlowBatch) -> Result<Vec<bool>, String> {
        let FlowBatch { mut flows, mut sockets } = batch;
        let count = flows.len();
        let message = Message::Flows(flows);
        let bytes = write(&message);
        if count > 1 && bytes.len() > MOST_BYTES {
            let Message::Flows(whole) = message else { return Ok(Vec::new()) };
            flows = whole;
            let rest = (flows.split_off(count / 2), sockets.split_off(count / 2));
            let mut adopted = self.offer_flows(FlowBatch { flows, sockets })?;
            let (flows, sockets) = rest;
            adopted.extend(self.offer_flows(FlowBatch { flows, sockets })?);
            return Ok(adopted);
        }
        let beside: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        self.wait_for(SESSION_PATIENCE)?;
        self.send_bytes(&bytes, &beside)?;
        let answer = self.receive()?.0;
        self.wait_for(PATIENCE)?;
        match answer {
            Message::Adopted(adopted) if adopted.len() == count => Ok(adopted),
            other => Err(out_of_order(&other)),
        }
    }

    /// Says what flows have carried that have settled.
    ///
    /// # Errors
    /// As those of [`Self::send`].
    pub fn send_figures(&self, all: &[Figures]) -> Result<(), String> {
        all.chunks(MOST_FIGURES)
            .try_for_each(|some| self.send(&Message::Figures(some.to_vec()), &[]))
    }

    /// The answer to `Yours`. Clients are not heard meanwhile, so it must come soon. What came
    /// before this process stops waiting counts. What comes later reaches nobody, and its sender
    /// knows.
    ///
    /// # Errors
    /// There is no answer.
    pub fn last_answer(&mut self) -> Result<Message, String> {
        self.wait_for(SESSION_PATIENCE)?;
        let answer = self.receive().or_else(|why| {
            let stopped = pass::stop_receiving(self.socket.as_fd());
            stopped.map_err(|error| error.to_string())?;
            self.receive().map_err(|_| why)
        });
        self.wait_for(PATIENCE)?;
        answer.map(|(message, _)| message)
    }

    /// Nobody hears the clients any more until [`Self::last_answer`], so nothing may take long.
    ///
    /// # Errors
    /// The connection is over.
    pub fn hurry(&self) -> Result<(), String> {
        self.wait_for(SESSION_PATIENCE)
    }

    fn wait_for(&self, patience: Duration) -> Result<(), String> {
        pass::set_patience(self.socket.as_fd(), patience).map_err(|error| error.to_string())
    }

    /// Hears no more, and returns what had been said before.
    fn last_word(&mut self, count: usize) -> Option<Vec<bool>> {
        self.is_over = true;
        pass::stop_receiving(self.socket.as_fd()).ok()?;
        match self.receive() {
            Ok((Message::Adopted(adopted), _)) if adopted.len() == count => Some(adopted),
            _ => None,
        }
    }

    /// Another way to say things in this conversation.
    ///
    /// # Errors
    /// The process may have no more files.
    pub fn voice(&self) -> io::Result<Voice> {
        self.socket.try_clone().map(Voice::new)
    }

    /// Whether the other process could not be understood about sessions.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether the other process, of which nothing more can be heard, has ended or is ending. One
    /// whose end can't be seen counts as one that lives.
    fn has_died(&self) -> bool {
        self.process.as_ref().is_some_and(|of| of.ends_within(END).unwrap_or(false))
    }

    /// Whether the other process has died in the middle of the conversation, without a refusal: it
    /// serves nobody any more, and has not gone on with what it had offered.
    pub fn is_orphaned(&mut self) -> bool {
        // A refusal may have come before the end. Without a timeout nothing is read.
        if self.wait_for(END).is_err() {
            return false;
        }
        for _ in 0..MOST_UNREAD {
            if self.is_refused {
                return false;
            }
            let len = match pass::receive(self.socket.as_fd(), &mut self.buffer) {
                Ok((len @ 1.., _)) => len,
                // The other process has left something unread. What it has said is still here.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                _ => break,
            };
            self.is_refused = matches!(read(&self.buffer[..len]), Ok(Message::Refused { .. }));
        }
        !self.is_refused && self.has_died()
    }

    /// Tells the other process why there is no upgrade.
    pub fn refuse(&self, why: &str) {
        // If the other process has gone, nobody need be told.
        let why = why.chars().take(MOST_REASON).collect();
        let _ = self.send(&Message::Refused { why }, &[]);
    }

    /// Tells the other process, which may still speak, why there is no upgrade, and waits until it
    /// has heard that.
    pub fn give_up(mut self, why: &str) {
        if self.is_refused || self.wait_for(END).is_err() {
            return;
        }
        self.refuse(why);
        for _ in 0..MOST_PACKETS {
            let received = pass::receive_what_fits(self.socket.as_fd(), &mut self.buffer);
            let Ok((len @ 1.., ..)) = received else { return };
            if matches!(read(&self.buffer[..len]), Ok(Message::Refused { .. })) {
                return;
            }
        }
    }

    /// Waits until the other process hangs up, or says nothing for [`PATIENCE`]. The kernel resets
    /// a connection that is closed with messages unread, and then nobody reads the refusal.
    pub fn see_off(mut self) {
        for _ in 0..MOST_UNREAD {
            let received = pass::receive(self.socket.as_fd(), &mut self.buffer);
            if received.map_or(true, |(len, _)| len == 0) {
                return;
            }
        }
    }
}

/// The other process has sent a message out of order.
pub fn out_of_order(message: &Message) -> String {
    let word = format!("{message:?}");
    let word = word.split([' ', '(', '{']).next().unwrap_or_default();
    format!("the other process says {word} out of order")
}

#[cfg(test)]
mod tests {
    use socket2::Domain;

    use super::*;
    use crate::control::upgrade::voice::GO_ON;

    #[test]
    fn the_socket_is_beside_that_of_the_admin_api() {
        let path = |name: &str| path(Some(UnixPath::new(name).expect("a name")));
        let named = |name: &str| Address::Unix(path(name).expect("a name")).to_string();
        assert_eq!(named("/run/a.sock"), "unix:/run/a.sock.upgrade");
        assert_eq!(named("@a"), "unix:@a.upgrade");
        assert!(path(&format!("/{}", "a".repeat(100))).is_err(), "it would be too long");
        assert!(super::path(None).is_err_and(|why| why.contains("admin.socket")));
    }

    /// The new process hears that after it has adopted the sessions, whatever has become of the old
    /// one meanwhile.
    #[test]
    fn who_waits_for_an_answer_in_vain_says_that_the_sessions_go_on() {
        let (old, new) =
            socket2::Socket::pair(Domain::UNIX, Type::SEQPACKET, None).expect("a pair");
        let link = |socket: socket2::Socket| Link::new(socket.into()).expect("its own user");
        let (mut old, mut new) = (link(old), link(new));
        assert_eq!(old.offer(&[], &[]), None);
        assert!(old.is_over());
        old.voice().expect("a file").refuses(GO_ON);
        drop(old);
        assert!(matches!(new.receive(), Ok((Message::Sessions(_), _))));
        assert!(new.send(&Message::Adopted(Vec::new()), &[]).is_err(), "nobody hears it");
        assert!(new.receive().is_err_and(|why| why.contains("refuses")));
        assert!(!new.is_orphaned());
    }

    #[test]
    fn a_message_out_of_order_is_named_without_its_contents() {
        let message = Message::Hello { program: "x".into(), workers: 1 };
        assert_eq!(out_of_order(&message), "the other process says Hello out of order");
        assert_eq!(out_of_order(&Message::Mine), "the other process says Mine out of order");
    }
}
