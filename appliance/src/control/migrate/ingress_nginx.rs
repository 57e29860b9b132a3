//! The ConfigMaps `tcp-services` and `udp-services` of ingress-nginx.

use crate::control::migrate::findings::{At, Findings};
use crate::control::migrate::nginx::time;
use crate::control::migrate::plan::{Kind, Part, Plan, Table, duration};
use crate::control::migrate::tree::{self, Node};

/// What the controller's own ConfigMap sets, with its defaults.
struct Controller {
    timeout: u64,
    responses: u64,
    /// Who may send PROXY headers.
    from: Vec<String>,
    /// Whether a PROXY header says who the client is.
    real_ip: bool,
}

/// Reads files. A ConfigMap with `udp` in its name has services of UDP.
///
/// # Errors
/// The text is no YAML, or has no ConfigMap.
pub fn migrate(texts: &[&str], findings: &mut Findings) -> Result<Plan, (At, String)> {
    let mut maps = Vec::new();
    for (file, text) in texts.iter().enumerate() {
        for node in tree::yaml(file, text)? {
            let items = node.get("items").map(Node::items).unwrap_or_default().to_vec();
            maps.push(node);
            maps.extend(items);
        }
    }
    maps.retain(|node| node.text_of("kind") == Some("ConfigMap"));
    if maps.is_empty() {
        return Err((At { file: 0, line: 1 }, "there is no ConfigMap".to_owned()));
    }
    let services = |name: &str| name.ends_with("services") || is_udp(name) || name.contains("tcp");
    let mut controller = Controller {
        timeout: 600_000,
        responses: 1,
        from: vec!["0.0.0.0/0".into(), "::/0".into()],
        real_ip: false,
    };
    for map in maps.iter().filter(|map| !services(name_of(map))) {
        controller.read(map, findings);
    }
    let mut plan = Plan::default();
    for map in maps.iter().filter(|map| services(name_of(map))) {
        let udp = is_udp(name_of(map));
        for (port, service) in map.get("data").into_iter().flat_map(Node::entries) {
            let text = service.text().unwrap_or_default();
            if let Err(why) = add(&mut plan, &controller, udp, (port, service.at, text), findings) {
                findings.loss(service.at, format!("{port}: {text}: is left out: {why}"));
            }
        }
    }
    Ok(plan)
}

fn name_of(map: &Node) -> &str {
    map.path(&["metadata", "name"]).and_then(Node::text).unwrap_or_default()
}

fn is_udp(name: &str) -> bool {
    name.contains("udp")
}

impl Controller {
    fn read(&mut self, map: &Node, findings: &mut Findings) {
        for (key, node) in map.get("data").into_iter().flat_map(Node::entries) {
            let text = node.text().unwrap_or_default();
            match key {
                "proxy-stream-timeout" => match time(text) {
                    Ok(time) => self.timeout = time,
                    Err(why) => findings.loss(node.at, format!("{key}: {why}")),
                },
                "enable-real-ip" => self.real_ip = text == "true",
                "proxy-stream-responses" => self.responses = text.parse().unwrap_or(1),
                "proxy-real-ip-cidr" => {
                    self.from = text.split(',').map(|of| of.trim().to_owned()).collect();
                }
                "stream-snippet"
                | "proxy-stream-next-upstream"
                | "proxy-stream-next-upstream-timeout"
                | "proxy-stream-next-upstream-tries" => {
                    findings.loss(node.at, format!("{key}: is left out"));
                }
                // All others are about HTTP.
                _ => {}
            }
        }
    }

    /// `accept_proxy` of a listener.
    fn senders(&self, at: At, outgoing: bool, findings: &mut Findings) -> Table {
        let text = "name your load balancers in accept_proxy, unless proxy-real-ip-cidr did";
        findings.note(at, format!("PROXY: {text}"));
        if outgoing && !self.real_ip {
            let text = "the header that goes out names the client; without enable-real-ip, that \
                        of ingress-nginx names the sender of the header that came in";
            findings.note(at, format!("PROXY:PROXY: {text}"));
        }
        Table::of([("from", self.from.clone().into())])
    }
}

/// `NAMESPACE/SERVICE:PORT[:PROXY[:PROXY]]`: a PROXY header comes in; one goes out.
fn add(
    plan: &mut Plan,
    controller: &Controller,
    udp: bool,
    (port, at, text): (&str, At, &str),
    findings: &mut Findings,
) -> Result<(), String> {
    let parts: Vec<_> = text.split(':').collect();
    let (service, to, incoming, outgoing) = match parts[..] {
        [service, to] => (service, to, "", ""),
        [service, to, incoming] => (service, to, incoming, ""),
        [service, to, incoming, outgoing] => (service, to, incoming, outgoing),
        _ => return Err("it is not NAMESPACE/SERVICE:PORT".to_owned()),
    };
    let from: u16 = port.parse().map_err(|_| "the key is no port")?;
    let (namespace, name) = service.split_once('/').ok_or("the Service has no namespace")?;
    let to: u16 = to.parse().map_err(|_| {
        "a port's name is known inside of the cluster only: write its number".to_owned()
    })?;
    let is_label = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if !is_label(namespace) || !is_label(name) {
        return Err("this is no name of a Service".to_owned());
    }
    let header = |text: &str| match text {
        "" => Ok(false),
        text if text.eq_ignore_ascii_case("proxy") && !udp => Ok(true),
        text => Err(format!("{text:?} is not PROXY, or stands at UDP")),
    };
    let (incoming, outgoing) = (header(incoming)?, header(outgoing)?);

    let backend = plan.name(Kind::Backend, &format!("{namespace}/{name}:{to}"));
    let mut table = Table::of([("name", backend.as_str().into())]);
    table.set("endpoints", vec![format!("{name}.{namespace}.svc:{to}")]);
    if outgoing {
        table.set("send_proxy", "v1");
    }
    let origin = format!("{port}: {text}");
    plan.backends.push(Part { at, origin: origin.clone(), table });

    let kind = if udp { "udp" } else { "tcp" };
    let listener = plan.name(Kind::Listener, &format!("{kind}-{port}"));
    let protocol = if udp { "UDP" } else { "TCP" };
    let mut table = Table::of([("name", listener.as_str().into()), ("protocol", protocol.into())]);
    table.set("addresses", vec![format!("0.0.0.0:{from}"), format!("[::]:{from}")]);
    let time = duration(controller.timeout.max(100));
    if udp {
        table.set("flow_timeout", time);
        table.set("responses", controller.responses.min(65_535));
    } else {
        table.set("idle_timeout", time.as_str());
        table.set("write_stall_timeout", time);
    }
    if incoming {
        table.set("accept_proxy", controller.senders(at, outgoing, findings));
    }
    table.set("backends", vec![backend]);
    plan.listeners.push(Part { at, origin, table });
    let text = "the name of the Service leads to its address inside of the cluster, and kube-proxy \
                to a Pod; a TCPRoute or UDPRoute leads to Pods";
    findings.note(At { line: 1, ..at }, text);
    Ok(())
}
