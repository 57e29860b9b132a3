//! Says in Ringway's own log what a reload has changed.

use config_sync::gateway::tree::tree;
use config_sync::model::config::Config;

use crate::control::diff::{Change, How, Running, Sessions, diff};

/// The most lines for one reload.
const MOST: usize = 20;

pub fn say_changes(generation: u64, before: &Config, now: &Config) {
    let (before, now) = match (tree(before), tree(now)) {
        (Ok(before), Ok(now)) => (before, now),
        (Err(error), _) | (_, Err(error)) => {
            return tracing::error!("configuration {generation} can't be compared: {error}");
        }
    };
    let running = Running { generation, config: before, sessions: Sessions::default() };
    for line in lines(&diff(&running, &now).changes) {
        tracing::info!("configuration {generation}: {line}");
    }
}

fn lines(changes: &[Change]) -> Vec<String> {
    let mut lines: Vec<_> = changes.iter().take(MOST).map(line).collect();
    if changes.len() > MOST {
        lines.push(format!("and {} more changes", changes.len() - MOST));
    }
    lines
}

/// Only names of keys, because a value may be long.
fn line(change: &Change) -> String {
    let Change { kind, name, change, fields, restart, .. } = change;
    let keys: Vec<_> = fields.iter().map(|field| field.field.as_str()).collect();
    let keys = match change {
        How::Changed if keys != [name.as_str()] => format!(" ({})", keys.join(", ")),
        _ => String::new(),
    };
    let restart = if *restart { ", after a restart" } else { "" };
    format!("{} {name} {}{keys}{restart}", kind.word(), change.word())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_line_for_each_change_and_not_too_many() {
        let listener = |name: &str, time: &str| json!({ "name": name, "idle_timeout": time });
        let tree = |all: Vec<Value>, time: &str| json!({ "listeners": all, "lame_duck": time });
        let config = tree(vec![listener("a", "1h"), listener("b", "1h")], "5s");
        let running = Running { generation: 2, config, sessions: Sessions::default() };
        let now = tree(vec![listener("b", "2h"), listener("c", "1h")], "6s");
        let said = lines(&diff(&running, &now).changes);
        let expected = [
            "setting lame_duck changed",
            "listener a removed",
            "listener b changed (idle_timeout)",
            "listener c added",
        ];
        assert_eq!(said, expected);
        let many: Vec<_> = (0..30).map(|n| listener(&format!("n{n}"), "1h")).collect();
        let said = lines(&diff(&running, &tree(many, "5s")).changes);
        assert_eq!((said.len(), &*said[MOST]), (MOST + 1, "and 12 more changes"));
    }
}
