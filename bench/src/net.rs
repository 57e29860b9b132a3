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
