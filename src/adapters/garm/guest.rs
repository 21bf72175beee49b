//! What the guest runs: a script that registers the runner with GARM's help, and the variables that it reads.

use base64::{Engine, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};

use super::{bootstrap::BootstrapRequest, failure::GarmFailure};

/// The same for every vm: it may not differ when a request is repeated, and it holds no secret.
const SCRIPT: &str = include_str!("guest.sh");
/// Of GARM's certificates, encoded. The environment of a guest is limited to 64 KiB.
const LARGEST_BUNDLE: usize = 40 * 1024;

/// The `runner` of the request for a vm.
pub(super) fn runner(request: &BootstrapRequest) -> Result<Value, GarmFailure> {
    let mut env = Map::new();
    let mut set = |name: &str, value: &str| {
        if !value.is_empty() {
            env.insert(name.to_owned(), value.into());
        }
    };
    set("GARM_CALLBACK_URL", &request.callback_url);
    set("GARM_METADATA_URL", &request.metadata_url);
    set("GARM_INSTANCE_TOKEN", request.instance_token.expose_secret());
    set("GARM_RUNNER_NAME", &request.name);
    set("GARM_RUNNER_URL", &request.repo_url);
    set("GARM_RUNNER_GROUP", &request.runner_group);
    set("GARM_RUNNER_LABELS", &request.labels.join(","));
    set("GARM_JIT", if request.jit_config_enabled { "yes" } else { "" });
    set("GARM_TOOLS", &downloads(request)?);
    set("GARM_CA_BUNDLE", ca_bundle(request)?);
    let proxy = &request.proxy_config;
    for (lower, upper, value) in [
        ("http_proxy", "HTTP_PROXY", &proxy.http_proxy),
        ("https_proxy", "HTTPS_PROXY", &proxy.https_proxy),
        ("no_proxy", "NO_PROXY", &proxy.no_proxy),
    ] {
        set(lower, value.expose_secret());
        set(upper, value.expose_secret());
    }
    Ok(json!({ "kind": "script", "script": SCRIPT, "env": env }))
}

/// GitHub's runners for the systems that guests have, one a line: system, architecture, SHA-256, token, URL; `-` for none.
/// The guest chooses, because only it knows its system.
fn downloads(request: &BootstrapRequest) -> Result<String, GarmFailure> {
    let mut lines = String::new();
    for tool in request.tools.iter().filter(|tool| matches!(tool.os.as_str(), "linux" | "osx")) {
        if tool.download_url.is_empty() {
            continue;
        }
        if is_of_gitea(&tool.filename) {
            return Err(GarmFailure::Failed(
                "this pool belongs to a Gitea server, whose runners this provider cannot start".to_owned(),
            ));
        }
        let token: &SecretString = &tool.temp_download_token;
        let fields = [&tool.os, &tool.architecture, &tool.sha256_checksum, token.expose_secret(), &tool.download_url];
        if fields.iter().any(|field| field.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"')) {
            return Err(GarmFailure::Failed(
                "`tools`: a field holds a space, a quote or a control character".to_owned(),
            ));
        }
        let fields = fields.map(|field| if field.is_empty() { "-" } else { field });
        lines.push_str(&fields.join(" "));
        lines.push('\n');
    }
    Ok(lines)
}

fn is_of_gitea(filename: &str) -> bool {
    filename.starts_with("act_runner") || filename.starts_with("gitea-runner")
}

fn ca_bundle(request: &BootstrapRequest) -> Result<&str, GarmFailure> {
    let wrong = |what: String| GarmFailure::Failed(format!("ca-cert-bundle: {what}"));
    STANDARD.decode(&request.ca_bundle).map_err(|_| wrong("expected base64".to_owned()))?;
    if request.ca_bundle.len() > LARGEST_BUNDLE {
        return Err(wrong(format!("at most {LARGEST_BUNDLE} bytes in base64, found {}", request.ca_bundle.len())));
    }
    Ok(&request.ca_bundle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::garm::bootstrap::RunnerDownload;

    fn tool(os: &str, filename: &str, url: &str) -> RunnerDownload {
        RunnerDownload {
            os: os.to_owned(),
            architecture: "x64".to_owned(),
            filename: filename.to_owned(),
            download_url: url.to_owned(),
            ..RunnerDownload::default()
        }
    }

    fn request(tools: Vec<RunnerDownload>) -> BootstrapRequest {
        BootstrapRequest { name: "garm-a".to_owned(), instance_token: "hush".into(), tools, ..Default::default() }
    }

    #[test]
    fn the_guest_gets_the_downloads_for_both_systems() {
        let tools = vec![
            tool("win", "actions-runner-win.zip", "https://h/w"),
            tool("linux", "actions-runner-linux.tar.gz", "https://h/l"),
            tool("osx", "actions-runner-osx.tar.gz", "https://h/o"),
            tool("osx", "actions-runner-osx.tar.gz", ""),
        ];
        let runner = runner(&request(tools)).unwrap();
        assert_eq!(runner["env"]["GARM_TOOLS"], "linux x64 - - https://h/l\nosx x64 - - https://h/o\n");
        assert_eq!(runner["env"].get("http_proxy"), None);
        assert!(!runner["script"].as_str().unwrap().contains("hush"));
    }

    #[test]
    fn what_the_guest_could_not_use_is_refused() {
        assert!(
            runner(&request(vec![tool("linux", "act_runner-1", "https://h/a")]))
                .unwrap_err()
                .to_string()
                .contains("Gitea")
        );
        assert!(runner(&request(vec![tool("linux", "a", "https://h/a b")])).is_err());
        let bundle = BootstrapRequest { ca_bundle: "not base64!".to_owned(), ..request(Vec::new()) };
        assert!(runner(&bundle).unwrap_err().to_string().starts_with("ca-cert-bundle"));
    }
}
