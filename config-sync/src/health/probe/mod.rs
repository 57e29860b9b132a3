//! Makes one check: connects, and talks with the endpoint until the answer decides.
//!
//! [`talk`] has what is said and what the answers mean, without I/O. One deadline is for the whole
//! check, and an answer has at most 64 KiB, so an endpoint can hold up or fill nothing.

mod stream;
pub mod talk;

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UdpSocket, UnixStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::health::probe::talk::Talk;
use crate::health::probe::talk::reply::{Channel, Facts, Farewell, MOST_OF_ANSWER, Reply};
use crate::health::{Finding, Probe};
use crate::model::health_check::{Kind, MOST_OF_PASSWORD};
use crate::table::address::{Address, EndpointAddress, UnixPath};
use crate::table::routing::ProxyVersion;

/// How long the endpoint may take to close, once the verdict is known. An endpoint that closes
/// first logs no reset, and keeps the connection's last minute on its side.
const TO_CLOSE: Duration = Duration::from_millis(200);

/// Held while a password file is read. A file system that hangs then takes one thread, not one for
/// each check.
static READING: LazyLock<Arc<Mutex<()>>> = LazyLock::new(Arc::default);

/// One check under way.
struct Attempt<'p> {
    probe: &'p Probe,
    address: Address,
    deadline: Instant,
}

impl Probe {
    pub(super) async fn make(&self) -> Finding {
        let check = &self.plan.check;
        let Some(address) = address(self.endpoint, check.port) else {
            return Finding::NotMade("the check has no port".to_owned());
        };
        let deadline = Instant::now() + Duration::from_millis(check.timeout.into());
        let attempt = Attempt { probe: self, address, deadline };
        let udp = check.speaks_udp();
        let made = if udp { attempt.datagrams().await } else { attempt.stream().await };
        made.unwrap_or_else(|bad| bad)
    }
}

/// Where a conversation has come to.
enum Spoken {
    Verdict(Finding),
    /// TLS begins, and these bytes are the first within.
    Secure(Vec<u8>),
}

impl Spoken {
    fn finding(self) -> Made {
        match self {
            Self::Verdict(finding) => Ok(finding),
            Self::Secure(_) => Err(Finding::Bad("TLS was to begin twice".to_owned())),
        }
    }
}

/// How the check's connection is closed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Close {
    /// A reset leaves no TIME_WAIT on either side, where each check would hold a port for a minute.
    /// Everything was said, so nothing is lost.
    Reset,
    /// The endpoint has not ended yet, perhaps because the machine is busy. The endpoint may still
    /// write, and would log that a reset came in the way.
    End,
}

impl Close {
    fn carry_out(self, stream: &TcpStream) {
        if self == Self::Reset {
            _ = stream.set_zero_linger();
        }
    }
}

/// A finding that ends the check early is the error.
type Made = Result<Finding, Finding>;

impl Attempt<'_> {
    async fn stream(&self) -> Made {
        let plan = &*self.probe.plan;
        let password = self.password().await?;
        let mut stream = self.connect().await?;
        // A Unix socket has no such address. Only checks over IP tell theirs.
        let local = match self.address {
            Address::Ip(_) => stream.local_addr(),
            Address::Unix(_) => Ok((Ipv4Addr::LOCALHOST, 0).into()),
        };
        let facts = self.facts(password, local)?;
        if let Some(version) = plan.send_proxy {
            self.step("sending to", stream.write_all(proxy_header(version))).await?;
        }
        let (mut talk, mut said) = Talk::new(&plan.check, &facts);
        if plan.tls.is_none() || talk.begins_in_clear() {
            match self.speak(&mut stream, &mut talk, said).await {
                (Ok(Spoken::Secure(then)), _) => said = then,
                (found, close) => {
                    close.carry_out(&stream);
                    return found?.finding();
                }
            }
        }
        let Some(tls) = &plan.tls else { return Ok(Finding::Good) };
        let secured = self.step("TLS with", stream::secured(stream, tls, self.address)).await;
        let mut stream = match secured {
            // The check asks for no TLS, so the endpoint's offer of TLS was good enough.
            Err(_) if facts.channel == Channel::Plain => return Ok(Finding::Good),
            secured => secured?,
        };
        let (spoken, mut close) = self.speak(&mut stream, &mut talk, said).await;
        let mut found = spoken.and_then(Spoken::finding);
        if plan.check.kind == Kind::Tls || plan.check.accepts_tls() {
            // With TLS 1.3 an endpoint refuses a certificate, or the lack of one, only after the
            // handshake has ended for Ringway.
            stream::say_goodbye(&mut stream);
            _ = stream.flush().await;
            let ended = timeout_at(self.soon(), stream::end_of(&mut stream)).await;
            if ended.is_err() && plan.check.accepts_tls() {
                close = Close::End;
            }
            if let Ok(Err(error)) = ended
                && facts.channel != Channel::Plain
            {
                found = Err(self.bad("TLS with", &error));
            }
        }
        close.carry_out(stream.get_ref().0);
        found
    }

    async fn datagrams(&self) -> Made {
        let plan = &*self.probe.plan;
        let own = |error: io::Error| Finding::NotMade(error.to_string());
        let Address::Ip(address) = self.address else {
            return Err(Finding::NotMade("a Unix socket takes no datagrams of a check".to_owned()));
        };
        let socket = UdpSocket::bind(self.local(address)).await.map_err(own)?;
        if let Some(interface) = self.interface() {
            socket.bind_device(Some(interface)).map_err(own)?;
        }
        self.connected(socket.connect(address).await)?;
        let facts = self.facts(None, socket.local_addr())?;
        let (mut talk, said) = Talk::new(&plan.check, &facts);
        let doing = talk.doing();
        let header = plan.send_proxy.map(proxy_header).unwrap_or_default();
        self.step(doing, socket.send(&[header, &said].concat())).await?;
        let mut answer = vec![0; MOST_OF_ANSWER];
        let received = timeout_at(self.deadline, socket.recv(&mut answer)).await;
        match (received, &plan.check.kind) {
            (Err(_), Kind::Udp(udp)) if udp.silence => Ok(Finding::Good),
            (Err(_), _) => Err(self.late(doing)),
            (Ok(Err(error)), _) => Err(self.bad(doing, &error)),
            (Ok(Ok(len)), _) => match talk.reply(&answer[..len], true) {
                Reply::Bad(why) => Err(self.bad(doing, &why)),
                _ => Ok(Finding::Good),
            },
        }
    }

    /// The password, read anew for each check.
    async fn password(&self) -> Result<Option<Vec<u8>>, Finding> {
        let file = self.probe.plan.check.login().and_then(|login| login.password_file.as_ref());
        let Some(path) = file.map(|file| file.value.clone()) else { return Ok(None) };
        let shown = path.display().to_string();
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let read = async {
            let lock = timeout_at(self.deadline, Arc::clone(&READING).lock_owned());
            let lock = lock.await.map_err(late)?;
            let read = tokio::task::spawn_blocking(move || {
                let bytes = first_bytes(&path);
                drop(lock);
                bytes
            });
            timeout_at(self.deadline, read).await.map_err(late)?.map_err(io::Error::other)?
        };
        let bytes = read.await.map_err(|error| {
            Finding::NotMade(format!("the password file {shown} can't be read: {error}"))
        })?;
        Ok(Some(bytes.trim_ascii_end().to_vec()))
    }

    fn facts(
        &self,
        password: Option<Vec<u8>>,
        local: io::Result<SocketAddr>,
    ) -> Result<Facts, Finding> {
        let own = |error: io::Error| Finding::NotMade(error.to_string());
        let mut random = [0; 8];
        // Without random bytes, an answer could be forged more easily, but only by one who can
        // forge packets of the endpoint.
        _ = aws_lc_rs::default_provider().secure_random.fill(&mut random);
        let random = u64::from_be_bytes(random);
        let check = &self.probe.plan.check;
        let channel = match (self.probe.plan.speaks_tls, check.verify) {
            (false, _) => Channel::Plain,
            (true, false) => Channel::Unverified,
            (true, true) => Channel::Verified,
        };
        Ok(Facts { host: self.host(), local: local.map_err(own)?, password, random, channel })
    }

    async fn connect(&self) -> Result<TcpStream, Finding> {
        let own = |error: io::Error| Finding::NotMade(error.to_string());
        let connected = match self.address {
            Address::Ip(address) => {
                let is_v4 = address.is_ipv4();
                let socket = if is_v4 { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
                let socket = socket.map_err(own)?;
                if let Some(interface) = self.interface() {
                    socket.bind_device(Some(interface)).map_err(own)?;
                }
                if self.probe.source.is_some() {
                    socket.bind(self.local(address)).map_err(own)?;
                }
                timeout_at(self.deadline, socket.connect(address)).await
            }
            Address::Unix(name) => timeout_at(self.deadline, connect_unix(name)).await,
        };
        match connected {
            Ok(connected) => self.connected(connected),
            Err(_) => Err(self.late("connecting to")),
        }
    }

    fn connected<T>(&self, result: io::Result<T>) -> Result<T, Finding> {
        result.map_err(|error| match is_own(&error) {
            true => Finding::NotMade(error.to_string()),
            false => self.bad("connecting to", &error),
        })
    }

    /// The interface through which sessions go too.
    fn interface(&self) -> Option<&[u8]> {
        self.probe.plan.interface.as_deref().map(str::as_bytes)
    }

    /// The address to bind before connecting to `remote`.
    fn local(&self, remote: SocketAddr) -> SocketAddr {
        let any = || match remote {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        SocketAddr::new(self.probe.source.unwrap_or_else(any), 0)
    }

    /// Talks until the verdict, and takes leave; or until TLS is to begin.
    async fn speak<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        talk: &mut Talk<'_>,
        said: Vec<u8>,
    ) -> (Result<Spoken, Finding>, Close) {
        let spoken = self.until_the_verdict(stream, talk, said).await;
        let doing = talk.doing();
        let unended = match (talk.farewell(), &spoken) {
            (_, Ok(Spoken::Secure(_))) | (Farewell::Reset, _) | (Farewell::Wait, Err(_)) => {
                return (spoken, Close::Reset);
            }
            (Farewell::Wait, _) => Close::Reset,
            (Farewell::Say(bytes), _) => {
                _ = self.say(doing, stream, bytes).await;
                Close::End
            }
            (Farewell::End, _) => {
                _ = self.step(doing, stream.shutdown()).await;
                Close::End
            }
        };
        let ended = timeout_at(self.soon(), stream::end_of(stream)).await;
        (spoken, if ended.is_ok() { Close::Reset } else { unended })
    }

    async fn until_the_verdict<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        talk: &mut Talk<'_>,
        said: Vec<u8>,
    ) -> Result<Spoken, Finding> {
        let doing = talk.doing();
        self.say(doing, stream, &said).await?;
        let mut answer = Vec::new();
        let mut ended = false;
        loop {
            match talk.reply(&answer, ended || answer.len() >= MOST_OF_ANSWER) {
                Reply::Good => return Ok(Spoken::Verdict(Finding::Good)),
                Reply::Share(percent) => return Ok(Spoken::Verdict(Finding::Share(percent))),
                Reply::Bad(why) => return Err(self.bad(doing, &why)),
                Reply::Say { taken, bytes } => {
                    answer.drain(..taken);
                    self.say(doing, stream, &bytes).await?;
                }
                Reply::Secure { taken, .. } if taken < answer.len() => {
                    // Whoever stands between could have put the bytes there.
                    return Err(self.bad(doing, &"it says more before TLS begins"));
                }
                Reply::Secure { bytes, then, .. } => {
                    self.say(doing, stream, &bytes).await?;
                    return Ok(Spoken::Secure(then));
                }
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

    async fn say<S: AsyncWrite + Unpin>(
        &self,
        doing: &str,
        stream: &mut S,
        bytes: &[u8],
    ) -> Result<(), Finding> {
        self.step(doing, stream.write_all(bytes)).await?;
        self.step(doing, stream.flush()).await
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

fn first_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST_OF_PASSWORD).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The address to connect to. `port` stands in for the endpoint's own, unless it is 0.
fn address(endpoint: EndpointAddress, port: u16) -> Option<Address> {
    match (endpoint, port) {
        (EndpointAddress::At(address @ Address::Unix(_)), _) => Some(address),
        (EndpointAddress::At(address), 0) => Some(address),
        (EndpointAddress::Shifted { .. }, 0) => None,
        (endpoint, port) => Some(SocketAddr::new(endpoint.ip()?, port).into()),
    }
}

/// The type of a stream only says which calls read and write, and these are the same for both.
async fn connect_unix(name: UnixPath) -> io::Result<TcpStream> {
    let stream = UnixStream::connect(OsStr::from_bytes(&name.to_bytes())).await?.into_std()?;
    TcpStream::from_std(OwnedFd::from(stream).into())
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
