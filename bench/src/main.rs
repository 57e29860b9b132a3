//! Measurements of Ringway that anyone can repeat. They print figures; they assert none.

#![expect(clippy::print_stdout, reason = "figures are what it is for")]
#![expect(clippy::disallowed_methods, reason = "measures real time")]

use std::path::PathBuf;

use clap::{Parser, Subcommand};

mod fairness;
mod gateway;
mod instructions;

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
    /// Latency of a 64-byte ping beside 8 bulk streams on one worker, with the turn budget
    /// (`limits.turn_bytes`) and without.
    Fairness(fairness::Options),
    /// Instructions of the proxy's hot paths (`cargo bench`), compared with what is committed in
    /// `bench/instructions.toml`.
    Instructions(instructions::Options),
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Fairness(options) => fairness::run(&arguments.ringway, &options),
        Command::Instructions(options) => instructions::run(&options),
    }
}
