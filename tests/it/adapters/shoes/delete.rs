//! A deletion is answered as soon as it is certain, and touches nothing but vms of myshoes.

use mayfly::domain::{Event, runner::RunnerFact};
use tonic::Code;

use super::{Shoes, request};

#[tokio::test]
async fn a_vm_is_ended_once_and_the_rest_is_not_found() {
    let shoes = Shoes::new().await;
    let id = shoes.added(request("myshoes-a", "one")).await.cloud_id;
    shoes.delete(&id).await.unwrap();
    let vms = shoes.vms().await;
    assert_eq!(vms[0]["state"], "stopping", "{vms:#?}");
    // Slow, and certain.
    shoes.delete(&id).await.unwrap();
    shoes.api.finish(id.parse().unwrap()).await;
    for id in [id.as_str(), "0191a1b2-0000-7000-8000-000000000000", "", "../templates", "i-0abc"] {
        assert_eq!(shoes.delete(id).await.unwrap_err().code(), Code::NotFound, "{id}");
    }
}

#[tokio::test]
async fn vms_of_others_are_left_alone() {
    let shoes = Shoes::new().await;
    let (id, _) = shoes.api.running("not-of-myshoes").await;
    assert_eq!(shoes.delete(&id.to_string()).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(shoes.vms().await[0]["state"], "running");
}

/// The host deletes what GitHub no longer knows. Should the runner have a job nevertheless, that is not cut off.
#[tokio::test]
async fn a_runner_with_a_job_finishes_it() {
    let shoes = Shoes::new().await;
    let id = shoes.added(request("myshoes-a", "one")).await.cloud_id;
    shoes.api.apply(id.parse().unwrap(), Event::RunnerChanged { fact: RunnerFact::JobStarted }).await;
    shoes.delete(&id).await.unwrap();
    assert_eq!(shoes.vms().await[0]["state"], "draining");
    shoes.delete(&id).await.unwrap();
    assert_eq!(shoes.vms().await[0]["state"], "draining");
}
