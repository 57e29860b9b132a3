//! Scenarios of listeners that read a ClientHello.

use config_sync::table::routing::Timeouts;
use ringway::stats::records::CloseReason as R;

use crate::sim::scenarios::play::Begins::{EmptyRecord, Garbage, Hello, Offer, Plain};
use crate::sim::scenarios::play::Step::{
    Connect, Ends, Fin, Gets, GetsHello, Logs, LogsReason, Reset, Sends, SendsHello, Served,
};
use crate::sim::scenarios::play::{Peer, Scenario};
use crate::sim::scenarios::setup::{NONE, Setup, TLS};

const C: Peer = Peer::Client(0);
const S: Peer = Peer::Server(0);

/// Clients need not send a ClientHello.
const FALLS_BACK: Setup = Setup { falls_back: true, ..TLS };

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "TLS by its exact name",
        setup: TLS,
        steps: &[
            Connect(0, Hello(Some("A.test"))),
            SendsHello(0),
            Sends(C, 100),
            Served(0),
            GetsHello(0),
            Gets(S, 100),
            Sends(S, 2_000),
            Gets(C, 2_000),
            Fin(C),
            Ends(S),
            Fin(S),
            Ends(C),
            Logs(R::ClientFin),
        ],
    },
    Scenario {
        name: "TLS by a wildcard, in pieces",
        setup: TLS,
        steps: &[
            Connect(0, Hello(Some("x.y.b.test"))),
            Sends(C, 3),
            Sends(C, 50),
            Sends(C, 1_000),
            Served(0),
            GetsHello(0),
            Reset(S),
            Ends(C),
            LogsReason(R::EndpointReset),
        ],
    },
    Scenario {
        name: "TLS with a name that nobody has",
        setup: TLS,
        steps: &[
            Connect(0, Hello(Some("b.test"))),
            SendsHello(0),
            Ends(C),
            Logs(R::UnknownServerName),
            Connect(1, Hello(None)),
            SendsHello(1),
            Ends(Peer::Client(1)),
            Logs(R::UnknownServerName),
        ],
    },
    Scenario {
        name: "no TLS at all",
        setup: TLS,
        steps: &[Connect(0, Garbage), SendsHello(0), Ends(C), Logs(R::HelloInvalid)],
    },
    Scenario {
        name: "no TLS at all, and a backend for that",
        setup: FALLS_BACK,
        steps: &[
            Connect(0, Garbage),
            SendsHello(0),
            Sends(C, 70_000),
            Served(0),
            GetsHello(0),
            Gets(S, 70_000),
            Sends(S, 2_000),
            Gets(C, 2_000),
            Fin(C),
            Ends(S),
            Fin(S),
            Ends(C),
            Logs(R::ClientFin),
        ],
    },
    Scenario {
        name: "a client that waits for the server's first byte, where clients may be silent",
        setup: Setup { timeouts: Timeouts { hello: 100, ..NONE }, ..FALLS_BACK },
        steps: &[
            Connect(0, Plain),
            Served(0),
            Sends(S, 21),
            Gets(C, 21),
            Sends(C, 30),
            Gets(S, 30),
            Fin(C),
            Ends(S),
            Fin(S),
            Ends(C),
            Logs(R::ClientFin),
        ],
    },
    Scenario {
        name: "TLS where clients need not speak TLS",
        setup: FALLS_BACK,
        steps: &[
            Connect(0, Hello(Some("a.test"))),
            Sends(C, 1),
            SendsHello(0),
            Served(0),
            GetsHello(0),
            Reset(S),
            Ends(C),
            LogsReason(R::EndpointReset),
            Connect(1, Hello(Some("none.test"))),
            SendsHello(1),
            Ends(Peer::Client(1)),
            Logs(R::UnknownServerName),
        ],
    },
    Scenario {
        name: "half a ClientHello, where clients may be silent",
        setup: Setup { timeouts: Timeouts { hello: 100, ..NONE }, ..FALLS_BACK },
        steps: &[Connect(0, Hello(Some("a.test"))), Sends(C, 6), Ends(C), Logs(R::HelloTimeout)],
    },
    Scenario {
        name: "an empty TLS record, where clients need not speak TLS",
        setup: FALLS_BACK,
        steps: &[Connect(0, EmptyRecord), SendsHello(0), Ends(C), Logs(R::HelloInvalid)],
    },
    Scenario {
        name: "a client that is denied, where clients need not speak TLS",
        setup: Setup { denied: true, ..FALLS_BACK },
        steps: &[Connect(0, Garbage), Ends(C), Logs(R::SourceDenied)],
    },
    Scenario {
        name: "routes by protocol",
        setup: Setup { alpn: Some("acme-tls/1"), ..TLS },
        steps: &[
            Connect(0, Offer("acme-tls/1")),
            SendsHello(0),
            Ends(C),
            Logs(R::NoEndpoint),
            Connect(1, Offer("h2")),
            SendsHello(1),
            Served(1),
            GetsHello(1),
            Reset(Peer::Server(1)),
            Ends(Peer::Client(1)),
            LogsReason(R::EndpointReset),
            Connect(2, Hello(Some("a.test"))),
            SendsHello(2),
            Served(2),
            GetsHello(2),
            Reset(Peer::Server(2)),
            Ends(Peer::Client(2)),
            LogsReason(R::EndpointReset),
        ],
    },
    Scenario {
        name: "half a ClientHello",
        setup: Setup { timeouts: Timeouts { hello: 100, ..NONE }, ..TLS },
        steps: &[Connect(0, Hello(Some("a.test"))), Sends(C, 60), Ends(C), Logs(R::HelloTimeout)],
    },
    Scenario {
        name: "a client that leaves before it says anything",
        setup: TLS,
        steps: &[Connect(0, Plain), Fin(C), Ends(C), Logs(R::ClientGone)],
    },
];
