//! Starts the program of an upgrade on a thread of its own, which the sandbox does not hold: a
//! program has the filters and the Landlock domain of the thread that starts it, and the next
//! version may need more than this one.

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

pub struct Starter {
    /// This process's own program.
    pub own: PathBuf,
    asks: Sender<Ask>,
}

type Ask = (Command, SyncSender<io::Result<Child>>);

impl Starter {
    /// The thread has the user and the capabilities of the calling thread.
    ///
    /// # Errors
    /// There is no thread.
    pub fn new(own: PathBuf) -> io::Result<Self> {
        let (asks, asked): (_, Receiver<Ask>) = channel();
        let work = move || {
            for (mut command, answer) in asked {
                // Whoever asked waits for the answer.
                _ = answer.send(command.spawn());
            }
        };
        thread::Builder::new().name("ringway-start".into()).spawn(work)?;
        Ok(Self { own, asks })
    }

    /// # Errors
    /// The program can't be started.
    pub fn start(&self, command: Command) -> io::Result<Child> {
        let gone = || io::Error::other("the thread that starts programs has ended");
        let (answer, answered) = sync_channel(1);
        self.asks.send((command, answer)).map_err(|_| gone())?;
        answered.recv().unwrap_or_else(|_| Err(gone()))
    }
}
