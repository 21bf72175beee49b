//! The readiness check of a template: what has to hold in a guest before its runner is started.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::{Code, Error, Result};

const USUAL_INTERVAL: u32 = 2;
const LONGEST_INTERVAL: u32 = 60;
const LONGEST_PATH: usize = 256;
const LONGEST_EXPECTED: usize = 200;
const LONGEST_COMMAND: usize = 4096;
/// The time of the budget `configure_seconds` that is left for the rest of the provisioning.
const RESERVE: u32 = 15;
/// Longest version of a service, in characters: the guest chooses it.
pub const LONGEST_VERSION: usize = 100;
/// Largest number of a runner's state.
pub const LARGEST_STATE: u32 = 9999;

/// What has to hold in a guest before its runner is started; set exactly one of `http`, `tcp`, `exec`, `agent` and
/// `preset`. All checks except `agent` run inside the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadyCheck {
    /// A GET request to a service in the guest is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// A process in the guest listens on a port. This proves little: many services listen before they can serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
    /// A command for `sh` ends with exit code 0, as the user that provisions the guest. Stored unencrypted and shown,
    /// so it must not contain secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 4096)]
    pub exec: Option<String>,
    /// The hypervisor's agent in the guest answers; only with `handover: agent`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub agent: bool,
    /// A service whose port and paths are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<ReadyPreset>,
    /// Pause between two checks; default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 60)]
    pub interval_seconds: Option<u32>,
    /// How long the check is repeated; default: as long as the budget `configure_seconds` allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub budget_seconds: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpCheck {
    /// On 127.0.0.1 of the guest.
    #[schema(minimum = 1, maximum = 65535)]
    pub port: u32,
    /// The answer must have a status from 200 to 299.
    #[serde(default = "HttpCheck::usual_path")]
    #[schema(default = "/", max_length = 256)]
    pub path: String,
    /// Text that the answer must contain, within its first 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 200)]
    pub expect: Option<String>,
}

impl HttpCheck {
    fn usual_path() -> String {
        "/".to_owned()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpCheck {
    #[schema(minimum = 1, maximum = 65535)]
    pub port: u32,
}

/// A service in the guest that is checked over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReadyPreset {
    /// Port 2280: `/health` answers; the version is read from `/version`.
    GuestDaemon,
    /// Port 8080: `/health` answers; the runner's state is read from `/status`.
    RunnerAgent,
}

/// The kind of a check; also the label of its metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, strum::IntoStaticStr)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum ReadyKind {
    Http,
    Tcp,
    Exec,
    Agent,
    GuestDaemon,
    RunnerAgent,
}

impl ReadyKind {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// One way to check a guest from inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestProbe<'a> {
    Http(HttpProbe<'a>),
    Tcp { port: u32 },
    Exec { command: &'a str },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HttpProbe<'a> {
    pub port: u32,
    pub path: &'a str,
    /// Text that the answer must contain; empty: any.
    pub expect: &'a str,
    /// Where the service tells its version; empty: nowhere.
    pub version_path: &'a str,
    /// Where the service tells its state; empty: nowhere.
    pub state_path: &'a str,
}

/// What a successful check found out about a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestReadiness {
    /// The version of the service, in its own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<u32>,
    pub at: Timestamp,
}

impl ReadyCheck {
    fn kinds(&self) -> [(&'static str, Option<ReadyKind>); 5] {
        [
            ("http", self.http.as_ref().map(|_| ReadyKind::Http)),
            ("tcp", self.tcp.as_ref().map(|_| ReadyKind::Tcp)),
            ("exec", self.exec.as_ref().map(|_| ReadyKind::Exec)),
            ("agent", self.agent.then_some(ReadyKind::Agent)),
            (
                "preset",
                self.preset.map(|preset| match preset {
                    ReadyPreset::GuestDaemon => ReadyKind::GuestDaemon,
                    ReadyPreset::RunnerAgent => ReadyKind::RunnerAgent,
                }),
            ),
        ]
    }

    /// `None` only for a check that `check` refuses.
    pub fn kind(&self) -> Option<ReadyKind> {
        self.kinds().into_iter().find_map(|(_, kind)| kind)
    }

    /// How the guest checks itself. `None`: it does not.
    pub fn probe(&self) -> Option<GuestProbe<'_>> {
        if let Some(HttpCheck { port, path, expect }) = &self.http {
            let expect = expect.as_deref().unwrap_or_default();
            return Some(GuestProbe::Http(HttpProbe { port: *port, path, expect, ..HttpProbe::default() }));
        }
        if let Some(TcpCheck { port }) = self.tcp {
            return Some(GuestProbe::Tcp { port });
        }
        if let Some(command) = &self.exec {
            return Some(GuestProbe::Exec { command });
        }
        let http = HttpProbe { path: "/health", ..HttpProbe::default() };
        Some(GuestProbe::Http(match self.preset? {
            ReadyPreset::GuestDaemon => HttpProbe { port: 2280, version_path: "/version", ..http },
            ReadyPreset::RunnerAgent => HttpProbe { port: 8080, state_path: "/status", ..http },
        }))
    }

    pub fn interval_seconds(&self) -> u32 {
        self.interval_seconds.unwrap_or(USUAL_INTERVAL)
    }

    /// How long the check is repeated in a guest with this budget for its configuration. It always ends before that
    /// budget, so that the guest can report what it saw.
    pub fn seconds_within(&self, configure_seconds: u32) -> u32 {
        let most = longest_within(configure_seconds);
        self.budget_seconds.unwrap_or(most).min(most)
    }

    /// Pointers are those of a request with a `ready`.
    pub fn check(&self) -> Result<()> {
        let given: Vec<&str> =
            self.kinds().into_iter().filter_map(|(field, kind)| kind.is_some().then_some(field)).collect();
        match given[..] {
            [_] => {}
            [] => return invalid("", "set one of http, tcp, exec, agent and preset".to_owned()),
            [_, second, ..] => {
                return invalid(&format!("/{second}"), format!("is a second check, beside {}: leave it out", given[0]));
            }
        }
        let port = |field: &str, port: u32| match port {
            1..=65535 => Ok(()),
            _ => invalid(field, "1 to 65535".to_owned()),
        };
        if let Some(HttpCheck { port: number, path, expect }) = &self.http {
            port("/http/port", *number)?;
            let plain = path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
            if !path.starts_with('/') || path.len() > LONGEST_PATH || !plain {
                let what = format!(
                    "must start with / and have at most {LONGEST_PATH} printable ASCII characters, without spaces and #"
                );
                return invalid("/http/path", what);
            }
            if expect.as_ref().is_some_and(|text| {
                text.is_empty() || text.len() > LONGEST_EXPECTED || text.chars().any(char::is_control)
            }) {
                return invalid("/http/expect", format!("must be one line of 1 to {LONGEST_EXPECTED} bytes"));
            }
        }
        if let Some(TcpCheck { port: number }) = &self.tcp {
            port("/tcp/port", *number)?;
        }
        if let Some(command) = &self.exec {
            let text = command.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t'));
            if command.trim().is_empty() || command.len() > LONGEST_COMMAND || !text {
                let what = format!(
                    "must be 1 to {LONGEST_COMMAND} bytes of text, with no other control characters than line feeds and tabs"
                );
                return invalid("/exec", what);
            }
        }
        if self.agent {
            for (field, given) in [
                ("/interval_seconds", self.interval_seconds.is_some()),
                ("/budget_seconds", self.budget_seconds.is_some()),
            ] {
                if given {
                    return invalid(
                        field,
                        "means nothing to the check agent: the budget boot_seconds limits it".to_owned(),
                    );
                }
            }
        }
        if self.interval_seconds.is_some_and(|seconds| !(1..=LONGEST_INTERVAL).contains(&seconds)) {
            return invalid("/interval_seconds", format!("1 to {LONGEST_INTERVAL}"));
        }
        if self.budget_seconds == Some(0) {
            return invalid("/budget_seconds", "at least 1".to_owned());
        }
        Ok(())
    }

    /// Whether it can end within the budget `configure_seconds` of its template.
    pub fn check_within(&self, configure_seconds: u32) -> Result<()> {
        let most = longest_within(configure_seconds);
        match self.budget_seconds {
            Some(seconds) if seconds > most => invalid(
                "/budget_seconds",
                format!(
                    "1 to {most}, because the budget configure_seconds is {configure_seconds}: raise `budgets.configure_seconds` for a longer check"
                ),
            ),
            _ => Ok(()),
        }
    }

    /// `with_agent`: whether guests of the template are provisioned through their agent.
    pub fn check_provisioning(&self, with_agent: bool) -> Result<()> {
        if self.agent && !with_agent {
            return invalid("/agent", "needs `handover: agent`".to_owned());
        }
        Ok(())
    }

    /// The failure of the check. `seen`: what the guest saw last.
    pub fn failed(&self, configure_seconds: u32, seen: &str) -> String {
        let kind = self.kind().map_or("", ReadyKind::as_str);
        let what = match self.probe() {
            Some(GuestProbe::Http(HttpProbe { port, path, .. })) => format!(" on port {port} ({path})"),
            Some(GuestProbe::Tcp { port }) => format!(" on port {port}"),
            Some(GuestProbe::Exec { .. }) | None => String::new(),
        };
        let seconds = self.seconds_within(configure_seconds);
        format!("the readiness check {kind}{what} did not succeed within {seconds} s; the guest saw last: {seen}")
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let kind = self.kind().map_or("", ReadyKind::as_str);
        let mut line = match self.probe() {
            Some(GuestProbe::Http(HttpProbe { port, path, expect: "", .. })) => {
                format!("{kind} on port {port} ({path})")
            }
            Some(GuestProbe::Http(HttpProbe { port, path, expect, .. })) => {
                format!("{kind} on port {port} ({path}), expects {expect:?}")
            }
            Some(GuestProbe::Tcp { port }) => format!("{kind} on port {port}"),
            Some(GuestProbe::Exec { command }) => format!("{kind} {command:?}"),
            None => kind.to_owned(),
        };
        if self.probe().is_some() {
            line.push_str(&format!(", every {} s", self.interval_seconds()));
        }
        if let Some(seconds) = self.budget_seconds {
            line.push_str(&format!(", for at most {seconds} s"));
        }
        line
    }
}

fn longest_within(configure_seconds: u32) -> u32 {
    configure_seconds.saturating_sub(RESERVE.min(configure_seconds / 4)).max(1)
}

fn invalid<T>(field: &str, what: String) -> Result<T> {
    Err(Error::new(Code::RequestInvalid, "the readiness check is not usable").field(format!("/ready{field}"), what))
}

/// The version that a guest reported, if it is short printable text.
pub fn plain_version(version: String) -> Option<String> {
    let plain = version.bytes().all(|b| (b' '..=b'~').contains(&b));
    (!version.trim().is_empty() && version.len() <= LONGEST_VERSION && plain).then_some(version)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value) -> ReadyCheck {
        serde_json::from_value(value).unwrap()
    }

    fn wrong_field(value: Value) -> String {
        read(value).check().unwrap_err().fields[0].pointer.clone()
    }

    #[test]
    fn exactly_one_check_is_needed() {
        for (value, kind) in [
            (json!({"http": {"port": 8080}}), ReadyKind::Http),
            (json!({"tcp": {"port": 22}}), ReadyKind::Tcp),
            (json!({"exec": "test -e /run/ready\n"}), ReadyKind::Exec),
            (json!({"agent": true}), ReadyKind::Agent),
            (json!({"preset": "guest-daemon"}), ReadyKind::GuestDaemon),
            (json!({"preset": "runner-agent", "interval_seconds": 60, "budget_seconds": 1}), ReadyKind::RunnerAgent),
        ] {
            let check = read(value);
            check.check().unwrap();
            assert_eq!(check.kind(), Some(kind));
            assert_eq!(check.probe().is_none(), kind == ReadyKind::Agent);
            let stored = serde_json::to_value(&check).unwrap();
            assert_eq!(read(stored), check);
        }
        assert_eq!(wrong_field(json!({})), "/ready");
        assert_eq!(wrong_field(json!({"agent": false, "budget_seconds": 5})), "/ready");
        assert_eq!(wrong_field(json!({"http": {"port": 1}, "exec": "true"})), "/ready/exec");
        assert_eq!(wrong_field(json!({"preset": "guest-daemon", "agent": true})), "/ready/preset");
    }

    #[test]
    fn every_bound_is_checked_and_its_field_named() {
        for (value, field) in [
            (json!({"http": {"port": 0}}), "/ready/http/port"),
            (json!({"http": {"port": 65536}}), "/ready/http/port"),
            (json!({"http": {"port": 1, "path": "health"}}), "/ready/http/path"),
            (json!({"http": {"port": 1, "path": "/a b"}}), "/ready/http/path"),
            (json!({"http": {"port": 1, "path": "/a\r\nHost:b"}}), "/ready/http/path"),
            (json!({"http": {"port": 1, "path": format!("/{}", "x".repeat(256))}}), "/ready/http/path"),
            (json!({"http": {"port": 1, "expect": ""}}), "/ready/http/expect"),
            (json!({"http": {"port": 1, "expect": "a\nb"}}), "/ready/http/expect"),
            (json!({"http": {"port": 1, "expect": "x".repeat(201)}}), "/ready/http/expect"),
            (json!({"tcp": {"port": 65536}}), "/ready/tcp/port"),
            (json!({"exec": " "}), "/ready/exec"),
            (json!({"exec": "a\0b"}), "/ready/exec"),
            (json!({"exec": "a\rb"}), "/ready/exec"),
            (json!({"exec": "x".repeat(4097)}), "/ready/exec"),
            (json!({"exec": "true", "interval_seconds": 0}), "/ready/interval_seconds"),
            (json!({"exec": "true", "interval_seconds": 61}), "/ready/interval_seconds"),
            (json!({"exec": "true", "budget_seconds": 0}), "/ready/budget_seconds"),
            (json!({"agent": true, "budget_seconds": 5}), "/ready/budget_seconds"),
        ] {
            assert_eq!(wrong_field(value.clone()), field, "{value}");
        }
        for unknown in [json!({"ftp": 21}), json!({"preset": "docker"}), json!({"http": {"port": 1, "host": "x"}})] {
            assert!(serde_json::from_value::<ReadyCheck>(unknown.clone()).is_err(), "{unknown}");
        }
        let agent = read(json!({"agent": true}));
        assert_eq!(agent.check_provisioning(false).unwrap_err().fields[0].pointer, "/ready/agent");
        agent.check_provisioning(true).unwrap();
    }

    /// The guest must be able to report the failure before the budget of its state is spent.
    #[test]
    fn it_ends_before_the_budget_of_the_configuration() {
        let check = |budget: Option<u32>| ReadyCheck { budget_seconds: budget, ..read(json!({"exec": "true"})) };
        for (configure, most) in [(120, 105), (40, 30), (4, 3), (1, 1)] {
            assert_eq!(check(None).seconds_within(configure), most);
            assert_eq!(check(Some(most)).seconds_within(configure), most);
            check(Some(most)).check_within(configure).unwrap();
            let error = check(Some(most + 1)).check_within(configure).unwrap_err();
            assert_eq!(error.fields[0].pointer, "/ready/budget_seconds");
        }
        // A request may give its vm a shorter budget than the template has.
        assert_eq!(check(Some(100)).seconds_within(40), 30);
    }

    #[test]
    fn a_failure_names_the_check_the_port_and_what_was_seen() {
        let daemon = read(json!({"preset": "guest-daemon", "budget_seconds": 20}));
        assert_eq!(
            daemon.failed(120, "HTTP status 503"),
            "the readiness check guest-daemon on port 2280 (/health) did not succeed within 20 s; the guest saw last: HTTP status 503"
        );
        assert_eq!(daemon.summary(), "guest-daemon on port 2280 (/health), every 2 s, for at most 20 s");
        assert_eq!(read(json!({"tcp": {"port": 5900}})).summary(), "tcp on port 5900, every 2 s");
        assert_eq!(read(json!({"agent": true})).summary(), "agent");
    }

    #[test]
    fn a_version_is_short_printable_text() {
        assert_eq!(plain_version("v0.100.1-rc.1 (x)".into()).as_deref(), Some("v0.100.1-rc.1 (x)"));
        for version in [" ".to_owned(), "1\u{1b}[1m".to_owned(), "é".to_owned(), "x".repeat(101)] {
            assert_eq!(plain_version(version), None);
        }
    }
}
