//! The scenarios of UDP again, through the kernel.

use ringway_tests::real::in_own_network;
use ringway_tests::sim::scenarios::play::play;
use ringway_tests::sim::scenarios::scenarios;
use ringway_tests::sim::scenarios::setup::Setup;
use ringway_tests::sim::scenarios::udp::IN_KERNEL;
use ringway_tests::stage::RealStage;

/// `tests/scenarios.rs` compares the worker's path with the simulated kernel in the same way.
#[test]
fn what_the_kernel_forwards_gives_the_same_trace() {
    for (name, least) in IN_KERNEL {
        in_own_network(move || {
            let scenario = scenarios().find(|scenario| scenario.name == *name);
            let scenario = scenario.expect("a scenario has the name");
            let mut by_worker = RealStage::new(scenario.setup);
            let wanted = play(scenario, &mut by_worker);
            by_worker.stop();
            let setup = Setup { fast_path_after: 1, ..scenario.setup };
            let mut in_kernel = RealStage::in_kernel(setup);
            assert_eq!(
                play(scenario, &mut in_kernel),
                wanted,
                "{name}: in the kernel, by a worker"
            );
            let carried = in_kernel.stop().carried.get();
            assert!(carried >= *least, "{name}: the kernel has forwarded {carried} datagrams");
        });
    }
}
