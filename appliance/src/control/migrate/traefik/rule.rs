//! Rules of TCP routers: ``HostSNI(`a.example.com`) && ClientIP(`10.0.0.0/8`)``.

/// Clients that a rule matches. Empty lists of sources and protocols stand for all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Alternative {
    /// `None`: nothing was said about names. An empty list: `*`, all names.
    pub hostnames: Option<Vec<String>>,
    pub sources: Vec<String>,
    pub alpn: Vec<String>,
}

/// Any of the alternatives.
pub fn read(text: &str) -> Result<Vec<Alternative>, String> {
    let mut reader = Reader { rest: text, depth: 0 };
    let any = reader.any()?;
    reader.space();
    match reader.rest {
        "" => Ok(any),
        rest => Err(format!("{rest:?} is not understood")),
    }
}

struct Reader<'t> {
    rest: &'t str,
    depth: usize,
}

const MAX: usize = 64;

impl Reader<'_> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn takes(&mut self, word: &str) -> bool {
        self.space();
        let rest = self.rest.strip_prefix(word);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn any(&mut self) -> Result<Vec<Alternative>, String> {
        let mut any = self.all()?;
        while self.takes("||") {
            any.extend(self.all()?);
            if any.len() > MAX {
                return Err(format!("more than {MAX} alternatives"));
            }
        }
        Ok(any)
    }

    fn all(&mut self) -> Result<Vec<Alternative>, String> {
        let mut all = self.one()?;
        while self.takes("&&") {
            let more = self.one()?;
            if all.len() * more.len() > MAX {
                return Err(format!("more than {MAX} alternatives"));
            }
            let pairs = all.iter().flat_map(|a| more.iter().map(move |b| both(a, b)));
            all = pairs.collect::<Result<_, _>>()?;
        }
        Ok(all)
    }

    fn one(&mut self) -> Result<Vec<Alternative>, String> {
        if self.takes("!") {
            return Err("a route can't say for whom it is not".to_owned());
        }
        if self.takes("(") {
            self.depth += 1;
            if self.depth > MAX {
                return Err("too many brackets".to_owned());
            }
            let any = self.any()?;
            self.depth -= 1;
            return match self.takes(")") {
                true => Ok(any),
                false => Err("a bracket is not closed".to_owned()),
            };
        }
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        let values = self.values()?;
        let named = match name {
            "HostSNI" if values.iter().any(|name| name == "*") => {
                Alternative { hostnames: Some(Vec::new()), ..Alternative::default() }
            }
            "HostSNI" => Alternative { hostnames: Some(values), ..Alternative::default() },
            "ClientIP" => Alternative { sources: values, ..Alternative::default() },
            "ALPN" => Alternative { alpn: values, ..Alternative::default() },
            "" => return Err("a rule is missing".to_owned()),
            other => return Err(format!("{other} has no counterpart")),
        };
        Ok(vec![named])
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        let wrong = || "values stand in brackets and quotes".to_owned();
        if !self.takes("(") {
            return Err(wrong());
        }
        let mut values = Vec::new();
        loop {
            self.space();
            let quote = self.rest.chars().next().filter(|c| "`\"'".contains(*c));
            let quote = quote.ok_or_else(wrong)?;
            let (value, rest) = self.rest[1..].split_once(quote).ok_or_else(wrong)?;
            values.push(value.to_owned());
            self.rest = rest;
            if self.takes(",") {
                continue;
            }
            return if self.takes(")") { Ok(values) } else { Err(wrong()) };
        }
    }
}

fn both(a: &Alternative, b: &Alternative) -> Result<Alternative, String> {
    let one = |a: &Vec<String>, b: &Vec<String>| match (a.is_empty(), b.is_empty()) {
        (false, false) => Err("two conditions of one kind at once".to_owned()),
        (true, _) => Ok(b.clone()),
        (false, true) => Ok(a.clone()),
    };
    let hostnames = match (&a.hostnames, &b.hostnames) {
        (Some(a), Some(b)) => Some(one(a, b)?),
        (a, b) => a.clone().or_else(|| b.clone()),
    };
    Ok(Alternative {
        hostnames,
        sources: one(&a.sources, &b.sources)?,
        alpn: one(&a.alpn, &b.alpn)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_alternatives() {
        let owned = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        let names =
            |all: &[&str]| Alternative { hostnames: Some(owned(all)), ..Alternative::default() };
        assert_eq!(read("HostSNI(`*`)"), Ok(vec![names(&[])]));
        assert_eq!(read("HostSNI(`a`, `b`)"), Ok(vec![names(&["a", "b"])]));
        assert_eq!(read("HostSNI(`a`) || HostSNI(\"b\")"), Ok(vec![names(&["a"]), names(&["b"])]));
        let with = Alternative { sources: owned(&["10.0.0.0/8"]), ..names(&["a"]) };
        assert_eq!(read("(HostSNI(`a`)) && ClientIP(`10.0.0.0/8`)"), Ok(vec![with]));
        for bad in ["", "HostSNI(`a`", "!HostSNI(`a`)", "HostSNIRegexp(`.+`)", "HostSNI(`a`) x"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(read(&"(".repeat(100_000)).is_err());
    }
}
