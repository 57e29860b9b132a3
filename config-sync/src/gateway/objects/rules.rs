//! The rules of a definition that compare fields with each other (`x-kubernetes-validations`), in
//! the Common Expression Language (<https://cel.dev>). An API server applies defaults, and asks the
//! rules if nothing else is wrong.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use cel::objects::{Key, Map};
use cel::{Context, Env, Program, Value as Cel, extensions};
use serde_json::Value;

/// The keyword of a definition that has rules.
pub(super) const RULES: &str = "x-kubernetes-validations";

/// Keeps the rules that were read, because many objects are of one kind.
pub(super) struct Rules {
    env: Arc<Env>,
    read: BTreeMap<String, Option<Program>>,
}

impl Default for Rules {
    fn default() -> Self {
        let mut env = Env::stdlib();
        // `substring` and `split`, which Kubernetes has too.
        env.add_extension(extensions::strings).expect("no function is there twice");
        Self { env: Arc::new(env), read: BTreeMap::new() }
    }
}

impl Rules {
    /// The rules that an object breaks, each as `FIELD: MESSAGE`.
    pub(super) fn broken(&mut self, definition: &Value, object: &Value) -> Vec<String> {
        let mut broken = Vec::new();
        self.value(definition, &with_defaults(definition, object), "", &mut broken);
        broken
    }

    fn value(&mut self, schema: &Value, value: &Value, at: &str, broken: &mut Vec<String>) {
        for rule in schema[RULES].as_array().into_iter().flatten() {
            let text = rule["rule"].as_str().unwrap_or_default();
            let message = rule["message"].as_str().unwrap_or(text);
            match self.holds(text, schema, value) {
                Ok(true) => {}
                Ok(false) => broken.push(format!("{at}: {message}")),
                Err(error) => broken.push(format!("{at}: {message} ({error})")),
            }
        }
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let of = schema["properties"].get(name);
                    if let Some(schema) = of.or_else(|| schema.get("additionalProperties")) {
                        let dot = if at.is_empty() { "" } else { "." };
                        self.value(schema, value, &format!("{at}{dot}{name}"), broken);
                    }
                }
            }
            Value::Array(items) => {
                for (nth, item) in items.iter().enumerate() {
                    self.value(&schema["items"], item, &format!("{at}[{nth}]"), broken);
                }
            }
            _ => {}
        }
    }

    fn holds(&mut self, rule: &str, schema: &Value, value: &Value) -> Result<bool, String> {
        let env = &self.env;
        let read = self.read.entry(rule.to_owned()).or_insert_with(|| env.compile(rule).ok());
        let program = read.as_ref().ok_or("Ringway can't read this rule")?;
        let mut context = Context::with_env(Arc::clone(env));
        context.add_function("isIP", is_ip).map_err(|error| error.to_string())?;
        context.add_variable_from_value("self", converted(schema, value));
        match program.execute(&context) {
            Ok(answer) => Ok(answer == Cel::Bool(true)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Of Kubernetes' own functions the only one that the rules ask.
fn is_ip(text: Arc<String>) -> bool {
    text.parse::<IpAddr>().is_ok()
}

fn with_defaults(schema: &Value, value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields = fields.clone();
            fields.retain(|_, value| !value.is_null());
            for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(default) = schema.get("default") {
                    fields.entry(name).or_insert_with(|| default.clone());
                }
            }
            for (name, value) in &mut fields {
                let of = schema["properties"].get(name);
                if let Some(schema) = of.or_else(|| schema.get("additionalProperties")) {
                    *value = with_defaults(schema, value);
                }
            }
            Value::Object(fields)
        }
        Value::Array(items) => {
            items.iter().map(|item| with_defaults(&schema["items"], item)).collect()
        }
        other => other.clone(),
    }
}

/// The value as the rules see it.
fn converted(schema: &Value, value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(value) => Cel::Bool(*value),
        Value::Number(number) => match number.as_i64() {
            Some(number) => Cel::Int(number),
            None => Cel::Float(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => Cel::String(Arc::new(text.clone())),
        Value::Array(items) => {
            let items = items.iter().map(|item| converted(&schema["items"], item));
            Cel::List(Arc::new(items.collect()))
        }
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| {
                let (name, schema) = match schema["properties"].get(name) {
                    Some(schema) => (escaped(name), schema),
                    None => (name.clone(), &schema["additionalProperties"]),
                };
                (Key::String(Arc::new(name)), converted(schema, value))
            });
            Cel::Map(Map { map: Arc::new(fields.collect()) })
        }
    }
}

/// A field whose name is a word of the language has another name in rules.
fn escaped(name: &str) -> String {
    const WORDS: [&str; 21] = [
        "as",
        "break",
        "const",
        "continue",
        "else",
        "false",
        "for",
        "function",
        "if",
        "import",
        "in",
        "let",
        "loop",
        "namespace",
        "null",
        "package",
        "return",
        "true",
        "var",
        "void",
        "while",
    ];
    if WORDS.contains(&name) { format!("__{name}__") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::gateway::objects::definitions;

    fn every<'s>(schema: &'s Value, seen: &mut dyn FnMut(&'s str)) {
        let rules = schema[RULES].as_array().into_iter().flatten();
        rules.for_each(|rule| seen(rule["rule"].as_str().expect("a rule is a text")));
        let properties = schema["properties"].as_object().into_iter().flatten();
        properties.for_each(|(_, schema)| every(schema, seen));
        for part in ["items", "additionalProperties"] {
            if let Some(schema) = schema.get(part) {
                every(schema, seen);
            }
        }
    }

    /// A new release may ask a function that Ringway has not.
    #[test]
    fn every_rule_is_read_and_asks_known_functions() {
        let rules = Rules::default();
        let mut count = 0;
        for versions in definitions::all().values() {
            for definition in versions.values() {
                every(definition, &mut |rule| {
                    let read = rules.env.compile(rule);
                    let program = read.unwrap_or_else(|error| panic!("{rule}: {error}"));
                    let known = [
                        "isIP",
                        "size",
                        "contains",
                        "matches",
                        "startsWith",
                        "endsWith",
                        "substring",
                        "split",
                    ];
                    for function in program.references().functions() {
                        let is_word = function.starts_with(char::is_alphabetic);
                        assert!(!is_word || known.contains(&function), "{rule}: {function}");
                    }
                    count += 1;
                });
            }
        }
        assert!(count > 100, "{count}");
    }

    fn listener(name: &str, port: u16, protocol: &str) -> Value {
        json!({"name": name, "port": port, "protocol": protocol})
    }

    fn gateway(listeners: &[Value]) -> Value {
        json!({"spec": {"gatewayClassName": "c", "listeners": listeners}})
    }

    #[test]
    fn a_broken_rule_is_told_with_its_field() {
        let all = definitions::all();
        let of = |kind: &str| {
            let key = ("gateway.networking.k8s.io".to_owned(), kind.to_owned());
            &all[&key]["v1"]
        };
        let mut rules = Rules::default();
        let mut named = listener("a", 53, "UDP");
        named["hostname"] = "a.example.com".into();
        for (listeners, expected) in [
            (vec![listener("a", 53, "UDP"), listener("b", 53, "TCP")], &[][..]),
            // `files` has a better fault for this.
            (vec![listener("a", 53, "UDP"), listener("a", 54, "UDP")], &[]),
            (
                vec![listener("a", 53, "UDP"), listener("b", 53, "UDP")],
                &["spec.listeners: Combination of port, protocol and hostname must be unique for \
                   each listener"],
            ),
            (
                vec![named],
                &["spec.listeners: hostname must not be specified for protocols ['TCP', 'UDP']"],
            ),
            (
                vec![listener("a", 443, "TLS")],
                &["spec.listeners: tls mode must be set for protocol TLS"],
            ),
        ] {
            assert_eq!(rules.broken(of("Gateway"), &gateway(&listeners)), expected);
        }
        let route = |backend: Value| json!({"spec": {"rules": [{"backendRefs": [backend]}]}});
        assert_eq!(
            rules.broken(of("TLSRoute"), &route(json!({"name": "web"}))),
            ["spec.rules[0].backendRefs[0]: Must have port for Service reference"]
        );
        let other = json!({"name": "web", "group": "example.com", "kind": "Thing"});
        assert_eq!(rules.broken(of("TLSRoute"), &route(other)), Vec::<String>::new());
        let hostnames = |name: &str| json!({"spec": {"hostnames": [name]}});
        assert_eq!(rules.broken(of("TLSRoute"), &hostnames("*.example.com")), Vec::<String>::new());
        assert_eq!(rules.broken(of("TLSRoute"), &hostnames("192.0.2.1")).len(), 1);
        // Namespaces differ, so the two parents do.
        let parents = json!({"spec": {"parentRefs": [
            {"name": "g", "namespace": "a"}, {"name": "g", "namespace": "b"},
        ]}});
        assert_eq!(rules.broken(of("TLSRoute"), &parents), Vec::<String>::new());
        let twice = json!({"spec": {"parentRefs": [{"name": "g"}, {"name": "g"}]}});
        assert!(!rules.broken(of("TLSRoute"), &twice).is_empty());
    }
}
