//! The verbs of the API: small structs, each with the parts that it needs. A verb that changes a vm, a pull or a pool
//! validates, writes to the ledger in one transaction, and returns. The loops of `reconcile` read the ledger and do the
//! rest; neither calls the other. (A DELETE of a pull may need more than one transaction.) Imports, exports, pushes and
//! the verification of templates are carried out within the request. Reads are verbs, too.
//!
//! Vms and pulls are created by `admission`, which the loops also use.

use std::{path::PathBuf, sync::Arc};

pub use crate::admission::{PullAdmission, VmAdmission};
use crate::{admission, domain::Pool, parts::Parts, templates::layouts::Tools};

pub mod events;
pub mod guests;
pub mod hosts;
pub mod jobs;
pub mod local_admin;
pub mod metrics;
mod objects;
pub mod pools;
pub mod pulls;
pub mod registries;
pub mod sessions;
mod template_usage;
pub mod templates;
pub mod tokens;
pub mod transfers;
pub mod vms;
pub mod watches;
pub mod webhooks;

use self::{
    events::Events,
    guests::Guests,
    hosts::Hosts,
    jobs::Jobs,
    local_admin::LocalAdmin,
    metrics::Metrics,
    pools::Pools,
    pulls::Pulls,
    registries::Registries,
    sessions::Sessions,
    templates::Templates,
    tokens::Tokens,
    transfers::Transfers,
    vms::Vms,
    watches::Watches,
    webhooks::{WebhookSecrets, Webhooks},
};
pub use template_usage::StoredTemplateUsage;

/// Limits and defaults of the verbs.
#[derive(Clone, Default)]
pub struct Settings {
    pub vms: admission::vms::Settings,
    pub pulls: admission::pulls::Settings,
    /// Pools of the configuration, validated, with unique names.
    pub pools: Vec<Pool>,
    /// Secrets of GitHub's webhook. Several, so that one can be replaced without a gap.
    pub webhook_secrets: WebhookSecrets,
    /// Programs that template conversions need.
    pub tools: Tools,
}

/// All verbs. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    pub admission: VmAdmission,
    pub pull_admission: PullAdmission,
    pub vms: Vms,
    pub guests: Guests,
    pub sessions: Sessions,
    pub events: Events,
    pub templates: Templates,
    pub transfers: Transfers,
    pub pulls: Pulls,
    pub watches: Watches,
    pub jobs: Jobs,
    pub pools: Pools,
    pub tokens: Tokens,
    pub local_admin: LocalAdmin,
    pub webhooks: Webhooks,
    pub registries: Registries,
    pub hosts: Hosts,
    pub metrics: Metrics,
}

impl Services {
    /// `admin_token`: the file that holds the admin token of this machine.
    pub fn new(parts: &Parts, settings: Settings, admin_token: PathBuf) -> Self {
        let configured: Arc<[Pool]> = settings.pools.into();
        let pools = pools::Settings {
            configured: configured.clone(),
            queue_timeout_seconds: settings.vms.queue_timeout_seconds,
            budgets: settings.vms.budgets.clone(),
        };
        let templates = Templates::new(parts, settings.vms.budgets.clone());
        let tokens = Tokens::new(parts);
        Self {
            vms: Vms::new(parts),
            guests: Guests::new(parts),
            sessions: Sessions::new(parts),
            events: Events::new(parts),
            transfers: Transfers::new(parts, templates.clone(), settings.tools),
            templates,
            pulls: Pulls::new(parts),
            watches: Watches::new(parts),
            jobs: Jobs::new(parts.reader.clone()),
            pools: Pools::new(parts, pools),
            local_admin: LocalAdmin::new(tokens.clone(), admin_token),
            tokens,
            webhooks: Webhooks::new(parts, settings.webhook_secrets),
            registries: Registries::new(parts.logins.clone()),
            hosts: Hosts::new(parts),
            metrics: Metrics::new(parts, configured),
            admission: VmAdmission::new(parts, settings.vms),
            pull_admission: PullAdmission::new(parts, settings.pulls),
        }
    }
}
