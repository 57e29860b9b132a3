//! A worker's loop on the simulated kernel, for runs that say themselves what happens when.

use std::net::SocketAddr;
use std::sync::Arc;

use config_sync::table::address::UNIX_CLIENT;
use config_sync::table::routing::{Limits, Protocol, RoutingTable, SocketId};
use ringway::contract::{Op, Token};
use ringway::proxy::Proxy;
use ringway::proxy::table_queue::{Step, TableQueue};
use ringway::stats::counters::Counters;
use ringway::stats::records::Record;

use crate::sim::kernel::faults::Faults;
use crate::sim::kernel::{Kernel, Turn};

pub struct Fake {
    pub kernel: Kernel,
    pub proxy: Proxy,
    pub counters: Arc<Counters>,
    /// What the proxy has reported, in order.
    pub records: Vec<Record>,
    turn: Turn,
    ops: Vec<(Token, Op)>,
    tables: TableQueue<SocketAddr>,
    /// Sockets of the latest table.
    in_force: Vec<SocketId>,
}

impl Fake {
    pub fn new(seed: u64, limits: Limits, faults: Faults) -> Self {
        let counters = Arc::new(Counters::new());
        let mut proxy = Proxy::new(limits, seed, Arc::clone(&counters));
        proxy.bound_new_flows(1, limits.buffers);
        Self {
            kernel: Kernel::new(seed, limits, faults),
            proxy,
            counters,
            records: Vec::new(),
            turn: Turn::default(),
            ops: Vec::new(),
            tables: TableQueue::default(),
            in_force: Vec::new(),
        }
    }

    /// Applies a table, and carries out all that it hands over and asks for.
    pub fn apply(&mut self, table: RoutingTable) {
        self.hand_over(table);
        while self.carry_on() {}
    }

    /// Applies a table. What it hands over and asks for waits for [`Self::carry_on`].
    pub fn hand_over(&mut self, table: RoutingTable) {
        for socket in &table.sockets {
            if !self.in_force.contains(&socket.id) {
                let address = socket.address.ip().unwrap_or(UNIX_CLIENT);
                self.tables.listen(socket.id, socket.transport, address);
            }
        }
        self.in_force = table.sockets.iter().map(|socket| socket.id).collect();
        self.kernel.table_applied(&table);
        self.proxy.apply(self.kernel.now, Arc::new(table), &mut self.ops);
        self.tables.ask(&mut self.ops);
    }

    /// Carries out one step of what tables hand over and ask for. False if none waits.
    pub fn carry_on(&mut self) -> bool {
        let Some(step) = self.tables.some(1).next() else { return false };
        self.turn.events.clear();
        match step {
            Step::Listen(id, transport, address) => self.kernel.listen(id, transport, address),
            Step::Op(token, op) => self.kernel.carry_out(&mut vec![(token, op)], &mut self.turn),
        }
        self.settle();
        true
    }

    /// Lets time go on to whatever is next, no further than `until`, and gives the worker a turn.
    /// False if nothing is to come before `until`.
    pub fn step(&mut self, until: u64) -> bool {
        let next = [self.kernel.next_time(), self.proxy.next_deadline()];
        let next = next.into_iter().flatten().min().map(|at| at.max(self.kernel.now));
        let Some(next) = next.filter(|next| *next <= until) else {
            self.kernel.now = until;
            return false;
        };
        self.kernel.now = next;
        self.turn.events.clear();
        self.turn.bytes.clear();
        self.kernel.reap(usize::MAX, &mut self.turn);
        self.settle();
        self.let_newcomers_in();
        self.proxy.expire(next, &mut self.ops);
        self.proxy.resume(next, &mut self.ops);
        self.settle();
        true
    }

    fn let_newcomers_in(&mut self) {
        let mut has_let_in = false;
        while let Some((token, event)) = self.proxy.newcomer(self.kernel.now) {
            if self.tables.is_stale(token, event) {
                continue;
            }
            has_let_in = true;
            let mut payload = Vec::new();
            let bytes = self.kernel.payload(event, &self.turn, &mut payload);
            self.proxy.let_in(self.kernel.now, (token, event), bytes, &mut self.ops);
        }
        if has_let_in {
            self.settle();
        }
    }

    fn settle(&mut self) {
        let mut at = 0;
        loop {
            while let Some((token, event)) = self.turn.events.get(at).copied() {
                at += 1;
                if self.tables.is_stale(token, event) {
                    continue;
                }
                let now = self.kernel.now;
                let mut payload = Vec::new();
                let bytes = self.kernel.payload(event, &self.turn, &mut payload);
                self.proxy.handle(now, token, event, bytes, &mut self.ops);
            }
            self.tables.defer(&mut self.ops);
            self.kernel.output.append(self.proxy.output());
            self.kernel.carry_out(&mut self.ops, &mut self.turn);
            if at == self.turn.events.len() {
                break;
            }
        }
        self.turn.events.clear();
        self.kernel.end_turn(self.proxy.waiting_buffers());
        for record in self.proxy.records().drain(..) {
            if let Record::Closed(flow) = &record
                && flow.protocol == Protocol::Udp
                && !flow.refused
            {
                self.kernel.flow_is_over(flow.client);
            }
            self.records.push(record);
        }
    }
}
