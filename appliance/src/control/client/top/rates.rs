//! How fast the totals of a list grow.

use std::collections::HashMap;

use serde_json::Value;

/// The fields that only grow, until the gateway is started anew.
const TOTALS: [&str; 5] = ["opened", "refused", "connect_failures", "bytes_up", "bytes_down"];

/// Calls `change` for each total of each row, with what the total has grown by. `None`: the row was
/// not there before.
pub fn each_growth(
    before: &[Value],
    after: &mut [Value],
    key: &[&str],
    change: impl Fn(&mut Value, &str, Option<u64>),
) {
    let name = |row: &Value| key.iter().map(|key| row[*key].to_string()).collect::<String>();
    let old: HashMap<_, _> = before.iter().map(|row| (name(row), row)).collect();
    for row in after {
        let old = old.get(&name(row));
        for field in TOTALS {
            let Some(total) = row.get(field).and_then(Value::as_u64) else { continue };
            // A gateway that was started anew counts from 0.
            let grown = old.map(|old| total.saturating_sub(old[field].as_u64().unwrap_or(0)));
            change(row, field, grown);
        }
    }
}
