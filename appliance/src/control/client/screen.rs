//! The terminal's other screen, for what is drawn again and again.

use std::future::Future;

use terminal_size::{Height, terminal_size};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::control::output::{Exit, print};

/// Draws on the terminal's other screen, so that what stood there before comes back at the end. The
/// end comes with an error of `drawing`, with Ctrl-C, or with a signal that would end the process:
/// the terminal is as before then too, and the exit code is that of a shell for the signal.
pub async fn on_other_screen(
    drawing: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let mut ends = Ends::take()?;
    print("\x1b[?1049h\x1b[?25l")?;
    let _back = Back;
    tokio::select! {
        result = drawing => result,
        result = ends.wait() => result,
    }
}

/// Goes back to the first screen, after a panic too.
struct Back;

impl Drop for Back {
    fn drop(&mut self) {
        // After SIGHUP the terminal may be gone.
        _ = print("\x1b[?25h\x1b[?1049l");
    }
}

/// Draws `text` from the top of the screen. Lines that do not fit are left out; the last line of
/// the screen stays empty.
pub fn draw(text: &str) -> anyhow::Result<()> {
    let lines = text.lines().take(height().saturating_sub(1));
    let text: String = lines.map(|line| format!("{line}\x1b[K\r\n")).collect();
    print(&format!("\x1b[H{text}\x1b[J"))
}

/// The lines of the screen.
pub fn height() -> usize {
    terminal_size().map_or(24, |(_, Height(height))| usize::from(height))
}

/// The signals that end a process.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Ends {
    fn take() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) -> anyhow::Result<()> {
        let code = tokio::select! {
            _ = self.interrupt.recv() => return Ok(()),
            _ = self.terminate.recv() => 128 + 15,
            _ = self.hangup.recv() => 128 + 1,
        };
        Err(Exit { code, text: String::new() }.into())
    }
}
