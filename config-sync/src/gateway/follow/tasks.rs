//! Tasks beside the control thread's own work. They must not end silently.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::task::AbortHandle;

/// A task that has panicked begins again after this time.
const PAUSE: Duration = Duration::from_secs(10);

/// Runs the task that `begin` makes. A panic in the task is a fault of Ringway and is logged. The
/// task begins again after 10 s, and the configuration in force stays. `what` is the task's name in
/// the log.
pub(super) fn keep<F>(what: &'static str, begin: impl Fn() -> F + Send + 'static) -> AbortHandle
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(run(what, PAUSE, begin)).abort_handle()
}

async fn run<F: Future<Output = ()>>(what: &str, pause: Duration, begin: impl Fn() -> F) {
    while AssertUnwindSafe(begin()).catch_unwind().await.is_err() {
        tracing::error!(
            "{what} has panicked, which is a fault of Ringway's: it begins anew in {pause:?}"
        );
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_begins_anew_until_it_ends() {
        let runs = Cell::new(0);
        let begin = || {
            runs.set(runs.get() + 1);
            let run = runs.get();
            async move { assert!(run == 3, "run {run} has a fault") }
        };
        run("a test's task", Duration::from_millis(1), begin).await;
        assert_eq!(runs.get(), 3);
    }
}
