//! Relays a session in which one side or both speak TLS: rustls stands in the middle.
//!
//! To the session, a `TlsRelay` looks like the ring: it takes a `Move` and says when the `Move` is
//! over. It carries the `Move` out with `Take` and `Give`, and holds the bytes that a side does not
//! take.
//!
//! One session holds at most, in bytes: for each side, 48 KiB that this side did not take (34 KiB
//! that one `Take` of the other side brings, encrypted; and the end of the side's own handshake).
//! For a side that speaks TLS, also the beginning of a record (18 KiB), or of a handshake message
//! in several records (64 KiB), plus rustls' own memory for a connection. During a handshake, also
//! the gateway's messages with its certificates. No byte is taken from a side while the other side
//! does not take the bytes held for it.
//!
//! rustls allocates once for each record, decrypted or encrypted. The relay allocates only where a
//! `Take` ends within a record, or where a side does not take all bytes at once.
//!
//! The memory of all sessions of a worker is bounded too: by the number of `Take`s under way and
//! the number of bytes given. Later sides have their turn in the order of coming, before any new
//! one.

use config_sync::table::routing::OnTruncation;
use config_sync::table::terminator::{Originator, Terminator};

use crate::contract::{Op, Side, Stop, Token, size};
use crate::proxy::cause::Cause;
use crate::proxy::core::{Core, Postponed};
use crate::proxy::tcp::tls_connection::Conn;
use crate::proxy::tcp::tls_port::{CUT_SHORT, End, Moving, Outcome, Port, STALE, broken, reasons};
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;

/// Bytes of one `Take`, with the beginning of an earlier record: two full records.
pub const TAKE: u32 = 33 * 1024;
/// Bytes of a `Take` behind the beginning of a handshake message that is longer than `TAKE`.
const SMALL_TAKE: u32 = 4 * 1024;
/// The maximum number of bytes held for a side: see above.
pub const MOST_HELD: usize = 48 * 1024;

#[derive(Debug)]
pub struct TlsRelay {
    client: Port,
    endpoint: Port,
    on_truncation: OnTruncation,
    /// The first side that ended without close_notify.
    truncated: Option<Side>,
    /// Why the first side broke that did.
    broken: Option<Cause>,
}

impl TlsRelay {
    /// # Errors
    /// rustls could not make a connection of the configuration.
    pub fn client(
        core: &Core,
        with: &Terminator,
        on_truncation: OnTruncation,
    ) -> Result<Self, Cause> {
        core.tell_time();
        let conn = Conn::terminate(with).map_err(|error| broken(Side::Client, &error))?;
        let client = Port { conn: Some(conn), ..Port::default() };
        Ok(Self { client, ..Self::plain(on_truncation) })
    }

    /// Begins a session in which only the endpoint will speak TLS.
    pub fn plain(on_truncation: OnTruncation) -> Self {
        let (client, endpoint) = (Port::default(), Port::default());
        Self { client, endpoint, on_truncation, truncated: None, broken: None }
    }

    /// The next endpoint speaks TLS.
    ///
    /// # Errors
    /// As [`Self::client`].
    pub fn originate(&mut self, core: &Core, with: &Originator) -> Result<(), Cause> {
        core.tell_time();
        let conn = Conn::originate(with, self.client_conn().and_then(Conn::alpn));
        let conn = conn.map_err(|error| broken(Side::Endpoint, &error))?;
        self.endpoint = Port { conn: Some(conn), ..Port::default() };
        Ok(())
    }

    /// The next endpoint does not speak TLS. `None`: the client does not either, so no relay is
    /// needed.
    pub fn with_plain_endpoint(mut self: Box<Self>) -> Option<Box<Self>> {
        self.endpoint = Port::default();
        self.client.conn.is_some().then_some(self)
    }

    /// The client's TLS connection, if there is one.
    pub fn client_conn(&self) -> Option<&Conn> {
        self.client.conn.as_ref()
    }

    /// The client's TLS connection, so that it ends with the client's last words. `follows`: the
    /// words can follow a `Give` that is under way. `None`: the words would overtake other bytes.
    pub fn last_words(&mut self, follows: bool) -> Option<Conn> {
        let port = &mut self.client;
        let waits = port.taking || !port.held.is_empty() || port.giving && !follows;
        if waits { None } else { port.conn.take() }
    }

    /// Whether this side has a handshake to do.
    pub fn greets(&self, side: Side) -> bool {
        self.port(side).conn.as_ref().is_some_and(Conn::is_handshaking)
    }

    /// Whether this side speaks TLS.
    pub fn speaks_with(&self, side: Side) -> bool {
        self.port(side).conn.is_some()
    }

    /// The endpoint is given up, so its postponed steps are dropped.
    pub fn give_up(&mut self, core: &mut Core, token: Token) {
        if std::mem::take(&mut self.endpoint.postponed) > 0 {
            core.postponed.retain(|(of, side, _)| *of != token || *side != Side::Endpoint);
        }
    }

    /// Begins a handshake: a client's with the bytes it sent, an endpoint's with a message to it.
    pub fn greet(&mut self, core: &mut Core, token: Token, side: Side) -> Outcome {
        match side {
            Side::Client => {
                self.take(core, token, side);
                Outcome::Nothing
            }
            Side::Endpoint => self.receive(core, token, side, &[], Stop::Drained),
        }
    }

    /// Handles news of a side during its handshake.
    pub fn readable(&mut self, core: &mut Core, token: Token, side: Side) {
        if std::mem::replace(&mut self.port_mut(side).news, true) && self.port(side).taking {
            return;
        }
        self.take(core, token, side);
    }

    /// A side takes bytes again.
    pub fn writable(&mut self, core: &mut Core, token: Token, side: Side) {
        self.give(core, token, side);
    }

    /// Carries out a step that had to wait.
    pub fn turn(&mut self, core: &mut Core, token: Token, side: Side, what: Postponed) {
        let port = self.port_mut(side);
        port.postponed = port.postponed.saturating_sub(1);
        match what {
            Postponed::Peek => {}
            Postponed::Take => self.take_now(core, token, side),
            Postponed::Give => {
                self.port_mut(side).giving = false;
                self.give_now(core, token, side);
            }
        }
    }

    /// Carries out `Op::Move`.
    pub fn begin(
        &mut self,
        core: &mut Core,
        token: Token,
        from: Side,
        (budget, to_eof): (u32, bool),
    ) -> Outcome {
        let moving = &mut self.port_mut(from).moving;
        moving.get_or_insert(Moving { left: budget, to_eof, read: 0, stop: None });
        let port = self.port_mut(from);
        let ended = port.conn.as_ref().is_some_and(Conn::received_end) && port.end.is_none();
        if port.early.is_empty() && !ended {
            return self.carry_on(core, token, from);
        }
        core.tell_time();
        let early = std::mem::take(&mut port.early);
        let start = core.output.len();
        let end = match self.pass_on(core, from, &early) {
            Ok(()) => ended.then_some(End::Clean),
            Err(cause) => Some(self.breaks(cause)),
        };
        self.passed(core, token, from, start, Stop::Budget, end)
    }

    pub fn taken(
        &mut self,
        core: &mut Core,
        token: Token,
        from: Side,
        bytes: &[u8],
        stop: Stop,
    ) -> Outcome {
        self.port_mut(from).taking = false;
        self.receive(core, token, from, bytes, stop)
    }

    /// Takes in the result of a `Give`. `rest` was not taken.
    pub fn given(
        &mut self,
        core: &mut Core,
        token: Token,
        to: Side,
        (sent, rest): (u32, &[u8]),
        stop: Stop,
    ) -> Outcome {
        let port = self.port_mut(to);
        port.giving = false;
        if !rest.is_empty() {
            let mut held = Vec::with_capacity(rest.len() + port.held.len());
            held.extend_from_slice(rest);
            held.append(&mut port.held);
            port.held = held;
        }
        let plain = if port.held.is_empty() { port.plain } else { port.plain.min(sent) };
        port.plain -= plain;
        port.unreported += plain;
        let from = to.other();
        if self.port(from).moving.is_none() {
            return match stop {
                Stop::Failed { .. } => self.stop(from, stop),
                Stop::Blocked => Outcome::Nothing,
                _ => {
                    self.give(core, token, to);
                    Outcome::Nothing
                }
            };
        }
        match stop {
            Stop::Drained => self.carry_on(core, token, from),
            stop => self.stop(from, stop),
        }
    }

    /// Bytes came that nobody will get: bytes are held, or a record has begun.
    pub fn is_cut(&self) -> bool {
        let cut = |port: &Port| !port.held.is_empty() || (port.end.is_none() && port.has_begun());
        cut(&self.client) || cut(&self.endpoint)
    }

    /// Whether bytes still wait to be given to a side.
    pub fn is_giving(&self, to: Side) -> bool {
        let port = self.port(to);
        port.giving || !port.held.is_empty()
    }

    /// How many unencrypted bytes a side was given that the session was not told of yet.
    pub fn unreported(&mut self, to: Side) -> u32 {
        std::mem::take(&mut self.port_mut(to).unreported)
    }

    /// The reason of a session in which both directions ended, if a side left out close_notify.
    pub fn truncated(&self) -> Option<CloseReason> {
        self.truncated.map(|side| reasons(side).1)
    }

    /// Carries a `Move` on until it needs an event.
    fn carry_on(&mut self, core: &mut Core, token: Token, from: Side) -> Outcome {
        let to = from.other();
        if self.port(to).giving {
            return Outcome::Nothing;
        }
        if !self.port(to).held.is_empty() {
            self.give(core, token, to);
            return Outcome::Nothing;
        }
        let port = self.port(from);
        let Some(moving) = port.moving else { return Outcome::Nothing };
        match (port.end, moving.stop) {
            (Some(end), _) => self.over(from, end),
            (None, Some(stop)) => self.stop(from, stop),
            (None, None) if moving.left == 0 => self.stop(from, Stop::Budget),
            (None, None) => {
                self.take(core, token, from);
                Outcome::Nothing
            }
        }
    }

    /// A side has ended, and the other side was given all its bytes. A side that speaks TLS learns
    /// of a truncation by a FIN without close_notify, so nothing more need be done for such a side.
    fn over(&mut self, from: Side, end: End) -> Outcome {
        let knows = self.port(from.other()).conn.is_some();
        let stop = match end {
            End::Lost(why) => Stop::Failed { side: from, why },
            _ => Stop::Eof,
        };
        let Outcome::Moved { read, sent, .. } = self.stop(from, stop) else {
            unreachable!("a stop is told as that")
        };
        match end {
            End::Broken => {
                let cause = self.broken.clone().expect("it is set with this end");
                Outcome::Broken { from, read, sent, cause }
            }
            End::Truncated if !knows => Outcome::Truncated { from, read, sent },
            End::Clean | End::Truncated | End::Lost(_) => {
                Outcome::Moved { from, read, sent, held: 0, stop }
            }
        }
    }

    /// A `Move` is over, or bytes outside of a `Move` could not be given.
    fn stop(&mut self, from: Side, stop: Stop) -> Outcome {
        let read = self.port_mut(from).moving.take().map_or(0, |moving| moving.read);
        let to = self.port_mut(from.other());
        let sent = std::mem::take(&mut to.unreported);
        let held = u32::try_from(to.held.len()).unwrap_or(u32::MAX);
        Outcome::Moved { from, read, sent, held, stop }
    }

    /// Takes the waiting bytes of a side, unless a `Take` is under way.
    fn take(&mut self, core: &mut Core, token: Token, from: Side) {
        let port = self.port_mut(from);
        if std::mem::replace(&mut port.taking, true) {
            return;
        }
        if core.postponed.is_empty() && core.has_room() {
            self.take_now(core, token, from);
        } else {
            port.postponed += 1;
            core.postponed.push_back((token, from, Postponed::Take));
        }
    }

    fn take_now(&mut self, core: &mut Core, token: Token, from: Side) {
        core.takes += 1;
        let port = self.port_mut(from);
        port.news = false;
        let begun = port.conn.as_ref().map_or(0, Conn::carried);
        let room = TAKE.saturating_sub(u32::try_from(begun).unwrap_or(TAKE)).max(SMALL_TAKE);
        let (left, to_eof) = port.moving.map_or((room, false), |m| (m.left, m.to_eof));
        core.push(token, Op::Take { from, at_most: left.min(room), to_eof });
    }

    /// Gives a side the bytes held for it, unless a `Give` is under way.
    fn give(&mut self, core: &mut Core, token: Token, to: Side) {
        let port = self.port_mut(to);
        if port.giving || port.held.is_empty() {
            return;
        }
        if core.postponed.is_empty() && core.has_room() {
            self.give_now(core, token, to);
        } else {
            port.giving = true;
            port.postponed += 1;
            core.postponed.push_back((token, to, Postponed::Give));
        }
    }

    fn give_now(&mut self, core: &mut Core, token: Token, to: Side) {
        let start = core.output.len();
        // The memory of `held` is freed, because most sessions hold nothing.
        let held = std::mem::take(&mut self.port_mut(to).held);
        core.output.extend_from_slice(&held);
        self.emit(core, token, to, start);
    }

    /// Gives a side the output from `start` on, behind a `Give` that may be under way.
    fn emit(&mut self, core: &mut Core, token: Token, to: Side, start: usize) {
        let port = self.port_mut(to);
        let len = core.output.len() - start;
        if len == 0 {
            return;
        }
        if port.giving || !port.held.is_empty() {
            port.held.reserve_exact(len);
            port.held.extend_from_slice(&core.output[start..]);
            core.output.truncate(start);
            let greeting = port.conn.as_ref().is_some_and(Conn::is_handshaking);
            debug_assert!(greeting || port.held.capacity() <= MOST_HELD, "{}", port.held.len());
            return;
        }
        port.giving = true;
        // MOST_TAKES and MOST_OUTPUT bound the output. Handshakes that begin add 1 KiB each, and
        // the ring has completions for a limited number of sessions.
        core.push(token, Op::Give { to, start: size(start), len: size(len) });
    }

    /// Takes in the bytes of a side, and passes them on.
    fn receive(
        &mut self,
        core: &mut Core,
        token: Token,
        from: Side,
        bytes: &[u8],
        stop: Stop,
    ) -> Outcome {
        core.tell_time();
        if let Some(moving) = &mut self.port_mut(from).moving {
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            moving.read += len;
            moving.left = moving.left.saturating_sub(len);
        }
        if self.port(from).conn.is_some() {
            self.decrypt(core, token, from, bytes, stop)
        } else {
            let start = core.output.len();
            let end = match self.pass_on(core, from, bytes) {
                Ok(()) => (stop == Stop::Eof).then_some(End::Clean),
                Err(cause) => Some(self.breaks(cause)),
            };
            self.passed(core, token, from, start, stop, end)
        }
    }

    fn decrypt(
        &mut self,
        core: &mut Core,
        token: Token,
        from: Side,
        bytes: &[u8],
        stop: Stop,
    ) -> Outcome {
        let failed = reasons(from).0;
        let greeting = self.greets(from);
        let (start, broken) = self.open(core, token, from, bytes);
        let ended = self.port(from).conn.as_ref().is_some_and(Conn::received_end);
        if let Some(cause) = broken {
            if greeting {
                return Outcome::Failed(cause);
            }
            let end = self.breaks(cause);
            return self.passed(core, token, from, start, stop, Some(end));
        }
        match stop {
            _ if greeting && !self.greets(from) => {
                let conn = self.port(from).conn.as_ref();
                match conn.is_some_and(|conn| conn.is_stale(core.unix_time())) {
                    true => Outcome::Failed(failed.because(Detail::from(STALE))),
                    false => Outcome::Greeted,
                }
            }
            Stop::Eof if greeting => Outcome::Failed(failed.because(Detail::from(CUT_SHORT))),
            Stop::Failed { why, .. } if greeting => {
                Outcome::Failed(failed.because(Detail::why(why)))
            }
            _ if greeting => {
                if stop == Stop::Budget || self.port(from).news {
                    self.take(core, token, from);
                }
                Outcome::Nothing
            }
            Stop::Eof if !ended => {
                let end = self.truncate(from);
                self.passed(core, token, from, start, stop, Some(end))
            }
            _ => self.passed(core, token, from, start, stop, ended.then_some(End::Clean)),
        }
    }

    fn breaks(&mut self, cause: Cause) -> End {
        self.broken.get_or_insert(cause);
        End::Broken
    }

    /// A side has ended without close_notify. In the middle of a record, bytes are surely missing,
    /// so such an end is never taken for a clean one.
    fn truncate(&mut self, side: Side) -> End {
        self.truncated.get_or_insert(side);
        match self.on_truncation {
            OnTruncation::Fin if !self.port(side).has_begun() => End::Clean,
            OnTruncation::Fin | OnTruncation::Reset => End::Truncated,
        }
    }

    /// Decrypts the bytes of a side, and answers them as TLS demands. The output from the returned
    /// place on has the bytes for the other side. If these came with the end of a handshake, they
    /// are in `early`. A `Cause` says why no byte can follow any more.
    fn open(
        &mut self,
        core: &mut Core,
        token: Token,
        from: Side,
        bytes: &[u8],
    ) -> (usize, Option<Cause>) {
        let greeting = self.greets(from);
        // Bytes for a side without TLS need no further work.
        let as_it_is = !greeting && self.port(from.other()).conn.is_none();
        let mut plain = std::mem::take(&mut core.plain);
        plain.clear();
        let mut answer = Vec::new();
        let mut start = core.output.len();
        let port = self.port_mut(from);
        let conn = port.conn.as_mut().expect("only called for a side that speaks TLS");
        let into = if as_it_is { &mut core.output } else { &mut plain };
        let result = conn.receive(bytes, into, &mut answer, &mut core.scratch);
        if greeting && !conn.is_handshaking() {
            port.early.extend_from_slice(&plain);
            conn.keep_certificate();
        }
        // A side that got the end gets no more bytes.
        if !answer.is_empty() && self.port(from.other()).end.is_none() {
            // The answer goes in front of the bytes, which must stand last. After the handshake
            // this is rare.
            let said = core.output.split_off(start);
            core.output.extend_from_slice(&answer);
            self.emit(core, token, from, start);
            start = core.output.len();
            core.output.extend_from_slice(&said);
        }
        let broken = result.err().map(|error| broken(from, &error));
        let passed = if greeting {
            Ok(())
        } else if as_it_is {
            let said = core.output.len() - start;
            self.port_mut(from.other()).plain += u32::try_from(said).unwrap_or(u32::MAX);
            Ok(())
        } else {
            self.pass_on(core, from, &plain)
        };
        core.plain = plain;
        (start, broken.or_else(|| passed.err()))
    }

    /// Puts the bytes of one side into the output, as the other side must receive them.
    fn pass_on(&mut self, core: &mut Core, from: Side, plain: &[u8]) -> Result<(), Cause> {
        let to = self.port_mut(from.other());
        to.plain += u32::try_from(plain.len()).unwrap_or(u32::MAX);
        match &mut to.conn {
            None => core.output.extend_from_slice(plain),
            Some(conn) => {
                let sent = conn.send(plain, &mut core.output);
                sent.map_err(|error| match error {
                    rustls::Error::EncryptError => CloseReason::TlsKeysExhausted.into(),
                    error => broken(from.other(), &error),
                })?;
            }
        }
        Ok(())
    }

    /// The bytes are in the output from `start` on. Gives them to the other side, with the end if
    /// that has come.
    fn passed(
        &mut self,
        core: &mut Core,
        token: Token,
        from: Side,
        start: usize,
        stop: Stop,
        end: Option<End>,
    ) -> Outcome {
        let port = self.port_mut(from);
        if port.end.is_none() {
            port.end = match stop {
                Stop::Failed { why, .. } => end.or(Some(End::Lost(why))),
                _ => end,
            };
            if port.end == Some(End::Clean) {
                self.say_end(core, from.other());
            }
        }
        self.emit(core, token, from.other(), start);
        let port = self.port_mut(from);
        if let Some(moving) = &mut port.moving {
            moving.stop = Some(stop).filter(|stop| *stop != Stop::Budget);
        }
        self.carry_on(core, token, from)
    }

    fn say_end(&mut self, core: &mut Core, to: Side) {
        if let Some(conn) = &mut self.port_mut(to).conn {
            conn.end(&mut core.output);
        }
    }

    fn port(&self, side: Side) -> &Port {
        match side {
            Side::Client => &self.client,
            Side::Endpoint => &self.endpoint,
        }
    }

    fn port_mut(&mut self, side: Side) -> &mut Port {
        match side {
            Side::Client => &mut self.client,
            Side::Endpoint => &mut self.endpoint,
        }
    }
}
