//! How the endpoints of one backend are checked: the settings of the check, with the parts of the
//! backend that the check takes over.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::time_provider::DefaultTimeProvider;

use crate::health::unverified;
use crate::model::backend::Backend;
use crate::model::health_check::{CheckProxy, HealthCheck, Kind};
use crate::table::routing::ProxyVersion;
use crate::table::terminator::Originator;

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) check: HealthCheck,
    /// Local addresses to connect from, as for sessions: one of each IP version, if any are given.
    pub(super) sources: Vec<IpAddr>,
    /// The name of the interface through which checks reach the endpoints.
    pub(super) interface: Option<Arc<str>>,
    pub(super) send_proxy: Option<ProxyVersion>,
    /// Whether the check is to speak TLS.
    pub(super) speaks_tls: bool,
    pub(super) tls: Option<Tls>,
}

/// How a check speaks TLS.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    /// `None`: the endpoint's address.
    pub(super) name: Option<ServerName<'static>>,
}

impl Plan {
    /// `originator` is the TLS of checks that verify a certificate: their own, or the backend's as
    /// sessions speak it.
    pub(super) fn new(
        backend: &Backend,
        check: HealthCheck,
        originator: Option<&Originator>,
    ) -> Self {
        let send_proxy = match check.send_proxy {
            CheckProxy::Version(version) => Some(version),
            CheckProxy::No => None,
            CheckProxy::AsSessions if check.kind == Kind::Tcp || check.is_beside() => None,
            CheckProxy::AsSessions => backend.send_proxy.as_ref().map(|at| at.value.version),
        };
        // Version 1 has no word for UDP. A check by UDP of a backend for TCP goes without.
        let send_proxy =
            send_proxy.filter(|version| *version == ProxyVersion::V2 || !check.speaks_udp());
        let speaks_tls = check.speaks_tls(backend.tls.is_some());
        let tls = if speaks_tls {
            Some(Tls::new(&check, originator))
        } else {
            // A server that has offered TLS logs a connection that ends before TLS begins.
            check
                .accepts_tls()
                .then(|| Tls::new(&HealthCheck { verify: false, ..check.clone() }, None))
        };
        let interface = backend.interface.as_ref().map(|at| Arc::clone(&at.value.name));
        Self { sources: sources(backend), interface, send_proxy, speaks_tls, tls, check }
    }
}

impl Tls {
    fn new(check: &HealthCheck, originator: Option<&Originator>) -> Self {
        let mut config = match originator {
            Some(originator) => ClientConfig::clone(&originator.config),
            None => unverified::config(),
        };
        // The time of the configuration is the time of a worker, and this is no worker.
        config.time_provider = Arc::new(DefaultTimeProvider);
        // Every check has a whole handshake, because a resumed one verifies no certificate.
        config.resumption = Resumption::disabled();
        if !check.verify {
            config.dangerous().set_certificate_verifier(unverified::verifier());
        }
        config.alpn_protocols = match check.kind {
            Kind::Http(_) => vec![b"http/1.1".to_vec()],
            Kind::Postgres(_) => vec![b"postgresql".to_vec()],
            _ => originator.map(|originator| originator.offer(None)).unwrap_or_default(),
        };
        let host = || {
            let host = check.host.as_deref()?;
            ServerName::try_from(host.to_owned()).ok()
        };
        let own = check.server_name.clone().and_then(|name| ServerName::try_from(name).ok());
        let sent = || originator.map(|originator| originator.server_name.clone());
        let name = own.or_else(sent).or_else(host);
        Self { config: Arc::new(config), name }
    }
}

fn sources(backend: &Backend) -> Vec<IpAddr> {
    let first = |v4: bool| backend.source.iter().find(|at| at.value.first.is_ipv4() == v4);
    [first(true), first(false)].into_iter().flatten().map(|at| at.value.first).collect()
}
