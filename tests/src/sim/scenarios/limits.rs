//! Limits: who waits for one, and what becomes of those who wait.

use config_sync::table::routing::Timeouts;
use ringway::stats::records::CloseReason as R;

use super::play::Begins::Plain;
use super::play::Step::{Connect, Ends, Fin, Gets, Logs, Reset, Sends, Served};
use super::play::{Peer, Scenario, Step};
use super::setup::{NONE, Setup, TCP};

const C: Peer = Peer::Client(0);
const S: Peer = Peer::Server(0);

/// A second's bytes go at once, and then a tenth of that in a tenth of a second.
const SLOW: Setup = Setup { bytes: 10_000, ..TCP };

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "bytes that wait for a limit are no silence",
        setup: Setup { timeouts: Timeouts { idle: 40, ..NONE }, ..SLOW },
        steps: &[
            Connect(0, Plain),
            Sends(C, 13_000),
            Served(0),
            Gets(S, 13_000),
            Ends(C),
            Ends(S),
            Logs(R::IdleTimeout),
        ],
    },
    Scenario {
        name: "bytes that wait for a limit after a half-close are no silence",
        setup: Setup { timeouts: Timeouts { half_close: 40, ..NONE }, ..SLOW },
        steps: &[
            Connect(0, Plain),
            Served(0),
            Sends(S, 20_000),
            Fin(S),
            Gets(C, 10_000),
            Fin(C),
            Ends(S),
            Ends(C),
            Logs(R::ClientFin),
        ],
    },
    Scenario {
        name: "nobody has stalled while the last bytes wait for a limit",
        setup: Setup { timeouts: Timeouts { write_stall: 40, ..NONE }, ..SLOW },
        steps: &[
            Connect(0, Plain),
            Served(0),
            Sends(S, 13_000),
            Gets(C, 10_000),
            Reset(S),
            Ends(C),
            Logs(R::EndpointReset),
        ],
    },
    Scenario {
        name: "one session more than a listener may have waits for its place",
        setup: Setup { delays_above: 1, ..TCP },
        steps: &[
            Connect(0, Plain),
            Served(0),
            Connect(1, Plain),
            Sends(Peer::Client(1), 5),
            Sends(C, 3),
            Gets(S, 3),
            Fin(C),
            Ends(S),
            Fin(S),
            Ends(C),
            Logs(R::ClientFin),
            Served(1),
            Gets(Peer::Server(1), 5),
            Fin(Peer::Server(1)),
            Ends(Peer::Client(1)),
            Fin(Peer::Client(1)),
            Ends(Peer::Server(1)),
            Logs(R::EndpointFin),
        ],
    },
    Scenario {
        name: "one session more than a backend may have, and one more after an end",
        setup: Setup { backend_sessions: 1, ..TCP },
        steps: &place_for_one(R::Limit),
    },
    Scenario {
        name: "one session more than a source may have, and one more after an end",
        setup: Setup { source_sessions: 1, ..TCP },
        steps: &place_for_one(R::SourceLimit),
    },
    Scenario {
        name: "one session more than a source may have of a route, and one more after an end",
        setup: Setup { route_source_sessions: 1, ..TCP },
        steps: &place_for_one(R::SourceLimit),
    },
];

/// A second session is refused for this reason, and a third has the place of the first.
const fn place_for_one(reason: R) -> [Step; 17] {
    [
        Connect(0, Plain),
        Served(0),
        Connect(1, Plain),
        Ends(Peer::Client(1)),
        Logs(reason),
        Fin(C),
        Ends(S),
        Fin(S),
        Ends(C),
        Logs(R::ClientFin),
        Connect(2, Plain),
        Served(2),
        Fin(Peer::Client(2)),
        Ends(Peer::Server(2)),
        Fin(Peer::Server(2)),
        Ends(Peer::Client(2)),
        Logs(R::ClientFin),
    ]
}
