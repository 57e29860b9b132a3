//! Makes one check: connects, and talks with the endpoint until the answer decides.
//!
//! [`talk`] has what is said and what the answers mean, without I/O. One deadline is for the whole
//! check, and an answer has at most 64 KiB, so an endpoint can hold up or fill nothing.

mod stream;
pub mod talk;

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};

use crate::health::probe::talk::Talk;
use crate::health::probe::talk::reply::{MOST_OF_ANSWER, Reply};
use crate::health::{Finding, Probe};
use crate::model::health_check::Kind;
use crate::table::routing::ProxyVersion;

/// How long the endpoint may take to close, once the verdict is known. An endpoint that closes
/// first logs no reset, and keeps the connection's last minute on its side.
const TO_CLOSE: Duration = Duration::from_millis(200);

/// One check under way.
struct Attempt<'p> {
    probe: &'p Probe,
    address: SocketAddr,
    deadline: Instant,
}

impl Probe {
    pub(super) async fn make(&self) -> Finding {
        let check = &self.plan.check;
        let port = if check.port == 0 { self.endpoint.port() } else { check.port };
        let address = SocketAddr::new(self.endpoint.ip(), port);
        let deadline = Instant::now() + Duration::from_millis(check.timeout.into());
        let attempt = Attempt { probe: self, address, deadline };
        match attempt.run().await {
            Ok(()) => Finding::Good,
            Err(finding) => finding,
        }
    }
}

impl Attempt<'_> {
    async fn run(&self) -> Result<(), Finding> {
        let plan = &*self.probe.plan;
        let mut stream = self.connect().await?;
        if let Some(version) = plan.send_proxy {
            self.step("sending to", stream.write_all(proxy_header(version))).await?;
        }
        let Some(tls) = &plan.tls else {
            let verdict = self.speak(&mut stream).await;
            self.close(&mut stream, &verdict).await;
            // A reset closes the connection. A reset leaves no TIME_WAIT on either side, where
            // each check would hold a port for a minute. Everything was said, so nothing is lost.
            _ = stream.set_zero_linger();
            return verdict;
        };
        let mut stream = self.step("TLS with", stream::secured(stream, tls, self.address)).await?;
        let mut verdict = self.speak(&mut stream).await;
        if plan.check.kind == Kind::Tls {
            // With TLS 1.3 an endpoint refuses a certificate, or the lack of one, only after the
            // handshake has ended for Ringway.
            stream::say_goodbye(&mut stream);
            _ = stream.flush().await;
            let ended = timeout_at(self.soon(), stream::end_of(&mut stream)).await;
            if let Ok(Err(error)) = ended {
                verdict = Err(self.bad("TLS with", &error));
            }
        } else {
            self.close(&mut stream, &verdict).await;
        }
        _ = stream.get_ref().0.set_zero_linger();
        verdict
    }

    async fn connect(&self) -> Result<TcpStream, Finding> {
        let socket = self.socket().map_err(|error| Finding::NotMade(error.to_string()))?;
        match timeout_at(self.deadline, socket.connect(self.address)).await {
            Ok(Err(error)) if is_own(&error) => Err(Finding::NotMade(error.to_string())),
            Ok(connected) => connected.map_err(|error| self.bad("connecting to", &error)),
            Err(_) => Err(self.late("connecting to")),
        }
    }

    fn socket(&self) -> io::Result<TcpSocket> {
        let is_v4 = self.address.is_ipv4();
        let socket = if is_v4 { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(source) = self.probe.source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        Ok(socket)
    }

    /// Talks until the verdict.
    async fn speak<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
    ) -> Result<(), Finding> {
        let check = &self.probe.plan.check;
        let Some((mut talk, opening)) = Talk::new(check, &self.host()) else { return Ok(()) };
        let doing = talk.doing();
        self.step(doing, stream.write_all(&opening)).await?;
        self.step(doing, stream.flush()).await?;
        let mut answer = Vec::new();
        let mut ended = false;
        loop {
            match talk.reply(&answer, ended || answer.len() >= MOST_OF_ANSWER) {
                Reply::Good => return Ok(()),
                Reply::Bad(why) => return Err(self.bad(doing, &why)),
                Reply::More => {
                    let mut part = [0; 4_096];
                    let room = part.len().min(MOST_OF_ANSWER - answer.len());
                    let len = self.step(doing, stream.read(&mut part[..room])).await?;
                    answer.extend_from_slice(&part[..len]);
                    ended = len == 0;
                }
            }
        }
    }

    /// Waits a moment for the endpoint to close, if the endpoint was told something.
    async fn close<S: AsyncRead + Unpin>(&self, stream: &mut S, verdict: &Result<(), Finding>) {
        if self.probe.plan.check.kind != Kind::Tcp && verdict.is_ok() {
            _ = timeout_at(self.soon(), stream::end_of(stream)).await;
        }
    }

    fn soon(&self) -> Instant {
        self.deadline.min(Instant::now() + TO_CLOSE)
    }

    /// The name that the check asks for.
    fn host(&self) -> String {
        let plan = &*self.probe.plan;
        let tls = || plan.tls.as_ref()?.name.as_ref().map(|name| name.to_str().into_owned());
        plan.check.host.clone().or_else(tls).unwrap_or_else(|| self.address.to_string())
    }

    async fn step<T>(
        &self,
        doing: &str,
        work: impl Future<Output = io::Result<T>>,
    ) -> Result<T, Finding> {
        match timeout_at(self.deadline, work).await {
            Ok(result) => result.map_err(|error| self.bad(doing, &error)),
            Err(_) => Err(self.late(doing)),
        }
    }

    fn bad(&self, doing: &str, why: &dyn Display) -> Finding {
        Finding::Bad(format!("{doing} {}: {why}", self.address))
    }

    fn late(&self, doing: &str) -> Finding {
        let within = self.probe.plan.check.timeout;
        self.bad(doing, &format!("no answer within {within} ms"))
    }
}

/// A header without addresses. The endpoint takes the connection's own.
fn proxy_header(version: ProxyVersion) -> &'static [u8] {
    match version {
        ProxyVersion::V1 => b"PROXY UNKNOWN\r\n",
        // Version 2, command LOCAL, no addresses, length 0.
        ProxyVersion::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    }
}

/// Whether this machine lacks something for the connection: ports or memory.
fn is_own(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, OutOfMemory};
    matches!(error.kind(), AddrNotAvailable | OutOfMemory)
        || error.raw_os_error() == Some(nix::libc::ENOBUFS)
}

#[cfg(test)]
mod tests;
