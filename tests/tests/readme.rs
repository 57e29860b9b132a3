//! What the pages say of the code is so.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ringway::stats::records::{CloseReason, DropReason};

/// Every page that has links.
const PAGES: [&str; 12] = [
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
    "tests/conformance/README.md",
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
fn each_reason_has_its_usual_cause() {
    let page = fs::read_to_string(root().join("images/docs/troubleshooting.md")).unwrap();
    let close = CloseReason::ALL.iter().map(|reason| reason.word());
    let words = close.chain(DropReason::ALL.iter().map(|reason| reason.word()));
    let missing: Vec<_> = words.filter(|word| !page.contains(&format!("`{word}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
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

/// The rules of the Gateway API's conformance/reports/README.md, for what is to be sent there: the
/// files and their names, the fields, the results, and a row for each file on the page.
#[test]
fn reports_can_be_sent() {
    let folder = root().join("tests/conformance/reports");
    let page = fs::read_to_string(folder.join("README.md")).unwrap();
    for part in ["# Ringway\n", "\n## Table of contents\n", "\n## Reproduce\n"] {
        assert!(page.contains(part), "{part}");
    }
    // Upstream the page stands elsewhere, with nothing but the reports beside it.
    let links = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    for link in links.filter(|link| !link.starts_with("https://")) {
        assert!(link.starts_with("./") && folder.join(link).exists(), "{link}");
    }
    let suite = fs::read_to_string(root().join("tests/conformance/newest/go.mod")).unwrap();
    for channel in ["standard", "experimental"] {
        let version = env!("CARGO_PKG_VERSION");
        let name = format!("{channel}-{version}-default-report.yaml");
        let text = fs::read_to_string(folder.join(&name)).unwrap();
        let report: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(report["kind"], "ConformanceReport", "{name}");
        assert_eq!(report["gatewayAPIChannel"], channel, "{name}");
        assert_eq!(report["mode"], "default", "{name}");
        let of = report["gatewayAPIVersion"].as_str().unwrap();
        let module = format!("sigs.k8s.io/gateway-api/conformance {of}\n");
        assert!(
            suite.contains(&module),
            "{name} is of {of}: tests/run --report binary conformance"
        );
        let by = &report["implementation"];
        assert_eq!(by["version"], version, "{name}");
        assert!(by["url"].as_str().unwrap().starts_with("https://"), "{name}");
        for key in ["organization", "project"] {
            assert!(!by[key].as_str().unwrap().is_empty(), "{name}: {key}");
        }
        assert!(!by["contact"].as_array().unwrap().is_empty(), "{name}");
        let profiles = report["profiles"].as_array().unwrap();
        assert_eq!(profiles.len(), 3, "{name}");
        for profile in profiles {
            for part in ["core", "extended"] {
                assert_eq!(profile[part]["result"], "success", "{name}: {}", profile["name"]);
            }
        }
        let row = format!("| {channel} | [{version}](https://");
        let row = page.lines().find(|line| line.starts_with(&row)).unwrap();
        assert!(row.ends_with(&format!("| default | [{version} report](./{name}) |")), "{row}");
    }
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
