//! One place and one colour for each peer, the same in every table and plot.

use plotters::style::RGBColor;

use crate::results::Run;

/// Colours that any colour vision tells apart, by Okabe and Ito. Greys are for what is no product.
const PEERS: [(&str, RGBColor); 13] = [
    ("ringway", RGBColor(213, 94, 0)),
    ("ringway-fast-path", RGBColor(140, 50, 0)),
    ("ringway-without-log", RGBColor(200, 150, 110)),
    ("haproxy-splice", RGBColor(0, 114, 178)),
    ("haproxy-copy", RGBColor(86, 180, 233)),
    ("nginx", RGBColor(0, 158, 115)),
    ("envoy", RGBColor(204, 121, 167)),
    ("sozu", RGBColor(230, 159, 0)),
    ("dnsdist", RGBColor(240, 228, 66)),
    ("epoll-splice", RGBColor(90, 90, 90)),
    ("monoio", RGBColor(130, 130, 130)),
    ("dnat", RGBColor(170, 170, 170)),
    ("direct", RGBColor(205, 205, 205)),
];

/// The lines of plots that are no comparison of peers.
const LINES: [(&str, RGBColor); 6] = [
    ("source-hash", RGBColor(213, 94, 0)),
    ("one goes", RGBColor(213, 94, 0)),
    ("one comes", RGBColor(0, 114, 178)),
    ("round-robin", RGBColor(0, 114, 178)),
    ("its own clients", RGBColor(130, 130, 130)),
    ("plain hash", RGBColor(0, 158, 115)),
];

/// The peers that have runs, in the order of the table; those it does not know come last.
pub fn peers(runs: &[&Run]) -> Vec<String> {
    let mut names: Vec<&str> = runs.iter().map(|run| run.peer.as_str()).collect();
    names.sort_unstable_by_key(|name| (place(name).unwrap_or(PEERS.len()), *name));
    names.dedup();
    names.into_iter().map(str::to_owned).collect()
}

pub fn color(peer: &str) -> RGBColor {
    let all = PEERS.iter().chain(&LINES);
    let own = all.into_iter().find(|(name, _)| *name == peer);
    own.map_or(RGBColor(0, 0, 0), |(_, color)| *color)
}

fn place(peer: &str) -> Option<usize> {
    PEERS.iter().position(|(name, _)| *name == peer)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::ValueEnum as _;

    use super::*;
    use crate::peers::Peer;
    use crate::results::sample;

    #[test]
    fn every_peer_has_a_place_and_a_colour_of_its_own() {
        let all: Vec<_> = Peer::value_variants().iter().map(ToString::to_string).collect();
        assert_eq!(all, PEERS.map(|(name, _)| name));
        let colors: BTreeSet<_> = PEERS.iter().map(|(_, of)| (of.0, of.1, of.2)).collect();
        assert_eq!(colors.len(), PEERS.len());
    }

    #[test]
    fn the_order_is_that_of_the_table_whoever_ran_first() {
        let peers = [("unknown", 1.0), ("envoy", 1.0), ("nginx", 1.0), ("ringway", 1.0)];
        let results = sample("tcp-connect", 2, &peers);
        let runs: Vec<_> = results.runs.iter().collect();
        assert_eq!(super::peers(&runs), ["ringway", "nginx", "envoy", "unknown"]);
    }
}
