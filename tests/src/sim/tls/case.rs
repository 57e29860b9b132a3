//! Which sides of a session speak TLS, and how it goes wrong.

use config_sync::model::config::Config;
use config_sync::model::tls::{Origination, Termination};
use ringway::contract::Side;

use crate::pki::{Issued, Pki, inline};
use crate::sim::rng::Rng;
use crate::sim::tls::peer::TlsPeer;

/// Which sides speak TLS with the gateway, and how the session goes wrong. With none, TLS passes
/// through.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub client: bool,
    pub endpoint: bool,
    /// The client may ask for TLS as PostgreSQL's do, and does so: for GSSAPI's first, or not.
    pub starttls: Option<bool>,
    /// TLS 1.2 on both sides.
    pub old: bool,
    /// The backend has a second endpoint, with which nothing is wrong.
    pub spare: bool,
    /// An end without close_notify is a clean one.
    pub fin: bool,
    pub fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// A side ends its connection without close_notify.
    Truncation(Side),
    Reset(Side),
    /// A byte is flipped on its way from this side.
    Corruption(Side),
    /// Bytes come behind the client's request for TLS, or the endpoint's answer is none or more.
    Words(Side),
    /// The endpoint takes connections and neither reads nor says anything.
    Silence,
}

impl Case {
    pub fn random(rng: &mut Rng) -> Self {
        let (client, endpoint) =
            rng.pick(&[(true, false), (false, true), (true, true), (false, false)]);
        let through = !client && !endpoint;
        let asks = through || (client && rng.per_mille(300));
        let starttls = asks.then_some(false);
        let (spare, fin) = (rng.per_mille(500), rng.per_mille(500));
        Self { client, endpoint, starttls, old: false, spare, fin, fault: Fault::None }.varied(rng)
    }

    /// The same configuration, with clients and endpoints of another kind and another fault.
    pub(super) fn varied(self, rng: &mut Rng) -> Self {
        let Self { client, endpoint, .. } = self;
        let through = !client && !endpoint;
        let asks = self.starttls.is_some();
        let side = rng.pick(&[Side::Client, Side::Endpoint]);
        let speaks = if side == Side::Client { client } else { endpoint };
        let fault = match rng.below(6) {
            0 => Fault::Reset(side),
            1 | 2 if asks && (side == Side::Client || endpoint || through) => Fault::Words(side),
            // Peers that a fault leaves within their handshake would wait for each other for ever.
            _ if through => Fault::None,
            1 if speaks => Fault::Truncation(side),
            2 if speaks => Fault::Corruption(side),
            _ => Fault::None,
        };
        let starttls = self.starttls.map(|_| rng.per_mille(300));
        Self { starttls, old: rng.per_mille(300), fault, ..self }
    }

    pub(super) fn passes_through(&self) -> bool {
        !self.client && !self.endpoint
    }

    /// The peers, which say these bytes.
    pub(super) fn peers(
        &self,
        rng: &mut Rng,
        issued: &Issued,
        up: Vec<u8>,
        down: Vec<u8>,
    ) -> [TlsPeer; 2] {
        let through = self.passes_through();
        let client = match self.client || through {
            true => TlsPeer::client(Pki::shared(), NAME, self.old, up),
            false => TlsPeer::plain(up),
        };
        let endpoint = match self.endpoint || through {
            true => TlsPeer::server(issued, self.old, down),
            false => TlsPeer::plain(down),
        };
        let Some(gss) = self.starttls else { return [client, endpoint] };
        let wrong = |side| self.fault == Fault::Words(side);
        let client = client.asking(gss, if wrong(Side::Client) { b"Q" } else { b"" });
        if !endpoint.speaks_tls() {
            return [client, endpoint];
        }
        let bad = rng.pick(&[b"N", b"E"]);
        [client, endpoint.asked(if wrong(Side::Endpoint) { bad } else { b"S" })]
    }

    /// A listener, a route and a backend of their own.
    pub(super) fn configure(&self, config: &mut String, at: usize, backend: &str) {
        let spare = if self.spare { format!(", \"10.0.2.{at}:80\"") } else { String::new() };
        let protocol = if self.client || self.passes_through() { "TLS" } else { "TCP" };
        let starttls = if self.starttls.is_some() { "starttls = \"postgres\"" } else { "" };
        let on_truncation = if self.fin { "fin" } else { "reset" };
        config.push_str(&format!(
            r#"
            [[listeners]]
            name = "l{at}"
            protocol = "{protocol}"
            address = "10.0.0.{at}:443"
            on_truncation = "{on_truncation}"
            {starttls}
            [[routes]]
            name = "r{at}"
            listeners = ["l{at}"]
            backends = [{{ name = "b{at}" }}]
            [[backends]]
            name = "b{at}"
            endpoints = ["10.0.1.{at}:80"{spare}]
            {backend}
            "#
        ));
    }

    pub(super) fn configure_tls(&self, config: &mut Config, at: usize, issued: &Issued) {
        config.listeners[at].tls = self.client.then(|| Termination {
            certificates: vec![issued.configured()],
            ..Termination::default()
        });
        config.backends[at].tls = self.endpoint.then(|| Origination {
            server_name: NAME.to_owned(),
            ca: Some(inline("ca", &Pki::shared().ca())),
            certificate: None,
            subject_alt_names: Vec::new(),
            alpn: None,
            pins: Vec::new(),
        });
    }
}

pub(super) const NAME: &str = "db.example.com";
