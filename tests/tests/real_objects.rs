//! A real gateway whose listeners, routes and backends are Kubernetes objects in files.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;

use ringway_tests::real::{
    Daemon, Folder, Server, binary, deadline, echo, free_address, wait_until,
};

/// Whether what is said comes back.
fn is_echoed(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    stream.set_read_timeout(Some(deadline())).expect("a timeout");
    let mut back = [0; 16];
    let said = b"SSH-2.0-client\r\n";
    stream.write_all(said).is_ok() && stream.read_exact(&mut back).is_ok() && back == *said
}

/// The objects of a Gateway with a TCP listener that leads to an XBackend, and with a TLS listener
/// whose other clients have a backend too.
fn objects([tcp, tls]: [u16; 2], named: u16, other: SocketAddr) -> String {
    let (ip, port) = (other.ip(), other.port());
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: g}}
spec:
  gatewayClassName: ringway
  listeners:
  - {{name: tcp, protocol: TCP, port: {tcp}}}
  - {{name: tls, protocol: TLS, port: {tls}, tls: {{mode: Passthrough}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {{name: tcp}}
spec:
  parentRefs: [{{name: g, sectionName: tcp}}]
  rules: [{{backendRefs: [{{group: gateway.networking.x-k8s.io, kind: XBackend, name: here}}]}}]
---
apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XBackend
metadata: {{name: here}}
spec: {{type: ExternalHostname, port: {{port: {named}}}, externalHostname: {{hostname: localhost}}}}
---
apiVersion: ringway.dev/v1alpha1
kind: L4Policy
metadata: {{name: ssh}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: g}}]
  listener: {{notTls: {{name: ssh, port: 22}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: ssh}}
spec: {{ports: [{{port: 22}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: ssh, labels: {{kubernetes.io/service-name: ssh}}}}
addressType: IPv4
ports: [{{port: {port}}}]
endpoints: [{{addresses: [{ip}]}}]
"
    )
}

#[test]
fn an_x_backend_leads_to_its_name_and_what_is_no_tls_to_the_backend_of_a_policy() {
    let (named, other) = (Server::tcp(echo), Server::tcp(echo));
    let [tcp, tls, admin] = [free_address(), free_address(), free_address()];
    let folder = Folder::new();
    folder.write("ringway.toml", &format!("admin = {{ address = \"{admin}\" }}\n"));
    let text = objects([tcp.port(), tls.port()], named.address.port(), other.address);
    let file = folder.write("objects.yaml", &text);
    let directory = file.parent().expect("a directory");
    let at = |of: SocketAddr| SocketAddr::from((Ipv4Addr::LOCALHOST, of.port()));
    let start = |flags: &[&str]| {
        let mut command = Command::new(binary());
        Daemon::start(admin, command.args(["run", "--config"]).arg(directory).args(flags))
    };

    let gateway = start(&["--external-names"]);
    wait_until("the name is resolved, and its endpoint answers", || is_echoed(at(tcp)));
    assert!(named.served() >= 1);
    assert_eq!(other.served(), 0);
    assert!(is_echoed(at(tls)), "it is no ClientHello");
    assert_eq!(other.served(), 1);
    drop(gateway);

    let before = named.served();
    let gateway = start(&[]);
    wait_until("the listeners are there", || is_echoed(at(tls)));
    assert!(!is_echoed(at(tcp)), "names are off by default");
    assert_eq!(named.served(), before);
    drop(gateway);
}
