//! The new process's side of the conversation.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use config_sync::compile::tls::tickets::SavedTickets;
use config_sync::sync::overrides::Override;
use config_sync::table::address::UnixPath;
use config_sync::table::routing::{Socket, Transport};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::control::admin::server::SPARE;
use crate::control::spare_files::SpareFiles;
use crate::control::upgrade::door::{Link, out_of_order};
use crate::control::upgrade::named::{heard, taken};
use crate::control::upgrade::state::{ListeningAt, Step};
use crate::control::upgrade::under_way::{Batch, FlowBatch};
use crate::control::upgrade::voice::Voice;
use crate::wire::hand_over::{Figures, MOST_NUMBERS, Message, Name, Session, What};

/// What the old process has given.
pub struct Given {
    pub link: Link,
    /// How many processes have handed their sockets on, with the old one.
    pub generation: u64,
    /// The seed that steers sources to workers in the sockets' groups, and the number of those.
    pub seed: u64,
    pub workers: usize,
    pub sockets: Arc<Mutex<Sockets>>,
    /// What operators have said to the old process.
    pub overrides: Vec<Override>,
    /// The keys of its session tickets.
    pub tickets: Vec<SavedTickets>,
    /// The files that its admin API will need.
    pub spare: SpareFiles,
}

/// The old process's sockets, or systemd's, until somebody in this process takes them.
#[derive(Default)]
pub struct Sockets {
    /// In the order of the workers, with the number of each.
    unused: BTreeMap<(What, String, u32), Vec<(u32, OwnedFd)>>,
    taken: Vec<u32>,
    /// systemd has opened them, and not a process of Ringway's.
    pub passed: bool,
    /// The number of listening addresses among them.
    pub listeners: u64,
}

/// Asks the process that serves now for its sockets.
///
/// # Errors
/// There is no such process, or it refuses. The text is for the operator.
pub fn ask(path: UnixPath, workers: usize) -> Result<Given, String> {
    let mut link = Link::connect(path)?;
    match hear_offer(&mut link, workers) {
        Ok(given) => Ok(given(link)),
        Err(why) => {
            link.give_up(&why);
            Err(why)
        }
    }
}

fn hear_offer(
    link: &mut Link,
    workers: usize,
) -> Result<impl FnOnce(Link) -> Given + use<>, String> {
    let workers = u32::try_from(workers).unwrap_or(u32::MAX);
    let program = env!("CARGO_PKG_VERSION").to_owned();
    link.send(&Message::Hello { program, workers }, &[])?;
    let offer = link.receive()?.0;
    let Message::Offer { generation, seed, workers: before, sockets: count, .. } = offer else {
        return Err(out_of_order(&offer));
    };
    let Message::Offer { overrides: most, tickets: most_tickets, .. } = offer else {
        return Err(out_of_order(&offer));
    };
    let mut sockets = Sockets::default();
    let mut number = 0;
    while number < count {
        let (names, beside) = match link.receive()? {
            (Message::Sockets(names), beside) => (names, beside),
            (other, _) => return Err(out_of_order(&other)),
        };
        if names.len() != beside.len() || names.is_empty() {
            return Err(format!("{} names came with {} sockets", names.len(), beside.len()));
        }
        for (name, socket) in names.into_iter().zip(beside) {
            sockets.add(number, name, socket);
            number += 1;
        }
    }
    let (mut overrides, mut tickets) = (Vec::new(), Vec::new());
    let most = (most as usize, most_tickets as usize);
    // Without these files this process would serve, and nobody could look into it, nor upgrade it.
    let mut spare = SpareFiles::filled(SPARE, OPENING).map_err(|error| {
        format!("no files are left for the admin API of this process (RLIMIT_NOFILE): {error}")
    });
    if let Err(why) = hear_rest(link, most, &mut overrides, &mut tickets) {
        if !link.is_orphaned() {
            return Err(why);
        }
        tracing::error!("the process before has died before it had said all: {why}");
        // Nobody else serves, so this process does, however few files it has.
        spare = spare.or_else(|_| Ok::<_, String>(SpareFiles::new(SPARE)));
    }
    let (workers, sockets, spare) = (before as usize, Arc::new(Mutex::new(sockets)), spare?);
    Ok(move |link| Given { link, generation, seed, workers, sockets, overrides, tickets, spare })
}

/// More files than it takes to open the admin API: copies of its sockets, and its event loop.
pub const OPENING: usize = 8;

/// Hears what comes behind the sockets. All sockets are here by then, so this process can go on
/// without the rest.
fn hear_rest(
    link: &mut Link,
    (most, most_tickets): (usize, usize),
    overrides: &mut Vec<Override>,
    tickets: &mut Vec<SavedTickets>,
) -> Result<(), String> {
    while overrides.len() < most {
        match link.receive()?.0 {
            Message::Overrides(some) if !some.is_empty() => {
                overrides.extend(some.into_iter().map(heard));
            }
            other => return Err(out_of_order(&other)),
        }
    }
    let mut count = 0;
    while count < most_tickets {
        match link.receive()?.0 {
            Message::Tickets(some) if !some.is_empty() => {
                count += some.len();
                tickets.extend(some.iter().filter_map(taken));
            }
            other => return Err(out_of_order(&other)),
        }
    }
    Ok(())
}

impl Sockets {
    pub fn add(&mut self, number: u32, name: Name, socket: OwnedFd) {
        let Name { what, address, interface, .. } = name;
        self.unused.entry((what, address, interface)).or_default().push((number, socket));
    }

    /// Takes the sockets of this address, in the order of the workers. None: the old process has
    /// not listened there.
    pub fn take(&mut self, what: What, address: &str, interface: u32) -> Vec<OwnedFd> {
        let found = self.unused.remove(&(what, address.to_owned(), interface));
        let found = found.unwrap_or_default().into_iter();
        let sockets = found.map(|(number, socket)| {
            self.taken.push(number);
            socket
        });
        sockets.collect()
    }

    /// Takes the listening sockets of a table's socket.
    pub fn take_listening(&mut self, socket: &Socket) -> Vec<OwnedFd> {
        let what = match socket.transport {
            Transport::Tcp => What::Tcp,
            Transport::Udp => What::Udp,
        };
        let interface = socket.bind.interface_index();
        let found = self.take(what, &socket.address.to_string(), interface);
        self.listeners += u64::from(!found.is_empty());
        found
    }

    /// Closes what systemd has passed and nobody has taken, and returns the addresses.
    pub fn left(&mut self) -> Vec<String> {
        std::mem::take(&mut self.unused).into_keys().map(|(_, address, _)| address).collect()
    }

    /// Closes what nobody has taken. Returns the numbers of the rest, and the listening addresses
    /// of what is closed.
    pub fn close_unused(&mut self) -> (Vec<u32>, Vec<ListeningAt>) {
        let unused = std::mem::take(&mut self.unused).into_keys();
        let listening = unused.filter_map(|(what, address, interface)| {
            let transport = match what {
                What::Tcp => Transport::Tcp,
                What::Udp => Transport::Udp,
                What::Admin | What::Door => return None,
            };
            Some((transport, address, interface))
        });
        (self.taken.clone(), listening.collect())
    }
}

/// Tells the old process that this one serves, on a thread of its own. Afterwards this thread hears
/// what still lives in the old one.
///
/// # Errors
/// There is no thread.
pub fn finish(link: Link, taken: Vec<u32>, steps: mpsc::Sender<Step>) -> io::Result<()> {
    let work = move || {
        let mut link = link;
        let mut figures = Vec::new();
        let (opening, opened) = oneshot::channel();
        let step = match claim(&mut link, &taken, &steps, &mut figures) {
            Ok(()) => Step::Yours { figures, opening },
            Err(why) if link.is_orphaned() => Step::Orphaned { figures, why },
            Err(why) => Step::NotOurs { why },
        };
        let is_ours = matches!(step, Step::Yours { .. });
        if steps.blocking_send(step).is_err() || !is_ours {
            return;
        }
        // The admin API takes its files before sessions come with theirs. Then `opening` is gone.
        let _ = opened.blocking_recv();
        // Without a file for it, nothing is adopted.
        let voice = link.voice().map(Arc::new).ok();
        loop {
            let heard = match link.receive() {
                Ok((Message::Draining { processes, sessions, flows }, _)) => {
                    steps.blocking_send(Step::Draining { processes, sessions, flows }).is_ok()
                }
                Ok((Message::Sessions(sessions), beside)) => {
                    adopt((&mut link, voice.as_ref()), sessions, beside, &steps).is_some()
                }
                _ => break,
            };
            if !heard {
                return;
            }
        }
        let over = Step::Draining { processes: 0, sessions: 0, flows: 0 };
        let _ = steps.blocking_send(over);
    };
    thread::Builder::new().name("upgrade".into()).spawn(work).map(drop)
}

/// Says that this process serves, and adopts flows. `figures`: what those have carried that have
/// settled.
fn claim(
    link: &mut Link,
    taken: &[u32],
    steps: &mpsc::Sender<Step>,
    figures: &mut Vec<Figures>,
) -> Result<(), String> {
    for some in taken.chunks(MOST_NUMBERS) {
        link.send(&Message::Taken(some.to_vec()), &[])?;
    }
    link.send(&Message::Ready, &[])?;
    let mut count = 0;
    loop {
        match link.receive()? {
            (Message::Flows(flows), sockets) => {
                let adopted = adopt_flows(FlowBatch { flows, sockets }, steps)?;
                count += adopted.iter().filter(|adopted| **adopted).count();
                link.send(&Message::Adopted(adopted), &[])?;
            }
            (Message::Figures(some), _) if figures.len() + some.len() <= count => {
                figures.extend(some);
            }
            (Message::Yours, _) => {
                return link.send(&Message::Mine, &[]);
            }
            (other, _) => return Err(out_of_order(&other)),
        }
    }
}

/// Which flows of the old process this one can have.
fn adopt_flows(batch: FlowBatch, steps: &mpsc::Sender<Step>) -> Result<Vec<bool>, String> {
    if batch.flows.len() != batch.sockets.len() {
        let (flows, sockets) = (batch.flows.len(), batch.sockets.len());
        return Err(format!("{flows} flows came with {sockets} sockets"));
    }
    let (answer, answered) = oneshot::channel();
    let gone = || "this process is ending".to_owned();
    steps.blocking_send(Step::FlowsArrived { batch, answer }).map_err(|_| gone())?;
    answered.blocking_recv().map_err(|_| gone())
}

/// Adopts sessions of the old process. `None`: the gateway has ended.
fn adopt(
    (link, voice): (&mut Link, Option<&Arc<Voice>>),
    sessions: Vec<Session>,
    beside: Vec<OwnedFd>,
    steps: &mpsc::Sender<Step>,
) -> Option<()> {
    let count = sessions.len();
    let mut beside = beside.into_iter();
    let pairs = std::iter::from_fn(|| Some([beside.next()?, beside.next()?]));
    let sockets: Vec<_> = pairs.collect();
    let Some(voice) = voice.filter(|_| sockets.len() == count) else {
        return link.send(&Message::Adopted(vec![false; count]), &[]).ok();
    };
    let (answer, answered) = oneshot::channel();
    let (batch, voice) = (Batch { sessions, sockets }, Arc::clone(voice));
    steps.blocking_send(Step::Arrived { batch, voice, answer }).ok()?;
    if answered.blocking_recv().ok()? {
        return Some(());
    }
    // If the old process does not hear it, the sessions are still its own, unless it has been
    // stopped: then nobody else has them, and a close would look to the peers like a clean end. An
    // old process that has waited in vain, and has gone on with them, has said so before it ended.
    let are_ours = link.is_orphaned();
    steps.blocking_send(Step::NotTold { are_ours }).ok()
}
