//! Flows that the kernel forwards.

use std::net::SocketAddr;
use std::sync::Arc;

use config_sync::table::rate::Rate;
use config_sync::table::routing::{RoutingTable, SocketId};
use config_sync::table::source_limit::SourceLimit;
use ringway::stats::records::Demotion;
use ringway_tests::sim::fake::Fake;
use ringway_tests::sim::kernel::faults::Faults;
use ringway_tests::sim::scenarios::setup::{self, Setup};
use ringway_tests::sim::udp::datagram::{Datagram, Exchange};

use crate::LIMITS;

/// A flow that exchanges ten datagrams in a second, from two datagrams on through the kernel.
struct Game {
    fake: Fake,
    table: RoutingTable,
    asked: u32,
}

impl Game {
    fn new(setup: Setup, faults: Faults) -> Self {
        let setup = Setup { fast_path_after: 1, ..setup };
        let address = |port| SocketAddr::new(setup::HOME, port);
        let table = setup.table(address(6_000), &[address(7_000)]);
        let mut fake = Fake::new(1, LIMITS, faults);
        fake.apply(table.clone());
        Self { fake, table, asked: 0 }
    }

    /// One endpoint is closed if `refuses`.
    fn play(&mut self, moves: u32, refuses: bool) {
        for _ in 0..moves {
            self.asked += 1;
            let exchange = Exchange {
                socket: SocketId(0),
                client: SocketAddr::new(setup::HOME, 20_000),
                says: None,
                local: setup::HOME,
            };
            let (number, bytes, count) = (self.asked, 9, 1);
            self.fake.kernel.client_sends(Datagram {
                exchange,
                number,
                bytes,
                count,
                truncated: false,
                train: None,
            });
            for _ in 0..2 {
                let until = self.fake.kernel.now + 50_000;
                while self.fake.step(until) {}
                for (path, datagram) in std::mem::take(&mut self.fake.kernel.sent_up) {
                    match refuses {
                        true => self.fake.kernel.endpoint_refuses(path),
                        false => self.fake.kernel.endpoint_sends(path, datagram),
                    }
                }
            }
            self.fake.kernel.check_promoted();
        }
    }

    /// The same table, with a backend that has the key or not.
    fn apply(&mut self, fast_path: bool) {
        self.table.generation += 1;
        self.table.backends[0].fast_path = fast_path;
        self.fake.apply(self.table.clone());
    }

    fn demotions(&self, why: Demotion) -> u64 {
        self.fake.counters.demotions[why as usize].get()
    }
}

#[test]
fn the_kernel_forwards_what_the_table_allows() {
    let mut game = Game::new(setup::UDP, Faults::default());
    game.play(9, false);
    assert_eq!(game.fake.counters.promoted.get(), 1);
    game.apply(false);
    game.fake.kernel.check_promoted();
    assert_eq!(game.demotions(Demotion::Configuration), 1);
    game.play(9, false);
    // A flow that is just due when the key goes.
    let mut game = Game::new(setup::UDP, Faults::default());
    game.play(1, false);
    game.apply(false);
    game.play(9, false);
    assert_eq!(game.fake.counters.promotions.get(), 0);
    // A limit of bytes, which the kernel would pass by.
    let mut game = Game::new(Setup { bytes: 1_000_000, ..setup::UDP }, Faults::default());
    game.play(9, false);
    assert_eq!(game.fake.counters.promotions.get(), 0);
    // Answers that end the flow, which the kernel would not see.
    let mut game = Game::new(Setup { responses: 2, ..setup::UDP }, Faults::default());
    game.play(9, false);
    assert_eq!(game.fake.counters.promotions.get(), 0);
    // The route counts each datagram of a source.
    let mut game = Game::new(setup::UDP, Faults::default());
    let records = Arc::clone(game.table.sources.as_ref().expect("the setup has records"));
    let (datagrams, nothing) = (Some(Rate::new(1_000, 1_000)), SourceLimit::nothing(1, records));
    game.table.routes[0].limit_source = Some(Box::new(SourceLimit { datagrams, ..nothing }));
    game.apply(true);
    game.play(9, false);
    assert_eq!(game.fake.counters.promotions.get(), 0);
}

#[test]
fn the_kernel_forwards_no_more_to_a_closed_port() {
    let mut game = Game::new(setup::UDP, Faults::default());
    game.play(9, false);
    game.play(3, true);
    assert_eq!(game.demotions(Demotion::EndpointRefused), 1);
    assert_eq!(game.fake.counters.promoted.get(), 0);
}

/// Some datagrams of the flow still go through the worker, and are answered.
#[test]
fn the_worker_takes_a_flow_back_that_the_kernels_path_breaks() {
    let mut game = Game::new(setup::UDP, Faults { promoted_breaks: 1_000, ..Faults::default() });
    for _ in 0..100 {
        game.play(100, false);
    }
    assert!(game.demotions(Demotion::OneSided) > 0);
}
