//! Judges the timeouts of a configuration: who is the first to end a silent session, and who does
//! so without a word.
//!
//! A load balancer of a cloud, or a firewall, forgets a connection that was silent for a while. It
//! tells neither side: the next packet is dropped or answered with a reset. Keepalive probes that
//! come more often keep the connection in its table.

use config_sync::model::config::Config;
use config_sync::model::listener::Listener;
use config_sync::table::routing::Protocol;

use super::{Finding, State};

/// The times after which load balancers forget a silent TCP connection, in seconds, by their
/// vendors' documentation of the default values (2026): Azure Load Balancer, 4 minutes; AWS Network
/// Load Balancer, 350 seconds; Google Cloud's passthrough Network Load Balancer, 10 minutes.
const FORGET_TCP: [(&str, u32); 3] =
    [("Azure", 240), ("AWS (NLB)", 350), ("Google Cloud (passthrough)", 600)];

/// The shortest such time for UDP: AWS Network Load Balancer, 120 seconds.
const FORGETS_UDP: (&str, u32) = ("AWS (NLB)", 120);

pub fn of(config: &Config) -> Vec<Finding> {
    let mut all: Vec<_> = config.listeners.iter().filter_map(listener).collect();
    let used = config.backends.iter().filter(|backend| !backend.endpoints.is_empty());
    all.extend(used.filter_map(|backend| {
        silence(&format!("backend {}", backend.name.value), backend.options.keepalive)
    }));
    all
}

fn listener(listener: &Listener) -> Option<Finding> {
    let name = &listener.name.value;
    if listener.protocol == Protocol::Udp {
        let (who, forgets) = FORGETS_UDP;
        let flow = listener.flow_timeout / 1_000;
        let longer = flow > forgets;
        let found = format!(
            "listener {name}: a silent flow ends after {flow} s, and a load balancer in front may \
             forget it first ({who}: {forgets} s): later replies don't reach the client"
        );
        return longer.then(|| {
            Finding::new(State::Note, "timeouts", found)
                .fix("clients send keepalives, or `flow_timeout` is shorter")
        });
    }
    if let Some(silent) = silence(&format!("listener {name}"), listener.options.keepalive) {
        return Some(silent);
    }
    let ends =
        [("idle_timeout", listener.timeouts.idle), ("max_lifetime", listener.timeouts.lifetime)];
    let first = ends.into_iter().filter(|(_, ms)| *ms > 0).min_by_key(|(_, ms)| *ms);
    let keepalive = listener.options.keepalive;
    let found = match first {
        Some((key, ms)) => format!(
            "listener {name}: the first to end a silent session is `{key}`, after {} s; keepalive \
             probes every {keepalive} s hold it until then",
            ms / 1_000
        ),
        None => format!("listener {name}: nothing ends a silent session whose peers answer probes"),
    };
    Some(Finding::new(State::Ok, "timeouts", found))
}

/// A side on which no probe keeps a silent connection in the tables of others.
fn silence(side: &str, keepalive: u32) -> Option<Finding> {
    let forget = FORGET_TCP.iter().filter(|(_, after)| keepalive == 0 || keepalive >= *after);
    let forget: Vec<_> = forget.map(|(who, after)| format!("{who}: {after} s")).collect();
    if forget.is_empty() {
        return None;
    }
    let probes = match keepalive {
        0 => "no keepalive probe is sent".to_owned(),
        seconds => format!("keepalive probes are sent every {seconds} s"),
    };
    let found = format!(
        "{side}: {probes}; load balancers forget a silent connection sooner, without a word ({})",
        forget.join(", ")
    );
    Some(Finding::new(State::Warning, "timeouts", found).fix("`keepalive = \"60s\"`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(keys: &str, protocol: &str, backend: &str) -> Vec<(State, String)> {
        let text = format!(
            "[[listeners]]\nname = \"a\"\nprotocol = \"{protocol}\"\naddress = \"0.0.0.0:7\"\n\
             {keys}\n\
             [[routes]]\nname = \"a\"\nlisteners = [\"a\"]\nbackends = [{{ name = \"b\" }}]\n\
             [[backends]]\nname = \"b\"\nendpoints = [\"10.0.0.1:7\"]\n{backend}\n"
        );
        let config = config_sync::check::parse("a.toml", &text).expect("valid");
        of(&config).into_iter().map(|finding| (finding.state, finding.found)).collect()
    }

    #[test]
    fn the_first_to_end_a_silent_session_is_named() {
        let [(State::Ok, said)] = &found("", "TCP", "")[..] else { panic!("one finding") };
        assert!(said.contains("`idle_timeout`, after 3600 s"), "{said}");
        let lifetime = found("max_lifetime = \"10m\"", "TCP", "");
        assert!(lifetime[0].1.contains("`max_lifetime`, after 600 s"), "{lifetime:?}");
        let nothing = found("idle_timeout = \"0s\"", "TCP", "");
        assert!(nothing[0].1.contains("nothing ends"), "{nothing:?}");
    }

    #[test]
    fn who_forgets_a_silent_connection_is_named() {
        let said = found("keepalive = \"0s\"", "TCP", "keepalive = \"5m\"");
        let [(State::Warning, listener), (State::Warning, backend)] = &said[..] else {
            panic!("{said:?}");
        };
        assert!(listener.contains("no keepalive probe") && listener.contains("AWS (NLB): 350 s"));
        assert!(backend.contains("every 300 s") && backend.contains("Azure: 240 s"), "{backend}");
        assert!(!backend.contains("AWS"), "{backend}");
        assert_eq!(found("", "UDP", ""), []);
        assert_eq!(found("flow_timeout = \"5m\"", "UDP", "")[0].0, State::Note);
    }
}
