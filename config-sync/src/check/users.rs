//! The listeners that use a backend.

use crate::model::listener::{Listener, transport};
use crate::table::routing::{Protocol, Transport};

/// The listeners that use a backend.
#[derive(Clone, Copy, Default)]
pub(super) struct Users<'c> {
    pub(super) tcp: bool,
    pub(super) udp: bool,
    /// Some listener is named and does not exist.
    pub(super) unknown: bool,
    /// The first listener that passes TLS through.
    pub(super) through: Option<&'c Listener>,
    /// The highest port, and its listener.
    pub(super) highest: Option<(u16, &'c Listener)>,
    /// The first listener on a Unix socket.
    pub(super) unix: Option<&'c Listener>,
}

impl<'c> Users<'c> {
    pub(super) fn add(&mut self, listener: Option<&'c Listener>) {
        let Some(listener) = listener else {
            self.unknown = true;
            return;
        };
        let through = listener.protocol == Protocol::Tls && listener.tls.is_none();
        let addresses = || listener.addresses.iter().map(|at| at.value);
        let highest = addresses().filter_map(|at| Some(at.ip()?.port())).max();
        let is_unix = addresses().any(|at| at.unix().is_some());
        self.extend(Self {
            tcp: transport(listener.protocol) == Transport::Tcp,
            udp: transport(listener.protocol) == Transport::Udp,
            unknown: false,
            through: through.then_some(listener),
            highest: highest.map(|port| (port, listener)),
            unix: is_unix.then_some(listener),
        });
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.tcp |= other.tcp;
        self.udp |= other.udp;
        self.unknown |= other.unknown;
        self.through = self.through.or(other.through);
        let by_port = |of: &(u16, _)| of.0;
        self.highest = self.highest.into_iter().chain(other.highest).max_by_key(by_port);
        self.unix = self.unix.or(other.unix);
    }
}
