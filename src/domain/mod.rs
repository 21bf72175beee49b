//! Plain types and the rules that hold between them: no I/O, no async, no clock.
//!
//! Everything above imports from here; nothing here imports from above. A function that needs the time is given it.

pub mod basis;
pub mod budgets;
pub mod end;
pub mod error;
pub mod event;
pub mod github;
pub mod host;
pub mod ids;
pub mod job;
pub mod lifecycle;
pub mod mac;
pub mod name;
pub mod new_template;
pub mod pool;
pub mod pull;
pub mod runner;
pub mod runner_secrets;
pub mod scope;
pub mod tart_config;
pub mod template;
pub mod template_event;
pub mod time;
pub mod token;
pub mod version;
pub mod vm;
pub mod vm_request;

pub use basis::{Asked, Basis, Spec};
pub use budgets::{Budget, Budgets, BudgetsPatch};
pub use end::{EndSignal, Outcome, OutcomeResult};
pub use error::{Code, Error, Fault, Result};
pub use event::{Announcer, EndProof, Event, EventKind};
pub use ids::{InstanceName, PullId, TokenId, VmId};
pub use lifecycle::{State, Verdict};
pub use pool::Pool;
pub use runner::RunnerStatus;
pub use scope::Scope;
pub use template::{Arch, GuestOs, Handover, Template};
pub use template_event::TemplateEvent;
pub use vm::{QueueReason, Vm};
pub use vm_request::{RunnerRequest, VmRequest};
