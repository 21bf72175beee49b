//! The only wiring place: builds every part, runs, shuts down in order.

use tokio_util::sync::CancellationToken;

use crate::config::Config;

#[derive(Debug, thiserror::Error)]
pub enum StartError {}

/// Runs the service until `shutdown`.
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<(), StartError> {
    tracing::info!(data_dir = %config.data_dir.display(), "nothing is wired yet");
    shutdown.cancelled().await;
    Ok(())
}
