//! The maps' entries: the addresses of a packet, and the addresses that the packet gets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::ring::bpf::calls;
use crate::ring::bpf::error::BpfError;
use crate::ring::bpf::program::{IPV6, Version};

/// The addresses of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    pub client: SocketAddr,
    /// The address that the client sends to.
    pub listener: SocketAddr,
    /// The address of the flow's socket towards the endpoint.
    pub own: SocketAddr,
    pub endpoint: SocketAddr,
}

const MOST_KEY: usize = IPV6.key();
const MOST_VALUE: usize = IPV6.value();

/// The packets of one way, and what they become: source and destination, in the bytes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub from: [u8; MOST_KEY],
    pub to: [u8; MOST_KEY],
}

/// The counters of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub datagrams: u64,
    pub bytes: u64,
}

impl Ways {
    /// The entries towards the endpoint and towards the client. `None`: the addresses are not of
    /// one IP version, one of them is a link's own, or one side is on this machine, where packets
    /// pass no interface.
    pub fn entries(&self) -> Option<(Entry, Entry)> {
        let Self { client, listener, own, endpoint } = *self;
        let all = [client, listener, own, endpoint];
        let fits = |at: &SocketAddr| {
            let ip = at.ip();
            let is_plain = !ip.is_unspecified() && !ip.is_loopback() && !is_link_local(ip);
            is_plain && at.is_ipv4() == endpoint.is_ipv4()
        };
        let is_apart = client.ip() != listener.ip() && own.ip() != endpoint.ip();
        (is_apart && all.iter().all(fits)).then(|| {
            let up = Entry { from: tuple(client, listener), to: tuple(own, endpoint) };
            let down = Entry { from: tuple(endpoint, own), to: tuple(listener, client) };
            (up, down)
        })
    }
}

/// Such an address means something only together with an interface.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Addresses and ports as they stand in a packet's headers.
fn tuple(source: SocketAddr, destination: SocketAddr) -> [u8; MOST_KEY] {
    let mut bytes = Vec::with_capacity(MOST_KEY);
    for address in [source, destination] {
        match address.ip() {
            IpAddr::V4(ip) => bytes.extend(ip.octets()),
            IpAddr::V6(ip) => bytes.extend(ip.octets()),
        }
    }
    for address in [source, destination] {
        bytes.extend(address.port().to_be_bytes());
    }
    bytes.resize(MOST_KEY, 0);
    bytes.try_into().expect("as long as the longest")
}

/// A map of one IP version.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    version: Version,
}

impl Map {
    pub fn create(name: &str, version: Version, entries: u32) -> Result<Self, BpfError> {
        let sizes = (version.key(), version.value());
        let fd = calls::map_create(name, sizes, entries);
        Ok(Self { fd: fd.map_err(BpfError::failed("creating a map"))?, version })
    }

    pub fn insert(&self, entry: &Entry) -> io::Result<()> {
        let mut value = [0; MOST_VALUE];
        value[..MOST_KEY].copy_from_slice(&entry.to);
        let (key, value) = (&entry.from[..self.version.key()], &value[..self.version.value()]);
        calls::map_insert(self.fd.as_fd(), key, value)
    }

    /// Removes an entry. Returns its counters, or nothing if there is no such entry.
    pub fn take(&self, entry: &Entry) -> Count {
        self.read(entry, calls::map_take)
    }

    pub fn look_up(&self, entry: &Entry) -> Count {
        self.read(entry, calls::map_look_up)
    }

    fn read(&self, entry: &Entry, call: Call) -> Count {
        let mut value = [0; MOST_VALUE];
        let key = &entry.from[..self.version.key()];
        if let Err(error) = call(self.fd.as_fd(), key, &mut value[..self.version.value()]) {
            if error.raw_os_error() != Some(libc::ENOENT) {
                tracing::error!("the kernel's path for UDP flows: an entry can't be read: {error}");
            }
            return Count::default();
        }
        let start = usize::from(self.version.counters().unsigned_abs());
        let number = |at: usize| {
            let bytes = value[start + 8 * at..].first_chunk();
            u64::from_ne_bytes(*bytes.expect("a value has two counters"))
        };
        Count { datagrams: number(0), bytes: number(1) }
    }

    pub fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

type Call = fn(BorrowedFd<'_>, &[u8], &mut [u8]) -> io::Result<()>;
