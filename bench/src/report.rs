//! The report made of results: verdicts on claims, tables and plots.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use crate::results::Results;

mod added;
pub mod chart;
pub mod claims;
mod markdown;
mod numbers;
mod palette;
mod plots;

pub use plots::draw;

#[derive(Args)]
pub struct Options {
    /// results.json of one comparison or more; their runs are put together.
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// Where report.md and plots/ go; next to the first file if left out.
    #[arg(long)]
    out: Option<PathBuf>,
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut all = Results::default();
    for file in &options.results {
        let text = fs::read(file).with_context(|| file.display().to_string())?;
        let results = serde_json::from_slice(&text).with_context(|| file.display().to_string())?;
        all.add(results);
    }
    let beside = || options.results[0].parent().unwrap_or_else(|| Path::new(".")).to_owned();
    let directory = options.out.clone().unwrap_or_else(beside);
    write(&all, &directory)?;
    println!("{}", directory.join("report.md").display());
    Ok(())
}

/// Writes report.md, plots/*.svg and plots/*.png.
pub fn write(results: &Results, directory: &Path) -> anyhow::Result<()> {
    let charts = chart::charts(results);
    draw(&charts, &directory.join("plots"))?;
    let drawn: Vec<_> = charts.into_iter().map(|(plot, _)| plot).collect();
    fs::write(directory.join("report.md"), markdown::render(results, &drawn))?;
    Ok(())
}
