//! What the pages say of the code is so.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ringway::stats::records::{CloseReason, DropReason};

/// Every page that has links.
const PAGES: [&str; 11] = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "appliance/README.md",
    "bench/README.md",
    "config-sync/README.md",
    "config-sync/REFERENCE.md",
    "images/OPERATING.md",
    "images/README.md",
    "tests/README.md",
    "tuning/README.md",
];

#[test]
fn each_reason_is_explained() {
    let close = CloseReason::ALL.iter().map(|reason| (reason.word(), reason.meaning()));
    assert_eq!(section("close reasons"), table(close));
    let drop = DropReason::ALL.iter().map(|reason| (reason.word(), reason.meaning()));
    assert_eq!(section("drop reasons"), table(drop));
}

#[test]
fn links_lead_somewhere() {
    let pages = PAGES.map(|file| root().join(file)).into_iter().chain(docs());
    for path in pages {
        let file = path.display();
        let text = fs::read_to_string(&path).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let local: Vec<_> = links.filter(|link| !link.contains("://")).collect();
        assert!(!local.is_empty());
        for link in local {
            let (to, heading) = link.split_once('#').unwrap_or((link, ""));
            let to = if to.is_empty() { path.clone() } else { path.parent().unwrap().join(to) };
            assert!(to.exists(), "{file}: {link}");
            assert!(heading.is_empty() || has_heading(&to, heading), "{file}: {link}");
        }
    }
}

/// The pages of `ringway docs`.
fn docs() -> Vec<PathBuf> {
    let files = fs::read_dir(root().join("images/docs")).unwrap();
    files.map(|file| file.unwrap().path()).collect()
}

/// What a page shows is what the file has, and each file is shown.
#[test]
fn pages_show_the_examples() {
    let folder = root().join("images/examples");
    let mut shown = BTreeSet::new();
    for page in docs() {
        let text = fs::read_to_string(&page).unwrap();
        for rest in text.split("<!-- example: ").skip(1) {
            let (name, block) = rest.split_once(" -->\n```").unwrap();
            let (_, block) = block.split_once('\n').unwrap();
            let (block, _) = block.split_once("```").unwrap();
            let file = folder.join(name);
            let file = if file.is_file() { file } else { folder.join(format!("{name}.toml")) };
            let example = fs::read_to_string(&file).unwrap();
            assert_eq!(block, example, "{} shows {name}", page.display());
            shown.insert(file);
        }
    }
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                assert!(shown.contains(&path), "no page shows {}", path.display());
            }
        }
    }
}

/// Whether a Markdown file has a heading to which GitHub gives that anchor: in lower case, without
/// punctuation, with hyphens for spaces.
fn has_heading(file: &Path, anchor: &str) -> bool {
    let text = fs::read_to_string(file).unwrap();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| line.trim_start_matches('#').trim().to_lowercase()).any(|heading| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).eq(anchor.chars())
    })
}

fn table<'a>(rows: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let rows = rows.map(|(word, meaning)| format!("| `{word}` | {meaning} |\n"));
    format!("| reason | what it means |\n|---|---|\n{}", rows.collect::<String>())
}

/// What stands between the comment that names it and the next one.
fn section(name: &str) -> String {
    let text = fs::read_to_string(root().join("images/OPERATING.md")).unwrap();
    let start = format!("<!-- {name}: checked by tests/tests/readme.rs -->\n");
    let (_, rest) = text.split_once(&start).unwrap();
    rest.split_once("<!-- end -->").unwrap().0.to_owned()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}
