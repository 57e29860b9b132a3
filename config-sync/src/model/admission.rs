//! Which clients may come in: ranges of source addresses, and files of such ranges.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::model::place::At;

/// Which clients may come in. The longest prefix that holds the client's address decides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admission {
    /// `Some`: only clients of these ranges may come in. `None`: every client that is not denied
    /// may.
    pub allow: Option<Vec<At<Ranges>>>,
    pub deny: Vec<At<Ranges>>,
}

/// One entry of a list of ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranges {
    Prefix(IpNet),
    /// A file with one prefix or address per line. The compiler reads the file, and the source
    /// watches the file from then on.
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

/// Writes the entry in its TOML form.
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

/// A prefix, and the number of its line in the file. The number is 0 if the prefix is in no file.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub prefix: IpNet,
    pub number: u32,
}

/// Reads the text of a file of ranges. Each line has one prefix or address; `#` and `;` begin a
/// comment.
///
/// # Errors
/// Each line that is neither a prefix nor an address, with what is wrong with the line.
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

/// Refuses an IPv4 address that is mapped into IPv6. Ringway's IPv6 sockets are IPv6 only, so no
/// client could have such an address.
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
