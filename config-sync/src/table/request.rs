//! Requests to a worker about its sessions and flows.

use std::net::IpAddr;

use ipnet::IpNet;

use super::moving::FlowFigures;
use super::routing::{BackendId, EndpointId, ListenerId, RouteId, SocketId};
use super::steering::Share;

/// A request to one worker. The worker answers each request once, with the number of the request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub number: u64,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// List what matches, from the slot `from` on, and `most` at most.
    List { of: Of, filter: Filter, from: u32, most: u32 },
    /// List this session or flow, and say how its connections fare.
    Inspect(Handle),
    /// Close this session or flow.
    Kill(Handle),
    /// Say which of these endpoints come last, because a session could not be given to them.
    Resting(Box<[EndpointId]>),
    /// Close all that match.
    KillAll { of: Of, filter: Filter },
    /// Bring plain TCP sessions to a moment at which no byte of theirs is in the gateway, from the
    /// slot `from` on, and say which are there: `most` at most. The worker keeps these still until
    /// it is told what becomes of each: `Forget` or `GoOn`.
    Part { from: u32, most: u32 },
    /// Say which UDP flows could go to another process, from the slot `from` on, without those that
    /// were said before: `most` at most. The flows go on. `again`: without those, too, that the
    /// other process has refused since all slots were looked at first.
    Announce { from: u32, most: u32, again: bool },
    /// Bring the announced flows of deaf sockets to a moment at which no datagram of theirs is in
    /// the gateway, and say what they have carried. The worker keeps these still as in `Part`. The
    /// answer's `next`: a slot from which on there are flows that were not announced.
    Settle,
    /// Another process goes on with these still sessions or flows. They end here without a word to
    /// anyone.
    Forget(Box<[Handle]>),
    /// This process goes on with these still sessions or flows, and flows that were announced are
    /// its own alone.
    GoOn(Box<[Handle]>),
    /// These flows of another process are this one's from now on. They have carried so much.
    Own(Box<[(Handle, FlowFigures)]>),
    /// Leave the datagrams of clients in these sockets, until `Hear`. The answer comes when all
    /// that had come out of them is done.
    Deafen(Box<[SocketId]>),
    /// Receive the datagrams of clients on all sockets. `only`: the sockets may hold datagrams of
    /// clients that another worker hears from now on; those begin no flow. Without an answer.
    Hear { only: Option<Share> },
}

/// The two kinds of things that a worker has in slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Of {
    Sessions,
    Flows,
}

/// One session or flow of a worker. The generation tells it from others that have had the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle {
    pub of: Of,
    pub slot: u32,
    pub generation: u32,
}

/// What a session or flow has to be like. A field that is `None` leaves the choice open.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    pub listener: Option<ListenerId>,
    pub route: Option<RouteId>,
    pub backend: Option<BackendId>,
    /// Any of these.
    pub endpoints: Option<Vec<EndpointId>>,
    pub client: Option<IpNet>,
    /// In lower case, as sessions have the name.
    pub server_name: Option<Box<str>>,
    /// The state's word.
    pub state: Option<Box<str>>,
    /// Microseconds since the beginning, and since the last byte or datagram.
    pub age: Span,
    pub idle: Span,
    /// The bytes of both directions.
    pub bytes: Span,
}

/// The numbers from `least` to `most`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub least: u64,
    pub most: u64,
}

impl Span {
    fn has(self, number: u64) -> bool {
        (self.least..=self.most).contains(&number)
    }
}

impl Default for Span {
    fn default() -> Self {
        Self { least: 0, most: u64::MAX }
    }
}

/// The facts that a filter looks at.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub listener: Option<ListenerId>,
    pub route: Option<RouteId>,
    pub backend: Option<BackendId>,
    pub endpoint: Option<EndpointId>,
    pub client: IpAddr,
    pub server_name: Option<&'a str>,
    pub state: &'a str,
    pub age: u64,
    pub idle: u64,
    pub bytes: u64,
}

impl Filter {
    pub fn admits(&self, facts: &Facts<'_>) -> bool {
        fn same<T: PartialEq>(asked: Option<T>, has: Option<T>) -> bool {
            asked.is_none() || asked == has
        }
        same(self.listener, facts.listener)
            && same(self.route, facts.route)
            && same(self.backend, facts.backend)
            && same(self.server_name.as_deref(), facts.server_name)
            && same(self.state.as_deref(), Some(facts.state))
            && self.age.has(facts.age)
            && self.idle.has(facts.idle)
            && self.bytes.has(facts.bytes)
            && self
                .endpoints
                .as_ref()
                .is_none_or(|of| facts.endpoint.is_some_and(|endpoint| of.contains(&endpoint)))
            && self.client.is_none_or(|net| net.contains(&facts.client.to_canonical()))
    }

    /// Whether everything matches.
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts<'_> = Facts {
        listener: Some(ListenerId(1)),
        route: Some(RouteId(2)),
        backend: None,
        endpoint: Some(EndpointId(4)),
        client: IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3)),
        server_name: Some("db.example.com"),
        state: "relaying",
        age: 9_000_000,
        idle: 2_000_000,
        bytes: 100,
    };

    #[test]
    fn each_field_that_is_set_must_match() {
        let net = |text: &str| Some(text.parse::<IpNet>().expect("a prefix"));
        let admitted = [
            Filter::default(),
            Filter { listener: Some(ListenerId(1)), ..Filter::default() },
            Filter { endpoints: Some(vec![EndpointId(9), EndpointId(4)]), ..Filter::default() },
            Filter { client: net("10.1.0.0/16"), route: Some(RouteId(2)), ..Filter::default() },
            Filter { server_name: Some("db.example.com".into()), ..Filter::default() },
            Filter { state: Some("relaying".into()), ..Filter::default() },
            Filter { age: Span { least: 9_000_000, most: 9_000_000 }, ..Filter::default() },
        ];
        let left_out = [
            Filter { listener: Some(ListenerId(2)), ..Filter::default() },
            Filter { backend: Some(BackendId(0)), ..Filter::default() },
            Filter { endpoints: Some(Vec::new()), ..Filter::default() },
            Filter { client: net("10.2.0.0/16"), route: Some(RouteId(2)), ..Filter::default() },
            Filter { server_name: Some("example.com".into()), ..Filter::default() },
            Filter { state: Some("half_closed".into()), ..Filter::default() },
            Filter { age: Span { least: 9_000_001, ..Span::default() }, ..Filter::default() },
            Filter { idle: Span { most: 1_999_999, ..Span::default() }, ..Filter::default() },
            Filter { bytes: Span { least: 101, most: 200 }, ..Filter::default() },
        ];
        assert!(admitted.iter().all(|filter| filter.admits(&FACTS)));
        assert!(!left_out.iter().any(|filter| filter.admits(&FACTS)));
        assert!(admitted[0].is_open() && !admitted[1].is_open());
    }

    #[test]
    fn a_mapped_client_is_in_the_ranges_of_its_ipv4_address() {
        let client = "::ffff:10.1.2.3".parse().expect("an address");
        let filter = Filter { client: "10.1.2.3/32".parse().ok(), ..Filter::default() };
        assert!(filter.admits(&Facts { client, ..FACTS }));
    }
}
