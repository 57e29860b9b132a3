//! Compares objects with the definitions of their kinds, as an API server would: unknown and
//! missing fields, types, words, patterns, bounds and lengths, and then rules.

use std::collections::BTreeMap;
use std::net::IpAddr;

use regex::Regex;
use serde_json::{Map, Value};

use crate::gateway::objects::definitions;
use crate::gateway::objects::rules::Rules;
use crate::model::place::did_you_mean;

/// Keeps the patterns, because many objects have fields of one pattern.
#[derive(Default)]
pub(in crate::gateway) struct Inspector {
    patterns: BTreeMap<String, Option<Regex>>,
    rules: Rules,
    faults: Vec<String>,
}

impl Inspector {
    /// The faults of an object of this kind, each as `FIELD: MESSAGE`.
    pub(in crate::gateway) fn faults(
        &mut self,
        kind: &str,
        definition: &Value,
        object: &Value,
    ) -> Vec<String> {
        self.value(kind, definition, object, "");
        if kind == "Gateway" {
            self.addresses(&object["spec"]["addresses"]);
        }
        if self.faults.is_empty() {
            return self.rules.broken(definition, object);
        }
        std::mem::take(&mut self.faults)
    }

    fn fault(&mut self, at: &str, message: &str) {
        self.faults.push(format!("{at}: {message}"));
    }

    fn value(&mut self, kind: &str, schema: &Value, value: &Value, at: &str) {
        if let Some(wanted) = schema["type"].as_str()
            && !is_of(wanted, value)
        {
            let is_scalar = value.is_number() || value.is_boolean();
            let quotes = if wanted == "string" && is_scalar { "; put it in quotes" } else { "" };
            let a = if wanted.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
            return self.fault(at, &format!("must be {a} {wanted}{quotes}"));
        }
        if let Some(words) = schema["enum"].as_array()
            && !words.contains(value)
        {
            let known = words.iter().filter_map(Value::as_str);
            let near = did_you_mean(value.as_str().unwrap_or_default(), known);
            let all: Vec<_> = words.iter().map(ToString::to_string).collect();
            let all = all.join(", ");
            return self.fault(at, &format!("{value} is none of the allowed words: {all}{near}"));
        }
        match value {
            Value::Object(fields) => self.object(kind, schema, fields, at),
            Value::Array(items) => self.array(kind, schema, items, at),
            Value::String(text) => self.string(schema, text, at),
            Value::Number(_) => self.number(schema, value, at),
            Value::Bool(_) | Value::Null => {}
        }
    }

    fn object(&mut self, kind: &str, schema: &Value, fields: &Map<String, Value>, at: &str) {
        self.length(schema, ("minProperties", "maxProperties"), fields.len(), "fields", at);
        // A field that is null is a missing one for the API server too.
        let is_there = |name: &str| fields.get(name).is_some_and(|value| !value.is_null());
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !is_there(name) {
                self.fault(&under(at, name), "missing");
            }
        }
        let others = schema.get("additionalProperties");
        let Some(known) = schema["properties"].as_object() else {
            for (name, value) in fields.iter().filter(|(name, _)| is_there(name)) {
                if let Some(schema) = others {
                    self.value(kind, schema, value, &under(at, name));
                }
            }
            return;
        };
        for (name, value) in fields {
            let at = under(at, name);
            match known.get(name).or(others) {
                Some(schema) if is_there(name) => self.value(kind, schema, value, &at),
                Some(_) => {}
                None if definitions::is_whole(schema) => {
                    let near = did_you_mean(name, known.keys().map(String::as_str));
                    self.fault(&at, &format!("{kind} has no such field here{near}"));
                }
                None => {}
            }
        }
    }

    fn array(&mut self, kind: &str, schema: &Value, items: &[Value], at: &str) {
        self.length(schema, ("minItems", "maxItems"), items.len(), "items", at);
        let schema = &schema["items"];
        for (nth, item) in items.iter().enumerate() {
            self.value(kind, schema, item, &format!("{at}[{nth}]"));
        }
    }

    fn string(&mut self, schema: &Value, text: &str, at: &str) {
        let length = text.chars().count();
        self.length(schema, ("minLength", "maxLength"), length, "characters", at);
        let Some(pattern) = schema["pattern"].as_str() else { return };
        let known = self.patterns.entry(pattern.to_owned());
        let read = known.or_insert_with(|| Regex::new(pattern).ok());
        if read.as_ref().is_some_and(|read| !read.is_match(text)) {
            self.fault(at, &format!("{text:?} does not fit the pattern {pattern}"));
        }
    }

    fn number(&mut self, schema: &Value, value: &Value, at: &str) {
        let is_small = value.as_i64().is_some_and(|value| i32::try_from(value).is_ok());
        if schema["format"] == "int32" && !is_small {
            return self.fault(at, &format!("{value} is no number of 32 bits"));
        }
        let (least, most) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
        let given = value.as_f64().unwrap_or_default();
        if least.is_some_and(|least| given < least) || most.is_some_and(|most| given > most) {
            let bounds = match (least, most) {
                (Some(least), Some(most)) => format!("{least} to {most}"),
                (Some(least), None) => format!("{least} or more"),
                (None, most) => format!("at most {}", most.unwrap_or_default()),
            };
            self.fault(at, &format!("must be {bounds}, and is {value}"));
        }
    }

    fn length(
        &mut self,
        schema: &Value,
        (least, most): (&str, &str),
        length: usize,
        of: &str,
        at: &str,
    ) {
        let bound =
            |name: &str| schema[name].as_u64().and_then(|bound| usize::try_from(bound).ok());
        if let Some(least) = bound(least).filter(|least| length < *least) {
            self.fault(at, &format!("must have at least {least} {of}, and has {length}"));
        }
        if let Some(most) = bound(most).filter(|most| length > *most) {
            self.fault(at, &format!("must have at most {most} {of}, and has {length}"));
        }
    }

    /// The definition says so by two alternatives (`oneOf`) that need the default of `type`.
    fn addresses(&mut self, addresses: &Value) {
        for (nth, address) in addresses.as_array().into_iter().flatten().enumerate() {
            let is_ip = address["type"].as_str().is_none_or(|kind| kind == "IPAddress");
            let value = address["value"].as_str().unwrap_or_default();
            if is_ip && !value.is_empty() && value.parse::<IpAddr>().is_err() {
                let at = format!("spec.addresses[{nth}].value");
                self.fault(&at, &format!("{value:?} is no IP address"));
            }
        }
    }
}

fn under(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

fn is_of(wanted: &str, value: &Value) -> bool {
    match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => value.is_number(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn every(schema: &Value, seen: &mut dyn FnMut(&str, &Value)) {
        for (keyword, value) in schema.as_object().into_iter().flatten() {
            seen(keyword, value);
            match keyword.as_str() {
                "properties" => {
                    let all = value.as_object().into_iter().flatten();
                    all.for_each(|(_, schema)| every(schema, seen));
                }
                "items" | "additionalProperties" => every(value, seen),
                _ => {}
            }
        }
    }

    /// A new release of the CRDs may bring keywords that would be passed over in silence.
    #[test]
    fn every_keyword_and_pattern_is_understood() {
        let known = BTreeSet::from([
            "additionalProperties",
            "enum",
            "format",
            "items",
            "maxItems",
            "maxLength",
            "maxProperties",
            "maximum",
            "minItems",
            "minLength",
            "minProperties",
            "minimum",
            "pattern",
            "properties",
            "required",
            "type",
            "x-kubernetes-validations",
            // They do not say what is valid.
            "default",
            "description",
            "nullable",
            "title",
            "x-kubernetes-preserve-unknown-fields",
        ]);
        let mut patterns = 0;
        for (kind, versions) in definitions::all() {
            for definition in versions.values() {
                every(definition, &mut |keyword, value| {
                    assert!(known.contains(keyword), "{kind:?}: {keyword}: {value}");
                    if keyword == "pattern" {
                        let pattern = value.as_str().expect("a pattern is a string");
                        Regex::new(pattern).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
                        patterns += 1;
                    }
                });
            }
        }
        assert!(patterns > 100, "{patterns}");
    }

    #[test]
    fn each_kind_of_fault_is_found_at_its_field() {
        let schema = json!({
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "minLength": 2, "maxLength": 4, "pattern": "^[a-z]+$"},
                "port": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65_535},
                "share": {"type": "number", "minimum": 0},
                "mode": {"type": "string", "enum": ["Terminate", "Passthrough"]},
                "list": {"type": "array", "maxItems": 1, "items": {"type": "boolean"}},
                "labels": {
                    "type": "object",
                    "maxProperties": 1,
                    "additionalProperties": {"type": "string"},
                },
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            },
        });
        let mut inspector = Inspector::default();
        let mut faults = |object: Value| inspector.faults("Thing", &schema, &object);
        let good = json!({
            "name": "abc", "port": 80, "share": 0.5, "mode": "Terminate", "list": [true],
            "labels": {"a": "b"}, "free": {"any": 1},
        });
        assert_eq!(faults(good), Vec::<String>::new());
        // The API server drops fields that are null.
        assert_eq!(
            faults(json!({"name": "abc", "port": null, "nmae": "x"})),
            ["nmae: Thing has no such field here (did you mean \"name\"?)"]
        );
        for (object, expected) in [
            (json!({}), "name: missing"),
            (json!({"name": null}), "name: missing"),
            (json!({"name": 12}), "name: must be a string; put it in quotes"),
            (json!({"name": "a"}), "name: must have at least 2 characters, and has 1"),
            (json!({"name": "abcde"}), "name: must have at most 4 characters, and has 5"),
            (json!({"name": "a_b"}), "name: \"a_b\" does not fit the pattern ^[a-z]+$"),
            (json!({"name": "ab", "port": "80"}), "port: must be an integer"),
            (json!({"name": "ab", "port": 80.5}), "port: must be an integer"),
            (json!({"name": "ab", "port": 0}), "port: must be 1 to 65535, and is 0"),
            (json!({"name": "ab", "port": 1_u64 << 40}), "port: 1099511627776 is no number of 32"),
            (json!({"name": "ab", "share": -0.5}), "share: must be 0 or more, and is -0.5"),
            (
                json!({"name": "ab", "mode": "terminate"}),
                "mode: \"terminate\" is none of the allowed words: \"Terminate\", \"Passthrough\" \
                 (did you mean \"Terminate\"?)",
            ),
            (json!({"name": "ab", "list": [true, false]}), "list: must have at most 1 items"),
            (json!({"name": "ab", "list": [null]}), "list[0]: must be a boolean"),
            (json!({"name": "ab", "list": {}}), "list: must be an array"),
            (json!({"name": "ab", "labels": {"a": 1}}), "labels.a: must be a string"),
            (json!({"name": "ab", "labels": {"a": "", "b": ""}}), "labels: must have at most 1"),
        ] {
            let found = faults(object.clone());
            assert_eq!(found.len(), 1, "{object}: {found:?}");
            assert!(found[0].starts_with(expected), "{object}: {found:?}");
        }
    }
}
