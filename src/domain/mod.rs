//! Plain types and their rules: no I/O, no async, no clock.
//!
//! All other layers import from here; nothing here imports from them. Functions that need the time take it as an
//! argument.

pub mod budgets;
pub mod capacity;
mod deadlines;
pub mod difference;
pub mod end;
pub mod endpoint;
pub mod error;
pub mod event;
pub mod gateway;
pub mod github;
pub mod guest;
pub mod host;
pub mod ids;
pub mod job;
pub mod job_env;
pub mod lifecycle;
pub mod mac;
pub mod machine_identity;
pub mod name;
pub mod nat64;
pub mod network;
pub mod network_support;
pub mod new_template;
pub mod orphaned_runner;
pub mod pool;
pub mod proxy;
pub mod pull;
pub mod queue;
pub mod runner;
pub mod runner_secrets;
pub mod scope;
pub mod state;
pub mod tart_config;
pub mod template;
pub mod template_event;
pub mod template_settings;
pub mod time;
pub mod token;
pub mod token_limits;
pub mod version;
pub mod vm;
pub mod vm_request;
pub mod vm_spec;

pub use budgets::{Budget, Budgets, BudgetsPatch};
pub use end::{EndSignal, Outcome, OutcomeResult};
pub use error::{Code, Error, Fault, Result};
pub use event::{Announcer, EndProof, Event, EventKind};
pub use guest::{GuestRole, ResultSource};
pub use ids::{InstanceName, PullId, TokenId, VmId};
pub use lifecycle::{Refusal, Verdict};
pub use network::{AllowedDestination, NetworkMode, NetworkPolicy};
pub use network_support::NetworkSupport;
pub use pool::Pool;
pub use queue::QueueReason;
pub use runner::RunnerStatus;
pub use scope::Scope;
pub use state::State;
pub use template::{Arch, GuestOs, Handover, Template};
pub use template_event::TemplateEvent;
pub use vm::Vm;
pub use vm_request::{RunnerRequest, VmRequest};
pub use vm_spec::{ResolvedSpec, SizeRequest, TemplateSource};
