//! Settings that tests of this room share.

use std::collections::BTreeMap;

use crate::check;
use crate::gateway::objects::CONTROLLER;
use crate::gateway::translate::found::LastGood;
use crate::gateway::translate::settings::Settings;
use crate::machine::Machine;

/// A machine with one core, the node's address 192.0.2.1 and no pool.
pub(super) fn settings() -> Settings {
    let machine = Machine { cores: vec![0], congestion: vec!["cubic".into(), "bbr".into()] };
    Settings {
        controller_name: CONTROLLER.into(),
        given: BTreeMap::new(),
        last_good: LastGood::default(),
        namespaces: [].into(),
        now: None,
        address_pool: Vec::new(),
        node_addresses: vec!["192.0.2.1".parse().expect("address")],
        zone: None,
        external_names: false,
        base: check::parse_for("", "", &machine).expect("an empty file is a configuration"),
        machine,
    }
}
