//! What it costs a worker that the kernel forwards a flow (`fast_path`): the flow's entries in the
//! map, the look at its counters each second, and the end of the flow.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use data_plane::ring::bpf::{FastPath, Ways};
use nix::sched::{CloneFlags, unshare};
use nix::time::ClockId;

use crate::stats::median;

#[derive(Args)]
pub struct Options {
    /// Flows in the map at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,100,10000")]
    flows: Vec<u16>,
    /// Rounds; a figure is the median of all.
    #[arg(long, default_value_t = 9)]
    repeat: usize,
}

const STEPS: [&str; 3] = ["promote", "look at the counters", "demote"];

/// Prints the CPU of each step for one flow, in nanoseconds.
///
/// # Errors
/// Not root, or the kernel lacks something.
pub fn run(options: &Options) -> anyhow::Result<()> {
    // The program sees the packets of this network alone, and there are none.
    unshare(CloneFlags::CLONE_NEWNET).context("a network of its own (needs root)")?;
    fs::write("/proc/sys/net/ipv4/conf/lo/forwarding", "1").context("net.ipv4.conf.lo")?;
    println!("nanoseconds of CPU for a flow, medians of {} rounds", options.repeat);
    print!("{:<24}", "flows");
    STEPS.iter().for_each(|step| print!(" {step:>22}"));
    println!();
    for flows in &options.flows {
        let mut costs: [Vec<f64>; 3] = Default::default();
        for _ in 0..options.repeat {
            for (costs, cost) in costs.iter_mut().zip(round(*flows)?) {
                costs.push(cost);
            }
        }
        print!("{flows:<24}");
        costs.iter().for_each(|costs| print!(" {:>22.0}", median(costs).unwrap_or_default()));
        println!();
    }
    Ok(())
}

/// The cost of each step.
fn round(flows: u16) -> anyhow::Result<[f64; 3]> {
    let path = FastPath::open(flows.into(), true)?;
    let ways: Vec<_> = (0..flows).map(ways).collect();
    let promoted = costs(&ways, |ways| Ok(path.promote(ways)?))?;
    let looked = costs(&ways, |ways| {
        path.carried(ways);
        Ok(())
    })?;
    let demoted = costs(&ways, |ways| {
        path.demote(ways);
        Ok(())
    })?;
    Ok([promoted, looked, demoted])
}

/// A client for each flow, and one endpoint.
fn ways(flow: u16) -> Ways {
    let [high, low] = flow.to_be_bytes();
    let at = |ip: [u8; 4], port| SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), port);
    Ways {
        client: at([10, 0, high, low], 40_000),
        listener: at([192, 0, 2, 1], 53),
        own: at([192, 0, 2, 2], flow.wrapping_add(1_024)),
        endpoint: at([198, 51, 100, 1], 53),
    }
}

/// Nanoseconds of CPU of one step for one flow.
fn costs(ways: &[Ways], mut step: impl FnMut(&Ways) -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let clock = || ClockId::CLOCK_THREAD_CPUTIME_ID.now().map(Duration::from);
    let before = clock()?;
    for ways in ways {
        step(ways)?;
    }
    Ok((clock()? - before).as_secs_f64() * 1e9 / ways.len().max(1) as f64)
}
