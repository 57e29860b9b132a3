//! Tests the ring against the real kernel, on loopback: each claim of the simulated kernel is seen
//! here.

mod accept;
mod close;
mod connect;
mod flows;
mod harness;
mod release;
mod stream;
mod transfer;
mod udp;

use std::time::Duration;

use harness::{Driver, LIMITS};

#[test]
fn a_write_to_the_eventfd_ends_the_wait_each_time() {
    let mut driver = Driver::new(LIMITS);
    for _ in 0..3 {
        driver.wake.write(1).unwrap();
        assert!(driver.ring.wait(None, &mut driver.turn).unwrap());
        assert!(!driver.ring.wait(Some(Duration::ZERO), &mut driver.turn).unwrap());
    }
}
