//! Brings sessions to a moment at which another process can go on with them: some in each step.
//!
//! A session that does not come to such a moment in time goes on here, and may be asked again. The
//! others do not wait for it.

use config_sync::table::moving::Moving;
use config_sync::table::request::{Handle, Of};

use crate::contract::{Kind, Op, Token};
use crate::proxy::core::Core;
use crate::proxy::slab::Slab;
use crate::proxy::tcp::moving::Stillness;
use crate::proxy::tcp::state::Session;
use crate::stats::records::{Offered, Record, Reply};

/// Microseconds between two steps.
const STEP: u64 = 250;

/// The most slots that one step looks at, the most sessions that pause at a time in both
/// directions, and the most that pause at all: a session pauses in one direction until its
/// destination takes the bytes that are held.
const MOST_LOOKS: u32 = 1_024;
const MOST_PAUSING: usize = 64;
const MOST_EMPTYING: usize = 1_024;

/// Microseconds that an answer waits for sessions that are not still yet. They may be offered in
/// the next answer.
const WAIT: u64 = 2_000;

/// Microseconds that a session pauses at the most before it is still.
const LONGEST_PAUSE: u64 = 15_000;

/// Microseconds that one direction of a session pauses at the most while bytes are held that its
/// destination does not take.
pub const LONGEST_EMPTYING: u64 = 500_000;

/// The request under way, and the sessions that pause.
#[derive(Debug, Default)]
pub struct Parting {
    asked: Option<Asked>,
    /// Until when each session pauses.
    pausing: Vec<(Token, u64)>,
    /// When the next step is due, in microseconds. `None`: nothing is to be done.
    pub next: Option<u64>,
}

#[derive(Debug)]
struct Asked {
    /// The next slot to look at.
    slot: u32,
    most: usize,
    /// Sessions that pause for this request.
    paused: usize,
    /// When the answer goes at the latest.
    due: u64,
    reply: Reply,
}

impl Parting {
    /// Takes a request. The answer to an earlier one, if there is one, goes as it is.
    pub fn ask(&mut self, core: &mut Core, number: u64, from: u32, most: u32) {
        if let Some(before) = self.asked.take() {
            core.records.push(Record::Reply(before.reply));
        }
        let reply = Reply { number, ..Reply::default() };
        let due = core.now + WAIT;
        self.asked = Some(Asked { slot: from, most: most as usize, paused: 0, due, reply });
        self.next = Some(core.now);
    }

    /// Makes one step, if one is due.
    pub fn step(&mut self, core: &mut Core, sessions: &mut Slab<Session>) {
        self.pause_some(core, sessions);
        self.offer_some(core, sessions);
        if let Some(asked) = &mut self.asked {
            let end = sessions.high_water();
            let is_full = asked.reply.offered.len() >= asked.most;
            let is_over = asked.slot >= end && self.pausing.is_empty();
            if is_full || is_over || core.now >= asked.due {
                asked.reply.next = (asked.slot < end).then_some(asked.slot);
                asked.reply.pausing = u32::try_from(self.pausing.len()).unwrap_or(u32::MAX);
                let reply = std::mem::take(&mut asked.reply);
                core.records.push(Record::Reply(reply));
                self.asked = None;
            }
        }
        let is_busy = self.asked.is_some() || !self.pausing.is_empty();
        self.next = is_busy.then_some(core.now + STEP);
    }

    fn pause_some(&mut self, core: &mut Core, sessions: &mut Slab<Session>) {
        let Some(asked) = &mut self.asked else { return };
        let last = asked.slot.saturating_add(MOST_LOOKS).min(sessions.high_water());
        let is_empty = |(token, _): &&(Token, u64)| {
            let session = sessions.get_mut(token.slot, token.generation);
            session.is_some_and(|session| !session.is_emptying())
        };
        let mut whole = self.pausing.iter().filter(is_empty).count();
        while asked.slot < last
            && asked.paused < asked.most
            && whole < MOST_PAUSING
            && self.pausing.len() < MOST_EMPTYING
        {
            if let Some(session) = sessions.at_mut(asked.slot)
                && session.may_leave()
            {
                session.pause(core);
                whole += usize::from(!session.is_emptying());
                asked.paused += 1;
                self.pausing.push((session.token, until(core, session)));
            }
            asked.slot += 1;
        }
    }

    fn offer_some(&mut self, core: &mut Core, sessions: &mut Slab<Session>) {
        let asked = &mut self.asked;
        self.pausing.retain_mut(|(token, last)| {
            let session = sessions.get_mut(token.slot, token.generation);
            let Some((session, stillness)) =
                session.and_then(|of| of.stillness().map(|stillness| (of, stillness)))
            else {
                return false;
            };
            if stillness == Stillness::Emptied && core.now < *last {
                session.pause(core);
                if !session.is_emptying() {
                    *last = core.now + LONGEST_PAUSE;
                }
                return true;
            }
            if stillness == Stillness::Still
                && let Some(asked) = asked
                && asked.reply.offered.len() < asked.most
                && let Some(moving) = session.offer()
            {
                let handle = session.handle();
                asked.reply.offered.push(Offered { handle, moving });
                return false;
            }
            if core.now >= *last {
                session.go_on(core);
                return false;
            }
            true
        });
    }
}

/// Until when a session that has just been told to pause may do so.
fn until(core: &Core, session: &Session) -> u64 {
    core.now + if session.is_emptying() { LONGEST_EMPTYING } else { LONGEST_PAUSE }
}

/// Adopts sessions of another process, the first ones, as long as there are slots. Each comes with
/// the number under which the ring has its connections. Returns the handles.
pub fn adopt(
    core: &mut Core,
    sessions: &mut Slab<Session>,
    arrivals: Vec<(Moving, u32)>,
) -> Vec<Handle> {
    let mut handles = Vec::new();
    for (mut moving, incoming) in arrivals {
        // Another process's clock may be ahead.
        moving.opened = moving.opened.min(core.now);
        moving.last_byte = moving.last_byte.clamp(moving.opened, core.now);
        let Some((slot, generation)) = sessions.insert(Session::arrived(moving)) else { break };
        let token = Token { kind: Kind::Session, slot, generation };
        if let Some(session) = sessions.at_mut(slot) {
            session.token = token;
        }
        core.push(token, Op::Attach { incoming });
        handles.push(Handle { of: Of::Sessions, slot, generation });
    }
    handles
}

/// Decides about still sessions: they are this process's, or another's.
pub fn decide(core: &mut Core, sessions: &mut Slab<Session>, handles: &[Handle], is_ours: bool) {
    for handle in handles.iter().filter(|handle| handle.of == Of::Sessions) {
        let session = sessions.get_mut(handle.slot, handle.generation);
        let Some(session) = session.filter(|session| session.is_shared()) else { continue };
        match is_ours {
            true => session.go_on(core),
            false => session.forget(core),
        }
    }
}
