//! Who may come in: ranges of source addresses, and files of such ranges.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::model::place::At;

/// Who may come in: the longest prefix that has the client's address says so.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admission {
    /// `None`: whoever is not denied. Else nobody but these.
    pub allow: Option<Vec<At<Ranges>>>,
    pub deny: Vec<At<Ranges>>,
}

/// Some of the ranges of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranges {
    Prefix(IpNet),
    /// A prefix or address in each line, read when the configuration is compiled and watched since.
    File(PathBuf),
}

impl Admission {
    pub(crate) fn files(&self) -> impl Iterator<Item = PathBuf> {
        let all = self.allow.iter().flatten().chain(&self.deny);
        all.filter_map(|ranges| match &ranges.value {
            Ranges::File(path) => Some(path.clone()),
            Ranges::Prefix(_) => None,
        })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.allow.is_none() && self.deny.is_empty()
    }
}

/// As it is written in TOML.
impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: String| toml::Value::from(text);
        match self {
            Self::Prefix(prefix) => quoted(prefix.to_string()).fmt(f),
            Self::File(path) => {
                write!(f, "{{ file = {} }}", quoted(path.display().to_string()))
            }
        }
    }
}

/// A prefix, and the line of its file; 0: it is of no file.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub prefix: IpNet,
    pub number: u32,
}

/// What a file of ranges says: a prefix or address in each line; `#` and `;` begin a comment.
///
/// # Errors
/// Each line that is neither, with what is wrong with it.
pub fn read_lines(text: &str) -> Result<Vec<Line>, Vec<(u32, String)>> {
    let (mut lines, mut wrong) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split(['#', ';']).next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match read_range(line) {
            Ok(prefix) => lines.push(Line { prefix, number }),
            Err(message) => wrong.push((number, message)),
        }
    }
    if wrong.is_empty() { Ok(lines) } else { Err(wrong) }
}

pub(crate) fn read_range(text: &str) -> Result<IpNet, String> {
    let no_range = || {
        format!(
            "\"{text}\" is no IP address or prefix, such as \"10.0.0.0/8\" or \"2001:db8::/32\""
        )
    };
    let range = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().map_err(|_| no_range())?,
    };
    if range.prefix_len() >= 96 {
        unmapped(range.addr())?;
    }
    if range.addr() != range.network() {
        let whole = range.trunc();
        return Err(format!("\"{text}\" has bits behind its prefix; write {whole}"));
    }
    Ok(range)
}

/// IPv6 sockets are IPv6 only here, so that a mapped address could reach nobody.
pub(crate) fn unmapped(address: IpAddr) -> Result<(), String> {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(Ok(()), |v4| {
            Err(format!("{v6} is an IPv4 address inside IPv6; write it as {v4}"))
        }),
        IpAddr::V4(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_has_ranges_comments_and_empty_lines() {
        let text = "# office\r\n10.0.0.0/8 # all of it\r\n\r\n  2001:db8::/32;SBL1\n192.0.2.1\n";
        let lines = read_lines(text).expect("ranges");
        let said: Vec<_> = lines.iter().map(|l| (l.prefix.to_string(), l.number)).collect();
        let expected = [("10.0.0.0/8", 2), ("2001:db8::/32", 4), ("192.0.2.1/32", 5)];
        assert_eq!(said, expected.map(|(prefix, number)| (prefix.to_owned(), number)));
        let wrong = read_lines("10.0.0.0/8\n10.0.0.1/8\nex ample\n").expect_err("two faults");
        assert_eq!(wrong.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [2, 3]);
        assert!(wrong[0].1.contains("10.0.0.0/8"), "{wrong:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_ranges_or_lines_that_are_none(text in "([0-9a-f.:/#; \n\r]|.){0,60}") {
            match read_lines(&text) {
                Ok(lines) => prop_assert!(lines.len() <= text.lines().count()),
                Err(wrong) => prop_assert!(!wrong.is_empty()),
            }
        }
    }
}
