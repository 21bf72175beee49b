//! What the failures of a registry mean: which are final, which may pass, and which are believed only when they come twice.

use std::time::{Duration, Instant};

use axum::{body::Body, http::Response};
use futures_util::{StreamExt as _, stream};
use mayfly::domain::Error;
use serde_json::json;

use super::*;
use crate::support::{
    authority::Authority,
    scripted_registry::{Asked, ScriptedRegistry, status, with_headers},
    tart_image::{INDEX, MANIFEST, canonical},
};

fn small() -> TartImage {
    TartImage::new(&[Content::Text(1, 60_000), Content::Noise(2, 400_288)], Encoding::Linked)
}

/// A host that uses plain HTTP for registries on itself.
fn plain(keys: Arc<dyn CredentialSource>) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(dir.path().join("templates")).unwrap();
    let mut settings = settings(PathBuf::new());
    settings.registry.ca_file = None;
    settings.registry.plain_http = true;
    settings.registry.idle_timeout = Duration::from_millis(600);
    Host { puller: Puller::new(catalog.clone(), settings, keys), dir, catalog }
}

fn reference(registry: &ScriptedRegistry) -> String {
    format!("{}/{REPOSITORY}:1", registry.address)
}

async fn refused(registry: &ScriptedRegistry, keys: Arc<dyn CredentialSource>) -> Error {
    let error = plain(keys).pull(&reference(registry), "macos").await.unwrap_err();
    Error::from(&*error)
}

/// These bytes, and blanks without an end.
fn endless(begin: Vec<u8>) -> Response<Body> {
    let begin = stream::iter([Ok::<_, std::io::Error>(begin)]);
    let pieces = stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 64 << 10]));
    Response::new(Body::from_stream(begin.chain(pieces)))
}

/// A byte now and then.
fn trickle() -> Response<Body> {
    let pieces = stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        Some((Ok::<_, std::io::Error>(vec![b'x']), ()))
    });
    Response::new(Body::from_stream(pieces))
}

type Answer = fn() -> Response<Body>;

#[tokio::test(flavor = "multi_thread")]
async fn each_answer_has_its_meaning() {
    let image = small();
    let big = image.chunk(1).digest();
    let (final_, passing) = (Code::ImageRefused, Code::ImageUnavailable);
    let blobs: Vec<(&str, Answer, Code, usize, &str)> = vec![
        ("400", || status(400), final_, 1, "400"),
        ("401 without a challenge", || status(401), final_, 1, "WWW-Authenticate"),
        ("403", || status(403), final_, 1, "403"),
        ("404", || status(404), final_, 2, "does not have"),
        ("410", || status(410), final_, 1, "410"),
        ("418", || status(418), final_, 1, "418"),
        ("501", || status(501), final_, 1, "501"),
        ("301 without a location", || status(301), final_, 1, "301"),
        ("redirects in a circle", || with_headers(307, &[("location", "?again")]), final_, 6, "too many redirects"),
        ("an empty success", || status(204), final_, 2, "204"),
        ("another length", || Response::new("short".into()), final_, 2, "a body of 5 bytes"),
        ("500", || status(500), passing, 4, "500"),
        ("429", || status(429), passing, 4, "429"),
        ("a long pause", || with_headers(429, &[("retry-after", "3600")]), passing, 1, "a pause of 3600 s"),
        ("a trickle", trickle, passing, 4, "bytes arrived within"),
    ];
    for (what, answer, code, requests, said) in blobs {
        let wrong = format!("blobs/{big}");
        let registry = ScriptedRegistry::with(&image, move |asked, _| asked.path.ends_with(&wrong).then(answer)).await;
        let error = refused(&registry, Keys::none()).await;
        assert_eq!(error.code, code, "{what}: {error}");
        assert!(error.detail.contains(said), "{what}: {error}");
        assert_eq!(registry.asked(&big).len(), requests, "{what}: {error}");
        assert_eq!(error.retry_after, (what == "a long pause").then_some(3600), "{what}");
    }
    // All but its last byte is right, so that nothing but its length is wrong.
    let (wrong, mut begin) = (format!("blobs/{big}"), image.chunk(1).blob.clone());
    begin.pop();
    let registry =
        ScriptedRegistry::with(&image, move |asked, _| asked.path.ends_with(&wrong).then(|| endless(begin.clone())))
            .await;
    let error = refused(&registry, Keys::none()).await;
    assert_eq!((error.code, registry.asked(&big).len()), (final_, 1), "{error}");
    assert!(error.detail.contains("more than the"), "{error}");

    let manifests: Vec<(&str, Answer, Code, usize, &str)> = vec![
        ("404", || status(404), final_, 2, "does not have"),
        ("a manifest without an end", || endless(Vec::new()), final_, 1, "more than 4194304 bytes"),
        ("a trickle", trickle, passing, 4, "bytes arrived within"),
        (
            "503 with a date",
            || with_headers(503, &[("retry-after", "Thu, 31 Dec 2099 23:59:59 GMT")]),
            passing,
            1,
            "503",
        ),
    ];
    for (what, answer, code, requests, said) in manifests {
        let registry =
            ScriptedRegistry::with(&image, move |asked, _| asked.path.contains("/manifests/").then(answer)).await;
        let error = refused(&registry, Keys::none()).await;
        assert_eq!((error.code, registry.asked("/1").len()), (code, requests), "{what}: {error}");
        assert!(error.detail.contains(said), "{what}: {error}");
    }
}

/// As Amazon's: 401 without a password, 403 with one that has expired.
fn like_amazons(asked: &Asked, accepted: &str) -> Option<Response<Body>> {
    match &asked.authorization {
        None => Some(with_headers(401, &[("www-authenticate", "Basic realm=\"r\"")])),
        Some(given) if given == accepted => None,
        Some(_) => Some(status(403)),
    }
}

fn password(n: u32) -> Login {
    Login::new("AWS", &format!("password-{n}"))
}

fn basic(login: &Login) -> String {
    format!("Basic {}", login.basic())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_believed_after_the_credentials_were_renewed_once() {
    let image = small();
    // The first password expires after the manifest.
    let registry = ScriptedRegistry::with(&image, |asked, _| {
        let current = if asked.path.contains("/manifests/") { password(1) } else { password(2) };
        like_amazons(asked, &basic(&current))
    })
    .await;
    let keys = Keys::of(password(1), password(2));
    same(&plain(keys.clone()).pull(&reference(&registry), "macos").await.unwrap(), &image);
    assert_eq!(keys.asked.load(Ordering::SeqCst), 2);

    // Neither is accepted any more: the second one is sent once by whoever was refused, and not again and again.
    let registry = ScriptedRegistry::with(&image, |asked, _| {
        let current = if asked.path.contains("/manifests/") { password(1) } else { password(3) };
        like_amazons(asked, &basic(&current))
    })
    .await;
    let keys = Keys::of(password(1), password(2));
    let error = refused(&registry, keys.clone()).await;
    assert_eq!(error.code, Code::ImageRefused, "{error}");
    assert_eq!(keys.asked.load(Ordering::SeqCst), 2, "one renewal");
    assert!(!error.to_string().contains("password-"), "{error}");

    // The same password again is not sent twice.
    let registry = ScriptedRegistry::with(&image, |asked, _| like_amazons(asked, "Basic none")).await;
    let error = refused(&registry, Keys::of(password(1), password(1))).await;
    assert_eq!(error.code, Code::ImageRefused, "{error}");
    assert_eq!(registry.asked("/1").len(), 2, "without a password, and with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn known_credentials_are_sent_before_a_hidden_image_is_believed_to_be_absent() {
    let image = small();
    let accepted = || basic(&password(1));
    for (hides, asks) in [(404, true), (403, true), (404, false), (401, true)] {
        let registry = ScriptedRegistry::with(&image, move |asked, _| {
            let let_in = asked.authorization.as_deref() == Some(&accepted());
            match asked.path.as_str() {
                "/v2/" if asks => Some(with_headers(401, &[("www-authenticate", "Basic realm=\"r\"")])),
                "/v2/" => Some(status(200)),
                _ if let_in => None,
                _ => Some(status(hides)),
            }
        })
        .await;
        let keys = Keys::of(password(1), password(1));
        same(&plain(keys).pull(&reference(&registry), "macos").await.unwrap(), &image);
        let manifests = registry.asked("/1");
        assert_eq!((manifests[0].authorization.clone(), manifests.len()), (None, 2), "{hides} {asks}");

        // Without credentials there is nothing to try, and the entrance is not asked either.
        let error = refused(&registry, Keys::none()).await;
        assert_eq!(error.code, Code::ImageRefused, "{error}");
    }
    // What is absent for a reader with credentials, too, is absent.
    let registry = ScriptedRegistry::with(&image, |asked, _| (asked.path != "/v2/").then(|| status(404))).await;
    let error = refused(&registry, Keys::of(password(1), password(1))).await;
    assert!(error.detail.contains("does not have the manifest"), "{error}");
    assert_eq!(registry.asked("/v2/").len(), 1);
}

/// A source of credentials that is out of reach at first.
struct Booting {
    failures: AtomicUsize,
    temporary: bool,
}

#[async_trait]
impl CredentialSource for Booting {
    async fn get(&self, registry: &str, _: bool) -> Result<Option<RegistryCredential>, CredentialError> {
        if self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(CredentialError {
                registry: registry.into(),
                source_name: "test".into(),
                what: "no network".into(),
                temporary: self.temporary,
            });
        }
        let login = password(1);
        Ok(Some(RegistryCredential { username: login.user, secret: login.password.into(), expires_at: None }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_of_credentials_may_fail_for_a_while() {
    let image = small();
    let registry = ScriptedRegistry::with(&image, |asked, _| like_amazons(asked, &basic(&password(1)))).await;
    let source = |failures, temporary| Arc::new(Booting { failures: AtomicUsize::new(failures), temporary });
    same(&plain(source(3, true)).pull(&reference(&registry), "macos").await.unwrap(), &image);
    let error = refused(&registry, source(100, true)).await;
    assert_eq!(error.code, Code::ImageUnavailable, "{error}");
    assert!(error.detail.contains("no network"), "{error}");
    let error = refused(&registry, source(100, false)).await;
    assert_eq!(error.code, Code::ImageRefused, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_of_a_token_service_is_extended_and_not_rebuilt() {
    let image = small();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let registry = ScriptedRegistry::on(listener, &image, move |asked, _| match asked.path.as_str() {
        "/token" => Some(Response::new("{\"token\":\"t\"}".into())),
        _ if asked.authorization.as_deref() == Some("Bearer t") => None,
        _ => {
            let own = "tenant=a%20b+c&flag&service=own&sig=%2f%2F";
            let challenge = format!("Bearer realm=\"http://{address}/token?{own}\"");
            Some(with_headers(401, &[("www-authenticate", &challenge)]))
        }
    });
    same(&plain(Keys::none()).pull(&reference(&registry), "macos").await.unwrap(), &image);
    let tokens = registry.asked("/token");
    let scope = "scope=repository%3Aacme%2Fmacos%3Apull";
    assert_eq!(tokens[0].query, format!("tenant=a%20b+c&flag&service=own&sig=%2f%2F&{scope}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_within_lists_are_read() {
    let image = small();
    let entry = |kind: &str, digest: &str, platform: serde_json::Value| {
        let mut entry = json!({"mediaType": kind, "digest": digest, "size": 1000});
        if !platform.is_null() {
            entry["platform"] = platform;
        }
        entry
    };
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let mine = json!({"os": "darwin", "architecture": architecture});
    let list = |entries: Vec<serde_json::Value>| {
        canonical(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}))
    };
    let inner = list(vec![entry(MANIFEST, &image.digest(), mine)]);
    let empty = list(vec![entry(INDEX, &digest(&inner), json!({"os": "linux", "architecture": "s390x"}))]);
    let outer = list(vec![
        entry(INDEX, &digest(&inner), json!(null)),
        entry("application/vnd.example.attestation", &digest(b"x"), json!(null)),
    ]);
    for (top, found) in [(outer, true), (empty, false)] {
        let inner = inner.clone();
        let registry = ScriptedRegistry::with(&image, move |asked, _| {
            let list = match asked.path.rsplit('/').next().unwrap() {
                "1" => top.clone(),
                wanted if wanted == digest(&inner) => inner.clone(),
                _ => return None,
            };
            Some(Response::builder().header("content-type", INDEX).body(list.into()).unwrap())
        })
        .await;
        let host = plain(Keys::none());
        let pulled = host.pull(&reference(&registry), "macos").await;
        match found {
            true => same(&pulled.unwrap(), &image),
            false => {
                let error = pulled.unwrap_err().to_string();
                assert!(error.contains("a list without an image that could be pulled"), "{error}");
                assert!(error.contains("name the image itself"), "{error}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_may_be_an_ipv6_address() {
    let Ok(listener) = tokio::net::TcpListener::bind("[::1]:0").await else {
        eprintln!("this machine has no IPv6");
        return;
    };
    let image = small();
    let registry = ScriptedRegistry::on(listener, &image, |_, _| None);
    assert!(registry.address.starts_with("[::1]:"), "{}", registry.address);
    same(&plain(Keys::none()).pull(&reference(&registry), "macos").await.unwrap(), &image);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_no_guest_can_have_is_refused_before_it_is_downloaded() {
    let image = TartImage::new(&[Content::Noise(2, 400_545)], Encoding::Linked);
    let registry = ScriptedRegistry::with(&image, |_, _| None).await;
    let error = refused(&registry, Keys::none()).await;
    assert_eq!(error.code, Code::TemplateInvalid, "{error}");
    assert!(error.detail.contains("400545 bytes, a raw disk is a multiple of 512"), "{error}");
    assert_eq!(registry.asked(&image.chunk(0).digest()).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_trusted_is_not_asked_again() {
    let registry = Registry::open().await;
    let image = small();
    image.push(&registry, REPOSITORY, "1").await;
    let expired = Proxy::before(&registry).expired().start().await;
    let valid = Proxy::before(&registry).start().await;
    let no_tls = Proxy::before(&registry).plain().start().await;
    let stranger = Authority::new();
    for (proxy, ca, said) in [
        (&expired, registry.authority.file(), "its certificate has expired"),
        (&valid, stranger.file(), "no authority that this host trusts"),
        (&no_tls, registry.authority.file(), "it does not answer in TLS"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path().join("templates")).unwrap();
        let mut settings = settings(ca);
        // Another attempt would take as long as this.
        settings.registry.retry.first_pause = Duration::from_secs(60);
        settings.registry.retry.longest_pause = Duration::from_secs(60);
        let host = Host { puller: Puller::new(catalog.clone(), settings, Keys::none()), dir, catalog };
        let began = Instant::now();
        let error = host.pull(&format!("{}/{REPOSITORY}:1", proxy.address()), "macos").await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(Error::from(&*error).code, Code::ImageRefused, "{error}");
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
