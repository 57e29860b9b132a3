//! What an operator asks of a worker, against what the worker answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use config_sync::table::request::{Facts, Filter, Handle, Of, Request, Span, What};
use ringway::stats::records::{CloseReason, SessionRecord};
use ringway::stats::records::{Entry, FLOW_STATES, Reply, SESSION_STATES};

use crate::sim::rng::Rng;
use crate::sim::tcp::close::INSPECTED;

/// What was asked, and how it went.
#[derive(Debug, Default)]
pub struct Asked {
    number: u64,
    /// Requests that have no answer yet.
    pub open: BTreeMap<u64, (Request, u64)>,
    /// Requests that the worker finds when it next looks.
    pub next: Vec<Request>,
    /// Lists that are over, the latest last.
    lists: VecDeque<List>,
    /// The list that goes on page by page.
    pub list: Option<List>,
    /// What has lived, by its handle: why it ended, once it has.
    ended: BTreeMap<Handle, CloseReason>,
    /// Killed flows that must end soon. One that the kernel forwards ends after the answer.
    dying: BTreeSet<Handle>,
    /// What the latest lists have named, to be killed.
    pub named: Vec<Handle>,
    pub killed: u64,
    /// Sessions that go from one process to another, or have come. They can't be found while it is
    /// not clear whose they are.
    pub moved: BTreeSet<Handle>,
}

#[derive(Debug)]
pub struct List {
    pub of: Of,
    pub filter: Filter,
    pub began: u64,
    pub ended: u64,
    pub seen: BTreeSet<Handle>,
}

/// The most requests without an answer, and the most lists that are remembered.
pub const MOST: usize = 4;

/// The microseconds for which an endpoint comes last after a session could not be given to it.
const REST: u64 = 10_000_000;

pub fn some_filter(rng: &mut Rng) -> Filter {
    use config_sync::table::routing::{BackendId, EndpointId, ListenerId, RouteId};
    let id = rng.below(4) as u32;
    let open = Filter::default();
    match rng.below(16) {
        0 => Filter { listener: Some(ListenerId(id)), ..open },
        1 => Filter { backend: Some(BackendId(id)), ..open },
        2 => Filter { endpoints: Some(vec![EndpointId(id), EndpointId(id + 1)]), ..open },
        3 => Filter { client: "10.0.0.0/9".parse().ok(), ..open },
        4 => Filter { route: Some(RouteId(id)), ..open },
        5 => Filter { state: Some("relaying".into()), ..open },
        6 => Filter { idle: Span { least: 1_000_000, most: u64::MAX }, ..open },
        7 => Filter { bytes: Span { least: 1, most: 10_000 }, ..open },
        _ => open,
    }
}

impl List {
    pub fn page(&self, from: u32, rng: &mut Rng) -> What {
        let most = rng.scale(1, 64) as u32;
        What::List { of: self.of, filter: self.filter.clone(), from, most }
    }
}

impl Asked {
    pub fn ask(&mut self, what: What) {
        self.number += 1;
        self.next.push(Request { number: self.number, what });
    }

    /// A session or flow has ended. If it lived through a list, the list has named it.
    pub fn ended(&mut self, record: &SessionRecord, reason: CloseReason) {
        let Some(handle) = record.handle else { return };
        self.killed += u64::from(reason == CloseReason::Killed);
        self.dying.remove(&handle);
        let before = self.ended.insert(handle, reason);
        assert_eq!(before, None, "{handle:?} ended twice: {record:?}");
        for list in &self.lists {
            let lived = record.opened < list.began && record.closed > list.ended;
            let hidden = self.moved.contains(&handle);
            if lived && !hidden && list.of == handle.of && list.filter.is_open() {
                assert!(list.seen.contains(&handle), "a list has missed {record:?}: {list:?}");
            }
            assert!(
                !list.seen.contains(&handle) || list.of == handle.of,
                "a list of another kind has {record:?}"
            );
        }
    }

    /// Returns the slot from which the list goes on.
    pub fn replied(&mut self, reply: &Reply, now: u64, all_logged: bool) -> Option<u32> {
        let (request, since) = self.open.remove(&reply.number).expect("an answer to a request");
        match &request.what {
            What::Kill(handle) => {
                assert!(reply.killed <= 1 && reply.entries.is_empty(), "{reply:?}");
                let reason = self.ended.get(handle).copied();
                if reply.killed == 1 {
                    let said = reason.is_none_or(|reason| reason == CloseReason::Killed);
                    assert!(said, "{handle:?} ended by {reason:?}");
                }
                let excused = !all_logged || self.moved.contains(handle);
                if reason.is_none() && !excused {
                    assert_eq!(handle.of, Of::Flows, "{handle:?} lives on after {reply:?}");
                    self.dying.insert(*handle);
                }
                None
            }
            What::Resting(endpoints) => {
                assert!(reply.resting.iter().all(|(id, _)| endpoints.contains(id)), "{reply:?}");
                assert!(reply.resting.iter().all(|(_, left)| (1..=REST).contains(left)));
                None
            }
            What::Inspect(handle) => {
                check_inspection(reply, *handle, (since, now));
                let reason = self.ended.get(handle);
                let ends = reason.is_some() || !all_logged || self.moved.contains(handle);
                assert!(!reply.entries.is_empty() || ends, "{handle:?} was not found");
                None
            }
            What::Part { .. }
            | What::Announce { .. }
            | What::Settle
            | What::Forget(_)
            | What::GoOn(_)
            | What::Own(_)
            | What::Deafen(_)
            | What::Hear { .. } => {
                unreachable!("`moves` asks these")
            }
            What::KillAll { .. } => {
                assert!(reply.entries.is_empty() && reply.next.is_none(), "{reply:?}");
                None
            }
            What::List { of, filter, from, most } => {
                assert!(reply.killed == 0 && reply.entries.len() <= *most as usize, "{reply:?}");
                assert!(reply.next.is_none_or(|next| next > *from), "no progress: {reply:?}");
                let list = self.list.as_mut().expect("one list at a time");
                for entry in &reply.entries {
                    check_entry(entry, *of, filter, (since, now));
                    assert!(list.seen.insert(entry.handle), "listed twice: {entry:?}");
                }
                self.named = reply.entries.iter().map(|entry| entry.handle).collect();
                if reply.next.is_none() {
                    let ended = List { ended: now, ..self.list.take().expect("it is there") };
                    self.lists.push_back(ended);
                    self.lists.truncate(MOST);
                }
                reply.next
            }
        }
    }

    /// Whether something was asked that has no answer yet.
    pub fn is_open(&self) -> bool {
        !self.open.is_empty() || !self.next.is_empty()
    }

    pub fn at_the_end(&self) {
        assert!(self.open.is_empty(), "requests without an answer: {:?}", self.open);
        assert!(self.dying.is_empty(), "killed, and yet alive: {:?}", self.dying);
    }
}

fn check_inspection(reply: &Reply, handle: Handle, asked: (u64, u64)) {
    assert!(reply.killed == 0 && reply.next.is_none() && reply.entries.len() <= 1, "{reply:?}");
    let Some(entry) = reply.entries.first() else {
        return assert_eq!(reply.sides, [None, None]);
    };
    assert_eq!(entry.handle, handle);
    check_entry(entry, handle.of, &Filter::default(), asked);
    let [client, endpoint] = &reply.sides;
    assert_eq!(client.is_some(), handle.of == Of::Sessions, "{reply:?}");
    for (side, said) in reply.sides.iter().zip(INSPECTED) {
        assert!(side.as_deref().is_none_or(|side| *side == said), "sides are mixed up: {reply:?}");
    }
    assert!(endpoint.is_some() || entry.state != "relaying" || handle.of == Of::Flows, "{reply:?}");
}

fn check_entry(entry: &Entry, of: Of, filter: &Filter, (since, now): (u64, u64)) {
    let record = &entry.record;
    assert_eq!(entry.handle.of, of, "{entry:?}");
    assert_eq!(record.handle, Some(entry.handle), "{entry:?}");
    assert!((since..=now).contains(&record.closed), "looked at in between: {entry:?}");
    assert!(record.opened <= entry.last && entry.last <= record.closed, "{entry:?}");
    assert!(filter.admits(&facts(entry)), "not asked for by {filter:?}: {entry:?}");
    let states = match of {
        Of::Sessions => SESSION_STATES,
        Of::Flows => FLOW_STATES,
    };
    assert!(states.contains(&entry.state), "a state without a word: {entry:?}");
    assert!(record.reason.is_none() && entry.state != "closing", "it has ended: {entry:?}");
}

fn facts(entry: &Entry) -> Facts<'_> {
    let Entry { record, state, last, .. } = entry;
    Facts {
        listener: record.listener,
        route: record.route,
        backend: record.backend,
        endpoint: record.endpoint,
        client: record.client.ip(),
        server_name: record.server_name.as_deref(),
        state,
        age: record.closed - record.opened,
        idle: record.closed - last,
        bytes: record.bytes_up + record.bytes_down,
    }
}
