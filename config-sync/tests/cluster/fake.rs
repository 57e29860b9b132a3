//! An API server in this process: lists, watches with bookmarks, writes with versions, and the
//! faults that a real one has.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use futures::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub const GROUP: &str = "gateway.networking.k8s.io";

/// Kinds that every cluster serves.
const BUILT_IN: [(&str, &str, &str, &str); 10] = [
    ("", "v1", "Service", "services"),
    ("", "v1", "Secret", "secrets"),
    ("", "v1", "ConfigMap", "configmaps"),
    ("", "v1", "Namespace", "namespaces"),
    ("", "v1", "Node", "nodes"),
    ("", "v1", "ServiceAccount", "serviceaccounts"),
    ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
    ("coordination.k8s.io", "v1", "Lease", "leases"),
    ("events.k8s.io", "v1", "Event", "events"),
    ("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions"),
];

pub struct ApiServer {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    world: Mutex<World>,
    /// Wakes watches: the latest version, and how often connections were cut.
    news: watch::Sender<(u64, u64)>,
}

#[derive(Default)]
pub struct World {
    version: u64,
    cuts: u64,
    /// Watches from versions below this are told that they are too old.
    forgotten: u64,
    /// Group, version, kind, plural.
    served: Vec<(String, String, String, String)>,
    objects: BTreeMap<Key, Value>,
    events: Vec<(u64, &'static str, Value, Key)>,
    /// Requests with this method and this end of the path get this status so many times.
    faults: Vec<(Method, String, u16, usize)>,
    /// `METHOD path`, and the query after a `?`, of every request.
    pub requests: Vec<String>,
}

/// Plural, namespace, name.
type Key = (String, String, String);

impl ApiServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (news, _) = watch::channel((1, 0));
        let world = World { version: 1, ..World::default() };
        let shared = Arc::new(Shared { world: Mutex::new(world), news });
        for (group, version, kind, plural) in BUILT_IN {
            shared.world().serve(group, version, kind, plural);
        }
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("it serves");
        });
        Self { address, shared, server }
    }

    pub fn client(&self) -> kube::Client {
        let url = format!("http://{}", self.address).parse().expect("a URL");
        let mut config = kube::Config::new(url);
        config.default_namespace = "ringway".into();
        kube::Client::try_from(config).expect("a client")
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world()
    }

    /// Installs a kind of the Gateway API.
    pub fn serve(&self, version: &str, kind: &str) {
        self.serve_of(GROUP, version, kind);
    }

    /// Installs a kind of any group.
    pub fn serve_of(&self, group: &str, version: &str, kind: &str) {
        self.world().serve(group, version, kind, &plural(kind));
    }

    /// Removes a kind of the Gateway API and all its objects.
    pub fn unserve(&self, kind: &str) {
        let mut world = self.world();
        world.served.retain(|(_, _, of, _)| of != kind);
        world.objects.retain(|(of, _, _), _| *of != plural(kind));
    }

    pub fn put(&self, mut object: Value) {
        let mut world = self.world();
        let key = key_of(&object);
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}-{}-{}", key.0, key.1, key.2).into();
        }
        world.store(key, object);
        let news = (world.version, world.cuts);
        drop(world);
        self.shared.news.send_replace(news);
    }

    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        self.shared.delete((plural(kind), namespace.into(), name.into()));
    }

    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        self.world().objects.get(&(plural(kind), namespace.into(), name.into())).cloned()
    }

    /// All objects of a kind, by its plural.
    pub fn all(&self, plural: &str) -> Vec<Value> {
        let world = self.world();
        let all = world.objects.iter().filter(|((of, ..), _)| of == plural);
        all.map(|(_, object)| object.clone()).collect()
    }

    /// So many of the next requests like this fail.
    pub fn fail(&self, method: Method, path_end: &str, status: u16, times: usize) {
        self.world().faults.push((method, path_end.into(), status, times));
    }

    pub fn heal(&self) {
        self.world().faults.clear();
    }

    /// Ends every watch in the middle of a line.
    pub fn cut(&self) {
        let mut world = self.world();
        world.cuts += 1;
        let news = (world.version, world.cuts);
        drop(world);
        self.shared.news.send_replace(news);
    }

    /// Versions until now can't be watched from any more.
    pub fn forget_history(&self) {
        let mut world = self.world();
        world.version += 1;
        world.forgotten = world.version;
    }

    pub fn count(&self, request: impl Fn(&str) -> bool) -> usize {
        self.world().requests.iter().filter(|line| request(line)).count()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.server.abort();
        self.cut();
    }
}

/// Waits until it is so, for at most 30 s.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

pub fn object(version: &str, kind: &str, namespace: &str, name: &str, rest: Value) -> Value {
    let mut object = json!({
        "apiVersion": version,
        "kind": kind,
        "metadata": { "name": name, "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z" },
    });
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = namespace.into();
    }
    if let (Value::Object(object), Value::Object(rest)) = (&mut object, rest) {
        object.extend(rest);
    }
    object
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no test has panicked in here")
    }

    fn delete(&self, key: Key) -> Option<Value> {
        let mut world = self.world();
        let mut object = world.objects.remove(&key)?;
        world.version += 1;
        object["metadata"]["resourceVersion"] = world.version.to_string().into();
        let version = world.version;
        world.events.push((version, "DELETED", object.clone(), key));
        let news = (world.version, world.cuts);
        drop(world);
        self.news.send_replace(news);
        Some(object)
    }
}

impl World {
    fn serve(&mut self, group: &str, version: &str, kind: &str, plural: &str) {
        self.served.push((group.into(), version.into(), kind.into(), plural.into()));
    }

    fn store(&mut self, key: Key, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let before = self.objects.insert(key.clone(), object.clone());
        let what = if before.is_none() { "ADDED" } else { "MODIFIED" };
        self.events.push((self.version, what, object.clone(), key));
        object
    }

    fn fault(&mut self, method: &Method, path: &str) -> Option<u16> {
        let fault = self
            .faults
            .iter_mut()
            .find(|(of, end, _, left)| of == method && path.ends_with(end.as_str()) && *left > 0)?;
        fault.3 -= 1;
        Some(fault.2)
    }
}

#[derive(Clone)]
struct Target {
    version: String,
    plural: String,
    namespace: String,
    name: Option<String>,
    status: bool,
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path().to_owned();
    let query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let query: BTreeMap<String, String> = query.into_owned().collect();
    {
        let mut world = shared.world();
        world.requests.push(format!("{method} {uri}"));
        if let Some(code) = world.fault(&method, &path) {
            return status(code, "a fault that the test wants");
        }
    }
    if path == "/apis" {
        return groups(&shared.world());
    }
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version, rest) = match &parts[..] {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return status(404, "no such path"),
    };
    if rest.is_empty() {
        return resources(&shared.world(), group, version);
    }
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let target = Target {
        version: if group.is_empty() { version.into() } else { format!("{group}/{version}") },
        plural: rest[0].into(),
        namespace: namespace.into(),
        name: rest.get(1).map(|name| (*name).into()),
        status: rest.get(2) == Some(&"status"),
    };
    let is_served = shared
        .world()
        .served
        .iter()
        .any(|(of, at, _, plural)| of == group && at == version && *plural == target.plural);
    if !is_served {
        return status(404, "the server could not find the requested resource");
    }
    if method == Method::GET && target.name.is_none() {
        return if query.contains_key("watch") {
            watch_from(&shared, &target, &query)
        } else {
            list(&shared.world(), &target, &query)
        };
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let kind = headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or("");
    write(&shared, &method, &target, body, kind.contains("apply-patch"))
}

fn write(shared: &Shared, method: &Method, target: &Target, body: Value, apply: bool) -> Response {
    let name = target.name.clone().unwrap_or_else(|| text(&body["metadata"]["name"]));
    let key = (target.plural.clone(), target.namespace.clone(), name);
    if *method == Method::DELETE {
        return match shared.delete(key) {
            Some(object) => axum::Json(object).into_response(),
            None => status(404, "not found"),
        };
    }
    let mut world = shared.world();
    let before = world.objects.get(&key).cloned();
    let expected = text(&body["metadata"]["resourceVersion"]);
    let new = match (method, before) {
        (&Method::GET, Some(object)) => return axum::Json(object).into_response(),
        (&Method::POST, Some(_)) => return status(409, "already exists"),
        (&Method::POST, None) => body,
        (&Method::PATCH, None) if apply => body,
        (_, None) => return status(404, "not found"),
        (_, Some(before)) => {
            let is = text(&before["metadata"]["resourceVersion"]);
            if !expected.is_empty() && expected != is {
                return status(409, "the object has been modified");
            }
            changed(method, target, before, body)
        }
    };
    let mut new = new;
    for (field, value) in [("name", &key.2), ("namespace", &key.1)] {
        if !value.is_empty() {
            new["metadata"][field] = value.as_str().into();
        }
    }
    if new["metadata"]["uid"].is_null() {
        new["metadata"]["uid"] = format!("uid-{}-{}-{}", key.0, key.1, key.2).into();
    }
    let stored = world.store(key, new);
    let news = (world.version, world.cuts);
    drop(world);
    shared.news.send_replace(news);
    axum::Json(stored).into_response()
}

/// The status endpoint changes nothing but the status, as a real one.
fn changed(method: &Method, target: &Target, before: Value, body: Value) -> Value {
    let mut after = before.clone();
    if *method == Method::PUT {
        after = body;
        after["metadata"]["uid"] = before["metadata"]["uid"].clone();
    } else if target.status {
        merge(&mut after["status"], &body["status"]);
    } else {
        merge(&mut after, &body);
    }
    after
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (field, value) in fields {
        match value {
            Value::Null => _ = target.as_object_mut().and_then(|object| object.remove(field)),
            _ => merge(&mut target[field.as_str()], value),
        }
    }
}

fn matches(target: &Target, query: &BTreeMap<String, String>, key: &Key, object: &Value) -> bool {
    let here = key.0 == target.plural && (target.namespace.is_empty() || key.1 == target.namespace);
    let fields = query.get("fieldSelector").is_none_or(|selector| {
        let (field, value) = selector.split_once('=').expect("one field");
        let path = format!("/{}", field.replace('.', "/"));
        object.pointer(&path).and_then(Value::as_str) == Some(value)
    });
    let labels = query.get("labelSelector").is_none_or(|selector| {
        let labels = &object["metadata"]["labels"];
        selector.split(',').all(|part| match part.split_once('=') {
            Some((label, value)) => labels[label] == value,
            None => !labels[part].is_null(),
        })
    });
    here && fields && labels
}

fn list(world: &World, target: &Target, query: &BTreeMap<String, String>) -> Response {
    let items: Vec<_> = world
        .objects
        .iter()
        .filter(|(key, object)| matches(target, query, key, object))
        .map(|(_, object)| at_version(object, target))
        .collect();
    let metadata = json!({ "resourceVersion": world.version.to_string() });
    axum::Json(json!({
        "apiVersion": target.version, "kind": "List", "metadata": metadata, "items": items,
    }))
    .into_response()
}

fn at_version(object: &Value, target: &Target) -> Value {
    let mut object = object.clone();
    object["apiVersion"] = target.version.as_str().into();
    object
}

fn watch_from(shared: &Arc<Shared>, target: &Target, query: &BTreeMap<String, String>) -> Response {
    let from: u64 =
        query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    if from < shared.world().forgotten {
        let gone = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "code": 410,
            "status": "Failure", "reason": "Expired", "message": "too old resource version" });
        return Body::from(format!("{}\n", json!({ "type": "ERROR", "object": gone })))
            .into_response();
    }
    let (shared, target, query) = (Arc::clone(shared), target.clone(), query.clone());
    let news = shared.news.subscribe();
    let cuts = shared.world().cuts;
    let lines = stream::unfold((from, news), move |(from, mut news)| {
        let (shared, target, query) = (Arc::clone(&shared), target.clone(), query.clone());
        async move {
            loop {
                let (lines, version) = lines(&shared.world(), &target, &query, from);
                if shared.world().cuts != cuts {
                    let broken = std::io::Error::other("cut");
                    return Some((Err(broken), (from, news)));
                }
                if version > from {
                    return Some((Ok(lines), (version, news)));
                }
                news.changed().await.ok()?;
            }
        }
    });
    Body::from_stream(lines).into_response()
}

/// What has happened since, and a bookmark, so that a watcher knows how far it has come.
fn lines(
    world: &World,
    target: &Target,
    query: &BTreeMap<String, String>,
    from: u64,
) -> (String, u64) {
    let mut lines = String::new();
    for (version, what, object, key) in &world.events {
        if *version > from && matches(target, query, key, object) {
            let event = json!({ "type": what, "object": at_version(object, target) });
            lines += &format!("{event}\n");
        }
    }
    let bookmark = json!({ "apiVersion": target.version, "kind": "Bookmark",
        "metadata": { "resourceVersion": world.version.to_string(), "annotations": {} } });
    lines += &format!("{}\n", json!({ "type": "BOOKMARK", "object": bookmark }));
    (lines, world.version)
}

fn groups(world: &World) -> Response {
    let mut groups: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for (group, version, _, _) in &world.served {
        let entry = json!({ "groupVersion": format!("{group}/{version}"), "version": version });
        let versions = groups.entry(group).or_default();
        if !group.is_empty() && !versions.contains(&entry) {
            versions.push(entry);
        }
    }
    groups.remove("");
    let groups: Vec<_> = groups
        .into_iter()
        .map(|(name, versions)| json!({ "name": name, "versions": versions }))
        .collect();
    axum::Json(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        .into_response()
}

fn resources(world: &World, group: &str, version: &str) -> Response {
    let list: Vec<_> = world
        .served
        .iter()
        .filter(|(of, at, _, _)| of == group && at == version)
        .flat_map(|(_, _, kind, plural)| {
            [plural.clone(), format!("{plural}/status")].map(|name| {
                json!({ "name": name, "singularName": "", "namespaced": true, "kind": kind,
                    "verbs": ["get", "list", "watch", "patch"] })
            })
        })
        .collect();
    axum::Json(json!({ "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": format!("{group}/{version}"), "resources": list }))
    .into_response()
}

fn status(code: u16, message: &str) -> Response {
    let reason = if code == 404 { "NotFound" } else { "" };
    let body = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code });
    (StatusCode::from_u16(code).expect("a status"), axum::Json(body)).into_response()
}

fn key_of(object: &Value) -> Key {
    let metadata = &object["metadata"];
    (plural(&text(&object["kind"])), text(&metadata["namespace"]), text(&metadata["name"]))
}

fn plural(kind: &str) -> String {
    let lower = kind.to_lowercase();
    match lower.strip_suffix('y') {
        Some(stem) if !stem.ends_with('a') => format!("{stem}ies"),
        _ if lower.ends_with('s') => format!("{lower}es"),
        _ => format!("{lower}s"),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
