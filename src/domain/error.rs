//! The error type that callers see, and the catalogue of its codes.
//!
//! Codes are stable, because clients depend on them: codes are added and never renamed. Everything public about an
//! error is in `Code` and `detail`; the private cause goes only to the log, once, where the error is handled.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($( $variant:ident $slug:literal $status:literal $retryable:literal $title:literal $remedy:literal )+) => {
        /// Why a request was refused or failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum Code {
            $( #[doc = $title] #[serde(rename = $slug)] $variant, )+
        }

        impl Code {
            pub const ALL: &'static [Code] = &[ $( Code::$variant, )+ ];

            /// The stable name, as in `code` and in `/problems/<code>`.
            pub fn slug(self) -> &'static str { match self { $( Code::$variant => $slug, )+ } }
            /// HTTP status when this code answers a request.
            pub fn status(self) -> u16 { match self { $( Code::$variant => $status, )+ } }
            /// Whether the same request may succeed later without being changed.
            pub fn retryable(self) -> bool { match self { $( Code::$variant => $retryable, )+ } }
            pub fn title(self) -> &'static str { match self { $( Code::$variant => $title, )+ } }
            /// What the reader can do about it.
            pub fn remedy(self) -> &'static str { match self { $( Code::$variant => $remedy, )+ } }
        }
    };
}

codes! {
    RequestInvalid "request.invalid" 400 false "The request is not well formed"
        "See `errors` for the fields and what each of them takes."
    RequestTooLarge "request.too_large" 413 false "The request body is too large"
        "Send a smaller body; `detail` shows the limit."
    RequestTimeout "request.timeout" 408 true "The request took too long"
        "Send the whole body without pauses, and try again."
    MediaTypeUnsupported "request.media_type_unsupported" 415 false "The body is not JSON"
        "Send `Content-Type: application/json`."
    MethodNotAllowed "request.method_not_allowed" 405 false "The resource does not take this method"
        "See `Allow` for the methods that it takes."
    NotFound "request.not_found" 404 false "There is no such resource"
        "See `/docs` for the paths of this service."
    AuthRequired "auth.required" 401 false "A valid token is required"
        "Send `Authorization: Bearer <token>`; `mayfly token create` makes one. On the service's machine, `mayfly token rotate-local` replaces the one in `admin.token`."
    AuthScopeMissing "auth.scope_missing" 403 false "The token does not allow this"
        "Use a token with the scope that `detail` names. A vm's own token allows that vm alone."
    AuthLimitExceeded "auth.limit_exceeded" 403 false "The token's limits do not allow this"
        "Ask for what `detail` allows, or use a token with other limits; `mayfly token show` shows the limits of a token."
    AuthLiveVms "auth.live_vms_exceeded" 403 true "The token has as many live vms as it may have"
        "Try again when one of these vms is deleted, or use a token with a larger `max_live_vms`."
    AuthVmForeign "auth.vm_foreign" 403 false "The vm was not created with this token"
        "A token with limits ends, and reads the logs of, its own vms only: use the token that `created_by` of the vm names, or one without limits."
    VmNotFound "vm.not_found" 404 false "There is no such vm"
        "List the vms with `GET /vms`. Records of deleted vms are kept for the retention period only."
    VmNotReady "vm.not_ready" 409 true "The vm has no guest that can be logged in to yet"
        "Try again when the vm is `running`; `mayfly vm wait` waits for that."
    VmEnded "vm.ended" 409 false "The vm has ended"
        "Its logs are kept; a vm that is created with `keep_on_failure` keeps its guest for debugging if it fails."
    GuestAccessUnsupported "vm.access_unsupported" 422 false "Mayfly has no login for the guest of this vm"
        "Register the template again with `ssh_key` or `ssh_password`, for an SSH server in its guests that accepts it."
    SessionFailed "session.failed" 500 false "The session with the guest has failed"
        "How its command ended is not known; `GET /vms/{id}` shows whether the vm has ended. Open another session if the command may be repeated."
    SessionIdle "session.idle" 408 false "Nothing was sent in the session for too long"
        "Open another one."
    VmNameInUse "vm.name_in_use" 422 false "A live vm has this name and was requested with other settings"
        "Use another name, or repeat the request exactly to get the existing vm."
    VmTransitionRefused "vm.transition_refused" 409 false "The vm cannot do this in its current state"
        "See the vm's state with `GET /vms/{id}`."
    AttemptOver "vm.attempt_over" 409 false "This attempt of the vm is over, or the vm is ending"
        "The guest must not start its job and must power off; the vm's record shows what became of it."
    StartTooEarly "vm.start_too_early" 503 true "The guest may not start its job yet"
        "Ask again in a moment: the guest is still being provisioned."
    IdempotencyMismatch "idempotency.mismatch" 422 false "This Idempotency-Key was used with another body"
        "Use a new key for a new request, or repeat the old body exactly."
    TemplateNotFound "template.not_found" 404 false "There is no such template"
        "List the templates with `GET /templates`; `mayfly template add` registers one."
    TemplateUnknown "template.unknown" 422 false "The request names a template that does not exist on this host"
        "List the templates with `GET /templates`; `mayfly template add` registers one."
    TemplateExists "template.exists" 409 false "Another template has this name"
        "Delete it first or choose another name."
    TemplateInUse "template.in_use" 409 true "Vms still use this template"
        "Wait until these vms are deleted, or end them."
    TemplateInvalid "template.invalid" 422 false "The files are not a usable template"
        "See `detail` for the file and what was expected of it."
    TemplateDamaged "template.damaged" 409 false "The template's files are damaged on disk"
        "Pull the image again, or register the template again: this replaces the damaged files. Running vms are not affected."
    TemplateNoPrevious "template.no_previous" 409 false "There is no previous version to roll back to"
        "`GET /templates/{name}` lists the previous versions that are still on this host; `PUT /templates/{name}` points the name at any version."
    LayoutGuest "layout.guest_unsupported" 422 false "This layout cannot hold this guest"
        "Choose another layout: tart holds every guest of a Mac, qcow2 and raw hold Linux disks."
    LayoutDisk "layout.disk_unsupported" 422 false "This layout cannot hold these disks"
        "Convert the disks to one raw image first; see `detail`."
    SourceRunning "source.running" 409 true "The VM to import is running"
        "Shut it down first: a disk that is being written to cannot become a template."
    SourceSuspended "source.suspended" 409 false "The VM to import is suspended"
        "Start it and shut it down, or set `discard_memory` to discard its saved memory."
    DestinationExists "destination.exists" 409 false "The export's destination exists already"
        "Choose another path, or remove what is there: nothing is overwritten."
    ImageRefused "image.refused" 422 false "The registry refused access to this image, or does not have it"
        "Check the image reference and the registry credentials; see `detail`."
    ImageUnavailable "image.unavailable" 503 true "The image could not be pulled"
        "Try again: content that was pulled and verified is kept. See `detail` for the registry's answer."
    PullNotFound "pull.not_found" 404 false "There is no such pull"
        "List the pulls with `GET /pulls`. Records of ended pulls are kept for the retention period only."
    CanaryFailed "template.canary_failed" 500 false "The new version did not pass its test"
        "The template's name was not moved. See the log of the vm that `detail` names: `GET /vms/{id}/logs`."
    WatchNotFound "watch.not_found" 404 false "The template follows no tag"
        "Make it follow one with `PUT /templates/{name}/watch`."
    ImagePushRefused "image.push_refused" 422 false "The registry refused the push"
        "Check the image reference and the permissions of the registry credentials; see `detail`."
    ImagePushFailed "image.push_failed" 503 true "The image could not be pushed"
        "Try again: what was uploaded is not uploaded again. See `detail` for the registry's answer."
    LoginNotFound "login.not_found" 404 false "There is no login for this registry"
        "List the logins with `GET /registries`."
    LoginRefused "login.refused" 422 false "The registry refused this login, so it was not stored"
        "Check user and password, and whether the registry expects passwords or tokens; `check: false` stores a login without testing it."
    RegistryUnavailable "registry.unavailable" 503 true "The registry could not be reached"
        "See `detail`; `check: false` stores a login without testing it."
    ObjectRefused "object.refused" 422 false "S3 refused access to this object, or does not have it"
        "Check the address and the AWS credentials; see `detail`."
    ObjectExists "object.exists" 409 false "An object with this key exists already"
        "Choose another key, or set `overwrite: true` to replace it."
    ObjectUnavailable "object.unavailable" 503 true "S3 could not be reached"
        "Try again: what was downloaded is kept. See `detail` for the answer."
    SizeImpossible "size.impossible" 422 false "This host can never run a vm of this size"
        "Ask for fewer cores or less memory; `GET /host` shows the limits."
    NetworkNotEnforceable "network.not_enforceable" 422 false "This host cannot enforce the network mode that was asked for"
        "Do what `detail` says, or ask for a more open mode; `GET /host` shows what each driver can enforce."
    DriverUnsupported "driver.unsupported" 422 false "This host cannot run this kind of guest"
        "See `GET /host` for the drivers that work here."
    QueueFull "queue.full" 429 true "The queue is full"
        "Try again after `Retry-After` seconds."
    SlotUnavailable "slot.unavailable" 409 true "No slot is free, and the request does not wait"
        "Try again after `Retry-After` seconds, or allow a wait with `queue_timeout_seconds`."
    SlotTaken "slot.taken" 503 true "Other guests took the slot before the vm was started"
        "Nothing to do: the vm waits for the next free slot and keeps its place in the queue."
    QueueTimeout "queue.timeout" 409 true "No slot became free before the queue deadline"
        "Allow a longer wait with `queue_timeout_seconds`, or add capacity."
    HostUnavailable "host.unavailable" 503 true "The host cannot run vms now"
        "See `GET /host` for the fault and its remedy."
    HostFull "host.full" 503 true "The host's disk is too full"
        "Free some space: `mayfly template prune` removes versions that nothing needs; `detail` shows what is kept and why."
    HostRefused "host.refused" 503 true "The hypervisor refused to start the guest"
        "See `GET /host`; other guests may use what this one needs."
    HostLimit "host.limit_exceeded" 503 true "The system refuses to run one more guest"
        "Guests that Mayfly did not start use the slots, or the system failed to release one: end those guests; if there are none, reboot the host."
    CloneFailed "clone.failed" 500 true "The template could not be cloned"
        "See the vm's events. Often the disk is full."
    CloneTimeout "clone.timeout" 500 true "Cloning took longer than its budget"
        "Check the host's disk; raise `clone_seconds` if the disk works but is slow."
    BootFailed "boot.failed" 500 true "The hypervisor did not start the guest"
        "See the vm's events and console log."
    GuestNotReady "guest.not_ready" 500 true "The guest did not answer within its boot budget"
        "Read the console log with `GET /vms/{id}/logs`; raise `boot_seconds` if the guest is only slow."
    GuestNotConfigured "guest.not_configured" 500 true "The guest was not provisioned within its budget"
        "Read the boot log with `GET /vms/{id}/logs?source=boot`."
    GuestCheckFailed "guest.check_failed" 500 true "The template's readiness check did not succeed in the guest"
        "See `detail` for the check and what the guest saw last. If the service is only slow, raise `ready.budget_seconds` of the template."
    GuestEndedEarly "guest.ended_early" 500 true "The guest ended before it was configured"
        "Read the console log with `GET /vms/{id}/logs`."
    GuestFailed "guest.failed" 500 true "The guest reported that it cannot go on"
        "See `detail` for the guest's words, and the boot log with `GET /vms/{id}/logs?source=boot`."
    GuestSilent "guest.silent" 500 true "The wrapper in the guest stopped reporting"
        "The job may have ended all processes of the guest or its network; raise `heartbeat_seconds` if the guest may be that slow."
    JobUnusable "job.unusable" 500 false "The job cannot be started in this guest"
        "See `detail`; change the script, or install what it needs in the template."
    GuestLoginRefused "guest.login_refused" 500 false "The guest refused the template's SSH credentials"
        "Register the template again with a key or user that its guest accepts."
    GuestHostKeyChanged "guest.host_key_changed" 500 false "The guest's SSH host key differs from the first one"
        "Another machine may answer at this guest's address; check the host's network."
    RunnerNotRegistered "runner.not_registered" 500 true "The runner never came online"
        "See the boot log; the runner may be too old, or its token may have expired."
    RunnerTooOld "runner.too_old" 500 false "The CI system no longer accepts runners of this version"
        "Put a newer runner into the template, or configure an archive under `[runners.\"<platform>\"]`."
    RunnerMissing "runner.missing" 500 false "There is no runner program in the guest"
        "Put the runner of the CI system into the template, name its directory with `runner_directory` of the source of jobs, or set an archive of GitHub's runner under `[runners.\"<platform>\"]`; the job log says more."
    RunnerUnavailable "runner.unavailable" 503 true "The runner program could not be downloaded"
        "See `detail`; the archive's address and checksum are in the configuration."
    RegistrationClosed "runner.registration_closed" 410 false "The runner's registration is no longer available"
        "The guest may request it until its job may start, and not afterwards."
    RunnerIdle "runner.idle" 500 true "No job came for the runner"
        "If there was no job, nothing is wrong; raise `idle_seconds` to wait longer."
    RunnerUnobserved "runner.unobserved" 500 false "The script never reported whether it has a job"
        "Let the script report it (see the guide *A job in its guest*), or raise `unobserved_seconds`."
    RunnerFailed "runner.failed" 500 true "The runner or the script that starts it failed"
        "See `detail` for its exit code, and the job log with `GET /vms/{id}/logs?source=job`."
    JobFailed "job.failed" 500 false "The job ended with an exit code other than 0"
        "Read the job log with `GET /vms/{id}/logs?source=job`."
    LifetimeSpent "budget.lifetime_spent" 500 false "The vm exceeded its lifetime budget"
        "The job hangs, or `lifetime_seconds` is too small for it."
    DrainSpent "budget.drain_spent" 500 false "The end was announced, but its proof did not come in time"
        "The wrapper in the guest was stopped or could not reach the guest API; see the vm's events."
    InstanceLost "instance.lost" 500 true "The instance disappeared while its runner was working"
        "See the host's log: a person or program ended the hypervisor, or it crashed."
    InstancePaused "instance.paused" 500 true "Another program on this host paused the guest"
        "Find the program that controls this guest's hypervisor, and keep it away from Mayfly's guests."
    GuestPanicked "guest.panicked" 500 true "The guest's kernel panicked"
        "Read the console log with `GET /vms/{id}/logs`."
    GuestWatchdogExpired "guest.watchdog" 500 true "The guest's watchdog expired"
        "The guest hung; read the console log with `GET /vms/{id}/logs`."
    HypervisorFailed "hypervisor.failed" 500 true "The hypervisor stopped the guest because of an internal error"
        "Read the hypervisor's messages with `GET /vms/{id}/logs?source=hypervisor`; look for a newer QEMU or kernel on the host."
    AcceleratorFailed "host.accelerator_failed" 503 true "The guest did not run under this host's accelerator"
        "Guests are emulated from now on; `GET /host` and `mayfly doctor` show why and what to do."
    WebhookNotConfigured "webhook.not_configured" 404 false "This service accepts no webhooks of this source"
        "Set `webhook_secret_files` of the source of jobs (for GitHub also `MAYFLY_GITHUB_WEBHOOK_SECRET`) to the secret that is configured at the CI system."
    WebhookUnproven "webhook.unproven" 401 false "The webhook's signature is missing or wrong"
        "Configure the same secret at the CI system and in this service; a proxy between them must not change the body."
    WebhookOutdated "webhook.outdated" 422 false "The webhook is too old"
        "Nothing to do if it was sent again by mistake. If it is new, set the clock of this host."
    GitHubNotConfigured "github.not_configured" 422 false "No GitHub credentials are configured"
        "Set `[github]` (see `mayfly github check`), or pass `jit_config` or `registration_token` with the request."
    GitHubRefused "github.refused" 422 false "GitHub refused this request"
        "See `detail` for its answer; `mayfly github check` shows what is missing."
    GitHubUnavailable "github.unavailable" 503 true "GitHub could not be reached"
        "Try again; `GET /metrics` shows the remaining rate limits. Vms that need GitHub wait meanwhile."
    GiteaNotConfigured "gitea.not_configured" 422 false "No source of jobs of the kind gitea has this name"
        "Set `[sources.<name>]` with `kind = \"gitea\"` in the configuration, or use a name that is there."
    GiteaRefused "gitea.refused" 422 false "Gitea refused this request"
        "See `detail` for its answer; `mayfly source check` shows what is missing."
    GiteaUnavailable "gitea.unavailable" 503 true "Gitea could not be reached"
        "Try again. Vms that need Gitea wait meanwhile."
    BuildkiteNotConfigured "buildkite.not_configured" 422 false "No source of jobs of the kind buildkite has this name"
        "Set `[sources.<name>]` with `kind = \"buildkite\"` in the configuration, or use a name that is there."
    BuildkiteRefused "buildkite.refused" 422 false "Buildkite refused this request"
        "See `detail` for its answer; `mayfly source check` shows what is missing."
    BuildkiteUnavailable "buildkite.unavailable" 503 true "Buildkite could not be reached"
        "Try again. Vms that need Buildkite wait meanwhile."
    PoolNotFound "pool.not_found" 404 false "There is no such pool"
        "List the pools with `GET /pools`; `mayfly pool set` makes one."
    PoolReadOnly "pool.read_only" 409 false "This pool is set in the configuration"
        "Change it in `mayfly.toml` and restart the service, or choose another name."
    TokenNotFound "token.not_found" 404 false "There is no such token"
        "List the tokens with `GET /tokens`."
    TokenNameInUse "token.name_in_use" 409 false "Another token has this name"
        "Revoke it first or choose another name."
    StoreUnavailable "store.unavailable" 503 true "The database did not answer"
        "Check the service's log and the disk with its data directory."
    StoreDamaged "store.damaged" 503 true "The database was removed, replaced or damaged while the service was running"
        "Nothing is accepted until the database is repaired; running guests continue. Stop the service, put the right files or a backup in place (without old `-wal` and `-shm` files), and start it again; see `detail`."
    Overloaded "service.overloaded" 503 true "The service is handling as many requests as it allows"
        "Try again after `Retry-After` seconds."
    ShuttingDown "service.shutting_down" 503 true "The service is shutting down"
        "Try again in a moment; vms keep running."
    Internal "internal" 500 true "An internal error occurred"
        "Report it with the request id; the service's log has the cause."
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.slug())
    }
}

/// Something that went wrong in a vm's life, kept with its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Fault {
    pub code: Code,
    /// What went wrong, in one line, without secrets.
    pub detail: String,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// One field of a request that was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FieldError {
    /// JSON pointer into the body (RFC 6901), or `query:<name>`, `path:<name>`, `header:<name>`.
    pub pointer: String,
    pub detail: String,
}

/// An error that reaches a caller.
#[derive(Debug)]
pub struct Error {
    pub code: Code,
    pub detail: String,
    pub fields: Vec<FieldError>,
    /// Seconds after which the same request may succeed.
    pub retry_after: Option<u32>,
    /// For the log only.
    pub cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), fields: Vec::new(), retry_after: None, cause: None }
    }

    pub fn field(mut self, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        self.fields.push(FieldError { pointer: pointer.into(), detail: detail.into() });
        self
    }

    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    pub fn cause(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// An internal error: the caller gets the code, the log gets the cause.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(Code::Internal, "the cause is in the service's log").cause(cause)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|c| c as _)
    }
}
