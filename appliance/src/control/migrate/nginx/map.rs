//! `map` blocks that choose an upstream by what a ClientHello says.

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::nginx::words::Directive;

/// What a map looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The server name of TLS that passes through, or that ends here.
    Name,
    NameHere,
    /// The version of TLS, which is empty for what is no TLS.
    Protocol,
}

/// One map.
#[derive(Clone, Debug)]
pub struct Map {
    /// The variable that it sets, with `$`.
    pub variable: String,
    pub by: By,
    /// Host names of one upstream each.
    pub entries: Vec<(At, Vec<String>, String)>,
    /// The upstream of clients without a name, or without TLS.
    pub empty: Option<(At, String)>,
    pub default: Option<String>,
}

/// Reads a map. `None`: it looks at something else, and what uses it has no counterpart.
pub fn read(directive: &Directive, findings: &mut Findings) -> Option<Map> {
    let by = match directive.value() {
        "$ssl_preread_server_name" => By::Name,
        "$ssl_server_name" => By::NameHere,
        "$ssl_preread_protocol" => By::Protocol,
        other => {
            let text = "Ringway chooses by server names and addresses alone";
            findings.loss(directive.at, format!("map {other}: is left out: {text}"));
            return None;
        }
    };
    let variable = directive.words.get(2).cloned().unwrap_or_default();
    let mut map = Map { variable, by, entries: Vec::new(), empty: None, default: None };
    let block = directive.block.iter().flatten();
    let wildcards = block.clone().any(|entry| entry.words == ["hostnames"]);
    for entry in block {
        let (key, value) = (entry.name(), entry.value().to_owned());
        match key {
            "hostnames" | "volatile" if entry.words.len() == 1 => {}
            "include" => findings.loss(entry.at, format!("{}: is not followed", entry.text())),
            "default" => map.default = Some(value),
            "" => map.empty = Some((entry.at, value)),
            key => match names(key.trim_start_matches('\\'), by, wildcards) {
                Ok(names) => map.entries.push((entry.at, names, value)),
                Err(why) => findings.loss(entry.at, format!("{key}: is left out: {why}")),
            },
        }
    }
    Some(map)
}

/// The host names of a key.
fn names(key: &str, by: By, wildcards: bool) -> Result<Vec<String>, &'static str> {
    if key.starts_with('~') {
        return Err("Ringway has no regular expressions for names");
    }
    if by == By::Protocol {
        return Ok(Vec::new());
    }
    match (wildcards, key.strip_prefix('.')) {
        (true, Some(name)) => Ok(vec![name.to_owned(), format!("*.{name}")]),
        _ if key.ends_with(".*") => Err("a wildcard stands for the first labels only"),
        (false, _) if key.starts_with(['*', '.']) => {
            Err("without `hostnames` nginx takes it for the name itself, which nobody sends")
        }
        _ => Ok(vec![key.to_owned()]),
    }
}
