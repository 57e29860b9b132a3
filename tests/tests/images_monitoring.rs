//! The dashboard and the alerts, against a real Prometheus that scrapes a gateway under load.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringway_tests::pki::Pki;
use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Daemon, Folder, Gateway, Server, binary, client_hello, connect, echo, exchange, free_address,
    in_own_network, program, udp_client, wait_for, wait_until,
};
use serde_json::Value;
use socket2::SockRef;

/// No query of the dashboard may come back empty, and every variable has something to choose.
#[test]
fn every_query_of_the_dashboard_has_data() {
    in_own_network(|| {
        let site = Site::start("");
        let queries = queries(&dashboard());
        assert!(queries.len() > 50, "{}", queries.len());
        for query in queries {
            wait_until(&format!("data for {query}"), || {
                let values = site.prometheus.query(&query);
                values.iter().any(|value| value["value"][1].as_str().expect("a number") != "NaN")
            });
        }
    });
}

/// Each metric that the gateways have is on the dashboard or in an alert.
#[test]
fn no_metric_is_left_out() {
    in_own_network(|| {
        let site = Site::start("");
        let mut shown = names(&dashboard().to_string());
        shown.extend(names(&read("prometheus/alerts.yaml")));
        let pages = site.targets.map(|admin| {
            program("curl", &["--silent", "--fail", &format!("http://{admin}/metrics")])
        });
        let lines = pages.iter().flat_map(|page| page.lines());
        let types = lines.filter_map(|line| line.strip_prefix("# TYPE "));
        let families: BTreeSet<_> =
            types.filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect();
        let missing: Vec<_> = families
            .iter()
            .filter(|name| !shown.contains(*name) && !shown.contains(&format!("{name}_bucket")))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    });
}

#[test]
fn alerts_are_valid_and_their_metrics_exist() {
    let alerts = images().join("prometheus/alerts.yaml").display().to_string();
    program("promtool", &["check", "rules", &alerts]);
    program("promtool", &["test", "rules", &alerts.replace(".yaml", "_test.yaml")]);
    in_own_network(move || {
        let site = Site::start(&alerts);
        for name in names(&read("prometheus/alerts.yaml")) {
            wait_for(&format!("a series {name}"), || {
                (!site.prometheus.query(&name).is_empty()).then_some(())
            });
        }
        let rules = wait_for("Prometheus has evaluated the rules", || {
            let groups = site.prometheus.get("rules", None);
            let rules = groups["groups"][0]["rules"].as_array()?.clone();
            rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
        });
        assert!(rules.len() > 5, "{rules:?}");
        assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:?}");
    });
}

/// A gateway, something of everything going through it, another that follows a cluster, and
/// Prometheus beside them.
struct Site {
    prometheus: Prometheus,
    targets: [SocketAddr; 2],
    // Dropped before the gateway, so that no client finds it gone.
    _load: Load,
    _gateway: Gateway,
    _follower: Follower,
    _servers: Vec<Server>,
    _folder: Folder,
}

impl Site {
    fn start(rules: &str) -> Self {
        let tcp = Server::tcp(echo);
        let resets = Server::tcp(|mut stream| {
            // Earlier, the gateway might take the reset for a failed connect.
            let _ = stream.read_exact(&mut [0]);
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option");
        });
        let udp = Server::udp_echo();
        let nobody = free_address();
        let folder = Folder::new();
        let [plain, refusing, resetting, secure, ending, datagrams, deaf, empty] =
            std::array::from_fn(|_| free_address());
        let config = forward("TCP", plain, [tcp.address], "limit = { sessions = 10_000 }")
            + &listener("refusing", "TCP", refusing, "")
            + &route("refusing", "refusing", &[("nobody", 1)], "")
            + &backend("nobody", [nobody], "queue = 5")
            + &listener("resetting", "TCP", resetting, "")
            + &route("resetting", "resetting", &[("resets", 1)], "")
            + &backend("resets", [resets.address], "health_check = {}\neject = {}")
            + &listener("secure", "TLS", secure, "hostname = \"a.test\"")
            + &route("secure", "secure", &[("main", 1)], "")
            + &listener("ending", "TLS", ending, &terminated(&folder))
            + &route("ending", "ending", &[("main", 1)], "")
            + &listener("datagrams", "UDP", datagrams, "flow_timeout = \"200ms\"")
            + &route("datagrams", "datagrams", &[("udp", 1)], "")
            + &backend("udp", [udp.address], "")
            + &listener("deaf", "UDP", deaf, "")
            + &route("deaf", "deaf", &[("closed", 1)], "")
            + &backend("closed", [free_address()], "")
            + &listener("empty", "UDP", empty, "")
            + &route("empty", "empty", &[("none", 1)], "")
            + &backend("none", [], "");
        let gateway = Gateway::start(&config);
        let load = Load::start(move || {
            exchange(plain, &[7; 10_000]).expect("an echo");
            for address in [refusing, resetting] {
                let _ = exchange(address, b"x");
            }
            for name in ["a.test", "unknown.test"] {
                let _ = exchange(secure, &client_hello(Some(name)));
            }
            let aborting = connect(plain);
            (&aborting).write_all(b"x").expect("writing");
            SockRef::from(&aborting).set_linger(Some(Duration::ZERO)).expect("an option");
            drop(aborting);
            for address in [datagrams, deaf, deaf, empty] {
                let client = udp_client(address);
                client.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
                client.send(b"x").expect("sending");
                let _ = client.recv(&mut [0; 16]);
                let _ = client.send(b"y");
            }
        });
        let follower = Follower::start();
        let targets = [gateway.admin, follower.admin];
        let prometheus = Prometheus::start(targets, rules);
        let servers = vec![tcp, resets, udp];
        Self {
            prometheus,
            targets,
            _load: load,
            _gateway: gateway,
            _follower: follower,
            _servers: servers,
            _folder: folder,
        }
    }
}

/// How a listener ends TLS, with all that has an end of its own.
fn terminated(folder: &Folder) -> String {
    let write = |name: &str, pem: &str| folder.write(name, pem).display().to_string();
    let authority = Pki::new();
    let own = authority.issue(&["a.test"]);
    let (cert, key) = (write("cert.pem", &own.cert), write("key.pem", &own.key));
    let (ca, crl) = (write("ca.pem", &authority.ca()), write("crl.pem", &authority.revoke(&[])));
    format!(
        "tls = {{ mode = \"Terminate\", certificates = [{{ cert = \"{cert}\", key = \"{key}\" }}], \
         client_ca = \"{ca}\", client_crl = \"{crl}\", client_auth = \"optional\" }}"
    )
}

/// A gateway that follows a cluster without a single object.
struct Follower {
    admin: SocketAddr,
    _daemon: Daemon,
    _api: Server,
    _folder: Folder,
}

impl Follower {
    fn start() -> Self {
        let (folder, admin) = (Folder::new(), free_address());
        let api = Server::tcp(empty_cluster);
        let kubeconfig = format!(
            "{{ apiVersion: v1, kind: Config, current-context: it,\n\
             contexts: [{{ name: it, context: {{ cluster: it, user: it }} }}],\n\
             clusters: [{{ name: it, cluster: {{ server: \"http://{}\" }} }}],\n\
             users: [{{ name: it, user: {{}} }}] }}\n",
            api.address
        );
        let base = format!(
            "admin = {{ address = \"{admin}\" }}\n\
             workers = {{ cores = [0] }}\n\
             access_log = {{ path = \"off\" }}\n"
        );
        let daemon = Daemon::start(
            admin,
            Command::new(binary())
                .args(["run", "--kubernetes", "--replica", "it", "--lease-namespace", "it"])
                .arg("--kubeconfig")
                .arg(folder.write("kubeconfig", &kubeconfig))
                .arg("--config")
                .arg(folder.write("base.toml", &base)),
        );
        Self { admin, _daemon: daemon, _api: api, _folder: folder }
    }
}

/// As much of an API server as there is to say of nothing: no group of resources is served, lists
/// are empty, watches say nothing, and nothing can be written.
fn empty_cluster(stream: TcpStream) {
    let mut reader = BufReader::new(&stream);
    let mut request = String::new();
    if reader.read_line(&mut request).is_err() {
        return;
    }
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
        line.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut out = &stream;
    if query.contains("watch=") {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        let _ = out.write_all(head.as_bytes());
        // Until the other side has had enough.
        let _ = std::io::copy(&mut reader, &mut std::io::sink());
        return;
    }
    let (status, body) = if path == "/apis" {
        (200, r#"{"kind":"APIGroupList","apiVersion":"v1","groups":[]}"#)
    } else if request.starts_with("GET ") {
        (200, r#"{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}"#)
    } else {
        (404, r#"{"kind":"Status","apiVersion":"v1","status":"Failure","code":404}"#)
    };
    let head = format!(
        "HTTP/1.1 {status} -\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let _ = out.write_all((head + body).as_bytes());
}

/// A thread that does the same over and over.
struct Load {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(mut round: impl FnMut() + Send + 'static) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                round();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        if !std::thread::panicking() {
            ended.expect("it was started").expect("the load went through");
        }
    }
}

struct Prometheus {
    address: SocketAddr,
    _daemon: Daemon,
    _folder: Folder,
}

impl Prometheus {
    fn start(targets: [SocketAddr; 2], rules: &str) -> Self {
        let (folder, address) = (Folder::new(), free_address());
        let rules = if rules.is_empty() { String::new() } else { format!("\"{rules}\"") };
        let [one, other] = targets;
        let config = format!(
            "global: {{ scrape_interval: 200ms, evaluation_interval: 200ms }}\n\
             rule_files: [{rules}]\n\
             scrape_configs:\n\
             - job_name: ringway\n  \
               static_configs: [{{ targets: [\"{one}\", \"{other}\"] }}]\n"
        );
        let config = folder.write("prometheus.yml", &config);
        let daemon = Daemon::start(
            address,
            Command::new("prometheus")
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", folder.file("data").display()))
                .arg(format!("--web.listen-address={address}")),
        );
        // It listens before it answers.
        let ready = format!("http://{address}/-/ready");
        let is_ready = || program("curl", &["--silent", &ready]).contains("is Ready");
        wait_until("Prometheus is ready", is_ready);
        Self { address, _daemon: daemon, _folder: folder }
    }

    /// The series of an instant query. One that Prometheus does not understand is a failure.
    fn query(&self, query: &str) -> Vec<Value> {
        let data = self.get("query", Some(query));
        data["result"].as_array().expect("a result").clone()
    }

    fn get(&self, what: &str, query: Option<&str>) -> Value {
        let url = format!("http://{}/api/v1/{what}", self.address);
        let query = query.map(|query| format!("query={query}"));
        let mut arguments = vec!["--silent", "--get"];
        if let Some(query) = &query {
            arguments.extend(["--data-urlencode", query]);
        }
        arguments.push(&url);
        let answer: Value = serde_json::from_str(&program("curl", &arguments)).expect("JSON");
        assert_eq!(answer["status"], "success", "{query:?}: {answer}");
        answer["data"].clone()
    }
}

/// What every panel and every variable asks for, with all chosen and a window of some seconds.
fn queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let panels = targets.map(|target| target["expr"].as_str().expect("a query").to_owned());
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let variables = variables.iter().filter_map(|variable| {
        let (_, inner) = variable["definition"].as_str()?.split_once('(')?;
        let (metric, label) = inner.trim_end_matches(')').split_once(", ")?;
        Some(format!("count by ({label}) ({metric}{{{label}!=\"\"}})"))
    });
    let chosen = ["instance", "listener", "backend"];
    let filled = panels.chain(variables).map(|query| {
        let query = query.replace("$__rate_interval", "5s");
        let fill = |query: String, name| query.replace(&format!("${name}"), ".*");
        chosen.into_iter().fold(query, fill)
    });
    filled.inspect(|query| assert!(!query.contains('$'), "a variable is left: {query}")).collect()
}

/// Every metric of Ringway's that a text names.
fn names(text: &str) -> BTreeSet<String> {
    let starts = ["ringway_", "process_"].into_iter().flat_map(|start| text.match_indices(start));
    let places = starts.map(|(place, _)| &text[place..]);
    let word = |rest: &str| -> String {
        rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect()
    };
    places.map(word).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&read("grafana/dashboard.json")).expect("JSON")
}

fn read(name: &str) -> String {
    fs::read_to_string(images().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn images() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../images"))
}
