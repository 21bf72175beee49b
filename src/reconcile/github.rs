//! What a vm's runner needs of GitHub.

use secrecy::SecretString;

use super::{
    Reconciler,
    steps::{Failure, FailureKind},
};
use crate::domain::{Code, Vm};

impl Reconciler {
    /// The just-in-time configuration of this attempt's runner, made when it is first asked for.
    pub(super) async fn registration(&self, vm: &Vm) -> Result<SecretString, Failure> {
        let detail = format!("the runner of {} cannot be registered: this service has no way to GitHub", vm.draft.name);
        Err(Failure::new(FailureKind::Permanent, Code::GitHubNotConfigured, detail))
    }
}
