//! The TLS of the admin API's address.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use config_sync::compile::tls::expiry::{ADMIN, Expiry, OwnedBy};
use config_sync::model::config::AdminTls;
use config_sync::model::place::{At, Problem};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, crypto};
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::TlsAcceptor;

/// How often the files are read again. A certificate is renewed days before it ends.
const AGAIN: Duration = Duration::from_secs(10);

/// The certificate of the address, and who may sign clients' certificates.
#[derive(Clone, Debug)]
pub struct Tls {
    files: Arc<AdminTls>,
    loaded: Arc<Mutex<Loaded>>,
}

/// What the files said when they were last in order.
#[derive(Clone, Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    expiry: Option<Expiry>,
}

impl Tls {
    /// # Errors
    /// A file can't be read, or is wrong. The problem names the key and the file.
    pub fn read(files: &AdminTls) -> Result<Self, Problem> {
        let loaded = Arc::new(Mutex::new(load(files)?));
        Ok(Self { files: Arc::new(files.clone()), loaded })
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.loaded.lock().config))
    }

    /// The end of the certificate in use.
    pub fn expiry(&self) -> Option<Expiry> {
        self.loaded.lock().expiry.clone()
    }

    /// Whether clients are asked for certificates.
    pub fn asks(&self) -> bool {
        self.files.client_ca.is_some()
    }

    /// Reads the files again from time to time. Files that are wrong are told of once, and what was
    /// read before stays in force.
    pub async fn follow(self) {
        let mut times = interval(AGAIN);
        times.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            times.tick().await;
            let files = Arc::clone(&self.files);
            let Ok(read) = tokio::task::spawn_blocking(move || load(&files)).await else {
                continue;
            };
            match read {
                Ok(loaded) => {
                    *self.loaded.lock() = loaded;
                    told = None;
                }
                Err(fault) if told.as_ref() == Some(&fault) => {}
                Err(fault) => {
                    tracing::error!("{fault}; the certificate that was read before stays");
                    told = Some(fault);
                }
            }
        }
    }
}

fn load(AdminTls { cert, key, client_ca }: &AdminTls) -> Result<Loaded, Problem> {
    let chain = certificates(cert)?;
    let expiry = chain.first().and_then(|der| {
        let file = (cert.value.display().to_string(), cert.place.clone());
        Expiry::of_certificate(der, (OwnedBy::Admin, ADMIN), file)
    });
    let private = PrivateKeyDer::from_pem_file(&key.value);
    let private = private.map_err(|error| wrong(key, &error))?;
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| wrong(cert, &error))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(file)? {
                roots.add(authority).map_err(|error| wrong(file, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            // A client without a certificate may read. A certificate that is wrong ends the
            // handshake, so that its owner notices.
            let verifier = verifier.allow_unauthenticated().build();
            builder.with_client_cert_verifier(verifier.map_err(|error| wrong(file, &error))?)
        }
    };
    let mut config = builder.with_single_cert(chain, private).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            wrong(key, &format_args!("is not the key of {}", cert.value.display()))
        }
        error => wrong(cert, &error),
    })?;
    // Each connection has one request, so nobody resumes. A ticket would let a client change things
    // after its certificate has ended.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Loaded { config: Arc::new(config), expiry })
}

/// The certificates of a file: one or more.
fn certificates(file: &At<PathBuf>) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let read = CertificateDer::pem_file_iter(&file.value).and_then(Iterator::collect);
    let read: Vec<_> = read.map_err(|error| wrong(file, &error))?;
    match read.is_empty() {
        true => Err(wrong(file, &"no certificate is in it")),
        false => Ok(read),
    }
}

fn wrong(file: &At<PathBuf>, error: &dyn std::fmt::Display) -> Problem {
    file.problem(format!("{}: {error}", file.value.display()))
}
