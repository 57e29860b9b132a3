//! rustls as bytes in, bytes out: one side of a session that speaks TLS.
//!
//! Nothing is buffered here but the beginning of a record that has not come whole: at the most
//! 16 KiB and a header of it, or 64 KiB of a handshake message in several records (rustls' limit).

use config_sync::der::common_name;
use config_sync::terminator::{Originator, Terminator};
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{CipherSuite, HandshakeKind, ProtocolVersion};

use super::proxy_protocol::{ClientCertificate, ClientTls};

/// One TLS connection.
pub struct Conn {
    peer: Peer,
    /// What has come and could not be processed yet.
    incoming: Vec<u8>,
    /// close_notify has come: this side has ended cleanly.
    received_end: bool,
    sent_end: bool,
}

enum Peer {
    Client(Box<UnbufferedServerConnection>),
    Endpoint(Box<UnbufferedClientConnection>),
}

/// What is to be done when rustls is ready to write.
enum Task<'t> {
    Nothing,
    Write(&'t [u8]),
    End,
}

/// The names of OpenSSL, which are those of RFC 8446 in TLS 1.3 only.
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
    /// Something was done; there may be more.
    More,
    PeerEnded,
    /// Nothing more can be done with what has come.
    Done,
}

impl Conn {
    /// Towards a client.
    pub fn terminate(with: &Terminator) -> Result<Self, rustls::Error> {
        let conn = UnbufferedServerConnection::new(with.config.clone())?;
        Ok(Self::new(Peer::Client(Box::new(conn))))
    }

    /// Towards an endpoint.
    pub fn originate(with: &Originator) -> Result<Self, rustls::Error> {
        let name = with.server_name.clone();
        let conn = UnbufferedClientConnection::new(with.config.clone(), name)?;
        Ok(Self::new(Peer::Endpoint(Box::new(conn))))
    }

    fn new(peer: Peer) -> Self {
        Self { peer, incoming: Vec::new(), received_end: false, sent_end: false }
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

    /// What a server behind is told of a client. `None` before the handshake is over.
    pub fn client_tls(&self) -> Option<ClientTls> {
        let Peer::Client(conn) = &self.peer else { return None };
        let version = match conn.protocol_version()? {
            ProtocolVersion::TLSv1_2 => "TLSv1.2",
            ProtocolVersion::TLSv1_3 => "TLSv1.3",
            _ => return None,
        };
        let cipher = cipher_name(conn.negotiated_cipher_suite()?.suite())?;
        let resumed = conn.handshake_kind() == Some(HandshakeKind::Resumed);
        let shown = conn.peer_certificates().and_then(<[_]>::first);
        let certificate = shown
            .map(|shown| ClientCertificate { resumed, common_name: common_name(shown.as_ref()) });
        Some(ClientTls { version, cipher, certificate })
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

    /// Processes what has come, whole records only. What they say is added to `plain`, what they
    /// are to be answered with to `out`. After an error, `out` has the alert that tells the peer.
    /// `scratch` is memory that calls share.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
        scratch: &mut Vec<u8>,
    ) -> Result<(), rustls::Error> {
        scratch.clear();
        scratch.append(&mut self.incoming);
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
            // The alert, and what was to be said before it. What was received may not be looked at
            // once more: that would be a second error, where rustls expects none.
            while self.wants_write() {
                if self.step(&mut [], Task::Nothing, plain, out).1.is_err() {
                    break;
                }
            }
        } else if !self.received_end {
            self.incoming = scratch[at..].to_vec();
        }
        result
    }

    /// Adds to `out` what says `plain` to the peer. Only after the handshake.
    pub fn send(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        if plain.is_empty() { Ok(()) } else { self.write(&Task::Write(plain), out) }
    }

    /// Adds close_notify to `out`, once.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.sent_end, true) {
            // It fails only where it can't be said any more.
            _ = self.write(&Task::End, out);
        }
    }

    fn write(&mut self, task: &Task<'_>, out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        let mut incoming = std::mem::take(&mut self.incoming);
        // Nothing comes of it: whole records were processed when they came.
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
    // The first call says how much room it needs.
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

/// A record's header, tag, content type and explicit nonce are less than this (RFC 5246, section
/// 6.2.3.3; RFC 8446, section 5.2), and it carries so much.
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

/// Without keys.
impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn").field("handshaking", &self.is_handshaking()).finish_non_exhaustive()
    }
}
