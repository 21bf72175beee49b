//! `DeleteInstance`: ends a vm. The answer is given once it is certain that the vm ends, and not when it has ended.

use tokio_util::sync::CancellationToken;

use super::{
    call_time::CallTime,
    failure::ShoesFailure,
    messages::{DeleteInstanceRequest, DeleteInstanceResponse},
    service::{Persistence, ShoesService},
};
use crate::domain::State;

pub(super) async fn run(
    request: &DeleteInstanceRequest,
    time: CallTime,
    service: &ShoesService,
) -> Result<DeleteInstanceResponse, ShoesFailure> {
    let id = &request.cloud_id;
    let absent = || ShoesFailure::not_found(format!("there is no vm {id:.60?} of myshoes"));
    // Anything else was never given out by this plugin.
    if uuid::Uuid::try_parse(id).is_err() {
        return Err(absent());
    }
    let never = CancellationToken::new();
    let persistence = Persistence { until: time.answer_by(), cancelled: &never };
    let vm = service.get(id, persistence).await?.filter(|vm| !vm.life.is_in(State::Deleted)).ok_or_else(absent)?;
    // myshoes deletes when GitHub has no runner for it any more, so there is nothing to wait for. Should the runner have a
    // job nevertheless, the vm ends when the job does.
    service.delete(&vm.id, !vm.is_busy(), persistence).await?;
    Ok(DeleteInstanceResponse {})
}
