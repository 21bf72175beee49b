//! Logins of registries. Passwords can be written but never read.

use std::{fmt, sync::Arc};

use axum::{Json as Answer, extract::State as FromState, http::StatusCode};
use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use super::{
    Http,
    auth::{Admin, Allowed},
    extract::{Json, Name},
    middleware::RequestPermit,
    openapi::examples,
    problem::Problem,
    time::Time,
};
use crate::service::registries::{LoggedIn, LoginOrigin, SavedLogin};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// `AWS` for Amazon ECR, which needs no login if the host has a role.
    #[schema(example = "ci", min_length = 1)]
    username: String,
    /// Password or token. It is stored in a file that only the service can read, and never shown.
    #[schema(value_type = String, format = "password", write_only, min_length = 1)]
    #[serde(deserialize_with = "secret")]
    password: SecretString,
    /// Test the login at the registry, and store it only if the registry accepts it.
    #[serde(default = "yes")]
    #[schema(default = true)]
    check: bool,
}

fn yes() -> bool {
    true
}

/// Serde would quote the unexpected value, which may be the password.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    struct Text;
    impl de::Visitor<'_> for Text {
        type Value = SecretString;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("text")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretString, E> {
            Ok(text.into())
        }
        fn visit_bool<E: de::Error>(self, _: bool) -> Result<SecretString, E> {
            Err(E::custom("expected text"))
        }
        fn visit_i64<E: de::Error>(self, _: i64) -> Result<SecretString, E> {
            Err(E::custom("expected text, found a number"))
        }
        fn visit_u64<E: de::Error>(self, _: u64) -> Result<SecretString, E> {
            Err(E::custom("expected text, found a number"))
        }
        fn visit_f64<E: de::Error>(self, _: f64) -> Result<SecretString, E> {
            Err(E::custom("expected text, found a number"))
        }
    }
    deserializer.deserialize_any(Text)
}

/// Where a login comes from.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoginSource {
    /// `password_file` in the configuration, which takes precedence over a login.
    Configuration,
    /// This operation.
    Login,
}

#[derive(Serialize, ToSchema)]
#[schema(as = RegistryLogin)]
pub struct LoginView {
    /// `host[:port]`, as in image references.
    registry: String,
    username: String,
    source: LoginSource,
    /// Null for a login in the configuration.
    saved_at: Option<Time>,
}

impl From<SavedLogin> for LoginView {
    fn from(known: SavedLogin) -> Self {
        let (source, saved_at) = match known.origin {
            LoginOrigin::Configuration => (LoginSource::Configuration, None),
            LoginOrigin::Login { saved_at } => (LoginSource::Login, Some(saved_at.into())),
        };
        Self { registry: known.registry, username: known.username, source, saved_at }
    }
}

#[derive(Serialize, ToSchema)]
pub struct KeptLogin {
    #[serde(flatten)]
    login: LoginView,
    /// Whether the registry was asked and accepted it.
    checked: bool,
    /// Notes for the caller, as sentences.
    notices: Vec<String>,
}

impl From<LoggedIn> for KeptLogin {
    fn from(done: LoggedIn) -> Self {
        Self { login: done.known.into(), checked: done.checked, notices: done.notices }
    }
}

#[derive(Serialize, ToSchema)]
pub struct LoginList {
    items: Vec<LoginView>,
}

/// Log in to a registry
///
/// For pulling and pushing images. The login is tested at the registry and stored only if the registry accepts it.
/// It replaces an earlier login.
#[utoipa::path(
    put, path = "/registries/{host}/login", tag = "registries",
    params(("host" = String, Path, description = "`host[:port]`, as in image references", example = "registry.example.com:5000")),
    request_body(content = LoginRequest, example = json!({"username": "ci", "password": "…"})),
    responses((status = 200, description = "The login is stored", body = KeptLogin, example = json!(examples::kept_login()))),
    security(("token" = ["admin"])),
)]
pub async fn log_in_to_registry(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    permit: RequestPermit,
    Name(host): Name,
    Json(request): Json<LoginRequest>,
) -> Result<Answer<KeptLogin>, Problem> {
    // A registry may take longer to refuse a connection than the time limit of requests.
    permit.disable_timeout();
    let LoginRequest { username, password, check } = request;
    Ok(Answer(http.services.registries.log_in(&host, &username, password, check).await?.into()))
}

/// Log out of a registry
///
/// Credentials in the configuration are kept.
#[utoipa::path(
    delete, path = "/registries/{host}/login", tag = "registries",
    params(("host" = String, Path, description = "`host[:port]`, as in image references", example = "registry.example.com:5000")),
    responses((status = 204, description = "The login was deleted")),
    security(("token" = ["admin"])),
)]
pub async fn log_out_of_registry(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(host): Name,
) -> Result<StatusCode, Problem> {
    http.services.registries.log_out(&host).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List logins to registries
///
/// Stored logins, and those in the configuration. Credentials from Docker's configuration, the environment and
/// Amazon ECR are looked up at each pull, and not listed.
#[utoipa::path(
    get, path = "/registries", tag = "registries",
    responses((status = 200, description = "All logins, without their passwords", body = LoginList, example = json!({"items": [examples::login()]}))),
    security(("token" = ["admin"])),
)]
pub async fn list_registries(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
) -> Result<Answer<LoginList>, Problem> {
    let items = http.services.registries.list_logins().await?.into_iter().map(LoginView::from).collect();
    Ok(Answer(LoginList { items }))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_password_is_text_and_never_quoted() {
        let read = |password: &str| {
            serde_json::from_str::<LoginRequest>(&format!(r#"{{"username": "ci", "password": {password}}}"#))
        };
        let request = read(r#""hunter2""#).unwrap();
        assert!(request.check && request.password.expose_secret() == "hunter2");
        for wrong in ["424242", "-424242", "424242.5", "true", "null", "[\"hunter2\"]", "{\"hunter2\": 1}"] {
            let error = read(wrong).err().expect("it is refused").to_string();
            assert!(
                error.contains("expected text") && !error.contains("4242") && !error.contains("hunter2"),
                "{error}"
            );
        }
    }
}
