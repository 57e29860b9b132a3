//! Serves the API's paths, and describes them in an OpenAPI 3.1 document.
//!
//! Each method of each path is one [`Operation`]: the document has whatever is served.

use axum::Router;
use axum::extract::Request;
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::control::admin::api::{Api, Fault, Told};

/// One method of one path.
pub struct Operation {
    method: Method,
    path: &'static str,
    serves: MethodRouter<Api>,
    /// A sentence for people.
    about: &'static str,
    query: Option<Make>,
    body: Option<Make>,
    answer: Answer,
}

type Make = fn(&mut SchemaGenerator) -> Schema;

enum Answer {
    /// Any object.
    Object,
    Json(Make),
    /// Server-sent events, whose data is JSON.
    Events(Make),
}

impl Operation {
    /// # Panics
    /// The method is none that axum knows.
    pub fn new<H, T>(method: Method, path: &'static str, handler: H, about: &'static str) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        let filter = MethodFilter::try_from(method.clone()).expect("a usual method");
        let serves = on(filter, handler);
        Self { method, path, serves, about, query: None, body: None, answer: Answer::Object }
    }

    pub fn query<T: JsonSchema>(self) -> Self {
        Self { query: Some(T::json_schema), ..self }
    }

    pub fn body<T: JsonSchema>(self) -> Self {
        Self { body: Some(SchemaGenerator::subschema_for::<T>), ..self }
    }

    pub fn answers<T: JsonSchema>(self) -> Self {
        Self { answer: Answer::Json(SchemaGenerator::subschema_for::<T>), ..self }
    }

    pub fn sends<T: JsonSchema>(self) -> Self {
        Self { answer: Answer::Events(SchemaGenerator::subschema_for::<T>), ..self }
    }
}

pub fn router(operations: Vec<Operation>) -> Router<Api> {
    operations.into_iter().fold(Router::new(), |all, of| {
        let serves = match of.query {
            Some(_) => of.serves,
            None => of.serves.layer(from_fn(without_query)),
        };
        all.route(of.path, serves)
    })
}

/// A parameter that nobody reads is an error, so that no caller takes all for what was asked for.
async fn without_query(request: Request, next: Next) -> Response {
    match request.uri().query() {
        None | Some("") => next.run(request).await,
        Some(query) => Fault::bad(format!("{query}: there are no parameters")).into_response(),
    }
}

/// The document. `prefix` stands before each path.
pub fn document(operations: &[Operation], prefix: &str) -> Value {
    let settings = || {
        let mut settings = SchemaSettings::draft2020_12()
            .with_transform(RecursiveTransform(without_null as fn(&mut Schema)));
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
        settings
    };
    let mut reads = settings().for_deserialize().into_generator();
    let mut writes = settings().for_serialize().into_generator();
    let error = writes.subschema_for::<Told<'_>>();
    let mut paths = Map::new();
    for of in operations {
        let path = paths.entry(format!("{prefix}{}", of.path)).or_insert_with(|| json!({}));
        let method = of.method.as_str().to_ascii_lowercase();
        path[method] = operation(of, &mut reads, &mut writes);
    }
    let mut schemas = writes.take_definitions(true);
    schemas.append(&mut reads.take_definitions(true));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Ringway's admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What runs, and changes to it. A field that has no value is left out. \
                            Later versions may add fields.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {
                "Error": {
                    "description": "Why there is no answer",
                    "content": { "application/json": { "schema": error } },
                },
            },
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The word in admin.token_file. The Unix socket needs no token.",
                },
            },
        },
    })
}

fn operation(of: &Operation, reads: &mut SchemaGenerator, writes: &mut SchemaGenerator) -> Value {
    let content = match of.answer {
        Answer::Object => json!({ "application/json": { "schema": { "type": "object" } } }),
        Answer::Json(make) => json!({ "application/json": { "schema": make(writes) } }),
        Answer::Events(make) => json!({
            "text/event-stream": {
                "schema": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": make(writes),
                },
            },
        }),
    };
    let mut described = json!({
        "summary": of.about,
        "responses": {
            "200": { "description": "The answer", "content": content },
            "default": { "$ref": "#/components/responses/Error" },
        },
    });
    let parameters: Vec<_> = in_path(of.path).chain(in_query(of, reads)).collect();
    if !parameters.is_empty() {
        described["parameters"] = parameters.into();
    }
    if let Some(make) = of.body {
        let schema = json!({ "application/json": { "schema": make(reads) } });
        described["requestBody"] = json!({ "required": true, "content": schema });
    }
    if of.method != Method::GET {
        described["security"] = json!([{ "token": [] }]);
    }
    described
}

fn in_path(path: &str) -> impl Iterator<Item = Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| {
        json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
    })
}

/// One parameter for each field of the query's type.
fn in_query(of: &Operation, reads: &mut SchemaGenerator) -> Vec<Value> {
    let Some(make) = of.query else { return Vec::new() };
    let mut schema = make(reads);
    reads.transforms_mut().for_each(|transform| transform.transform(&mut schema));
    let all = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    let needed = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    let parameter = |(name, mut schema): (String, Value)| {
        let about = schema.as_object_mut().and_then(|of| of.remove("description"));
        let required = needed.contains(&Value::from(&*name));
        let mut parameter =
            json!({ "name": name, "in": "query", "required": required, "schema": schema });
        if let Some(about) = about {
            parameter["description"] = about;
        }
        parameter
    };
    all.into_iter().map(parameter).collect()
}

/// Takes `null` from a field that may be absent, because such a field is left out.
fn without_null(schema: &mut Schema) {
    let is_null = |of: &Value| *of == "null" || *of == json!({ "type": "null" });
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|of| !is_null(of));
        if let [only] = &types[..] {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(any)) = schema.get_mut("anyOf") {
        any.retain(|of| !is_null(of));
        if let [Value::Object(only)] = &any[..] {
            let only = only.clone();
            schema.remove("anyOf");
            schema.ensure_object().extend(only);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(JsonSchema, serde::Deserialize)]
    #[expect(dead_code, reason = "only the schema is of interest")]
    struct Asked {
        /// For people.
        one: u8,
        other: Option<String>,
    }

    #[derive(JsonSchema, serde::Serialize)]
    struct Given {
        #[serde(skip_serializing_if = "Option::is_none")]
        inner: Option<Inner>,
        list: Vec<Inner>,
    }

    #[derive(JsonSchema, serde::Serialize)]
    struct Inner {
        #[serde(skip_serializing_if = "Option::is_none")]
        number: Option<u64>,
    }

    #[test]
    fn an_operation_has_its_parameters_and_its_answer() {
        let all = [Operation::new(Method::GET, "/of/{id}", async || (), "Gives it")
            .query::<Asked>()
            .answers::<Given>()];
        let document = document(&all, "/v");
        let get = &document["paths"]["/v/of/{id}"]["get"];
        let names: Vec<_> = get["parameters"].as_array().expect("a list").iter().collect();
        assert_eq!(names[0]["in"], "path");
        assert_eq!((&names[1]["name"], &names[1]["required"]), (&"one".into(), &true.into()));
        assert_eq!(names[1]["description"], "For people.");
        assert_eq!(
            (&names[2]["required"], &names[2]["schema"]),
            (&false.into(), &json!({ "type": "string" }))
        );
        let schemas = &document["components"]["schemas"];
        let inner = &schemas["Given"]["properties"]["inner"];
        assert_eq!(*inner, json!({ "$ref": "#/components/schemas/Inner" }), "{schemas:#}");
        assert_eq!(schemas["Given"]["required"], json!(["list"]));
        assert_eq!(schemas["Inner"]["properties"]["number"]["type"], "integer");
    }
}
