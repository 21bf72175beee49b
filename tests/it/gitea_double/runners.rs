//! Rows of runners, and what becomes of jobs whose runner is lost.

use serde_json::{Value, json};

use super::{names, row, shown, states};
use crate::support::gitea::Gitea;

fn seen(row: &Value) -> Value {
    json!([row["status"], row["busy"]])
}

async fn delete(gitea: &Gitea, id: u64) -> u16 {
    let token = gitea.owner_token().await;
    gitea.ask("DELETE", &format!("orgs/acme/actions/runners/{id}"), Some(&token)).await.0
}

#[tokio::test]
async fn a_registration_token_is_the_same_each_time_and_one_per_scope() {
    let gitea = Gitea::start().await;
    let token = gitea.owner_token().await;
    let mut tokens = Vec::new();
    for scope in ["orgs/acme", "orgs/acme", "repos/acme/app", "admin", "user"] {
        let path = format!("{scope}/actions/runners/registration-token");
        let (status, _, made) = gitea.ask("POST", &path, Some(&token)).await;
        assert_eq!((status, made.as_object().unwrap().len()), (200, 1), "{scope}: {made}");
        tokens.push(made["token"].as_str().unwrap().to_owned());
    }
    assert_eq!(tokens[0], tokens[1]);
    tokens.dedup();
    assert_eq!(tokens.len(), 4);
    assert!(tokens.iter().all(|token| token.len() == 40));
}

#[tokio::test]
async fn names_need_not_be_unique_and_rows_show_what_their_programs_do() {
    let gitea = Gitea::start().await;
    let (first, second) = (gitea.register("vm-1", &["mac", "b"]).await, gitea.register("vm-1", &["mac"]).await);
    assert_ne!(first.id, second.id);
    assert_eq!(names(&gitea).await, ["vm-1", "vm-1"]);
    let labels = json!([{"id": 0, "name": "mac", "type": "custom"}, {"id": 1, "name": "b", "type": "custom"}]);
    let wanted = json!({
        "id": first.id, "name": "vm-1", "status": "offline", "busy": false, "ephemeral": true, "disabled": false,
        "labels": labels,
    });
    assert_eq!(row(&gitea, first.id).await, wanted);
    second.declare(&["mac"]).await.unwrap();
    assert_eq!(seen(&row(&gitea, second.id).await), json!(["online", false]));
    let token = gitea.owner_token().await;
    let (_, headers, list) = gitea.ask("GET", "orgs/acme/actions/runners?limit=1", Some(&token)).await;
    assert_eq!(
        (&list["total_count"], &list["runners"][0]["id"]),
        (&json!(2), &json!(second.id)),
        "the last that called"
    );
    assert!(headers.get("link").is_none(), "this list has no links");
    assert_eq!(delete(&gitea, first.id).await, 204);
    assert_eq!(delete(&gitea, first.id).await, 404);
}

#[tokio::test]
async fn a_used_registration_is_unknown() {
    let gitea = Gitea::start().await;
    gitea.job(&["mac"]).await;
    let program = gitea.register("vm-1", &["mac"]).await;
    let task = program.fetch().await.unwrap().expect("a task");
    program.finish(task, "SUCCESS").await.unwrap();
    for refused in [program.declare(&["mac"]).await.unwrap_err(), program.fetch().await.unwrap_err()] {
        assert_eq!(refused, "rpc error: code = Unauthenticated desc = unregistered runner");
    }
}

#[tokio::test]
async fn the_file_of_a_runner_is_all_that_its_program_needs() {
    let gitea = Gitea::start().await;
    gitea.job(&["mac"]).await;
    let file = gitea.register("vm-1", &["mac"]).await.registration(&gitea.root, &["mac"]);
    let program = gitea.program(&file);
    let task = program.fetch().await.unwrap().expect("a task");
    program.finish(task, "SUCCESS").await.unwrap();
}

/// How often the server looks for tasks to give up.
const ROUND: i64 = 300;

#[tokio::test]
async fn a_runner_that_is_killed_in_its_job_costs_it_when_the_server_gives_it_up() {
    let gitea = Gitea::start().await;
    let ids = gitea.job(&["mac"]).await;
    let program = gitea.register("vm-1", &["mac"]).await;
    let task = program.fetch().await.unwrap().expect("a task");
    program.report(task).await.unwrap();
    assert_eq!(seen(&row(&gitea, program.id).await), json!(["online", true]));
    // `busy` is a guess: it is over long before the job is.
    gitea.advance(11).await;
    assert_eq!(seen(&row(&gitea, program.id).await), json!(["online", false]));
    gitea.advance(60).await;
    assert_eq!(seen(&row(&gitea, program.id).await), json!(["offline", false]));
    assert_eq!(gitea.runners().await[0]["task"], task, "a test can know better");
    gitea.advance(500).await;
    assert_eq!(shown(&gitea, ids.job).await["status"], "in_progress");
    let other = gitea.register("vm-2", &["mac"]).await;
    assert_eq!(other.fetch().await.unwrap(), None, "no other runner gets the job");
    gitea.advance(30 + ROUND).await;
    assert_eq!(states(&shown(&gitea, ids.job).await), json!(["completed", 1, "failure", "vm-1"]));
    assert_eq!(gitea.job_state(ids.job).await["attempts"][0]["lost"], true);
    assert_eq!(row(&gitea, program.id).await, Value::Null);
}

#[tokio::test]
async fn reports_keep_a_task_alive() {
    let gitea = Gitea::start().await;
    let ids = gitea.job(&["mac"]).await;
    let program = gitea.register("vm-1", &["mac"]).await;
    let task = program.fetch().await.unwrap().expect("a task");
    for n in 0..4 {
        gitea.advance(590).await;
        if n % 2 == 0 {
            program.report(task).await.unwrap();
        } else {
            program.log(task, n / 2, &["a line"], false).await.unwrap();
        }
    }
    assert_eq!(shown(&gitea, ids.job).await["status"], "in_progress");
}

#[tokio::test]
async fn a_row_can_be_deleted_while_it_works_and_the_job_is_lost() {
    let gitea = Gitea::start().await;
    let ids = gitea.job(&["mac"]).await;
    let program = gitea.register("vm-1", &["mac"]).await;
    let task = program.fetch().await.unwrap().expect("a task");
    assert_eq!(delete(&gitea, program.id).await, 204);
    assert_eq!(gitea.busy_deletions().await, 1);
    let refused = program.finish(task, "SUCCESS").await.unwrap_err();
    assert!(refused.contains("unregistered runner"), "{refused}");
    assert_eq!(states(&shown(&gitea, ids.job).await), json!(["in_progress", 1, null, "vm-1"]));
    gitea.advance(600 + ROUND).await;
    assert_eq!(states(&shown(&gitea, ids.job).await), json!(["completed", 1, "failure", "vm-1"]));
}

#[tokio::test]
async fn a_row_that_is_deleted_while_it_waits_is_unknown_from_then_on() {
    let gitea = Gitea::start().await;
    let program = gitea.register("vm-1", &["mac"]).await;
    program.declare(&["mac"]).await.unwrap();
    assert_eq!(program.fetch().await.unwrap(), None);
    assert_eq!(delete(&gitea, program.id).await, 204);
    assert_eq!(gitea.busy_deletions().await, 0);
    let refused = program.fetch().await.unwrap_err();
    assert!(refused.contains("unregistered runner"), "{refused}");
}

#[tokio::test]
async fn a_runner_that_knows_the_version_of_the_tasks_is_not_given_one() {
    let gitea = Gitea::start().await;
    let program = gitea.register("vm-1", &["mac"]).await;
    let first = program.call("FetchTask", json!({})).await.unwrap();
    gitea.job(&["mac"]).await;
    let now = gitea.register("vm-2", &["other"]).await.call("FetchTask", json!({})).await.unwrap();
    assert_ne!(first["tasksVersion"], now["tasksVersion"]);
    let known = program.call("FetchTask", json!({"tasksVersion": now["tasksVersion"]})).await.unwrap();
    assert!(known.get("task").is_none());
    let stale = program.call("FetchTask", json!({"tasksVersion": first["tasksVersion"]})).await.unwrap();
    assert!(stale.get("task").is_some());
}

#[tokio::test]
async fn a_log_is_complete_without_gaps_and_ends() {
    let gitea = Gitea::start().await;
    let ids = gitea.job(&["mac"]).await;
    let program = gitea.register("vm-1", &["mac"]).await;
    let task = program.fetch().await.unwrap().expect("a task");
    let known = |answer: Value| answer.get("ackIndex").cloned();
    assert_eq!(known(program.log(task, 0, &["a", "b"], false).await.unwrap()), Some(json!("2")));
    assert_eq!(known(program.log(task, 3, &["d"], false).await.unwrap()), Some(json!("2")), "a gap");
    assert_eq!(known(program.log(task, 1, &["b", "c"], true).await.unwrap()), Some(json!("3")));
    assert_eq!(known(program.log(task, 1, &["b", "c"], true).await.unwrap()), Some(json!("3")), "said again");
    let refused = program.log(task, 3, &["d"], false).await.unwrap_err();
    assert!(refused.contains("log file has been archived"), "{refused}");
    assert_eq!(gitea.job_state(ids.job).await["log"], "a\nb\nc\n");
    let other = gitea.register("vm-2", &["mac"]).await;
    let refused = other.report(task).await.unwrap_err();
    assert!(refused.contains("invalid runner for task"), "{refused}");
}
