//! The look at the configuration's files that is under way, and who waits for what becomes of it.

use config_sync::sync::reading::{Finished, Wish};
use tokio::sync::oneshot;

use crate::control::admin::calls::{Refusal, Reloaded};

/// The look at the configuration's files that is under way, and the wish for the next look.
#[derive(Default)]
pub struct Looking {
    pub under_way: Option<oneshot::Receiver<Finished>>,
    pub next: Option<Wish>,
    /// Who is told what becomes of the look that is under way, and of the next one.
    pub answers: Vec<Answer>,
    pub asked: Vec<Answer>,
    /// systemd knows of a reload, and waits for its end.
    pub systemd_waits: bool,
}

pub type Answer = oneshot::Sender<Result<Reloaded, Refusal>>;

pub const ENDING: Refusal = Refusal::Busy("the gateway is ending");

impl Looking {
    /// Waits for the end of the look. Never returns if no look is under way.
    pub async fn found(&mut self) -> Option<Finished> {
        let Some(under_way) = &mut self.under_way else { return std::future::pending().await };
        let found = under_way.await;
        self.under_way = None;
        found.ok()
    }

    /// Tells those who wait what became of the look.
    pub fn tell(&mut self, outcome: &Result<Reloaded, Refusal>) {
        for answer in self.answers.drain(..) {
            // The asker may have gone.
            _ = answer.send(outcome.clone());
        }
    }
}
