//! What workers are given for what was asked.

mod endpoints;
mod ids;
mod keys;
mod routes;

use config_sync::check::parse_for;
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::machine::Machine;
use config_sync::model::place::Problems;
use config_sync::table::address::EndpointAddress;
use config_sync::table::routing::RoutingTable;

/// Every key that this version has.
const ALL: &str = include_str!("../../../tests/fuzz/seeds/config/all.toml");

fn port(at: EndpointAddress) -> u16 {
    at.socket_address().expect("an IP address and port").port()
}

fn machine() -> Machine {
    Machine { cores: vec![0, 1], congestion: vec!["cubic".to_owned()] }
}

fn load(text: &str, names: &mut Names, generation: u64) -> Result<RoutingTable, Problems> {
    compile(&parse_for("f", text, &machine())?, names, generation)
}

fn table(text: &str) -> RoutingTable {
    load(text, &mut Names::new(), 1).unwrap_or_else(|problems| panic!("{problems}"))
}

/// A listener of each protocol, without routes.
fn listener(name: &str, protocol: &str, address: &str, more: &str) -> String {
    let names = format!("[[listeners]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\n");
    format!("{names}address = \"{address}\"\n{more}\n")
}

fn route(name: &str, more: &str) -> String {
    format!("[[routes]]\nname = \"{name}\"\nlisteners = [\"l\"]\nbackends = []\n{more}\n")
}
