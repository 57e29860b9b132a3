//! The old process's side of the conversation, on a thread of its own.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::control::admin::board::Board;
use crate::control::upgrade::door::{Link, out_of_order};
use crate::control::upgrade::state::Step;
use crate::control::upgrade::under_way::{Batch, Departure};
use crate::wire::hand_over::{MOST_OVERRIDES, MOST_SOCKETS, MOST_TICKETS, Message};

/// How often the new process is told what still lives here.
const REPORT: Duration = Duration::from_millis(250);

/// What the conversation asks the control thread.
pub struct Asks {
    /// Which attempt this is. The control thread may have given it up.
    pub attempt: u64,
    pub steps: mpsc::Sender<Step>,
    pub board: Arc<Board>,
}

/// Speaks with the new process until one of the two ends.
pub fn give(mut link: Link, asks: &Asks) {
    match converse(&mut link, asks) {
        Ok(()) => part(&mut link, asks),
        Err(why) => {
            link.refuse(&why);
            let _ = asks.steps.blocking_send(Step::Broken { attempt: asks.attempt, why });
            link.see_off();
        }
    }
}

fn converse(link: &mut Link, asks: &Asks) -> Result<(), String> {
    let workers = match link.receive()?.0 {
        Message::Hello { workers, .. } if workers > 0 => workers as usize,
        other => return Err(out_of_order(&other)),
    };
    let attempt = asks.attempt;
    let offer = asks.ask(|answer| Step::Wanted { attempt, workers, answer })?;
    link.send(&offer.message, &[])?;
    for some in offer.sockets.chunks(MOST_SOCKETS) {
        let names = some.iter().map(|(name, _)| name.clone()).collect();
        let beside: Vec<_> = some.iter().map(|(_, socket)| socket.as_fd()).collect();
        link.send(&Message::Sockets(names), &beside)?;
    }
    for some in offer.overrides.chunks(MOST_OVERRIDES) {
        link.send(&Message::Overrides(some.to_vec()), &[])?;
    }
    for some in offer.tickets.chunks(MOST_TICKETS) {
        link.send(&Message::Tickets(some.to_vec()), &[])?;
    }
    let mut taken = BTreeSet::new();
    loop {
        match link.receive()?.0 {
            Message::Taken(numbers) => taken.extend(numbers),
            Message::Ready => break,
            other => return Err(out_of_order(&other)),
        }
    }
    let count = u32::try_from(offer.sockets.len()).unwrap_or(u32::MAX);
    if taken.last().is_some_and(|last| *last >= count) {
        return Err("the other process takes a socket that it was not given".to_owned());
    }
    drop(offer);
    asks.ask(|answer| Step::Ready { attempt, taken, answer })?;
    give_flows(link, asks)?;
    link.send(&Message::Yours, &[])?;
    match link.last_answer()? {
        Message::Mine => asks.ask(|answer| Step::Mine { attempt, answer }),
        other => Err(out_of_order(&other)),
    }
}

/// Announces all flows that can go, and says what they have carried in the end.
fn give_flows(link: &mut Link, asks: &Asks) -> Result<(), String> {
    let attempt = asks.attempt;
    while let Some(departure) = asks.ask(|answer| Step::PartFlows { attempt, answer })? {
        match departure {
            Departure::Flows(batch) => {
                let adopted = link.offer_flows(batch)?;
                let parted = asks.steps.blocking_send(Step::FlowsParted { attempt, adopted });
                parted.map_err(|_| "the gateway has ended".to_owned())?;
            }
            Departure::Figures(all) => {
                link.hurry()?;
                link.send_figures(&all)?;
            }
        }
    }
    Ok(())
}

impl Asks {
    fn ask<T>(
        &self,
        step: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Step,
    ) -> Result<T, String> {
        let (answer, answered) = oneshot::channel();
        let gone = || "the gateway has given this upgrade up".to_owned();
        self.steps.blocking_send(step(answer)).map_err(|_| gone())?;
        answered.blocking_recv().unwrap_or_else(|_| Err(gone()))
    }
}

/// Gives sessions away and tells the new process what still lives here, until one of the two ends.
fn part(link: &mut Link, asks: &Asks) {
    while give_sessions(link, asks).is_ok() && report(link, &asks.board).is_ok() {
        thread::sleep(REPORT);
    }
}

/// Gives away all sessions that can go now, a few at a time.
fn give_sessions(link: &mut Link, asks: &Asks) -> Result<(), String> {
    while let Some(Batch { sessions, sockets }) = asks.ask(|answer| Step::Part { answer })? {
        let adopted = link.offer(&sessions, &sockets);
        // The worker closes its own copies only after these are closed, so that the last one to
        // close is the new process.
        drop(sockets);
        let unheard = if adopted.is_none() { link.voice().ok() } else { None };
        let parted = Step::Parted { adopted: adopted.unwrap_or_default(), unheard };
        let parted = asks.steps.blocking_send(parted);
        parted.map_err(|_| "the gateway has ended".to_owned())?;
        if link.is_over() {
            return Err("the new process does not answer".to_owned());
        }
    }
    Ok(())
}

fn report(link: &Link, board: &Board) -> Result<(), String> {
    let before = *board.upgrade.lock();
    let sum = |count: fn(&crate::stats::counters::Counters) -> u64| {
        board.workers().iter().map(|worker| count(worker)).sum::<u64>()
    };
    let draining = Message::Draining {
        processes: before.processes + 1,
        sessions: before.sessions + sum(|worker| worker.sessions.get()),
        flows: before.flows + sum(|worker| worker.flows.get()),
    };
    link.send(&draining, &[])
}
