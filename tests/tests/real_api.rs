//! The admin API against its own description: every path that the document has answers, and every
//! answer is as the document says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringway_tests::pki::Pki;
use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Folder, Gateway, Launch, Server, client_hello, connect, deadline, echo, exchange, free_address,
    run_verb, udp_client, wait_until,
};
use serde_json::{Value, json};

const METHODS: [&str; 5] = ["GET", "PUT", "POST", "DELETE", "PATCH"];

struct Api {
    gateway: Gateway,
    document: Value,
    /// The operations that have given an answer.
    answered: BTreeSet<(String, String)>,
}

impl Api {
    fn of(gateway: Gateway) -> Self {
        let (status, text) = send(&gateway, "GET", "/api/v1/openapi.json", None);
        assert_eq!(status, 200, "{text}");
        let document = serde_json::from_str(&text).expect("JSON");
        Self { gateway, document, answered: BTreeSet::new() }
    }

    /// The path and the description of every method.
    fn operations(&self) -> BTreeMap<(String, String), Value> {
        let paths = self.document["paths"].as_object().expect("paths");
        let all = paths.iter().flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods").iter();
            methods.map(move |(method, of)| ((method.to_uppercase(), path.clone()), of.clone()))
        });
        all.collect()
    }

    /// Asks, and checks that the answer is as described. `path` begins behind the version;
    /// `template` is the path in the document.
    fn ask(&mut self, method: &str, (template, path): (&str, &str), body: Option<Value>) -> Value {
        let body = body.map(|body| body.to_string());
        let whole = format!("/api/v1{path}");
        let (status, text) = send(&self.gateway, method, &whole, body.as_deref());
        assert_eq!(status, 200, "{method} {path}: {text}");
        let value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"));
        let schema = &self.described(method, template)["responses"]["200"];
        let schema = schema["content"]["application/json"]["schema"].clone();
        self.fits(&schema, &value, &format!("{method} {path}"));
        value
    }

    fn described(&mut self, method: &str, template: &str) -> Value {
        let operation = (method.to_owned(), format!("/api/v1{template}"));
        let found = self.operations().remove(&operation);
        let found = found.unwrap_or_else(|| panic!("the document has no {operation:?}"));
        self.answered.insert(operation);
        found
    }

    fn fits(&self, schema: &Value, value: &Value, of: &str) {
        assert!(schema.is_object(), "{of} has no schema");
        let whole = json!({ "allOf": [schema], "components": self.document["components"] });
        let validator = jsonschema::validator_for(&closed(whole)).expect("a schema");
        let faults: Vec<_> = validator.iter_errors(value).map(|error| error.to_string()).collect();
        assert!(faults.is_empty(), "{of} is not as described: {faults:#?}\n{value:#}");
    }

    /// Asks for what can't be done. The answer has the one shape of errors.
    fn refuses(&self, method: &str, path: &str, body: Option<&str>, expected: &[u16]) {
        let (status, text) = send(&self.gateway, method, &format!("/api/v1{path}"), body);
        assert!(expected.contains(&status), "{method} {path} {body:?}: {status} {text}");
        let value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {text:?}"));
        let error = &self.document["components"]["responses"]["Error"];
        self.fits(&error["content"]["application/json"]["schema"], &value, path);
    }
}

/// The schema for an answer that has no field but those described.
fn closed(mut schema: Value) -> Value {
    match &mut schema {
        Value::Object(fields) => {
            for (_, field) in fields.iter_mut() {
                *field = closed(field.take());
            }
            if fields.get("properties").is_some_and(|of| of.get("properties").is_none()) {
                fields.insert("additionalProperties".to_owned(), false.into());
            }
        }
        Value::Array(parts) => parts.iter_mut().for_each(|part| *part = closed(part.take())),
        _ => {}
    }
    schema
}

/// Status and body of the answer, through the Unix socket.
fn send(gateway: &Gateway, method: &str, path: &str, body: Option<&str>) -> (u16, String) {
    let mut stream = UnixStream::connect(gateway.socket()).expect("the API's socket");
    stream.set_read_timeout(Some(deadline())).expect("a timeout");
    let body = body.map_or_else(String::new, |body| {
        let len = body.len();
        format!("Content-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}")
    });
    let end = if body.is_empty() { "\r\n" } else { "" };
    write!(stream, "{method} {path} HTTP/1.0\r\n{body}{end}").expect("sending");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.split(' ').nth(1).expect("a status").parse().expect("a number"), body.to_owned())
}

/// A gateway with something in each list.
fn start(
    folder: &Folder,
    servers: &[Server; 2],
    [tcp, tls, udp]: [std::net::SocketAddr; 3],
) -> Gateway {
    let issued = Pki::shared().issue(&["a.test"]);
    let cert = folder.write("a.pem", &issued.cert);
    let key = folder.write("a.key", &issued.key);
    let terminate = format!(
        "tls = {{ mode = \"Terminate\", certificates = [{{ cert = {cert:?}, key = {key:?} }}] }}"
    );
    let dead = free_address();
    let check = "health_check = { type = \"tcp\", interval = \"100ms\", rise = 1, fall = 1 }";
    let config = listener("tcp", "TCP", tcp, "max_sessions = 100\nallow = [\"127.0.0.0/8\"]")
        + &listener("tls", "TLS", tls, &format!("hostnames = [\"a.test\"]\n{terminate}"))
        + &listener("udp", "UDP", udp, "")
        + &route("tcp", "tcp", &[("both", 1)], "")
        + &route("tls", "tls", &[("both", 1)], "")
        + &route("udp", "udp", &[("udp", 1)], "")
        + &backend("both", [servers[0].address, dead], check)
        + &backend("udp", [servers[1].address], "");
    Launch::default().socket().start(&config)
}

#[test]
fn every_answer_is_as_the_document_says() {
    let folder = Folder::new();
    let ways = [free_address(), free_address(), free_address()];
    let servers = [Server::tcp(echo), Server::udp_echo()];
    let mut api = Api::of(start(&folder, &servers, ways));
    let mut session = connect(ways[0]);
    session.write_all(b"x").expect("sending");
    session.read_exact(&mut [0]).expect("the echo");
    let flow = udp_client(ways[2]);
    flow.send(b"x").expect("sending");
    flow.recv(&mut [0]).expect("the echo");
    exchange(ways[0], b"word").expect("an ended session");
    let mut unknown = connect(ways[1]);
    unknown.write_all(&client_hello(Some("b.test"))).expect("sending");
    wait_until("there is a reason, and an endpoint is down", || {
        let (_, closes) = send(&api.gateway, "GET", "/api/v1/closes", None);
        let (_, endpoints) = send(&api.gateway, "GET", "/api/v1/endpoints", None);
        closes.contains("samples\":[{") && endpoints.contains("\"down\"")
    });
    let endpoint = format!("both/{}", servers[0].address);
    let weight =
        json!({ "endpoint": endpoint, "action": "weight", "weight": 7, "for_seconds": 99 });
    let plain = |path| (path, path);
    api.ask("POST", plain("/overrides"), Some(weight));
    api.ask("PUT", plain("/log-level"), Some(json!({ "level": "debug", "for_seconds": 99 })));
    lists(&mut api);
    for client in ["127.0.0.1:9", "10.0.0.1"] {
        let path = format!("/why?client={client}&listener=tcp");
        api.ask("GET", ("/why", &path), None);
    }
    api.ask("GET", ("/events", "/events?after=1&limit=9"), None);
    let named = ["/sessions?limit=9&listener=tcp", "/flows?client=127.0.0.1"];
    let ids = named.map(|path| {
        let template = path.split('?').next().expect("a path");
        let list = api.ask("GET", (template, path), None);
        list[&template[1..]][0]["id"].as_str().expect("an id").to_owned()
    });
    for (template, id) in [
        ("/session/", &ids[0]),
        ("/sessions/", &ids[0]),
        ("/session/", &ids[1]),
        ("/flows/", &ids[1]),
    ] {
        api.ask("GET", (&format!("{template}{{id}}"), &format!("{template}{id}")), None);
    }
    stream(&mut api);
    refused(&api);
    for (template, id) in [("/session/", &ids[0]), ("/flows/", &ids[1])] {
        api.ask("DELETE", (&format!("{template}{{id}}"), &format!("{template}{id}")), None);
    }
    let mut session = connect(ways[0]);
    session.write_all(b"x").expect("sending");
    session.read_exact(&mut [0]).expect("the echo");
    let list = api.ask("GET", plain("/sessions"), None);
    let id = list["sessions"][0]["id"].as_str().expect("an id");
    api.ask("DELETE", ("/sessions/{id}", &format!("/sessions/{id}")), None);
    api.ask("DELETE", ("/sessions", "/sessions?listener=tcp"), None);
    api.ask("DELETE", ("/flows", "/flows?backend=udp"), None);
    api.ask("DELETE", ("/overrides", &format!("/overrides?endpoint={endpoint}")), None);
    let upgraded = api.ask("POST", plain("/upgrade"), Some(json!({})));
    let process = upgraded["process"].as_i64().expect("a process");
    let process = Pid::from_raw(i32::try_from(process).expect("a process id"));
    let all: BTreeSet<_> = api.operations().into_keys().collect();
    let answered = api.answered.clone();
    kill(process, Signal::SIGKILL).expect("the new process runs");
    assert_eq!(all, answered, "each operation of the document has been tried");
}

/// What needs no parameter. Each list has something in it.
fn lists(api: &mut Api) {
    for path in [
        "/openapi.json",
        "/status",
        "/listeners",
        "/routes",
        "/backends",
        "/endpoints",
        "/endpoints/live",
        "/overrides",
        "/limits",
        "/certificates",
        "/top",
        "/closes",
        "/config",
        "/log-level",
    ] {
        let answer = api.ask("GET", (path, path), None);
        let lists = answer.as_object().expect("an object").values().filter_map(Value::as_array);
        assert!(lists.into_iter().all(|list| !list.is_empty()), "{path} has an example: {answer}");
    }
    let sorted = "/sessions?sort=bytes&reverse=true&state=relaying&min_age_ms=0";
    let page = api.ask("GET", ("/sessions", sorted), None);
    assert!(page["matched"].is_u64(), "{page}");
    api.ask("POST", ("/access-log/reopen", "/access-log/reopen"), None);
    api.ask("POST", ("/reload", "/reload?confirm=true"), None);
}

/// One event of the stream.
fn stream(api: &mut Api) {
    let mut stream = UnixStream::connect(api.gateway.socket()).expect("the API's socket");
    stream.set_read_timeout(Some(deadline())).expect("a timeout");
    stream.write_all(b"GET /api/v1/stream HTTP/1.0\r\n\r\n").expect("sending");
    let lines = BufReader::new(stream).lines().map(|line| line.expect("a line"));
    let data = lines.into_iter().find_map(|line| Some(line.strip_prefix("data: ")?.to_owned()));
    let value = serde_json::from_str(&data.expect("an event")).expect("JSON");
    let answer = api.described("GET", "/stream")["responses"]["200"].take();
    let schema = &answer["content"]["text/event-stream"]["schema"]["contentSchema"];
    api.fits(schema, &value, "an event of the stream");
}

/// Methods that a path does not have, parameters and bodies that are wrong, and paths that are not
/// there.
fn refused(api: &Api) {
    let all = api.operations();
    let paths: BTreeSet<_> = all.keys().map(|(_, path)| path.clone()).collect();
    for path in &paths {
        let path = path.strip_prefix("/api/v1").expect("the prefix").replace("{id}", "x");
        for method in METHODS {
            let template = format!("/api/v1{}", path.replace("/x", "/{id}"));
            let Some(of) = all.get(&(method.to_owned(), template)) else {
                api.refuses(method, &path, None, &[405]);
                continue;
            };
            let body = of.get("requestBody").map(|_| "{}");
            api.refuses(method, &format!("{path}?colour=1"), body, &[400]);
            if body.is_some() {
                api.refuses(method, &path, None, &[400, 415]);
                for wrong in ["", "[]", "{\"colour\": 1}", "{", "nonsense", "\u{0}"] {
                    api.refuses(method, &path, Some(wrong), &[400, 422]);
                }
                api.refuses(method, &path, Some(&" ".repeat(5_000)), &[413]);
            }
            for parameter in of["parameters"].as_array().into_iter().flatten() {
                let name = parameter["name"].as_str().expect("a name");
                if parameter["schema"]["type"] == "integer" {
                    api.refuses(method, &format!("{path}?{name}=-1"), None, &[400]);
                    api.refuses(method, &format!("{path}?{name}=x"), None, &[400]);
                }
                if parameter["required"] == true && name != "id" {
                    api.refuses(method, &path, None, &[400]);
                }
            }
            if path.ends_with("/x") {
                api.refuses(method, &path, None, &[400]);
            }
        }
    }
    for path in ["", "/", "/nope", "/status/", "/session", "/session/", "/sessions/a/b"] {
        for method in METHODS {
            api.refuses(method, path, None, &[404, 405]);
        }
    }
}

/// A document that lacks a field, or has one too many, is found out.
#[test]
fn a_wrong_document_is_found_out() {
    let (server, address) = (Server::tcp(echo), free_address());
    let config = forward("TCP", address, [server.address], "");
    let api = Api::of(Launch::default().socket().start(&config));
    let (_, answer) = send(&api.gateway, "GET", "/api/v1/listeners", None);
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let fits = |change: fn(&mut Value)| {
        let mut components = api.document["components"].clone();
        change(&mut components["schemas"]["Listener"]);
        let schema = json!({ "$ref": "#/components/schemas/Listeners", "components": components });
        jsonschema::validator_for(&closed(schema)).expect("a schema").is_valid(&answer)
    };
    assert!(fits(|_| {}));
    assert!(!fits(|of| _ = of["properties"].as_object_mut().expect("fields").remove("opened")));
    assert!(!fits(|of| of["properties"]["opened"] = json!({ "type": "string" })));
    assert!(!fits(|of| of["required"].as_array_mut().expect("a list").push("colour".into())));
}

/// An address has a limit. Probes, metrics and the Unix socket have none.
#[test]
fn an_address_that_asks_too_often_is_told_to_wait() {
    let server = Server::tcp(echo);
    let config = forward("TCP", free_address(), [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    let status = |path: &str| gateway.get(path).map(|(status, _)| status);
    // The head may be refused before all of it was read, which resets the connection.
    let long = format!("/healthz HTTP/1.0\r\nX-Long: {}\r\nX-Rest:", "x".repeat(100_000));
    assert_ne!(status(&long), Some(200), "a head of 100 kB");
    // On a busy machine one client alone may not ask often enough.
    let refused = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let told = || status("/api/v1/nothing") == Some(429);
                let told = (0..2_000).any(|_| refused.load(Ordering::SeqCst) || told());
                refused.fetch_or(told, Ordering::SeqCst);
            });
        }
    });
    assert!(refused.into_inner(), "nobody is told to wait");
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(status(path), Some(200), "{path}");
    }
    let counted = gateway.metrics().value("ringway_admin_requests_refused_total", &[]);
    assert!(counted >= 1, "{counted}");
    for _ in 0..300 {
        assert_eq!(send(&gateway, "GET", "/api/v1/nothing", None).0, 404);
    }
}

#[test]
fn a_verb_that_is_told_to_wait_asks_again() {
    let asked = AtomicU32::new(0);
    let api = Server::tcp(move |mut stream| {
        let (status, body) = match asked.fetch_add(1, Ordering::SeqCst) {
            0 => ("429 Too Many Requests", "{\"error\":\"too many requests\"}"),
            _ => ("200 OK", "{\"closes\":[]}"),
        };
        _ = stream.read(&mut [0; 4_096]);
        let length = body.len();
        _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
    });
    let output = run_verb(&["closes"], &format!("http://{}", api.address));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "no closes\n", "{output:?}");
    assert_eq!(api.served(), 2);
}
