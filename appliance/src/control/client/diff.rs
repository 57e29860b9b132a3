//! `ringway diff`: what a candidate would change.

use anyhow::Context as _;
use config_sync::gateway::tree::tree;
use config_sync::source::Source;
use serde_json::Value;

use crate::control::client::arguments::Output;
use crate::control::client::http::Question;
use crate::control::diff::{Change, Diff, Field, Running, diff};
use crate::control::output::{BadConfig, Exit, print};
use crate::control::time_of_day::unix_seconds;

/// # Errors
/// [`Exit`] with 1 if the configurations differ, and with 2 if they can't be compared.
pub fn run(source: &Source, output: &Output) -> anyhow::Result<()> {
    let found = compare(source, output).map_err(|error| {
        let name = if error.is::<BadConfig>() { "" } else { "ringway: " };
        Exit { code: 2, text: format!("{name}{error:#}") }
    })?;
    match found.same {
        true => Ok(()),
        false => Err(Exit { code: 1, text: String::new() }.into()),
    }
}

fn compare(source: &Source, output: &Output) -> anyhow::Result<Diff> {
    let checked = config_sync::sync::dry_run::check(source, unix_seconds()).map_err(BadConfig)?;
    let candidate = tree(&checked.config).map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(output.reach.ask(&Question::get("config")))?;
    let running: Running = serde_json::from_value(answer)
        .context("the gateway's answer; `ringway` may be older or newer than the gateway")?;
    let found = diff(&running, &candidate);
    match output.json {
        true => print(&format!("{}\n", serde_json::to_string(&found)?))?,
        false => print(&text(&found))?,
    }
    Ok(found)
}

fn text(found: &Diff) -> String {
    if found.same {
        return "no difference\n".to_owned();
    }
    let mut text: String = found.changes.iter().map(line).collect();
    if found.listener_sessions > 0 {
        text += &format!(
            "{} sessions and flows would stay on listeners that go or move, until they end\n",
            found.listener_sessions
        );
    }
    if found.endpoint_sessions > 0 {
        text += &format!(
            "{} sessions and flows would leave or outlive their endpoints, as on_removed says\n",
            found.endpoint_sessions
        );
    }
    text
}

fn line(change: &Change) -> String {
    let Change { kind, name, change, fields, sessions, restart } = change;
    let field = |field: &Field| {
        let value = |value: &Option<Value>| match value {
            Some(value) => value.to_string(),
            None => "(default)".to_owned(),
        };
        format!("  {}: {} -> {}\n", field.field, value(&field.old), value(&field.new))
    };
    let fields: String = fields.iter().map(field).collect();
    let sessions = sessions.map(|count| format!(", {count} sessions or flows now"));
    let restart = if *restart { ", after a restart" } else { "" };
    let (kind, change) = (kind.word(), change.word());
    let text =
        format!("{kind} {name}: {change}{}{restart}\n{fields}", sessions.unwrap_or_default());
    text.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}")
}
