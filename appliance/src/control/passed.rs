//! The sockets that systemd passes to this process: those of a socket unit, and those that an
//! earlier process has stored before it crashed (sd_listen_fds(3)).

use std::env;
use std::os::fd::{AsFd as _, OwnedFd};

use config_sync::model::config::Config;
use config_sync::model::listener::Listener;
use config_sync::table::address::Address;
use config_sync::table::routing::{Protocol, Transport};

use crate::control::fd_store;
use crate::control::upgrade::taking::Sockets;
use crate::ring::listen::given::{Place, place};
use crate::ring::sys::pass;
use crate::wire::hand_over::{Name, What};

/// More than any socket unit has. The variable of the environment may say anything.
const MOST: usize = 65_536;

/// The sockets, each with its name.
pub type Passed = Vec<(String, OwnedFd)>;

/// Takes the sockets, each with its name (`FileDescriptorName=`). Nobody else may have opened a
/// file by these numbers, so this comes early, and once.
pub fn take() -> Passed {
    let number = |name| env::var(name).ok()?.parse::<usize>().ok();
    let is_ours = number("LISTEN_PID") == usize::try_from(std::process::id()).ok();
    let count = number("LISTEN_FDS").filter(|count| is_ours && *count <= MOST).unwrap_or(0);
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').chain(std::iter::repeat("unknown"));
    let passed = names.zip(pass::inherited(count));
    passed.filter_map(|(name, socket)| Some((name.to_owned(), socket?))).collect()
}

/// Gives those that fit an address of `config` to whoever opens the address. The log says which do
/// not fit, and they are closed.
pub fn sort(mut passed: Passed, config: &Config, sockets: &mut Sockets) {
    sockets.passed = !passed.is_empty();
    // Those of a socket unit come in the order of the unit, and stay so.
    passed.sort_by_key(|(name, _)| fd_store::worker_of(name));
    for (number, (name, socket)) in (0..).zip(passed) {
        match fitting(&name, &socket, config) {
            Ok((what, Place { address, interface, .. })) => {
                let address = address.to_string();
                sockets.add(number, Name { what, address, interface, worker: number }, socket);
            }
            Err(why) => {
                tracing::warn!("systemd passes the socket {name:?}, which is closed: {why}");
                fd_store::forget(&name);
            }
        }
    }
}

/// Closes what no listener has taken.
pub fn warn_of_rest(sockets: &mut Sockets) {
    for address in sockets.left() {
        tracing::warn!("no listener takes the socket on {address} that systemd passes");
    }
}

fn fitting(name: &str, socket: &OwnedFd, config: &Config) -> Result<(What, Place), String> {
    let place = place(socket.as_fd())?;
    let shown = match place.transport {
        Transport::Tcp => format!("{} (TCP)", place.address),
        Transport::Udp => format!("{} (UDP)", place.address),
    };
    let is_stream = place.transport == Transport::Tcp;
    if is_stream && config.admin.map(Address::Ip) == Some(place.address) {
        return Ok((What::Admin, place));
    }
    let listens = |listener: &&Listener| {
        (listener.protocol != Protocol::Udp) == is_stream
            && listener.addresses.iter().any(|address| address.value == place.address)
    };
    if place.address.unix().is_some() && !fd_store::is_stored(name) {
        // At the end Ringway removes the file of a listener, and this one is systemd's.
        return Err(format!("{shown}: a Unix socket is opened by Ringway itself"));
    }
    let named = config.listeners.iter().find(|listener| listener.name.value == name);
    if let Some(named) = named
        && !listens(&named)
    {
        return Err(format!("the listener of this name does not listen on {shown}"));
    }
    if !config.listeners.iter().any(|listener| listens(&listener)) {
        return Err(format!("no listener is on {shown}"));
    }
    Ok((if is_stream { What::Tcp } else { What::Udp }, place))
}
