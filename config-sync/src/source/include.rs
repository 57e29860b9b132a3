//! Reads TOML files and the files that they include.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{self, read_text};
use crate::model::place::{At, Place, Problem, Problems};
use crate::toml::files::includes;

/// The most files from the first file to an included file, without the first file.
const DEPTH: usize = 8;

/// The text of a file that includes nothing, or the names and texts of all files, each with NUL
/// after it. A name that ends in a slash is a directory that a pattern looks into; its text is
/// empty.
///
/// # Errors
/// Every fault, one per line: a file can't be read, or can't be included.
pub(super) fn file(path: &Path) -> Result<String, String> {
    let text = read_text(path)?;
    let name = path.display().to_string();
    if text.contains('\0') {
        return Err(format!("{name}: has a NUL character"));
    }
    if includes(&name, &text).is_none() {
        return Ok(text);
    }
    let mut files = Files::default();
    files.take(path, None, 0);
    files.joined()
}

/// The same for all files of a directory, in this order.
pub(super) fn directory(paths: &[PathBuf]) -> Result<String, String> {
    let mut files = Files::default();
    for path in paths {
        files.take(path, None, 0);
    }
    files.joined()
}

#[derive(Default)]
struct Files {
    joined: String,
    /// Files by their real paths, and what names them.
    seen: BTreeMap<PathBuf, Option<Place>>,
    /// Faults of files that no file includes.
    faults: Vec<String>,
    problems: Vec<Problem>,
}

impl Files {
    /// Faults come in the order of all other problems: file by file, and by line.
    fn joined(self) -> Result<String, String> {
        let problems = Problems::new(self.problems).or(()).err();
        let told = problems.map(|problems| problems.to_string());
        let faults: Vec<String> = self.faults.into_iter().chain(told).collect();
        if faults.is_empty() { Ok(self.joined) } else { Err(faults.join("\n")) }
    }

    fn refuse(&mut self, by: Option<&Place>, message: String) {
        match by {
            Some(by) => self.problems.push(by.problem(message)),
            None => self.faults.push(message),
        }
    }

    /// Takes a file and the files that it includes. `by` is the place that names the file.
    fn take(&mut self, path: &Path, by: Option<&Place>, depth: usize) {
        let name = path.display().to_string();
        let text = match read_text(path) {
            Ok(text) if text.contains('\0') => Err(format!("{name}: has a NUL character")),
            other => other,
        };
        let text = match text {
            Ok(text) => text,
            Err(message) => return self.refuse(by, message),
        };
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if let Some(first) = self.seen.get(&real) {
            let first = match (first, by) {
                (Some(first), Some(by)) => format!("{} includes it", first.seen_from(by)),
                (Some(first), None) => format!("{}:{} includes it", first.file, first.line),
                (None, _) => "it is the file, or in the directory, to begin with".to_owned(),
            };
            let message = format!("{name} is read already: {first}; a file may be read once");
            return self.refuse(by, message);
        }
        self.seen.insert(real, by.cloned());
        self.joined.extend([&name, "\0", &text, "\0"]);
        for at in includes(&name, &text).unwrap_or_default() {
            if depth == DEPTH {
                let message = format!("more than {DEPTH} files include each other in a row");
                self.refuse(Some(&at.place), message);
                continue;
            }
            match self.named(&at) {
                Ok(paths) => {
                    paths.iter().for_each(|path| self.take(path, Some(&at.place), depth + 1));
                }
                Err(message) => self.refuse(Some(&at.place), message),
            }
        }
    }

    /// The files that an element of `include` names. A pattern may name none.
    fn named(&mut self, At { value, place }: &At<String>) -> Result<Vec<PathBuf>, String> {
        let path = place.path(value);
        let (folder, last) = value.rsplit_once('/').unwrap_or(("", value));
        if folder.contains('*') {
            return Err(format!("\"{value}\": only the last part of a path may have `*`"));
        }
        if !last.ends_with(".toml") {
            return Err(format!("\"{value}\": the name of an included file must end in .toml"));
        }
        if !last.contains('*') {
            return Ok(vec![path]);
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or_else(|| Path::new(".")).to_owned();
        self.joined.extend([&folder.display().to_string(), "/\0\0"]);
        let (owned, pattern) = (folder.clone(), last.to_owned());
        let listed = disk::within(&folder, disk::DEADLINE, move || matching(&owned, &pattern));
        let names = match listed {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(format!("{}: {error}", folder.display())),
        };
        Ok(names.iter().map(|name| path.with_file_name(name)).collect())
    }
}

/// The names in a directory that a pattern matches, sorted. Like a shell's, a pattern matches
/// hidden files only if it begins with a dot.
fn matching(folder: &Path, pattern: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_hidden = name.starts_with('.') && !pattern.starts_with('.');
        if !is_hidden && matches(pattern, &name) && !entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Whether the name is the pattern, in which each `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    let inner = name.strip_prefix(first).and_then(|name| name.strip_suffix(last));
    let Some(mut inner) = inner else { return false };
    middle.split('*').all(|part| match inner.find(part) {
        Some(at) => {
            inner = &inner[at + part.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::testing::Folder;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, expected) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.toml~", false),
            ("a*b.toml", "ab.toml", true),
            ("a*a.toml", "a.toml", false),
            ("*-*-*.toml", "x-y-z.toml", true),
            ("*-*-*.toml", "x-y.toml", false),
            ("db.toml", "db.toml", true),
            ("ä*ö*.toml", "äxö.toml", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    /// The names of the files that are read, or the faults, without the folder's path.
    fn read(folder: &Folder, files: &[(&str, &str)]) -> Result<Vec<String>, String> {
        for (name, text) in files {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, text).expect("written");
        }
        let short = |text: &str| text.replace(&format!("{}/", folder.display()), "");
        match file(&folder.join("main.toml")) {
            Ok(text) => Ok(text.split('\0').step_by(2).map(short).collect()),
            Err(faults) => Err(short(&faults)),
        }
    }

    #[test]
    fn files_come_in_order_each_before_what_it_includes() {
        let folder = Folder::new("include");
        let found = read(
            &folder,
            &[
                ("main.toml", "include = [\"conf.d/*.toml\", \"last.toml\", \"none/*.toml\"]\n"),
                ("conf.d/b.toml", "a = 1"),
                ("conf.d/a.toml", "include = [\"deep/x.toml\"]"),
                ("conf.d/deep/x.toml", "a = 1"),
                ("conf.d/.hidden.toml", "a = 1"),
                ("conf.d/c.toml.bak", "a = 1"),
                ("last.toml", "a = 1"),
            ],
        );
        let expected = [
            "main.toml",
            "conf.d/",
            "conf.d/a.toml",
            "conf.d/deep/x.toml",
            "conf.d/b.toml",
            "last.toml",
            "none/",
            "",
        ];
        assert_eq!(found.expect("no fault"), expected);
    }

    #[test]
    fn what_can_not_be_included_is_told_at_its_place() {
        let folder = Folder::new("no-include");
        for (main, expected) in [
            ("\"a.toml\"", "main.toml:1:12: include[0]: a.toml: No such file"),
            ("\"*/a.toml\"", "main.toml:1:12: include[0]: \"*/a.toml\": only the last part"),
            ("\"a.yaml\"", "main.toml:1:12: include[0]: \"a.yaml\": the name of an included"),
            ("\"\"", "main.toml:1:12: include[0]: \"\": the name of an included"),
            ("\"*.toml\"", "main.toml:1:12: include[0]: main.toml is read already: it is the"),
        ] {
            let said = read(&folder, &[("main.toml", &format!("include = [{main}]"))]);
            let said = said.expect_err(main);
            assert!(said.starts_with(expected), "{said}");
        }
        let circle = [
            ("main.toml", "include = [\"b.toml\",\n\"./b.toml\"]"),
            ("b.toml", "\ninclude = [\"c.toml\"]"),
            ("c.toml", "include = [\"b.toml\"]"),
        ];
        let said = read(&folder, &circle).expect_err("a circle");
        let said: Vec<_> = said.lines().collect();
        let [first, second] = said[..] else { panic!("{said:?}") };
        assert!(first.starts_with("c.toml:1:12: include[0]: b.toml is read already: "), "{first}");
        assert!(first.contains("main.toml:1 includes it"), "{first}");
        assert!(second.starts_with("main.toml:2:1: include[1]: ./b.toml is read"), "{second}");
        assert!(second.contains(": line 1 includes it"), "{second}");

        let files = [
            ("main.toml", "include = [\"z.toml\", \"gone.toml\", \"a.toml\",\n\"late.toml\"]"),
            ("z.toml", "include = [\"none.toml\"]"),
            ("a.toml", "include = [\"none.toml\"]"),
        ];
        let said = read(&folder, &files).expect_err("four faults");
        let places: Vec<_> = said.lines().map(|line| line.split(": ").next()).collect();
        let expected = ["a.toml:1:12", "main.toml:1:22", "main.toml:2:1", "z.toml:1:12"];
        assert_eq!(places, expected.map(Some), "by file and line: {said}");

        let chain = |n: usize| format!("include = [\"{}.toml\"]", n + 1);
        for n in 0..9 {
            read(&folder, &[(&format!("{n}.toml"), &chain(n))]).expect_err("the circle is left");
        }
        let said = read(&folder, &[("9.toml", "a = 1"), ("main.toml", &chain(0))]);
        assert!(said.expect_err("9 deep").starts_with("8.toml:1:12: include[0]: more than 8"));
        let said = read(&folder, &[("main.toml", &chain(1))]);
        assert_eq!(said.expect("8 deep").len(), 10);
    }
}
