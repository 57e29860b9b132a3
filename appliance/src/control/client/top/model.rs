//! What `ringway top` knows: answers and keys go in, and `frame` draws it. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ratatui::widgets::TableState;
use serde_json::{Value, json};

use crate::control::client::http::Question;
use crate::control::client::top::By;
use crate::control::client::top::panes::{BYTES_RATE, Filter, Pane, RATES, Sort, cells, order};
use crate::control::client::top::rates::each_growth;

/// The sessions that are asked for. The gateway sorts before it cuts.
const SESSIONS: usize = 1_000;

/// As many looks are kept for the sparklines.
const HISTORY: usize = 512;

/// For this long a message stays.
const NOTICE: Duration = Duration::from_secs(10);

/// A gateway that has not answered for this long, and for two looks, is said to be lost.
const SILENCE: Duration = Duration::from_secs(3);

pub struct Model {
    pub pane: Pane,
    pub views: [View; Pane::ALL.len()],
    pub mode: Mode,
    /// Of sessions and flows, flows are shown.
    pub udp: bool,
    pub status: Value,
    /// New sessions, live sessions and flows, bytes up and bytes down; the newest first.
    pub history: [VecDeque<u64>; 4],
    pub closes: Vec<Value>,
    pub limits: Vec<Value>,
    pub followed: Option<Followed>,
    notice: Option<(String, Duration)>,
    lost: Option<String>,
    /// The time of the latest answer.
    heard: Duration,
    now: Duration,
    interval: Duration,
}

/// A list of a pane, and how it is shown.
pub struct View {
    /// In order, and only those that the filter matches.
    pub rows: Vec<Value>,
    /// As they came, with rates.
    all: Vec<Value>,
    /// What the rates are computed from.
    before: Option<(Vec<Value>, Duration)>,
    /// Of sessions: how many match in the gateway.
    pub matched: Option<u64>,
    pub sort: usize,
    pub reverse: bool,
    pub filter: Filter,
    /// The key of the selected row, so that the selection follows its row.
    selected: Option<String>,
    pub table: TableState,
    /// Counts the changes of the question. The answer to an earlier question is of no use.
    version: u64,
}

/// One session.
pub struct Followed {
    pub id: String,
    pub value: Value,
    /// Bytes per second, up and down; the newest first.
    pub rates: [VecDeque<u64>; 2],
    at: Duration,
    pub has_ended: bool,
    /// The first line that is shown.
    pub from: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    Browsing,
    Filtering(String),
    /// The id that a kill would close.
    Confirming(String),
    Helping,
}

/// A part of the API that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Status,
    Closes,
    Limits,
    Rows(Pane, u64),
    Followed(String),
    Killed(String),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The gateway has said so.
    Told(String),
    /// The gateway can't be reached.
    Lost(String),
}

impl Model {
    pub fn new(by: By, interval: Duration) -> Self {
        let views = Pane::ALL.map(|pane| {
            // Backends come worst first, and sessions are asked by bytes.
            let sort = match (pane, by) {
                (Pane::Listeners, By::Sessions) => 1,
                (Pane::Listeners, By::New) => 2,
                (Pane::Listeners, By::Refused) | (Pane::Clients, By::Refused) => {
                    pane.sorts().iter().position(|sort| sort.title == "refused").unwrap_or(0)
                }
                (Pane::Clients, By::Sessions | By::New) => 1,
                _ => 0,
            };
            View::new(sort)
        });
        Self {
            pane: Pane::Overview,
            views,
            mode: Mode::Browsing,
            udp: false,
            status: Value::Null,
            history: Default::default(),
            closes: Vec::new(),
            limits: Vec::new(),
            followed: None,
            notice: None,
            lost: None,
            heard: Duration::ZERO,
            now: Duration::ZERO,
            interval,
        }
    }

    pub fn view(&mut self) -> &mut View {
        &mut self.views[self.pane as usize]
    }

    /// What is to be asked at this look.
    pub fn questions(&self) -> Vec<(What, Question)> {
        let mut all = vec![(What::Status, Question::get("status"))];
        if let Some(followed) = self.followed.as_ref().filter(|of| !of.has_ended) {
            let question = Question::get(format!("session/{}", followed.id));
            all.push((What::Followed(followed.id.clone()), question));
            return all;
        }
        let rows = |pane: Pane| What::Rows(pane, self.views[pane as usize].version);
        match self.pane {
            Pane::Overview => {
                all.push((What::Closes, Question::get("closes")));
                all.push((What::Limits, Question::get("limits")));
                all.push((rows(Pane::Backends), Question::get("backends")));
            }
            Pane::Listeners => all.push((rows(self.pane), Question::get("listeners"))),
            Pane::Backends => all.push((rows(self.pane), Question::get("backends"))),
            Pane::Sessions => all.push((rows(self.pane), self.sessions())),
            Pane::Clients => all.push((rows(self.pane), Question::get("top"))),
            Pane::Events => all.push((rows(self.pane), Question::get("events"))),
        }
        all
    }

    fn sessions(&self) -> Question {
        let view = &self.views[Pane::Sessions as usize];
        let mut query = view.filter.query.clone();
        query.push(("sort", view.by(Pane::Sessions).field.to_owned()));
        query.push(("limit", SESSIONS.to_string()));
        if view.reverse {
            query.push(("reverse", "true".to_owned()));
        }
        Question { query, ..Question::get(self.listed()) }
    }

    fn listed(&self) -> &'static str {
        if self.udp { "flows" } else { "sessions" }
    }

    /// Takes an answer that arrived at `now`.
    pub fn answered(&mut self, what: What, answer: Result<Value, Failure>, now: Duration) {
        self.now = now;
        let answer = match answer {
            Err(Failure::Lost(why)) => {
                let first = why.lines().next().unwrap_or_default();
                self.lost = Some(first.to_owned());
                return;
            }
            Err(Failure::Told(why)) => Err(why),
            Ok(value) => Ok(value),
        };
        if self.lost.take().is_some() {
            self.notice("the gateway answers again");
        }
        self.heard = now;
        match (what, answer) {
            (What::Followed(id), answer) => self.follow_on(&id, answer, now),
            (What::Killed(id), Ok(_)) => self.notice(&format!("{id} is closed")),
            (_, Err(why)) => self.notice(&why),
            (What::Status, Ok(value)) => self.learn(value),
            (What::Closes, Ok(value)) => self.closes = list(&value, "closes"),
            (What::Limits, Ok(value)) => self.limits = list(&value, "limits"),
            (What::Rows(pane, version), Ok(value)) => {
                let listed = self.listed();
                let rows = match pane {
                    Pane::Clients => clients(&value["clients"]),
                    Pane::Sessions => list(&value, listed),
                    Pane::Overview | Pane::Listeners | Pane::Backends | Pane::Events => {
                        list(&value, &pane.title().to_lowercase())
                    }
                };
                let view = &mut self.views[pane as usize];
                if view.version == version {
                    view.matched = value.get("matched").and_then(Value::as_u64);
                    view.learn(pane, rows, now);
                }
            }
        }
    }

    fn learn(&mut self, status: Value) {
        let number = |of: &Value, key: &str| of.get(key).and_then(Value::as_u64).unwrap_or(0);
        if number(&status, "uptime_ms") < number(&self.status, "uptime_ms") {
            self.notice("another process answers: the gateway was started anew or upgraded");
        }
        let now = [
            number(&status, "opened_per_second"),
            number(&status, "sessions") + number(&status, "flows"),
            number(&status, "bytes_up_per_second"),
            number(&status, "bytes_down_per_second"),
        ];
        for (history, now) in self.history.iter_mut().zip(now) {
            push(history, now);
        }
        self.status = status;
    }

    fn follow_on(&mut self, id: &str, answer: Result<Value, String>, now: Duration) {
        let Some(followed) = self.followed.as_mut().filter(|of| of.id == id) else { return };
        let value = match answer {
            Ok(value) => value,
            Err(why) if why.contains("has ended") => {
                followed.has_ended = true;
                return;
            }
            Err(why) => return self.notice(&why),
        };
        let time = now.saturating_sub(followed.at).as_secs_f64();
        for (rates, field) in followed.rates.iter_mut().zip(["bytes_up", "bytes_down"]) {
            let total = |of: &Value| of.get(field).and_then(Value::as_u64);
            if let (Some(then), Some(now)) = (total(&followed.value), total(&value))
                && time > 0.0
            {
                push(rates, rate(now.saturating_sub(then), time));
            }
        }
        (followed.value, followed.at) = (value, now);
    }

    /// Time passes.
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
        if self.notice.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.notice = None;
        }
    }

    pub fn notice(&mut self, text: &str) {
        let clean = text.replace(|c: char| c.is_control(), " ");
        self.notice = Some((clean, self.now + NOTICE));
    }

    pub fn said(&self) -> Option<&str> {
        self.notice.as_ref().map(|(text, _)| text.as_str())
    }

    /// For how long the gateway has not answered, and why, if it should have.
    pub fn silence(&self) -> Option<(Duration, &str)> {
        let silent = self.now.saturating_sub(self.heard);
        match &self.lost {
            Some(why) => Some((silent, why)),
            None if silent > SILENCE.max(2 * self.interval) + self.interval => {
                Some((silent, "it does not answer"))
            }
            None => None,
        }
    }

    /// Follows the session with this id.
    pub fn follow(&mut self, id: String) {
        self.followed = Some(Followed {
            id,
            value: Value::Null,
            rates: Default::default(),
            at: self.now,
            has_ended: false,
            from: 0,
        });
    }
}

impl View {
    fn new(sort: usize) -> Self {
        Self {
            rows: Vec::new(),
            all: Vec::new(),
            before: None,
            matched: None,
            sort,
            reverse: false,
            filter: Filter::default(),
            selected: None,
            table: TableState::default(),
            version: 0,
        }
    }

    pub fn by(&self, pane: Pane) -> &'static Sort {
        &pane.sorts()[self.sort]
    }

    fn learn(&mut self, pane: Pane, rows: Vec<Value>, now: Duration) {
        let mut with_rates = rows.clone();
        if let Some((before, at)) = &self.before {
            let time = now.saturating_sub(*at).as_secs_f64();
            each_growth(before, &mut with_rates, &[pane.key()], |row, field, grown| {
                let name = RATES.iter().find(|(total, _)| *total == field).map(|(_, name)| *name);
                if let (Some(name), Some(grown), true) = (name, grown, time > 0.0) {
                    row[name] = json!(rate(grown, time));
                }
            });
            for row in &mut with_rates {
                let number = |key: &str| row.get(key).and_then(Value::as_u64);
                if let (Some(up), Some(down)) = (number("up_rate"), number("down_rate")) {
                    row[BYTES_RATE] = json!(up + down);
                }
            }
        }
        self.before = Some((rows, now));
        self.all = with_rates;
        self.arrange(pane);
    }

    /// Filters and sorts anew.
    pub fn arrange(&mut self, pane: Pane) {
        let matching = |row: &&Value| self.filter.matches(&cells(row, pane.columns()));
        self.rows = self.all.iter().filter(matching).cloned().collect();
        if pane != Pane::Sessions {
            let sort = self.by(pane);
            order(&mut self.rows, sort, self.reverse);
        }
        self.select(pane, self.position(pane));
    }

    /// Another question is asked from now on, and what it gives has nothing to do with what is
    /// known.
    pub fn ask_anew(&mut self, pane: Pane) {
        self.version += 1;
        if pane == Pane::Sessions {
            (self.before, self.matched) = (None, None);
            self.all.clear();
        }
        self.arrange(pane);
    }

    /// Where the selected row is now. If it has gone, the row that has come to its place.
    fn position(&self, pane: Pane) -> usize {
        let wanted = self.selected.as_ref();
        let found = self.rows.iter().position(|row| wanted == Some(&row_key(pane, row)));
        found.or_else(|| self.table.selected()).unwrap_or(0)
    }

    /// Selects the row at this place, or the last.
    pub fn select(&mut self, pane: Pane, at: usize) {
        let Some(last) = self.rows.len().checked_sub(1) else {
            // The selection comes back with the row.
            self.table.select(None);
            return;
        };
        let at = at.min(last);
        self.table.select(Some(at));
        self.selected = Some(row_key(pane, &self.rows[at]));
    }

    pub fn selected(&self) -> Option<&Value> {
        self.rows.get(self.table.selected()?)
    }
}

fn row_key(pane: Pane, row: &Value) -> String {
    row[pane.key()].to_string()
}

fn list(value: &Value, key: &str) -> Vec<Value> {
    value.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
}

/// One row for each client of the three lists.
fn clients(value: &Value) -> Vec<Value> {
    let mut rows: BTreeMap<String, Value> = BTreeMap::new();
    for field in ["bytes", "ended", "refused"] {
        for of in list(value, field) {
            let Some(client) = of.get("client").and_then(Value::as_str) else { continue };
            let row = rows.entry(client.to_owned()).or_insert_with(|| json!({ "client": client }));
            row[field] = of["count"].clone();
        }
    }
    rows.into_values().collect()
}

/// Growth over a time, each second.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a rate is shown with three digits"
)]
fn rate(grown: u64, seconds: f64) -> u64 {
    (grown as f64 / seconds).round() as u64
}

fn push(history: &mut VecDeque<u64>, value: u64) {
    history.push_front(value);
    history.truncate(HISTORY);
}
