//! Addresses that sockets listen on or connect to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use nix::net::if_::if_indextoname;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    Ip(SocketAddr),
    Unix(UnixPath),
}

/// The address of a client that comes over a Unix socket, and has no address of its own. No client
/// of an IP address has this address.
pub const UNIX_CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The name of a Unix socket: an absolute path, or `@` and an abstract name (unix(7)).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixPath(Arc<str>);

/// How a configuration marks the name of a Unix socket.
pub const UNIX: &str = "unix:";

impl Address {
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    pub fn unix(&self) -> Option<&UnixPath> {
        match self {
            Self::Ip(_) => None,
            Self::Unix(path) => Some(path),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
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
        Ok(Self(name.into()))
    }

    /// The socket's file. `None`: the name is abstract.
    pub fn file(&self) -> Option<&Path> {
        self.0.starts_with('/').then(|| Path::new(&*self.0))
    }

    /// The name as the kernel takes it: an abstract name begins with a NUL.
    pub fn to_bytes(&self) -> Vec<u8> {
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
