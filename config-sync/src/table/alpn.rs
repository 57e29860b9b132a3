//! Routes by the application protocols that clients offer (ALPN, RFC 7301).

use super::hosts::Hosts;

/// The routes of a listener of which some ask for protocols.
#[derive(Clone, Debug)]
pub struct ByAlpn {
    /// Indices into `choices`.
    pub hosts: Hosts<usize>,
    pub choices: Vec<AlpnChoice>,
}

/// The routes of one pattern of server names. The values are those of `Listener::routes`.
#[derive(Clone, Debug, Default)]
pub struct AlpnChoice {
    pub by_protocol: Vec<(Box<[u8]>, usize)>,
    /// For clients that offer none of these protocols.
    pub otherwise: Option<usize>,
}

impl ByAlpn {
    /// The values for a server name and the protocols that a client offers, best first: those of
    /// the most specific pattern with a route for these protocols or for all others. The client's
    /// order of protocols decides among protocols.
    pub fn values<'a>(
        &'a self,
        name: Option<&'a str>,
        offered: impl Iterator<Item = &'a [u8]> + Clone + 'a,
    ) -> impl Iterator<Item = usize> + 'a {
        let mut choices = self.hosts.all(name).map(|at| &self.choices[at]);
        let choice = choices.find(|choice| choice.values(offered.clone()).next().is_some());
        choice.into_iter().flat_map(move |choice| choice.values(offered.clone()))
    }
}

impl AlpnChoice {
    fn values<'a>(
        &'a self,
        offered: impl Iterator<Item = &'a [u8]> + 'a,
    ) -> impl Iterator<Item = usize> + 'a {
        let of = |wanted: &[u8]| {
            self.by_protocol.iter().find(|(name, _)| **name == *wanted).map(|(_, value)| *value)
        };
        offered.filter_map(of).chain(self.otherwise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pattern_with_a_route_decides_and_the_client_orders_protocols() {
        let mut by_alpn = ByAlpn { hosts: Hosts::new([1, 2, 3, 4]), choices: Vec::new() };
        let mut add = |pattern, by_protocol: &[(&str, usize)], otherwise| {
            by_alpn.hosts.insert(pattern, by_alpn.choices.len());
            let by_protocol =
                by_protocol.iter().map(|(name, value)| (name.as_bytes().into(), *value)).collect();
            by_alpn.choices.push(AlpnChoice { by_protocol, otherwise });
        };
        add(Some("a.test"), &[("acme", 1), ("h2", 2)], None);
        add(Some("*.test"), &[("h2", 3)], Some(4));
        add(None, &[], Some(5));
        let values = |name, offered: &[&str]| {
            let offered = offered.iter().map(|name| name.as_bytes());
            by_alpn.values(name, offered).collect::<Vec<_>>()
        };
        assert_eq!(values(Some("a.test"), &["acme"]), [1]);
        assert_eq!(values(Some("a.test"), &["x", "h2", "acme"]), [2, 1]);
        assert_eq!(values(Some("a.test"), &["H2"]), [4]);
        assert_eq!(values(Some("b.test"), &[]), [4]);
        assert_eq!(values(Some("b.test"), &["h2"]), [3, 4]);
        assert_eq!(values(None, &["h2"]), [5]);
    }
}
