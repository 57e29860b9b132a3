//! A configuration as a tree of values, so that two configurations can be compared key by key.

use std::path::Path;

use serde_json::Value;

use crate::gateway::print;
use crate::model::config::Config;

/// The long form of a configuration. Keys with default values are absent. Files are named by whole
/// paths, because the configurations that are compared are read in different directories.
///
/// # Errors
/// The long form can't be read back, which is a fault of this program.
pub fn tree(config: &Config) -> Result<Value, String> {
    let text = print::long(config);
    let mut tree: Value = toml::from_str(&text).map_err(|error| error.to_string())?;
    let mut files = config.files();
    let named = [&config.admin_token_file, &config.admin_overrides_file].into_iter().flatten();
    let tls = config.admin_tls.iter();
    let tls = tls.flat_map(|tls| [&tls.cert, &tls.key].into_iter().chain(&tls.client_ca));
    files.extend(named.chain(tls).map(|file| file.value.clone()));
    let whole = |text: &str| match files.contains(Path::new(text)) {
        true => Some(std::path::absolute(text).ok()?.display().to_string()),
        false => None,
    };
    rename(&mut tree, &whole);
    Ok(tree)
}

fn rename(value: &mut Value, whole: &dyn Fn(&str) -> Option<String>) {
    match value {
        Value::String(text) => {
            if let Some(path) = whole(text) {
                *text = path;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| rename(value, whole)),
        Value::Object(values) => values.values_mut().for_each(|value| rename(value, whole)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
