//! `ringway overrides --save`: the overrides in a file that outlives a restart.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use config_sync::sync::saved::{self, Saved};
use serde_json::{Value, json};

use crate::control::client::http::{Question, Reach};
use crate::control::output::print;

/// Writes the overrides without an end to `file`. The file is replaced whole, so a reader never
/// finds half of it.
pub async fn run(file: &Path, reach: &Reach, as_json: bool) -> anyhow::Result<()> {
    let answer = reach.ask(&Question::get("overrides")).await?;
    let all = answer.get("overrides").and_then(Value::as_array).cloned().unwrap_or_default();
    let (passing, lasting): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|of| of.get("left_ms").is_some());
    let lasting: Vec<Saved> = serde_json::from_value(Value::Array(lasting))
        .context("the gateway's answer; `ringway` may be older or newer than the gateway")?;
    let (saved, passing) = (lasting.len(), passing.len());
    let text = saved::write(lasting).map_err(anyhow::Error::msg)?;
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, file));
    written.with_context(|| format!("--save {}", file.display()))?;
    if as_json {
        return print(&format!("{}\n", json!({ "saved": saved, "passing": passing })));
    }
    let others = match passing {
        0 => String::new(),
        count => format!("; {count} that end by themselves are not"),
    };
    print(&format!("{}: {saved} saved{others}\n", file.display()))
}
