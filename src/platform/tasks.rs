//! Tasks that live as long as the service. One that panics is logged and started again: without that, the service would go on
//! answering while one of its loops has stopped.

use std::{any::Any, future::Future, io, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;

/// Before something that panicked is tried again.
const PAUSE: Duration = if cfg!(test) { Duration::from_millis(10) } else { Duration::from_secs(1) };

/// Runs a loop that is not meant to end. It must be able to start anew at any point.
pub async fn keep_running<F: Future<Output = ()>>(name: &'static str, mut start: impl FnMut() -> F) {
    while survived(name, start()).await.is_none() {}
}

/// Runs something to its end. `None`: it panicked; that was logged and a pause was made.
pub async fn survived<T>(name: &'static str, work: impl Future<Output = T>) -> Option<T> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(done) => Some(done),
        Err(panic) => {
            tracing::error!(task = name, "a task panicked ({}); restarting it", message(&*panic));
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}

/// Runs what waits for the disk on a thread where it keeps nothing else waiting. It runs to its end even if this is dropped.
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
