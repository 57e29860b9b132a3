//! Measurements of Ringway that anyone can repeat. They print figures; they assert none.

#![expect(clippy::print_stdout, reason = "figures are what it is for")]
#![expect(clippy::disallowed_methods, reason = "measures real time")]

use std::path::PathBuf;

use clap::{Parser, Subcommand};

mod compare;
mod contention;
mod cpu;
mod fairness;
mod gateway;
mod instructions;
mod load;
mod moves;
mod net;
mod outcome;
mod peers;
mod promotion;
mod report;
mod results;
mod serve;
mod stats;

#[derive(Parser)]
#[command(name = "bench", about = "Measurements of Ringway")]
struct Arguments {
    /// The binary to measure.
    #[arg(long, default_value = "target/release/ringway", global = true)]
    ringway: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Ringway beside other proxies under the same load: results.json, report.md and plots.
    Compare(compare::Options),
    /// The report of one comparison or several, made anew from their results.json.
    Report(report::Options),
    /// What workers of one process wait for each other for: descriptors, counts, memory.
    Contention(contention::Options),
    /// Latency of a 64-byte ping beside 8 bulk streams on one worker, with the turn budget
    /// (`limits.turn_bytes`) and without.
    Fairness(fairness::Options),
    /// The share of clients that get another endpoint when an endpoint or a gateway comes or goes:
    /// tables and plots. Nothing is timed.
    Moves(moves::Options),
    /// CPU of the steps by which the kernel takes a UDP flow over from a worker (`fast_path`).
    Promotion(promotion::Options),
    /// Instructions of the proxy's hot paths (`cargo bench`), compared with what is committed in
    /// `bench/instructions.toml`.
    Instructions(instructions::Options),
    /// Load on an address; prints what it measured as one line of JSON.
    Load(load::Options),
    /// A small TCP proxy to measure designs by; runs until it is killed.
    Baseline(peers::BaselineOptions),
    /// A backend; prints "ready" when it listens, and runs until its input ends.
    Serve(serve::Options),
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Compare(options) => compare::run(&arguments.ringway, &options),
        Command::Report(options) => report::run(&options),
        Command::Contention(options) => contention::run(&options),
        Command::Fairness(options) => fairness::run(&arguments.ringway, &options),
        Command::Moves(options) => moves::run(&options),
        Command::Promotion(options) => promotion::run(&options),
        Command::Instructions(options) => instructions::run(&options),
        Command::Baseline(options) => peers::run_baseline(&options),
        Command::Load(options) => load::run(&options),
        Command::Serve(options) => serve::run(&options),
    }
}
