//! The manifests in images/kubernetes: that each is what it says, that every reference in them
//! leads somewhere, and that Ringway may do what it has to and no more. A real API server has the
//! last word; this needs none.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, Namespace, PodSpec, Service, ServiceAccount,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const NAMESPACE: &str = "ringway-system";

/// Fields that the API does not have are lost when an object is read and written again.
#[test]
fn every_field_is_one_of_its_kind() {
    for object in objects() {
        let known = match kind(&object).as_str() {
            "apps/v1 DaemonSet" => again::<DaemonSet>(&object),
            "v1 ConfigMap" => again::<ConfigMap>(&object),
            "v1 Namespace" => again::<Namespace>(&object),
            "v1 Service" => again::<Service>(&object),
            "v1 ServiceAccount" => again::<ServiceAccount>(&object),
            "policy/v1 PodDisruptionBudget" => again::<PodDisruptionBudget>(&object),
            "rbac.authorization.k8s.io/v1 ClusterRole" => again::<ClusterRole>(&object),
            "rbac.authorization.k8s.io/v1 ClusterRoleBinding" => {
                again::<ClusterRoleBinding>(&object)
            }
            "rbac.authorization.k8s.io/v1 Role" => again::<Role>(&object),
            "rbac.authorization.k8s.io/v1 RoleBinding" => again::<RoleBinding>(&object),
            "apiextensions.k8s.io/v1 CustomResourceDefinition" => {
                again::<CustomResourceDefinition>(&object)
            }
            // Ringway's own type has only what it reads; the_class_is_ours has the rest.
            "gateway.networking.k8s.io/v1 GatewayClass" => continue,
            other => panic!("{other}: a kind that this test does not know"),
        };
        assert_eq!(known, without_empty(&object), "{} {}", kind(&object), name(&object));
    }
}

#[test]
fn every_object_is_in_the_namespace_or_has_none() {
    let without = [
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "GatewayClass",
        "Namespace",
    ];
    for object in objects() {
        let namespace = object["metadata"].get("namespace").and_then(Value::as_str);
        let cluster_wide = without.contains(&text(&object["kind"]));
        let wanted = (!cluster_wide).then_some(NAMESPACE);
        assert_eq!(namespace, wanted, "{} {}", kind(&object), name(&object));
    }
    assert_eq!(name(&the("Namespace")), NAMESPACE);
}

#[test]
fn the_kustomization_names_every_file() {
    let mut there = BTreeSet::new();
    for entry in fs::read_dir(folder()).expect("the folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_str().expect("UTF-8").to_owned();
        if path.is_file() && name != "kustomization.yaml" {
            there.insert(name);
        }
    }
    let named: BTreeSet<_> = resources().into_iter().collect();
    assert_eq!(named, there);
    let kustomization = kustomization();
    let image = text(&kustomization["images"][0]["name"]).to_owned();
    assert_eq!(container().image, Some(image), "the image that the kustomization replaces");
}

#[test]
fn every_reference_leads_somewhere() {
    let set: DaemonSet = typed(&the("DaemonSet"));
    let spec = set.spec.expect("a spec");
    let labels = spec.template.metadata.and_then(|meta| meta.labels).expect("labels");
    let chosen = |selector: &std::collections::BTreeMap<String, String>| {
        selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    assert!(chosen(&spec.selector.match_labels.expect("labels")), "the DaemonSet finds its pods");
    let service: Service = typed(&the("Service"));
    let service = service.spec.expect("a spec");
    assert!(chosen(&service.selector.expect("labels")), "the Service finds its pods");
    let budget: PodDisruptionBudget = typed(&the("PodDisruptionBudget"));
    let budget = budget.spec.and_then(|spec| spec.selector).expect("a selector");
    assert!(chosen(&budget.match_labels.expect("labels")), "the budget finds its pods");

    let account = name(&the("ServiceAccount")).to_owned();
    assert_eq!(pod().service_account_name.as_ref(), Some(&account));
    for binding in objects().iter().filter(|object| text(&object["kind"]).ends_with("Binding")) {
        let role = the(text(&binding["roleRef"]["kind"]));
        assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
        assert_eq!(binding["subjects"][0]["name"], account.as_str());
        assert_eq!(binding["subjects"][0]["namespace"], NAMESPACE);
    }

    let container = container();
    let ports: Vec<_> = container.ports.expect("ports");
    let probes = [container.startup_probe, container.liveness_probe, container.readiness_probe];
    let probed = probes.map(|probe| probe.and_then(|probe| probe.http_get).expect("a GET"));
    let asked = probed.map(|get| (get.path.expect("a path"), format!("{:?}", get.port)));
    let admin =
        format!("{:?}", service.ports.expect("ports")[0].target_port.as_ref().expect("one"));
    assert_eq!(ports[0].name.as_deref(), Some("admin"));
    assert!(asked.iter().all(|(_, port)| *port == admin && admin.contains("\"admin\"")));
    assert_eq!(asked.map(|(path, _)| path), ["/healthz", "/healthz", "/readyz"]);
}

/// The kubelet must not kill what the drain still serves.
#[test]
fn a_pod_has_time_to_drain() {
    let config = config();
    let drain = u64::from(config.drain_grace + config.drain_timeout) / 1_000 + 5;
    let patience = pod().termination_grace_period_seconds.expect("a period");
    assert!(u64::try_from(patience).expect("positive") > drain, "{patience} s for {drain} s");
}

/// Two gateways on one node would need the same addresses.
#[test]
fn one_node_after_the_other_is_renewed_without_surge() {
    let set: DaemonSet = typed(&the("DaemonSet"));
    let strategy = set.spec.and_then(|spec| spec.update_strategy).expect("a strategy");
    assert_eq!(strategy.type_.as_deref(), Some("RollingUpdate"));
    let rolling = strategy.rolling_update.expect("how to roll");
    assert_eq!(rolling.max_surge, Some(IntOrString::Int(0)));
    assert_eq!(rolling.max_unavailable, Some(IntOrString::Int(1)));
    assert_eq!(pod().host_network, Some(true));
}

/// Where the file says that the admin API is, the probes and Prometheus look for it; and where the
/// arguments say that the file is, the ConfigMap is.
#[test]
fn the_file_is_where_the_arguments_say() {
    let container = container();
    let arguments = container.args.expect("arguments");
    assert_eq!(arguments, ["run", "--kubernetes", "--config=/etc/ringway/ringway.toml"]);
    let mount = container.volume_mounts.expect("mounts").remove(0);
    assert_eq!(mount.mount_path, "/etc/ringway");
    let volume = pod().volumes.expect("volumes").remove(0);
    assert_eq!(volume.name, mount.name);
    let map = volume.config_map.expect("a ConfigMap");
    assert_eq!(map.name, name(&the("ConfigMap")));
    let admin = config().admin.expect("an address");
    let port = container.ports.expect("ports").remove(0).container_port;
    assert_eq!(i32::from(admin.port()), port);
    assert!(admin.ip().is_unspecified(), "the kubelet comes to the node's address");
}

#[test]
fn the_pod_has_no_more_than_it_needs() {
    let pod_context = pod().security_context.expect("a security context");
    assert_eq!(pod_context.run_as_non_root, Some(true));
    let profile = pod_context.seccomp_profile.expect("a profile");
    assert_eq!(profile.type_, "Localhost");
    let context = container().security_context.expect("a security context");
    assert_eq!(context.allow_privilege_escalation, Some(false));
    assert_eq!(context.read_only_root_filesystem, Some(true));
    assert_eq!(context.privileged, None);
    let capabilities = context.capabilities.expect("capabilities");
    assert_eq!(capabilities.drop, Some(vec!["ALL".into()]));
    assert_eq!(capabilities.add, Some(vec!["NET_BIND_SERVICE".into()]));
    let volumes = pod().volumes.expect("the configuration");
    assert!(volumes.iter().all(|volume| volume.host_path.is_none()), "nothing of the node");
}

/// What the controller reads it may list and watch; what has a status it may also get, and write
/// that.
#[test]
fn the_role_covers_what_the_controller_does() {
    let gateway = "gateway.networking.k8s.io";
    let with_status = [
        (gateway, "backendtlspolicies"),
        (gateway, "gatewayclasses"),
        (gateway, "gateways"),
        (gateway, "httproutes"),
        (gateway, "listenersets"),
        (gateway, "tcproutes"),
        (gateway, "tlsroutes"),
        (gateway, "udproutes"),
        ("gateway.networking.x-k8s.io", "xbackends"),
        ("ringway.dev", "l4policies"),
    ];
    let only_read = [
        (gateway, "referencegrants"),
        ("", "configmaps"),
        ("", "namespaces"),
        ("", "secrets"),
        ("", "services"),
        ("discovery.k8s.io", "endpointslices"),
    ];
    let mut wanted = BTreeSet::new();
    let mut want = |group: &str, resource: &str, verbs: &[&str]| {
        let rule = |verb: &&str| (group.to_owned(), resource.to_owned(), (*verb).to_owned());
        wanted.extend(verbs.iter().map(rule));
    };
    for (group, resource) in only_read {
        want(group, resource, &["list", "watch"]);
    }
    for (group, resource) in with_status {
        want(group, resource, &["get", "list", "watch"]);
        want(group, &format!("{resource}/status"), &["patch"]);
    }
    want("", "nodes", &["get"]);
    want("apiextensions.k8s.io", "customresourcedefinitions", &["get"]);
    want("", "serviceaccounts", &["create", "delete", "get", "list", "patch"]);
    want("events.k8s.io", "events", &["create", "patch"]);
    assert_eq!(rights("ClusterRole"), wanted);
    let leases = rights("Role");
    assert!(leases.iter().all(|(_, resource, _)| resource == "leases"), "{leases:?}");
    let verbs: Vec<_> = leases.iter().map(|(.., verb)| verb.as_str()).collect();
    assert_eq!(verbs, ["create", "delete", "list", "patch", "update", "watch"]);
}

#[test]
fn the_class_is_ours() {
    let class = the("GatewayClass");
    assert_eq!(name(&class), "ringway");
    assert_eq!(class["spec"]["controllerName"], config_sync::gateway::objects::CONTROLLER);
    let fields: Vec<_> = class["spec"].as_object().expect("a spec").keys().collect();
    assert_eq!(fields, ["controllerName", "description"]);
    let description = text(&class["spec"]["description"]);
    assert!(description.len() <= 64, "the API takes no more");
}

/// The file that the pod's security context names is what is put on the nodes.
#[test]
fn the_profile_has_the_name_that_the_pod_asks_for() {
    let profile = pod().security_context.and_then(|context| context.seccomp_profile);
    let file = profile.and_then(|profile| profile.localhost_profile).expect("a file's name");
    let profile = fs::canonicalize(folder().join("../seccomp.json")).expect("the profile");
    assert_eq!(profile, fs::canonicalize(folder().join("node-profile").join(file)).expect("it"));
}

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../images/kubernetes"))
}

fn kustomization() -> Value {
    let text = fs::read_to_string(folder().join("kustomization.yaml")).expect("the file");
    parse(&text).remove(0)
}

fn resources() -> Vec<String> {
    let kustomization = kustomization();
    let resources = kustomization["resources"].as_array().expect("a list");
    resources.iter().map(|name| text(name).to_owned()).collect()
}

fn objects() -> Vec<Value> {
    let read = |name: String| {
        let path = folder().join(&name);
        parse(&fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}")))
    };
    resources().into_iter().flat_map(read).collect()
}

fn parse(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

/// The only object of a kind.
fn the(kind: &str) -> Value {
    let mut found: Vec<_> =
        objects().into_iter().filter(|object| text(&object["kind"]) == kind).collect();
    assert_eq!(found.len(), 1, "one {kind}");
    found.remove(0)
}

fn pod() -> PodSpec {
    let set: DaemonSet = typed(&the("DaemonSet"));
    set.spec.and_then(|spec| spec.template.spec).expect("a pod")
}

fn config() -> config_sync::model::config::Config {
    let map = the("ConfigMap");
    config_sync::check::parse("ringway.toml", text(&map["data"]["ringway.toml"])).expect("valid")
}

fn container() -> Container {
    pod().containers.remove(0)
}

/// Group, resource and verb of each permission of the only role of a kind.
fn rights(kind: &str) -> BTreeSet<(String, String, String)> {
    let role = the(kind);
    let mut rights = BTreeSet::new();
    let list = |rule: &Value, key: &str| -> Vec<String> {
        let list = rule[key].as_array().expect("a list");
        list.iter().map(|word| text(word).to_owned()).collect()
    };
    for rule in role["rules"].as_array().expect("rules") {
        for group in list(rule, "apiGroups") {
            for resource in list(rule, "resources") {
                for verb in list(rule, "verbs") {
                    rights.insert((group.clone(), resource.clone(), verb));
                }
            }
        }
    }
    rights
}

fn kind(object: &Value) -> String {
    format!("{} {}", text(&object["apiVersion"]), text(&object["kind"]))
}

fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}"))
}

fn typed<T: DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"))
}

fn again<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    without_empty(&serde_json::to_value(typed::<T>(object)).expect("JSON"))
}

/// Empty fields may be written or left out.
fn without_empty(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| (key.clone(), without_empty(value)));
            Value::Object(fields.filter(|(_, value)| !is_empty(value)).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_empty).collect()),
        other => other.clone(),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
