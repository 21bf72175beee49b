use sqlx::Connection;

use super::*;
use crate::{
    domain::{
        job::{JobUpdate, UpdateSource},
        job_record::JobRecord,
    },
    store,
};

fn at() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

fn job(source: &str, id: u64, attempt: u32, name: &str) -> Job {
    let record = JobRecord {
        source: SourceName::new(source).unwrap(),
        id: id.into(),
        repository: "acme/app".into(),
        run_id: 1,
        run_attempt: attempt,
        name: name.into(),
        workflow: None,
        status: JobStatus::Queued,
        conclusion: None,
        url: None,
        started_at: None,
        completed_at: None,
    };
    let update =
        JobUpdate { record, labels: Vec::new(), runner_name: None, source: UpdateSource::Poll, missing: false };
    Job::new(update, at())
}

#[tokio::test]
async fn equal_ids_of_two_sources_and_of_two_attempts_are_different_jobs() {
    let dir = tempfile::tempdir().unwrap();
    let store = store::open(&dir.path().join("mayfly.db")).await.unwrap();
    let all = [job("github", 2, 1, "a"), job("gitea", 2, 1, "b"), job("gitea", 2, 2, "c")];
    for job in &all {
        store.ledger.put_job(job.clone()).await.unwrap();
    }
    let again = Job { tries: 3, ..all[1].clone() };
    store.ledger.put_job(again.clone()).await.unwrap();
    for expected in [&all[0], &again, &all[2]] {
        assert_eq!(store.reader.job(&expected.record.key()).await.unwrap().as_ref(), Some(expected));
    }
    let names = async |filter: JobFilter| {
        let rows = store.reader.jobs(&JobFilter { limit: 9, ..filter }).await.unwrap();
        rows.into_iter().map(|row| (row.seq, row.job.record.name)).collect::<Vec<_>>()
    };
    let listed = names(JobFilter::default()).await;
    assert_eq!(listed.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["c", "b", "a"]);
    let rest = names(JobFilter { before: Some(listed[0].0), ..Default::default() }).await;
    assert_eq!(rest, listed[1..]);
    let of = names(JobFilter { source: Some(SourceName::github()), ..Default::default() }).await;
    assert_eq!(of, listed[2..]);
    let rerun = Job { record: JobRecord { repository: "acme/lib".into(), ..all[2].record.clone() }, ..all[2].clone() };
    store.ledger.put_job(rerun).await.unwrap();
    assert_eq!(store.reader.job_repositories(&SourceName::github()).await.unwrap(), ["acme/app"]);
}

#[tokio::test]
async fn what_an_earlier_version_stored_belongs_to_github() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mayfly.db");
    let mut db = store::schema::of_version(&path, 16).await;
    let known = Job { tries: 1, pool: Some("p".into()), ..job("github", 9001, 2, "build") };
    let mut record = serde_json::to_value(&known).unwrap();
    record.as_object_mut().unwrap().remove("source");
    let vm = "01933b5c-7e5e-7c7a-9d5b-1f2e3d4c5b6a";
    let statements = [
        "INSERT INTO vms (id, name, state, generation, template, request_hash, created_at, record)
         VALUES (?1, 'v', 'queued', 1, 't', x'01', 0, '{}')",
        "INSERT INTO jobs VALUES (9001, 'acme/app', 'queued', 'p', 1, NULL, ?2)",
        "INSERT INTO vm_jobs VALUES (9001, ?1), (7, ?1)",
        "INSERT INTO idempotency_keys VALUES ('service', 'github-job-9001-2', x'01', ?1, 0),
                                             ('tokens', 'github-job-9001-2', x'01', ?1, 0),
                                             ('service', 'github-job-9001-1', x'01', ?1, 0)",
        "INSERT INTO webhook_deliveries (seq, guid, event, received_at, result, body, content)
         VALUES (5, 'g', 'workflow_job', 7, 'pending', x'7b7d', x'02')",
    ];
    for statement in statements {
        sqlx::query(statement).bind(vm).bind(record.to_string()).execute(&mut db).await.unwrap();
    }
    db.close().await.unwrap();

    let store = store::open(&path).await.unwrap();
    assert_eq!(store.reader.job(&known.record.key()).await.unwrap(), Some(known));
    let mut deliveries = store.reader.pending_deliveries(9).await.unwrap();
    let pending = deliveries.remove(0);
    assert_eq!((pending.seq, pending.source, pending.body), (5, SourceName::github(), b"{}".to_vec()));
    assert!(store.reader.knows_delivery(&SourceName::github(), "g").await.unwrap());
    assert!(!store.reader.knows_delivery(&SourceName::new("gitea").unwrap(), "g").await.unwrap());
    let text = async |sql: &'static str| {
        let rows = sqlx::query_scalar::<_, String>(sql).fetch_all(store.reader.pool()).await.unwrap();
        rows.join(" ")
    };
    // A vm that was made for this job just before the upgrade is found by the key of its next vm.
    let keys = "SELECT owner || '=' || key FROM idempotency_keys ORDER BY 1";
    assert_eq!(text(keys).await, "service=github-job-9001-1 service=job-github-9001-2-2 tokens=github-job-9001-2");
    let jobs = "SELECT job_id || '/' || source || '/' || attempt FROM vm_jobs ORDER BY 1";
    assert_eq!(text(jobs).await, "7/github/1 9001/github/2");
}

#[tokio::test]
async fn ids_that_were_numbers_are_found_as_texts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mayfly.db");
    let mut db = store::schema::of_version(&path, 18).await;
    let (known, gone) = (job("gitea", 9001, 2, "build"), job("gitea", 7, 1, "old"));
    let (vm, json) = ("01933b5c-7e5e-7c7a-9d5b-1f2e3d4c5b6a", |job: &Job| serde_json::to_string(job).unwrap());
    assert!(json(&known).contains("\"id\":9001"), "records keep numbers: {}", json(&known));
    let statements = [
        "INSERT INTO vms (id, name, state, generation, template, request_hash, created_at, record)
         VALUES (?1, 'v', 'queued', 1, 't', x'01', 0, '{}')",
        "INSERT INTO jobs VALUES (4, 'gitea', 9001, 2, 'acme/app', 'queued', 'p', 1, NULL, ?2),
                                 (9, 'gitea', 7, 1, 'acme/app', 'queued', 'p', 1, NULL, ?3)",
        "DELETE FROM jobs WHERE seq = 9",
        "INSERT INTO vm_jobs (job_id, source, attempt, vm_id) VALUES (9001, 'gitea', 2, ?1)",
        "INSERT INTO runners (name, scope, vm_id, attempt, runner_id, asked_at, source)
         VALUES ('a-1', 'acme', ?1, 1, 8123, 7, 'gitea'), ('b-1', 'acme', ?1, 1, NULL, 7, 'gitea')",
    ];
    for statement in statements {
        sqlx::query(statement).bind(vm).bind(json(&known)).bind(json(&gone)).execute(&mut db).await.unwrap();
    }
    db.close().await.unwrap();

    let store = store::open(&path).await.unwrap();
    assert_eq!(store.reader.job(&known.record.key()).await.unwrap(), Some(known.clone()));
    let mut of_runners = Vec::new();
    for row in store.reader.runners().await.unwrap() {
        of_runners.push((row.name, row.runner_id));
    }
    of_runners.sort();
    assert_eq!(of_runners, [("a-1".to_owned(), Some(8123.into())), ("b-1".to_owned(), None)]);
    let vms = "SELECT vm_id FROM vm_jobs WHERE job_id = '9001' AND source = 'gitea' AND attempt = 2";
    assert_eq!(sqlx::query_scalar::<_, String>(vms).fetch_all(store.reader.pool()).await.unwrap(), [vm]);
    // A cursor of a listing names a row: no later row gets the number of a deleted one.
    store.ledger.put_job(job("gitea", 10, 1, "new")).await.unwrap();
    let filter = JobFilter { limit: 9, ..JobFilter::default() };
    let listed: Vec<i64> = store.reader.jobs(&filter).await.unwrap().iter().map(|row| row.seq).collect();
    assert_eq!(listed, [10, 4]);
    // The same job again is the same row.
    store.ledger.put_job(known).await.unwrap();
    assert_eq!(store.reader.jobs(&filter).await.unwrap().len(), 2);
}
