//! TLS clients, by rustls: what a proxy that ends TLS costs. All offer TLS 1.3 with one cipher
//! suite and one group only, so that every proxy does the same sums.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use monoio::io::AsyncReadRent as _;
use monoio::net::TcpStream;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore};

use super::Options;
use super::meter::Meter;
use super::pace::{Pace, drive, finish};
use crate::outcome::Outcome;
use crate::serve::{stream, wire};

/// The name in the proxies' certificate.
pub const NAME: &str = "tls.bench.test";

/// Requests over kept connections to `serve respond`.
pub async fn requests(options: &Options) -> anyhow::Result<Outcome> {
    let config = config(options, false)?;
    let mut clients = Vec::new();
    for number in 0..options.connections {
        let tls = Tls::connect(options, &config).await.context("connect")?;
        clients.push(Client { tls, number, sent: 0, size: options.size(64) });
    }
    let meter = Rc::new(Meter::new(options.begin()?, options.warmup(), options.seconds()));
    drive(clients, options.rate, &meter, Client::run).await?;
    Ok(meter.outcome())
}

/// A new connection for each request, to `serve close`: with a full handshake, or a resumed one.
pub async fn connect(options: &Options) -> anyhow::Result<Outcome> {
    let visitor = |number: u32| {
        let config = config(options, options.resume)?;
        let request = wire::request(ANSWER, u64::from(number).to_le_bytes());
        anyhow::Ok(Visitor { options: options.clone(), config, request, resumes: options.resume })
    };
    let mut visitors = Vec::new();
    for number in 0..options.connections {
        let visitor = visitor(number)?;
        // The first of each is a full handshake, and brings the tickets.
        visitor.visit(HandshakeKind::Full).await.context("the first connection")?;
        visitors.push(visitor);
    }
    let meter = Rc::new(Meter::new(options.begin()?, options.warmup(), options.seconds()));
    drive(visitors, options.rate, &meter, Visitor::run).await?;
    Ok(meter.outcome())
}

/// Bulk from `serve source`, decrypted and thrown away.
pub async fn download(options: &Options) -> anyhow::Result<Outcome> {
    let config = config(options, false)?;
    let mut streams = Vec::new();
    for _ in 0..options.connections {
        streams.push(Tls::connect(options, &config).await.context("connect")?);
    }
    let meter = Rc::new(Meter::new(options.begin()?, options.warmup(), options.seconds()));
    let tasks = streams.into_iter().map(|mut tls| {
        let meter = Rc::clone(&meter);
        monoio::spawn(async move {
            let mut plain = vec![0; BULK];
            loop {
                let received = tls.read(&mut plain).await;
                let now = Instant::now();
                match received {
                    _ if meter.over(now) => return,
                    Ok(count @ 1..) => meter.moved(now, count),
                    Ok(0) | Err(_) => return meter.failed(),
                };
            }
        })
    });
    finish(tasks.collect(), &meter).await;
    Ok(meter.outcome())
}

/// Bytes of the answer.
const ANSWER: u32 = 64;

/// Received at once, at the most.
const BULK: usize = 256 << 10;

fn config(options: &Options, resume: bool) -> anyhow::Result<Arc<ClientConfig>> {
    let file = options.ca.as_ref().context("--ca is needed")?;
    let pem = std::fs::read(file).with_context(|| file.display().to_string())?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem)?)?;
    let provider = CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption =
        if resume { Resumption::in_memory_sessions(32) } else { Resumption::disabled() };
    Ok(Arc::new(config))
}

struct Tls {
    stream: TcpStream,
    conn: ClientConnection,
    incoming: Vec<u8>,
    /// Received and not processed yet: `incoming[at..]`.
    at: usize,
}

impl Tls {
    /// Connects, and shakes hands.
    async fn connect(options: &Options, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let stream = stream::connect(options.to, None).await?;
        let name = NAME.try_into().map_err(io::Error::other)?;
        let conn = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        let mut tls = Self { stream, conn, incoming: Vec::with_capacity(BULK), at: 0 };
        tls.flush().await?;
        while tls.conn.is_handshaking() {
            tls.receive().await?;
            tls.flush().await?;
        }
        Ok(tls)
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.conn.writer().write_all(bytes)?;
        self.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        let mut out = Vec::new();
        while self.conn.wants_write() {
            self.conn.write_tls(&mut out)?;
        }
        stream::send_all(&self.stream, &out).await
    }

    /// What has been said: 0 at its clean end.
    async fn read(&mut self, plain: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.conn.reader().read(plain) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.receive().await?,
                result => return result,
            }
        }
    }

    async fn read_exact(&mut self, mut plain: &mut [u8]) -> io::Result<()> {
        while !plain.is_empty() {
            match self.read(plain).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => plain = &mut plain[count..],
            }
        }
        Ok(())
    }

    /// Processes some of what has come, which may have to be waited for.
    async fn receive(&mut self) -> io::Result<()> {
        if self.at == self.incoming.len() {
            let (count, incoming) = self.stream.read(std::mem::take(&mut self.incoming)).await;
            self.incoming = incoming;
            self.at = 0;
            if count? == 0 {
                self.incoming.clear();
            }
        }
        let mut rest = &self.incoming[self.at..];
        self.conn.read_tls(&mut rest)?;
        self.at = self.incoming.len() - rest.len();
        self.conn.process_new_packets().map_err(io::Error::other)?;
        if self.incoming.is_empty() && self.conn.is_handshaking() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

struct Client {
    tls: Tls,
    number: u32,
    sent: u32,
    size: u32,
}

impl Client {
    async fn run(mut self, pace: Pace, meter: Rc<Meter>) {
        let mut answer = vec![0; self.size as usize];
        while let Some(start) = pace.next(&meter).await {
            match self.exchange(&mut answer).await {
                Ok(()) => meter.done(start, Instant::now(), answer.len()),
                // The connection is of no more use, and there is no other.
                Err(_) => return meter.failed(),
            }
        }
    }

    async fn exchange(&mut self, answer: &mut [u8]) -> io::Result<()> {
        self.sent = self.sent.wrapping_add(1);
        let sequence = (u64::from(self.number) << 32 | u64::from(self.sent)).to_le_bytes();
        self.tls.send(&wire::request(self.size, sequence)).await?;
        self.tls.read_exact(answer).await?;
        let checked = sequence.len().min(answer.len());
        if answer[..checked] == sequence[..checked] {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

struct Visitor {
    options: Options,
    config: Arc<ClientConfig>,
    request: [u8; wire::REQUEST],
    resumes: bool,
}

impl Visitor {
    async fn run(self, pace: Pace, meter: Rc<Meter>) {
        let kind = if self.resumes { HandshakeKind::Resumed } else { HandshakeKind::Full };
        while let Some(start) = pace.next(&meter).await {
            match self.visit(kind).await {
                Ok(()) => meter.done(start, Instant::now(), ANSWER as usize),
                Err(_) => {
                    meter.failed();
                    monoio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    }

    /// One connection from SYN to FIN, with close_notify both ways.
    async fn visit(&self, kind: HandshakeKind) -> io::Result<()> {
        let mut tls = Tls::connect(&self.options, &self.config).await?;
        tls.send(&self.request).await?;
        let mut answer = [0; ANSWER as usize];
        tls.read_exact(&mut answer).await?;
        let end = tls.read(&mut [0]).await?;
        tls.conn.send_close_notify();
        tls.flush().await?;
        let (_, sequence) = wire::parse_request(&self.request);
        let right = end == 0 && answer.starts_with(&sequence);
        if right && tls.conn.handshake_kind() == Some(kind) {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

/// Writes `ca.pem`, and a certificate for [`NAME`]: `cert.pem`, `key.pem`, and both in `both.pem`,
/// as HAProxy has it. ECDSA with P-256.
pub fn write_certificates(directory: &Path) -> anyhow::Result<()> {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let cert = CertificateParams::new(vec![NAME.to_owned()])?.signed_by(&key, &authority)?;
    let (cert, key) = (cert.pem(), key.serialize_pem());
    for (file, text) in [
        ("ca.pem", authority.pem()),
        ("both.pem", format!("{cert}{key}")),
        ("cert.pem", cert),
        ("key.pem", key),
    ] {
        std::fs::write(directory.join(file), text).with_context(|| file.to_owned())?;
    }
    ensure!(directory.is_absolute(), "certificates are named by their whole paths");
    Ok(())
}
