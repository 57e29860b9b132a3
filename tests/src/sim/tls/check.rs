//! What peers have heard, against what was said, and the log.

use ringway::contract::Side;
use ringway::stats::records::CloseReason;

use crate::sim::tls::case::Fault;
use crate::sim::tls::life::Life;

impl Life {
    /// What each peer has heard is what the other has said, from its beginning; all of it, unless
    /// it was told that something is missing.
    pub(super) fn check(&self) -> CloseReason {
        let case = self.case;
        let record = self.record.as_ref().expect("a session is logged when it is closed");
        let reason = record.reason.expect("every close has a reason");
        for (hearer, speaker) in [(0, 1), (1, 0)] {
            let (heard, said) = (&self.peers[hearer].heard, &self.peers[speaker].to_send);
            // PostgreSQL's clients are told why they are refused.
            let refused = hearer == 0 && record.connect.is_none() && heard.first() == Some(&b'E');
            assert!(
                said.starts_with(heard) || refused,
                "{case:?}: bytes were lost, added or changed"
            );
            let peer = &self.peers[hearer];
            let clean = !self.wires[hearer].was_reset && (peer.heard_end || !peer.speaks_tls());
            let whole = heard.len() == said.len();
            let told = record.connect.is_some() && clean && peer.error.is_none();
            let cut = case.fin
                && matches!(case.fault, Fault::Truncation(side) if side as usize == speaker);
            assert!(!told || whole || cut, "{case:?} {reason:?}: a part was taken for the whole");
        }
        // An endpoint that was replaced had nothing to say yet that counts.
        let counts = |(side, _): &(Side, usize)| {
            record.connect.is_some() && (*side == Side::Client || !self.replaced)
        };
        if let Some((side, said)) = self.said.filter(counts) {
            let heard = self.peers[side.other() as usize].heard.len();
            assert_eq!(heard, said, "{case:?} {reason:?}: what was said before an end was lost");
            let given = if side == Side::Client { record.bytes_up } else { record.bytes_down };
            assert!(case.passes_through() || given == said as u64, "{case:?}: bytes in the log");
        }
        if case.client && record.connect.is_some() {
            let facts = record.tls.as_ref().expect("the client's handshake is over");
            assert_eq!(facts.version, if case.old { "TLSv1.2" } else { "TLSv1.3" });
        }
        let failures = [
            CloseReason::ClientTlsFailed,
            CloseReason::EndpointTlsFailed,
            CloseReason::EndpointStarttlsFailed,
            CloseReason::HelloInvalid,
        ];
        if failures.contains(&reason) {
            assert!(record.detail.is_some(), "{case:?}: {reason:?} without its cause");
        }
        match case.fault {
            Fault::Words(Side::Client) => {
                // Behind the answer it is a bad hello.
                let expected = [CloseReason::StarttlsEarly, CloseReason::HelloInvalid];
                assert!(expected.contains(&reason), "{case:?}: {reason:?}");
            }
            Fault::Words(Side::Endpoint) => {
                let failed = reason == CloseReason::EndpointStarttlsFailed;
                assert!(failed != case.spare, "{case:?}: {reason:?}");
            }
            Fault::Silence => assert_eq!(self.replaced, case.spare, "{case:?}: {reason:?}"),
            _ => {}
        }
        if case.fault == Fault::None || self.replaced {
            let clean = [CloseReason::ClientFin, CloseReason::EndpointFin];
            assert!(clean.contains(&reason), "{case:?}: {reason:?}");
            let given = [record.bytes_up, record.bytes_down];
            for (peer, given) in self.peers.iter().zip(given) {
                // What passes through is counted as it is: encrypted.
                let through = case.passes_through();
                let said = peer.to_send.len() as u64;
                assert!(said == given || (through && said < given), "{case:?}: bytes in the log");
                assert!(peer.error.is_none(), "{case:?}: {:?}", peer.error);
            }
        }
        reason
    }
}
