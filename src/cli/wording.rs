//! Translates the API's words into those of the command line: the remedies of error codes and the names of fields.

/// What the API says, and what a user of the command line can do instead. The first that fits is used, so that longer texts
/// come before their beginnings.
const COMMANDS: &[(&str, &str)] = &[
    ("See `errors` for the fields and what each of them takes.", ""),
    ("`GET /vms/{id}/logs?source=boot`", "`mayfly vm logs --source boot VM`"),
    ("`GET /vms/{id}/logs?source=hypervisor`", "`mayfly vm logs --source hypervisor VM`"),
    ("`GET /vms/{id}/logs?source=job`", "`mayfly vm logs VM`"),
    ("`GET /vms/{id}/logs`", "`mayfly vm logs --source console VM`"),
    ("`GET /vms/{id}`", "`mayfly vm show VM`"),
    ("`GET /vms`", "`mayfly vm list`"),
    ("`GET /templates/{name}`", "`mayfly template show NAME`"),
    ("`PUT /templates/{name}/watch`", "`mayfly template watch NAME`"),
    ("`PUT /templates/{name}`", "`mayfly template point NAME`"),
    ("`GET /templates`", "`mayfly template list`"),
    ("`GET /pulls`", "`mayfly template pulls`"),
    ("`GET /host`", "`mayfly host`"),
    ("`GET /pools`", "`mayfly pool list`"),
    ("`GET /tokens`", "`mayfly token list`"),
    ("`GET /registries`", "`mayfly template logins`"),
    ("`GET /metrics`", "the service's page `/metrics`"),
    (
        "Send `Authorization: Bearer <token>`; `mayfly token create` makes one.",
        "Give a valid token; `mayfly token create` makes one.",
    ),
    ("Send `Content-Type: application/json`.", "Use a `mayfly` of the same version as the service."),
    ("See `Allow` for the methods that it takes.", "Use a `mayfly` of the same version as the service."),
    ("See `/docs` for the paths of this service.", "Use a `mayfly` of the same version as the service."),
    ("Send the whole body without pauses, and try again.", "Try again."),
    ("after `Retry-After` seconds", "in a moment"),
    ("`created_by` of the vm names", "`mayfly vm show VM` names"),
    ("a larger `max_live_vms`", "a larger `--max-live-vms`"),
    ("`queue_timeout_seconds`", "`--queue-timeout`"),
    (
        "pass `jit_config` or `registration_token` with the request",
        "use `--jit-config-file` or `--registration-token-file`",
    ),
    ("set `discard_memory`", "use `--discard-memory`"),
    ("set `overwrite: true`", "use `--overwrite`"),
    ("`check: false`", "`--no-check`"),
    ("`clone_seconds`", "`--budget clone_seconds=…`"),
    ("`boot_seconds`", "`--budget boot_seconds=…`"),
    ("`idle_seconds`", "`--budget idle_seconds=…`"),
    ("`lifetime_seconds`", "`--budget lifetime_seconds=…`"),
    // The detail is the message above the remedy.
    ("; see `detail`", ""),
    ("See `detail` for its answer; ", ""),
    (" See `detail` for the registry's answer.", ""),
    (" See `detail` for the answer.", ""),
    ("See `detail` for the file and what was expected of it.", ""),
    ("See `detail`; `", "`"),
    ("`detail`", "the message"),
];

/// The remedy of an error code for users of the command line. Empty if it says nothing new to them.
pub(super) fn remedy(remedy: &str) -> String {
    let text = COMMANDS.iter().fold(remedy.to_owned(), |text, (api, command)| text.replace(api, command));
    let text = text.trim();
    match text.chars().next() {
        Some(first) => first.to_uppercase().chain(text.chars().skip(1)).collect(),
        None => String::new(),
    }
}

/// The option that a field of a request comes from: `/queue_timeout_seconds` is `--queue-timeout`. Other fields, such as those of
/// a file that the user wrote, keep their names.
pub(super) fn field(pointer: &str) -> String {
    const OPTIONS: &[(&str, &str)] = &[
        ("/queue_timeout_seconds", "--queue-timeout"),
        ("/runner/command", "--command"),
        ("/runner/script", "--script-file"),
        ("/runner/env", "--env-file"),
        ("/runner/scope", "--github-scope"),
        ("/runner/labels", "--runner-label"),
        ("/runner/group", "--group"),
        ("/runner/jit_config", "--jit-config-file"),
        ("/runner/registration_token", "--registration-token-file"),
        ("/labels", "--label"),
        ("/budgets", "--budget"),
        ("query:created_since", "--since"),
        ("header:idempotency-key", "--idempotency-key"),
    ];
    let known = OPTIONS
        .iter()
        .find(|(api, _)| pointer.strip_prefix(api).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    if let Some((api, option)) = known {
        let rest = pointer[api.len()..].trim_start_matches('/');
        return if rest.is_empty() { (*option).to_owned() } else { format!("{option} ({rest})") };
    }
    let name = pointer.strip_prefix('/').or_else(|| pointer.strip_prefix("query:")).unwrap_or(pointer);
    let is_plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    if is_plain { format!("--{}", name.replace('_', "-")) } else { pointer.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::{field, remedy};
    use crate::domain::Code;

    #[test]
    fn no_remedy_speaks_of_requests() {
        for code in Code::ALL {
            let shown = remedy(code.remedy());
            for word in [
                "GET /",
                "PUT /",
                "POST /",
                "DELETE /",
                "`errors`",
                "`detail`",
                "Retry-After",
                "`Allow`",
                "Content-Type",
            ] {
                assert!(!shown.contains(word), "{code}: {shown}");
            }
            assert!(!shown.contains("  ") && !shown.starts_with([';', ',', '.']), "{code}: {shown:?}");
        }
        assert_eq!(remedy(Code::HostUnavailable.remedy()), "See `mayfly host` for the fault and its remedy.");
        assert_eq!(remedy(Code::RequestInvalid.remedy()), "");
    }

    #[test]
    fn fields_are_named_like_their_options() {
        for (pointer, option) in [
            ("/queue_timeout_seconds", "--queue-timeout"),
            ("/memory_mib", "--memory-mib"),
            ("/runner/env/A", "--env-file (A)"),
            ("/runner/environment", "/runner/environment"),
            ("/labels/team", "--label (team)"),
            ("query:label", "--label"),
            ("/files/0/path", "/files/0/path"),
            ("", ""),
        ] {
            assert_eq!(field(pointer), option);
        }
    }
}
