//! Conditions of rules: `if { req.ssl_sni -i a.example.com }`, `if local !tls` (HAProxy's manual,
//! section 7).

use std::collections::BTreeMap;

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::haproxy::words::Line;

/// What one test asks.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// One of these server names, of a ClientHello that passes through (`false`) or of TLS that
    /// ends here (`true`).
    Names(bool, Vec<String>),
    /// A client in one of these ranges, or in one of the ranges of these files.
    Sources {
        ranges: Vec<String>,
        files: Vec<String>,
    },
    /// A ClientHello has come.
    Hello,
    Always,
    Never,
    /// It can't be said; why.
    Unknown(String),
}

/// A test, and whether it must fail.
pub type Term = (bool, Test);

/// All the tests that `acl` lines name.
pub type Acls = BTreeMap<String, Vec<Test>>;

/// Adds an `acl` line.
pub fn define(acls: &mut Acls, line: &Line, findings: &mut Findings) {
    let Some(name) = line.words.get(1) else { return };
    let test = test(&line.words[2..], line.at, findings);
    acls.entry(name.clone()).or_default().push(test);
}

/// Any of the lists must hold, each with all its terms. `words` begin with `if` or `unless`; no
/// words stand for a condition that always holds.
pub fn condition(
    words: &[String],
    acls: &Acls,
    at: At,
    findings: &mut Findings,
) -> Result<Vec<Vec<Term>>, String> {
    let Some((how, words)) = words.split_first() else { return Ok(vec![Vec::new()]) };
    let mut any = terms(words, acls, at, findings)?;
    match how.as_str() {
        "if" => Ok(any),
        // Not (a or b) is (not a) and (not b).
        "unless" if any.iter().all(|all| all.len() == 1) => {
            let negated = any.drain(..).flatten().map(|(not, test)| (!not, test));
            Ok(vec![negated.collect()])
        }
        "unless" if any.len() == 1 => {
            let negated = any.remove(0).into_iter().map(|(not, test)| vec![(!not, test)]);
            Ok(negated.collect())
        }
        "unless" => Err("`unless` with several alternatives".to_owned()),
        other => Err(format!("{other:?} is neither `if` nor `unless`")),
    }
}

fn terms(
    words: &[String],
    acls: &Acls,
    at: At,
    findings: &mut Findings,
) -> Result<Vec<Vec<Term>>, String> {
    let mut any: Vec<Vec<Term>> = vec![Vec::new()];
    let mut words = words.iter();
    let mut not = false;
    while let Some(word) = words.next() {
        let word = match word.strip_prefix('!') {
            Some(rest) => {
                not = !not;
                rest
            }
            None => word,
        };
        let tests = match word {
            "" => continue,
            "||" | "or" => {
                any.push(Vec::new());
                continue;
            }
            "{" => {
                let inner: Vec<_> =
                    words.by_ref().take_while(|word| *word != "}").cloned().collect();
                vec![test(&inner, at, findings)]
            }
            name => match (acls.get(name), name) {
                (Some(tests), _) => tests.clone(),
                (None, "TRUE" | "WAIT_END") => vec![Test::Always],
                (None, "FALSE") => vec![Test::Never],
                (None, "REQ_SSL_SNI" | "HTTP") => return Err(format!("{name} is not understood")),
                (None, _) => return Err(format!("there is no acl {name:?}")),
            },
        };
        add(&mut any, not, tests)?;
        not = false;
    }
    Ok(any)
}

/// An acl of several lines holds if one of them does.
fn add(any: &mut Vec<Vec<Term>>, not: bool, tests: Vec<Test>) -> Result<(), String> {
    let Some(last) = any.pop() else { return Ok(()) };
    if not {
        let all = last.into_iter().chain(tests.into_iter().map(|test| (true, test)));
        any.push(all.collect());
        return Ok(());
    }
    if any.len() + tests.len() > 64 {
        return Err("more than 64 alternatives".to_owned());
    }
    for test in joined(tests) {
        any.push(last.iter().cloned().chain([(false, test)]).collect());
    }
    Ok(())
}

/// Alternatives of one kind are one list.
fn joined(tests: Vec<Test>) -> Vec<Test> {
    let mut all: Vec<Test> = Vec::new();
    for test in tests {
        match (all.last_mut(), test) {
            (Some(Test::Names(here, names)), Test::Names(too, more)) if *here == too => {
                names.extend(more);
            }
            (Some(Test::Sources { ranges, files }), Test::Sources { ranges: r, files: f }) => {
                ranges.extend(r);
                files.extend(f);
            }
            (_, test) => all.push(test),
        }
    }
    all
}

/// The words of one test: what is looked at, flags, patterns.
fn test(words: &[String], at: At, findings: &mut Findings) -> Test {
    let Some((fetch, words)) = words.split_first() else {
        return Test::Unknown("an empty test".to_owned());
    };
    let (mut method, mut files, mut patterns) = ("str", Vec::new(), Vec::new());
    let mut words = words.iter();
    let mut flags = true;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--" if flags => flags = false,
            "-i" | "-n" | "-u" if flags => {}
            "-m" if flags => method = words.next().map_or("", String::as_str),
            "-f" if flags => files.extend(words.next().cloned()),
            flag if flags && flag.len() == 2 && flag.starts_with('-') => {
                return Test::Unknown(format!("the flag {flag}"));
            }
            pattern => patterns.push(pattern.to_owned()),
        }
    }
    let (fetch, method) = match fetch.trim_end_matches(",lower") {
        "ssl_fc_sni_end" => ("ssl_fc_sni", "end"),
        "ssl_fc_sni_reg" => ("ssl_fc_sni", "reg"),
        fetch => (fetch, method),
    };
    match fetch {
        "req.ssl_sni" | "req_ssl_sni" | "ssl_fc_sni" => {
            let here = fetch == "ssl_fc_sni";
            if !files.is_empty() {
                return Test::Unknown(
                    "names from a file: write them into the condition".to_owned(),
                );
            }
            match names(method, patterns, at, findings) {
                Ok(names) => Test::Names(here, names),
                Err(why) => Test::Unknown(why),
            }
        }
        "src" => Test::Sources { ranges: patterns.iter().map(|text| range(text)).collect(), files },
        "req.ssl_hello_type" | "req_ssl_hello_type" if patterns == ["1"] => Test::Hello,
        "req.ssl_ver" | "req_ssl_ver" => Test::Hello,
        "always_true" => Test::Always,
        "always_false" => Test::Never,
        other => Test::Unknown(format!("{other} is not looked at by Ringway")),
    }
}

fn names(
    method: &str,
    patterns: Vec<String>,
    at: At,
    findings: &mut Findings,
) -> Result<Vec<String>, String> {
    match method {
        "str" => {}
        "end" => return Ok(patterns.iter().flat_map(|end| ending(end, at, findings)).collect()),
        "found" => return Err("any server name at all".to_owned()),
        method => return Err(format!("names by `-m {method}`: only whole names and ends are")),
    }
    Ok(patterns)
}

/// Names that end so. Without a dot in front, HAProxy takes `xexample.com` for `example.com` too.
fn ending(end: &str, at: At, findings: &mut Findings) -> Vec<String> {
    if end.starts_with('.') {
        return vec![format!("*{end}")];
    }
    let text = "longer names without a dot in front of it also matched, and do not any more";
    findings.note(at, format!("{end:?}: {text}"));
    vec![end.to_owned(), format!("*.{end}")]
}

/// HAProxy takes `10.1/16` and bits behind the prefix; Ringway wants neither.
fn range(text: &str) -> String {
    let net = text.parse::<ipnet::IpNet>().map(|net| net.trunc().to_string());
    net.unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, acl: &[&str]) -> Result<Vec<Vec<Term>>, String> {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (mut acls, mut findings) = (Acls::new(), Findings::default());
        for line in acl {
            let line = Line { at: At::default(), words: words(line) };
            define(&mut acls, &line, &mut findings);
        }
        condition(&words(text), &acls, At::default(), &mut findings)
    }

    #[test]
    fn conditions_are_alternatives_of_terms() {
        let names = |all: &[&str]| {
            (false, Test::Names(false, all.iter().map(ToString::to_string).collect()))
        };
        let sources = |range: &str| Test::Sources { ranges: vec![range.into()], files: vec![] };
        assert_eq!(read("if { req.ssl_sni -i a b }", &[]), Ok(vec![vec![names(&["a", "b"])]]));
        let acl = ["acl x req.ssl_sni a", "acl x req_ssl_sni -m end .b", "acl n src 10.0.0.1/8"];
        assert_eq!(
            read("if x !n or n", &acl),
            Ok(vec![
                vec![names(&["a", "*.b"]), (true, sources("10.0.0.0/8"))],
                vec![(false, sources("10.0.0.0/8"))]
            ])
        );
        assert_eq!(read("unless n", &acl), Ok(vec![vec![(true, sources("10.0.0.0/8"))]]));
        assert!(read("if y", &[]).is_err());
        assert!(matches!(
            read("if { hdr(host) a }", &[]).as_deref(),
            Ok([all]) if matches!(&all[..], [(false, Test::Unknown(_))])
        ));
    }
}
