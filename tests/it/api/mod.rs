//! The HTTP API over real sockets: real routers, real service, real database and template catalog. The driver is the fake
//! one and nobody reconciles, so a test decides what happens to a vm and when.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use mayfly::{
    app::{Built, Setup, build},
    domain::{
        Event, VmId,
        capacity::Capacity,
        host::DriverView,
        token::{NewToken, TokenScope},
    },
    drivers::{
        fake::{Fake, FakeWorld},
        inspector::HostInspector,
        registry::DriverRegistry,
    },
    http::{self, Http},
    parts::Parts,
    platform::data_dir::DataDir,
    reconcile::{JobLoops, PullLoops, jobs, pulls as pull_loops},
    service::{self, Services},
    sources::github::GitHubClient,
    store::{Expect, Ledger, Reader},
    templates::NewTemplate,
};
use reqwest::{Method, StatusCode, header};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::support::sources::only_github;

mod document;
mod events;
mod generated;
mod guests;
mod images;
mod input;
mod limits;
mod logs;
mod networks;
mod pages;
mod pools;
mod pull;
mod pulls;
mod push;
mod sessions;
mod templates;
mod token_limits;
mod tokens;
mod versions;
mod vms;
mod watches;
mod webhooks;

pub struct Api {
    pub admin: String,
    pub create: String,
    pub read: String,
    pub url: String,
    pub guest_url: String,
    pub address: SocketAddr,
    pub services: Services,
    pub parts: Parts,
    pub ledger: Ledger,
    pub reader: Reader,
    pub host: HostInspector,
    pub dir: tempfile::TempDir,
    /// Ends the listeners, and those who wait with them.
    pub shutdown: CancellationToken,
    /// Ends those who wait.
    pub waiting: CancellationToken,
    pull_settings: pull_loops::Settings,
    client: reqwest::Client,
    servers: Vec<JoinHandle<()>>,
}

/// An answer, read to its end.
pub struct Got {
    pub status: StatusCode,
    pub headers: header::HeaderMap,
    pub text: String,
}

impl Got {
    pub async fn of(response: reqwest::Response) -> Got {
        let (status, headers) = (response.status(), response.headers().clone());
        Got { status, headers, text: response.text().await.unwrap() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {} {:?}", self.status, self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|v| v.to_str().unwrap()).unwrap_or_default()
    }

    /// A problem document that keeps all its promises, with this status and code.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        let body = self.json();
        assert_eq!((self.status.as_u16(), body["code"].as_str().unwrap_or_default()), (status, code), "{body:#}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(body["type"], format!("/problems/{code}"));
        assert_eq!(body["status"], status);
        assert_eq!(body["request_id"], self.header("x-request-id"));
        for field in ["title", "detail", "instance"] {
            assert!(body[field].as_str().is_some_and(|s| !s.is_empty()), "{field}: {body:#}");
        }
        assert!(body["retryable"].is_boolean());
        body
    }

    #[track_caller]
    pub fn ok(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        if self.text.is_empty() { Value::Null } else { self.json() }
    }
}

/// Where a problem points first.
pub fn pointer(problem: &Value) -> &str {
    problem["errors"][0]["pointer"].as_str().unwrap_or("(none)")
}

pub async fn api() -> Api {
    api_with(http::Settings::default(), service::Settings::default()).await
}

pub async fn api_with(settings: http::Settings, limits: service::Settings) -> Api {
    api_of(settings, |setup| setup.service = limits).await
}

/// Of a service that has a way to GitHub.
pub async fn api_with_github(limits: service::Settings, github: GitHubClient) -> Api {
    let change = |setup: &mut Setup| {
        setup.service = limits;
        setup.sources = only_github(Arc::new(github));
    };
    api_of(http::Settings::default(), change).await
}

/// With what the caller changes of a usual service. Nothing is done about pulls and watches until `Api::pull` is called.
pub async fn api_of(settings: http::Settings, change: impl FnOnce(&mut Setup)) -> Api {
    let dir = tempfile::tempdir().unwrap();
    let capacity = Capacity { macos_slots: 2, linux_slots: 2, cpus: 8, memory_mib: 8192, max_kept_seconds: 3600 };
    let drivers = DriverRegistry::default().with(Arc::new(Fake::new(FakeWorld::new())));
    let mut setup = Setup::new(DataDir::new(dir.path()), drivers, capacity);
    change(&mut setup);
    let pull_settings = setup.reconcile.pulls.clone();
    let Built { parts, services, .. } = build(setup).await.unwrap();
    parts.host.update(|view| {
        view.observed = true;
        view.drivers = vec![DriverView {
            name: Fake::NAME.to_owned(),
            usable: true,
            version: None,
            arch: None,
            accelerator: None,
            note: None,
            fault: None,
            network: Default::default(),
        }];
    });
    let disk = disk(&dir, "disk.raw", 1);
    parts.catalog.register(new_template("micro", disk)).await.unwrap();
    let token = async |name: &str, scope| {
        services.tokens.create(NewToken::new(name, scope)).await.unwrap().1.expose_secret().to_owned()
    };
    let (admin, create, read) =
        (token("a", TokenScope::Admin).await, token("c", TokenScope::Create).await, token("r", TokenScope::Read).await);
    let shutdown = CancellationToken::new();
    let waiting = shutdown.child_token();
    let http = Http {
        services: services.clone(),
        settings,
        metrics: Arc::new(|| "# TYPE mayfly_up gauge\nmayfly_up 1\n".to_owned()),
        shutdown: waiting.clone(),
    };
    let listeners = (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = listeners.0.local_addr().unwrap();
    let url = format!("http://{address}");
    let guest_url = format!("http://{}", listeners.1.local_addr().unwrap());
    let most = http.settings.max_connections;
    let servers = vec![
        tokio::spawn(http::serve_tcp(listeners.0, None, most, http::admin_routers(&http).admin, shutdown.clone())),
        tokio::spawn(http::serve_tcp(listeners.1, None, most, http::guest_router(&http), shutdown.clone())),
    ];
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(30))
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    Api {
        admin,
        create,
        read,
        url,
        guest_url,
        address,
        services,
        ledger: parts.ledger.clone(),
        reader: parts.reader.clone(),
        host: parts.host.clone(),
        parts,
        pull_settings,
        dir,
        shutdown,
        waiting,
        client,
        servers,
    }
}

pub fn disk(dir: &tempfile::TempDir, name: &str, fill: u8) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, vec![fill; 64 * 1024]).unwrap();
    path
}

pub fn new_template(name: &str, disk: PathBuf) -> NewTemplate {
    NewTemplate {
        driver: Some("fake".into()),
        cpus: Some(1),
        memory_mib: Some(128),
        ..NewTemplate::of_disk(name, disk)
    }
}

impl Api {
    pub fn request(&self, method: Method, path: &str, token: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        if token.is_empty() { request } else { request.bearer_auth(token) }
    }

    /// On the guest listener.
    pub async fn guest(&self, method: Method, path: &str, token: &str, body: Option<Value>) -> Got {
        let mut request = self.client.request(method, format!("{}{path}", self.guest_url));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        Got::of(request.send().await.unwrap()).await
    }

    pub async fn get(&self, path: &str, token: &str) -> Got {
        Got::of(self.request(Method::GET, path, token).send().await.unwrap()).await
    }

    pub async fn delete(&self, path: &str, token: &str) -> Got {
        Got::of(self.request(Method::DELETE, path, token).send().await.unwrap()).await
    }

    pub async fn post(&self, path: &str, token: &str, body: Value) -> Got {
        Got::of(self.request(Method::POST, path, token).json(&body).send().await.unwrap()).await
    }

    /// A body as it is, with a content type.
    pub async fn post_raw(&self, path: &str, content_type: &str, body: impl Into<reqwest::Body>) -> Got {
        let request = self.request(Method::POST, path, &self.admin).header(header::CONTENT_TYPE, content_type);
        Got::of(request.body(body).send().await.unwrap()).await
    }

    /// A new vm: its id and its own token.
    pub async fn vm(&self, name: &str) -> (VmId, String) {
        let vm = self.post("/vms", &self.create, json!({"template": "micro", "name": name})).await.ok(201);
        (vm["id"].as_str().unwrap().parse().unwrap(), vm["callback_token"].as_str().unwrap().to_owned())
    }

    /// A vm with a job that would be running once these events have happened.
    pub async fn running(&self, name: &str) -> (VmId, String) {
        use mayfly::domain::runner::RunnerFact;
        let (id, token) = self.configured(name).await;
        self.apply(id, Event::RunnerChanged { fact: RunnerFact::JobStarted }).await;
        (id, token)
    }

    /// The token of the job in this vm's guest.
    pub fn job_token(&self, id: VmId) -> String {
        self.parts.vault.vm_token(id, mayfly::domain::GuestRole::Job).expose_secret().to_owned()
    }

    /// A vm whose guest may start its job, and has not reported that it did.
    pub async fn configured(&self, name: &str) -> (VmId, String) {
        let body = json!({"template": "micro", "name": name, "runner": {"kind": "command", "command": "true"}});
        let vm = self.post("/vms", &self.create, body).await.ok(201);
        let id = vm["id"].as_str().unwrap().parse().unwrap();
        use mayfly::domain::event::ReadyVia;
        for event in
            [Event::SlotTaken, Event::Cloned, Event::GuestReady { via: ReadyVia::GuestCall }, Event::GuestConfigured]
        {
            self.apply(id, event).await;
        }
        (id, vm["callback_token"].as_str().unwrap().to_owned())
    }

    pub async fn apply(&self, id: VmId, event: Event) {
        let applied = self.ledger.apply(id, Expect::Anything, event.clone(), self.services.hosts.now()).await.unwrap();
        assert!(applied.changed(), "{event:?} did nothing");
    }

    /// From wherever it is to its end.
    pub async fn finish(&self, id: VmId) {
        self.ledger
            .apply(
                id,
                Expect::Anything,
                Event::EndForced { by: mayfly::domain::Announcer::Admin },
                self.services.hosts.now(),
            )
            .await
            .unwrap();
        while let Some(vm) = self.reader.vm(id).await.unwrap() {
            use mayfly::domain::State;
            match vm.state {
                State::Stopping => self.apply(id, Event::InstanceStopped).await,
                State::Deleting => self.apply(id, Event::InstanceAbsent).await,
                State::Deleted => return,
                other => panic!("{other} after a forced end"),
            }
        }
    }

    pub async fn put(&self, path: &str, token: &str, body: Value) -> Got {
        Got::of(self.request(Method::PUT, path, token).json(&body).send().await.unwrap()).await
    }

    pub fn pull_loops(&self) -> PullLoops {
        let (vms, pulls) = (self.services.admission.clone(), self.services.pull_admission.clone());
        PullLoops::new(&self.parts, vms, pulls, self.pull_settings.clone())
    }

    pub fn job_loops(&self) -> JobLoops {
        JobLoops::new(&self.parts, self.services.admission.clone(), jobs::Settings::default())
    }

    /// From now on, pulls and watches are worked on.
    pub fn pull(&mut self) {
        self.servers.push(tokio::spawn(self.pull_loops().run(self.shutdown.clone())));
    }

    /// Follows a pull by its generations until `done`.
    pub async fn pull_until(&self, id: &str, done: impl Fn(&Value) -> bool) -> Value {
        let end = tokio::time::Instant::now() + Duration::from_secs(30);
        let mut generation = 0;
        loop {
            let path = format!("/pulls/{id}?timeout_seconds=5&wait_generation={generation}");
            let pull = self.get(&path, &self.read).await.ok(200);
            if done(&pull) {
                return pull;
            }
            assert!(tokio::time::Instant::now() < end, "stuck: {pull:#}");
            assert!(pull["ended_at"].is_null(), "ended otherwise: {pull:#}");
            generation = pull["generation"].as_i64().unwrap();
        }
    }

    pub async fn pull_ended(&self, id: &str, state: &str) -> Value {
        self.pull_until(id, |pull| pull["state"] == state).await
    }

    /// What happened to a template: the types of its events.
    pub async fn happened(&self, template: &str) -> Vec<String> {
        let list = self.get(&format!("/templates/{template}/events?limit=200"), &self.read).await.ok(200);
        list["items"].as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap().to_owned()).collect()
    }

    pub async fn stop(&mut self) {
        self.shutdown.cancel();
        for server in self.servers.drain(..) {
            tokio::time::timeout(Duration::from_secs(8), server).await.expect("the listener ends in time").unwrap();
        }
    }
}
