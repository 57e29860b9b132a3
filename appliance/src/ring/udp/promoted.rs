//! Remembers the addresses of upstream sockets and their flows, for the kernel's path.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::{Arc, OnceLock};

use nix::sys::socket::{SockaddrStorage, getsockname};

use crate::contract::{Event, Token};
use crate::ring::bpf::{FastPath, Ways};
use crate::ring::turn::Turn;

/// The kernel's path, once a table has asked for it. All workers share it.
pub type SharedPath = Arc<OnceLock<FastPath>>;

/// The promoted flows of a worker.
#[derive(Default)]
pub struct Promoted {
    path: SharedPath,
    /// By upstream slot. Empty as long as there is no path.
    slots: Vec<Option<Known>>,
}

/// What is known of a connected socket.
#[derive(Clone, Copy)]
struct Known {
    generation: u32,
    own: SocketAddr,
    endpoint: SocketAddr,
    /// The addresses of the promoted flow.
    ways: Option<Ways>,
}

impl Promoted {
    /// See [`Ring::growth`](crate::ring::Ring::growth).
    pub const fn growth(upstreams: usize) -> usize {
        upstreams * size_of::<Option<Known>>()
    }

    pub fn use_path(&mut self, path: SharedPath) {
        self.path = path;
    }

    /// A socket was opened in a slot. Only sockets that open while there is a path can carry a
    /// promoted flow, because later nobody can ask a registered file for its address.
    pub fn opened(&mut self, token: Token, fd: BorrowedFd<'_>, endpoint: &SocketAddr, most: usize) {
        let own = self.own_address(fd);
        self.arrived(token, own, endpoint, most);
    }

    /// The address that a connected socket sends from, if there is a path.
    pub fn own_address(&self, fd: BorrowedFd<'_>) -> Option<SocketAddr> {
        self.path.get()?;
        own_address(fd)
    }

    /// As `opened`, for a socket that sends from `own`.
    pub fn arrived(
        &mut self,
        token: Token,
        own: Option<SocketAddr>,
        endpoint: &SocketAddr,
        most: usize,
    ) {
        if self.path.get().is_none() {
            return;
        }
        if self.slots.is_empty() {
            self.slots.resize(most, None);
        }
        let (generation, endpoint) = (token.generation, *endpoint);
        let known = own.map(|own| Known { generation, own, endpoint, ways: None });
        self.slots[token.slot as usize] = known;
    }

    pub fn promote(
        &mut self,
        token: Token,
        (client, listener): (SocketAddr, SocketAddr),
        turn: &mut Turn,
    ) {
        let mut done = false;
        if let Some((path, known)) = known(&self.path, &mut self.slots, token) {
            let ways = Ways { client, listener, own: known.own, endpoint: known.endpoint };
            match path.promote(&ways) {
                Ok(()) => {
                    known.ways = Some(ways);
                    done = true;
                }
                Err(error) => tracing::debug!("{client} is not forwarded in the kernel: {error}"),
            }
        }
        turn.push(token, Event::Promoted { done });
    }

    pub fn tally(&mut self, token: Token, turn: &mut Turn) {
        let carried = known(&self.path, &mut self.slots, token)
            .and_then(|(path, known)| Some(path.carried(known.ways.as_ref()?)));
        turn.push(token, Event::Carried(carried.unwrap_or_default()));
    }

    pub fn demote(&mut self, token: Token, turn: &mut Turn) {
        let carried = known(&self.path, &mut self.slots, token)
            .and_then(|(path, known)| Some(path.demote(&known.ways.take()?)));
        turn.push(token, Event::Demoted(carried.unwrap_or_default()));
    }
}

fn known<'p>(
    path: &'p SharedPath,
    slots: &'p mut [Option<Known>],
    token: Token,
) -> Option<(&'p FastPath, &'p mut Known)> {
    let known = slots.get_mut(token.slot as usize)?.as_mut();
    Some((path.get()?, known.filter(|known| known.generation == token.generation)?))
}

/// The address that a connected socket sends from.
fn own_address(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    let own: SockaddrStorage = getsockname(fd.as_raw_fd()).ok()?;
    let ipv4 = own.as_sockaddr_in().map(|own| SocketAddr::V4((*own).into()));
    ipv4.or_else(|| own.as_sockaddr_in6().map(|own| SocketAddr::V6((*own).into())))
}
