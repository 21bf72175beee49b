//! The request that GARM writes to standard input of a creation.

use std::io::{IsTerminal, Read, StdinLock};

use secrecy::SecretString;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

use super::failure::GarmFailure;

/// A usual request has about 5 KB.
const LARGEST: u64 = 4 * 1024 * 1024;

/// Keys may be missing, null or unknown, depending on the version of GARM.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct BootstrapRequest {
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    #[serde(deserialize_with = "null_as_default")]
    pub tools: Vec<RunnerDownload>,
    #[serde(deserialize_with = "null_as_default")]
    pub repo_url: String,
    #[serde(rename = "callback-url", deserialize_with = "null_as_default")]
    pub callback_url: String,
    #[serde(rename = "metadata-url", deserialize_with = "null_as_default")]
    pub metadata_url: String,
    #[serde(rename = "instance-token", deserialize_with = "null_as_default")]
    pub instance_token: SecretString,
    pub extra_specs: Value,
    #[serde(rename = "github-runner-group", deserialize_with = "null_as_default")]
    pub runner_group: String,
    /// Base64 of PEM.
    #[serde(rename = "ca-cert-bundle", deserialize_with = "null_as_default")]
    pub ca_bundle: String,
    #[serde(deserialize_with = "null_as_default")]
    pub arch: String,
    /// `linux` for guests with macOS, too: GARM has no other name for them.
    #[serde(deserialize_with = "null_as_default")]
    pub os_type: String,
    #[serde(deserialize_with = "null_as_default")]
    pub flavor: String,
    #[serde(deserialize_with = "null_as_default")]
    pub image: String,
    #[serde(deserialize_with = "null_as_default")]
    pub labels: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub pool_id: String,
    #[serde(deserialize_with = "null_as_default")]
    pub jit_config_enabled: bool,
    #[serde(deserialize_with = "null_as_default")]
    pub proxy_config: GuestProxy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RunnerDownload {
    #[serde(deserialize_with = "null_as_default")]
    pub os: String,
    #[serde(deserialize_with = "null_as_default")]
    pub architecture: String,
    #[serde(deserialize_with = "null_as_default")]
    pub download_url: String,
    #[serde(deserialize_with = "null_as_default")]
    pub filename: String,
    #[serde(deserialize_with = "null_as_default")]
    pub temp_download_token: SecretString,
    #[serde(deserialize_with = "null_as_default")]
    pub sha256_checksum: String,
}

/// Its addresses may hold the proxy's user and password.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct GuestProxy {
    #[serde(deserialize_with = "null_as_default")]
    pub http_proxy: SecretString,
    #[serde(deserialize_with = "null_as_default")]
    pub https_proxy: SecretString,
    #[serde(deserialize_with = "null_as_default")]
    pub no_proxy: SecretString,
}

fn null_as_default<'de, D: Deserializer<'de>, T: Default + DeserializeOwned>(input: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

pub(super) fn read(input: StdinLock<'_>) -> Result<BootstrapRequest, GarmFailure> {
    if input.is_terminal() {
        return Err(wrong("GARM writes the request there; a terminal has none"));
    }
    let mut text = Vec::new();
    input.take(LARGEST + 1).read_to_end(&mut text).map_err(|error| wrong(&error.to_string()))?;
    if text.len() as u64 > LARGEST {
        return Err(wrong(&format!("the request is larger than {LARGEST} bytes")));
    }
    parse(&text)
}

/// Errors name the place and never the value, which may be a secret.
fn parse(text: &[u8]) -> Result<BootstrapRequest, GarmFailure> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let request: BootstrapRequest = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let what = if error.inner().is_data() { "is not of the type that GARM sends" } else { "is not JSON" };
        wrong(&format!("{} {what} (line {}, column {})", error.path(), error.inner().line(), error.inner().column()))
    })?;
    json.end().map_err(|_| wrong("something follows the request"))?;
    for (key, value) in [
        ("name", &request.name),
        ("callback-url", &request.callback_url),
        ("metadata-url", &request.metadata_url),
        ("image", &request.image),
    ] {
        if value.is_empty() {
            return Err(wrong(&format!("`{key}` is missing")));
        }
    }
    Ok(request)
}

fn wrong(what: &str) -> GarmFailure {
    GarmFailure::Failed(format!("the request on standard input: {what}"))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;
    use serde_json::json;

    use super::*;

    #[test]
    fn null_missing_and_unknown_keys_are_accepted() {
        let request = json!({
            "name": "garm-a", "callback-url": "http://g/c", "metadata-url": "http://g/m", "image": "micro",
            "instance-token": "hush", "tools": null, "labels": null, "ssh-keys": null, "ca-cert-bundle": null,
            "extra_specs": [1], "proxy_config": null, "user_data_options": {"extra_packages": null}, "new-key": {},
        });
        let request = parse(request.to_string().as_bytes()).unwrap();
        assert_eq!((request.tools.len(), request.labels.len(), request.ca_bundle.as_str()), (0, 0, ""));
        assert_eq!(request.instance_token.expose_secret(), "hush");
        assert!(!format!("{request:?}").contains("hush"));
    }

    #[test]
    fn errors_name_the_place_and_not_the_value() {
        for (text, named) in [
            (r#"{"name": ["hush"]}"#, "name is not of the type"),
            (r#"{"tools": [{"os": {"hush": 1}}]}"#, "tools[0].os is not of the type"),
            (r#"{"instance-token": "hush"#, "is not JSON (line 1"),
            ("", "is not JSON"),
            (r#"{"name": "a"}"#, "`callback-url` is missing"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(named) && !error.contains("hush"), "{error}");
        }
    }
}
