//! What each key does. Pure.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::Value;

use crate::control::client::top::model::{Mode, Model};
use crate::control::client::top::panes::{Filter, Pane};

/// What a key asks for beyond the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Quit,
    /// Ask the gateway at once, and not at the next look only.
    Look,
    /// Close the session with this id.
    Kill(String),
}

/// The keys, for the pane of help.
pub const HELP: &[(&str, &str)] = &[
    ("1-6, Tab, \u{2190} \u{2192}", "another pane"),
    ("\u{2191} \u{2193} PgUp PgDn", "another row (also j, k, Home, End)"),
    ("s, r", "sort by the next column; turn the order round"),
    ("/", "filter: words that a row must have. Sessions: also"),
    ("", "listener=, route=, backend=, endpoint=, client=,"),
    ("", "server_name= and state=, which the gateway looks for"),
    ("u", "flows in place of sessions, and back"),
    ("Enter", "sessions: follow one; elsewhere: its sessions"),
    ("x", "close the session, after a question"),
    ("Esc", "back; take the filter away"),
    ("q, Ctrl-C", "end"),
];

/// The rows that PgUp and PgDn pass.
const PAGE: usize = 10;

impl Model {
    pub fn key(&mut self, key: KeyEvent) -> Option<Act> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && key.code == KeyCode::Char('c') {
            return Some(Act::Quit);
        }
        match std::mem::replace(&mut self.mode, Mode::Browsing) {
            Mode::Browsing => self.browse(key.code),
            Mode::Helping => None,
            Mode::Confirming(id) => match key.code {
                KeyCode::Char('y' | 'Y') => Some(Act::Kill(id)),
                _ => {
                    self.notice("nothing is closed");
                    None
                }
            },
            Mode::Filtering(text) => self.filter(text, key.code),
        }
    }

    fn filter(&mut self, mut text: String, code: KeyCode) -> Option<Act> {
        match code {
            KeyCode::Esc => return None,
            KeyCode::Enter => return self.set_filter(&text),
            KeyCode::Backspace => {
                text.pop();
            }
            KeyCode::Char(c) => text.push(c),
            _ => {}
        }
        self.mode = Mode::Filtering(text);
        None
    }

    fn set_filter(&mut self, text: &str) -> Option<Act> {
        let pane = self.pane;
        let view = self.view();
        view.filter = Filter::new(text, pane);
        view.ask_anew(pane);
        Some(Act::Look)
    }

    fn browse(&mut self, code: KeyCode) -> Option<Act> {
        match code {
            KeyCode::Char('q') => return Some(Act::Quit),
            KeyCode::Char('?' | 'h') => self.mode = Mode::Helping,
            KeyCode::Char(digit @ '1'..='6') => {
                return self.go(Pane::ALL[digit as usize - '1' as usize]);
            }
            KeyCode::Tab | KeyCode::Right => return self.step(1),
            KeyCode::BackTab | KeyCode::Left => return self.step(Pane::ALL.len() - 1),
            KeyCode::Char('x') | KeyCode::Delete => self.ask_to_kill(),
            KeyCode::Esc if self.followed.is_some() => {
                self.followed = None;
                return Some(Act::Look);
            }
            _ if self.followed.is_some() => self.scroll(code),
            _ if self.pane == Pane::Overview => {}
            KeyCode::Esc => return self.set_filter(""),
            KeyCode::Char('/') => self.mode = Mode::Filtering(self.view().filter.text.clone()),
            KeyCode::Char('s') => return self.sort(),
            KeyCode::Char('r') => return self.reverse(),
            KeyCode::Char('u') if self.pane == Pane::Sessions => {
                self.udp = !self.udp;
                self.view().ask_anew(Pane::Sessions);
                return Some(Act::Look);
            }
            KeyCode::Enter => return self.enter(),
            code => self.move_to(code),
        }
        None
    }

    fn go(&mut self, pane: Pane) -> Option<Act> {
        (self.pane, self.followed) = (pane, None);
        Some(Act::Look)
    }

    fn step(&mut self, by: usize) -> Option<Act> {
        self.go(Pane::ALL[(self.pane as usize + by) % Pane::ALL.len()])
    }

    fn sort(&mut self) -> Option<Act> {
        let pane = self.pane;
        let view = self.view();
        view.sort = (view.sort + 1) % pane.sorts().len();
        view.reverse = false;
        view.ask_anew(pane);
        Some(Act::Look)
    }

    fn reverse(&mut self) -> Option<Act> {
        let pane = self.pane;
        let view = self.view();
        view.reverse = !view.reverse;
        view.ask_anew(pane);
        Some(Act::Look)
    }

    /// Follows the selected session, or shows the sessions of the selected row.
    fn enter(&mut self) -> Option<Act> {
        let pane = self.pane;
        let row = self.view().selected()?.clone();
        let name = row.get(pane.key()).and_then(Value::as_str)?.to_owned();
        match pane {
            Pane::Sessions => self.follow(name),
            Pane::Listeners | Pane::Backends | Pane::Clients => {
                if pane == Pane::Listeners {
                    self.udp = row["protocol"] == "UDP";
                }
                self.pane = Pane::Sessions;
                return self.set_filter(&format!("{}={name}", pane.key()));
            }
            Pane::Overview | Pane::Events => return None,
        }
        Some(Act::Look)
    }

    fn ask_to_kill(&mut self) {
        let followed = self.followed.as_ref().filter(|of| !of.has_ended).map(|of| of.id.clone());
        let selected = || {
            let row = self.views[self.pane as usize].selected()?;
            row["id"].as_str().map(str::to_owned)
        };
        let id = if self.followed.is_some() { followed } else { selected() };
        match id {
            Some(id) => self.mode = Mode::Confirming(id),
            None => self.notice("choose a session first: 4 shows them"),
        }
    }

    fn move_to(&mut self, code: KeyCode) {
        let pane = self.pane;
        let view = self.view();
        let at = view.table.selected().unwrap_or(0);
        let to = match code {
            KeyCode::Up | KeyCode::Char('k') => at.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => at + 1,
            KeyCode::PageUp => at.saturating_sub(PAGE),
            KeyCode::PageDown => at + PAGE,
            KeyCode::Home => 0,
            KeyCode::End => usize::MAX,
            _ => return,
        };
        view.select(pane, to);
    }

    /// Moves through the lines of the session that is followed.
    fn scroll(&mut self, code: KeyCode) {
        let Some(followed) = &mut self.followed else { return };
        followed.from = match code {
            KeyCode::Up | KeyCode::Char('k') => followed.from.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => followed.from.saturating_add(1),
            KeyCode::Home => 0,
            _ => return,
        };
    }
}
