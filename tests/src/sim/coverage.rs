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
}

impl State {
    pub const SESSION: [Self; 5] =
        [Self::Opening, Self::Connecting, Self::Relaying, Self::HalfClosed, Self::Closing];
    pub const UPSTREAM: [Self; 3] = [Self::Live, Self::Resting, Self::Ending];
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
        let all = REACHABLE.iter().flat_map(|(fault, states)| states.iter().map(|s| (*s, *fault)));
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

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let states = State::SESSION.iter().chain(&State::UPSTREAM);
        write!(f, "{:<25}", "fault \\ state")?;
        for state in states.clone() {
            write!(f, "{:>12}", format!("{state:?}"))?;
        }
        writeln!(f)?;
        for (fault, reachable) in REACHABLE {
            write!(f, "{:<25}", format!("{fault:?}"))?;
            for state in states.clone() {
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
