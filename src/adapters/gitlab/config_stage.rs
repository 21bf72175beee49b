//! The stage `config`: what the runner does not know from its own configuration.

use serde_json::{Map, Value, json};

use super::{environment::ATTEMPT_VARIABLE, failure::ExecutorFailure, output, settings::ExecutorSettings};

pub(super) fn run(settings: &ExecutorSettings, image: &str) -> Result<(), ExecutorFailure> {
    let mut answer = Map::new();
    answer.insert("driver".into(), json!({ "name": "mayfly", "version": env!("CARGO_PKG_VERSION") }));
    // Each job has a vm of its own.
    answer.insert("builds_dir_is_shared".into(), false.into());
    // An image that is not allowed is refused by the next stage, whose words are in the job's log.
    if let Ok(of_image) = settings.of_image(image) {
        for (key, value) in [("builds_dir", of_image.builds_dir), ("cache_dir", of_image.cache_dir)] {
            if let Some(value) = value {
                answer.insert(key.into(), value.into());
            }
        }
    }
    answer.insert("job_env".into(), json!({ ATTEMPT_VARIABLE: uuid::Uuid::now_v7() }));
    output::say(&Value::Object(answer).to_string());
    Ok(())
}
