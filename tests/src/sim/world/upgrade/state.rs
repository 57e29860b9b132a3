//! How far a conversation is, what is on its way, and what each process knows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use config_sync::table::moving::{FlowFigures, Moving, MovingFlow};
use config_sync::table::request::Handle;
use config_sync::table::routing::SocketId;
use ringway::contract::Token;

use crate::sim::coverage::{Fault, State};
use crate::sim::rng::Rng;

/// How long the old process waits for a word, microseconds.
pub const PATIENCE: u64 = 400_000;

#[derive(Debug, Default)]
pub struct Upgrade {
    pub old: u32,
    pub new: u32,
    pub to_new: Pipe<ToNew>,
    pub to_old: Pipe<ToOld>,
    pub giving: Giving,
    pub taking: Taking,
    /// Until when the new process does nothing, microseconds.
    pub hangs_until: u64,
    /// What happens after so many words.
    pub fates: Vec<(u32, Fault)>,
    pub words: u32,
    /// What happens at which time.
    pub due: Vec<(u64, Fault)>,
}

/// One way of the connection between two processes.
#[derive(Debug)]
pub struct Pipe<T> {
    /// With the time from which on each can be heard.
    pub words: VecDeque<(u64, T)>,
    /// Somebody still hears.
    pub hears: bool,
    /// Since when nobody speaks any more.
    pub ended: Option<u64>,
}

/// What the old process says.
#[derive(Debug)]
pub enum ToNew {
    /// Each with its socket, as the kernel knows it.
    Flows(Vec<(MovingFlow, Token)>),
    Figures(Vec<(usize, FlowFigures)>),
    Yours,
    /// Each with the number under which the kernel has its connections.
    Sessions(Vec<(Moving, u32)>),
    Refused,
}

/// What the new process says.
#[derive(Debug)]
pub enum ToOld {
    Ready(BTreeSet<SocketId>),
    Adopted(Vec<bool>),
    Mine,
    Refused,
}

impl<T> Default for Pipe<T> {
    fn default() -> Self {
        Self { words: VecDeque::new(), hears: true, ended: None }
    }
}

impl<T> Pipe<T> {
    /// False: nobody hears.
    pub fn say(&mut self, at: u64, word: T) -> bool {
        if self.hears {
            let at = self.words.back().map_or(at, |(before, _)| at.max(*before));
            self.words.push_back((at, word));
        }
        self.hears
    }

    /// Nothing more is said.
    pub fn end(&mut self, at: u64) {
        self.ended = self.ended.or(Some(at));
    }

    pub fn next(&self) -> Option<u64> {
        self.words.front().map(|(at, _)| *at).or(self.ended)
    }

    pub fn hear(&mut self, now: u64) -> Option<Heard<T>> {
        if self.next().is_none_or(|at| at > now) {
            return None;
        }
        match self.words.pop_front() {
            Some((_, word)) => Some(Heard::Word(word)),
            None => self.ended.take().map(|_| Heard::End),
        }
    }
}

#[derive(Debug)]
pub enum Heard<T> {
    Word(T),
    /// The other process has ended, or has hung up.
    End,
}

impl Upgrade {
    pub fn new(old: u32, new: u32, rng: &mut Rng) -> Self {
        let mut fates = Vec::new();
        while fates.len() < 3 && rng.per_mille(450) {
            let fault = rng.pick(&[
                Fault::NewDied,
                Fault::NewDied,
                Fault::OldDied,
                Fault::OldDied,
                Fault::NewRefused,
                Fault::NewHung,
                Fault::NewHung,
            ]);
            fates.push((rng.below(9) as u32, fault));
        }
        Self { old, new, fates, ..Self::default() }
    }

    /// When something happens next, microseconds.
    pub fn next(&self) -> Option<u64> {
        let to_new = self.to_new.next().filter(|_| self.taking.hears());
        let to_new = to_new.map(|at| at.max(self.hangs_until));
        let fates = self.due.iter().map(|(at, _)| *at).min();
        [to_new, self.to_old.next(), self.giving.next(), fates].into_iter().flatten().min()
    }

    /// Whether it is not clear yet which process goes on.
    pub fn is_undecided(&self) -> bool {
        !matches!(self.giving.stage, Stage::Parting | Stage::Over)
            || matches!(self.taking.phase, Phase::Starting | Phase::Claiming)
    }

    pub fn is_over(&self) -> bool {
        self.giving.stage == Stage::Over && self.taking.phase == Phase::Over
    }

    /// Whether sessions of this process may stand still for the sake of this upgrade.
    pub fn keeps_still(&self, process: u32) -> bool {
        (process == self.old && self.giving.is_busy())
            || (process == self.new && self.taking.keeps_still())
    }

    /// Whether this process may still get sessions.
    pub fn gives_to(&self, process: u32) -> bool {
        process == self.new && !self.is_over()
    }

    /// How far the conversation is.
    pub fn state(&self) -> State {
        match self.giving.stage {
            Stage::Starting => State::Starting,
            Stage::Announcing | Stage::Rest => State::Announcing,
            Stage::Deafening | Stage::Settling | Stage::SettlingRest => State::Settling,
            Stage::Deciding => State::Deciding,
            Stage::Parting | Stage::Over => State::Parting,
        }
    }

    pub fn word_is_heard(&mut self, now: u64, rng: &mut Rng) {
        self.words += 1;
        let words = self.words;
        for (_, fault) in self.fates.extract_if(.., |(after, _)| *after < words) {
            self.due.push((now + rng.scale(1, 20_000) - 1, fault));
        }
    }
}

// ---- the old process ----

#[derive(Debug, Default)]
pub struct Giving {
    pub stage: Stage,
    /// Until when it waits for a word of the new process, microseconds.
    pub waits: Option<u64>,
    /// The request that the worker has not answered.
    pub asked: Option<u64>,
    /// When sessions are next offered, microseconds.
    pub round: Option<u64>,
    /// The sockets that the new process has too.
    pub taken: BTreeSet<SocketId>,
    /// The slot from which the worker goes on. `None`: it has no more to say.
    pub from: Option<u32>,
    pub passes: u32,
    pub found: u32,
    pub deaf_since: Option<u64>,
    pub is_late: bool,
    /// What the new process is being offered.
    pub offered: Vec<Handle>,
    /// The flows that it has adopted, with their numbers.
    pub numbers: BTreeMap<Handle, usize>,
    /// The socket of each, as the kernel knows it.
    pub sockets: BTreeMap<Handle, Token>,
    pub count: usize,
    pub settled: Vec<Handle>,
    pub figures: Vec<(usize, FlowFigures)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// The new process is not ready yet.
    #[default]
    Starting,
    Announcing,
    Deafening,
    Settling,
    /// Flows that have begun in the meantime.
    Rest,
    SettlingRest,
    /// The new process has the last word.
    Deciding,
    /// Sessions go.
    Parting,
    Over,
}

impl Giving {
    pub fn over() -> Self {
        Self { stage: Stage::Over, ..Self::default() }
    }

    pub fn next(&self) -> Option<u64> {
        [self.waits, self.round].into_iter().flatten().min()
    }

    pub fn is_busy(&self) -> bool {
        match self.stage {
            Stage::Over => false,
            Stage::Parting => self.asked.is_some() || !self.offered.is_empty(),
            _ => true,
        }
    }
}

// ---- the new process ----

#[derive(Debug, Default)]
pub struct Taking {
    pub phase: Phase,
    /// The request that the worker has not answered, and which of the batch it is about.
    pub asked: Option<(u64, Vec<bool>)>,
    /// The flows that were adopted, in order.
    pub arrived: Vec<Handle>,
    /// What those have carried that have settled.
    pub figures: Vec<(usize, FlowFigures)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Starting,
    Claiming,
    /// This process goes on alone.
    Ours,
    /// Nothing more is heard.
    Over,
}

impl Taking {
    pub fn over() -> Self {
        Self { phase: Phase::Over, ..Self::default() }
    }

    /// Whether its worker is asked.
    pub fn is_busy(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether it hears what the old process says.
    pub fn hears(&self) -> bool {
        !self.is_busy() && self.phase != Phase::Starting
    }

    pub fn keeps_still(&self) -> bool {
        self.is_busy() || self.phase == Phase::Claiming
    }

    pub fn asked(&self, number: u64) -> bool {
        self.asked.as_ref().is_some_and(|(asked, _)| *asked == number)
    }
}
