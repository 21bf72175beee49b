//! Amazon's registry: moto's server (PyPI) simulates ECR, STS and IAM; a strict stand-in of ours simulates the instance's metadata
//! service; a relay before moto notes who signed what for which region.
//!
//! The SDK finds its way by the environment, which a running process cannot change for itself: each question is asked in a
//! process of its own, this test binary again.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header::AUTHORIZATION},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use jiff::Timestamp;
use mayfly::registry::credentials::{CredentialSource, Ecr};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::support::moto::Moto;

const REGISTRY: &str = "123456789012.dkr.ecr.eu-central-1.amazonaws.com";
const INSTANCE_KEY: &str = "ASIAINSTANCEROLE0000";

/// `key/region/service` of every request.
type Signed = Arc<Mutex<Vec<String>>>;

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

/// Passes everything on, and notes the signatures.
async fn relay(to: &str) -> (String, Signed) {
    #[derive(Clone)]
    struct Relay(reqwest::Client, String, Signed);

    async fn pass(
        State(Relay(http, to, signed)): State<Relay>,
        method: Method,
        uri: Uri,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Response {
        // AWS4-HMAC-SHA256 Credential=<key>/<date>/<region>/<service>/aws4_request, SignedHeaders=…
        let scope = headers[AUTHORIZATION].to_str().unwrap().split("Credential=").nth(1).unwrap();
        let scope: Vec<&str> = scope.split('/').collect();
        signed.lock().unwrap().push(format!("{}/{}/{}", scope[0], scope[2], scope[3]));
        headers.remove("content-length");
        let reply = http.request(method, format!("{to}{uri}")).headers(headers).body(body).send().await.unwrap();
        let (status, kind) = (reply.status(), reply.headers().get("content-type").cloned());
        let mut passed = (status, reply.bytes().await.unwrap()).into_response();
        if let Some(kind) = kind {
            passed.headers_mut().insert("content-type", kind);
        }
        passed
    }

    let signed = Signed::default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let router = Router::new().fallback(pass).with_state(Relay(http, to.to_owned(), signed.clone()));
    (serve(router).await, signed)
}

/// The metadata service in its second version, which gives nothing without a session's token.
async fn metadata() -> String {
    const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
    const TOKEN: &str = "x-aws-ec2-metadata-token";

    fn told(headers: &HeaderMap, answer: String) -> Response {
        if headers.get(TOKEN).is_none_or(|t| t != "a-session") {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        answer.into_response()
    }
    async fn session(headers: HeaderMap) -> Response {
        let Some(ttl) = headers.get(TTL).cloned() else { return StatusCode::BAD_REQUEST.into_response() };
        if headers.contains_key("x-forwarded-for") {
            return StatusCode::FORBIDDEN.into_response();
        }
        ([(TTL, ttl)], "a-session").into_response()
    }
    async fn roles(headers: HeaderMap) -> Response {
        told(&headers, "mac-host".into())
    }
    async fn role(headers: HeaderMap) -> Response {
        let end = Timestamp::now() + jiff::SignedDuration::from_hours(6);
        let keys = json!({
            "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z", "AccountId": "123456789012",
            "AccessKeyId": INSTANCE_KEY, "SecretAccessKey": "instance-hunter2", "Token": "session-hunter2",
            "Expiration": format!("{end:.0}"),
        });
        told(&headers, keys.to_string())
    }
    let credentials = "/latest/meta-data/iam/security-credentials";
    serve(
        Router::new()
            .route("/latest/api/token", put(session))
            .route(credentials, get(roles))
            .route(&format!("{credentials}/"), get(roles))
            .route(&format!("{credentials}/mac-host"), get(role)),
    )
    .await
}

/// What ECR's source says in a process with this environment, and nothing else of Amazon's in reach.
async fn ask(registry: &str, env: &[(&str, &str)]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let answer = dir.path().join("answer.json");
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "credentials::amazon::asks_in_the_environment_it_is_given", "--ignored", "--nocapture"])
        .env_clear()
        .env("HOME", dir.path())
        .env("AWS_CONFIG_FILE", dir.path().join("none"))
        .env("AWS_SHARED_CREDENTIALS_FILE", dir.path().join("none"))
        .env("MAYFLY_TEST_REGISTRY", registry)
        .env("MAYFLY_TEST_ANSWER", &answer)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output =
        tokio::time::timeout(Duration::from_secs(90), command.output()).await.expect("an answer in time").unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    serde_json::from_slice(&std::fs::read(answer).expect(&said)).unwrap()
}

#[tokio::test]
#[ignore = "the other tests start it, each in an environment of its own"]
async fn asks_in_the_environment_it_is_given() {
    let registry = std::env::var("MAYFLY_TEST_REGISTRY").expect("started by another test");
    let answer = match Ecr.get(&registry, false).await {
        Ok(None) => json!({"nothing": true}),
        Ok(Some(c)) => {
            let shown = format!("{c:?}");
            assert!(!shown.contains(c.secret.expose_secret()), "{shown}");
            json!({"username": c.username, "secret": c.secret.expose_secret(), "expires_at": c.expires_at.map(|t| t.to_string())})
        }
        Err(e) => json!({"error": e.to_string(), "temporary": e.temporary}),
    };
    std::fs::write(std::env::var_os("MAYFLY_TEST_ANSWER").unwrap(), answer.to_string()).unwrap();
}

/// As moto gives it: of an end in 2015, which says nothing of a token that was made just now.
fn token() -> Value {
    json!({"username": "AWS", "secret": "123456789012-auth-token", "expires_at": null})
}

#[tokio::test]
async fn keys_of_the_environment_get_a_token_in_the_registrys_region() {
    let moto = Moto::start(&[]).await;
    let (url, signed) = relay(&moto.url).await;
    let env = [
        ("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT00000"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ("AWS_ENDPOINT_URL_ECR", &url),
    ];
    assert_eq!(ask(REGISTRY, &env).await, token());
    // The region is the registry's, whatever the environment says.
    let elsewhere = [env[0], env[1], env[2], ("AWS_REGION", "us-west-2")];
    assert_eq!(ask("210987654321.dkr-ecr.ap-south-1.on.aws", &elsewhere).await, token());
    assert_eq!(ask("public.ecr.aws", &env).await, json!({"nothing": true}));
    assert_eq!(
        *signed.lock().unwrap(),
        ["AKIAENVIRONMENT00000/eu-central-1/ecr", "AKIAENVIRONMENT00000/ap-south-1/ecr"]
    );
}

#[tokio::test]
async fn the_instances_role_gets_a_token() {
    let (moto, imds) = (Moto::start(&[]).await, metadata().await);
    let (url, signed) = relay(&moto.url).await;
    let env = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.as_str()), ("AWS_ENDPOINT_URL", &url)];
    assert_eq!(ask(REGISTRY, &env).await, token());
    assert_eq!(*signed.lock().unwrap(), [format!("{INSTANCE_KEY}/eu-central-1/ecr")]);
}

#[tokio::test]
async fn a_profile_assumes_its_role_with_the_instances_role() {
    let (moto, imds) = (Moto::start(&[]).await, metadata().await);
    let (url, signed) = relay(&moto.url).await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    std::fs::write(
        &config,
        "[profile images]\nrole_arn = arn:aws:iam::123456789012:role/images\ncredential_source = Ec2InstanceMetadata\n",
    )
    .unwrap();
    let env = [
        ("AWS_CONFIG_FILE", config.to_str().unwrap()),
        ("AWS_PROFILE", "images"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &imds),
        ("AWS_ENDPOINT_URL", &url),
    ];
    assert_eq!(ask(REGISTRY, &env).await, token());
    let signed = signed.lock().unwrap().clone();
    let [to_sts, to_ecr] = &signed[..] else { panic!("{signed:?}") };
    assert_eq!(*to_sts, format!("{INSTANCE_KEY}/eu-central-1/sts"));
    assert!(to_ecr.ends_with("/eu-central-1/ecr") && !to_ecr.starts_with(INSTANCE_KEY), "{to_ecr}");
}

#[tokio::test]
async fn without_credentials_it_says_so_and_does_not_hang() {
    let off = ask(REGISTRY, &[("AWS_EC2_METADATA_DISABLED", "true")]).await;
    assert_eq!(off["temporary"], false, "{off}");
    let error = off["error"].as_str().unwrap();
    assert!(
        error.starts_with(&format!("credentials for {REGISTRY}: Amazon ECR: there are no AWS credentials")),
        "{error}"
    );

    // Takes connections and never answers, as a firewall before the metadata service can.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let imds = format!("http://{}", silent.local_addr().unwrap());
    let began = Instant::now();
    let error = ask(REGISTRY, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &imds)]).await;
    assert!(error["error"].as_str().unwrap().contains("no AWS credentials"), "{error}");
    assert_eq!(error["temporary"], true, "{error}");
    // A host that boots before its network does.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = ask(REGISTRY, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &format!("http://{closed}"))]).await;
    assert_eq!(error["temporary"], true, "{error}");
    // An instance without a role: the service answers.
    let none =
        serve(Router::new().route(
            "/latest/api/token",
            put(|| async { ([("x-aws-ec2-metadata-token-ttl-seconds", "60")], "a-session") }),
        ))
        .await;
    let error = ask(REGISTRY, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &none)]).await;
    assert!(error["error"].as_str().unwrap().contains("there are no AWS credentials"), "{error}");
    assert_eq!(error["temporary"], false, "{error}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_profile_that_is_wrong_is_named() {
    let error = ask(REGISTRY, &[("AWS_PROFILE", "missing"), ("AWS_EC2_METADATA_DISABLED", "true")]).await;
    assert!(error["error"].as_str().unwrap().contains(r#"no profile "missing""#), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    std::fs::write(&config, "[profile half]\nrole_arn = arn:aws:iam::1:role/x\ncredential_source = Nowhere\n").unwrap();
    let env =
        [("AWS_CONFIG_FILE", config.to_str().unwrap()), ("AWS_PROFILE", "half"), ("AWS_EC2_METADATA_DISABLED", "true")];
    let error = ask(REGISTRY, &env).await;
    assert_eq!(error["temporary"], false, "{error}");
    let error = error["error"].as_str().unwrap();
    assert!(error.contains("AWS credentials: ") && error.contains("Nowhere"), "{error}");
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_an_error() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{closed}");
    let env = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "hunter2"), ("AWS_ENDPOINT_URL_ECR", &url)];
    let error = ask(REGISTRY, &env).await;
    assert_eq!(error["temporary"], true, "{error}");
    let error = error["error"].as_str().unwrap();
    assert!(error.contains("ECR in eu-central-1: dispatch failure") && error.contains("refused"), "{error}");
    assert!(!error.contains("hunter2"));
}

#[tokio::test]
async fn without_permission_there_is_no_token() {
    // After two requests, which make a user without any rights, moto begins to check who asks for what.
    let moto = Moto::start(&[("INITIAL_NO_AUTH_ACTION_COUNT", "2")]).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut keys = String::new();
    for action in ["CreateUser", "CreateAccessKey"] {
        let scope = "AKIA/20260101/us-east-1/iam/aws4_request";
        let reply = http
            .post(&moto.url)
            .header(AUTHORIZATION, format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("Action={action}&Version=2010-05-08&UserName=nobody"))
            .send()
            .await
            .unwrap();
        assert!(reply.status().is_success(), "{}", reply.text().await.unwrap());
        keys = reply.text().await.unwrap();
    }
    let between = |tag: &str| {
        let (_, rest) = keys.split_once(&format!("<{tag}>")).expect("moto gives a key");
        rest.split_once("</").unwrap().0.to_owned()
    };
    let (id, key) = (between("AccessKeyId"), between("SecretAccessKey"));
    let ask_as = |id: String, key: String| {
        let url = moto.url.clone();
        async move {
            let env = [("AWS_ACCESS_KEY_ID", &*id), ("AWS_SECRET_ACCESS_KEY", &*key), ("AWS_ENDPOINT_URL_ECR", &*url)];
            let answer = ask(REGISTRY, &env).await;
            let error = answer["error"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
            assert!(!error.contains(&key), "{error}");
            error
        }
    };
    // By moto's reading of the rights; it says so in XML, which ECR does not speak.
    for (id, key) in
        [(id.clone(), key), (id, "hunter2hunter2".into()), ("AKIANOBODYKNOWSTHIS0".into(), "hunter2hunter2".into())]
    {
        let refused = ask_as(id, key).await;
        assert!(refused.contains("ECR in eu-central-1 refused with status 403"), "{refused}");
    }
}

/// As ECR itself words it.
#[tokio::test]
async fn a_refusal_shows_its_code_and_not_the_request() {
    for (code, message, expected) in [
        ("ServerException", "try again", "refused: ServerException: try again"),
        ("ThrottlingException", "Rate exceeded", "refused: ThrottlingException: Rate exceeded"),
        (
            "AccessDeniedException",
            "User: arn:aws:iam::123456789012:user/nobody is not authorized to perform: ecr:GetAuthorizationToken on resource: *",
            "refused: AccessDeniedException: User: arn:aws:iam::123456789012:user/nobody is not authorized to perform: ecr:GetAuthorizationToken on resource: * (ecr:GetAuthorizationToken has to be allowed)",
        ),
        (
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
            "refused: UnrecognizedClientException: The security token included in the request is invalid.",
        ),
        (
            "InvalidSignatureException",
            "The request signature we calculated does not match. The Canonical String for this request should have been\n'POST\n/\n\nx-amz-security-token:hunter2\n'",
            "refused: InvalidSignatureException: The request signature we calculated does not match. The Canonical String for this request should have been",
        ),
    ] {
        let body = json!({"__type": code, "message": message}).to_string();
        let status =
            if code == "ServerException" { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::BAD_REQUEST };
        let answer = move || {
            let body = body.clone();
            async move { (status, [("content-type", "application/x-amz-json-1.1")], body) }
        };
        let url = serve(Router::new().fallback(answer)).await;
        let env =
            [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "hunter2"), ("AWS_ENDPOINT_URL_ECR", &*url)];
        let error = ask(REGISTRY, &env).await;
        assert_eq!(error["temporary"], ["ServerException", "ThrottlingException"].contains(&code), "{error}");
        let error = error["error"].as_str().unwrap();
        assert!(error.ends_with(expected), "{error}");
    }
}
