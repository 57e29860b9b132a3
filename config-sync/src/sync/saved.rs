//! Overrides in a file, so that they outlive a restart.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk;
use crate::model::endpoint::MAX_WEIGHT;
use crate::sync::overrides::{Action, Asked, Kind};

/// An override that has no end.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    #[serde(skip_serializing_if = "Option::is_none")]
    listener: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<String>,
    /// The endpoint's address, or its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    action: Word,
    /// Only of the action `weight`.
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Drain,
    Disable,
    Weight,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    overrides: Vec<Saved>,
}

impl Saved {
    /// What the override is about.
    ///
    /// # Errors
    /// Nothing, or more than one thing, is named.
    pub fn asked(&self) -> Result<Asked<'_>, String> {
        match (self.listener.as_deref(), self.backend.as_deref(), self.endpoint.as_deref()) {
            (Some(listener), None, None) => Ok(Asked::Listener(listener)),
            (None, Some(backend), None) => Ok(Asked::Backend(backend)),
            (None, Some(backend), Some(endpoint)) => Ok(Asked::Endpoint(Some(backend), endpoint)),
            _ => Err("name a backend, a backend and its endpoint, or a listener".to_owned()),
        }
    }

    fn said(&self) -> String {
        let names = [&self.listener, &self.backend, &self.endpoint];
        names.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join("/")
    }

    /// # Errors
    /// The weight is missing, too large, or of another action.
    pub fn action(&self) -> Result<Action, String> {
        let of = |kind: Kind| match self.weight {
            Some(_) => Err(format!("weight: the action {kind} has none")),
            None => Ok(()),
        };
        match (self.action, self.weight) {
            (Word::Drain, _) => of(Kind::Drain).map(|()| Action::Drain),
            (Word::Disable, _) => of(Kind::Disable).map(|()| Action::Disable),
            (Word::Weight, Some(weight)) if weight <= MAX_WEIGHT => Ok(Action::Weight(weight)),
            (Word::Weight, Some(weight)) => {
                Err(format!("weight: {weight} is too large: 0 to {MAX_WEIGHT}"))
            }
            (Word::Weight, None) => Err("weight: the action weight needs one".to_owned()),
        }
    }
}

/// The text of a file with these overrides.
///
/// # Errors
/// The text can't be made, which is a fault of this program.
pub fn write(overrides: Vec<Saved>) -> Result<String, String> {
    let text = toml::to_string(&File { overrides }).map_err(|error| error.to_string())?;
    Ok(format!("# Written by `ringway overrides --save`.\n{text}"))
}

/// Reads what [`write`] has written. A file that is not there has no overrides.
///
/// # Errors
/// The file can't be read or is wrong. The text names the file, the line and the fault.
pub(crate) fn read(path: &Path) -> Result<Vec<Saved>, String> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        _ => {}
    }
    let text = disk::read_text(path)?;
    parse(&text).map_err(|fault| format!("{}: {fault}", path.display()))
}

fn parse(text: &str) -> Result<Vec<Saved>, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    for of in &file.overrides {
        let checked = of.asked().and_then(|asked| asked.check(of.action()?));
        checked.map_err(|fault| format!("override of {}: {fault}", of.said()))?;
    }
    Ok(file.overrides)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_it_was_written_and_faults_are_named() {
        let of = |endpoint: &str, action, weight| Saved {
            listener: None,
            backend: Some("web".to_owned()),
            endpoint: Some(endpoint.to_owned()),
            action,
            weight,
        };
        let all = vec![
            of("10.0.0.1:80", Word::Drain, None),
            of("db \"x\"", Word::Disable, None),
            of("[::1]:80", Word::Weight, Some(256)),
            Saved { endpoint: None, ..of("", Word::Drain, None) },
            Saved {
                listener: Some("in".to_owned()),
                backend: None,
                endpoint: None,
                ..of("", Word::Drain, None)
            },
        ];
        let text = write(all.clone()).expect("a text");
        assert_eq!(parse(&text), Ok(all.clone()));
        let actions: Vec<_> = all.iter().map(|of| of.action().expect("an action")).collect();
        let drain = Action::Drain;
        assert_eq!(actions, [drain, Action::Disable, Action::Weight(256), drain, drain]);
        let [.., backend, listener] = &all[..] else { panic!("five") };
        assert_eq!(backend.asked(), Ok(Asked::Backend("web")));
        assert_eq!(listener.asked(), Ok(Asked::Listener("in")));
        for (text, said) in [
            ("action = \"drain\"", "name a backend"),
            ("listener = \"a\"\nbackend = \"b\"\naction = \"drain\"", "name a backend"),
            ("listener = \"a\"\naction = \"disable\"", "only endpoints"),
        ] {
            let fault = parse(&format!("[[overrides]]\n{text}\n")).expect_err(text);
            assert!(fault.contains(said), "{text}: {fault}");
        }
        assert_eq!(parse(""), Ok(Vec::new()));
        let entry = "[[overrides]]\nbackend = \"b\"\nendpoint = \"e\"\n";
        for (rest, said) in [
            ("action = \"weight\"", "override of b/e: weight: the action weight needs one"),
            ("action = \"weight\"\nweight = 257", "257 is too large: 0 to 256"),
            ("action = \"drain\"\nweight = 1", "the action drain has none"),
            ("action = \"kill\"", "line 4"),
            ("", "missing field `action`"),
            ("action = \"drain\"\ncolour = 1", "unknown field `colour`"),
        ] {
            let fault = parse(&format!("{entry}{rest}\n")).expect_err(rest);
            assert!(fault.contains(said), "{rest}: {fault}");
        }
    }
}
