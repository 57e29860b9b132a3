//! Runs rustls with bytes in and bytes out, for one side of a session that speaks TLS.
//!
//! A connection buffers only the beginning of a record that has not come whole, at most 18 KiB; or
//! the beginning of a handshake message in several records, at most 64 KiB with the record headers
//! and padding. rustls bounds only the message, and a peer could wrap each byte of a message in 16
//! KiB of padding.
//!
//! rustls allocates once for each record that it decrypts, and once for each that it encrypts.

use std::sync::Arc;

use config_sync::table::subject::{fingerprint, subject};
use config_sync::table::terminator::{Originator, Terminator};
use config_sync::table::x509::{common_name, not_after};
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{CipherSuite, HandshakeKind, InvalidMessage, ProtocolVersion};

use crate::proxy::tcp::tls_alert::seal;
use crate::stats::tls_facts::{CertificateFacts, TlsFacts};
use crate::wire::alert::Alert;
use crate::wire::proxy_header::write::{ClientCertificate, ClientTls};

/// The maximum length of `incoming` in bytes.
pub const MOST_CARRIED: usize = 64 * 1024;

/// One TLS connection.
pub struct Conn {
    peer: Peer,
    /// When the lists of revoked clients' certificates end, in seconds of Unix time.
    lists_end: Option<u64>,
    /// Of a client that has shown a certificate and may come in.
    certificate: Option<Arc<CertificateFacts>>,
    /// Bytes that could not be processed yet. Memory is allocated only while there are such bytes.
    incoming: Vec<u8>,
    /// close_notify has come: the peer has ended cleanly.
    received_end: bool,
    sent_end: bool,
}

enum Peer {
    Client(Box<UnbufferedServerConnection>),
    Endpoint(Box<UnbufferedClientConnection>),
}

/// The work to do when rustls is ready to write.
enum Task<'t> {
    Nothing,
    Write(&'t [u8]),
    End,
}

/// OpenSSL's names, which are the names of RFC 8446 only in TLS 1.3.
fn cipher_name(suite: CipherSuite) -> Option<&'static str> {
    Some(match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => {
            "ECDHE-ECDSA-CHACHA20-POLY1305"
        }
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => return None,
    })
}

enum Step {
    /// A step was done, and more steps may follow.
    More,
    PeerEnded,
    /// The bytes that have come allow no more steps.
    Done,
}

impl Conn {
    /// Makes a connection towards a client.
    pub fn terminate(with: &Terminator) -> Result<Self, rustls::Error> {
        let conn = UnbufferedServerConnection::new(with.config.clone())?;
        Ok(Self::new(Peer::Client(Box::new(conn)), with.lists_end))
    }

    /// Makes a connection towards an endpoint, for a client that agreed on this protocol.
    pub fn originate(with: &Originator, agreed: Option<&[u8]>) -> Result<Self, rustls::Error> {
        let (config, name) = (with.config.clone(), with.server_name.clone());
        let conn = UnbufferedClientConnection::new_with_alpn(config, name, with.offer(agreed))?;
        Ok(Self::new(Peer::Endpoint(Box::new(conn)), None))
    }

    fn new(peer: Peer, lists_end: Option<u64>) -> Self {
        Self {
            peer,
            lists_end,
            certificate: None,
            incoming: Vec::new(),
            received_end: false,
            sent_end: false,
        }
    }

    pub fn is_handshaking(&self) -> bool {
        match &self.peer {
            Peer::Client(conn) => conn.is_handshaking(),
            Peer::Endpoint(conn) => conn.is_handshaking(),
        }
    }

    /// The protocol that was agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        match &self.peer {
            Peer::Client(conn) => conn.alpn_protocol(),
            Peer::Endpoint(conn) => conn.alpn_protocol(),
        }
    }

    /// The facts about a client that a server behind is told. `None` before the handshake is over.
    pub fn client_tls(&self) -> Option<ClientTls> {
        let (version, cipher) = self.agreed()?;
        let Peer::Client(conn) = &self.peer else { return None };
        let resumed = conn.handshake_kind() == Some(HandshakeKind::Resumed);
        let certificate = self
            .shown()
            .map(|shown| ClientCertificate { resumed, common_name: common_name(shown) });
        Some(ClientTls { version, cipher, certificate })
    }

    /// Version and cipher, in OpenSSL's words. `None` before they were agreed on.
    fn agreed(&self) -> Option<(&'static str, &'static str)> {
        let (version, suite) = match &self.peer {
            Peer::Client(conn) => (conn.protocol_version(), conn.negotiated_cipher_suite()),
            Peer::Endpoint(conn) => (conn.protocol_version(), conn.negotiated_cipher_suite()),
        };
        let version = match version? {
            ProtocolVersion::TLSv1_2 => "TLSv1.2",
            ProtocolVersion::TLSv1_3 => "TLSv1.3",
            _ => return None,
        };
        Some((version, cipher_name(suite?.suite())?))
    }

    /// What the log says of the connection, as far as the handshake came. Takes no time that
    /// matters, because lists of sessions ask again and again.
    pub fn facts(&self) -> Option<TlsFacts> {
        let (version, cipher) = self.agreed()?;
        let certificate = self.certificate.clone();
        Some(TlsFacts { version, cipher, alpn: self.alpn().map(Box::from), certificate })
    }

    /// The handshake is over: notes for [`Self::facts`] whose certificate a client has shown.
    pub fn keep_certificate(&mut self) {
        self.certificate = self.shown().map(|shown| {
            let subject = subject(shown).map(String::into_boxed_str);
            Arc::new(CertificateFacts { subject, fingerprint: fingerprint(shown) })
        });
    }

    /// The certificate that a client has shown, in DER.
    fn shown(&self) -> Option<&[u8]> {
        let Peer::Client(conn) = &self.peer else { return None };
        conn.peer_certificates()?.first().map(AsRef::as_ref)
    }

    /// Whether a client has resumed a session that must not go on: a certificate of the session has
    /// ended, or the list of revoked certificates, by `now` in seconds of Unix time. rustls checks
    /// these only in a full handshake, and gives a new ticket with each resumed session.
    pub fn is_stale(&self, now: u64) -> bool {
        let Peer::Client(conn) = &self.peer else { return false };
        let resumed = conn.handshake_kind() == Some(HandshakeKind::Resumed);
        let Some(shown) = conn.peer_certificates().filter(|_| resumed) else { return false };
        let mut ends = shown.iter().map(|certificate| {
            not_after(certificate.as_ref()).and_then(|end| u64::try_from(end).ok()).unwrap_or(0)
        });
        ends.any(|end| end < now) || self.lists_end.is_some_and(|end| end < now)
    }

    fn wants_write(&self) -> bool {
        match &self.peer {
            Peer::Client(conn) => conn.wants_write(),
            Peer::Endpoint(conn) => conn.wants_write(),
        }
    }

    /// close_notify has come.
    pub fn received_end(&self) -> bool {
        self.received_end
    }

    /// Processes the bytes that have come, whole records only. Adds the decrypted bytes to `plain`,
    /// and the answers to `out`. After an error, `out` has the alert that tells the peer. Calls
    /// share the memory of `scratch`.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
        scratch: &mut Vec<u8>,
    ) -> Result<(), rustls::Error> {
        scratch.clear();
        scratch.extend_from_slice(&self.incoming);
        scratch.extend_from_slice(bytes);
        let mut at = 0;
        let result = loop {
            let (discard, step) = self.step(&mut scratch[at..], Task::Nothing, plain, out);
            at += discard;
            match step {
                Ok(Step::Done) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        if result.is_err() {
            // Writes the alert, and the messages before the alert. The received bytes must not be
            // processed again: that would be a second error, where rustls expects none.
            while self.wants_write() {
                if self.step(&mut [], Task::Nothing, plain, out).1.is_err() {
                    break;
                }
            }
            return result;
        }
        self.carry(&scratch[at..])
    }

    /// Keeps the bytes that could not be processed yet.
    fn carry(&mut self, rest: &[u8]) -> Result<(), rustls::Error> {
        if rest.len() > MOST_CARRIED {
            return Err(InvalidMessage::HandshakePayloadTooLarge.into());
        }
        if rest.is_empty() || self.received_end {
            self.incoming = Vec::new();
        } else {
            // Reuses the memory if it is large enough, because bulk leaves such a rest at each
            // turn.
            self.incoming.clear();
            self.incoming.reserve_exact(rest.len());
            self.incoming.extend_from_slice(rest);
        }
        Ok(())
    }

    /// Bytes that have come and could not be processed yet.
    pub fn carried(&self) -> usize {
        self.incoming.len()
    }

    /// Encrypts `plain` for the peer and adds the records to `out`. Only after the handshake.
    pub fn send(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        if plain.is_empty() { Ok(()) } else { self.write(&Task::Write(plain), out) }
    }

    /// Adds close_notify to `out`, once.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.sent_end, true) {
            // This fails only where close_notify can't be sent any more.
            _ = self.write(&Task::End, out);
        }
    }

    /// Ends a client's connection with a fatal alert, which is added to `out`. rustls sends only
    /// alerts of its own, so this asks rustls for the keys and the number of the next record.
    /// False: rustls gives no keys, for example within a handshake.
    pub fn refuse(self, alert: Alert, out: &mut Vec<u8>) -> bool {
        let Peer::Client(conn) = self.peer else { return false };
        let Ok((secrets, conn)) = conn.dangerous_into_kernel_connection() else { return false };
        let record = seal(conn.negotiated_cipher_suite(), secrets.tx, alert);
        out.extend(record.iter().flatten());
        record.is_some()
    }

    fn write(&mut self, task: &Task<'_>, out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        let mut incoming = std::mem::take(&mut self.incoming);
        // No bytes are decrypted here, because whole records were processed when they came.
        let mut plain = Vec::new();
        let result = loop {
            let task = match task {
                Task::Write(plain) => Task::Write(plain),
                Task::End | Task::Nothing => Task::End,
            };
            let (discard, step) = self.step(&mut incoming, task, &mut plain, out);
            incoming.drain(..discard);
            match step {
                Ok(Step::Done) => break Ok(()),
                Ok(Step::More | Step::PeerEnded) => {}
                Err(error) => break Err(error),
            }
        };
        self.incoming = incoming;
        result
    }

    fn step(
        &mut self,
        incoming: &mut [u8],
        task: Task<'_>,
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> (usize, Result<Step, rustls::Error>) {
        let (discard, step) = match &mut self.peer {
            Peer::Client(conn) => step(conn.process_tls_records(incoming), task, plain, out),
            Peer::Endpoint(conn) => step(conn.process_tls_records(incoming), task, plain, out),
        };
        self.received_end |= matches!(step, Ok(Step::PeerEnded));
        (discard, step)
    }
}

fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    task: Task<'_>,
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> (usize, Result<Step, rustls::Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = match state {
        Err(error) => Err(error),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                None => break Ok(Step::More),
                Some(Ok(record)) => {
                    plain.extend_from_slice(record.payload);
                    discard += record.discard;
                }
                Some(Err(error)) => break Err(error),
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, out).map(|()| Step::More),
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Step::More)
        }
        Ok(ConnectionState::PeerClosed) => Ok(Step::PeerEnded),
        Ok(ConnectionState::WriteTraffic(traffic)) => {
            write(traffic, &task, out).map(|()| Step::Done)
        }
        Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => Ok(Step::Done),
        // Early data is not offered.
        Ok(_) => Err(rustls::Error::General("an unknown state".to_owned())),
    };
    (discard, step)
}

fn encode<Data>(
    data: &mut EncodeTlsData<'_, Data>,
    out: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    let start = out.len();
    // The first call says how much room the data needs.
    loop {
        match data.encode(&mut out[start..]) {
            Ok(_) => return Ok(()),
            Err(EncodeError::InsufficientSize(needed)) => {
                out.resize(start + needed.required_size, 0);
            }
            Err(error @ EncodeError::AlreadyEncoded) => {
                return Err(rustls::Error::General(error.to_string()));
            }
        }
    }
}

/// The header, tag, content type and explicit nonce of a record have fewer bytes than `OVERHEAD`
/// (RFC 5246, section 6.2.3.3; RFC 8446, section 5.2). A record carries up to `RECORD` bytes.
const OVERHEAD: usize = 32;
const RECORD: usize = 16 * 1024;

fn write<Data>(
    mut traffic: WriteTraffic<'_, Data>,
    task: &Task<'_>,
    out: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    let start = out.len();
    let mut room = match task {
        Task::Nothing => return Ok(()),
        Task::Write(plain) => plain.len() + plain.len().div_ceil(RECORD) * OVERHEAD,
        Task::End => 2 * OVERHEAD,
    };
    loop {
        out.resize(start + room, 0);
        let written = match task {
            Task::Write(plain) => traffic.encrypt(plain, &mut out[start..]),
            Task::End | Task::Nothing => traffic.queue_close_notify(&mut out[start..]),
        };
        match written {
            Ok(len) => {
                out.truncate(start + len);
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(needed)) => room = needed.required_size,
            Err(EncryptError::EncryptExhausted) => {
                out.truncate(start);
                return Err(rustls::Error::EncryptError);
            }
        }
    }
}

/// Prints no keys.
impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn").field("handshaking", &self.is_handshaking()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use config_sync::table::terminator::Certificates;
    use rustls::ServerConfig;
    use rustls::crypto::aws_lc_rs::default_provider;

    use super::*;

    fn no_certificates() -> Arc<Certificates> {
        Arc::new(Certificates::new([0; 4], None, None))
    }

    fn terminator(config: ServerConfig) -> Terminator {
        let config = Arc::new(config);
        Terminator { config, certificates: no_certificates(), client_auth: false, lists_end: None }
    }

    fn conn() -> Conn {
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(no_certificates());
        Conn::terminate(&terminator(config)).expect("a connection")
    }

    /// The protocol that an endpoint with these protocols and the gateway agree on, for a client
    /// that agreed on `agreed`.
    fn agreed(
        endpoint: &[&str],
        asked: Option<&[&str]>,
        agreed: Option<&[u8]>,
    ) -> Result<Option<Vec<u8>>, rustls::Error> {
        let bytes = |names: &[&str]| -> Vec<Vec<u8>> {
            names.iter().map(|name| name.as_bytes().to_vec()).collect()
        };
        let made = rcgen::generate_simple_self_signed(["db.test".to_owned()]).expect("made");
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
        let shown = vec![made.cert.der().clone()];
        let provider = Arc::new(default_provider());
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(shown, key.expect("a key"))
            .expect("a certificate");
        server.alpn_protocols = bytes(endpoint);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a root");
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server_name = "db.test".try_into().expect("a name");
        let with = Originator { config: Arc::new(config), server_name, alpn: asked.map(bytes) };
        let mut near = Conn::originate(&with, agreed)?;
        let mut far = Conn::terminate(&terminator(server))?;
        let (mut plain, mut scratch) = (Vec::new(), Vec::new());
        let mut coming = Vec::new();
        while near.is_handshaking() || far.is_handshaking() {
            let mut going = Vec::new();
            near.receive(&coming, &mut plain, &mut going, &mut scratch)?;
            coming.clear();
            far.receive(&going, &mut plain, &mut coming, &mut scratch)?;
        }
        assert_eq!(near.alpn(), far.alpn());
        Ok(near.alpn().map(<[u8]>::to_vec))
    }

    #[test]
    fn endpoints_are_offered_what_was_agreed_on_with_the_client_or_what_is_configured() {
        let h2 = Some(&b"h2"[..]);
        let both = &["http/1.1", "h2"][..];
        assert_eq!(agreed(both, None, h2), Ok(Some(b"h2".to_vec())));
        assert_eq!(agreed(both, None, None), Ok(None), "nothing is offered");
        assert_eq!(agreed(&[], None, h2), Ok(None), "the endpoint does not speak of it");
        assert_eq!(agreed(both, Some(&["h2"]), None), Ok(Some(b"h2".to_vec())));
        assert_eq!(agreed(both, Some(&[]), h2), Ok(None));
        let refused = agreed(&["http/1.1"], None, h2);
        assert_eq!(refused, Err(rustls::Error::NoApplicationProtocol));
    }

    /// A hello of 60,000 bytes, in records of one byte each: 360,000 bytes of records.
    #[test]
    fn a_handshake_message_can_be_wrapped_in_only_so_much() {
        let mut conn = conn();
        let message = [1, 0, 0xea, 0x60].into_iter().chain(std::iter::repeat_n(0, 60_000));
        let wrapped: Vec<u8> = message.flat_map(|byte| [22, 3, 1, 0, 1, byte]).collect();
        let (mut plain, mut out, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
        let mut taken = 0;
        let refused = wrapped.chunks(4_096).any(|bytes| {
            taken += bytes.len();
            let received = conn.receive(bytes, &mut plain, &mut out, &mut scratch);
            assert!(conn.incoming.capacity() <= MOST_CARRIED);
            received.is_err()
        });
        assert!(refused && taken == MOST_CARRIED + 4_096, "{taken}");
    }

    #[test]
    fn what_comes_in_pieces_is_kept_until_it_is_whole_and_no_longer() {
        let mut conn = conn();
        let (mut plain, mut out, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
        // A warning that the gateway ignores.
        for (byte, carried) in [21, 3, 3, 0, 2, 1, 90].into_iter().zip([1, 2, 3, 4, 5, 6, 0]) {
            conn.receive(&[byte], &mut plain, &mut out, &mut scratch).expect("an alert");
            assert_eq!(conn.carried(), carried);
        }
        assert_eq!(conn.incoming.capacity(), 0);
    }
}
