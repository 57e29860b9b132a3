//! Addresses that sockets listen on or connect to.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use nix::net::if_::if_indextoname;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    Ip(SocketAddr),
    Unix(UnixPath),
}

/// The address of a client that comes over a Unix socket, and has no address of its own. No client
/// of an IP address has this address.
pub const UNIX_CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointAddress {
    At(Address),
    /// A client's port, raised by `shift`, is the endpoint's port. The client's port is the port
    /// that the client connected to.
    Shifted {
        ip: IpAddr,
        shift: u16,
    },
}

/// The name of a Unix socket: an absolute path, or `@` and an abstract name (unix(7)). The text
/// stays in memory for ever, so that workers can copy the name. Names that configurations give are
/// few.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixPath(&'static str);

/// All names so far, each once.
static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// How a configuration marks the name of a Unix socket.
pub const UNIX: &str = "unix:";

impl Address {
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    pub fn unix(&self) -> Option<UnixPath> {
        match self {
            Self::Ip(_) => None,
            Self::Unix(path) => Some(*path),
        }
    }
}

impl EndpointAddress {
    /// The address for a client that connected to `port`. `None`: there is no such port.
    pub fn for_client_of(self, port: u16) -> Option<Address> {
        match self {
            Self::At(address) => Some(address),
            Self::Shifted { ip, shift } => {
                Some(Address::Ip(SocketAddr::new(ip, port.checked_add(shift)?)))
            }
        }
    }

    /// The IP address. `None`: the endpoint is a Unix socket.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::At(address) => address.ip().map(|address| address.ip()),
            Self::Shifted { ip, .. } => Some(ip),
        }
    }

    /// The IP address and port. `None`: the endpoint has none, or one for each client.
    pub fn socket_address(self) -> Option<SocketAddr> {
        match self {
            Self::At(address) => address.ip(),
            Self::Shifted { .. } => None,
        }
    }
}

impl From<SocketAddr> for EndpointAddress {
    fn from(address: SocketAddr) -> Self {
        Self::At(Address::Ip(address))
    }
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Shifted { ip: IpAddr::V4(ip), shift } => write!(f, "{ip}:+{shift}"),
            Self::Shifted { ip: IpAddr::V6(ip), shift } => write!(f, "[{ip}]:+{shift}"),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl From<UnixPath> for Address {
    fn from(path: UnixPath) -> Self {
        Self::Unix(path)
    }
}

impl UnixPath {
    /// The most bytes of a path, and of an abstract name with its `@` (`sun_path`, unix(7)).
    pub const MOST_BYTES: usize = 107;

    /// Reads the name behind `unix:`.
    ///
    /// # Errors
    /// Says what is wrong with the name.
    pub fn new(name: &str) -> Result<Self, String> {
        let form = || "an absolute path such as \"unix:/run/x.sock\", or \"unix:@name\"".to_owned();
        if name.len() < 2 || !name.starts_with(['/', '@']) || name.ends_with('/') {
            return Err(format!("\"unix:{name}\" names no socket; write {}", form()));
        }
        if name.contains('\0') {
            return Err(format!("a NUL can't be in a name; write {}", form()));
        }
        if name.len() > Self::MOST_BYTES {
            return Err(format!(
                "the name has {} bytes; {} at the most",
                name.len(),
                Self::MOST_BYTES
            ));
        }
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(name) {
            return Ok(Self(known));
        }
        let kept: &'static str = Box::leak(name.into());
        names.insert(kept);
        Ok(Self(kept))
    }

    /// The socket's file. `None`: the name is abstract.
    pub fn file(self) -> Option<&'static Path> {
        self.0.starts_with('/').then(|| Path::new(self.0))
    }

    /// The name as the kernel takes it: an abstract name begins with a NUL.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = self.0.as_bytes().to_vec();
        if let Some(first @ b'@') = bytes.first_mut() {
            *first = 0;
        }
        bytes
    }
}

/// Writes the address in its TOML form. An interface is given by its name.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(SocketAddr::V6(address)) if address.scope_id() != 0 => {
                let (ip, port) = (address.ip(), address.port());
                match if_indextoname(address.scope_id()) {
                    Ok(name) => write!(f, "[{ip}%{}]:{port}", name.to_string_lossy()),
                    Err(_) => address.fmt(f),
                }
            }
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.0),
        }
    }
}

/// A network interface of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: Arc<str>,
    pub index: u32,
}

/// How a listening socket is bound to its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bind {
    /// Only this interface brings clients (SO_BINDTODEVICE, socket(7)). `None`: every interface.
    pub interface: Option<Interface>,
    /// This machine need not have the address (IP_FREEBIND, ip(7)).
    pub freebind: bool,
    /// The permissions of a Unix socket's file. `None`: those that the process's umask leaves.
    pub mode: Option<u32>,
    /// The owner of a Unix socket's file.
    pub owner: Owner,
}

/// `None`: the process's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub user: Option<u32>,
    pub group: Option<u32>,
}

impl Bind {
    /// The number of the interface. 0: every interface.
    pub fn interface_index(&self) -> u32 {
        self.interface.as_ref().map_or(0, |interface| interface.index)
    }
}
