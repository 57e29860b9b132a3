//! Handles the PROXY protocol on TCP: the header with which a connection begins, and the header
//! that an endpoint gets first.
//!
//! The session peeks at a header until it is whole, and then takes only the header. So all bytes
//! behind the header are relayed like any others.

use config_sync::table::address::{UNIX_CLIENT, UnixPath};
use config_sync::table::routing::{SendProxy, Transport};

use crate::contract::{Event, Op, Side, Stop, Why, size};
use crate::proxy::core::Core;
use crate::proxy::tcp::close::failure;
use crate::proxy::tcp::state::{
    AwaitingProxyHeader, Connecting, SendingProxyHeader, Session, State,
};
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;
use crate::wire::proxy_header::Addresses;
use crate::wire::proxy_header::read::{Header, read};
use crate::wire::proxy_header::write::{Outgoing, write};

impl Session {
    pub fn heading_event(&mut self, core: &mut Core, event: Event, bytes: &[u8]) {
        let State::AwaitingProxyHeader(heading) = &mut self.state else { return };
        match event {
            Event::Ready { side: Side::Client, failed: true, .. } => {
                self.finish(core, CloseReason::ClientGone, true);
            }
            Event::Ready { side: Side::Client, readable, ending, .. } if readable || ending => {
                self.client_ending |= ending;
                match heading.left {
                    0 => self.peek(core),
                    // The `Take` that is under way will see the bytes of this event.
                    _ if heading.taking => {}
                    _ => self.take_header(core),
                }
            }
            Event::Peeked { start, len, end } if heading.left == 0 => {
                self.header(core, &bytes[start as usize..][..len as usize], end);
            }
            Event::Taken { len, stop, .. } => {
                heading.taking = false;
                heading.left -= len;
                match stop {
                    _ if heading.left == 0 => self.headed(core),
                    Stop::Eof | Stop::Failed { .. } => {
                        self.finish(core, CloseReason::ClientGone, true);
                    }
                    Stop::Drained if len == 0 => {}
                    _ => self.take_header(core),
                }
            }
            _ => {}
        }
    }

    pub fn header(&mut self, core: &mut Core, bytes: &[u8], end: bool) {
        let State::AwaitingProxyHeader(heading) = &mut self.state else { return };
        match read(bytes) {
            Header::NeedMore { .. } if end && bytes.is_empty() => {
                self.finish(core, CloseReason::ClientGone, true);
            }
            Header::NeedMore { .. } if end => {
                let detail = Detail::from("the connection ended within it");
                self.finish(core, CloseReason::ProxyInvalid.because(detail), true);
            }
            Header::NeedMore { at_least } => {
                let at_least = u32::try_from(at_least).unwrap_or(u32::MAX);
                // The client sent fewer bytes than were asked for. The ring has set a mark, so a
                // `Ready` will come.
                if at_least > heading.asked {
                    heading.asked = at_least;
                    self.peek(core);
                }
            }
            Header::Known { len, addresses } => {
                heading.left = u32::try_from(len).unwrap_or(u32::MAX);
                self.believe(addresses);
                self.take_header(core);
            }
            Header::Invalid(why) => {
                let cause = CloseReason::ProxyInvalid.because(Detail::from(why));
                self.finish(core, cause, true);
            }
        }
    }

    pub fn believe(&mut self, addresses: Option<Addresses>) {
        let proxied = self.proxied.get_or_insert_default();
        proxied.peer = Some(self.client);
        if let Some(addresses) = addresses {
            self.client = addresses.source;
            proxied.destination = Some(addresses.destination);
        }
    }

    pub fn take_header(&mut self, core: &mut Core) {
        let State::AwaitingProxyHeader(heading) = &mut self.state else { return };
        heading.taking = true;
        core.takes += 1;
        let at_most = heading.left;
        core.push(self.token, Op::Take { from: Side::Client, at_most, to_eof: false });
    }

    pub fn headed(&mut self, core: &mut Core) {
        let State::AwaitingProxyHeader(AwaitingProxyHeader { then, .. }) = self.state else {
            return;
        };
        // The `Ready` for bytes that came with the header has come already.
        self.client_readable = true;
        self.identified(core, then);
        if self.peeks().is_some() {
            self.peek(core);
        }
        if core.sources.is_some() && self.is_undecided() {
            core.named.push(self.token);
        }
        self.arm(core);
    }

    /// Sends the endpoint its header, before any other byte.
    pub fn introduce(&mut self, core: &mut Core, connecting: Connecting, how: SendProxy) {
        let destination = self.proxied.as_ref().and_then(|proxied| proxied.destination);
        let unique_id = how.unique_id.then(|| {
            let proxied = self.proxied.get_or_insert_default();
            *proxied.unique_id.get_or_insert_with(|| core.ids.next())
        });
        let tls = self.tls.as_ref().and_then(|tls| tls.client_conn()?.client_tls());
        // The listening socket may have closed meanwhile, and its path with it.
        let path = || core.tables.of(self.socket)?.1.address.unix().map(UnixPath::to_bytes);
        let unix = (self.client == UNIX_CLIENT).then(|| path().unwrap_or_default());
        let header = Outgoing {
            transport: Transport::Tcp,
            addresses: Addresses {
                source: self.client,
                destination: destination.unwrap_or(self.local),
            },
            unix: unix.as_deref(),
            authority: self.server_name.as_deref(),
            alpn: self.tls.as_ref().and_then(|tls| tls.client_conn()?.alpn()),
            tls: tls.as_ref(),
            unique_id,
            crc32c: how.crc32c,
        };
        let start = core.output.len();
        write(how.version, &header, &mut core.output);
        self.give_header(core, start);
        let rest = Vec::new();
        let introduction = SendingProxyHeader { connecting, rest, readable: false, ending: false };
        self.state = State::SendingProxyHeader(introduction);
        self.arm(core);
    }

    pub fn introducing_event(&mut self, core: &mut Core, event: Event, bytes: &[u8]) {
        let State::SendingProxyHeader(introduction) = &mut self.state else { return };
        match event {
            Event::Ready { failed: true, .. } => self.not_introduced(core, Why::Reset),
            Event::Ready { readable, writable, ending, .. } => {
                introduction.readable |= readable;
                introduction.ending |= ending;
                if writable && !introduction.rest.is_empty() {
                    let start = core.output.len();
                    core.output.append(&mut introduction.rest);
                    self.give_header(core, start);
                }
            }
            Event::Given { stop: Stop::Failed { why, .. }, .. } => self.not_introduced(core, why),
            Event::Given { stop: Stop::Blocked, start, len, .. } => {
                introduction.rest = bytes[start as usize..][..len as usize].to_vec();
            }
            Event::Given { .. } => self.introduced(core),
            _ => {}
        }
    }

    pub fn give_header(&self, core: &mut Core, start: usize) {
        let len = size(core.output.len() - start);
        core.push(self.token, Op::Give { to: Side::Endpoint, start: size(start), len });
    }

    pub fn introduced(&mut self, core: &mut Core) {
        let State::SendingProxyHeader(introduction) = &self.state else { return };
        let SendingProxyHeader { connecting, readable, ending, .. } = *introduction;
        self.speak(core, connecting);
        if readable || ending {
            let side = Side::Endpoint;
            let news = Event::Ready { side, readable, writable: false, ending, failed: false };
            self.on(core, news, &[]);
        }
    }

    pub fn not_introduced(&mut self, core: &mut Core, why: Why) {
        self.endpoint_failed(core, failure(Side::Endpoint, why));
    }
}
