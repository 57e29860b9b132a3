//! Tasks beside the control thread's own work that must not end without a word.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::task::AbortHandle;

/// A task that has panicked begins anew after so long.
const PAUSE: Duration = Duration::from_secs(10);

/// Runs the task that `begin` makes. A panic in it, which is a fault of Ringway's, is said, and it
/// begins anew after 10 s: what was in force when it panicked stays so. `what`: for the log.
pub(super) fn keep<F>(what: &'static str, begin: impl Fn() -> F + Send + 'static) -> AbortHandle
where
    F: Future<Output = ()> + Send + 'static,
{
    let task = async move {
        while AssertUnwindSafe(begin()).catch_unwind().await.is_err() {
            let seconds = PAUSE.as_secs();
            tracing::error!(
                "{what} has panicked, which is a fault of Ringway's: it begins anew in {seconds} s"
            );
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::spawn(task).abort_handle()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_begins_anew_until_it_ends() {
        let runs = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&runs);
        let task = keep("a test's task", move || {
            let run = seen.fetch_add(1, Ordering::Relaxed);
            async move { assert!(run == 2, "run {run} has a fault") }
        });
        tokio::time::sleep(PAUSE * 5).await;
        assert_eq!(runs.load(Ordering::Relaxed), 3);
        assert!(task.is_finished());
    }
}
