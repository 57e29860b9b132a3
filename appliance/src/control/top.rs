//! The clients with the most sessions, bytes and refusals, in bounded memory.
//!
//! The control thread feeds this with the records of ended sessions and flows, which it gets for
//! the access log anyway, so workers do nothing for it. Each list is a Space-Saving summary
//! (Metwally, Agrawal, El Abbadi, ICDT 2005): a client that is not in a full list takes the place
//! and the count of the smallest.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use config_sync::table::address::UNIX_CLIENT;
use tokio::time::Instant;

use crate::stats::records::SessionRecord;

/// The clients of each list. A count is too high by at most the 512th part of all that was counted.
const CAPACITY: usize = 512;

/// Clients are counted afresh after this time.
pub const WINDOW: Duration = Duration::from_secs(10);

/// A client's count. The true count is at least `count - error`, and at most `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    pub client: IpAddr,
    pub count: u64,
    pub error: u64,
}

#[derive(Clone, Default)]
struct Summary {
    /// Count and error of each client.
    clients: HashMap<IpAddr, (u64, u64)>,
    /// The same clients by count, so that the smallest is found at once.
    ranks: BTreeSet<(u64, IpAddr)>,
}

impl Summary {
    fn add(&mut self, client: IpAddr, by: u64) {
        if by == 0 {
            return;
        }
        let (count, error) = match self.clients.get(&client) {
            Some(&(count, error)) => {
                self.ranks.remove(&(count, client));
                (count, error)
            }
            None if self.clients.len() >= CAPACITY => match self.ranks.pop_first() {
                Some((least, other)) => {
                    self.clients.remove(&other);
                    (least, least)
                }
                None => (0, 0),
            },
            None => (0, 0),
        };
        let count = count.saturating_add(by);
        self.clients.insert(client, (count, error));
        self.ranks.insert((count, client));
    }

    /// The greatest counts, the greatest first.
    fn most(&self, most: usize) -> Vec<Count> {
        let ranks = self.ranks.iter().rev().take(most);
        let error = |client| self.clients.get(client).map_or(0, |(_, error)| *error);
        ranks
            .map(|(count, client)| Count { client: *client, count: *count, error: error(client) })
            .collect()
    }
}

/// What was counted in one window.
#[derive(Clone, Default)]
struct Window {
    ended: Summary,
    bytes: Summary,
    refused: Summary,
    unseen: u64,
}

/// The window that is being counted, and the one before.
pub struct Clients {
    began: Instant,
    current: Window,
    last: Option<Window>,
}

/// The clients of the last whole window, or of the time since the start if that is shorter.
#[derive(Debug)]
pub struct Report {
    pub window: Duration,
    pub ended: Vec<Count>,
    pub bytes: Vec<Count>,
    pub refused: Vec<Count>,
    /// Refusals whose clients are not known, because workers report only some each second.
    pub unseen: u64,
}

impl Clients {
    pub fn new(now: Instant) -> Self {
        Self { began: now, current: Window::default(), last: None }
    }

    /// Counts a session or flow that has ended. A client of a Unix socket has no address.
    pub fn ended(&mut self, record: &SessionRecord, now: Instant) {
        self.turn(now);
        self.current.unseen += u64::from(record.suppressed);
        if record.client == UNIX_CLIENT {
            return;
        }
        let client = record.client.ip().to_canonical();
        match record.refused {
            true => self.current.refused.add(client, 1),
            false => self.current.ended.add(client, 1),
        }
        self.current.bytes.add(client, record.bytes_up.saturating_add(record.bytes_down));
    }

    /// The first `most` clients of each list.
    pub fn report(&mut self, most: usize, now: Instant) -> Report {
        self.turn(now);
        let (window, time) = match &self.last {
            Some(last) => (last, WINDOW),
            None => (&self.current, now.saturating_duration_since(self.began)),
        };
        Report {
            window: time,
            ended: window.ended.most(most),
            bytes: window.bytes.most(most),
            refused: window.refused.most(most),
            unseen: window.unseen,
        }
    }

    fn turn(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.began);
        if passed < WINDOW {
            return;
        }
        let counted = std::mem::take(&mut self.current);
        // Nothing came in the window before if two have passed.
        self.last = Some(if passed < 2 * WINDOW { counted } else { Window::default() });
        let whole = passed.as_secs() / WINDOW.as_secs();
        self.began += WINDOW * u32::try_from(whole).unwrap_or(1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use config_sync::table::routing::{Protocol, SocketId};

    use super::*;

    fn client(n: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    fn record(n: u32, refused: bool, bytes_up: u64) -> SessionRecord {
        let (client, local) = ((client(n), 1_000).into(), (client(0), 80).into());
        let new = SessionRecord::new(Protocol::Tcp, SocketId(0), (client, local), 0, 1);
        SessionRecord { refused, bytes_up, ..new }
    }

    #[test]
    fn a_frequent_client_is_found_among_many_and_the_error_is_bounded() {
        let mut summary = Summary::default();
        let mut total = 0;
        for n in 0..20_000 {
            summary.add(client(n), 1);
            summary.add(client(7), u64::from(n % 10 == 0));
            total += 1 + u64::from(n % 10 == 0);
        }
        assert_eq!((summary.clients.len(), summary.ranks.len()), (CAPACITY, CAPACITY));
        let most = summary.most(1)[0];
        assert_eq!(most.client, client(7));
        assert!(most.count >= 2_001 && most.count - most.error <= 2_001, "{most:?}");
        let bound = total / CAPACITY as u64;
        assert!(summary.most(CAPACITY).iter().all(|of| of.error <= bound), "at most {bound}");
    }

    #[test]
    fn a_report_is_of_the_last_whole_window() {
        let start = Instant::now();
        let mut clients = Clients::new(start);
        clients.ended(&record(1, false, 5), start);
        clients.ended(&record(2, true, 0), start);
        let at = |seconds| start + Duration::from_secs(seconds);
        let early = clients.report(9, at(4));
        assert_eq!(early.window, Duration::from_secs(4));
        clients.ended(&record(3, false, 1), at(12));
        let whole = clients.report(9, at(12));
        assert_eq!((whole.window, whole.ended), (WINDOW, early.ended));
        assert_eq!(whole.bytes, [Count { client: client(1), count: 5, error: 0 }]);
        assert_eq!(whole.refused, [Count { client: client(2), count: 1, error: 0 }]);
        assert_eq!(clients.report(9, at(20)).ended[0].client, client(3));
        assert_eq!(clients.report(9, at(50)).ended, []);
    }
}
