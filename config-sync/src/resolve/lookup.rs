//! Asks the DNS for the addresses of a name.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use parking_lot::Mutex;
use tokio::task::spawn_blocking;

use crate::model::endpoint::{DnsName, Target};
use crate::model::resolver::{DnsTransport, NameServer, Resolver};
use crate::resolve::Answer;

/// The most addresses of one name. The rest is left out.
const MOST_TARGETS: usize = 4_096;

/// The most hosts of one service that are looked up.
const MOST_HOSTS: usize = 64;

/// The time for an answer of one server. Then the next server is asked.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Resolves by the servers of the configuration, or of /etc/resolv.conf, and by /etc/hosts.
pub(crate) struct Client {
    servers: Vec<NameServer>,
    latest: Mutex<Option<(Versions, Arc<TokioResolver>)>>,
}

/// When /etc/resolv.conf and /etc/hosts were changed last.
type Versions = [Option<SystemTime>; 2];

/// The addresses of one host, the shortest time to live, and the fault of the missing part.
#[derive(Default)]
struct Host {
    addresses: Vec<IpAddr>,
    ttl: Option<Duration>,
    missing: Option<String>,
}

impl Client {
    pub(crate) fn new(settings: &Resolver) -> Self {
        let servers = settings.servers.iter().map(|at| at.value.clone()).collect();
        Self { servers, latest: Mutex::default() }
    }

    /// # Errors
    /// For the operator: there is no address.
    pub(crate) async fn look_up(self: &Arc<Self>, name: &DnsName) -> Result<Answer, String> {
        let resolver = self.resolver().await?;
        match name {
            DnsName::Host { host, port } => {
                let found = addresses(&resolver, host).await;
                let target = |ip| Target { rank: 0, ip, port: *port, weight: 1 };
                let targets = found.addresses.into_iter().map(target).collect();
                answer(targets, found.ttl, found.missing)
            }
            DnsName::Service(service) => self.service(&resolver, service).await,
        }
    }

    /// The hosts of a service, and their addresses (RFC 2782).
    async fn service(&self, resolver: &TokioResolver, service: &str) -> Result<Answer, String> {
        let found = resolver.lookup(service, RecordType::SRV).await;
        let found = found.map_err(|error| format!("SRV: {error}"))?;
        let mut records: Vec<&SRV> = found.answers().iter().filter_map(srv).collect();
        records.sort_unstable_by_key(|srv| (srv.priority, srv.target.clone(), srv.port));
        let mut priorities: Vec<u16> = records.iter().map(|srv| srv.priority).collect();
        priorities.dedup();
        let (mut ttl, mut missing) = (ttl(&found), None);
        if records.len() > MOST_HOSTS {
            missing = Some(format!("{} hosts; only {MOST_HOSTS} are used", records.len()));
        }
        let mut targets = Vec::new();
        // A target of "." says that there is no such service.
        for srv in records.iter().filter(|srv| !srv.target.is_root()).take(MOST_HOSTS) {
            let host = addresses(resolver, &srv.target.to_ascii()).await;
            let rank = priorities.partition_point(|priority| *priority < srv.priority);
            let rank = u16::try_from(rank).unwrap_or(u16::MAX);
            let (port, weight) = (srv.port, srv.weight.max(1));
            let target = |ip| Target { rank, ip, port, weight };
            targets.extend(host.addresses.into_iter().map(target));
            ttl = host.ttl.map_or(ttl, |host| host.min(ttl));
            missing = missing.or(host.missing);
        }
        answer(targets, Some(ttl), missing)
    }

    /// The resolver for the files as they are now.
    async fn resolver(self: &Arc<Self>) -> Result<Arc<TokioResolver>, String> {
        let client = Arc::clone(self);
        let made = spawn_blocking(move || client.made()).await;
        made.map_err(|error| error.to_string())?
    }

    fn made(&self) -> Result<Arc<TokioResolver>, String> {
        let changed = |path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
        let versions = ["/etc/resolv.conf", "/etc/hosts"].map(changed);
        let mut latest = self.latest.lock();
        if let Some((_, resolver)) = latest.as_ref().filter(|(known, _)| *known == versions) {
            return Ok(Arc::clone(resolver));
        }
        let resolver = Arc::new(build(&self.servers)?);
        *latest = Some((versions, Arc::clone(&resolver)));
        Ok(resolver)
    }
}

fn answer(
    mut targets: Vec<Target>,
    ttl: Option<Duration>,
    missing: Option<String>,
) -> Result<Answer, String> {
    // Such addresses are no machine's: they would lead to this machine, or to many.
    targets.retain(|target| !target.ip.is_unspecified() && !target.ip.is_multicast());
    targets.sort_unstable();
    targets.dedup();
    targets.truncate(MOST_TARGETS);
    match (targets.is_empty(), missing) {
        (true, missing) => Err(missing.unwrap_or_else(|| "the answer has no address".to_owned())),
        (false, missing) => Ok(Answer { targets, ttl: ttl.unwrap_or_default(), missing }),
    }
}

/// The A and AAAA records of a host. A family that the host does not have is not missing, but one
/// that could not be asked for is.
async fn addresses(resolver: &TokioResolver, host: &str) -> Host {
    let (v4, v6) =
        tokio::join!(resolver.lookup(host, RecordType::A), resolver.lookup(host, RecordType::AAAA));
    let mut found = Host::default();
    let mut absent = None;
    for (family, result) in [("A", v4), ("AAAA", v6)] {
        match result {
            Ok(lookup) => {
                found.addresses.extend(lookup.answers().iter().filter_map(address));
                let ttl = ttl(&lookup);
                found.ttl = Some(found.ttl.map_or(ttl, |known| known.min(ttl)));
            }
            Err(error) if error.is_no_records_found() => absent = Some(absence(&error)),
            Err(error) => found.missing = Some(format!("{family}: {error}")),
        }
    }
    if found.addresses.is_empty() && found.missing.is_none() {
        found.missing = absent;
    }
    found
}

fn absence(error: &NetError) -> String {
    match error.is_nx_domain() {
        true => "there is no such name (NXDOMAIN)".to_owned(),
        false => "the name has no address".to_owned(),
    }
}

#[expect(clippy::disallowed_methods, reason = "the library gives the end of an answer's validity")]
fn ttl(lookup: &Lookup) -> Duration {
    lookup.valid_until().saturating_duration_since(Instant::now())
}

fn address(record: &hickory_resolver::proto::rr::Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(IpAddr::from(address.0).to_canonical()),
        _ => None,
    }
}

fn srv(record: &hickory_resolver::proto::rr::Record) -> Option<&SRV> {
    match &record.data {
        RData::SRV(srv) => Some(srv),
        _ => None,
    }
}

/// A resolver that asks `servers`, or those of /etc/resolv.conf. It keeps no answers, because
/// names are asked for when their answers expire.
fn build(servers: &[NameServer]) -> Result<TokioResolver, String> {
    let (config, mut options) = match servers {
        [] => read_system_conf().map_err(|error| format!("/etc/resolv.conf: {error}"))?,
        servers => {
            let servers = servers.iter().map(name_server).collect();
            (ResolverConfig::from_name_servers(servers), ResolverOpts::default())
        }
    };
    options.cache_size = 0;
    options.timeout = options.timeout.min(TIMEOUT);
    options.try_tcp_on_error = true;
    let provider = TokioRuntimeProvider::default();
    let mut builder = TokioResolver::builder_with_config(config, provider).with_options(options);
    let is_tls = |server: &NameServer| matches!(server.transport, DnsTransport::Tls(_));
    if servers.iter().any(is_tls) {
        builder = builder.with_tls_config(trusting_the_system()?);
    }
    builder.build().map_err(|error| error.to_string())
}

fn name_server(server: &NameServer) -> NameServerConfig {
    let connection = |protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = server.address.port();
        connection
    };
    let protocols = match &server.transport {
        DnsTransport::Udp => vec![ProtocolConfig::Udp, ProtocolConfig::Tcp],
        DnsTransport::Tcp => vec![ProtocolConfig::Tcp],
        DnsTransport::Tls(name) => vec![ProtocolConfig::Tls { server_name: Arc::clone(name) }],
    };
    let connections = protocols.into_iter().map(connection).collect();
    NameServerConfig::new(server.address.ip(), true, connections)
}

/// TLS settings that trust the authorities of this system.
fn trusting_the_system() -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
