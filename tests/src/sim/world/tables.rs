//! The control thread: a configuration becomes a table, and sockets are taken over.

use std::collections::BTreeSet;
use std::sync::Arc;

use config_sync::table::address::UNIX_CLIENT;
use config_sync::table::routing::{RoutingTable, SocketId};

use super::{Next, World};
use crate::sim::coverage::Fault;

impl World {
    /// Compiles the configuration as it stands, takes sockets over, and applies the table.
    pub(super) fn apply_next(&mut self, next: Next) {
        let table = match next {
            Next::Drain(drain) => {
                let mut table = self.model.drain(drain);
                table.handed_over = self.handed_over();
                table
            }
            Next::Model => {
                // A TCP address that is being closed can't be bound yet; a UDP address can.
                let leaving = self.leaving.clone();
                let udp = self.model.udp_sockets();
                self.model.compile(|id| !leaving.contains(&id) || udp.contains(&id))
            }
        };
        for socket in &table.sockets {
            self.leaving.remove(&socket.id);
            if !self.in_force.contains(&socket.id) {
                let address = socket.address.ip().unwrap_or(UNIX_CLIENT);
                self.tables.listen(socket.id, socket.transport, address);
            }
        }
        let ids: Vec<_> = table.sockets.iter().map(|socket| socket.id).collect();
        self.leaving.extend(self.in_force.iter().filter(|id| !ids.contains(id)));
        self.in_force = ids;
        self.apply(Arc::new(table));
        self.tables.ask(&mut self.ops);
    }

    /// Sometimes another process goes on with some of the sockets.
    fn handed_over(&mut self) -> Arc<BTreeSet<SocketId>> {
        let share = if self.rng.per_mille(400) { 700 } else { 0 };
        let ids = self.in_force.clone().into_iter();
        Arc::new(ids.filter(|_| self.rng.per_mille(share)).collect())
    }

    fn apply(&mut self, table: Arc<RoutingTable>) {
        let now = self.kernel.now;
        self.kernel.hit_all(Fault::TableSwap);
        self.check.table_applied(&table);
        for last in self.present.values_mut().filter(|last| **last == u64::MAX) {
            *last = now;
        }
        for endpoint in table.backends.iter().flat_map(|backend| &backend.endpoints) {
            self.present.insert(endpoint.id, u64::MAX);
        }
        // A copy: at the end it is checked that nobody holds a table any more.
        self.latest = Some(Arc::new((*table).clone()));
        self.settled = None;
        self.kernel.may_promote.table_applied(&table, now);
        self.proxy.apply(now, table, &mut self.ops);
    }
}
