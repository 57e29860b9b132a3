use std::fs::File;
use std::net::SocketAddr;
use std::sync::Mutex;

use crossbeam_channel::{Receiver, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::*;
use crate::table::address::Bind;
use crate::table::request::{Filter, Of, What};
use crate::table::routing::{AcceptProxy, Hosts, OnRefusal, SocketOptions};

/// Two workers with channels of one command, and the sockets that were opened, by port.
struct World {
    publisher: Publisher,
    commands: Vec<Receiver<Command>>,
    wakes: Vec<Arc<OwnedFd>>,
    opened: Arc<Mutex<Vec<u16>>>,
}

/// Binding this port fails.
const BUSY: u16 = 666;

impl World {
    fn new() -> Self {
        let opened = Arc::new(Mutex::new(Vec::new()));
        let (mut links, mut commands, mut wakes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..2 {
            let (sender, receiver) = bounded(1);
            let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("eventfd");
            let wake = Arc::new(OwnedFd::from(wake));
            links.push(Link { commands: sender, wake: Arc::clone(&wake) });
            commands.push(receiver);
            wakes.push(wake);
        }
        let log = Arc::clone(&opened);
        let open = move |socket: &Socket, workers: usize, _: bool| {
            if port(&socket.address) == BUSY {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            log.lock().expect("lock").push(port(&socket.address));
            (0..workers).map(|_| Ok(File::open("/dev/null")?.into())).collect()
        };
        Self { publisher: Publisher::new(links, Box::new(open)), commands, wakes, opened }
    }

    fn publish(&mut self, generation: u64, ports: &[u16]) {
        self.publisher.publish(table(generation, ports)).expect("published");
    }

    /// The generation and new sockets that a worker finds in its channel.
    fn receive(&self, worker: usize) -> Option<(u64, Vec<u32>)> {
        match self.commands[worker].try_recv().ok()? {
            Command::Table { table, sockets } => {
                Some((table.generation, sockets.iter().map(|(id, _, _)| id.0).collect()))
            }
            Command::Ask(_)
            | Command::Adopt { .. }
            | Command::AdoptFlows { .. }
            | Command::Look
            | Command::Stop => None,
        }
    }

    fn opened(&self) -> Vec<u16> {
        std::mem::take(&mut *self.opened.lock().expect("lock"))
    }
}

fn port(address: &Address) -> u16 {
    address.ip().expect("an IP address").port()
}

/// A table of TCP sockets, with their ports as ids.
fn table(generation: u64, ports: &[u16]) -> RoutingTable {
    let socket = |port: &u16| Socket {
        id: SocketId((*port).into()),
        transport: Transport::Tcp,
        address: SocketAddr::from(([127, 0, 0, 1], *port)).into(),
        bind: Bind::default(),
        options: SocketOptions {
            nodelay: true,
            keepalive: 0,
            user_timeout: 0,
            congestion: [0; 16],
        },
        reads_hello: false,
        hello_timeout: 0,
        access: None,
        starttls: None,
        on_refusal: OnRefusal::default(),
        default_hostname: None,
        not_tls: None,
        silent: None,
        accept_proxy: AcceptProxy::default(),
        listeners: Hosts::new([0; 4]),
    };
    let sockets = ports.iter().map(socket).collect();
    RoutingTable { generation, sockets, ..RoutingTable::empty() }
}

#[test]
fn each_worker_gets_the_table_its_new_sockets_and_a_wake_up() {
    let mut world = World::new();
    world.publish(1, &[80, 81]);
    for worker in 0..2 {
        assert_eq!(world.receive(worker), Some((1, vec![80, 81])));
        let mut count = [0; 8];
        assert_eq!(nix::unistd::read(&world.wakes[worker], &mut count), Ok(8));
    }
    world.publish(2, &[81, 82]);
    assert_eq!(world.receive(0), Some((2, vec![82])));
    assert_eq!(world.opened(), [80, 81, 82]);
    assert!(!world.publisher.has_pending());
}

#[test]
fn a_bind_that_fails_publishes_nothing_and_keeps_what_was() {
    let mut world = World::new();
    world.publish(1, &[80]);
    assert!(world.receive(0).is_some() && world.receive(1).is_some());
    let error = world.publisher.publish(table(2, &[82, BUSY])).expect_err("busy");
    assert_eq!(port(&error.bound.address), BUSY);
    assert!(error.to_string().contains("another process listens there"), "{error}");
    assert!(world.receive(0).is_none() && world.receive(1).is_none());
    // Port 80 is still open and 82 was given back, so only 82 is opened again.
    world.publish(3, &[80, 82]);
    assert_eq!(world.receive(0), Some((3, vec![82])));
    assert_eq!(world.opened(), [80, 82, 82]);
}

#[test]
fn a_slow_worker_gets_the_latest_table_with_every_socket_it_has_missed() {
    let mut world = World::new();
    world.publish(1, &[80]);
    assert_eq!(world.receive(0), Some((1, vec![80])));
    world.publish(2, &[80, 81]);
    world.publish(3, &[80, 81, 82]);
    assert!(world.publisher.has_pending());
    assert_eq!(world.receive(1), Some((1, vec![80])));
    world.publisher.flush().expect("flushed");
    assert_eq!(world.receive(1), Some((3, vec![81, 82])));
    assert_eq!(world.receive(0), Some((2, vec![81])));
    world.publisher.flush().expect("flushed");
    assert_eq!(world.receive(0), Some((3, vec![82])));
    assert!(!world.publisher.has_pending());
}

#[test]
fn an_address_is_bound_again_only_when_every_worker_has_closed_it() {
    let mut world = World::new();
    world.publish(1, &[80]);
    assert!(world.receive(0).is_some() && world.receive(1).is_some());
    world.publish(2, &[]);
    assert_eq!((world.receive(0), world.receive(1)), (Some((2, vec![])), Some((2, vec![]))));
    world.publish(3, &[80, 81]);
    world.publish(4, &[80, 82]);
    assert!(world.receive(0).is_none(), "it waits");
    assert_eq!(world.opened(), [80]);
    world.publisher.unlistened(0, SocketId(80)).expect("reported");
    assert!(world.receive(0).is_none(), "it waits for the other");
    world.publisher.unlistened(1, SocketId(80)).expect("reported");
    assert_eq!(world.receive(0), Some((4, vec![80, 82])));
    assert_eq!(world.receive(1), Some((4, vec![80, 82])));
    assert_eq!(world.opened(), [80, 82]);
}

/// A listener that moves may be bound beside its old socket. Two listeners that stay may not be
/// side by side, even while one of them is still closing.
#[test]
fn a_move_between_every_address_and_one_is_no_conflict() {
    let opened = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&opened);
    let open = move |socket: &Socket, workers: usize, rejoins: bool| {
        log.lock().expect("lock").push((socket.address.to_string(), rejoins));
        (0..workers).map(|_| Ok(File::open("/dev/null")?.into())).collect()
    };
    let (commands, received) = bounded(8);
    let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("eventfd");
    let link = Link { commands, wake: Arc::new(wake.into()) };
    let mut publisher = Publisher::new(vec![link], Box::new(open));
    let mut publish = |transport: Transport, ids: &[u16]| {
        let mut table = table(1, ids);
        for socket in &mut table.sockets {
            socket.transport = transport;
            let ip = if socket.id.0 % 2 == 0 { [0, 0, 0, 0] } else { [127, 0, 0, 1] };
            socket.address = SocketAddr::from((ip, 80)).into();
        }
        publisher.publish(table).expect("published");
        drop(received.try_recv());
        std::mem::take(&mut *opened.lock().expect("lock"))
    };
    let [everywhere, one] = ["0.0.0.0:80", "127.0.0.1:80"].map(str::to_owned);
    for (transport, id) in [(Transport::Tcp, 10), (Transport::Udp, 20)] {
        assert_eq!(publish(transport, &[id]), [(everywhere.clone(), false)]);
        assert_eq!(publish(transport, &[id + 1]), [(one.clone(), true)]);
        assert_eq!(publish(transport, &[id + 2]), [(everywhere.clone(), true)]);
        assert_eq!(publish(transport, &[id + 2, id + 3]), [(one.clone(), false)]);
        publish(transport, &[]);
    }
    // A listener comes back while its old socket is closing.
    assert_eq!(publish(Transport::Udp, &[22]), [(everywhere.clone(), true)]);
    assert_eq!(publish(Transport::Udp, &[22, 23]), [(one, false)]);
}

#[test]
fn a_table_that_need_not_wait_replaces_one_that_waits() {
    let mut world = World::new();
    world.publish(1, &[80]);
    assert!(world.receive(0).is_some() && world.receive(1).is_some());
    world.publish(2, &[]);
    assert!(world.receive(0).is_some() && world.receive(1).is_some());
    world.publish(3, &[80]);
    world.publish(4, &[81]);
    assert_eq!(world.receive(0), Some((4, vec![81])));
    for worker in 0..2 {
        world.publisher.unlistened(worker, SocketId(80)).expect("reported");
    }
    assert!(world.receive(0).is_none(), "the table that waited is out of date");
}

#[test]
fn a_waiting_table_that_cannot_be_bound_is_given_up() {
    let mut world = World::new();
    world.publish(1, &[80]);
    assert!(world.receive(0).is_some() && world.receive(1).is_some());
    world.publish(2, &[81]);
    assert!(world.receive(0).is_some() && world.receive(1).is_some());
    world.publish(3, &[80, BUSY]);
    world.publisher.unlistened(0, SocketId(80)).expect("it still waits");
    assert!(world.publisher.unlistened(1, SocketId(80)).is_err());
    assert!(!world.publisher.has_pending());
    world.publish(4, &[81]);
    assert_eq!(world.receive(0), Some((4, vec![])), "81 has stayed open");
}

#[test]
fn a_socket_that_a_worker_never_saw_is_not_waited_for() {
    let mut world = World::new();
    world.publish(1, &[80]);
    assert!(world.receive(1).is_some());
    world.publish(2, &[80, 81]);
    world.publish(3, &[80]);
    // Worker 1 was told of 81 and closes it; worker 0 still has table 1 in its channel.
    world.publish(4, &[80, 81]);
    assert_eq!(world.receive(1), Some((2, vec![80 + 1])));
    assert_eq!(world.receive(0), Some((1, vec![80])));
    world.publisher.flush().expect("flushed");
    assert_eq!((world.receive(0), world.receive(1)), (Some((3, vec![])), Some((3, vec![]))));
    world.publisher.unlistened(1, SocketId(81)).expect("reported");
    assert_eq!(world.receive(0), Some((4, vec![81])));
    assert_eq!(world.receive(1), Some((4, vec![81])));
}

#[test]
fn stop_comes_after_the_table_that_was_on_its_way() {
    let mut world = World::new();
    world.publish(1, &[]);
    world.publish(2, &[]);
    world.publisher.stop();
    assert_eq!(world.receive(0), Some((1, vec![])));
    world.publisher.flush().expect("flushed");
    assert_eq!(world.receive(0), Some((2, vec![])));
    world.publisher.flush().expect("flushed");
    assert!(matches!(world.commands[0].try_recv(), Ok(Command::Stop)));
    assert!(world.publisher.has_pending(), "the other worker has read nothing yet");
}

#[test]
fn requests_come_in_their_order_behind_the_table_on_its_way() {
    let mut world = World::new();
    world.publish(1, &[]);
    let kill = |number| Request {
        number,
        what: What::KillAll { of: Of::Flows, filter: Filter::default() },
    };
    assert!(world.publisher.ask(1, kill(1)) && world.publisher.ask(1, kill(2)));
    assert!(!world.publisher.ask(2, kill(3)), "there is no such worker");
    assert_eq!(world.receive(1), Some((1, vec![])));
    for number in 1..=2 {
        world.publisher.flush().expect("flushed");
        let found = world.commands[1].try_recv();
        assert!(matches!(found, Ok(Command::Ask(request)) if request == kill(number)));
    }
    drop(world.commands.remove(1));
    assert!(!world.publisher.ask(1, kill(4)), "the worker has hung up");
}

#[test]
fn a_worker_that_hung_up_is_not_waited_for() {
    let mut world = World::new();
    world.publish(1, &[80]);
    assert!(world.receive(1).is_some());
    drop(world.commands.remove(0));
    world.publish(2, &[]);
    world.publish(3, &[80]);
    assert_eq!(world.receive(0), Some((2, vec![])));
    world.publisher.unlistened(1, SocketId(80)).expect("reported");
    assert_eq!(world.receive(0), Some((3, vec![80])));
    assert!(!world.publisher.has_pending());
}
