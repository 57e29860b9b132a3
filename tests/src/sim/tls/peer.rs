//! A client or endpoint of the simulated world whose bytes are real: TLS by rustls, or none.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

use ringway::wire::postgres::SSL_REQUEST;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig};
use rustls::{ServerConnection, SupportedProtocolVersion};

use crate::pki::{Issued, Pki};
use crate::sim::rng::Rng;

/// What a peer has sent and heard.
pub struct TlsPeer {
    /// `None`: it speaks as it is.
    tls: Option<Box<Connection>>,
    words: Words,
    pub to_send: Vec<u8>,
    said: usize,
    pub heard: Vec<u8>,
    /// Made and not yet sent.
    outgoing: Vec<u8>,
    /// Its end was said: close_notify, or nothing for one that speaks as it is.
    ended: bool,
    /// The other's end was heard in TLS.
    pub heard_end: bool,
    pub error: Option<rustls::Error>,
}

/// What is still to be said before TLS.
enum Words {
    Nothing,
    /// Requests, each with the answer that it is to have, and whether the first was said.
    Asks {
        requests: VecDeque<([u8; 8], u8)>,
        asked: bool,
    },
    /// The answer, and what was heard of the request.
    Answers {
        answer: Vec<u8>,
        heard: Vec<u8>,
    },
}

impl TlsPeer {
    pub fn plain(to_send: Vec<u8>) -> Self {
        Self {
            tls: None,
            words: Words::Nothing,
            to_send,
            said: 0,
            heard: Vec::new(),
            outgoing: Vec::new(),
            ended: false,
            heard_end: false,
            error: None,
        }
    }

    pub fn client(pki: &Pki, name: &str, old: bool, to_send: Vec<u8>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(der(&pki.ca())).expect("an authority");
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions(old))
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = name.to_owned().try_into().expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        Self { tls: Some(Box::new(connection.into())), ..Self::plain(to_send) }
    }

    pub fn server(issued: &Issued, old: bool, to_send: Vec<u8>) -> Self {
        let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions(old))
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![der(&issued.cert)], key)
            .expect("a certificate");
        let connection = ServerConnection::new(Arc::new(config)).expect("a server");
        Self { tls: Some(Box::new(connection.into())), ..Self::plain(to_send) }
    }

    /// This client asks for TLS as PostgreSQL's do, after it was refused GSSAPI's if `gss`. The
    /// request has `early` behind it.
    pub fn asking(mut self, gss: bool, early: &[u8]) -> Self {
        const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
        let first = gss.then_some((GSS_REQUEST, b'N'));
        let requests = first.into_iter().chain([(SSL_REQUEST, b'S')]).collect();
        self.words = Words::Asks { requests, asked: false };
        self.outgoing.extend_from_slice(early);
        self
    }

    /// This server is asked for TLS.
    pub fn asked(mut self, answer: &[u8]) -> Self {
        self.words = Words::Answers { answer: answer.to_vec(), heard: Vec::new() };
        self
    }

    /// Says some of what it has to say, and its end after the last byte; gives up to `room` bytes
    /// of what that makes.
    pub fn speak(&mut self, rng: &mut Rng, room: usize) -> Vec<u8> {
        if self.error.is_some() {
            // It has been told that TLS is broken, or has found that out.
            return Vec::new();
        }
        let left = self.to_send.len() - self.said;
        let some = (rng.scale(1, 1 << 17) as usize).min(left);
        let bytes = &self.to_send[self.said..][..some];
        if let Words::Asks { requests, asked } = &mut self.words
            && let Some((request, _)) = requests.front()
            && !std::mem::replace(asked, true)
        {
            self.outgoing.splice(..0, *request);
        }
        match &mut self.tls {
            _ if !matches!(self.words, Words::Nothing) => {}
            None => {
                self.outgoing.extend_from_slice(bytes);
                self.said += some;
                self.ended |= self.said == self.to_send.len();
            }
            Some(tls) => {
                if !tls.is_handshaking() {
                    self.said += tls.writer().write(bytes).expect("room");
                    if self.said == self.to_send.len() && !self.ended {
                        self.ended = true;
                        tls.send_close_notify();
                    }
                }
                while tls.wants_write() {
                    tls.write_tls(&mut self.outgoing).expect("memory");
                }
            }
        }
        let len = self.outgoing.len().min(room);
        let cut = if rng.per_mille(300) { rng.between(0, len as u64) as usize } else { len };
        self.outgoing.drain(..cut).collect()
    }

    /// Everything was said, and nothing is left to send.
    pub fn is_done(&self) -> bool {
        self.ended && self.outgoing.is_empty()
    }

    /// How much it has said, if all of that is on its way.
    pub fn said_all(&self) -> Option<usize> {
        self.outgoing.is_empty().then_some(self.said)
    }

    pub fn hear(&mut self, mut bytes: &[u8]) {
        while let Some((byte, rest)) = bytes.split_first()
            && !matches!(self.words, Words::Nothing)
        {
            self.hear_word(*byte);
            bytes = rest;
        }
        let Some(tls) = &mut self.tls else { return self.heard.extend_from_slice(bytes) };
        while !bytes.is_empty() && self.error.is_none() {
            tls.read_tls(&mut bytes).expect("memory");
            match tls.process_new_packets() {
                Ok(state) => self.heard_end |= state.peer_has_closed(),
                Err(error) => self.error = Some(error),
            }
            let mut some = [0; 16_384];
            while let Ok(len @ 1..) = tls.reader().read(&mut some) {
                self.heard.extend_from_slice(&some[..len]);
            }
            if self.heard_end {
                return;
            }
        }
    }

    fn hear_word(&mut self, byte: u8) {
        match &mut self.words {
            Words::Nothing => {}
            Words::Asks { requests, asked } => {
                let (_, answer) = requests.pop_front().expect("a request");
                assert!(std::mem::take(asked), "an answer that nobody asked for");
                assert_eq!(byte, answer);
                if requests.is_empty() {
                    self.words = Words::Nothing;
                }
            }
            Words::Answers { answer, heard } => {
                heard.push(byte);
                assert!(SSL_REQUEST.starts_with(heard), "no request: {heard:?}");
                if heard.len() == SSL_REQUEST.len() {
                    self.outgoing.append(answer);
                    self.words = Words::Nothing;
                }
            }
        }
    }

    pub fn speaks_tls(&self) -> bool {
        self.tls.is_some()
    }
}

fn versions(old: bool) -> &'static [&'static SupportedProtocolVersion] {
    static OLD: [&SupportedProtocolVersion; 1] = [&TLS12];
    static NEW: [&SupportedProtocolVersion; 1] = [&TLS13];
    if old { &OLD } else { &NEW }
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
}
