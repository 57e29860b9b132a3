//! Tells systemd how the process fares (sd_notify(3)). Without `NOTIFY_SOCKET` nobody is told.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::ring::sys::pass;

/// Tells the state, such as `READY=1`.
pub fn tell(state: &str) {
    let Some(name) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&name, state) {
        tracing::warn!("systemd can't be told {state:?}: {error}");
    }
}

fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(name),
    }
}

fn send(name: &OsStr, state: &str) -> io::Result<()> {
    // systemd may be busy, and the control thread must not wait for it.
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address(name)?).map(drop)
}

/// Tells the state, with copies of descriptors beside it.
///
/// # Errors
/// Errors of sendmsg(2): EAGAIN if systemd has not read what was sent before.
pub fn send_beside(state: &str, beside: &[BorrowedFd<'_>]) -> io::Result<()> {
    let Some(name) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address(&name)?)?;
    pass::send(socket.as_fd(), state.as_bytes(), beside)
}

/// The configuration is being read. `READY=1` must follow. systemd knows by the time which of its
/// requests this answers (`Type=notify-reload`, systemd 253).
pub fn tell_of_reload() {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return };
    let micros = now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000;
    tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
}

/// How often to tell `WATCHDOG=1`: twice as often as systemd asks for (`WatchdogSec=`). `None`:
/// systemd does not ask.
pub fn watchdog() -> Option<Duration> {
    let micros: u64 = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    Some(Duration::from_micros(micros / 2)).filter(|every| !every.is_zero())
}
