//! The parts of the OpenAPI document beyond the routes: title, tags, security, and the errors of each operation.

use std::collections::{BTreeMap, BTreeSet};

use utoipa::{
    OpenApi,
    openapi::{
        ContentBuilder, OpenApi as Document, PathItem, Ref, RefOr, ResponseBuilder,
        example::{Example, ExampleBuilder},
        header::HeaderBuilder,
        path::{Operation, Parameter, ParameterIn},
        schema::{ObjectBuilder, Type},
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::problem::{self, Body9457};
use crate::{domain::Code, service::vms::LogSource};

pub mod examples;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Mayfly",
        description = "Gives every CI job a fresh virtual machine and deletes it afterwards.\n\nErrors are problem documents (RFC 9457) with a stable `code`; each code has a page under `/problems`. Every answer carries `x-request-id`: the caller's own if it sent a valid one, otherwise a new one.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/", description = "This service")),
    tags(
        (name = "vms", description = "Creating, watching and ending vms"),
        (name = "guest", description = "Requests of a guest about its own vm"),
        (name = "events", description = "The events of vms and templates"),
        (name = "pools", description = "Which jobs of CI systems get a vm"),
        (name = "jobs", description = "Jobs of CI systems, and their webhooks"),
        (name = "templates", description = "Bootable images to clone vms from"),
        (name = "registries", description = "Registry credentials"),
        (name = "host", description = "Limits, drivers, and running guests"),
        (name = "tokens", description = "API tokens"),
        (name = "health", description = "Probes and metrics"),
        (name = "pages", description = "Pages for people"),
    ),
    components(schemas(Body9457, LogSource, super::events::TemplateEventView, super::pulls::PullProgressEvent, super::sessions::SessionInputMessage, super::sessions::SessionOutputMessage)),
)]
struct Base;

/// The document before its routes.
pub fn base() -> Document {
    Base::openapi()
}

/// The errors of an operation, in addition to those of every operation.
fn own_errors(operation: &str) -> &'static [Code] {
    use Code as C;
    match operation {
        "create_vm" => &[
            C::TemplateUnknown,
            C::TemplateDamaged,
            C::TemplateInUse,
            C::VmNameInUse,
            C::IdempotencyMismatch,
            C::SizeImpossible,
            C::NetworkNotEnforceable,
            C::SlotUnavailable,
            C::QueueFull,
            C::GitHubNotConfigured,
            C::GiteaNotConfigured,
            C::BuildkiteNotConfigured,
            C::AuthLimitExceeded,
            C::AuthLiveVms,
        ],
        "get_vm" | "list_vm_events" => &[C::VmNotFound],
        "end_vm" | "get_vm_log" => &[C::VmNotFound, C::AuthVmForeign],
        "open_session" => &[
            C::RequestInvalid,
            C::VmNotFound,
            C::AuthVmForeign,
            C::VmNotReady,
            C::VmEnded,
            C::GuestAccessUnsupported,
            C::GuestNotReady,
            C::GuestLoginRefused,
            C::GuestHostKeyChanged,
            C::HostUnavailable,
        ],
        "report_guest_event" => &[C::VmNotFound, C::VmTransitionRefused, C::HostFull],
        "create_template" => &[
            C::TemplateExists,
            C::TemplateInvalid,
            C::SourceRunning,
            C::SourceSuspended,
            C::DriverUnsupported,
            C::NetworkNotEnforceable,
            C::HostFull,
            C::ImageRefused,
        ],
        "get_pull" | "cancel_pull" => &[C::PullNotFound],
        "set_watch" => &[C::TemplateExists, C::TemplateInvalid, C::ImageRefused],
        "get_watch" | "remove_watch" => &[C::WatchNotFound],
        "get_template" | "list_template_events" => &[C::TemplateNotFound],
        "push_template" => {
            &[C::TemplateNotFound, C::TemplateInvalid, C::TemplateInUse, C::ImagePushRefused, C::ImagePushFailed]
        }
        "import_template" => &[
            C::ObjectRefused,
            C::ObjectUnavailable,
            C::TemplateExists,
            C::TemplateInvalid,
            C::DriverUnsupported,
            C::NetworkNotEnforceable,
            C::LayoutGuest,
            C::LayoutDisk,
            C::SourceRunning,
            C::SourceSuspended,
            C::HostUnavailable,
            C::HostFull,
        ],
        "export_template" => &[
            C::ObjectRefused,
            C::ObjectExists,
            C::ObjectUnavailable,
            C::TemplateNotFound,
            C::TemplateInvalid,
            C::LayoutGuest,
            C::LayoutDisk,
            C::DestinationExists,
            C::HostUnavailable,
        ],
        "delete_template" => &[C::TemplateNotFound, C::TemplateInUse],
        "point_template" => &[C::TemplateUnknown, C::TemplateInvalid, C::TemplateDamaged],
        "roll_back_template" => &[C::TemplateNotFound, C::TemplateNoPrevious],
        "verify_template" => &[C::TemplateNotFound, C::TemplateInUse],
        "change_template" => &[C::TemplateNotFound, C::TemplateInvalid, C::DriverUnsupported, C::NetworkNotEnforceable],
        "pin_template" | "unpin_template" => &[C::TemplateNotFound, C::TemplateInvalid],
        "log_in_to_registry" => &[C::LoginRefused, C::RegistryUnavailable],
        "log_out_of_registry" => &[C::LoginNotFound, C::RequestInvalid],
        "get_pool" => &[C::PoolNotFound],
        "set_pool" => &[
            C::PoolReadOnly,
            C::TemplateUnknown,
            C::TemplateDamaged,
            C::SizeImpossible,
            C::NetworkNotEnforceable,
            C::GitHubNotConfigured,
            C::GiteaNotConfigured,
            C::BuildkiteNotConfigured,
        ],
        "remove_pool" => &[C::PoolNotFound, C::PoolReadOnly],
        "take_webhook" => &[C::WebhookNotConfigured, C::WebhookUnproven, C::WebhookOutdated],
        "get_runner_program" => &[C::VmNotFound, C::RunnerUnavailable],
        "create_token" => &[C::TokenNameInUse],
        "get_token" | "revoke_token" => &[C::TokenNotFound],
        "get_readiness" => &[C::HostUnavailable, C::StoreUnavailable, C::StoreDamaged, C::ShuttingDown],
        "get_problem" => &[C::NotFound],
        _ => &[],
    }
}

fn errors(operation: &Operation) -> Vec<Code> {
    let id = operation.operation_id.as_deref().unwrap_or_default();
    let mut codes = own_errors(id).to_vec();
    let guarded = operation.security.as_ref().is_some_and(|s| s.iter().any(|s| *s != Default::default()));
    if guarded {
        codes.extend([Code::AuthRequired, Code::AuthScopeMissing, Code::StoreUnavailable, Code::StoreDamaged]);
    }
    let in_query = |p: &RefOr<Parameter>| matches!(p, RefOr::T(p) if matches!(p.parameter_in, ParameterIn::Query | ParameterIn::Header));
    if operation.request_body.is_some() {
        codes.extend([Code::RequestInvalid, Code::RequestTooLarge, Code::MediaTypeUnsupported]);
    } else if operation.parameters.iter().flatten().any(in_query) {
        codes.push(Code::RequestInvalid);
    }
    if id != "get_health" {
        codes.extend([Code::RequestTimeout, Code::Overloaded]);
    }
    codes.push(Code::Internal);
    codes
}

/// Adds the parts that follow from the routes: errors from the catalogue, security schemes.
pub fn complete(mut document: Document) -> Document {
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let mut shared = BTreeMap::new();
    let mut used = BTreeSet::new();
    for operation in document.paths.paths.values_mut().flat_map(operations) {
        let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
        for code in errors(operation) {
            by_status.entry(code.status()).or_default().push(code);
        }
        for (status, codes) in by_status {
            // Operations with the same errors share one response.
            let name = codes.iter().map(|code| code.slug()).collect::<Vec<_>>().join("_or_");
            operation.responses.responses.insert(status.to_string(), Ref::from_response_name(&name).into());
            used.extend(codes.iter().copied());
            shared.entry(name).or_insert_with(|| RefOr::T(response(status, &codes).build()));
        }
    }
    let components = document.components.get_or_insert_default();
    // The catalogue is generated by a macro, so utoipa does not see the slugs.
    let code = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(
            "Why a request was refused or failed. Stable: codes are added and never renamed. See `/problems`.",
        ))
        .enum_values(Some(Code::ALL.iter().map(|code| code.slug())));
    components.schemas.insert("Code".to_owned(), code.into());
    components.responses.extend(shared);
    for code in used {
        let example = ExampleBuilder::new().summary(code.title()).value(Some(examples::problem(code))).build();
        components.examples.insert(code.slug().to_owned(), RefOr::T(example));
    }
    let bearer = |description: &str| {
        SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(description)).build())
    };
    components.add_security_scheme(
        "token",
        bearer("An API token, with the scope `admin`, `create` or `read`; each includes the ones after it. `mayfly token create` makes one."),
    );
    components.add_security_scheme(
        "vm_token",
        bearer("A vm's own token, for the guest: allows reading, reporting and ending that vm, and nothing else."),
    );
    document
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch]
        .into_iter()
        .filter_map(Option::as_mut)
}

fn response(status: u16, codes: &[Code]) -> ResponseBuilder {
    let titles: Vec<_> = codes.iter().map(|code| format!("`{code}`: {}", code.title())).collect();
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .examples_from_iter(
            codes
                .iter()
                .map(|code| (code.slug(), RefOr::<Example>::Ref(Ref::new(format!("#/components/examples/{code}"))))),
        )
        .build();
    let mut response = ResponseBuilder::new().description(titles.join("; ")).content(problem::CONTENT_TYPE, content);
    let text = |description: &str, kind: Type| {
        HeaderBuilder::new().schema(Some(ObjectBuilder::new().schema_type(kind))).description(Some(description)).build()
    };
    if matches!(status, 429 | 503) {
        response = response.header("Retry-After", text("Seconds after which to try again", Type::Integer));
    }
    if status == 401 {
        response = response.header("WWW-Authenticate", text("`Bearer`", Type::String));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_an_id_and_names_its_errors() {
        let mut document = super::super::openapi();
        let mut ids = Vec::new();
        for operation in document.paths.paths.values_mut().flat_map(operations) {
            let id = operation.operation_id.clone().expect("every operation has an id");
            assert!(operation.responses.responses.contains_key("500"), "{id}");
            assert!(operation.security.is_some(), "{id} does not declare its tokens");
            assert!(operation.summary.is_some(), "{id} has no summary");
            ids.push(id);
        }
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count, "operation ids are unique");
    }
}
