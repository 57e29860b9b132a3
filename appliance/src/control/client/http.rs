//! Asks the admin API of a running gateway.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use axum::body::Body;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use axum::http::{Method, Request, StatusCode, Uri};
use clap::Args;
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nix::unistd::{AccessFlags, access};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::control::client::tls::Tls;

/// Where the packaged service has its socket, and where the API listens by default.
const SOCKET: &str = "/run/ringway/admin.sock";
const ADDRESS: &str = "127.0.0.1:9900";

const PATIENCE: Duration = Duration::from_secs(30);

/// The gateway limits how often an address may ask. A list of many pages then waits.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSES: usize = 10;

/// The most bytes of an answer: more than a page of the longest rows has.
const MOST_ANSWER: usize = 64 << 20;

/// How to reach the gateway.
#[derive(Debug, Args)]
pub struct Reach {
    /// The gateway's admin API: its Unix socket, which may change things, or an address that
    /// mostly may not, such as http://10.0.0.1:9900 or https://gateway.internal:9900. Default:
    /// /run/ringway/admin.sock if it is there and this user may use it, else
    /// http://127.0.0.1:9900.
    #[arg(long, value_name = "PATH|URL")]
    admin: Option<String>,
    /// The file with the token that `admin.token_file` of the gateway names. It is sent to an
    /// address only.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    tls: Tls,
}

enum Target {
    Unix(PathBuf),
    Http(String),
    Https(String),
}

/// A question to the API.
pub struct Question {
    pub method: Method,
    /// Behind `/api/v1/`.
    pub path: String,
    pub query: Vec<(&'static str, String)>,
    pub body: Option<Value>,
}

/// The gateway has answered, and says that the question or the change can't be granted.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Told(pub String);

impl Question {
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), query: Vec::new(), body: None }
    }

    pub fn delete(path: impl Into<String>) -> Self {
        Self { method: Method::DELETE, ..Self::get(path) }
    }
}

impl Reach {
    fn target(&self) -> anyhow::Result<Target> {
        let Some(given) = self.admin.as_deref() else {
            // Another user may not connect to the socket, and may read through the address.
            return Ok(match access(SOCKET, AccessFlags::W_OK) {
                Ok(()) => Target::Unix(SOCKET.into()),
                Err(_) => Target::Http(ADDRESS.to_owned()),
            });
        };
        if let Some(path) = given.strip_prefix("unix:") {
            return Ok(Target::Unix(path.into()));
        }
        if given.starts_with(['/', '.']) {
            return Ok(Target::Unix(given.into()));
        }
        let secure = given.strip_prefix("https://");
        let address = secure.or_else(|| given.strip_prefix("http://")).unwrap_or(given);
        let address = address.trim_end_matches('/');
        let uri = format!("http://{address}/").parse::<Uri>();
        match uri.ok().filter(|uri| uri.port().is_some() && uri.path() == "/") {
            Some(_) if secure.is_some() => Ok(Target::Https(address.to_owned())),
            Some(_) => Ok(Target::Http(address.to_owned())),
            None => bail!(
                "--admin {given}: neither a path such as {SOCKET} nor http://ADDRESS:PORT nor \
                 https://NAME:PORT"
            ),
        }
    }

    /// Asks, and returns the JSON of the answer.
    pub async fn ask(&self, question: &Question) -> anyhow::Result<Value> {
        let target = self.target()?;
        let shown = target.shown();
        let (mut status, mut text) = self.exchange_within(&target, question).await?;
        for _ in 0..PAUSES {
            if status != StatusCode::TOO_MANY_REQUESTS {
                break;
            }
            tokio::time::sleep(PAUSE).await;
            (status, text) = self.exchange_within(&target, question).await?;
        }
        let value: Value = serde_json::from_slice(&text).map_err(|_| {
            anyhow!("{shown}: the answer ({status}) is not that of Ringway's admin API")
        })?;
        if status.is_success() {
            return Ok(value);
        }
        let said = value.get("error").and_then(Value::as_str).unwrap_or("no reason was given");
        match status {
            StatusCode::FORBIDDEN => {
                let hint = format!("--admin {SOCKET}, --token-file FILE, or --admin-cert FILE");
                Err(Told(format!("{shown}: {said} ({hint})")).into())
            }
            _ => Err(Told(said.to_owned()).into()),
        }
    }

    async fn exchange_within(
        &self,
        target: &Target,
        question: &Question,
    ) -> anyhow::Result<(StatusCode, Vec<u8>)> {
        match tokio::time::timeout(PATIENCE, self.exchange(target, question)).await {
            Ok(answer) => answer.map_err(|error| {
                let advice = target.advice(&error);
                error.context(advice)
            }),
            Err(_) => bail!("{}: no answer within {} s", target.shown(), PATIENCE.as_secs()),
        }
    }

    async fn exchange(
        &self,
        target: &Target,
        question: &Question,
    ) -> anyhow::Result<(StatusCode, Vec<u8>)> {
        match target {
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).await?;
                self.exchange_over(stream, "ringway", question).await
            }
            Target::Http(address) => {
                let stream = TcpStream::connect(address).await?;
                self.exchange_over(stream, address, question).await
            }
            Target::Https(address) => {
                let stream = self.tls.connect(address).await?;
                self.exchange_over(stream, address, question).await
            }
        }
    }

    async fn exchange_over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        host: &str,
        question: &Question,
    ) -> anyhow::Result<(StatusCode, Vec<u8>)> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let query = serde_urlencoded::to_string(&question.query)?;
        let mark = if query.is_empty() { "" } else { "?" };
        let mut request = Request::builder()
            .method(&question.method)
            .uri(format!("/api/v1/{}{mark}{query}", question.path))
            .header(HOST, host);
        if let Some(file) = &self.token_file {
            let token = fs::read_to_string(file);
            let token = token.with_context(|| format!("--token-file {}", file.display()))?;
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.trim()));
        }
        let body = match &question.body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        let response = sender.send_request(request.body(body)?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow!("the answer broke off: {error}"))?;
        Ok((status, body.to_bytes().to_vec()))
    }
}

impl Target {
    fn shown(&self) -> String {
        match self {
            Self::Unix(path) => path.display().to_string(),
            Self::Http(address) => format!("http://{address}"),
            Self::Https(address) => format!("https://{address}"),
        }
    }

    /// What to do about this error.
    fn advice(&self, error: &anyhow::Error) -> String {
        let shown = self.shown();
        let is_missing = |path: &Path| {
            fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        match self {
            Self::Unix(path) if is_missing(path) => format!(
                "{shown}: no gateway has its socket there; `admin.socket` of its configuration \
                 says where, and --admin PATH names it"
            ),
            Self::Unix(_) => format!(
                "{shown}: can't be reached; only the gateway's own user and root may connect"
            ),
            Self::Http(address) if is_no_http(error) => format!(
                "{shown}: what answers there does not speak plain HTTP; a gateway with \
                 `admin.cert` speaks HTTPS: --admin https://{address} --admin-ca FILE"
            ),
            Self::Https(address) if is_no_tls(error) => format!(
                "{shown}: what answers there does not speak HTTPS; a gateway without `admin.cert` \
                 speaks plain HTTP: --admin http://{address}"
            ),
            Self::Https(_) if tls_error(error).is_some() => format!(
                "{shown}: the gateway and this verb do not agree on TLS; --admin-ca FILE has those \
                 who sign the gateway's certificate"
            ),
            // The verb has not got as far as the gateway, or the answer was cut off.
            Self::Http(_) | Self::Https(_) if !is_about_the_connection(error) => shown,
            Self::Http(_) | Self::Https(_) => format!(
                "{shown}: no gateway answers there; `admin.address` of its configuration says \
                 where, and --admin URL names it"
            ),
        }
    }
}

fn is_about_the_connection(error: &anyhow::Error) -> bool {
    error.is::<io::Error>() || error.is::<hyper::Error>()
}

/// Whether the answer to a request is none of HTTP.
fn is_no_http(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(hyper::Error::is_parse)
}

fn tls_error(error: &anyhow::Error) -> Option<&rustls::Error> {
    error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
}

/// Whether the answer to a ClientHello is none of TLS.
fn is_no_tls(error: &anyhow::Error) -> bool {
    matches!(tls_error(error), Some(rustls::Error::InvalidMessage(_)))
}
