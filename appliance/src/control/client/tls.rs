//! The TLS of a verb that asks an address over HTTPS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use axum::http::Uri;
use clap::Args;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, crypto};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Who the gateway must be, and who asks.
#[derive(Debug, Args)]
pub struct Tls {
    /// The authorities that may have signed the certificate of an https:// gateway, in PEM.
    #[arg(long, value_name = "FILE")]
    admin_ca: Option<PathBuf>,
    /// The certificate that lets the verb change things, in PEM: `admin.client_ca` of the gateway
    /// names the authorities that may have signed it.
    #[arg(long, value_name = "FILE", requires = "admin_key")]
    admin_cert: Option<PathBuf>,
    /// The private key of --admin-cert, in PEM.
    #[arg(long, value_name = "FILE", requires = "admin_cert")]
    admin_key: Option<PathBuf>,
}

impl Tls {
    /// Connects to `host:port`.
    pub async fn connect(&self, address: &str) -> anyhow::Result<TlsStream<TcpStream>> {
        let config = self.config()?;
        let uri: Uri = format!("https://{address}/").parse()?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host)?;
        let stream = TcpStream::connect(address).await?;
        Ok(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
    }

    fn config(&self) -> anyhow::Result<ClientConfig> {
        let ca = self.admin_ca.as_deref();
        let ca =
            ca.context("https needs --admin-ca FILE: who may sign the gateway's certificate")?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(ca).with_context(|| option("--admin-ca", ca))? {
            roots.add(authority).with_context(|| option("--admin-ca", ca))?;
        }
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots);
        let (Some(cert), Some(key)) = (&self.admin_cert, &self.admin_key) else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates(cert).with_context(|| option("--admin-cert", cert))?;
        let private =
            PrivateKeyDer::from_pem_file(key).with_context(|| option("--admin-key", key))?;
        let config = builder.with_client_auth_cert(chain, private);
        config.with_context(|| option("--admin-cert", cert))
    }
}

fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_file_iter(file)?.collect::<Result<_, _>>()?;
    ensure!(!all.is_empty(), "no certificate is in it");
    Ok(all)
}

fn option(name: &str, file: &Path) -> String {
    format!("{name} {}", file.display())
}
