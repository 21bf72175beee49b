//! Pools, and what is shown of vms that GitHub's jobs run on.

use jiff::Timestamp;
use mayfly::{
    domain::{
        Announcer, BudgetsPatch, EndProof, Event, Pool, SourceName,
        event::ReadyVia,
        job::{Job, JobUpdate, UpdateSource},
        job_record::{JobRecord, JobStatus},
        source_runner::Registered,
    },
    service,
    sources::github::{CredentialLocation, GitHubClient, GitHubOptions, Server},
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Api, Got, api, api_with_github, pointer};
use crate::support::{
    Serve,
    github::{GitHub, private_file},
};

/// A way to GitHub that nobody goes: nothing answers there.
pub(super) fn nowhere() -> GitHubClient {
    let server = Server::new("https://github.com", Some("http://127.0.0.1:9")).unwrap();
    GitHubClient::new(GitHubOptions::new(server), CredentialLocation::Token("ghp_hush-hush".to_owned().into())).unwrap()
}

async fn rig() -> Api {
    api_with_github(service::Settings::default(), nowhere()).await
}

fn body() -> Value {
    json!({"template": "micro", "scope": "acme", "labels": ["self-hosted", "linux"]})
}

fn but(key: &str, value: Value) -> Value {
    let mut body = body();
    body[key] = value;
    body
}

impl Api {
    async fn set_pool(&self, name: &str, body: Value) -> Got {
        self.put(&format!("/pools/{name}"), &self.admin, body).await
    }

    async fn pool(&self, name: &str) -> Value {
        self.get(&format!("/pools/{name}"), &self.read).await.ok(200)
    }

    /// As a queued job of the pool makes one.
    async fn pool_vm(&self, name: &str, job: &str) -> mayfly::domain::Result<mayfly::domain::VmId> {
        let pool = self.services.pools.get(name).await?.pool;
        let created = self.services.admission.create_for_pool(&pool, &7.into(), job.to_owned()).await?;
        Ok(created.vm.id())
    }

    async fn ids(&self, query: &str) -> Vec<String> {
        let page = self.get(&format!("/vms?{query}"), &self.read).await.ok(200);
        page["items"].as_array().unwrap().iter().map(|vm| vm["id"].as_str().unwrap().to_owned()).collect()
    }
}

pub fn linux_pool(scope: &str) -> Pool {
    Pool {
        name: "linux".into(),
        template: "micro".into(),
        job_source: SourceName::github(),
        scope: scope.parse().unwrap(),
        labels: vec!["linux".into()],
        group: None,
        repositories: Vec::new(),
        max_vms: 4,
        warm: 0,
        cpus: None,
        memory_mib: None,
        network: None,
        budgets: BudgetsPatch::default(),
        enabled: true,
    }
}

#[tokio::test]
async fn a_pool_is_made_replaced_and_removed() {
    let api = rig().await;
    assert_eq!(api.get("/pools", &api.read).await.ok(200), json!({"items": []}));
    api.get("/pools/linux", &api.read).await.problem(404, "pool.not_found");
    api.delete("/pools/linux", &api.admin).await.problem(404, "pool.not_found");

    let made = api.set_pool("linux", body()).await.ok(201);
    let expected = [
        ("name", json!("linux")),
        ("source", json!("api")),
        ("scope", json!("acme")),
        ("group", json!(null)),
        ("repositories", json!([])),
        ("max_vms", json!(10)),
        ("warm", json!(0)),
        ("enabled", json!(true)),
        ("vms", json!({"queued": 0, "live": 0})),
        ("jobs_waiting", json!(0)),
        ("last_error", json!(null)),
    ];
    for (field, value) in expected {
        assert_eq!(made[field], value, "{field}");
    }
    assert_eq!(api.pool("linux").await, made);

    let more = json!({
        "template": "micro", "scope": "enterprises/acme", "labels": ["gpu"], "group": "builders",
        "repositories": ["acme/*"], "max_vms": 3, "cpus": 2, "memory_mib": 256,
        "budgets": {"lifetime_seconds": 600}, "enabled": false,
    });
    let replaced = api.set_pool("linux", more.clone()).await.ok(200);
    for (field, value) in more.as_object().unwrap() {
        match field.as_str() {
            "budgets" => assert_eq!(replaced["budgets"]["lifetime_seconds"], 600),
            _ => assert_eq!(replaced[field], *value, "{field}"),
        }
    }
    assert_eq!(replaced["created_at"], made["created_at"]);

    api.set_pool("arm", body()).await.ok(201);
    let list = api.get("/pools", &api.read).await.ok(200);
    let names: Vec<_> = list["items"].as_array().unwrap().iter().map(|p| p["name"].clone()).collect();
    assert_eq!(names, ["arm", "linux"]);
    api.delete("/pools/linux", &api.admin).await.ok(204);
    api.get("/pools/linux", &api.read).await.problem(404, "pool.not_found");
}

#[tokio::test]
async fn what_is_wrong_with_a_pool_is_said_of_its_field() {
    let api = rig().await;
    let wrong = [
        ("template", json!(7), 400, "request.invalid", "/template"),
        ("template", json!("nosuch"), 422, "template.unknown", "/template"),
        ("template", json!("ghcr.io/acme/x@sha256:zz"), 400, "request.invalid", "/template"),
        ("scope", json!("a/b/c"), 400, "request.invalid", "/scope"),
        ("labels", json!([]), 400, "request.invalid", "/labels"),
        ("labels", json!(["a,b"]), 400, "request.invalid", "/labels"),
        ("group", json!(" "), 400, "request.invalid", "/group"),
        ("repositories", json!(["acme/app", "evil/app"]), 400, "request.invalid", "/repositories/1"),
        ("repositories", json!(["acme"]), 400, "request.invalid", "/repositories/0"),
        ("max_vms", json!(0), 400, "request.invalid", "/max_vms"),
        ("max_vms", json!(-1), 400, "request.invalid", "/max_vms"),
        ("warm", json!(1), 400, "request.invalid", "/warm"),
        ("cpus", json!(9), 422, "size.impossible", "/cpus"),
        ("memory_mib", json!(1), 422, "size.impossible", "/memory_mib"),
        ("budgets", json!({"idle_seconds": 0}), 400, "request.invalid", "/budgets/idle_seconds"),
        ("budgets", json!({"luck": 1}), 400, "request.invalid", "/budgets/luck"),
        ("label", json!(["x"]), 400, "request.invalid", "/label"),
    ];
    for (field, value, status, code, at) in wrong {
        let problem = api.set_pool("linux", but(field, value.clone())).await.problem(status, code);
        assert_eq!(pointer(&problem), at, "{field}: {value}");
    }
    for name in ["-x", "a%2Fb", "%20", &"x".repeat(64)] {
        let problem = api.set_pool(name, body()).await.problem(400, "request.invalid");
        assert_eq!(pointer(&problem), "/name");
    }
    assert_eq!(api.get("/pools", &api.read).await.ok(200), json!({"items": []}));
    // An image need not be here: the first job lets it be pulled.
    api.set_pool("linux", but("template", json!("ghcr.io/acme/runner:1"))).await.ok(201);
}

#[tokio::test]
async fn pools_are_set_by_admins_and_need_a_way_to_github() {
    let api = rig().await;
    for token in [&api.create, &api.read] {
        api.put("/pools/linux", token, body()).await.problem(403, "auth.scope_missing");
        api.delete("/pools/linux", token).await.problem(403, "auth.scope_missing");
        api.get("/pools", token).await.ok(200);
    }
    api.request(Method::PUT, "/pools/linux", "")
        .json(&body())
        .send()
        .await
        .map(|r| assert_eq!(r.status(), 401))
        .unwrap();
    let without = super::api().await;
    let problem = without.set_pool("linux", body()).await.problem(422, "github.not_configured");
    assert!(problem["detail"].as_str().unwrap().contains("mayfly.toml"), "{problem:#}");
}

#[tokio::test]
async fn a_pool_of_the_configuration_is_changed_there() {
    let pool = linux_pool("acme");
    let settings = service::Settings { pools: vec![pool.clone()], ..Default::default() };
    let api = api_with_github(settings, nowhere()).await;
    let shown = api.pool("linux").await;
    assert_eq!(
        (&shown["source"], &shown["max_vms"], &shown["created_at"]),
        (&json!("config"), &json!(4), &json!(null))
    );
    for answer in [api.set_pool("linux", body()).await, api.delete("/pools/linux", &api.admin).await] {
        let problem = answer.problem(409, "pool.read_only");
        assert!(problem["detail"].as_str().unwrap().contains("[pools.\"linux\"]"), "{problem:#}");
    }
    // One that was made through the API before is hidden, and not lost.
    let stored = Pool { max_vms: 7, ..pool };
    api.ledger.put_pool(stored, api.services.hosts.now()).await.unwrap();
    assert_eq!(api.pool("linux").await, shown);
    assert_eq!(api.services.pools.list().await.unwrap().len(), 1);
}

fn job(status: JobStatus) -> JobRecord {
    JobRecord {
        source: SourceName::github(),
        id: 9001.into(),
        repository: "acme/app".into(),
        run_id: 7001,
        run_attempt: 2,
        name: "build".into(),
        workflow: Some("ci".into()),
        status,
        conclusion: (status == JobStatus::Completed).then(|| "success".into()),
        url: Some("https://github.com/acme/app/actions/runs/7001/job/9001".into()),
        started_at: None,
        completed_at: None,
    }
}

#[tokio::test]
async fn vms_of_a_pool_say_so_and_are_found_by_it_and_by_their_jobs() {
    let api = rig().await;
    api.set_pool("linux", but("max_vms", json!(2))).await.ok(201);
    api.set_pool("other", body()).await.ok(201);
    let (id, _) = api.vm("alone").await;
    let first = api.pool_vm("linux", "job-1").await.unwrap();
    let second = api.pool_vm("linux", "job-2").await.unwrap();
    let third = api.pool_vm("other", "job-3").await.unwrap();
    assert_eq!(api.pool_vm("linux", "job-1").await.unwrap(), first, "the same job has the same vm");

    let vm = api.get(&format!("/vms/{first}"), &api.read).await.ok(200);
    assert_eq!((&vm["pool"], &vm["jobs"], &vm["paused_since"]), (&json!("linux"), &json!([]), &json!(null)));
    let github = json!({"source": "github", "scope": "acme", "labels": ["self-hosted", "linux"], "group": null,
                        "registration": "managed", "job": null, "name": null, "id": null});
    assert_eq!(vm["runner"]["github"], github);
    let alone = api.get(&format!("/vms/{id}"), &api.read).await.ok(200);
    assert_eq!((&alone["pool"], &alone["runner"]["github"]), (&json!(null), &json!(null)));

    assert_eq!(api.ids("pool=linux").await, [second.to_string(), first.to_string()]);
    assert_eq!(api.ids("pool=other").await, [third.to_string()]);
    assert_eq!(api.ids("pool=nosuch").await, [""; 0]);
    assert_eq!(api.pool("linux").await["vms"], json!({"queued": 2, "live": 2}));

    for event in [
        Event::SlotTaken,
        Event::RunnerRegistered { runner: Registered { runner_id: Some(8123.into()), name: "mayfly-1".into() } },
        Event::Cloned,
        Event::GuestReady { via: ReadyVia::GuestCall },
        Event::GuestConfigured,
        Event::BudgetsPaused,
        Event::JobChanged { job: job(JobStatus::InProgress) },
    ] {
        api.apply(first, event).await;
    }
    let vm = api.get(&format!("/vms/{first}"), &api.read).await.ok(200);
    assert_eq!((&vm["runner"]["github"]["name"], &vm["runner"]["github"]["id"]), (&json!("mayfly-1"), &json!(8123)));
    let paused: Timestamp = vm["paused_since"].as_str().unwrap().parse().unwrap();
    assert!(paused <= api.services.hosts.now());
    assert_eq!((&vm["jobs"][0]["id"], &vm["jobs"][0]["status"]), (&json!(9001), &json!("in_progress")));
    assert_eq!(api.pool("linux").await["vms"], json!({"queued": 1, "live": 2}));
    assert_eq!(api.ids("job_id=9001").await, [first.to_string()]);
    assert_eq!(api.ids("job_id=9001&state=queued").await, [""; 0]);
    assert_eq!(api.ids("job_id=9002").await, [""; 0]);
    assert_eq!(api.ids("job_id=0193a6d2-7c1e-4f6a-9b1d-3f5a7c9e1b2d").await, [""; 0]);
    for wrong in ["", "a%20b", &"9".repeat(65)] {
        let problem = api.get(&format!("/vms?job_id={wrong}"), &api.read).await.problem(400, "request.invalid");
        assert_eq!(pointer(&problem), "query:job_id");
    }

    // Who asks which vm ran a job asks when it is over; the pool need not be there any more.
    api.apply(first, Event::JobChanged { job: job(JobStatus::Completed) }).await;
    api.apply(first, Event::EndProven { proof: EndProof::RunnerFinished, exit_code: None }).await;
    api.delete("/pools/linux", &api.admin).await.ok(204);
    assert_eq!(api.ids("pool=linux").await.len(), 2, "they live on");
    api.finish(first).await;
    assert_eq!(api.ids("job_id=9001").await, [first.to_string()]);
    let vm = api.get(&format!("/vms/{first}"), &api.read).await.ok(200);
    assert_eq!((&vm["state"], &vm["jobs"][0]["conclusion"]), (&json!("deleted"), &json!("success")));
    for id in [id, second, third] {
        api.finish(id).await;
    }
    // What is forgotten is found no more.
    let later = api.services.hosts.now() + jiff::SignedDuration::from_secs(60);
    while api.ledger.forget_deleted_before(later).await.unwrap() > 0 {}
    assert_eq!(api.ids("job_id=9001").await, [""; 0]);
}

#[tokio::test]
async fn jobs_that_wait_are_counted_by_the_pool_that_wants_them() {
    let api = rig().await;
    api.set_pool("linux", body()).await.ok(201);
    let now = api.services.hosts.now();
    for (id, status, pool) in [
        (1, JobStatus::Queued, Some("linux")),
        (2, JobStatus::Queued, Some("linux")),
        (3, JobStatus::InProgress, Some("linux")),
        (4, JobStatus::Completed, Some("linux")),
        (5, JobStatus::Queued, Some("other")),
        (6, JobStatus::Queued, None),
    ] {
        let record = JobRecord { id: id.into(), ..job(status) };
        let labels = vec!["linux".into()];
        let update = JobUpdate { record, labels, runner_name: None, source: UpdateSource::Webhook, missing: false };
        let job = Job { pool: pool.map(str::to_owned), ..Job::new(update, now) };
        api.ledger.put_job(job).await.unwrap();
    }
    assert_eq!(api.pool("linux").await["jobs_waiting"], 2);
    assert_eq!(api.get("/pools", &api.read).await.ok(200)["items"][0]["jobs_waiting"], 2);
}

#[tokio::test]
async fn why_a_pool_gets_nowhere_is_shown_with_it() {
    let api = rig().await;
    api.set_pool("linux", body()).await.ok(201);
    let vm = api.pool_vm("linux", "job-1").await.unwrap();
    api.apply(vm, Event::SlotTaken).await;
    let fault = mayfly::domain::Fault {
        code: mayfly::domain::Code::BootFailed,
        detail: "the hypervisor left".into(),
        at: api.services.hosts.now(),
    };
    api.apply(vm, Event::GivenUp { fault }).await;
    let error = api.pool("linux").await["last_error"].clone();
    assert_eq!(error["code"], "boot.failed");
    assert!(error["detail"].as_str().unwrap().contains("the hypervisor left"), "{error}");
    api.finish(vm).await;

    api.delete("/templates/micro", &api.admin).await.ok(204);
    assert_eq!(api.pool_vm("linux", "job-2").await.unwrap_err().code.slug(), "template.unknown");
    let error = api.pool("linux").await["last_error"].clone();
    assert_eq!(error["code"], "template.unknown");
    // One that ended because somebody said so did not fail.
    let disk = super::disk(&api.dir, "again.raw", 2);
    api.post("/templates", &api.admin, json!({"name": "micro", "disk": disk, "driver": "fake"})).await.ok(201);
    let vm = api.pool_vm("linux", "job-3").await.unwrap();
    api.apply(vm, Event::EndForced { by: Announcer::Pool }).await;
    api.finish(vm).await;
    assert_eq!(api.pool("linux").await["last_error"]["code"], "boot.failed");
}

#[tokio::test]
async fn subscribers_of_pools_are_notified_of_changes() {
    let api = rig().await;
    let changes = api.ledger.changes().clone();
    api.set_pool("linux", body()).await.ok(201);
    changes.pools_changed().await;
    let waits = tokio::spawn(async move { changes.pools_changed().await });
    api.delete("/pools/linux", &api.admin).await.ok(204);
    tokio::time::timeout(std::time::Duration::from_secs(20), waits).await.expect("it is told").unwrap();
}

#[tokio::test]
async fn what_github_still_allows_is_in_the_metrics() {
    let github = GitHub::start().await;
    let (client, _) = github.holder().await;
    client.rate_limit(Some(&crate::support::github::acme())).await.unwrap();
    let budgets = client.budgets();
    mayfly::telemetry::start_metrics();
    let api = api_with_github(service::Settings::default(), client).await;
    api.set_pool("metered", but("max_vms", json!(3))).await.ok(201);
    let vm = api.pool_vm("metered", "job-1").await.unwrap();
    api.get("/metrics", &api.read).await;
    let text = mayfly::telemetry::render_metrics();
    let value = |name: &str, labels: &str| {
        let line = format!("{name}{{{labels}}} ");
        let found = text.lines().find_map(|l| l.strip_prefix(&line));
        found.unwrap_or_else(|| panic!("no {line} in {text}")).parse::<f64>().unwrap()
    };
    let core = budgets[0].resources.iter().find(|r| r.resource == "core").unwrap();
    let whose = format!("credential=\"{}\",resource=\"core\"", budgets[0].credential);
    assert_eq!(value("mayfly_github_rate_limit", &whose), core.limit as f64);
    assert_eq!(value("mayfly_github_rate_limit_remaining", &whose), core.remaining as f64);
    assert_eq!(value("mayfly_github_rate_limit_reset_time", &whose), core.resets_at.as_second() as f64);
    let whose = format!("credential=\"{}\"", budgets[0].credential);
    assert_eq!(value("mayfly_github_requests_total", &whose), budgets[0].requests as f64);
    assert_eq!(value("mayfly_github_closed_until_time", &whose), 0.0);
    assert_eq!(value("mayfly_pool_vms", "pool=\"metered\",state=\"live\""), 1.0);
    assert_eq!(value("mayfly_pool_vms_max", "pool=\"metered\""), 3.0);
    assert_eq!(value("mayfly_pool_jobs_waiting", "pool=\"metered\""), 0.0);

    api.finish(vm).await;
    api.delete("/pools/metered", &api.admin).await.ok(204);
    api.get("/metrics", &api.read).await;
    assert!(mayfly::telemetry::render_metrics().contains("mayfly_pool_vms_max{pool=\"metered\"} 0"));
    assert_eq!(api_is_quiet().await.status, 200);
}

/// A service without a way to GitHub measures all the same.
async fn api_is_quiet() -> Got {
    let api = api().await;
    api.get("/metrics", &api.read).await
}

/// What the API shows of a pool, without the fields that are no settings, is a body that it takes.
#[tokio::test]
async fn the_command_line_disables_a_pool_and_keeps_its_settings() {
    let serve = Serve::prepared(|dir| {
        private_file(&dir.join("token"), "ghp_hush-hush\n");
        let settings = [
            ("MAYFLY_GITHUB__TOKEN_FILE", "token"),
            ("MAYFLY_GITHUB__API_URL", "http://127.0.0.1:9"),
            ("MAYFLY_DRIVERS__QEMU__ENABLED", "false"),
            ("MAYFLY_DRIVERS__FAKE__ENABLED", "true"),
        ];
        settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    })
    .await;
    let disk = serve.dir.join("disk.raw");
    std::fs::write(&disk, vec![1; 65536]).unwrap();
    let template = json!({"name": "micro", "driver": "fake", "disk": disk, "cpus": 1, "memory_mib": 64});
    assert_eq!(serve.post("/templates", template).await.0, 201);
    let mut body = body();
    body["cpus"] = 2.into();
    body["max_vms"] = 3.into();
    body["repositories"] = json!(["acme/*"]);
    body["budgets"] = json!({"lifetime_seconds": 600});
    let (status, made) = serve.send(Method::PUT, "/pools/linux", Some(body)).await;
    assert_eq!(status, 201, "{made}");
    for (verb, enabled) in [("disable", false), ("disable", false), ("enable", true)] {
        let mut mayfly = tokio::process::Command::new(env!("CARGO_BIN_EXE_mayfly"));
        let mayfly = mayfly.env_clear().arg("--data-dir").arg(&serve.dir).args(["pool", verb, "linux"]);
        let done = mayfly.output().await.unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let (mut expected, mut seen) = (made.clone(), serve.get("/pools/linux").await);
        expected["enabled"] = enabled.into();
        for pool in [&mut expected, &mut seen] {
            pool["updated_at"].take();
        }
        assert_eq!(seen, expected, "{verb}");
    }

    // A pool whose template is gone can be stopped, and not be started again.
    assert_eq!(serve.send(Method::DELETE, "/templates/micro", None).await.0, 204);
    for (verb, succeeds) in [("disable", true), ("enable", false)] {
        let mut mayfly = tokio::process::Command::new(env!("CARGO_BIN_EXE_mayfly"));
        let mayfly = mayfly.env_clear().arg("--data-dir").arg(&serve.dir).args(["pool", verb, "linux"]);
        let done = mayfly.output().await.unwrap();
        assert_eq!(done.status.success(), succeeds, "{verb}: {}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(serve.get("/pools/linux").await["enabled"], false);
    }
}
