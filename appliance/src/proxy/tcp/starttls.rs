//! Serves a client that first asks for TLS in the words of its own protocol.
//!
//! The session answers the client as soon as the client has asked, because only the ClientHello
//! that follows names the endpoint. Where TLS passes through, the session asks the connected
//! endpoint with the same words. The ClientHello waits meanwhile, untouched, in the client's
//! socket.

use crate::contract::{Event, Op, Side, Stop, Why, size};
use crate::proxy::core::Core;
use crate::proxy::tcp::choose::{By, invalid};
use crate::proxy::tcp::state::{Ask, Asking, Connecting, Requesting, Session, State, Step};
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;
use crate::wire::postgres::{self, GRANTED, REFUSED, Request, SSL_REQUEST};

impl Session {
    /// Handles an event that this file asked for.
    pub fn starttls_event(&mut self, core: &mut Core, event: Event, bytes: &[u8]) {
        match (&mut self.state, event) {
            (State::Requesting(_), Event::Peeked { start, len, end }) => {
                self.requested(core, &bytes[start as usize..][..len as usize], end);
            }
            (State::Requesting(requesting), Event::Taken { len, stop, .. }) => {
                if let Stop::Eof | Stop::Failed { .. } = stop {
                    return self.finish(core, CloseReason::ClientGone, true);
                }
                if let Step::Taking { left, answer, .. } = requesting.step {
                    let left = left.saturating_sub(len);
                    requesting.step = match left {
                        0 => Step::Answering { answer, blocked: false },
                        _ => Step::Taking { left, answer, under_way: false },
                    };
                    // The `Take` got fewer bytes than the `Peek` saw. The rest comes with a
                    // `Ready`, or at once.
                    if left == 0 || stop == Stop::Budget {
                        self.go_on_requesting(core);
                    }
                }
            }
            (State::Requesting(requesting), Event::Given { stop, .. }) => match stop {
                Stop::Drained => self.answered(core),
                Stop::Failed { .. } => self.finish(core, CloseReason::ClientGone, true),
                _ => {
                    if let Step::Answering { blocked, .. } = &mut requesting.step {
                        *blocked = true;
                    }
                }
            },
            (State::Asking(asking), Event::Given { to: Side::Endpoint, sent, stop, .. }) => {
                asking.given += sent as usize;
                asking.blocked = stop == Stop::Blocked;
                if let Stop::Failed { why, .. } = stop {
                    self.unanswered(core, Detail::why(why));
                }
            }
            (State::Asking(asking), Event::Taken { from: Side::Endpoint, start, len, stop }) => {
                asking.taking = false;
                self.heard(core, &bytes[start as usize..][..len as usize], stop);
            }
            _ => {}
        }
    }

    /// The client's socket has news while the session answers the client's request.
    pub fn requesting_ready(&mut self, core: &mut Core, readable: bool, writable: bool) {
        let State::Requesting(requesting) = &mut self.state else { return };
        match &mut requesting.step {
            Step::Taking { .. } if readable => self.go_on_requesting(core),
            Step::Answering { blocked, .. } if writable && *blocked => {
                *blocked = false;
                self.go_on_requesting(core);
            }
            _ => {}
        }
    }

    pub fn requested(&mut self, core: &mut Core, bytes: &[u8], end: bool) {
        let State::Requesting(requesting) = &mut self.state else { return };
        if end && bytes.is_empty() {
            return self.finish(core, CloseReason::ClientGone, true);
        }
        let answer = match postgres::read(bytes, end) {
            Request::NeedMore { at_least } => {
                let at_least = u32::try_from(at_least).unwrap_or(u32::MAX);
                // As in `hello`: the client sent fewer bytes than were asked for, so a `Ready` will
                // come.
                if at_least > requesting.asked {
                    requesting.asked = at_least;
                    self.peek(core);
                }
                return;
            }
            Request::Tls => {
                self.state = State::OPENING;
                return self.hello(core, bytes, end);
            }
            Request::Encrypt => GRANTED,
            Request::EncryptGss if !requesting.gss_refused => REFUSED,
            Request::Cancel => {
                self.client_readable = true;
                self.choose(core, &By::Cancel);
                return self.arm(core);
            }
            Request::Startup => {
                self.startup = true;
                return self.without_tls(core, CloseReason::StarttlsMissing.into());
            }
            Request::Early => return self.finish(core, CloseReason::StarttlsEarly, true),
            Request::EncryptGss => {
                let detail = Detail::from("it asks for GSSAPI encryption twice");
                return self.finish(core, CloseReason::HelloInvalid.because(detail), true);
            }
            Request::Invalid => {
                let cause = invalid(bytes, "neither TLS nor a PostgreSQL request");
                return match requesting.gss_refused {
                    false => self.without_tls(core, cause),
                    true => self.finish(core, cause, true),
                };
            }
        };
        let left = size(SSL_REQUEST.len());
        requesting.step = Step::Taking { left, answer, under_way: false };
        self.go_on_requesting(core);
    }

    pub fn go_on_requesting(&mut self, core: &mut Core) {
        let State::Requesting(requesting) = &mut self.state else { return };
        match &mut requesting.step {
            Step::Awaited => {}
            Step::Taking { left, under_way, .. } => {
                // The `Take` that is under way will see the bytes of this event.
                if !std::mem::replace(under_way, true) {
                    let left = *left;
                    self.take_words(core, Side::Client, left);
                }
            }
            Step::Answering { answer, .. } => {
                let answer = *answer;
                self.give_words(core, Side::Client, &[answer]);
            }
        }
    }

    /// Goes on after the answer: with the ClientHello, or with another request.
    pub fn answered(&mut self, core: &mut Core) {
        let State::Requesting(requesting) = &self.state else { return };
        let Step::Answering { answer, .. } = requesting.step else { return };
        if answer == GRANTED {
            self.ask = Ask::AsAsked;
            self.state = State::OPENING;
        } else {
            self.state =
                State::Requesting(Requesting { gss_refused: true, ..Requesting::default() });
        }
        self.peek(core);
    }

    /// Whether the connected endpoint must be asked for TLS.
    pub fn asks(&self) -> bool {
        let encrypts = self.tls.as_ref().is_some_and(|tls| tls.greets(Side::Endpoint));
        match self.ask {
            Ask::No => false,
            Ask::ToEncrypt => encrypts,
            Ask::AsAsked => encrypts || self.tls.is_none(),
        }
    }

    /// Asks the endpoint for TLS.
    pub fn ask(&mut self, core: &mut Core, connecting: Connecting) {
        self.state = State::Asking(Asking {
            connecting,
            given: 0,
            taking: false,
            blocked: false,
            ending: false,
        });
        self.arm(core);
        self.give_words(core, Side::Endpoint, &SSL_REQUEST);
    }

    /// The endpoint's socket has news while the session asks the endpoint for TLS.
    pub fn asking_ready(&mut self, core: &mut Core, event: Event) {
        let Event::Ready { readable, writable, ending, failed, .. } = event else { return };
        let State::Asking(asking) = &mut self.state else { return };
        asking.ending |= ending;
        if failed {
            return self.unanswered(core, Detail::why(Why::Reset));
        }
        let takes = (readable || ending) && !std::mem::replace(&mut asking.taking, true);
        if writable && std::mem::take(&mut asking.blocked) {
            let given = asking.given;
            self.give_words(core, Side::Endpoint, &SSL_REQUEST[given..]);
        }
        if takes {
            // One byte more than the answer has, to find a byte behind the answer: such a byte is
            // not from the endpoint.
            self.take_words(core, Side::Endpoint, 2);
        }
    }

    pub fn heard(&mut self, core: &mut Core, answer: &[u8], stop: Stop) {
        let State::Asking(Asking { connecting, given, ending, .. }) = self.state else { return };
        match answer {
            // This is news of bytes that were taken before.
            [] if stop == Stop::Drained => {}
            [GRANTED] if given == SSL_REQUEST.len() && !ending => self.proceed(core, connecting),
            answer => {
                let words = match (answer, stop) {
                    ([], Stop::Failed { why, .. }) => {
                        return self.unanswered(core, Detail::why(why));
                    }
                    ([REFUSED], _) => "it answered N: it does not speak TLS",
                    ([b'E', ..], _) => "it answered with an error",
                    ([GRANTED], _) => "it ended its connection behind its answer",
                    ([GRANTED, ..], _) => "bytes came behind its answer",
                    ([], _) => "it ended its connection without an answer",
                    _ => "its answer is none that PostgreSQL gives",
                };
                self.unanswered(core, words.into());
            }
        }
    }

    pub fn unanswered(&mut self, core: &mut Core, detail: Detail) {
        self.endpoint_failed(core, CloseReason::EndpointStarttlsFailed.because(detail));
    }

    pub fn take_words(&mut self, core: &mut Core, from: Side, at_most: u32) {
        core.takes += 1;
        core.push(self.token, Op::Take { from, at_most, to_eof: false });
    }

    pub fn give_words(&mut self, core: &mut Core, to: Side, words: &[u8]) {
        let (start, len) = (size(core.output.len()), size(words.len()));
        core.output.extend_from_slice(words);
        core.push(self.token, Op::Give { to, start, len });
    }
}
