//! Arguments for the readiness check of a template.

use clap::Args;
use serde_json::{Map, Value, json};

use super::super::text::parse_seconds;
use crate::domain::ready_check::ReadyCheck;

const CHECKS: &str = "ready_check";

#[derive(Args, Default)]
pub(super) struct Ready {
    /// Start a guest's runner only after a GET of this port and path in the guest was answered with a status from 200
    /// to 299
    #[arg(long, value_name = "PORT[/PATH]", group = CHECKS, value_parser = http)]
    ready_http: Option<(u32, String)>,
    /// Text that this answer must contain
    #[arg(
        long,
        value_name = "TEXT",
        requires = "ready_http",
        conflicts_with_all = ["ready_tcp", "ready_exec", "ready_agent", "ready_preset"],
        allow_hyphen_values = true
    )]
    ready_expect: Option<String>,
    /// Start a guest's runner only after a process in the guest listens on this port
    #[arg(long, value_name = "PORT", group = CHECKS)]
    ready_tcp: Option<u32>,
    /// Start a guest's runner only after this shell command in the guest ended with exit code 0
    #[arg(long, value_name = "COMMAND", group = CHECKS)]
    ready_exec: Option<String>,
    /// Start a guest's runner only after the hypervisor's agent in the guest answers
    #[arg(long, group = CHECKS)]
    ready_agent: bool,
    /// Start a guest's runner only after this service in the guest answers
    #[arg(long, value_name = "SERVICE", group = CHECKS, value_parser = ["guest-daemon", "runner-agent"])]
    ready_preset: Option<String>,
    /// Pause between two of these checks, as seconds or a duration [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = parse_seconds, requires = CHECKS)]
    ready_interval: Option<u32>,
    /// How long the check is repeated, as seconds or a duration such as 2m [default: what configure_seconds allows]
    #[arg(long, value_name = "TIME", value_parser = parse_seconds, requires = CHECKS)]
    ready_budget: Option<u32>,
}

fn http(given: &str) -> Result<(u32, String), String> {
    let (port, path) = given.find('/').map_or((given, "/"), |at| given.split_at(at));
    let port = port.parse().map_err(|_| "expected PORT or PORT/PATH, such as 8080/health".to_owned())?;
    Ok((port, path.to_owned()))
}

impl Ready {
    /// In the API's form. `None`: no check was given.
    pub fn value(self) -> Option<Value> {
        let mut ready = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                ready.insert(name.to_owned(), value);
            }
        };
        let expect = self.ready_expect;
        put(
            "http",
            self.ready_http.map(|(port, path)| match expect {
                Some(expect) => json!({ "port": port, "path": path, "expect": expect }),
                None => json!({ "port": port, "path": path }),
            }),
        );
        put("tcp", self.ready_tcp.map(|port| json!({ "port": port })));
        put("exec", self.ready_exec.map(Value::from));
        put("agent", self.ready_agent.then_some(Value::from(true)));
        put("preset", self.ready_preset.map(Value::from));
        put("interval_seconds", self.ready_interval.map(Value::from));
        put("budget_seconds", self.ready_budget.map(Value::from));
        (!ready.is_empty()).then(|| ready.into())
    }
}

/// One line for people. A check that a newer service has is shown as it is.
pub(super) fn text(ready: Value) -> String {
    match serde_json::from_value::<ReadyCheck>(ready.clone()) {
        Ok(check) => check.summary(),
        Err(_) => ready.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        ready: Ready,
    }

    fn value(arguments: &[&str]) -> Result<Option<Value>, clap::error::ErrorKind> {
        let parsed = Command::try_parse_from(["x"].iter().chain(arguments));
        parsed.map(|command| command.ready.value()).map_err(|error| error.kind())
    }

    #[test]
    fn arguments_become_the_apis_form() {
        assert_eq!(value(&[]), Ok(None));
        assert_eq!(
            value(&[
                "--ready-http",
                "8080/health",
                "--ready-expect",
                "ok",
                "--ready-interval",
                "5",
                "--ready-budget",
                "1m"
            ]),
            Ok(Some(json!({
                "http": { "port": 8080, "path": "/health", "expect": "ok" }, "interval_seconds": 5, "budget_seconds": 60
            })))
        );
        assert_eq!(value(&["--ready-http", "80"]), Ok(Some(json!({ "http": { "port": 80, "path": "/" } }))));
        assert_eq!(value(&["--ready-tcp", "22"]), Ok(Some(json!({ "tcp": { "port": 22 } }))));
        assert_eq!(value(&["--ready-exec", "test -e /a"]), Ok(Some(json!({ "exec": "test -e /a" }))));
        assert_eq!(value(&["--ready-agent"]), Ok(Some(json!({ "agent": true }))));
        assert_eq!(value(&["--ready-preset", "guest-daemon"]), Ok(Some(json!({ "preset": "guest-daemon" }))));
    }

    #[test]
    fn only_one_check_can_be_given() {
        use clap::error::ErrorKind;
        assert_eq!(value(&["--ready-tcp", "22", "--ready-agent"]), Err(ErrorKind::ArgumentConflict));
        assert_eq!(value(&["--ready-budget", "5"]), Err(ErrorKind::MissingRequiredArgument));
        assert_eq!(value(&["--ready-expect", "a"]), Err(ErrorKind::MissingRequiredArgument));
        assert_eq!(value(&["--ready-expect", "a", "--ready-tcp", "1"]), Err(ErrorKind::ArgumentConflict));
        assert_eq!(value(&["--ready-http", "/health"]), Err(ErrorKind::ValueValidation));
    }

    #[test]
    fn a_check_is_shown_in_one_line() {
        assert_eq!(
            text(json!({ "tcp": { "port": 22 }, "budget_seconds": 9 })),
            "tcp on port 22, every 2 s, for at most 9 s"
        );
        assert_eq!(text(json!({ "grpc": 1 })), r#"{"grpc":1}"#);
    }
}
