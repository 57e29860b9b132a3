//! Answers requests about sessions and flows: lists them and kills them, some in each step.
//!
//! A list visits the slots in their order, and a session keeps its slot. So a list has no session
//! twice, and misses none that lived through the listing.

use std::collections::VecDeque;

use config_sync::table::request::{Facts, Filter, Handle, Of, Request, What};

use crate::contract::{Op, Side, Token};
use crate::proxy::core::Core;
use crate::proxy::slab::Slab;
use crate::proxy::tcp::state::{Session, State};
use crate::proxy::udp::flow::Flow;
use crate::proxy::udp::state::Flows;
use crate::stats::records::{CloseReason, Record};
use crate::stats::records::{Entry, Reply};

/// Microseconds between two steps.
pub const STEP: u64 = 250;

/// The most slots that one step looks at, and the most matches that one step copies or kills. A
/// step takes some microseconds, so a list does not make sessions wait.
pub const MOST_LOOKS: u32 = 1_024;
pub const MOST_MATCHES: u32 = 32;

/// The requests that a worker has not answered yet.
#[derive(Debug, Default)]
pub struct Requests {
    waiting: VecDeque<Request>,
    /// When the next step is due, in microseconds. `None`: no request waits.
    pub next: Option<u64>,
    /// The answer to the first request, as far as it has come.
    reply: Reply,
    /// The next slot to look at. `None`: the first request has not begun.
    slot: Option<u32>,
    /// Looks at connections, the oldest first.
    inspections: VecDeque<Inspection>,
}

/// A look at the connections of a session. The ring answers in this turn, unless the session ends
/// before.
#[derive(Debug)]
struct Inspection {
    token: Token,
    reply: Reply,
    /// The sides that the ring was asked about.
    asked: [bool; 2],
    /// When the request is answered with what there is, in microseconds.
    due: u64,
}

/// What a worker has.
pub struct Held<'a> {
    pub core: &'a mut Core,
    pub sessions: &'a mut Slab<Session>,
    pub flows: &'a mut Flows,
}

impl Requests {
    /// Takes a request. The kill of one session or flow is carried out at once, and a question
    /// about endpoints is answered at once. The caller limits both the number of requests that wait
    /// and the number of endpoints.
    pub fn ask(&mut self, held: &mut Held<'_>, request: Request) {
        if let What::Kill(handle) = request.what {
            let killed = u32::from(held.kill(handle));
            let reply = Reply { number: request.number, killed, ..Reply::default() };
            return held.core.records.push(Record::Reply(reply));
        }
        if let What::Resting(endpoints) = &request.what {
            let (balancer, now) = (&held.core.balancer, held.core.now);
            let resting = endpoints.iter().filter_map(|id| Some((*id, balancer.rests(*id, now)?)));
            let reply =
                Reply { number: request.number, resting: resting.collect(), ..Reply::default() };
            return held.core.records.push(Record::Reply(reply));
        }
        if let What::Inspect(handle) = request.what {
            return self.inspect(held, request.number, handle);
        }
        self.waiting.push_back(request);
        self.next.get_or_insert(held.core.now);
    }

    /// Asks the ring about the connections of a session. A flow has none.
    fn inspect(&mut self, held: &mut Held<'_>, number: u64, handle: Handle) {
        let entries: Vec<_> = held.living(handle).into_iter().collect();
        let reply = Reply { number, entries, ..Reply::default() };
        let session = match handle.of {
            Of::Sessions => held.sessions.get_mut(handle.slot, handle.generation),
            Of::Flows => None,
        };
        let Some(session) = session.filter(|_| !reply.entries.is_empty()) else {
            return held.core.records.push(Record::Reply(reply));
        };
        let asked = [true, has_endpoint(&session.state)];
        let (token, due) = (session.token, held.core.now + STEP);
        for side in [Side::Client, Side::Endpoint] {
            if asked[side as usize] {
                held.core.push(token, Op::Inspect { side });
            }
        }
        self.inspections.push_back(Inspection { token, reply, asked, due });
        self.next.get_or_insert(due);
    }

    /// The ring has looked at a side of a session.
    pub fn inspected(&mut self, core: &mut Core, token: Token, side: Side, bytes: &[u8]) {
        let at = side as usize;
        let waits =
            |of: &Inspection| of.token == token && of.asked[at] && of.reply.sides[at].is_none();
        let Some(position) = self.inspections.iter().position(waits) else { return };
        let Inspection { reply, asked, .. } = &mut self.inspections[position];
        reply.sides[at] = Some(bytes.into());
        let is_whole = |at: usize| !asked[at] || reply.sides[at].is_some();
        if is_whole(0)
            && is_whole(1)
            && let Some(done) = self.inspections.remove(position)
        {
            core.records.push(Record::Reply(done.reply));
        }
    }

    /// Makes one step, if one is due.
    pub fn step(&mut self, held: &mut Held<'_>) {
        while let Some(of) = self.inspections.pop_front_if(|of| of.due <= held.core.now) {
            held.core.records.push(Record::Reply(of.reply));
        }
        let Some(request) = self.waiting.front() else {
            return self.next = self.inspections.front().map(|of| of.due);
        };
        self.reply.number = request.number;
        let (of, filter, from, most) = match &request.what {
            What::List { of, filter, from, most } => (*of, filter, *from, Some(*most)),
            What::KillAll { of, filter } => (*of, filter, 0, None),
            What::Inspect(_)
            | What::Kill(_)
            | What::Resting(_)
            | What::Part { .. }
            | What::Announce { .. }
            | What::Settle
            | What::Forget(_)
            | What::GoOn(_)
            | What::Own(_)
            | What::Deafen(_)
            | What::Hear { .. } => {
                unreachable!("`ask` has carried it out, or is not asked")
            }
        };
        let is_full =
            |reply: &Reply| most.is_some_and(|most| reply.entries.len() as u64 >= most.into());
        let mut slot = self.slot.unwrap_or(from);
        let end = held.high_water(of);
        let last = slot.saturating_add(MOST_LOOKS).min(end);
        let mut matches = 0;
        while slot < last && matches < MOST_MATCHES && !is_full(&self.reply) {
            let found = held.find(of, slot, filter);
            slot += 1;
            let Some(handle) = found else { continue };
            matches += 1;
            match most {
                Some(_) => self.reply.entries.extend(held.entry(handle)),
                None => self.reply.killed += u32::from(held.kill(handle)),
            }
        }
        self.slot = Some(slot);
        self.next = Some(held.core.now + STEP);
        if slot < end && !is_full(&self.reply) {
            return;
        }
        self.reply.next = (slot < end).then_some(slot);
        held.core.records.push(Record::Reply(std::mem::take(&mut self.reply)));
        self.slot = None;
        self.waiting.pop_front();
        if self.waiting.is_empty() {
            self.next = self.inspections.front().map(|of| of.due);
        }
    }
}

impl Held<'_> {
    fn high_water(&self, of: Of) -> u32 {
        match of {
            Of::Sessions => self.sessions.high_water(),
            Of::Flows => self.flows.flows.high_water(),
        }
    }

    /// What is in the slot, if it matches and its end has not begun.
    fn find(&self, of: Of, slot: u32, filter: &Filter) -> Option<Handle> {
        let (handle, facts) = match of {
            Of::Sessions => {
                let session = self.sessions.at(slot)?;
                if matches!(session.state, State::Closing) || session.is_shared() {
                    return None;
                }
                (session.handle(), session_facts(session, self.core.now))
            }
            Of::Flows => {
                let flow = self.flows.flows.at(slot).filter(|flow| !flow.is_shared())?;
                (self.flows.handle(slot)?, flow_facts(flow, self.core.now))
            }
        };
        filter.admits(&facts).then_some(handle)
    }

    fn entry(&mut self, handle: Handle) -> Option<Entry> {
        Some(match handle.of {
            Of::Sessions => session_entry(self.core, self.sessions.at_mut(handle.slot)?),
            Of::Flows => flow_entry(self.core, self.flows.flows.at(handle.slot)?, handle),
        })
    }

    /// The session or flow, if its end has not begun.
    fn living(&mut self, handle: Handle) -> Option<Entry> {
        let found = self.find(handle.of, handle.slot, &Filter::default());
        self.entry(found.filter(|found| *found == handle)?)
    }

    /// Closes a session or flow. False: it has ended.
    fn kill(&mut self, Handle { of, slot, generation }: Handle) -> bool {
        match of {
            Of::Sessions => {
                let session = self.sessions.get_mut(slot, generation);
                let live =
                    session.filter(|of| !matches!(of.state, State::Closing) && !of.is_shared());
                let Some(session) = live else { return false };
                session.finish(self.core, CloseReason::Killed, true);
            }
            Of::Flows => {
                let flow = self.flows.flows.get_mut(slot, generation);
                let found = flow.is_some_and(|flow| !flow.is_shared());
                if !found || self.flows.is_ending(slot) {
                    return false;
                }
                self.flows.end(self.core, slot, CloseReason::Killed);
            }
        }
        true
    }
}

/// Whether the session is connected to its endpoint.
fn has_endpoint(state: &State) -> bool {
    match state {
        State::SendingProxyHeader(_)
        | State::Asking(_)
        | State::Securing(_)
        | State::Relaying(_) => true,
        State::AwaitingProxyHeader(_)
        | State::Opening { .. }
        | State::Requesting(_)
        | State::Greeting
        | State::Delayed
        | State::Waiting(_)
        | State::Connecting(_)
        | State::Closing => false,
    }
}

fn session_facts(session: &Session, now: u64) -> Facts<'_> {
    let bytes = match &session.state {
        State::Relaying(relay) => relay.up.bytes + relay.down.bytes,
        _ => 0,
    };
    Facts {
        listener: session.listener,
        route: session.route,
        backend: session.backend,
        endpoint: session.endpoint,
        client: session.client.ip(),
        server_name: session.server_name.as_deref(),
        state: state(&session.state),
        age: now - session.opened,
        idle: now - session.last_byte(),
        bytes,
    }
}

fn session_entry(core: &Core, session: &mut Session) -> Entry {
    let mut record = session.record(core, None);
    if let State::Relaying(relay) = &session.state {
        (record.bytes_up, record.bytes_down) = (relay.up.bytes, relay.down.bytes);
    }
    let (state, last) = (state(&session.state), session.last_byte());
    Entry { handle: session.handle(), record, state, last }
}

fn state(state: &State) -> &'static str {
    match state {
        State::AwaitingProxyHeader(_) => "awaiting_proxy_header",
        State::Opening { .. } => "awaiting_hello",
        State::Requesting(_) => "awaiting_starttls",
        State::Greeting => "tls_handshake",
        State::Delayed => "delayed",
        State::Waiting(_) => "queued",
        State::Connecting(_) => "connecting",
        State::SendingProxyHeader(_) => "sending_proxy_header",
        State::Asking(_) => "asking_starttls",
        State::Securing(_) => "endpoint_tls_handshake",
        State::Relaying(relay) if relay.ending.is_some() => "ending",
        State::Relaying(relay) if relay.first_end.is_some() => "half_closed",
        State::Relaying(_) => "relaying",
        State::Closing => "closing",
    }
}

fn flow_state(flow: &Flow) -> &'static str {
    match flow.replies {
        _ if flow.is_promoted() => "in_kernel",
        0 => "unanswered",
        _ => "answered",
    }
}

fn flow_facts(flow: &Flow, now: u64) -> Facts<'_> {
    let record = |id: u32| (id != u32::MAX).then_some(id);
    Facts {
        listener: Some(flow.listener),
        route: record(flow.route.0).map(|_| flow.route),
        backend: record(flow.backend.0).map(|_| flow.backend),
        endpoint: record(flow.endpoint.0).map(|_| flow.endpoint),
        client: flow.client().ip(),
        server_name: None,
        state: flow_state(flow),
        age: now - flow.opened,
        idle: now - flow.last,
        bytes: flow.bytes_up + flow.bytes_down,
    }
}

fn flow_entry(core: &Core, flow: &Flow, handle: Handle) -> Entry {
    let mut record = flow.record(core, None);
    record.handle = Some(handle);
    Entry { handle, record, state: flow_state(flow), last: flow.last }
}
