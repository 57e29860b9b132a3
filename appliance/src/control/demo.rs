//! `ringway demo`: the gateway with echo servers behind it, in one process and without a file.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use clap::Args;
use config_sync::source::Source;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use crate::control::output::print;
use crate::control::process::{self, Origin, Start};

/// The ports that it listens on, all on 127.0.0.1.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Port of the TCP listener.
    #[arg(long, value_name = "PORT", default_value_t = 9000)]
    tcp_port: u16,
    /// Port of the UDP listener.
    #[arg(long, value_name = "PORT", default_value_t = 9001)]
    udp_port: u16,
    /// Port of the TLS listener.
    #[arg(long, value_name = "PORT", default_value_t = 9443)]
    tls_port: u16,
    /// Port of the admin API.
    #[arg(long, value_name = "PORT", default_value_t = 9900)]
    admin_port: u16,
    /// Print the configuration that the demo runs, and exit.
    #[arg(long)]
    print_config: bool,
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let servers = Servers::bind().context("the demo's echo servers")?;
    let text = config(options, &servers.addresses()?);
    if options.print_config {
        return print(&text);
    }
    options.check_ports()?;
    servers.start()?;
    print(&what_to_try(options))?;
    let source = Source::Text { name: "demo.toml", text };
    let origin = Origin::File { source, watch: false, allow_empty: false };
    process::run(origin, Start::default())
}

impl Options {
    /// Checks that each port is free, by binding the port without sharing. The gateway's sockets
    /// share ports, so a second demo would otherwise take half of the first demo's connections.
    fn check_ports(&self) -> anyhow::Result<()> {
        let tcp = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(drop);
        let udp = |port| UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).map(drop);
        for (result, name, port, option) in [
            (tcp(self.tcp_port), "TCP", self.tcp_port, "--tcp-port"),
            (udp(self.udp_port), "UDP", self.udp_port, "--udp-port"),
            (tcp(self.tls_port), "TCP", self.tls_port, "--tls-port"),
            (tcp(self.admin_port), "TCP", self.admin_port, "--admin-port"),
        ] {
            result.map_err(|error| {
                anyhow!("{name} port {port} of 127.0.0.1: {error}; choose another with {option}")
            })?;
        }
        Ok(())
    }
}

fn config(options: &Options, servers: &Addresses) -> String {
    let Options { tcp_port, udp_port, tls_port, admin_port, .. } = options;
    let Addresses { tcp, udp, tls: [a, b] } = servers;
    format!(
        r#"# What `ringway demo` runs. The backends are its own echo servers, whose ports
# are others at each start.
drain_timeout = "2s"

[admin]
address = "127.0.0.1:{admin_port}"

[access_log]
path = "stdout"
format = "text"

[[listeners]]
name = "tcp"
protocol = "TCP"
address = "127.0.0.1:{tcp_port}"

[[listeners]]
name = "udp"
protocol = "UDP"
address = "127.0.0.1:{udp_port}"

[[listeners]]
name = "tls"
protocol = "TLS"
address = "127.0.0.1:{tls_port}"

[[routes]]
name = "tcp"
listeners = ["tcp"]
backends = [{{ name = "echo", weight = 1 }}]

[[routes]]
name = "udp"
listeners = ["udp"]
backends = [{{ name = "udp-echo", weight = 1 }}]

[[routes]]
name = "a"
listeners = ["tls"]
hostnames = ["a.demo.test"]
backends = [{{ name = "tls-a", weight = 1 }}]

[[routes]]
name = "b"
listeners = ["tls"]
hostnames = ["b.demo.test"]
backends = [{{ name = "tls-b", weight = 1 }}]

[[backends]]
name = "echo"
endpoints = ["{tcp}"]

[[backends]]
name = "udp-echo"
endpoints = ["{udp}"]

[[backends]]
name = "tls-a"
endpoints = ["{a}"]

[[backends]]
name = "tls-b"
endpoints = ["{b}"]
"#
    )
}

fn what_to_try(options: &Options) -> String {
    let Options { tcp_port, udp_port, tls_port, admin_port, .. } = options;
    format!(
        "\
Ringway is in front of four echo servers. Try, in another terminal:

  nc 127.0.0.1 {tcp_port}
      TCP: each line that you type comes back.
  nc -u 127.0.0.1 {udp_port}
      UDP: the same, a datagram for each line.
  openssl s_client -connect 127.0.0.1:{tls_port} -servername a.demo.test -quiet
      TLS, passed through by server name: \"hello from a\", then each line comes back.
      (The certificate is made at start, so openssl says that it can't verify it.)
  openssl s_client -connect 127.0.0.1:{tls_port} -servername b.demo.test -quiet
      The other server: \"hello from b\". Any other name is turned away.
  curl http://127.0.0.1:{admin_port}/metrics
      What the gateway has counted. Also there: /healthz /readyz /config /features

Each session that ends is a line below. Ctrl-C ends the demo.

"
    )
}

/// The echo servers, bound but not started.
struct Servers {
    tcp: TcpListener,
    udp: UdpSocket,
    tls: [TcpListener; 2],
}

struct Addresses {
    tcp: SocketAddr,
    udp: SocketAddr,
    tls: [SocketAddr; 2],
}

const NAMES: [&str; 2] = ["a", "b"];

impl Servers {
    fn bind() -> io::Result<Self> {
        let any = (Ipv4Addr::LOCALHOST, 0);
        let tcp = || {
            let listener = TcpListener::bind(any)?;
            listener.set_nonblocking(true)?;
            io::Result::Ok(listener)
        };
        let udp = UdpSocket::bind(any)?;
        udp.set_nonblocking(true)?;
        Ok(Self { tcp: tcp()?, udp, tls: [tcp()?, tcp()?] })
    }

    fn addresses(&self) -> io::Result<Addresses> {
        let [a, b] = &self.tls;
        Ok(Addresses {
            tcp: self.tcp.local_addr()?,
            udp: self.udp.local_addr()?,
            tls: [a.local_addr()?, b.local_addr()?],
        })
    }

    /// Starts the servers on a thread of their own, until the process ends.
    fn start(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let acceptors = acceptors()?;
        let thread = std::thread::Builder::new().name("demo-servers".into());
        thread.spawn(move || {
            if let Err(error) = runtime.block_on(self.serve(acceptors)) {
                tracing::error!("the demo's echo servers: {error}");
            }
        })?;
        Ok(())
    }

    /// Serves, and ends only with an error.
    async fn serve(self, acceptors: [TlsAcceptor; 2]) -> io::Result<()> {
        let tcp = tokio::net::TcpListener::from_std(self.tcp)?;
        let [a, b] = self.tls;
        let [tls_a, tls_b] = acceptors;
        let (a, b) = (tokio::net::TcpListener::from_std(a)?, tokio::net::TcpListener::from_std(b)?);
        let udp = tokio::net::UdpSocket::from_std(self.udp)?;
        tokio::try_join!(
            serve_tcp(tcp),
            serve_udp(udp),
            serve_tls(a, tls_a, NAMES[0]),
            serve_tls(b, tls_b, NAMES[1]),
        )?;
        Ok(())
    }
}

/// One acceptor for each name, with a certificate for `NAME.demo.test`.
fn acceptors() -> anyhow::Result<[TlsAcceptor; 2]> {
    let [a, b] = NAMES;
    Ok([acceptor(a)?, acceptor(b)?])
}

fn acceptor(name: &str) -> anyhow::Result<TlsAcceptor> {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed([format!("{name}.demo.test")])?;
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()?
    .with_no_client_auth()
    .with_single_cert(vec![cert.der().clone()], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve_tcp(listener: tokio::net::TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(echo(stream));
    }
}

async fn serve_tls(
    listener: tokio::net::TcpListener,
    acceptor: TlsAcceptor,
    name: &'static str,
) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let handshake = acceptor.accept(stream);
        tokio::spawn(async move {
            let mut stream = handshake.await?;
            stream.write_all(format!("hello from {name}\n").as_bytes()).await?;
            stream.flush().await?;
            echo(stream).await
        });
    }
}

async fn serve_udp(socket: tokio::net::UdpSocket) -> io::Result<()> {
    let mut datagram = vec![0; 65_536];
    loop {
        // Both calls fail when a client has gone away, which is no reason to stop.
        let Ok((length, client)) = socket.recv_from(&mut datagram).await else { continue };
        let _ = socket.send_to(&datagram[..length], client).await;
    }
}

/// Sends all bytes back, and ends when the client ends.
async fn echo(stream: impl AsyncRead + AsyncWrite) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(stream);
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await
}

#[cfg(test)]
mod tests {
    use rustls::ClientConfig;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};
    use tokio::io::AsyncReadExt as _;
    use tokio_rustls::TlsConnector;

    use super::*;

    #[test]
    fn config_is_valid_and_has_the_ports() {
        let options = Options {
            tcp_port: 19_000,
            udp_port: 19_001,
            tls_port: 19_443,
            admin_port: 19_900,
            print_config: false,
        };
        let servers = Servers::bind().expect("free ports");
        let text = config(&options, &servers.addresses().expect("addresses"));
        let source = Source::Text { name: "demo.toml", text };
        let config = process::check(&source).expect("a valid configuration");
        let addresses: Vec<_> = config
            .listeners
            .iter()
            .map(|listener| listener.addresses[0].value.ip().map_or(0, |at| at.port()))
            .collect();
        assert_eq!(addresses, [19_000, 19_001, 19_443]);
        assert_eq!(config.admin.map(|address| address.port()), Some(19_900));
        assert_eq!(config.drain_timeout, 2_000);
        let help = what_to_try(&options);
        for command in [
            "nc 127.0.0.1 19000\n",
            "nc -u 127.0.0.1 19001\n",
            "openssl s_client -connect 127.0.0.1:19443 -servername a.demo.test -quiet\n",
            "curl http://127.0.0.1:19900/metrics\n",
        ] {
            assert!(help.contains(command), "{command} is not in {help}");
        }
    }

    #[test]
    fn taken_port_is_named_with_the_option_that_changes_it() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = taken.local_addr().expect("an address").port();
        let free = 0;
        let options = Options {
            tcp_port: free,
            udp_port: free,
            tls_port: port,
            admin_port: free,
            print_config: false,
        };
        let error = options.check_ports().expect_err("the port is taken").to_string();
        assert!(error.starts_with(&format!("TCP port {port} of 127.0.0.1: ")), "{error}");
        assert!(error.ends_with("choose another with --tls-port"), "{error}");
    }

    #[tokio::test]
    async fn servers_greet_by_name_and_echo() {
        let servers = Servers::bind().expect("free ports");
        let addresses = servers.addresses().expect("addresses");
        let server = tokio::spawn(servers.serve(acceptors().expect("certificates")));

        let mut tcp = tokio::net::TcpStream::connect(addresses.tcp).await.expect("a server");
        tcp.write_all(b"some bytes").await.expect("it reads");
        tcp.shutdown().await.expect("a FIN");
        let mut echoed = String::new();
        tcp.read_to_string(&mut echoed).await.expect("an echo");
        assert_eq!(echoed, "some bytes");

        let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        udp.connect(addresses.udp).await.expect("a server");
        udp.send(b"a datagram").await.expect("it is sent");
        let mut datagram = [0; 32];
        let length = udp.recv(&mut datagram).await.expect("an echo");
        assert_eq!(&datagram[..length], b"a datagram");

        for (address, name) in addresses.tls.into_iter().zip(NAMES) {
            let tcp = tokio::net::TcpStream::connect(address).await.expect("a server");
            let server_name = ServerName::try_from(format!("{name}.demo.test")).expect("a name");
            let mut tls = client().connect(server_name, tcp).await.expect("a handshake");
            let expected = format!("hello from {name}\nback");
            tls.write_all(b"back").await.expect("it reads");
            let mut answer = vec![0; expected.len()];
            tls.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(answer, expected.as_bytes());
        }
        server.abort();
    }

    /// A connector that accepts the self-signed certificates, if each is used for its own name.
    fn client() -> TlsConnector {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(SelfSigned(provider)))
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }

    #[derive(Debug)]
    struct SelfSigned(Arc<CryptoProvider>);

    impl ServerCertVerifier for SelfSigned {
        fn verify_server_cert(
            &self,
            end_entity: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            server_name: &ServerName<'_>,
            _ocsp_response: &[u8],
            _now: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            let certificate = rustls::server::ParsedCertificate::try_from(end_entity)?;
            rustls::client::verify_server_name(&certificate, server_name)?;
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}
