//! A source file as the rules read it: its text, and its code without comments and literals.

use std::fs;
use std::path::{Path, PathBuf};

/// A file as it is, and the same without what comments and literals say: each of their characters
/// is a blank, so that places stay the same.
pub struct Source {
    /// From the repository's root.
    pub path: String,
    pub text: String,
    pub code: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into(), code: code_of(text) }
    }

    pub fn read(path: &Path) -> Self {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
        Self::new(name, &fs::read_to_string(path).unwrap())
    }

    pub fn is_under(&self, path: &str) -> bool {
        self.path == path || (path.ends_with('/') && self.path.starts_with(path))
    }

    pub fn problem(&self, place: usize, what: &str) -> String {
        format!("{}:{}: {what}", self.path, line_of(&self.code, place))
    }
}

/// The length of `code` up to and including what closes the bracket that it begins with.
pub fn balanced(code: &str) -> usize {
    let mut depth = 0;
    for (index, c) in code.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => {
                depth -= 1;
                if depth == 0 {
                    return index + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

pub fn line_of(text: &str, place: usize) -> usize {
    text[..place].matches('\n').count() + 1
}

/// Where `name` stands and is not part of a longer word.
pub fn words<'a>(code: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    let open_start = name.starts_with(is_word);
    let open_end = name.ends_with(is_word);
    code.match_indices(name).map(|(place, _)| place).filter(move |place| {
        let before = code[..*place].chars().next_back();
        let after = code[place + name.len()..].chars().next();
        !(open_start && before.is_some_and(is_word) || open_end && after.is_some_and(is_word))
    })
}

pub fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Blanks out comments and literals.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let in_word = code.ends_with(is_word);
        let len = comment(rest).or_else(|| literal(rest, in_word));
        let (piece, others) = rest.split_at(len.unwrap_or_else(|| first.len_utf8()));
        if len.is_some() {
            code.extend(piece.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        } else {
            code.push(first);
        }
        rest = others;
    }
    code
}

fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return None;
    }
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    Some(at)
}

/// The length of the string or character that `text` begins with.
fn literal(text: &str, in_word: bool) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""]
        .into_iter()
        .filter(|prefix| prefix.is_empty() || !in_word)
        .find(|prefix| {
            text.strip_prefix(prefix).is_some_and(|rest| match rest.trim_start_matches('#') {
                hashed if hashed.len() < rest.len() => {
                    prefix.ends_with('r') && hashed.starts_with('"')
                }
                plain => plain.starts_with(['"', '\'']),
            })
        })?;
    let rest = &text[prefix.len()..];
    if prefix.ends_with('r') {
        let hashes = rest.len() - rest.trim_start_matches('#').len();
        let close = format!("\"{}", "#".repeat(hashes));
        let end = rest[hashes + 1..].find(&close).map(|end| hashes + 1 + end + close.len());
        return Some(prefix.len() + end.unwrap_or(rest.len()));
    }
    let quote = rest.chars().next()?;
    if quote == '\'' {
        let mut chars = rest[1..].chars();
        let escaped = chars.next()? == '\\';
        // A lifetime has no closing quote after its first character.
        if !escaped && chars.next() != Some('\'') {
            return None;
        }
    }
    let mut escaped = false;
    for (index, c) in rest.char_indices().skip(1) {
        if c == quote && !escaped {
            return Some(prefix.len() + index + 1);
        }
        escaped = c == '\\' && !escaped;
    }
    Some(text.len())
}

pub fn sources() -> Vec<Source> {
    let sources: Vec<_> = files(&root(), ".rs").iter().map(|path| Source::read(path)).collect();
    assert!(sources.iter().any(|source| source.path == "appliance/src/contract.rs"));
    sources
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                found.extend(files(&path, ending));
            }
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
    found
}

#[test]
fn comments_and_literals_are_no_code() {
    let blank = |text: &str| code_of(text).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(blank("a /* b /* c */ d */ e // f\ng"), "a e g");
    assert_eq!(
        blank(r##"x("a \" b", r#"c " d"#, b"e", 'f', '\'', '\u{7d}', br"\")"##),
        "x( , , , , , , )"
    );
    assert_eq!(
        blank("fn f<'a>(x: &'a str, r: u8) -> &'static str { bar\"s\" }"),
        "fn f<'a>(x: &'a str, r: u8) -> &'static str { bar }"
    );
}
