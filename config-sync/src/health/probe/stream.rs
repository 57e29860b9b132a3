//! TLS of a check, and the end of a connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::health::plan::Tls;
use crate::health::probe::talk::reply::MOST_OF_ANSWER;
use crate::table::address::Address;

/// Shakes hands with the endpoint at `address`.
pub(super) async fn secured(
    stream: TcpStream,
    tls: &Tls,
    address: Address,
) -> io::Result<TlsStream<TcpStream>> {
    let own = || match address {
        Address::Ip(address) => ServerName::from(address.ip()),
        Address::Unix(_) => ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST)),
    };
    let name = tls.name.clone().unwrap_or_else(own);
    TlsConnector::from(Arc::clone(&tls.config)).connect(name, stream).await
}

/// Ends TLS without a FIN: the endpoint is to close first.
pub(super) fn say_goodbye(stream: &mut TlsStream<TcpStream>) {
    stream.get_mut().1.send_close_notify();
}

/// Reads until the endpoint closes, or has said a lot.
///
/// # Errors
/// The endpoint ended TLS with an alert.
pub(super) async fn end_of(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut part = [0; 4_096];
    for _ in 0..MOST_OF_ANSWER / part.len() {
        match stream.read(&mut part).await {
            Ok(0) => break,
            Ok(_) => {}
            // A reset, or an end without close_notify, is the end as well.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
            Err(_) => break,
        }
    }
    Ok(())
}
