//! Answers and keys go in, and a frame of the size that SSH has by default comes out.

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};

use crate::control::client::top::By;
use crate::control::client::top::frame::draw;
use crate::control::client::top::keys::Act;
use crate::control::client::top::model::{Failure, Mode, Model, What};
use crate::control::client::top::panes::Pane;

const LOOK: Duration = Duration::from_secs(2);

struct Screen {
    model: Model,
    now: Duration,
    size: (u16, u16),
}

impl Screen {
    fn new() -> Self {
        let model = Model::new(By::Bytes, LOOK);
        let mut screen = Self { model, now: Duration::ZERO, size: (80, 24) };
        screen.answer(What::Status, status(1_000, 5));
        screen
    }

    fn answer(&mut self, what: What, value: Value) {
        self.model.answered(what, Ok(value), self.now);
    }

    /// The rows of the pane that is shown.
    fn rows(&mut self, value: Value) {
        let questions = self.model.questions();
        let what = questions.into_iter().find_map(|(what, _)| match what {
            What::Rows(..) => Some(what),
            _ => None,
        });
        self.answer(what.expect("a pane with rows"), value);
    }

    fn press(&mut self, code: KeyCode) -> Option<Act> {
        self.model.key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn say(&mut self, text: &str) {
        for c in text.chars() {
            self.press(KeyCode::Char(c));
        }
    }

    /// The lines of the screen.
    fn lines(&mut self) -> Vec<String> {
        let (width, height) = self.size;
        let mut terminal =
            Terminal::new(TestBackend::new(width, height)).expect("a terminal in memory");
        self.model.tick(self.now);
        terminal.draw(|frame| draw(frame, &mut self.model)).expect("a frame");
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    fn shows(&mut self, part: &str) -> bool {
        let lines = self.lines();
        let shown = lines.iter().any(|line| line.contains(part));
        if !shown {
            eprintln!("{}", lines.join("\n"));
        }
        shown
    }
}

fn status(uptime: u64, opened: u64) -> Value {
    json!({
        "ready": true, "draining": false, "uptime_ms": uptime, "sessions": 12,
        "sessions_most": 64, "flows": 0, "opened_per_second": opened,
        "bytes_up_per_second": 2_048, "bytes_down_per_second": 4_096, "endpoints_down": 1,
    })
}

fn session(number: u64, bytes: u64) -> Value {
    json!({
        "id": format!("s0-{number}-0-0"), "client": format!("192.0.2.{number}:40000"),
        "listener": "web", "backend": "web", "endpoint": "10.0.0.1:80", "state": "relaying",
        "age_ms": 61_000, "idle_ms": 5, "bytes_up": bytes, "bytes_down": 0,
    })
}

fn sessions(numbers: &[u64]) -> Value {
    let all: Vec<_> = numbers.iter().map(|number| session(*number, number << 10)).collect();
    json!({ "sessions": all, "matched": numbers.len() })
}

#[test]
fn the_overview_says_what_is_wrong_beside_rates_and_closes() {
    let mut screen = Screen::new();
    screen.answer(What::Closes, json!({ "closes": [{ "reason": "ok", "latest": 3, "count": 9 }] }));
    let limits = json!({ "limits": [{ "limit": "sessions", "of": "web", "full": 0.9 }] });
    screen.answer(What::Limits, limits);
    screen.rows(json!({ "backends": [{ "backend": "web", "news": "1 of 2 down\u{1b}[2J" }] }));
    screen.answer(What::Status, status(3_000, 7));
    let lines = screen.lines();
    assert!(lines[0].starts_with("ready  sessions 12 of 64  new 7/s"), "{}", lines[0]);
    assert_eq!(lines[1].split_whitespace().nth(1), Some("Overview"));
    for part in ["new: 7/s  (most 7/s)", "down: 4.0 KiB/s", "endpoints down: 1"] {
        assert!(screen.shows(part), "{part}");
    }
    assert!(screen.shows("web: 1 of 2 down") && screen.shows("limit sessions of web: 90 % full"));
    assert!(screen.shows("\u{2588}"), "a sparkline");
    // The news of somebody else must not move the cursor.
    assert!(!lines.concat().contains('\u{1b}'));
    let lines = screen.lines();
    let closes = lines.iter().find(|line| line.contains("ok ")).expect("a reason");
    assert!(closes.ends_with("9"), "{closes}");
}

#[test]
fn rates_are_what_changed_between_two_looks_and_lists_are_sorted_by_them() {
    let mut screen = Screen::new();
    screen.press(KeyCode::Char('2'));
    let listener = |name: &str, bytes: u64, opened: u64| {
        json!({ "listener": name, "protocol": "TCP", "sessions": 1, "opened": opened,
                "refused": 0, "bytes_up": bytes, "bytes_down": 0, "state": "listening",
                "addresses": ["127.0.0.1:80"] })
    };
    screen.rows(json!({ "listeners": [listener("a", 0, 0), listener("b", 0, 0)] }));
    assert!(screen.shows("Listeners: 2  sort: bytes"));
    screen.now += LOOK;
    screen.rows(json!({ "listeners": [listener("a", 2_048, 8), listener("b", 8_192, 2)] }));
    let order = |screen: &mut Screen| {
        let lines = screen.lines();
        [3, 4].map(|at: usize| lines[at + 1].chars().next().expect("a name"))
    };
    assert_eq!(order(&mut screen), ['b', 'a']);
    assert!(screen.shows("4.0 KiB"), "8,192 bytes in 2 s");
    screen.press(KeyCode::Char('s'));
    screen.press(KeyCode::Char('s'));
    assert!(screen.shows("sort: new"));
    assert_eq!(order(&mut screen), ['a', 'b']);
    screen.press(KeyCode::Char('r'));
    assert_eq!(order(&mut screen), ['b', 'a']);
}

#[test]
fn the_selection_follows_its_row() {
    let mut screen = Screen::new();
    screen.press(KeyCode::Char('4'));
    screen.rows(sessions(&[9, 8, 7]));
    screen.press(KeyCode::Down);
    let selected = |screen: &mut Screen| screen.model.view().selected().map(|of| of["id"].clone());
    assert_eq!(selected(&mut screen), Some("s0-8-0-0".into()));
    screen.rows(sessions(&[9, 7, 6, 8]));
    assert_eq!(selected(&mut screen), Some("s0-8-0-0".into()));
    // It has gone: the row that has come to its place is selected.
    screen.rows(sessions(&[9, 7]));
    assert_eq!(selected(&mut screen), Some("s0-7-0-0".into()));
    screen.press(KeyCode::End);
    screen.press(KeyCode::Down);
    assert_eq!(selected(&mut screen), Some("s0-7-0-0".into()));
}

#[test]
fn a_kill_is_asked_back_and_only_a_yes_closes() {
    let mut screen = Screen::new();
    screen.press(KeyCode::Char('x'));
    assert!(screen.shows("choose a session first"));
    screen.press(KeyCode::Char('4'));
    screen.rows(sessions(&[9, 8]));
    screen.press(KeyCode::Char('x'));
    assert!(screen.shows("close s0-9-0-0? y: yes"));
    assert_eq!(screen.press(KeyCode::Enter), None);
    assert!(screen.shows("nothing is closed"));
    screen.press(KeyCode::Char('x'));
    // The list changes while the question stands. What was asked about is what is closed.
    screen.rows(sessions(&[8]));
    assert_eq!(screen.press(KeyCode::Char('y')), Some(Act::Kill("s0-9-0-0".into())));
    screen.answer(What::Killed("s0-9-0-0".into()), json!({ "killed": 1 }));
    assert!(screen.shows("s0-9-0-0 is closed"));
    let told = Failure::Told("this address is for reading only".into());
    screen.model.answered(What::Killed("s0-8-0-0".into()), Err(told), screen.now);
    assert!(screen.shows("this address is for reading only"));
}

#[test]
fn a_filter_asks_anew_and_an_answer_to_the_old_question_is_dropped() {
    let mut screen = Screen::new();
    screen.press(KeyCode::Char('4'));
    let (old, _) = screen.model.questions().swap_remove(1);
    screen.press(KeyCode::Char('/'));
    screen.say("client=192.0.2.0/24 relaq");
    screen.press(KeyCode::Backspace);
    assert!(screen.shows("filter: client=192.0.2.0/24 rela"));
    assert_eq!(screen.press(KeyCode::Enter), Some(Act::Look));
    let (_, question) = screen.model.questions().swap_remove(1);
    let expected = [("client", "192.0.2.0/24"), ("sort", "bytes"), ("limit", "1000")];
    assert_eq!(question.query, expected.map(|(key, value)| (key, value.to_owned())));
    screen.answer(old, sessions(&[1, 2, 3]));
    assert!(screen.shows("Sessions: 0"));
    let mut both = sessions(&[1, 2]);
    both["sessions"][0]["state"] = "connecting".into();
    screen.rows(both);
    assert!(screen.shows("Sessions: 1 of 2") && screen.shows("192.0.2.2:40000"));
    screen.press(KeyCode::Esc);
    assert!(screen.model.view().filter.text.is_empty());
}

#[test]
fn a_session_is_followed_until_it_ends() {
    let mut screen = Screen::new();
    screen.press(KeyCode::Char('2'));
    let listener = json!({ "listener": "web", "protocol": "UDP" });
    screen.rows(json!({ "listeners": [listener] }));
    assert_eq!(screen.press(KeyCode::Enter), Some(Act::Look));
    assert!(screen.model.udp && screen.shows("Flows: 0  sort: bytes  filter: listener=web"));
    screen.press(KeyCode::Char('u'));
    screen.rows(sessions(&[9]));
    assert_eq!(screen.press(KeyCode::Enter), Some(Act::Look));
    let id = "s0-9-0-0".to_owned();
    let tcp = json!({ "rtt_ms": 0.5, "cwnd": 10 });
    let mut one = session(9, 1_024);
    one["client_tcp"] = tcp;
    screen.answer(What::Followed(id.clone()), one);
    screen.now += LOOK;
    screen.answer(What::Followed(id.clone()), session(9, 9_216));
    for part in ["s0-9-0-0", "up: 4.0 KiB/s", "192.0.2.9:40000", "listener"] {
        assert!(screen.shows(part), "{part}");
    }
    let gone = Failure::Told("s0-9-0-0 has ended, or has never been".into());
    screen.model.answered(What::Followed(id.clone()), Err(gone), screen.now);
    assert!(screen.shows("s0-9-0-0 has ended") && screen.shows("192.0.2.9:40000"));
    // Nothing is asked about it any more, and there is nothing to close.
    assert!(screen.model.questions().iter().all(|(what, _)| *what != What::Followed(id.clone())));
    screen.press(KeyCode::Char('x'));
    assert_eq!(screen.model.mode, Mode::Browsing);
    screen.press(KeyCode::Esc);
    assert!(screen.shows("Sessions: 1"));
}

#[test]
fn a_lost_gateway_is_said_and_what_was_known_stays() {
    let mut screen = Screen::new();
    screen.press(KeyCode::Char('4'));
    screen.rows(sessions(&[9]));
    screen.now += Duration::from_secs(7);
    let lost = Failure::Lost("/run/x.sock: no gateway has its socket there\nmore".into());
    screen.model.answered(What::Status, Err(lost), screen.now);
    assert!(screen.shows("NO ANSWER for 7 s, asking again: /run/x.sock: no gateway"));
    assert!(screen.shows("192.0.2.9:40000"));
    screen.answer(What::Status, status(2_000, 0));
    assert!(screen.shows("the gateway answers again") && screen.shows("ready"));
    screen.answer(What::Status, status(10, 0));
    assert!(screen.shows("another process answers"));
    // A gateway that accepts and says nothing is lost as well.
    screen.now += Duration::from_secs(9);
    assert!(screen.shows("NO ANSWER for 9 s, asking again: it does not answer"));
}

#[test]
fn keys_move_between_panes_and_end() {
    let mut screen = Screen::new();
    for pane in Pane::ALL {
        assert_eq!(screen.model.pane, pane);
        assert!(screen.shows(pane.title()));
        assert_eq!(screen.press(KeyCode::Tab), Some(Act::Look));
    }
    assert_eq!(screen.model.pane, Pane::Overview);
    screen.press(KeyCode::BackTab);
    assert_eq!(screen.model.pane, Pane::Events);
    screen.press(KeyCode::Char('?'));
    assert!(screen.shows("close the session, after a question"));
    screen.press(KeyCode::Char('q'));
    assert_eq!(screen.model.mode, Mode::Browsing, "any key ends the help, and no more");
    assert_eq!(screen.press(KeyCode::Char('q')), Some(Act::Quit));
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    screen.press(KeyCode::Char('/'));
    assert_eq!(screen.model.key(interrupt), Some(Act::Quit));
}

#[test]
fn every_pane_fits_every_size() {
    let mut screen = Screen::new();
    for (at, pane) in Pane::ALL.into_iter().enumerate() {
        screen.size = (80, 24);
        screen.press(KeyCode::Char(char::from(b'1' + u8::try_from(at).expect("six"))));
        let error = json!({ "number": 1, "ts": "2026-01-01T00:00:00Z", "level": "ERROR",
                            "text": "a text that is longer than a line ".repeat(5) });
        screen.rows(json!({
            "listeners": [{ "listener": "web", "addresses": ["0.0.0.0:80"], "sessions": 3 }],
            "backends": [{ "backend": "a-name-that-is-rather-long", "state": "degraded" }],
            "sessions": [session(1, 5)], "events": [error],
            "clients": { "bytes": [{ "client": "192.0.2.1", "count": 4_096, "error": 0 }] },
        }));
        for size in [(80, 24), (132, 50), (40, 12), (24, 8), (10, 4), (1, 1)] {
            screen.size = size;
            let lines = screen.lines();
            if size.0 >= 24 && pane != Pane::Overview {
                let key = ["", "web", "a-name-tha", "192.0.2.1", "192.0.2.1", "ERROR"][at];
                assert!(lines.iter().any(|line| line.contains(key)), "{pane:?} {size:?} {lines:?}");
            }
        }
    }
    screen.size = (40, 12);
    assert!(screen.lines()[1].contains("6 Events") && !screen.lines()[1].contains("Overview"));
}

#[test]
fn the_selected_line_of_the_log_is_shown_whole() {
    let mut screen = Screen::new();
    screen.press(KeyCode::Char('6'));
    let line = |number: u64, text: &str| json!({ "number": number, "level": "INFO", "text": text });
    let long = format!("{}the end", "word ".repeat(25));
    screen.rows(json!({ "events": [line(1, "old"), line(2, &long)] }));
    assert!(screen.shows("the end"), "the newest comes first");
}
