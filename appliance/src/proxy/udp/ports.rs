//! Remembers source addresses without free UDP ports, and until when no socket is opened there.
//! The kernel looks at each port before it says that none is free, which takes a millisecond.

use crate::contract::Origin;

#[derive(Debug)]
pub struct Ports {
    /// At most `MOST`.
    pauses: Vec<Pause>,
}

/// The source of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct From {
    pub origin: Origin,
    pub ipv4: bool,
}

#[derive(Debug)]
struct Pause {
    from: From,
    until: u64,
    length: u64,
}

/// Microseconds. A worker that asks this often spends a tenth to a hundredth of its time on it.
const SHORTEST: u64 = 10_000;
const LONGEST: u64 = 100_000;
/// Microseconds. After this long without a failure, the next pause is a short one again.
const FORGET: u64 = 1_000_000;
/// The maximum number of remembered addresses. With more, the address with the earliest end is
/// asked again.
const MOST: usize = 64;

impl Ports {
    pub fn new() -> Self {
        Self { pauses: Vec::with_capacity(MOST) }
    }

    pub fn may_ask(&self, from: From, now: u64) -> bool {
        self.pauses.iter().all(|pause| pause.from != from || pause.until <= now)
    }

    /// No port was free. Returns true if a pause begins now. Returns false within a pause, because
    /// several sockets of one turn may fail for one reason.
    pub fn ran_out(&mut self, from: From, now: u64) -> bool {
        let known = self.pauses.iter().position(|pause| pause.from == from);
        let Some(at) = known else {
            if self.pauses.len() == MOST {
                let first = (0..MOST).min_by_key(|at| self.pauses[*at].until);
                self.pauses.swap_remove(first.expect("there are some"));
            }
            self.pauses.push(Pause { from, until: now + SHORTEST, length: SHORTEST });
            return true;
        };
        let pause = &mut self.pauses[at];
        if now < pause.until {
            return false;
        }
        let again = now < pause.until + FORGET;
        pause.length = if again { (2 * pause.length).min(LONGEST) } else { SHORTEST };
        pause.until = now + pause.length;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: From = From { origin: Origin::Any, ipv4: true };

    #[test]
    fn pauses_grow_and_are_forgotten() {
        let mut ports = Ports::new();
        assert!(ports.may_ask(ANY, 0));
        let mut now = 0;
        for length in [10_000, 20_000, 40_000, 80_000, 100_000, 100_000] {
            assert!(ports.ran_out(ANY, now));
            assert!(!ports.ran_out(ANY, now), "of the same turn");
            assert!(!ports.may_ask(ANY, now + length - 1) && ports.may_ask(ANY, now + length));
            assert!(ports.may_ask(From { ipv4: false, ..ANY }, now), "another address");
            now += length;
        }
        now += 1_000_000;
        assert!(ports.ran_out(ANY, now) && ports.may_ask(ANY, now + 10_000));
    }

    #[test]
    fn many_addresses_are_bounded() {
        let mut ports = Ports::new();
        for host in 0..=255 {
            let from = From { origin: Origin::Local([10, 0, 0, host].into()), ipv4: true };
            assert!(ports.ran_out(from, u64::from(host)));
            assert!(!ports.may_ask(from, u64::from(host)));
        }
        assert_eq!(ports.pauses.len(), MOST);
    }
}
