//! Any text is a configuration or a list of problems with their places, and so are several texts
//! with NUL between them; neither parser nor compiler panics.
#![no_main]

use config_sync::check::{parse_files, parse_for};
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::machine::Machine;
use config_sync::model::place::Problems;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let machine = Machine { cores: vec![0, 1], congestion: vec!["cubic".to_owned()] };
    let files: Vec<_> = text.split('\0').map(|text| ("f", text)).collect();
    let config = match files.len() {
        1 => parse_for("f", text, &machine),
        _ => parse_files(&files, &machine),
    };
    match config {
        Ok(config) => {
            if let Err(problems) = compile(&config, &mut Names::new(), 1) {
                examine(&problems);
            }
        }
        Err(problems) => examine(&problems),
    }
});

fn examine(problems: &Problems) {
    assert!(!problems.0.is_empty());
    for problem in &problems.0 {
        assert!(problem.line >= 1 && problem.column >= 1 && !problem.message.is_empty());
    }
}
