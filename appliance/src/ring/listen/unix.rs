//! Opens listening Unix sockets (unix(7)).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, lchown};
use std::path::Path;

use config_sync::table::address::{Owner, UnixPath};
use config_sync::table::routing::Socket as SocketConfig;
use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::ring::sys::options::unix_address;

/// Clients of the admin API that wait to be accepted.
const PRIVATE_BACKLOG: i32 = 16;

/// Opens one listening socket for all workers, because there are no SO_REUSEPORT groups of Unix
/// sockets. The kernel wakes one worker for each connection.
///
/// A file of a socket that nobody listens on is replaced.
///
/// # Errors
///
/// Errors of socket(2), bind(2), listen(2), chown(2) and chmod(2). EADDRINUSE: somebody listens on
/// the socket, or the file is no socket.
pub fn open(
    config: &SocketConfig,
    path: UnixPath,
    workers: usize,
    backlog: i32,
) -> io::Result<Vec<OwnedFd>> {
    let socket = bind(path, config.bind.mode.unwrap_or(0o777), Type::STREAM)?;
    if let Some(file) = path.file() {
        own(config, file).inspect_err(|_| _ = fs::remove_file(file))?;
    }
    socket.listen(backlog)?;
    let socket = OwnedFd::from(socket);
    let mut sockets = Vec::with_capacity(workers);
    for _ in 1..workers {
        sockets.push(socket.try_clone()?);
    }
    sockets.push(socket);
    Ok(sockets)
}

/// Opens a listening socket of the process itself: of the admin API, or for the next process. Only
/// the process's own user may connect.
///
/// # Errors
///
/// The errors of [`open`].
pub fn open_private(path: UnixPath, kind: Type) -> io::Result<OwnedFd> {
    let socket = bind(path, 0o600, kind)?;
    socket.listen(PRIVATE_BACKLOG)?;
    Ok(socket.into())
}

/// Listens on a private socket that another process has opened. From now on clients that connect
/// see this process at the other end (SO_PEERCRED, unix(7)).
///
/// # Errors
///
/// Errors of listen(2) and fcntl(2).
pub fn take_private(socket: &OwnedFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_nonblocking(true)?;
    socket.listen(PRIVATE_BACKLOG)
}

/// Connects to a socket that [`open_private`] has opened.
///
/// # Errors
///
/// Errors of socket(2) and connect(2).
pub fn connect(path: UnixPath, kind: Type) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, kind, None)?;
    socket.connect(&unix_address(path)?)?;
    Ok(socket.into())
}

/// Binds a socket whose file has no more than this mode. A file that is stale is replaced.
fn bind(path: UnixPath, mode: u32, kind: Type) -> io::Result<Socket> {
    let address = unix_address(path)?;
    let socket = Socket::new(Domain::UNIX, kind.nonblocking(), None)?;
    let Some(file) = path.file() else {
        socket.bind(&address)?;
        return Ok(socket);
    };
    // The file is made with no more than this mode, so nobody connects who may not.
    fchmod(&socket, Mode::from_bits_truncate(mode))?;
    let bound = socket.bind(&address);
    if bound.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        && is_stale(file, &address, kind)
    {
        fs::remove_file(file)?;
        socket.bind(&address)?;
    } else {
        bound?;
    }
    Ok(socket)
}

/// Whether the file is a socket that nobody listens on, such as that of a process that was killed.
fn is_stale(file: &Path, address: &SockAddr, kind: Type) -> bool {
    let is_socket = fs::symlink_metadata(file).is_ok_and(|found| found.file_type().is_socket());
    let refused = || {
        let socket = Socket::new(Domain::UNIX, kind.nonblocking(), None)?;
        socket.connect(address)
    };
    // EAGAIN would mean that the queue of a living listener is full.
    is_socket && refused().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Gives the file its owner and its mode.
fn own(config: &SocketConfig, file: &Path) -> io::Result<()> {
    let Owner { user, group } = config.bind.owner;
    if user.is_some() || group.is_some() {
        lchown(file, user, group)?;
    }
    match config.bind.mode {
        Some(mode) => fs::set_permissions(file, fs::Permissions::from_mode(mode)),
        None => Ok(()),
    }
}
