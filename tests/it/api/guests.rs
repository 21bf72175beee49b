use std::time::Duration;

use mayfly::{domain::VmId, http::Settings};
use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use super::{Api, api, api_with};

#[tokio::test]
async fn a_guest_may_read_report_and_end_its_own_vm_and_nothing_else() {
    let api = api().await;
    let (id, token) = api.running("mine").await;
    let (other, _) = api.vm("theirs").await;
    let own = format!("/vms/{id}");
    let (foreign, unknown) = (format!("/vms/{other}"), format!("/vms/{}", VmId::mint()));

    assert_eq!(api.get(&own, &token).await.ok(200)["id"], id.to_string());
    let report = json!({"type": "job_result", "exit_code": 3});
    api.post(&format!("{own}/events"), &token, report.clone()).await.ok(202);
    assert_eq!(api.get(&own, &api.read).await.ok(200)["job"]["exit_code"], 3);

    // One that exists and one that does not cannot be told apart.
    for path in [&foreign, &unknown, &"/vms/no-id".to_owned(), &format!("{foreign}?force=true")] {
        let a = api.get(path, &token).await.problem(403, "auth.scope_missing");
        let b = api.delete(path, &token).await.problem(403, "auth.scope_missing");
        assert_eq!(a["detail"], b["detail"]);
    }
    for path in [&foreign, &unknown] {
        api.post(&format!("{path}/events"), &token, report.clone()).await.problem(403, "auth.scope_missing");
    }
    for path in ["/vms", "/templates", "/templates/micro", "/host", "/reconcile", "/tokens", "/metrics", "/events"] {
        api.get(path, &token).await.problem(403, "auth.scope_missing");
    }
    for path in [format!("{own}/events"), format!("{own}/logs"), format!("{unknown}/logs")] {
        api.get(&path, &token).await.problem(403, "auth.scope_missing");
    }
    api.post("/vms", &token, json!({"template": "micro"})).await.problem(403, "auth.scope_missing");
    api.post("/tokens", &token, json!({"name": "x", "scope": "admin"})).await.problem(403, "auth.scope_missing");
    api.delete("/templates/micro", &token).await.problem(403, "auth.scope_missing");

    // Reports are the guest's own to make.
    api.post(&format!("{own}/events"), &api.admin, report).await.problem(403, "auth.scope_missing");
    api.delete(&own, &token).await.ok(202);
}

#[tokio::test]
async fn the_guest_listener_has_five_routes_and_takes_vm_tokens_only() {
    let api = api().await;
    let (id, token) = api.running("mine").await;
    let own = format!("/vms/{id}");
    assert_eq!(api.guest(Method::GET, "/healthz", "", None).await.ok(200), json!({"status": "ok"}));
    api.guest(Method::GET, &own, &token, None).await.ok(200);
    let event = json!({"type": "runner_finished", "exit_code": 0});
    api.guest(Method::POST, &format!("{own}/events"), &token, Some(event.clone())).await.ok(202);
    api.guest(Method::DELETE, &own, &token, None).await.ok(202);

    for method in [Method::GET, Method::DELETE] {
        api.guest(method.clone(), &own, &api.admin, None).await.problem(403, "auth.scope_missing");
        api.guest(method.clone(), &own, "", None).await.problem(401, "auth.required");
        api.guest(method, &format!("/vms/{}", VmId::mint()), &token, None).await.problem(403, "auth.scope_missing");
    }
    for path in ["/", "/vms", "/host", "/events", "/docs", "/openapi.json", "/metrics", "/readyz"] {
        api.guest(Method::GET, path, &token, None).await.problem(404, "request.not_found");
    }
    let method = api.guest(Method::GET, &format!("{own}/events"), &token, None).await;
    method.problem(405, "request.method_not_allowed");
    assert_eq!(method.header("allow"), "POST");
    let large = json!({"type": "log", "source": "job", "data_base64": "A".repeat(70_000)});
    api.guest(Method::POST, &format!("{own}/events"), &token, Some(large)).await.problem(413, "request.too_large");
}

/// Requests to the guest API whose bodies do not come to an end.
async fn unfinished(api: &Api, path: &str, token: &str, times: usize) -> Vec<TcpStream> {
    let address = api.guest_url.strip_prefix("http://").unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{{"
    );
    let mut held = Vec::new();
    for _ in 0..times {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        held.push(stream);
    }
    held
}

/// What a guest says first and last is taken whatever its neighbours do.
#[tokio::test]
async fn no_guest_fills_the_way_of_another() {
    let settings = Settings { max_concurrent: 16, ..Settings::default() };
    let api = api_with(settings, Default::default()).await;
    let (loud, loud_token) = api.running("loud").await;
    let (calm, token) = api.running("calm").await;
    let (own, loud) = (format!("/vms/{calm}"), format!("/vms/{loud}"));
    let held = unfinished(&api, &format!("{loud}/events"), &loud_token, 40).await;
    let _strangers = unfinished(&api, &format!("{own}/events"), "mfv_wrong", 40).await;
    let mut waiting = Vec::new();
    for _ in 0..40 {
        let url = format!("{}{loud}?wait_generation=1000&timeout_seconds=20", api.guest_url);
        let call = reqwest::Client::builder().no_proxy().build().unwrap().get(url).bearer_auth(&loud_token);
        waiting.push(tokio::spawn(call.send()));
    }
    let event = |kind: &str| Some(json!({ "type": kind }));
    // Unfinished bodies may use a quarter of the listener's requests, so the other 36 are ended or refused.
    let mut answers = JoinSet::new();
    for mut stream in held {
        answers.spawn(async move {
            let mut buffer = vec![0; 4096];
            let n = stream.read(&mut buffer).await.unwrap();
            (String::from_utf8_lossy(&buffer[..n]).to_lowercase(), stream)
        });
    }
    for _ in 0..36 {
        let answer = tokio::time::timeout(Duration::from_secs(15), answers.join_next()).await.expect("no answer");
        let (answer, _) = answer.unwrap().unwrap();
        assert!(answer.starts_with("http/1.1 503") && answer.contains("retry-after"), "{answer}");
    }
    for kind in ["guest_ready", "job_started"] {
        api.guest(Method::POST, &format!("{own}/events"), &token, event(kind)).await.ok(202);
    }
    api.guest(Method::GET, &own, &token, None).await.ok(200);
    api.guest(Method::DELETE, &own, &token, None).await.ok(202);
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

/// In a guest with one user the job can read the wrapper's token, too. It cannot hide how it really ended.
#[tokio::test]
async fn a_job_that_reports_its_own_result_does_not_have_the_last_word() {
    let api = api().await;
    let (id, token) = api.running("mine").await;
    let path = format!("/vms/{id}");
    let report = async |code: i32| {
        let report = json!({"type": "job_result", "exit_code": code});
        api.post(&format!("{path}/events"), &token, report).await.ok(202);
        api.get(&path, &api.read).await.ok(200)["job"].clone()
    };
    let said = |code: i32, differ: bool| json!({"exit_code": code, "reported_by": "guest", "results_differ": differ});
    assert_eq!(report(0).await, said(0, false));
    assert_eq!(report(0).await, said(0, false));
    assert_eq!(report(7).await, said(7, true));
    api.post(&format!("{path}/events"), &token, json!({"type": "runner_finished", "exit_code": 7})).await.ok(202);
    // What is left of the job after the wrapper's last word changes nothing.
    assert_eq!(report(0).await, said(7, true));
}

/// The token of a vm's job: what it may, and that its word never replaces the wrapper's.
#[tokio::test]
async fn the_jobs_token_does_not_speak_for_the_wrapper() {
    let api = api().await;
    let (id, wrapper) = api.running("mine").await;
    let job = api.job_token(id);
    let own = format!("/vms/{id}");
    let events = format!("{own}/events");
    assert_eq!(api.get(&own, &job).await.ok(200)["runner"]["separate_users"], json!(null));
    for report in [
        json!({"type": "guest_ready"}),
        json!({"type": "guest_configured", "attempt": 1, "separate_users": true}),
        json!({"type": "runner_started"}),
        json!({"type": "runner_finished", "exit_code": 0}),
        json!({"type": "log", "source": "job", "data_base64": ""}),
    ] {
        let refused = api.post(&events, &job, report.clone()).await.problem(403, "auth.scope_missing");
        assert!(refused["detail"].as_str().unwrap().contains("wrapper"), "{report}: {refused}");
    }
    api.guest(Method::GET, &format!("{own}/registration"), &job, None).await.problem(403, "auth.scope_missing");
    let (other, _) = api.vm("theirs").await;
    api.delete(&format!("/vms/{other}"), &job).await.problem(403, "auth.scope_missing");

    let state = async || api.get(&own, &api.read).await.ok(200);
    api.post(&events, &job, json!({"type": "job_started"})).await.ok(202);
    api.post(&events, &job, json!({"type": "job_result", "exit_code": 0})).await.ok(202);
    let said =
        |code: i32, by: &str, differ: bool| json!({"exit_code": code, "reported_by": by, "results_differ": differ});
    assert_eq!(state().await["job"], said(0, "job", false));
    // A repetition of the wrapper's request for the permission says how it runs.
    let configured = |separate: bool| json!({"type": "guest_configured", "attempt": 1, "separate_users": separate});
    api.post(&events, &wrapper, configured(true)).await.ok(202);
    // Its job has started, so the guest may not describe itself any more.
    assert_eq!(state().await["runner"]["separate_users"], json!(null));
    api.post(&events, &wrapper, json!({"type": "job_result", "exit_code": 7})).await.ok(202);
    assert_eq!(state().await["job"], said(7, "guest", true));
    api.post(&events, &job, json!({"type": "job_result", "exit_code": 0})).await.ok(202);
    assert_eq!(state().await["job"], said(7, "guest", true), "the job replaced the wrapper's word");
    api.delete(&own, &job).await.ok(202);
    assert_eq!(state().await["announced_by"], "hook");
}

/// A guest whose job runs as another user says so before its job starts, and from then on never otherwise.
#[tokio::test]
async fn a_wrapper_of_another_user_has_the_last_word() {
    let api = api().await;
    let (id, wrapper) = api.configured("mine").await;
    let job = api.job_token(id);
    let own = format!("/vms/{id}");
    let events = format!("{own}/events");
    for (separate, attempt) in [(true, 1), (false, 1), (false, 2)] {
        let report = json!({"type": "guest_configured", "attempt": attempt, "separate_users": separate});
        let answer = api.post(&events, &wrapper, report).await;
        if attempt == 1 {
            answer.ok(202)
        } else {
            answer.problem(409, "vm.attempt_over")
        };
        assert_eq!(api.get(&own, &api.read).await.ok(200)["runner"]["separate_users"], true);
    }
    for (token, code) in [(&job, 0), (&wrapper, 7), (&job, 3)] {
        api.post(&events, token, json!({"type": "job_result", "exit_code": code})).await.ok(202);
    }
    api.post(&events, &wrapper, json!({"type": "runner_finished", "exit_code": 7})).await.ok(202);
    api.post(&events, &job, json!({"type": "job_result", "exit_code": 0})).await.ok(202);
    let end = api.get(&own, &api.read).await.ok(200);
    assert_eq!(end["job"], json!({"exit_code": 7, "reported_by": "wrapper", "results_differ": true}));
}

#[tokio::test]
async fn reports_are_checked() {
    let api = api().await;
    let (id, token) = api.running("mine").await;
    let path = format!("/vms/{id}/events");
    for body in [
        json!({"type": "nonsense"}),
        json!({"type": "job_result"}),
        json!({"type": "job_result", "exit_code": "0"}),
        json!({"type": "log", "source": "job", "data_base64": "***"}),
        json!({"type": "log", "source": "console", "data_base64": ""}),
        json!({}),
        json!([]),
    ] {
        api.post(&path, &token, body).await.problem(400, "request.invalid");
    }
    // Late and doubled ones are harmless.
    for _ in 0..2 {
        api.post(&path, &token, json!({"type": "job_started"})).await.ok(202);
        api.post(&path, &token, json!({"type": "guest_ready"})).await.ok(202);
    }
    api.finish(id).await;
    api.post(&path, &token, json!({"type": "runner_finished", "exit_code": 0})).await.ok(202);
}

/// What a guest says about its readiness is shown only in a vm whose template has a check, before its job may run.
#[tokio::test]
async fn the_success_of_a_readiness_check_is_in_the_record() {
    use mayfly::domain::{Event, event::ReadyVia};
    let api = api().await;
    let disk = super::disk(&api.dir, "checked", 3);
    let new = |ready: serde_json::Value| json!({"name": "checked", "driver": "fake", "disk": disk, "cpus": 1, "memory_mib": 128, "ready": ready});
    for (ready, field) in [
        (json!({}), "/ready"),
        (json!({"http": {"port": 0}}), "/ready/http/port"),
        (json!({"tcp": {"port": 22}, "exec": "true"}), "/ready/exec"),
        (json!({"exec": "true", "budget_seconds": 106}), "/ready/budget_seconds"),
    ] {
        let problem = api.post("/templates", &api.admin, new(ready)).await.problem(400, "request.invalid");
        assert_eq!(problem["errors"][0]["pointer"], field, "{problem:#}");
    }
    api.post("/templates", &api.admin, new(json!({"agent": true}))).await.problem(422, "template.invalid");
    let ready = json!({"preset": "runner-agent", "budget_seconds": 60});
    let template = api.post("/templates", &api.admin, new(ready.clone())).await.ok(201);
    assert_eq!(template["ready"], ready);

    let at = async |template: &str, name: &str| {
        let body = json!({"template": template, "name": name, "runner": {"kind": "command", "command": "true"}});
        let vm = api.post("/vms", &api.create, body).await.ok(201);
        let id = vm["id"].as_str().unwrap().parse().unwrap();
        for event in [Event::SlotTaken, Event::Cloned, Event::GuestReady { via: ReadyVia::GuestCall }] {
            api.apply(id, event).await;
        }
        (id, vm["callback_token"].as_str().unwrap().to_owned())
    };
    let (id, token) = at("checked", "a").await;
    let own = format!("/vms/{id}");
    let say = async |token: &str, attempt: u32, version: &str, state: u32| {
        let event = json!({"type": "guest_checked", "attempt": attempt, "version": version, "state": state});
        api.post(&format!("{own}/events"), token, event).await
    };
    say(&api.job_token(id), 1, "job", 1).await.problem(403, "auth.scope_missing");
    say(&token, 2, "of another attempt", 1).await.ok(202);
    assert_eq!(api.get(&own, &token).await.ok(200)["ready"], json!(null));
    // Of another form than promised: left out.
    say(&token, 1, "\u{1b}[31m", 2).await.ok(202);
    say(&token, 1, "the first report counts", 3).await.ok(202);
    let shown = api.get(&own, &token).await.ok(200)["ready"].clone();
    assert_eq!(
        (&shown["check"], &shown["version"], &shown["state"]),
        (&json!("runner-agent"), &json!(null), &json!(2))
    );
    assert!(shown["seconds"].as_f64().unwrap() >= 0.0, "{shown}");

    let failed = json!({"type": "guest_failed", "attempt": 1, "check_failed": true, "detail": "HTTP status\n503"});
    api.post(&format!("{own}/events"), &token, failed.clone()).await.ok(202);
    let fault = api.get(&own, &token).await.ok(200)["last_fault"].clone();
    assert_eq!(fault["code"], "guest.check_failed");
    let detail = "the readiness check runner-agent on port 8080 (/health) did not succeed within 60 s; the guest saw last: HTTP status 503";
    assert_eq!(fault["detail"], detail);

    // A template without a check.
    let (id, token) = at("micro", "b").await;
    let own = format!("/vms/{id}");
    let event = json!({"type": "guest_checked", "attempt": 1, "version": "1"});
    api.post(&format!("{own}/events"), &token, event).await.ok(202);
    assert_eq!(api.get(&own, &token).await.ok(200)["ready"], json!(null));
    api.post(&format!("{own}/events"), &token, failed).await.ok(202);
    let fault = api.get(&own, &token).await.ok(200)["last_fault"].clone();
    assert_eq!(fault["detail"], "the guest said: HTTP status 503");
}
