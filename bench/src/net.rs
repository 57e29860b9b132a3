//! A network of its own: client, gateway and backend in a namespace each, with veth pairs between
//! them, so that every packet takes the way through devices and routing that loopback spares it.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use anyhow::{Context, bail};

/// Three namespaces, taken down when this is dropped.
pub struct Network {
    name: String,
}

/// Addresses of the ends: client - gateway, gateway - backend.
pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 66, 1, 2));
pub const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 66, 1, 1));
pub const GATEWAY_BACK: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 66, 2, 1));
pub const BACKEND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 66, 2, 2));

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Client,
    Gateway,
    Backend,
}

const PLACES: [Place; 3] = [Place::Client, Place::Gateway, Place::Backend];

impl Network {
    /// # Errors
    /// Not root (CAP_NET_ADMIN, CAP_SYS_ADMIN), or no ip(8).
    pub fn new() -> anyhow::Result<Self> {
        let network = Self { name: format!("rwb{}", std::process::id()) };
        for place in PLACES {
            let name = network.namespace(place);
            ip(&["netns", "add", &name])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        network.join(Place::Client, CLIENT, Place::Gateway, GATEWAY)?;
        network.join(Place::Backend, BACKEND, Place::Gateway, GATEWAY_BACK)?;
        // For DNAT, which forwards instead of ending connections.
        let gateway = network.namespace(Place::Gateway);
        ip(&["netns", "exec", &gateway, "sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        for (place, way) in [(Place::Client, GATEWAY), (Place::Backend, GATEWAY_BACK)] {
            let name = network.namespace(place);
            ip(&["-n", &name, "route", "add", "default", "via", &way.to_string()])?;
        }
        Ok(network)
    }

    /// Has packets that come in on this place's devices handled on any core (RPS), or on the one
    /// that they came to.
    pub fn steer(&self, place: Place, on: bool) -> anyhow::Result<()> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mask = if on { (1_u64 << cores.min(63)) - 1 } else { 0 };
        // ip(8) mounts the namespace's own /sys.
        let files = "/sys/class/net/*/queues/rx-*/rps_cpus";
        let script = format!("for file in {files}; do echo {mask:x} >$file || exit; done");
        ip(&["netns", "exec", &self.namespace(place), "sh", "-ec", &script])
    }

    pub fn namespace(&self, place: Place) -> String {
        let end = match place {
            Place::Client => "c",
            Place::Gateway => "g",
            Place::Backend => "b",
        };
        format!("{}{end}", self.name)
    }

    /// A veth pair between the two.
    fn join(&self, one: Place, at: IpAddr, other: Place, other_at: IpAddr) -> anyhow::Result<()> {
        let (one, other) = (self.namespace(one), self.namespace(other));
        let far = format!("to{}", &one[one.len() - 1..]);
        ip(&["-n", &one, "link", "add", "up0", "type", "veth", "peer", "name", &far])?;
        ip(&["-n", &one, "link", "set", &far, "netns", &other])?;
        for (name, device, address) in [(&one, "up0", at), (&other, far.as_str(), other_at)] {
            ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", device])?;
            ip(&["-n", name, "link", "set", device, "up"])?;
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for place in PLACES {
            let _ = ip(&["netns", "delete", &self.namespace(place)]);
        }
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip(8)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), said.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::process::{Child, Stdio};

    use super::*;
    use crate::peers::{More, Peer, Places, Setup, Transport, UdpShape};

    /// Echo through the network by the kernel alone and by a proxy, and nothing of it stays.
    #[test]
    fn both_ways_through_it_pass_traffic() {
        if std::fs::metadata("/proc/self").map_or(1, |own| own.uid()) != 0 {
            eprintln!("namespaces need root: not tested");
            return;
        }
        let own = std::env::current_exe().expect("a path");
        let bench = own.parent().and_then(Path::parent).expect("target/debug").join("bench");
        let network = Network::new().expect("root may");
        let places = Places::new(&bench.with_file_name("ringway"));
        let dir = std::env::temp_dir().join(format!("ringway-net-{}", std::process::id()));
        let ways =
            [(Transport::Tcp, "respond", "request"), (Transport::Udp, "udp-echo", "udp-request")];
        for (transport, served, load) in ways {
            let to = SocketAddr::new(BACKEND, 9_000);
            let mut backend = Backend::start(&network, &bench, served, to);
            for peer in [Peer::Dnat, Peer::Ringway, Peer::RingwayFastPath, Peer::Nginx] {
                if !peer.speaks(transport) {
                    continue;
                }
                let Ok(found) = peer.find(&places) else { continue };
                let setup = Setup {
                    transport,
                    listen: SocketAddr::new(GATEWAY, 9_001),
                    backends: vec![to],
                    workers: 1,
                    cores: vec![0],
                    udp: UdpShape::default(),
                    more: More::default(),
                    certificates: "/tmp".into(),
                    dir: dir.join(peer.to_string()),
                    netns: Some(network.namespace(Place::Gateway)),
                };
                let running =
                    peer.start(&found, &setup).unwrap_or_else(|e| panic!("{peer}: {e:#}"));
                let output = inside(&network, Place::Client, &bench)
                    .args(["load", load, "--to", &running.listen.to_string()])
                    .args(["--seconds", "0.2"])
                    .output()
                    .expect("ip(8)");
                // After a line that says that it begins.
                let last = output.stdout.trim_ascii_end().rsplit(|byte| *byte == b'\n').next();
                let outcome: serde_json::Value = serde_json::from_slice(last.unwrap_or_default())
                    .unwrap_or_else(|e| panic!("{peer} {transport:?}: {e}: {output:?}"));
                assert!(outcome["operations"].as_u64() > Some(0), "{peer}: {outcome}");
                assert_eq!(outcome["errors"].as_u64(), Some(0), "{peer}: {outcome}");
                drop(running);
                let rules = inside(&network, Place::Gateway, Path::new("nft"))
                    .args(["list", "ruleset"])
                    .output()
                    .expect("nft(8)");
                assert!(rules.status.success() && rules.stdout.is_empty(), "{peer}: {rules:?}");
            }
            backend.stop();
        }
        let names = PLACES.map(|place| network.namespace(place));
        drop(network);
        for name in names {
            assert!(!Path::new("/run/netns").join(&name).exists(), "{name} stays");
        }
        let _ = std::fs::remove_dir_all(dir);
    }

    struct Backend(Child);

    impl Backend {
        fn start(network: &Network, bench: &Path, kind: &str, at: SocketAddr) -> Self {
            let mut command = inside(network, Place::Backend, bench);
            command.args(["serve", kind, "--listen", &at.to_string()]).stdin(Stdio::piped());
            let mut child = command.stdout(Stdio::piped()).spawn().expect("ip(8)");
            let mut ready = [0; 6];
            let output = child.stdout.as_mut().expect("piped");
            std::io::Read::read_exact(output, &mut ready).expect("it says that it is ready");
            Self(child)
        }

        fn stop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl Drop for Backend {
        fn drop(&mut self) {
            self.stop();
        }
    }

    fn inside(network: &Network, place: Place, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &network.namespace(place)]).arg(program);
        command
    }
}
