//! Converts a stored pull to a request of the puller.

use super::PullRequest;
use crate::{
    domain::{Code, Error, Result, pull::PullSpec},
    registry::oci::{Reference, reference::ReferenceError},
};

impl PullRequest {
    /// `pinned`: the digest to which the image was resolved before.
    pub fn of_spec(spec: &PullSpec, pinned: Option<&str>) -> Result<PullRequest> {
        let image: Reference = spec.image.parse().map_err(|error: ReferenceError| {
            Error::new(Code::RequestInvalid, "the request is not acceptable").field("/image", error.to_string())
        })?;
        let image = match pinned.and_then(|digest| digest.parse().ok()) {
            Some(digest) => image.pinned(digest),
            None => image,
        };
        Ok(PullRequest {
            cpus: spec.cpus,
            memory_mib: spec.memory_mib,
            handover: spec.handover,
            user: spec.user.clone(),
            network: spec.network,
            ready: spec.ready.clone(),
            ssh_key: spec.ssh_key.clone(),
            ssh_password: spec.ssh_password.clone(),
            budgets: spec.budgets.clone(),
            background: spec.background,
            ..PullRequest::new(image, spec.name.clone())
        })
    }
}
