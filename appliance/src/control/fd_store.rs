//! Leaves copies of the listening sockets with systemd (`FileDescriptorStoreMax=`), which passes
//! them to the next process if this one crashes. Connections wait in the sockets meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use config_sync::publish::hand_over::SharedSocket;
use config_sync::table::routing::{Bound, SocketId, Transport};

use tokio::time::Instant;

use crate::control::systemd;
use crate::ring::sys::pass;

/// What the names of stored sockets begin with.
const PREFIX: &str = "stored_";

pub struct FdStore {
    is_on: bool,
    /// By name, the listening addresses of which systemd has sockets.
    kept: BTreeMap<SocketId, String>,
    /// What systemd has had no room for in its queue.
    unsent: VecDeque<(String, Vec<Arc<OwnedFd>>)>,
    /// The table whose sockets were last looked at.
    pub generation: u64,
    /// systemd hears only the main process, and learns from the one before which it is.
    pub not_before: Instant,
}

impl FdStore {
    /// systemd says how many it keeps (`FDSTORE`, systemd 254).
    pub fn new() -> Self {
        let most = env::var("FDSTORE").ok().and_then(|text| text.parse().ok()).unwrap_or(0_u64);
        Self {
            is_on: most > 0,
            kept: BTreeMap::new(),
            unsent: VecDeque::new(),
            generation: 0,
            not_before: Instant::now(),
        }
    }

    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Stores the sockets that are new, and drops those that are gone.
    pub fn update(&mut self, shared: Vec<SharedSocket>) {
        let mut kept = BTreeMap::new();
        for SharedSocket { id, bound, sockets } in shared {
            let name = name(&bound);
            if self.kept.get(&id) != Some(&name) {
                // systemd would drop a socket that reports an error.
                let state = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
                for some in sockets.chunks(pass::MOST) {
                    self.unsent.push_back((state.clone(), some.to_vec()));
                }
            }
            kept.insert(id, name);
        }
        let before = std::mem::replace(&mut self.kept, kept);
        let names: Vec<_> = self.kept.values().collect();
        for name in before.into_values().filter(|name| !names.contains(&name)) {
            self.unsent.push_back((removal(&name), Vec::new()));
        }
        self.flush();
    }

    /// Nobody is to connect any more.
    pub fn clear(&mut self) {
        if self.kept.is_empty() {
            return self.flush();
        }
        self.unsent.clear();
        self.update(Vec::new());
    }

    /// Sends what could not be sent before.
    pub fn flush(&mut self) {
        while let Some((state, sockets)) = self.unsent.front() {
            let beside: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
            match systemd::send_beside(state, &beside) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => tracing::warn!("systemd can't be told {state:?}: {error}"),
                Ok(()) => {}
            }
            self.unsent.pop_front();
        }
    }
}

/// systemd is to drop a socket that it has passed and nobody wants.
pub fn forget(name: &str) {
    if is_stored(name) {
        systemd::tell(&removal(name));
    }
}

/// Whether the name is that of a socket which an earlier process has stored.
pub fn is_stored(name: &str) -> bool {
    name.starts_with(PREFIX)
}

fn removal(name: &str) -> String {
    format!("FDSTOREREMOVE=1\nFDNAME={name}")
}

/// The next process gives the same place the same name. A name has no colon, and at most 255 bytes.
fn name(bound: &Bound) -> String {
    let transport = match bound.transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let address: String = bound.address.to_string().chars().map(plain).collect();
    format!("{PREFIX}{transport}_{address}_{}", bound.interface)
}

#[cfg(test)]
mod tests {
    use config_sync::table::address::{Address, UnixPath};

    use super::*;

    #[test]
    fn each_place_has_a_name_that_systemd_takes() {
        let path = UnixPath::new(&format!("/{}", "a:".repeat(50))).expect("a name");
        let places = [
            Bound {
                transport: Transport::Tcp,
                address: Address::Ip("[::1]:80".parse().expect("an address")),
                interface: 0,
            },
            Bound { transport: Transport::Tcp, address: Address::Unix(path), interface: 0 },
        ];
        let names = places.map(|place| name(&place));
        assert_eq!(names[0], "stored_tcp____1__80_0");
        assert!(names.iter().all(|name| name.len() < 255 && !name.contains(':')));
        assert!(names.iter().all(|name| is_stored(name)));
    }
}
