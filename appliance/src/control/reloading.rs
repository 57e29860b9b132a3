//! The control thread's part in reloads: it looks at the configuration's files, and says what
//! became of that.

use std::sync::atomic::Ordering;
use std::time::Duration;

use config_sync::source::watch::{Watch, watch};
use config_sync::sync::Outcome;
use config_sync::sync::reading::{Finished, Wish};
use tokio::sync::oneshot;

use crate::control::admin::calls::{Refusal, Reloaded};
use crate::control::changes::say_changes;
use crate::control::looking::{Answer, ENDING, Looking};
use crate::control::run::{Control, Phase, SPARE};
use crate::control::systemd;

impl Control {
    pub fn reloaded(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Published { generation } => {
                tracing::info!("configuration {generation} is in force");
                let before = self.board.latest().in_force.clone();
                if let (Some(before), Some(now)) = (before, self.sync.in_force().cloned()) {
                    // A long configuration takes a while to compare.
                    tokio::task::spawn_blocking(move || {
                        say_changes(generation, &before.config, &now.config);
                    });
                }
                self.warn_of_certificates();
            }
            Outcome::Unchanged => return,
            Outcome::Rejected(problems) => {
                for problem in problems.lines() {
                    tracing::error!("{problem}");
                }
                tracing::error!(
                    "the new configuration is refused; the previous one stays in force"
                );
            }
        }
        self.post();
    }

    /// Reads the files again. `answer` is told what became of that, at the end or at once.
    pub fn reload(
        &mut self,
        looking: &mut Looking,
        changes: &Option<Watch>,
        (wish, answer): (Wish, Option<Answer>),
    ) -> Result<(), Refusal> {
        if matches!(self.phase, Phase::Running) {
            systemd::tell_of_reload();
            looking.systemd_waits = true;
        }
        let refusal = if self.cluster.is_some() {
            Some(Refusal::Bad("the configuration comes from a cluster, and is followed".into()))
        } else if changes.as_ref().is_some_and(|watch| watch.writing.load(Ordering::Relaxed)) {
            let why =
                "a file is being written: Ringway reads the file once the writer has closed it";
            Some(Refusal::Busy(why))
        } else if matches!(self.phase, Phase::Draining | Phase::Stopping) {
            Some(ENDING)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            if let Some(answer) = answer {
                _ = answer.send(Err(refusal.clone()));
            }
            return Err(refusal);
        }
        looking.asked.extend(answer);
        self.look(looking, wish);
        Ok(())
    }

    /// Looks at the configuration's files, on a thread of its own. Parsing and compiling may take
    /// seconds, and signals and records must not wait.
    pub fn look(&mut self, looking: &mut Looking, wish: Wish) {
        if looking.under_way.is_some() || self.upgrade.is_under_way() {
            // The look that is under way would miss later changes, so another look follows. During
            // an upgrade two processes have the sockets, so the set of sockets must not change.
            looking.next = looking.next.max(Some(wish)).filter(|next| *next > Wish::Retry);
            return;
        }
        let wish = looking.next.take().map_or(wish, |next| next.max(wish));
        let Some(reading) = self.sync.begin(wish) else {
            if wish > Wish::Retry {
                looking.asked.drain(..).for_each(|answer| _ = answer.send(Err(ENDING)));
            }
            return self.spare.fill();
        };
        // One file is for the file that is read, and one for the folder or pipe that the read
        // needs.
        self.spare.give_up(2);
        let (say, found) = oneshot::channel();
        let read = move || _ = say.send(reading.run());
        match std::thread::Builder::new().name("reading".into()).spawn(read) {
            Ok(_) => {
                looking.under_way = Some(found);
                looking.answers.append(&mut looking.asked);
            }
            Err(error) => {
                let why = format!("no thread for a reload: {error}");
                looking.answers.append(&mut looking.asked);
                self.tell_askers(looking, &Outcome::Rejected(why.clone()));
                let outcome = self.sync.abandon(why);
                self.reloaded(outcome);
            }
        }
    }

    /// Ends one look, and begins the next if one was asked for. `None`: the thread has panicked.
    pub fn found(
        &mut self,
        found: Option<Finished>,
        looking: &mut Looking,
        changes: &mut Option<Watch>,
    ) {
        // The other spare files are for new sockets. They are given up only now, because a session
        // could take them first.
        self.spare.give_up(SPARE);
        let outcome = match found {
            Some(found) => {
                let outcome = self.sync.finish(found);
                self.tell_askers(looking, &outcome);
                outcome
            }
            None => {
                let why = "the configuration's reader has panicked".to_owned();
                self.tell_askers(looking, &Outcome::Rejected(why.clone()));
                self.sync.abandon(why)
            }
        };
        self.spare.fill();
        self.reloaded(outcome);
        if self.watch(changes) {
            // The watch does not report changes from before it began, so the files are looked at
            // again.
            looking.next = looking.next.max(Some(Wish::Refresh));
        }
        if let Some(wish) = looking.next.take() {
            self.look(looking, wish);
        }
    }

    fn tell_askers(&self, looking: &mut Looking, outcome: &Outcome) {
        looking.tell(&match outcome {
            _ if matches!(self.phase, Phase::Draining | Phase::Stopping) => Err(ENDING),
            Outcome::Published { generation } => Ok(Reloaded { generation: *generation }),
            Outcome::Unchanged => Ok(Reloaded { generation: self.sync.generation() }),
            Outcome::Rejected(problems) => Err(Refusal::Failed(problems.clone())),
        });
    }

    /// Watches the files that the configuration now names. True if a new watch has begun.
    fn watch(&mut self, changes: &mut Option<Watch>) -> bool {
        let files = self.sync.files();
        if changes.is_none() || files.is_empty() || files == self.watched {
            return false;
        }
        match watch(&files) {
            Ok(watch) => {
                *changes = Some(watch);
                self.watched = files;
                true
            }
            Err(error) => {
                tracing::error!(%error, "new files can't be watched; SIGHUP reloads them");
                false
            }
        }
    }

    /// Tells systemd that a reload is over, and leaves copies of the listening sockets with it.
    pub fn tell_systemd(&mut self, looking: &mut Looking) {
        let is_over = looking.under_way.is_none() && looking.next.is_none();
        if looking.systemd_waits && is_over && matches!(self.phase, Phase::Running) {
            looking.systemd_waits = false;
            let status = match self.sync.last_error().and_then(|why| why.lines().next()) {
                Some(why) => format!("the new configuration is refused: {why}"),
                None => format!("configuration {} is in force", self.sync.generation()),
            };
            systemd::tell(&format!("READY=1\nSTATUS={status}"));
        }
        let is_main = !self.board.handed_over.load(Ordering::Relaxed)
            && self.upgrade.taking.is_none()
            && self.fd_store.not_before.elapsed() > Duration::ZERO;
        if !self.fd_store.is_on() || !is_main {
            return;
        }
        match self.phase {
            Phase::Running if self.fd_store.generation != self.sync.generation() => {
                let Some(shared) = self.sync.shared_sockets() else { return };
                self.fd_store.generation = self.sync.generation();
                self.fd_store.update(shared);
            }
            Phase::Running | Phase::Grace { .. } => self.fd_store.flush(),
            Phase::Draining | Phase::Stopping => self.fd_store.clear(),
        }
    }
}
