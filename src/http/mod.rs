//! The HTTP API: routes, without decisions.
//!
//! ```text
//! serve ─▶ middleware (id, permit, time limit, problems) ─▶ router ─▶ auth ─▶ extract ─▶ handler ─▶ service
//! ```
//!
//! Two routers for two listeners: the admin API has all routes; the guest API has those that a guest may use for its
//! own vm, and accepts only that vm's token. Handlers read and write only through `service`.
//! Routes are listed once, below, and the OpenAPI document is generated from the same list, so the two cannot differ.

use std::{sync::Arc, time::Duration};

use axum::Router;
use tokio_util::sync::CancellationToken;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{domain::Code, service::Services};

mod auth;
mod bodies;
mod connections;
mod events;
mod extract;
mod fault;
mod guests;
mod health;
mod host;
mod jobs;
mod lanes;
mod logs;
mod middleware;
mod openapi;
mod pages;
mod pools;
mod problem;
mod pulls;
mod registries;
mod section;
mod sender;
mod serve;
mod sessions;
mod stalled;
mod surface;
mod templates;
mod time;
mod tokens;
mod vms;
mod webhooks;

pub use section::{GuestSection, ServerSection};
pub use serve::{serve_tcp, serve_unix};

/// Longest time for one request of a guest, including its body; the download of a runner is exempt.
const GUEST_REQUEST: Duration = Duration::from_secs(10);
/// Largest body that the guest API accepts: one report with 32 KiB of log in Base64 fits.
const GUEST_BODY_BYTES: usize = 64 * 1024;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Largest body that the admin API accepts.
    pub max_body_bytes: usize,
    /// From the last header to the answer; long polls and streams are exempt.
    pub request_timeout: Duration,
    /// Concurrent requests per listener. The same number may additionally wait in long polls and streams.
    pub max_concurrent: usize,
    /// Open connections per listener.
    pub max_connections: usize,
    /// Memory per listener for request bodies, in bytes.
    pub max_body_memory: usize,
}

impl Settings {
    /// A quarter of the requests may be receiving their body; the others are being answered.
    fn bodies(&self) -> bodies::BodyLimits {
        bodies::BodyLimits { unfinished: (self.max_concurrent / 4).max(1), bytes: self.max_body_memory }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::from(&ServerSection::default())
    }
}

impl From<&ServerSection> for Settings {
    fn from(section: &ServerSection) -> Self {
        Self {
            max_body_bytes: usize::try_from(section.max_body_bytes).unwrap_or(usize::MAX),
            request_timeout: Duration::from_secs(section.request_timeout_seconds.into()),
            max_concurrent: usize::try_from(section.max_concurrent_requests).unwrap_or(usize::MAX),
            max_connections: usize::try_from(section.max_connections).unwrap_or(usize::MAX),
            max_body_memory: usize::try_from(section.max_body_memory_bytes).unwrap_or(usize::MAX),
        }
    }
}

/// The dependencies of the handlers.
#[derive(Clone)]
pub struct Http {
    pub services: Services,
    pub settings: Settings,
    /// Renders the metrics as Prometheus text.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Ends long polls and streams; the listeners' own token ends the listeners.
    pub shutdown: CancellationToken,
}

fn admin_routes() -> OpenApiRouter<Arc<Http>> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(vms::create_vm, vms::list_vms))
        .routes(routes!(vms::get_vm, vms::end_vm))
        .routes(routes!(events::list_vm_events, guests::report_guest_event))
        .routes(routes!(guests::get_runner_registration))
        .routes(routes!(guests::get_runner_program))
        .routes(routes!(logs::get_vm_log))
        .routes(routes!(sessions::open_session))
        .routes(routes!(events::stream_events))
        .routes(routes!(templates::create::create_template, templates::list_templates))
        .routes(routes!(templates::get_template, templates::delete_template, templates::names::point_template))
        .routes(routes!(templates::names::roll_back_template))
        .routes(routes!(templates::prune::prune_templates))
        .routes(routes!(templates::verify::verify_template))
        .routes(routes!(templates::set::change_template))
        .routes(routes!(templates::names::pin_template, templates::names::unpin_template))
        .routes(routes!(events::list_template_events))
        .routes(routes!(templates::watch::get_watch, templates::watch::set_watch, templates::watch::remove_watch))
        .routes(routes!(pulls::list_pulls))
        .routes(routes!(pulls::get_pull, pulls::cancel_pull))
        .routes(routes!(templates::push::push_template))
        .routes(routes!(templates::import::import_template))
        .routes(routes!(templates::export::export_template))
        .routes(routes!(webhooks::take_webhook))
        .routes(routes!(webhooks::list_deliveries))
        .routes(routes!(jobs::list_jobs))
        .routes(routes!(pools::list_pools))
        .routes(routes!(pools::get_pool, pools::set_pool, pools::remove_pool))
        .routes(routes!(tokens::create_token, tokens::list_tokens))
        .routes(routes!(tokens::get_token, tokens::revoke_token))
        .routes(routes!(tokens::rotate_local_token))
        .routes(routes!(registries::log_in_to_registry, registries::log_out_of_registry))
        .routes(routes!(registries::list_registries))
        .routes(routes!(host::get_host))
        .routes(routes!(host::get_difference))
        .routes(routes!(health::get_health))
        .routes(routes!(health::get_readiness))
        .routes(routes!(health::get_metrics))
        .routes(routes!(pages::get_openapi))
        .routes(routes!(pages::list_problems))
        .routes(routes!(pages::get_problem))
        .routes(routes!(pages::get_status_page))
}

fn guest_routes() -> OpenApiRouter<Arc<Http>> {
    OpenApiRouter::new()
        .routes(routes!(vms::get_vm, vms::end_vm))
        .routes(routes!(guests::report_guest_event))
        .routes(routes!(guests::get_runner_registration))
        .routes(routes!(guests::get_runner_program))
        .routes(routes!(health::get_health))
}

/// All routes: for people, programs and the command line.
pub struct AdminRouters {
    /// For TCP.
    pub admin: Router,
    /// For the socket in the data directory.
    pub local: Router,
}

pub fn admin_routers(http: &Http) -> AdminRouters {
    // Once for both: the description of each operation for the OpenAPI document is built along with the routes.
    let (routes, _) = admin_routes().split_for_parts();
    let routes = routes.merge(pages::docs());
    let on = |surface| {
        let shares = lanes::Shares::of_admin(http.settings.max_concurrent);
        with_middleware(routes.clone(), http, middleware::Middleware::new(surface, &http.settings, shares))
    };
    AdminRouters { admin: on(surface::Surface::Admin), local: on(surface::Surface::Local) }
}

/// The routes for guests, each limited to the guest's own vm.
pub fn guest_router(http: &Http) -> Router {
    let (router, _) = guest_routes().split_for_parts();
    let settings = Settings {
        max_body_bytes: GUEST_BODY_BYTES.min(http.settings.max_body_bytes),
        request_timeout: GUEST_REQUEST.min(http.settings.request_timeout),
        ..http.settings.clone()
    };
    let limits = middleware::Middleware::new(surface::Surface::Guest, &settings, lanes::Shares::of_guests());
    with_middleware(router, http, limits.for_guests(http.services.guests.clone()))
}

fn with_middleware(router: Router<Arc<Http>>, http: &Http, limits: middleware::Middleware) -> Router {
    middleware::with_middleware(router.fallback(no_such_path), limits).with_state(Arc::new(http.clone()))
}

async fn no_such_path() -> problem::Problem {
    problem::Problem::new(Code::NotFound, "no resource has this path")
}

/// The OpenAPI document of the admin API.
pub fn openapi() -> utoipa::openapi::OpenApi {
    openapi::complete(admin_routes().into_openapi())
}

/// The document as it is committed and served: the same code gives the same bytes.
pub fn openapi_json() -> String {
    let mut json = serde_json::to_string_pretty(&openapi()).expect("a document of strings serialises");
    json.push('\n');
    json
}
