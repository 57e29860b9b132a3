//! Leaves copies of the listening sockets with systemd (`FileDescriptorStoreMax=`), which passes
//! them to the next process if this one crashes. Connections wait in the sockets meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::fmt::Display;
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use config_sync::publish::hand_over::SharedSocket;
use config_sync::table::routing::{SocketId, Transport};

use tokio::time::Instant;

use crate::control::systemd;

/// What the names of stored sockets begin with.
const PREFIX: &str = "stored_";

pub struct FdStore {
    is_on: bool,
    /// The listening addresses of which systemd has sockets: the name, and the number of sockets.
    kept: BTreeMap<SocketId, (String, usize)>,
    /// What systemd has had no room for in its queue.
    unsent: VecDeque<(String, Option<Arc<OwnedFd>>)>,
    /// The table whose sockets were last looked at.
    pub generation: u64,
    /// systemd hears only the main process, and learns from the one before which it is.
    pub not_before: Instant,
    /// Names and sizes of groups that the process before has stored, until the first `update`.
    pub before: Vec<(String, usize)>,
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
            before: Vec::new(),
        }
    }

    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Stores the sockets that are new, and drops those that are gone.
    ///
    /// Each socket has a message of its own, with the number of its worker in its name: systemd
    /// gives sockets back in any order, and by its place in its group the kernel knows a socket.
    pub fn update(&mut self, shared: Vec<SharedSocket>) {
        let mut kept = BTreeMap::new();
        self.before.clear();
        for SharedSocket { id, bound, sockets } in shared {
            let name = group(bound.transport, &bound.address, bound.interface);
            let count = sockets.len();
            if self.kept.get(&id).is_none_or(|(known, _)| *known != name) {
                for (worker, socket) in sockets.into_iter().enumerate() {
                    // systemd would drop a socket that reports an error.
                    let state = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}_{worker}");
                    self.unsent.push_back((state, Some(socket)));
                }
            }
            kept.insert(id, (name, count));
        }
        let before = std::mem::replace(&mut self.kept, kept);
        for (name, count) in before.into_values() {
            if self.kept.values().all(|(kept, _)| *kept != name) {
                self.drop_sockets(&name, 0..count);
            }
        }
        self.flush();
    }

    /// systemd is to drop the sockets of these workers that the process before has stored, and that
    /// this one does not have.
    pub fn drop_sockets(&mut self, group: &str, workers: Range<usize>) {
        if self.is_on {
            let names = workers.map(|worker| removal(&format!("{group}_{worker}")));
            self.unsent.extend(names.map(|removal| (removal, None)));
        }
    }

    /// Nobody is to connect any more.
    pub fn clear(&mut self) {
        if self.kept.is_empty() && self.before.is_empty() {
            return self.flush();
        }
        self.unsent.clear();
        for (group, count) in std::mem::take(&mut self.before) {
            self.drop_sockets(&group, 0..count);
        }
        self.update(Vec::new());
    }

    /// Sends what could not be sent before.
    pub fn flush(&mut self) {
        while let Some((state, socket)) = self.unsent.front() {
            let beside: Vec<_> = socket.iter().map(|socket| socket.as_fd()).collect();
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

/// What the names of the sockets of a listening address begin with. Behind it stands the number of
/// the worker. The next process gives the same place the same name. A name has no colon, and at
/// most 255 bytes.
pub fn group(transport: Transport, address: &impl Display, interface: u32) -> String {
    let transport = match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let address: String = address.to_string().chars().map(plain).collect();
    format!("{PREFIX}{transport}_{address}_{interface}")
}

/// The number of the worker in the name of a stored socket.
pub fn worker_of(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.rsplit_once('_')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use config_sync::table::address::{Address, UnixPath};

    use super::*;

    #[test]
    fn each_place_has_a_name_that_systemd_takes() {
        let path = UnixPath::new(&format!("/{}", "a:".repeat(50))).expect("a name");
        let places = [Address::Ip("[::1]:80".parse().expect("an address")), Address::Unix(path)];
        let names = places.map(|place| group(Transport::Tcp, &place, 0) + "_12");
        assert_eq!(names[0], "stored_tcp____1__80_0_12");
        assert!(names.iter().all(|name| name.len() < 255 && !name.contains(':')));
        assert!(names.iter().all(|name| is_stored(name) && worker_of(name) == Some(12)));
        assert_eq!(worker_of("web_7"), None, "the name of a socket unit");
    }
}
