//! Reads `haproxy.cfg` into sections of lines of words (its manual, section 2.2).

use crate::control::migrate::findings::{At, Findings};

/// `frontend web` and the lines that follow.
#[derive(Debug)]
pub struct Section {
    pub at: At,
    pub kind: String,
    pub name: String,
    /// Words behind the name: `from DEFAULTS`, or an address in old files.
    pub rest: Vec<String>,
    pub lines: Vec<Line>,
}

/// The words of one line. There is at least one.
#[derive(Clone, Debug)]
pub struct Line {
    pub at: At,
    pub words: Vec<String>,
}

/// The keywords that begin a section.
const SECTIONS: &[&str] = &[
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "resolvers",
    "userlist",
    "mailers",
    "program",
    "cache",
    "ring",
    "http-errors",
    "fcgi-app",
    "log-forward",
    "crt-store",
    "traces",
    "acme",
    "log-profile",
];

/// Reads files in the order in which HAProxy would be given them.
///
/// # Errors
/// The text is no HAProxy configuration.
pub fn sections(texts: &[&str], findings: &mut Findings) -> Result<Vec<Section>, (At, String)> {
    let mut sections: Vec<Section> = Vec::new();
    for (file, text) in texts.iter().enumerate() {
        for (number, line) in text.lines().enumerate() {
            let at = At { file, line: number + 1 };
            let Split { words, variable } = split(line).map_err(|why| (at, why))?;
            let Some(first) = words.first() else { continue };
            if first.starts_with('.') {
                findings.loss(at, format!("{first}: conditional lines are not carried over"));
                continue;
            }
            if SECTIONS.contains(&first.as_str()) {
                let mut words = words.into_iter();
                let kind = words.next().unwrap_or_default();
                let is_named = kind != "global";
                let name = if is_named { words.next() } else { None }.unwrap_or_default();
                let rest = words.collect();
                sections.push(Section { at, kind, name, rest, lines: Vec::new() });
                continue;
            }
            let Some(section) = sections.last_mut() else {
                return Err((at, format!("{first:?} stands in no section")));
            };
            if variable {
                let text = "a variable of the environment: write its value, and migrate again";
                findings.loss(at, format!("{}: {text}", words.join(" ")));
                continue;
            }
            section.lines.push(Line { at, words });
        }
    }
    Ok(sections)
}

struct Split {
    words: Vec<String>,
    /// There is `$` in double quotes.
    variable: bool,
}

/// Splits a line into words: quotes, backslashes and `#` as in HAProxy.
fn split(line: &str) -> Result<Split, String> {
    let mut words = Vec::new();
    let (mut word, mut is_word, mut variable) = (String::new(), false, false);
    let mut quote = None;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match (quote, c) {
            (None, '#') => break,
            (None, c) if c.is_whitespace() => {
                if is_word {
                    words.push(std::mem::take(&mut word));
                    is_word = false;
                }
                continue;
            }
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.push(c),
            (_, '\\') => word.push(escaped(&mut rest)?),
            (open, c) => {
                variable |= open == Some('"') && c == '$';
                word.push(c);
            }
        }
        is_word = true;
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    if is_word {
        words.push(word);
    }
    Ok(Split { words, variable })
}

fn escaped(rest: &mut std::str::Chars<'_>) -> Result<char, String> {
    Ok(match rest.next() {
        Some('r') => '\r',
        Some('n') => '\n',
        Some('t') => '\t',
        Some('x') => {
            let mut digit = || rest.next().and_then(|c| c.to_digit(16));
            match (digit(), digit()) {
                (Some(high), Some(low)) if high < 8 => char::from_u32(high * 16 + low),
                _ => None,
            }
            .ok_or("\\x needs two hexadecimal digits of an ASCII character")?
        }
        Some(c) => c,
        None => return Err("the line ends in a backslash".to_owned()),
    })
}

/// A time, in milliseconds: a number with us, ms, s, m, h or d. Milliseconds are the default.
pub fn time(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("{text:?} is no time");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let (times, per) = match unit {
        "us" => (1, 1_000),
        "" | "ms" => (1, 1),
        "s" => (1_000, 1),
        "m" => (60_000, 1),
        "h" => (3_600_000, 1),
        "d" => (86_400_000, 1),
        _ => return Err(wrong()),
    };
    // A time that is not zero stays so.
    Ok(number.saturating_mul(times).div_ceil(per))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_haproxy() {
        let words = |line| split(line).map(|split| split.words);
        assert_eq!(
            words(r"  tcp-check send info\ x\r\n # y"),
            Ok(vec!["tcp-check".into(), "send".into(), "info x\r\n".into()])
        );
        assert_eq!(
            words(r#"a "b \" #c" 'd\n'e"#),
            Ok(vec!["a".into(), "b \" #c".into(), "d\\ne".into()])
        );
        assert_eq!(words(r"a \x41\#"), Ok(vec!["a".into(), "A#".into()]));
        assert!(words("a \"b").is_err() && words("a \\").is_err() && words("\\xf0").is_err());
        assert!(split("a \"${B}\"").expect("words").variable);
        assert!(!split("a '${B}'").expect("words").variable);
    }

    #[test]
    fn times_have_units() {
        assert_eq!([time("5"), time("3s"), time("2d")], [Ok(5), Ok(3_000), Ok(172_800_000)]);
        assert_eq!(time("1us"), Ok(1));
        assert!(time("s").is_err() && time("5x").is_err() && time("").is_err());
    }
}
