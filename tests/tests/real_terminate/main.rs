//! TLS that ends at the gateway, and TLS to backends, through the binary: OpenSSL's clients
//! in all moods, curl, and rustls where a client must stop in the middle.

mod certificates;
mod client_certificates;
mod clients;
mod endpoints;
mod ends;
mod stops;
mod upgrades;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;

use ringway_tests::pki::{Issued, Pki};
use ringway_tests::real::config::{listener, route};
use ringway_tests::real::{Daemon, Folder, Server, connect, free_address, program};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Certificates in files: `ca.pem`, and `NAME.pem` with `NAME.key`.
struct Files {
    pki: Pki,
    folder: Folder,
}

impl Files {
    fn new() -> Self {
        let (pki, folder) = (Pki::new(), Folder::new());
        folder.write("ca.pem", &pki.ca());
        Self { pki, folder }
    }

    /// Writes a certificate for these names, and returns what stands for it in a configuration.
    fn issue(&self, file: &str, names: &[&str]) -> String {
        self.write(file, &self.pki.issue(names))
    }

    fn write(&self, file: &str, issued: &Issued) -> String {
        self.folder.write(&format!("{file}.key"), &issued.key);
        self.folder.write(&format!("{file}.pem"), &issued.cert);
        let path = |end: &str| self.path(&format!("{file}.{end}"));
        format!("{{ cert = \"{}\", key = \"{}\" }}", path("pem"), path("key"))
    }

    fn path(&self, name: &str) -> String {
        self.folder.file(name).display().to_string()
    }

    /// A client that trusts the authority.
    fn client(&self, address: SocketAddr, name: &str) -> Client {
        Client::new(&self.pki, address, name)
    }

    /// What `openssl s_client` says; it has sent a line, and reads to the end.
    fn openssl(&self, address: SocketAddr, options: &str) -> String {
        let ca = self.path("ca.pem");
        let command = format!(
            "echo hello | openssl s_client -connect {address} -CAfile {ca} -ign_eof {options} 2>&1 \
             || true"
        );
        program("sh", &["-c", &command])
    }
}

struct Client(StreamOwned<ClientConnection, TcpStream>);

impl Client {
    fn new(pki: &Pki, address: SocketAddr, name: &str) -> Self {
        Self::with(pki, address, name, None)
    }

    /// `own`: its certificate, if it has one.
    fn with(pki: &Pki, address: SocketAddr, name: &str, own: Option<&Issued>) -> Self {
        let mut roots = RootCertStore::empty();
        let ca = pki.ca();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("PEM")).expect("a CA");
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match own {
            None => config.with_no_client_auth(),
            Some(Issued { cert, key }) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).expect("PEM");
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
                config.with_client_auth_cert(vec![cert], key).expect("a certificate")
            }
        };
        let name = name.to_owned().try_into().expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        Self(StreamOwned::new(connection, connect(address)))
    }

    /// Says that nothing more comes, and still reads.
    fn end(&mut self) {
        self.0.conn.send_close_notify();
        self.0.flush().expect("flushed");
        self.0.sock.shutdown(Shutdown::Write).expect("shut down");
    }

    fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes).expect("a clean end");
        bytes
    }

    /// Reads until it is this client's turn, or the handshake is over.
    fn hear(&mut self) {
        while self.0.conn.is_handshaking() && !self.0.conn.wants_write() {
            let len = self.0.conn.read_tls(&mut self.0.sock).expect("an answer");
            assert!(len > 0, "it ends within the handshake");
            self.0.conn.process_new_packets().expect("TLS");
        }
    }

    /// What the next flight of the handshake is.
    fn flight(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.0.conn.wants_write() {
            self.0.conn.write_tls(&mut bytes).expect("memory");
        }
        bytes
    }
}

/// A TLS listener that ends TLS, with these keys.
fn terminate(address: SocketAddr, keys: &str) -> String {
    let tls = format!("tls = {{ mode = \"Terminate\", {keys} }}");
    listener("main", "TLS", address, &tls) + &route("main", "main", &[("main", 1)], "")
}

/// Says `tag` once something has come, and ends.
fn tagged(tag: &'static str) -> Server {
    Server::tcp(move |mut stream| {
        let mut bytes = [0; 4096];
        if stream.read(&mut bytes).is_ok_and(|len| len > 0) {
            let _ = stream.write_all(tag.as_bytes());
        }
    })
}

/// `openssl s_server` that serves the file `who`, in which its own name stands.
fn secure_server(files: &Files, name: &str, options: &[&str]) -> (SocketAddr, Daemon) {
    let address = free_address();
    files.issue(name, &[name]);
    files.folder.write("who", name);
    let mut command = Command::new("openssl");
    command.args(["s_server", "-quiet", "-WWW", "-accept", &address.to_string()]);
    command.args(["-key", &format!("{name}.key"), "-cert", &format!("{name}.pem")]);
    command.args(options).current_dir(files.folder.file(""));
    (address, Daemon::start(address, &mut command))
}
