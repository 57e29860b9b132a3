//! The control thread: a configuration becomes a table, and sockets are taken over.

use std::sync::Arc;

use config_sync::table::address::UNIX_CLIENT;
use config_sync::table::routing::RoutingTable;

use super::World;
use crate::sim::coverage::Fault;
use crate::sim::world::process::Next;

impl World {
    /// Compiles the configuration as it stands, takes sockets over, and applies the table.
    pub(super) fn apply_next(&mut self, next: Next) {
        let table = match next {
            Next::Drain(drain, handed_over) => {
                let mut table = self.process.model.drain(drain);
                table.handed_over = Arc::new(handed_over);
                table
            }
            Next::Model => {
                // A TCP address that is being closed can't be bound yet; a UDP address can.
                let leaving = self.process.leaving.clone();
                let udp = self.process.model.udp_sockets();
                // An heir has the sockets of the process before.
                let (kernel, in_force) = (&self.kernel, &self.process.in_force);
                let is_first = self.process.latest.is_none() && self.process.is_heir;
                self.process.model.compile(|id| {
                    let is_free = !leaving.contains(&id) || udp.contains(&id);
                    let has = in_force.contains(&id) || is_first;
                    has || (is_free && !kernel.is_held_elsewhere(id))
                })
            }
        };
        for socket in &table.sockets {
            self.process.leaving.remove(&socket.id);
            if !self.process.in_force.contains(&socket.id) {
                let address = socket.address.ip().unwrap_or(UNIX_CLIENT);
                self.process.tables.listen(socket.id, socket.transport, address);
            }
        }
        let ids: Vec<_> = table.sockets.iter().map(|socket| socket.id).collect();
        self.process.leaving.extend(self.process.in_force.iter().filter(|id| !ids.contains(id)));
        self.process.in_force = ids;
        self.apply(Arc::new(table));
        self.process.tables.ask(&mut self.process.ops);
    }

    fn apply(&mut self, table: Arc<RoutingTable>) {
        let now = self.kernel.now;
        self.kernel.hit_all(Fault::TableSwap);
        self.process.check.table_applied(&table, &mut self.clients);
        for last in self.process.present.values_mut().filter(|last| **last == u64::MAX) {
            *last = now;
        }
        for endpoint in table.backends.iter().flat_map(|backend| &backend.endpoints) {
            self.process.present.insert(endpoint.id, u64::MAX);
        }
        self.process.latest = self.clients.tables.last().cloned();
        self.process.settled = None;
        self.kernel.table_applied(&table);
        self.process.proxy.apply(now, table, &mut self.process.ops);
    }
}
