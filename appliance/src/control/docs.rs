//! The pages of images/docs, which the program has with it.

use std::fmt::Write as _;

use anyhow::anyhow;

/// A page, by the word that names it.
struct Page {
    topic: &'static str,
    text: &'static str,
}

const PAGES: &[Page] = &[
    page("quick-start", include_str!("../../../images/docs/quick-start.md")),
    page("moving-here", include_str!("../../../images/docs/moving-here.md")),
    page("postgresql", include_str!("../../../images/docs/postgresql.md")),
    page("mysql", include_str!("../../../images/docs/mysql.md")),
    page("redis", include_str!("../../../images/docs/redis.md")),
    page("kafka", include_str!("../../../images/docs/kafka.md")),
    page("mqtt", include_str!("../../../images/docs/mqtt.md")),
    page("amqp", include_str!("../../../images/docs/amqp.md")),
    page("smtp", include_str!("../../../images/docs/smtp.md")),
    page("ldap", include_str!("../../../images/docs/ldap.md")),
    page("dns", include_str!("../../../images/docs/dns.md")),
    page("syslog", include_str!("../../../images/docs/syslog.md")),
    page("sip", include_str!("../../../images/docs/sip.md")),
    page("games", include_str!("../../../images/docs/games.md")),
    page("wireguard", include_str!("../../../images/docs/wireguard.md")),
    page("quic", include_str!("../../../images/docs/quic.md")),
    page("several-machines", include_str!("../../../images/docs/several-machines.md")),
    page("operating", include_str!("../../../images/docs/operating.md")),
    page("upgrade", include_str!("../../../images/docs/upgrade.md")),
    page("security", include_str!("../../../images/docs/security.md")),
    page("metrics", include_str!("../../../images/docs/metrics.md")),
    page("troubleshooting", include_str!("../../../images/docs/troubleshooting.md")),
    page("comparison", include_str!("../../../images/docs/comparison.md")),
    page("manual", MANUAL),
];

/// The whole page on operating. `operating` is its short form.
const MANUAL: &str = include_str!("../../../images/OPERATING.md");

const fn page(topic: &'static str, text: &'static str) -> Page {
    Page { topic, text }
}

/// The page on a topic, or the list of topics.
pub fn text(topic: Option<&str>) -> anyhow::Result<String> {
    let Some(topic) = topic else { return Ok(list()) };
    let page = PAGES.iter().find(|page| page.topic == topic);
    let page = page.ok_or_else(|| anyhow!("there is no page {topic:?}; these are:\n{}", list()))?;
    // The comments say which file an example is.
    let lines = page.text.lines().filter(|line| !line.starts_with("<!--"));
    Ok(lines.flat_map(|line| [line, "\n"]).collect())
}

fn list() -> String {
    let mut text = String::new();
    for page in PAGES {
        let title = page.text.lines().next().unwrap_or_default().trim_start_matches("# ");
        let _ = writeln!(text, "{:<18} {title}", page.topic);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_of_the_folder_is_listed_and_printed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/docs");
        let files = std::fs::read_dir(folder).expect("the folder");
        let names = files.map(|file| file.expect("a file").file_name().into_string());
        let mut there: Vec<_> = names.map(|name| name.expect("UTF-8")).collect();
        there.sort();
        let of_folder = PAGES.iter().filter(|page| page.text != MANUAL);
        let mut listed: Vec<_> = of_folder.map(|page| format!("{}.md", page.topic)).collect();
        listed.sort();
        assert_eq!(listed, there);
        for page in PAGES {
            let text = text(Some(page.topic)).expect("a page");
            assert!(text.starts_with("# ") && !text.contains("<!--"), "{}", page.topic);
        }
    }

    #[test]
    fn an_unknown_topic_lists_those_that_are_known() {
        let error = text(Some("gopher")).expect_err("no page").to_string();
        assert!(error.contains("postgresql         PostgreSQL, with Patroni"), "{error}");
        assert_eq!(text(None).expect("a list").lines().count(), PAGES.len());
    }
}
