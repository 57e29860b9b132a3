//! Datagrams and flows.

use ringway::stats::records::CloseReason as R;

use crate::sim::scenarios::play::Step::{
    Answers, Asks, Hears, IsRefused, Logs, LogsReason, Returns,
};
use crate::sim::scenarios::play::{Peer, Scenario};
use crate::sim::scenarios::setup::{SHARED, Serves, Setup, UDP};

const C: Peer = Peer::Client(0);
const S: Peer = Peer::Server(0);

/// Steps of a scenario that begins with turns. The turn `[n, 10, 20]` is a datagram of client `n`,
/// and the answer that it hears.
macro_rules! turns {
    ($([$client:expr, $asked:expr, $answered:expr]),*; $($step:expr),*) => {
        &[
            $(
                Asks($client, $asked),
                Hears(Peer::Server($client), $asked),
                Answers($client, $answered),
                Hears(Peer::Client($client), $answered),
            )*
            $($step),*
        ]
    };
}

/// Scenarios in which the kernel forwards flows, if one datagram each way promotes a flow. The
/// least datagrams that go through the kernel.
pub const IN_KERNEL: &[(&str, u64)] = &[
    ("several datagrams each way, while the endpoint leaves the table and returns", 2),
    ("two clients of one server go on, in turns", 6),
    ("the first backend's port is closed, the route's second backend hears the flow", 1),
];

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a query and its answer",
        setup: Setup { responses: 1, ..UDP },
        steps: &[Asks(0, 40), Hears(S, 40), Answers(0, 512), Hears(C, 512), Logs(R::FlowAnswered)],
    },
    Scenario {
        name: "two queries from one socket",
        setup: Setup { responses: 1, ..UDP },
        steps: &[
            Asks(0, 40),
            Asks(0, 41),
            Hears(S, 40),
            Hears(S, 41),
            Answers(0, 100),
            Answers(0, 200),
            Hears(C, 100),
            Hears(C, 200),
            Logs(R::FlowAnswered),
        ],
    },
    Scenario {
        name: "two clients of one server, and silence",
        setup: Setup { flow_timeout: 1_000, ..UDP },
        steps: &[
            Asks(0, 10),
            Hears(S, 10),
            Asks(1, 20),
            Hears(Peer::Server(1), 20),
            Answers(0, 1_200),
            Hears(C, 1_200),
            Answers(1, 0),
            Hears(Peer::Client(1), 0),
            LogsReason(R::FlowTimeout),
            LogsReason(R::FlowTimeout),
        ],
    },
    Scenario {
        name: "two clients of one server through a shared socket",
        setup: Setup { responses: 2, ..SHARED },
        steps: &[
            Asks(0, 10),
            Hears(S, 10),
            Asks(1, 20),
            Hears(Peer::Server(1), 20),
            Answers(1, 1_200),
            Hears(Peer::Client(1), 1_200),
            Answers(0, 0),
            Hears(C, 0),
            Answers(0, 7),
            Hears(C, 7),
            Logs(R::FlowAnswered),
            Answers(1, 8),
            Hears(Peer::Client(1), 8),
            Logs(R::FlowAnswered),
        ],
    },
    Scenario {
        name: "one flow more than a shared socket has addresses",
        setup: Setup { flow_timeout: 1_000, ..SHARED },
        steps: &[
            Asks(0, 10),
            Hears(S, 10),
            Asks(1, 20),
            Hears(Peer::Server(1), 20),
            Asks(2, 30),
            Logs(R::LocalLimit),
            Answers(0, 40),
            Hears(C, 40),
            LogsReason(R::FlowTimeout),
            LogsReason(R::FlowTimeout),
        ],
    },
    Scenario {
        name: "several datagrams each way, while the endpoint leaves the table and returns",
        setup: Setup { flow_timeout: 1_000, ..UDP },
        steps: turns![
            [0, 10, 20], [0, 11, 0];
            Asks(0, 12),
            Hears(S, 12),
            Returns(0),
            Answers(0, 22),
            Hears(C, 22),
            Asks(0, 1_200),
            Hears(S, 1_200),
            Answers(0, 1_300),
            Hears(C, 1_300),
            Logs(R::FlowTimeout)
        ],
    },
    Scenario {
        name: "two clients of one server go on, in turns",
        setup: Setup { flow_timeout: 1_000, ..UDP },
        steps: turns![
            [0, 10, 20], [1, 11, 21], [0, 0, 1_200], [1, 13, 1], [0, 1_200, 0], [1, 15, 300];
            LogsReason(R::FlowTimeout),
            LogsReason(R::FlowTimeout)
        ],
    },
    Scenario {
        name: "a datagram of a client that the listener denies",
        setup: Setup { denied: true, ..UDP },
        steps: &[Asks(0, 10), Logs(R::SourceDenied)],
    },
    Scenario {
        name: "a datagram for a backend without endpoints",
        setup: Setup { endpoints: &[], ..UDP },
        steps: &[Asks(0, 10), Logs(R::NoEndpoint)],
    },
    Scenario {
        name: "the first backend's port is closed, the route's second backend hears the flow",
        setup: Setup {
            endpoints: &[Serves::Refuses, Serves::Accepts],
            passes_on: true,
            flow_timeout: 1_000,
            ..UDP
        },
        steps: &[
            Asks(0, 10),
            IsRefused(0, 1),
            Asks(0, 20),
            Hears(S, 20),
            Answers(0, 30),
            Hears(C, 30),
            Asks(0, 40),
            Hears(S, 40),
            Answers(0, 50),
            Hears(C, 50),
            Logs(R::FlowTimeout),
        ],
    },
    Scenario {
        name: "the ports of all backends of the route are closed",
        setup: Setup {
            endpoints: &[Serves::Refuses, Serves::Refuses],
            passes_on: true,
            flow_timeout: 1_000,
            ..UDP
        },
        steps: &[
            Asks(0, 10),
            IsRefused(0, 1),
            Asks(0, 20),
            IsRefused(1, 1),
            Asks(0, 30),
            IsRefused(1, 2),
            Logs(R::FlowTimeout),
        ],
    },
];
