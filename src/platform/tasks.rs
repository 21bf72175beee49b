//! Tasks that live as long as the service. One that panics is logged and started again: without that, the service would go on
//! answering while one of its loops has stopped.

use std::{any::Any, future::Future, io, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;

/// Pause before a task that panicked is restarted.
const PAUSE: Duration = if cfg!(test) { Duration::from_millis(10) } else { Duration::from_secs(1) };

/// Runs a loop that is not meant to end. It must be able to start anew at any point.
pub async fn keep_running<F: Future<Output = ()>>(name: &'static str, mut start: impl FnMut() -> F) {
    while run_catching_panic(name, start()).await.is_none() {}
}

/// Runs a future to its end. `None`: it panicked. The panic is logged, and a pause is made.
pub async fn run_catching_panic<T>(name: &'static str, work: impl Future<Output = T>) -> Option<T> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(done) => Some(done),
        Err(panic) => {
            tracing::error!(task = name, "a task panicked ({}); restarting it", message(&*panic));
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}

/// Runs blocking file I/O on a thread for it. The work completes even if the returned future is dropped.
pub async fn blocking_io<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loop_that_panics_goes_on() {
        let mut tries = 0;
        keep_running("test", || {
            tries += 1;
            let tries = tries;
            async move { assert!(tries >= 3, "not yet: {tries}") }
        })
        .await;
        assert_eq!(tries, 3);
    }
}
