//! Decides which of the two processes of an upgrade a SIGTERM is for.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::control::run::{Control, Phase};

impl Control {
    /// Whether SIGTERM waits until it is clear who has the sockets. Until then this process must
    /// not close them, because the new one may have them alone by the time.
    pub fn puts_off_the_end(&mut self) -> bool {
        let is_running = matches!(self.phase, Phase::Running);
        if let Some(giving) = self.upgrade.giving.as_ref().filter(|of| is_running && !of.is_ready)
            && let Some(voice) = &giving.voice
        {
            // Otherwise the end of this process looks like a crash, and the new one serves on.
            voice.refuses("the gateway is ending");
        }
        let ready = self.upgrade.giving.as_mut().filter(|of| is_running && of.is_ready);
        let Some(giving) = ready else { return false };
        if !std::mem::replace(&mut giving.must_end, true) {
            tracing::info!("the gateway ends once it is clear which process has the sockets");
        }
        true
    }

    pub fn must_end(&self) -> bool {
        self.upgrade.giving.as_ref().is_some_and(|giving| giving.must_end)
    }

    /// Whether a SIGTERM right behind a hand-over is not for this process to act on. The old
    /// process passes such a signal on. The new process, which ends already, may get it twice: its
    /// own, and that of the old process.
    pub fn is_meant_for_both(&mut self) -> bool {
        const SOON: Duration = Duration::from_secs(1);
        match self.upgrade.passed_on.take() {
            Some((since, process)) if since.elapsed() < SOON => {
                process.into_iter().for_each(|process| self.pass_signal_on(process));
                true
            }
            _ => false,
        }
    }

    /// Whoever has told this process to end meant the gateway, which is the new process now.
    pub fn pass_signal_on(&self, process: u32) {
        let told = i32::try_from(process).map_err(|_| Errno::ESRCH);
        match told.and_then(|process| kill(Pid::from_raw(process), Signal::SIGTERM)) {
            Ok(()) => tracing::info!("SIGTERM goes on to process {process}"),
            Err(error) => tracing::error!("process {process} can't be told to end: {error}"),
        }
    }
}
