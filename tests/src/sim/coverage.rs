//! Which faults have hit which states, over all seeds.

use std::collections::BTreeMap;
use std::fmt;

use ringway::stats::records::Demotion;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Accepted; what the client wants is not known yet.
    Opening,
    Connecting,
    Relaying,
    /// A FIN was passed on one way.
    HalfClosed,
    /// `Close` was asked for; completions are still to come.
    Closing,
    /// An upstream socket that serves a flow.
    Live,
    /// An upstream socket after the end of its flow.
    Resting,
    /// `CloseUpstream` was asked for.
    Ending,
    /// An upgrade whose new process is not ready yet.
    Starting,
    /// The new process gets to know flows, which go on.
    Announcing,
    /// Flows come to a halt.
    Settling,
    /// The new process is told that all is its own, and has not been heard to agree.
    Deciding,
    /// Sessions go to the new process.
    Parting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    ShortRead,
    ShortWrite,
    WouldBlock,
    NoPipe,
    /// A stream that could not begin.
    NoStream,
    /// What came after a stream's cancellation was asked for.
    LateBytes,
    /// Bytes came that were fewer than the mark.
    BelowMark,
    Stalled,
    ClientReset,
    EndpointReset,
    ClientTimedOut,
    EndpointTimedOut,
    ConnectRefused,
    ConnectSilent,
    ConnectLate,
    /// An endpoint took its header and ended, and the session goes on to another.
    HeaderRefused,
    NoPorts,
    NoFiles,
    NoMemory,
    LateEvent,
    DeadEvent,
    TableSwap,
    TimeJump,
    Drain,
    Stop,
    /// An operator has everything closed.
    Kill,
    SlabFull,
    AcceptStopped,
    ReceiveStopped,
    /// A receive that ended with an error of this machine's.
    ReceiveFailed,
    NoBuffer,
    Truncated,
    SendRefused,
    SendFailed,
    OpenFailed,
    LateReply,
    /// The kernel began to forward a flow, could not begin, or ended it.
    Promoted,
    NotPromoted,
    /// The kernel forwarded the flow before the flow settled, and goes on with it.
    PromotedAgain,
    Demoted(Demotion),
    /// A process was killed during an upgrade.
    OldDied,
    NewDied,
    /// The new process gave the upgrade up, did nothing for long, or was not heard in time.
    NewRefused,
    NewHung,
    TimedOut,
    /// The new process hands over before all sessions have come.
    AnotherUpgrade,
}

impl State {
    pub const SESSION: [Self; 5] =
        [Self::Opening, Self::Connecting, Self::Relaying, Self::HalfClosed, Self::Closing];
    pub const UPSTREAM: [Self; 3] = [Self::Live, Self::Resting, Self::Ending];
    pub const UPGRADE: [Self; 5] =
        [Self::Starting, Self::Announcing, Self::Settling, Self::Deciding, Self::Parting];
}

#[derive(Clone, Debug, Default)]
pub struct Coverage(BTreeMap<(Fault, State), u64>);

impl Coverage {
    pub fn hit(&mut self, state: State, fault: Fault) {
        self.add(state, fault, 1);
    }

    pub fn add(&mut self, state: State, fault: Fault, times: u64) {
        *self.0.entry((fault, state)).or_default() += times;
    }

    pub fn count(&self, state: State, fault: Fault) -> u64 {
        self.0.get(&(fault, state)).copied().unwrap_or(0)
    }

    pub fn merge(&mut self, other: &Self) {
        for (pair, n) in &other.0 {
            *self.0.entry(*pair).or_default() += n;
        }
    }

    /// Pairs that can be reached and were not.
    pub fn missing(&self) -> Vec<(State, Fault)> {
        let all = REACHABLE.iter().chain(REACHABLE_IN_UPGRADES);
        let all = all.flat_map(|(fault, states)| states.iter().map(|s| (*s, *fault)));
        all.filter(|(state, fault)| self.count(*state, *fault) == 0).collect()
    }
}

/// The pairs that can be reached. What is absent can't be: a session that is opening has no
/// endpoint, one that is closing moves no byte, a socket that is ending is not sent to.
const REACHABLE: &[(Fault, &[State])] = {
    use Fault as F;
    use State::{Closing, Connecting, Ending, HalfClosed, Live, Opening, Relaying, Resting};
    const MOVING: &[State] = &[Relaying, HalfClosed];
    const SESSION: &[State] = &State::SESSION;
    const ANY: &[State] =
        &[Opening, Connecting, Relaying, HalfClosed, Closing, Live, Resting, Ending];
    &[
        (F::ShortRead, MOVING),
        (F::ShortWrite, MOVING),
        (F::WouldBlock, &[Opening, Connecting, Relaying, HalfClosed, Closing]),
        (F::NoPipe, MOVING),
        (F::NoStream, MOVING),
        (F::LateBytes, MOVING),
        (F::BelowMark, &[Opening, Relaying, HalfClosed]),
        (F::Stalled, MOVING),
        (F::ClientReset, SESSION),
        (F::EndpointReset, &[Relaying, HalfClosed, Closing]),
        (F::ClientTimedOut, SESSION),
        (F::EndpointTimedOut, &[Relaying, HalfClosed, Closing]),
        (F::ConnectRefused, &[Connecting]),
        (F::ConnectSilent, &[Connecting]),
        (F::ConnectLate, &[Connecting]),
        (F::HeaderRefused, &[Relaying]),
        (F::NoPorts, &[Connecting]),
        (F::NoFiles, &[Connecting]),
        (F::NoMemory, &[Connecting]),
        (F::LateEvent, SESSION),
        (F::DeadEvent, ANY),
        (F::TableSwap, ANY),
        (F::TimeJump, ANY),
        (F::Drain, ANY),
        (F::Stop, ANY),
        (F::Kill, ANY),
        (F::SlabFull, SESSION),
        (F::AcceptStopped, SESSION),
        (F::ReceiveStopped, &[Live, Resting]),
        (F::ReceiveFailed, &[Live, Resting]),
        (F::NoBuffer, &[Relaying, HalfClosed, Live, Resting]),
        (F::Truncated, &[Live, Resting]),
        (F::SendRefused, &[Live]),
        (F::SendFailed, &[Live]),
        (F::OpenFailed, &[Live]),
        (F::LateReply, &[Resting, Ending]),
        (F::Promoted, &[Live]),
        (F::NotPromoted, &[Live]),
        (F::PromotedAgain, &[Live]),
        (F::Demoted(Demotion::Configuration), &[Live]),
        (F::Demoted(Demotion::Draining), &[Live]),
        (F::Demoted(Demotion::EndpointGone), &[Live]),
        (F::Demoted(Demotion::EndpointRefused), &[Live]),
        (F::Demoted(Demotion::OneSided), &[Live]),
        (F::Demoted(Demotion::Upgrade), &[Live]),
        (F::Demoted(Demotion::Ended), &[Live]),
    ]
};

/// The same of upgrades.
const REACHABLE_IN_UPGRADES: &[(Fault, &[State])] = {
    use Fault as F;
    use State::{Announcing, Deciding, Parting, Settling, Starting};
    const ANY: &[State] = &State::UPGRADE;
    &[
        (F::OldDied, ANY),
        (F::NewDied, ANY),
        (F::NewRefused, &[Starting, Announcing, Settling, Deciding]),
        (F::NewHung, ANY),
        (F::TimedOut, &[Starting, Announcing, Deciding, Parting]),
        (F::AnotherUpgrade, &[Parting]),
    ]
};

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.table(f, REACHABLE, &[&State::SESSION[..], &State::UPSTREAM].concat())?;
        self.table(f, REACHABLE_IN_UPGRADES, &State::UPGRADE)
    }
}

impl Coverage {
    fn table(
        &self,
        f: &mut fmt::Formatter<'_>,
        reachable: &[(Fault, &[State])],
        states: &[State],
    ) -> fmt::Result {
        write!(f, "{:<25}", "fault \\ state")?;
        for state in states {
            write!(f, "{:>12}", format!("{state:?}"))?;
        }
        writeln!(f)?;
        for (fault, reachable) in reachable {
            write!(f, "{:<25}", format!("{fault:?}"))?;
            for state in states {
                let n = self.count(*state, *fault);
                if n == 0 && !reachable.contains(state) {
                    write!(f, "{:>12}", "-")?;
                } else {
                    write!(f, "{n:>12}")?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
