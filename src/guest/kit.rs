//! The bootstrap bundle: the directory that a guest gets when it is provisioned.
//!
//! ```text
//! boot.sh watch.sh wrapper.sh ready.sh job.sh tell.sh power-off.sh job-started.sh job-completed.sh
//!                the scripts of hooks/, the same for every vm
//! mayfly.env     0600   the vm's id and the address of the guest API
//! wrapper.curlrc 0600   the wrapper's token, for curl, so that it is in no command line
//! curlrc         0600   the job's token, likewise
//! runner.env     0600   the environment of the runner and the job
//! ca-extra.pem   0644   certificates that the guest trusts in addition to its own; absent if there are none
//! ready.env      0600   the readiness check; absent if the guest does not check itself
//! payload        0700   the job or the setup script; absent if there is none
//! github.env     0600   the directory of GitHub's runner, and its registration settings; gitea.env
//!                         with Gitea's, buildkite.env with those of Buildkite's agent
//! registration   0600   secret of the runner's registration; removed by the payload that reads it; absent with a seed
//! ```
//!
//! The `.env` files are read with the shell's `.`, so each value is quoted so that none of its bytes has a
//! special meaning. All files are text without NUL, because a shell must be able to write them.

use std::{collections::BTreeMap, fmt, fmt::Write as _};

use secrecy::{ExposeSecret, SecretString};

use super::{
    host_environment::{EXTRA_CERTIFICATES, HostEnvironment, HostValue},
    ready_kit::ReadyKit,
    runner_kit::RunnerKit,
};
use crate::domain::{
    Handover, VmId,
    job_env::{JobEnvError, check_env},
    runner::RunnerKind,
};

const SCRIPTS: [(&str, &str); 9] = [
    ("boot.sh", include_str!("../../hooks/boot.sh")),
    ("watch.sh", include_str!("../../hooks/watch.sh")),
    ("wrapper.sh", include_str!("../../hooks/wrapper.sh")),
    ("ready.sh", include_str!("../../hooks/ready.sh")),
    ("job.sh", include_str!("../../hooks/job.sh")),
    ("tell.sh", include_str!("../../hooks/tell.sh")),
    ("power-off.sh", include_str!("../../hooks/power-off.sh")),
    ("job-started.sh", include_str!("../../hooks/job-started.sh")),
    ("job-completed.sh", include_str!("../../hooks/job-completed.sh")),
];

/// The input of a bundle.
pub struct KitInput {
    pub vm_id: VmId,
    /// Base URL of the guest API as seen by the guest, without a trailing slash.
    pub url: String,
    /// The wrapper's token.
    pub token: SecretString,
    /// The token of the job and its hooks.
    pub job_token: SecretString,
    pub kind: RunnerKind,
    /// The attempt that this guest belongs to: the service accepts reports of no other one.
    pub attempt: u32,
    /// How long the wrapper may report nothing, in seconds.
    pub heartbeat_seconds: u32,
    pub handover: Handover,
    /// How long the guest waits for the permission to start its job, in seconds.
    pub start_seconds: u32,
    /// The user that runs the runner; empty: the user that runs `boot.sh`.
    pub user: String,
    pub env: BTreeMap<String, String>,
    pub host_environment: HostEnvironment,
    pub ready: Option<ReadyKit>,
    pub payload: Option<String>,
    /// For the runners of CI systems, whose payload is ours.
    pub runner: Option<RunnerKit>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct KitFile {
    pub name: &'static str,
    pub mode: u32,
    pub bytes: Vec<u8>,
}

impl fmt::Debug for KitFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:04o} ({} bytes)", self.name, self.mode, self.bytes.len())
    }
}

/// The files of one vm. Contains secrets; its `Debug` shows only names and sizes.
#[derive(Clone, PartialEq, Eq)]
pub struct Kit {
    vm_id: VmId,
    files: Vec<KitFile>,
}

impl fmt::Debug for Kit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kit").field("vm_id", &self.vm_id).field("files", &self.files).finish()
    }
}

/// Why no bundle can be built. Names fields, never shows values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KitError {
    #[error(transparent)]
    Env(#[from] JobEnvError),
    #[error("the host's value of the environment variable {0} holds a NUL byte")]
    HostEnvironment(&'static str),
    #[error("the payload holds a NUL byte, it must be a script")]
    Payload,
    #[error("the guest API's address is empty or holds white space or control characters")]
    Url,
    #[error("the token contains invalid characters")]
    Token,
    #[error("user name {user:?} must match [A-Za-z_][A-Za-z0-9._-]*")]
    User { user: String },
}

impl Kit {
    pub fn new(input: KitInput) -> Result<Kit, KitError> {
        let KitInput {
            vm_id,
            url,
            token,
            job_token,
            kind,
            attempt,
            heartbeat_seconds,
            handover,
            start_seconds,
            user,
            env,
            host_environment,
            ready,
            payload,
            runner,
        } = input;
        if url.is_empty() || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(KitError::Url);
        }
        if !user.is_empty() && !is_user_name(&user) {
            return Err(KitError::User { user });
        }
        check_env(&env)?;

        let (id, attempt, start_seconds) = (vm_id.to_string(), attempt.to_string(), start_seconds.to_string());
        // Several, because one may be lost, and not too many for an emulated guest.
        let every = (heartbeat_seconds / 4).clamp(1, 30).to_string();
        let handover = match handover {
            Handover::Seed => "seed",
            Handover::Ssh => "ssh",
            Handover::Agent => "agent",
        };
        let settings = [
            ("MAYFLY_VM_ID", id.as_str()),
            ("MAYFLY_URL", url.trim_end_matches('/')),
            ("MAYFLY_RUNNER_KIND", kind.as_str()),
            ("MAYFLY_RUNNER_USER", &user),
            ("MAYFLY_ATTEMPT", &attempt),
            ("MAYFLY_START_SECONDS", &start_seconds),
            ("MAYFLY_HEARTBEAT_EVERY", &every),
            ("MAYFLY_HANDOVER", handover),
        ];

        let mut files: Vec<KitFile> =
            SCRIPTS.iter().map(|(name, text)| KitFile { name, mode: 0o755, bytes: text.as_bytes().to_vec() }).collect();
        files.push(KitFile { name: "mayfly.env", mode: 0o600, bytes: assignments("", settings) });
        files.push(KitFile { name: "wrapper.curlrc", mode: 0o600, bytes: curlrc(&token)? });
        files.push(KitFile { name: "curlrc", mode: 0o600, bytes: curlrc(&job_token)? });
        // Exported explicitly, because shells on a Mac that the scripts did not start also read it.
        let mut exports = host_exports(&host_environment, &env)?;
        exports.extend(assignments("export ", env.iter().map(|(k, v)| (k.as_str(), v.as_str()))));
        files.push(KitFile { name: "runner.env", mode: 0o600, bytes: exports });
        if let Some(certificates) = host_environment.certificates {
            files.push(KitFile { name: EXTRA_CERTIFICATES, mode: 0o644, bytes: certificates.into_bytes() });
        }
        if let Some(settings) = ready.as_ref().and_then(ReadyKit::settings) {
            let settings = assignments("", settings.iter().map(|(key, value)| (*key, value.as_str())));
            files.push(KitFile { name: "ready.env", mode: 0o600, bytes: settings });
        }
        if let Some(payload) = payload {
            if payload.contains('\0') {
                return Err(KitError::Payload);
            }
            files.push(KitFile { name: "payload", mode: 0o700, bytes: payload.into_bytes() });
        }
        if let Some(runner) = runner {
            let settings = runner.settings();
            let secret = runner.secret().map(ExposeSecret::expose_secret);
            if settings.iter().map(|(_, value)| value.as_str()).chain(secret).any(|value| value.contains('\0')) {
                return Err(KitError::Payload);
            }
            let settings = assignments("", settings.iter().map(|(key, value)| (*key, value.as_str())));
            files.push(KitFile { name: "payload", mode: 0o700, bytes: runner.payload().as_bytes().to_vec() });
            files.push(KitFile { name: runner.settings_file(), mode: 0o600, bytes: settings });
            if let Some(secret) = secret {
                files.push(KitFile { name: "registration", mode: 0o600, bytes: secret.as_bytes().to_vec() });
            }
        }
        Ok(Kit { vm_id, files })
    }

    pub fn vm_id(&self) -> VmId {
        self.vm_id
    }

    pub fn files(&self) -> &[KitFile] {
        &self.files
    }

    /// The same bundle with another `boot.sh`, for tests that must not start a wrapper on this machine.
    #[cfg(test)]
    pub(super) fn with_boot(mut self, boot: &str) -> Kit {
        self.files[0].bytes = boot.as_bytes().to_vec();
        self
    }
}

fn is_user_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

fn assignments<'a>(before: &str, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in pairs {
        let _ = writeln!(text, "{before}{key}={}", quote(value));
    }
    text.into_bytes()
}

fn host_exports(host: &HostEnvironment, job: &BTreeMap<String, String>) -> Result<Vec<u8>, KitError> {
    let mut text = String::new();
    for (name, value) in host.without(job) {
        let value = match value {
            HostValue::Text(value) if value.expose_secret().contains('\0') => {
                return Err(KitError::HostEnvironment(name));
            }
            HostValue::Text(value) => quote(value.expose_secret()),
            // `wrapper.sh` sets it before it reads the file.
            HostValue::File(file) => format!("\"$MAYFLY_HOME\"/{file}"),
        };
        let _ = writeln!(text, "export {name}={value}");
    }
    Ok(text.into_bytes())
}

/// Between single quotes, the only special byte of a shell is the single quote.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

fn curlrc(token: &SecretString) -> Result<Vec<u8>, KitError> {
    let token = token.expose_secret();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\') {
        return Err(KitError::Token);
    }
    Ok(format!("header = \"Authorization: Bearer {token}\"\n").into_bytes())
}

#[cfg(test)]
pub(super) mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::{
        super::runner_kit::{BuildkiteKit, GitHubKit, GiteaKit, RunnerProgram},
        *,
    };
    use crate::domain::source_runner::Registration;

    pub fn input() -> KitInput {
        KitInput {
            vm_id: "01933b5c-7e5e-7c7a-9d5b-1f2e3d4c5b6a".parse().unwrap(),
            url: "http://10.0.2.100".into(),
            token: SecretString::from("mft_s3cret-Token"),
            job_token: SecretString::from("mfj_t0ken"),
            kind: RunnerKind::Command,
            attempt: 2,
            heartbeat_seconds: 180,
            handover: Handover::Seed,
            start_seconds: 420,
            user: String::new(),
            env: BTreeMap::from([("GREETING".into(), "it's $(touch pwned) `id` \"x\"\n%s\\n".into())]),
            host_environment: HostEnvironment::default(),
            ready: None,
            payload: Some("#!/bin/sh\necho hi\n".into()),
            runner: None,
        }
    }

    pub fn with_env(key: &str, value: &str) -> Result<Kit, KitError> {
        Kit::new(KitInput { env: BTreeMap::from([(key.into(), value.into())]), ..input() })
    }

    fn file<'a>(kit: &'a Kit, name: &str) -> Option<&'a KitFile> {
        kit.files().iter().find(|f| f.name == name)
    }

    /// The shells of this machine: the shell that runs scripts here may differ from that of a guest. The last one is
    /// not `sh` on any system, but reads the environment on a Mac.
    pub fn shells() -> Vec<Vec<&'static str>> {
        let posix =
            [&["sh"][..], &["dash"], &["bash"], &["bash", "--posix"], &["busybox", "sh"], &["zsh", "--emulate", "sh"]];
        posix
            .into_iter()
            .chain([&["zsh"][..]])
            .map(<[_]>::to_vec)
            .filter(|s| Command::new(s[0]).args(&s[1..]).args(["-c", ":"]).output().is_ok_and(|o| o.status.success()))
            .collect()
    }

    #[test]
    fn the_files_are_those_that_the_scripts_expect() {
        let kit = Kit::new(input()).unwrap();
        let listing: Vec<(&str, u32)> = kit.files().iter().map(|f| (f.name, f.mode)).collect();
        assert_eq!(
            listing,
            [
                ("boot.sh", 0o755),
                ("watch.sh", 0o755),
                ("wrapper.sh", 0o755),
                ("ready.sh", 0o755),
                ("job.sh", 0o755),
                ("tell.sh", 0o755),
                ("power-off.sh", 0o755),
                ("job-started.sh", 0o755),
                ("job-completed.sh", 0o755),
                ("mayfly.env", 0o600),
                ("wrapper.curlrc", 0o600),
                ("curlrc", 0o600),
                ("runner.env", 0o600),
                ("payload", 0o700),
            ]
        );
        let token = b"header = \"Authorization: Bearer mft_s3cret-Token\"\n";
        assert_eq!(file(&kit, "wrapper.curlrc").unwrap().bytes, token);
        assert_eq!(file(&kit, "curlrc").unwrap().bytes, b"header = \"Authorization: Bearer mfj_t0ken\"\n");
        let settings = String::from_utf8(file(&kit, "mayfly.env").unwrap().bytes.clone()).unwrap();
        assert_eq!(
            settings,
            "MAYFLY_VM_ID='01933b5c-7e5e-7c7a-9d5b-1f2e3d4c5b6a'\nMAYFLY_URL='http://10.0.2.100'\n\
             MAYFLY_RUNNER_KIND='command'\nMAYFLY_RUNNER_USER=''\nMAYFLY_ATTEMPT='2'\nMAYFLY_START_SECONDS='420'\n\
             MAYFLY_HEARTBEAT_EVERY='30'\nMAYFLY_HANDOVER='seed'\n"
        );
        let github = GitHubKit {
            url: "https://github.com/acme/app".into(),
            name: "it's-1".into(),
            labels: vec!["self-hosted".into(), "macOS 15".into()],
            group: None,
            registration: Registration::Managed,
            secret: Some("s3cret".into()),
            program: RunnerProgram { minimum_version: "2.329.0".into(), ..RunnerProgram::default() },
        };
        let kind = RunnerKind::GitHub;
        let runner = Some(RunnerKit::GitHub(github));
        let kit = Kit::new(KitInput { kind, payload: None, runner, ..input() }).unwrap();
        let listing: Vec<(&str, u32)> = kit.files().iter().skip(13).map(|f| (f.name, f.mode)).collect();
        assert_eq!(listing, [("payload", 0o700), ("github.env", 0o600), ("registration", 0o600)]);
        assert_eq!(file(&kit, "registration").unwrap().bytes, b"s3cret");
        let settings = String::from_utf8(file(&kit, "github.env").unwrap().bytes.clone()).unwrap();
        assert!(settings.contains("MAYFLY_GITHUB_NAME='it'\\''s-1'\nMAYFLY_GITHUB_LABELS='self-hosted,macOS 15'\n"));
        assert!(settings.contains("MAYFLY_GITHUB_REGISTRATION='jit_config'\n") && !settings.contains("s3cret"));
        let gitea = |secret: &str| {
            let secret = Some(secret.into());
            GiteaKit { directory: Some("/opt/it's".into()), minimum_version: None, secret }
        };
        let runner = Some(RunnerKit::Gitea(gitea("{\"token\":\"s3cret\"}")));
        let kit = Kit::new(KitInput { payload: None, runner, ..input() }).unwrap();
        let listing: Vec<(&str, u32)> = kit.files().iter().skip(13).map(|f| (f.name, f.mode)).collect();
        assert_eq!(listing, [("payload", 0o700), ("gitea.env", 0o600), ("registration", 0o600)]);
        assert!(file(&kit, "payload").unwrap().bytes.starts_with(b"#!/bin/sh\n# The payload of runner kind `gitea`"));
        assert_eq!(file(&kit, "registration").unwrap().bytes, b"{\"token\":\"s3cret\"}");
        let settings = String::from_utf8(file(&kit, "gitea.env").unwrap().bytes.clone()).unwrap();
        assert_eq!(settings, "MAYFLY_RUNNER_DIRECTORY='/opt/it'\\''s'\nMAYFLY_RUNNER_MINIMUM=''\n");
        let runner = Some(RunnerKit::Gitea(gitea("s3cret")).without_secret());
        let kit = Kit::new(KitInput { payload: None, runner, ..input() }).unwrap();
        assert!(file(&kit, "gitea.env").is_some() && file(&kit, "registration").is_none());
        let runner = Some(RunnerKit::Gitea(gitea("a\0")));
        assert_eq!(Kit::new(KitInput { payload: None, runner, ..input() }), Err(KitError::Payload));
        let buildkite = BuildkiteKit {
            endpoint: "https://agent.buildkite.com/v3".into(),
            name: "vm-1".into(),
            tags: vec!["queue=macs".into(), "os=it's".into()],
            directory: None,
            minimum_version: None,
            secret: Some("job s3cret".into()),
        };
        let runner = Some(RunnerKit::Buildkite(buildkite));
        let kit = Kit::new(KitInput { payload: None, runner, ..input() }).unwrap();
        let listing: Vec<(&str, u32)> = kit.files().iter().skip(13).map(|f| (f.name, f.mode)).collect();
        assert_eq!(listing, [("payload", 0o700), ("buildkite.env", 0o600), ("registration", 0o600)]);
        let settings = String::from_utf8(file(&kit, "buildkite.env").unwrap().bytes.clone()).unwrap();
        assert!(settings.starts_with("MAYFLY_BUILDKITE_ENDPOINT='https://agent.buildkite.com/v3'\n"), "{settings}");
        assert!(settings.contains("MAYFLY_BUILDKITE_TAGS='queue=macs,os=it'\\''s'\n") && !settings.contains("s3cret"));
        let none = Kit::new(KitInput { kind: RunnerKind::None, payload: None, ..input() }).unwrap();
        assert!(file(&none, "payload").is_none());
    }

    #[test]
    fn a_readiness_check_is_in_a_file_that_only_its_owner_reads() {
        let settings = |ready: serde_json::Value| {
            let ready = Some(ReadyKit { check: serde_json::from_value(ready).unwrap(), seconds: 105 });
            let kit = Kit::new(KitInput { ready, ..input() }).unwrap();
            let file = file(&kit, "ready.env")?;
            assert_eq!(file.mode, 0o600);
            Some(String::from_utf8(file.bytes.clone()).unwrap())
        };
        assert_eq!(
            settings(serde_json::json!({"preset": "runner-agent", "interval_seconds": 5})).unwrap(),
            "MAYFLY_READY_INTERVAL='5'\nMAYFLY_READY_SECONDS='105'\nMAYFLY_READY='http'\nMAYFLY_READY_PORT='8080'\n\
             MAYFLY_READY_PATH='/health'\nMAYFLY_READY_EXPECT=''\nMAYFLY_READY_VERSION_PATH=''\n\
             MAYFLY_READY_STATE_PATH='/status'\n"
        );
        assert_eq!(
            settings(serde_json::json!({"exec": "test 'a' = a"})).unwrap(),
            "MAYFLY_READY_INTERVAL='2'\nMAYFLY_READY_SECONDS='105'\nMAYFLY_READY='exec'\n\
             MAYFLY_READY_COMMAND='test '\\''a'\\'' = a'\n"
        );
        assert!(settings(serde_json::json!({"tcp": {"port": 22}})).unwrap().contains("MAYFLY_READY='tcp'\n"));
        assert_eq!(settings(serde_json::json!({"agent": true})), None);
    }

    #[test]
    fn the_job_replaces_what_the_host_sets() {
        let secret = |name, value: &str| (name, SecretString::from(value));
        let host_environment = HostEnvironment {
            variables: vec![
                secret("https_proxy", "http://it's:%20@a.b:1"),
                secret("HTTPS_PROXY", "http://it's:%20@a.b:1"),
                secret("no_proxy", "a,b"),
            ],
            certificates: Some("CERTIFICATES\n".into()),
        };
        let env =
            BTreeMap::from([("No_Proxy".to_owned(), String::new()), ("GIT_SSL_CAINFO".to_owned(), "/own".to_owned())]);
        let kit = Kit::new(KitInput { env, host_environment: host_environment.clone(), ..input() }).unwrap();
        let text = String::from_utf8(file(&kit, "runner.env").unwrap().bytes.clone()).unwrap();
        let proxy = r"'http://it'\''s:%20@a.b:1'";
        let all = "\"$MAYFLY_HOME\"/ca-bundle.pem";
        assert_eq!(
            text,
            format!(
                "export https_proxy={proxy}\nexport HTTPS_PROXY={proxy}\n\
                 export NODE_EXTRA_CA_CERTS=\"$MAYFLY_HOME\"/ca-extra.pem\nexport SSL_CERT_FILE={all}\n\
                 export CURL_CA_BUNDLE={all}\nexport REQUESTS_CA_BUNDLE={all}\n\
                 export GIT_SSL_CAINFO='/own'\nexport No_Proxy=''\n"
            )
        );
        let extra = file(&kit, "ca-extra.pem").unwrap();
        assert_eq!((extra.mode, extra.bytes.as_slice()), (0o644, &b"CERTIFICATES\n"[..]));
        let wrong = HostEnvironment { variables: vec![secret("no_proxy", "a\0")], certificates: None };
        let wrong = Kit::new(KitInput { host_environment: wrong, ..input() });
        assert_eq!(wrong, Err(KitError::HostEnvironment("no_proxy")));
        assert!(!format!("{host_environment:?}").contains("a.b"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", Kit::new(input()).unwrap());
        assert!(shown.contains("curlrc") && !shown.contains("s3cret") && !shown.contains("GREETING"), "{shown}");
    }

    #[test]
    fn what_a_shell_could_stumble_over_is_refused() {
        for key in ["", "1A", "A-B", "A B", "A=B", "Ä", "A\n", "$(id)"] {
            assert_eq!(with_env(key, ""), Err(JobEnvError::Name { key: key.into() }.into()));
        }
        for key in [
            "UID",
            "RANDOM",
            "IFS",
            "kit",
            "MAYFLY_URL",
            "ACTIONS_RUNNER_HOOK_JOB_COMPLETED",
            "ACTIONS_RUNNER_INPUT_TOKEN",
        ] {
            assert_eq!(with_env(key, "1"), Err(JobEnvError::Reserved { key: key.into() }.into()));
        }
        assert_eq!(with_env("A", "x\0y"), Err(JobEnvError::Value { key: "A".into() }.into()));
        for token in ["", "a b", "a\"b", "a\\b", "a\nb", "ä"] {
            assert_eq!(Kit::new(KitInput { token: SecretString::from(token), ..input() }), Err(KitError::Token));
        }
        for url in ["", "http://a b", "http://a\n"] {
            assert_eq!(Kit::new(KitInput { url: url.into(), ..input() }), Err(KitError::Url));
        }
        for user in ["-x", "a b", "a;b", "$(id)"] {
            assert!(matches!(Kit::new(KitInput { user: user.into(), ..input() }), Err(KitError::User { .. })));
        }
        assert_eq!(Kit::new(KitInput { payload: Some("a\0".into()), ..input() }), Err(KitError::Payload));
    }

    fn read_back(shell: &[&str], dir: &std::path::Path, values: &[String]) -> Vec<Vec<u8>> {
        let script = format!(
            ". ./runner.env; {}",
            (0..values.len()).map(|n| format!("printf %s \"$V{n}\" >v{n}; ")).collect::<String>()
        );
        let out = Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", &script])
            .current_dir(dir)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .output()
            .unwrap();
        assert!(out.status.success() && out.stderr.is_empty(), "{shell:?}: {}", String::from_utf8_lossy(&out.stderr));
        (0..values.len()).map(|n| std::fs::read(dir.join(format!("v{n}"))).unwrap()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        /// Every shell reads back exactly the given values, without side effects.
        #[test]
        fn no_value_is_ever_code(
            values in prop::collection::vec(
                prop_oneof![
                    "[^\0]{0,40}",
                    "[ '\"\\\\$`(){};&|<>*?~#!%\n\r\t=\u{1}\u{7f}\u{80}\u{81}\u{88}a-c-]{0,40}",
                ],
                1..12,
            )
        ) {
            let env = values.iter().enumerate().map(|(n, v)| (format!("V{n}"), v.clone())).collect();
            let kit = Kit::new(KitInput { env, ..input() }).unwrap();
            for shell in shells() {
                let dir = tempfile::tempdir().unwrap();
                std::fs::write(dir.path().join("runner.env"), &file(&kit, "runner.env").unwrap().bytes).unwrap();
                let got = read_back(&shell, dir.path(), &values);
                for (got, want) in got.iter().zip(&values) {
                    prop_assert_eq!(got.as_slice(), want.as_bytes(), "{:?}", shell);
                }
                prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), values.len() + 1);
            }
        }
    }
}
