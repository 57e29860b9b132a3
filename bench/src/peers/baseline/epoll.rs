//! A TCP proxy on epoll, edge-triggered.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::mover::{CHUNK, Mover};
use super::{begin_connect, listen_on};

struct Session {
    client: TcpStream,
    endpoint: TcpStream,
    /// The endpoint's connection stands.
    connected: bool,
    up: Mover,
    down: Mover,
}

const LISTENER: u64 = u64::MAX;

pub fn run(listen: SocketAddr, to: SocketAddr) -> anyhow::Result<()> {
    let listener = listen_on(listen)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut sessions: Vec<Option<Session>> = Vec::new();
    let mut free = Vec::new();
    let mut scratch = vec![0; CHUNK];
    let mut events = vec![EpollEvent::empty(); 512];
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..count] {
            if event.data() == LISTENER {
                accept(&epoll, &listener, to, &mut sessions, &mut free)?;
                continue;
            }
            let slot = usize::try_from(event.data() >> 1)?;
            let from_endpoint = event.data() & 1 == 1;
            // A session that ended within this batch leaves its later events behind.
            let Some(session) = &mut sessions[slot] else { continue };
            session.connected |= from_endpoint;
            if session.connected && !session.run(&mut scratch) {
                sessions[slot] = None;
                free.push(slot);
            }
        }
    }
}

impl Session {
    /// False once it is over.
    fn run(&mut self, scratch: &mut [u8]) -> bool {
        let Self { client, endpoint, up, down, .. } = self;
        for (mover, from, to) in [(&mut *up, &*client, &*endpoint), (down, endpoint, client)] {
            if !mover.ended && mover.run(from, to, scratch).is_err() {
                return false;
            }
        }
        !(self.up.ended && self.down.ended)
    }
}

fn accept(
    epoll: &Epoll,
    listener: &TcpListener,
    to: SocketAddr,
    sessions: &mut Vec<Option<Session>>,
    free: &mut Vec<usize>,
) -> anyhow::Result<()> {
    loop {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        client.set_nonblocking(true)?;
        client.set_nodelay(true)?;
        // Out of source ports: this client's loss alone.
        let Ok(endpoint) = begin_connect(to) else { continue };
        let slot = free.pop().unwrap_or_else(|| {
            sessions.push(None);
            sessions.len() - 1
        });
        let news = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        epoll.add(&client, EpollEvent::new(news, slot as u64 * 2))?;
        epoll.add(&endpoint, EpollEvent::new(news, slot as u64 * 2 + 1))?;
        let (up, down) = (Mover::default(), Mover::default());
        sessions[slot] = Some(Session { client, endpoint, connected: false, up, down });
    }
}
