//! Any YAML is Kubernetes objects or faults with their places, both by the strict way of files and
//! by the tolerant way of what a cluster has. Whatever the objects say, they come to a
//! configuration that fits together, and the TOML that is printed of it means the same.
#![no_main]

use std::sync::OnceLock;

use config_sync::check::parse_for;
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::gateway::files::{Options, read, read_of_cluster};
use config_sync::gateway::print;
use config_sync::gateway::status::Outcome;
use config_sync::gateway::translate::settings::Settings;
use config_sync::gateway::translate::translate;
use config_sync::model::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    static SETTINGS: OnceLock<[Settings; 2]> = OnceLock::new();
    let [shared, pool] = SETTINGS.get_or_init(|| [settings(&[]), settings(&["10.9.0.0/28"])]);
    let strict = read([("f", text)].into_iter());
    let objects = match read_of_cluster([("f", text)].into_iter()) {
        Ok(found) => found.objects,
        Err(faults) => {
            assert!(strict.is_err(), "{faults}");
            return assert!(faults.starts_with("f:"));
        }
    };
    assert!(strict.err().is_none_or(|faults| faults.starts_with("f:")));
    for settings in [shared, pool] {
        let translation = translate(&objects, settings);
        let _ = translation.statuses(&Outcome::Applied);
        // Names draw the secret of the sources' keys.
        let mut names = Names::new();
        let table = table(&translation.config, &mut names);
        if let Some(toml) = printed(&translation.config) {
            let read = parse_for("f", &toml, &settings.machine).expect("what was printed");
            assert_eq!(table, self::table(&read, &mut names), "{toml}");
        }
    }
});

fn settings(pool: &[&str]) -> Settings {
    let options = Options {
        address_pool: pool.iter().map(|net| net.parse().expect("CIDR")).collect(),
        node_addresses: vec!["192.0.2.1".parse().expect("address")],
        zone: Some("z1".to_owned()),
        external_names: true,
    };
    options.settings(("", "")).expect("nothing is a configuration")
}

fn table(config: &Config, names: &mut Names) -> String {
    format!("{:?}", compile(config, names, 1).expect("parts that fit together"))
}

/// `None`: a key is left out, so that it means less.
fn printed(config: &Config) -> Option<String> {
    let mut whole = true;
    let toml = print::toml(config, &mut |_| {
        whole = false;
        None
    });
    whole.then_some(toml)
}
