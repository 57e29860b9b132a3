//! Asks the gateway, reads keys, and draws.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::terminal::{disable_raw_mode, enable_raw_mode};
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::control::client::http::{Question, Reach, Told};
use crate::control::client::screen::on_other_screen;
use crate::control::client::top::By;
use crate::control::client::top::frame::draw;
use crate::control::client::top::keys::Act;
use crate::control::client::top::model::{Failure, Model, What};

/// A gateway without an answer for this long is asked anew.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often the screen follows the time, if nothing else happens.
const SECOND: Duration = Duration::from_secs(1);

type Answer = (What, Result<Value, Failure>);

/// Shows the screen until the operator ends it. A gateway that can't be reached at the beginning is
/// an error. If it is lost later, the screen says so and goes on to ask.
pub async fn run(reach: Reach, by: By, interval: Duration) -> anyhow::Result<()> {
    let reach = Arc::new(reach);
    let mut model = Model::new(by, interval);
    let status = reach.ask(&Question::get("status")).await?;
    model.answered(What::Status, Ok(status), Duration::ZERO);
    let raw = Raw::enter()?;
    let ended = on_other_screen(Live::new(reach, model).go_on(interval)).await;
    drop(raw);
    ended
}

/// Keys come one by one, and are not printed, for as long as this lives.
struct Raw;

impl Raw {
    fn enter() -> anyhow::Result<Self> {
        enable_raw_mode().context("the terminal")?;
        Ok(Self)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone.
        _ = disable_raw_mode();
    }
}

struct Live {
    reach: Arc<Reach>,
    model: Model,
    began: Instant,
    answers: (Sender<Answer>, Receiver<Answer>),
    /// The look that is under way. Its answers come one after the other.
    look: Option<JoinHandle<()>>,
}

impl Live {
    fn new(reach: Arc<Reach>, model: Model) -> Self {
        Self { reach, model, began: Instant::now(), answers: channel(16), look: None }
    }

    async fn go_on(mut self, between: Duration) -> anyhow::Result<()> {
        let mut terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        let mut events = events();
        let mut looks = interval(between);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seconds = interval(SECOND);
        loop {
            self.model.tick(self.began.elapsed());
            terminal.draw(|frame| draw(frame, &mut self.model)).context("the terminal")?;
            tokio::select! {
                event = events.recv() => {
                    // A new size of the terminal needs nothing but the next frame.
                    let Event::Key(key) = event.context("the terminal has gone")? else { continue };
                    match self.model.key(key) {
                        None => {}
                        Some(Act::Quit) => return Ok(()),
                        Some(Act::Look) => self.look(true),
                        Some(Act::Kill(id)) => self.kill(id),
                    }
                }
                Some((what, answer)) = self.answers.1.recv() => {
                    let is_killed = matches!(what, What::Killed(_));
                    self.model.answered(what, answer, self.began.elapsed());
                    if is_killed {
                        self.look(true);
                    }
                }
                _ = looks.tick() => self.look(false),
                _ = seconds.tick() => {}
            }
        }
    }

    /// Asks what the model needs. A look that is under way is left alone, unless another pane needs
    /// its answers at once.
    fn look(&mut self, at_once: bool) {
        if let Some(look) = self.look.as_ref().filter(|look| !look.is_finished()) {
            if !at_once {
                return;
            }
            look.abort();
        }
        let (reach, answers) = (Arc::clone(&self.reach), self.answers.0.clone());
        let questions = self.model.questions();
        self.look = Some(tokio::spawn(async move {
            for (what, question) in questions {
                let answer = ask(&reach, &question).await;
                let is_lost = matches!(answer, Err(Failure::Lost(_)));
                if answers.send((what, answer)).await.is_err() || is_lost {
                    break;
                }
            }
        }));
    }

    fn kill(&self, id: String) {
        let (reach, answers) = (Arc::clone(&self.reach), self.answers.0.clone());
        tokio::spawn(async move {
            let answer = ask(&reach, &Question::delete(format!("session/{id}"))).await;
            // Nobody waits for the answer if the screen has ended.
            _ = answers.send((What::Killed(id), answer)).await;
        });
    }
}

async fn ask(reach: &Reach, question: &Question) -> Result<Value, Failure> {
    match timeout(PATIENCE, reach.ask(question)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(match error.downcast_ref::<Told>() {
            Some(Told(why)) => Failure::Told(why.clone()),
            None => Failure::Lost(format!("{error:#}")),
        }),
        Err(_) => Err(Failure::Lost(format!("nothing within {} s", PATIENCE.as_secs()))),
    }
}

/// Keys and new sizes of the terminal. A thread reads them, because reading waits.
fn events() -> Receiver<Event> {
    let (sender, events) = channel(64);
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                break;
            }
        }
    });
    events
}
