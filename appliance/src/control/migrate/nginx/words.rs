//! Reads `nginx.conf` into directives and their blocks.

use crate::control::migrate::findings::At;

/// A name, its values, and what stands in braces behind them.
#[derive(Clone, Debug)]
pub struct Directive {
    pub at: At,
    /// There is at least one.
    pub words: Vec<String>,
    pub block: Option<Vec<Self>>,
}

impl Directive {
    pub fn name(&self) -> &str {
        &self.words[0]
    }

    /// The first value, or nothing.
    pub fn value(&self) -> &str {
        self.words.get(1).map_or("", String::as_str)
    }

    pub fn text(&self) -> String {
        self.words.join(" ").chars().take(80).collect()
    }
}

const MAX_DEPTH: usize = 32;

/// # Errors
/// The text is no nginx configuration.
pub fn directives(file: usize, text: &str) -> Result<Vec<Directive>, (At, String)> {
    let mut stack: Vec<Vec<Directive>> = vec![Vec::new()];
    let mut open: Vec<(At, Vec<String>)> = Vec::new();
    let (mut words, mut begin) = (Vec::new(), At { file, line: 1 });
    let mut lexer = Lexer { rest: text, at: At { file, line: 1 } };
    while let Some((at, token)) = lexer.token()? {
        let top = stack.last_mut();
        match (token, top) {
            (Token::Word(word), _) => {
                if words.is_empty() {
                    begin = at;
                }
                words.push(word);
            }
            (Token::End, Some(top)) if !words.is_empty() => {
                let words = std::mem::take(&mut words);
                top.push(Directive { at: begin, words, block: None });
            }
            (Token::Open, _) if !words.is_empty() && open.len() < MAX_DEPTH => {
                open.push((begin, std::mem::take(&mut words)));
                stack.push(Vec::new());
            }
            (Token::Close, _) if words.is_empty() && !open.is_empty() => {
                let block = stack.pop();
                if let (Some((at, words)), Some(top)) = (open.pop(), stack.last_mut()) {
                    top.push(Directive { at, words, block });
                }
            }
            (Token::End, _) => return Err((at, "unexpected \";\"".to_owned())),
            (Token::Open, _) => return Err((at, "unexpected \"{\"".to_owned())),
            (Token::Close, _) => return Err((at, "unexpected \"}\"".to_owned())),
        }
    }
    if let Some((at, words)) = open.pop() {
        return Err((at, format!("the block of {:?} has no end", words[0])));
    }
    match words.first() {
        Some(word) => Err((begin, format!("{word:?} is not ended by \";\""))),
        None => Ok(stack.pop().unwrap_or_default()),
    }
}

enum Token {
    Word(String),
    End,
    Open,
    Close,
}

struct Lexer<'t> {
    rest: &'t str,
    at: At,
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        if c == '\n' {
            self.at.line += 1;
        }
        Some(c)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn token(&mut self) -> Result<Option<(At, Token)>, (At, String)> {
        loop {
            let at = self.at;
            let Some(c) = self.next() else { return Ok(None) };
            let token = match c {
                c if c.is_whitespace() => continue,
                '#' => {
                    while self.next().is_some_and(|c| c != '\n') {}
                    continue;
                }
                ';' => Token::End,
                '{' => Token::Open,
                '}' => Token::Close,
                '"' | '\'' => Token::Word(self.quoted(at, c)?),
                c => Token::Word(self.word(c)),
            };
            return Ok(Some((at, token)));
        }
    }

    fn quoted(&mut self, at: At, quote: char) -> Result<String, (At, String)> {
        let mut word = String::new();
        loop {
            match self.next() {
                None => return Err((at, "a quote is not closed".to_owned())),
                Some(c) if c == quote => return Ok(word),
                Some('\\') => escaped(self.next(), &mut word),
                Some(c) => word.push(c),
            }
        }
    }

    /// A word without quotes; `${name}` may stand in it.
    fn word(&mut self, first: char) -> String {
        let mut word = String::new();
        let mut c = first;
        loop {
            match c {
                '\\' => escaped(self.next(), &mut word),
                '$' if self.peek() == Some('{') => {
                    word.push('$');
                    self.next();
                    while let Some(c) = self.next().filter(|c| *c != '}') {
                        word.push(c);
                    }
                }
                c => word.push(c),
            }
            match self.peek() {
                None | Some(';' | '{' | '}') => return word,
                Some(next) if next.is_whitespace() => return word,
                Some(next) => {
                    self.next();
                    c = next;
                }
            }
        }
    }
}

fn escaped(c: Option<char>, word: &mut String) {
    match c {
        Some('t') => word.push('\t'),
        Some('r') => word.push('\r'),
        Some('n') => word.push('\n'),
        Some(c @ ('"' | '\'' | '\\')) => word.push(c),
        // nginx keeps the backslash, as regular expressions need it.
        Some(c) => word.extend(['\\', c]),
        None => word.push('\\'),
    }
}

/// A time in milliseconds, such as `10s` or `1h 30m`. Seconds are the default.
pub fn time(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no time");
    let mut sum: u64 = 0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, behind) = rest.split_at(digits);
        let letters = behind.len() - behind.trim_start_matches(|c: char| c.is_alphabetic()).len();
        let (unit, behind) = behind.split_at(letters);
        let of = match unit {
            "ms" => 1,
            "s" | "" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 7 * 86_400_000,
            "M" => 30 * 86_400_000,
            "y" => 365 * 86_400_000,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        sum = sum.saturating_add(number.saturating_mul(of));
        rest = behind.trim_start();
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_words_are_those_of_nginx() {
        let text = "# x\nstream {\n  map $a $b { ~^a\\.b$ \"c;d\"; default ${x}y; }\n}\n";
        let read = directives(0, text).expect("directives");
        assert_eq!((read.len(), read[0].at.line), (1, 2));
        let map = &read[0].block.as_ref().expect("a block")[0];
        assert_eq!((map.text().as_str(), map.at.line), ("map $a $b", 3));
        let entries: Vec<_> = map.block.iter().flatten().map(Directive::text).collect();
        assert_eq!(entries, ["~^a\\.b$ c;d", "default $xy"]);
        for bad in ["a", "a {", "}", ";", "{}", "a \"b;"] {
            assert!(directives(0, bad).is_err(), "{bad}");
        }
        assert!(directives(0, &"a {".repeat(100_000)).is_err());
    }

    #[test]
    fn times_add_up() {
        assert_eq!([time("10"), time("1h 30m"), time("5ms")], [Ok(10_000), Ok(5_400_000), Ok(5)]);
        assert!(time("").is_err() && time("x").is_err() && time("5q").is_err());
    }
}
