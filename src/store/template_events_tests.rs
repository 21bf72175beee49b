use std::path::Path;

use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};

use super::*;
use crate::{
    domain::{EventKind, VmId},
    store,
};

const AT: i64 = 1_700_000_000_000;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(AT + millis).unwrap()
}

fn deleted(digest: &str) -> TemplateEvent {
    TemplateEvent::Deleted { digest: digest.into() }
}

/// A database of schema version 2: two vms, and a newest event that was deleted with its vm.
async fn at_version_2(path: &Path) -> (VmId, VmId) {
    let mut db = store::schema::of_version(path, 2).await;
    let ids = [VmId::mint(), VmId::mint(), VmId::mint()];
    for id in ids {
        sqlx::query("INSERT INTO vms (id, name, state, generation, template, template_digest, os, cpus, memory_mib, request_hash, created_at, record) VALUES (?1, ?1, 'queued', 1, 't', 'd', 'linux', 1, 32, x'00', 0, '{}')")
            .bind(id.to_string())
            .execute(&mut db)
            .await
            .unwrap();
    }
    for (generation, vm) in [(1, 0), (1, 1), (2, 0), (1, 2)] {
        sqlx::query("INSERT INTO events (vm_id, generation, at, state, event) VALUES (?, ?, ?, 'queued', ?)")
            .bind(ids[vm].to_string())
            .bind(generation)
            .bind(AT)
            .bind(r#"{"type":"slot_taken"}"#)
            .execute(&mut db)
            .await
            .unwrap();
    }
    sqlx::query("DELETE FROM vms WHERE id = ?").bind(ids[2].to_string()).execute(&mut db).await.unwrap();
    db.close().await.unwrap();
    (ids[0], ids[1])
}

#[tokio::test]
async fn events_of_before_keep_their_positions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mayfly.db");
    let (one, two) = at_version_2(&path).await;
    let store = store::open(&path).await.unwrap();
    let all: Vec<_> =
        store.reader.events(None, 0, 10).await.unwrap().iter().map(|e| (e.seq, e.vm_id, e.generation)).collect();
    assert_eq!(all, [(1, one, 1), (2, two, 1), (3, one, 2)]);
    // Position 4 belonged to a deleted event and is not reused.
    assert_eq!(store.ledger.record_template("t", deleted("sha256:0"), at(0)).await.unwrap(), 5);
    let kinds: Vec<_> = store
        .reader
        .entries(2, 10)
        .await
        .unwrap()
        .iter()
        .map(|entry| match entry {
            Entry::Vm(e) => (entry.seq(), e.event.kind().as_str()),
            Entry::Template(e) => (entry.seq(), e.event.kind()),
        })
        .collect();
    assert_eq!(kinds, [(3, "slot_taken"), (5, "deleted")]);
    assert_eq!(store.reader.entries(3, 1).await.unwrap()[0].seq(), 5);
    // Unchanged: a vm's events are deleted with it, and a generation occurs once.
    drop(store);
    let mut db = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    let again = sqlx::query("INSERT INTO events (vm_id, generation, at, state, event) VALUES (?, 2, 0, '', '')")
        .bind(one.to_string())
        .execute(&mut db)
        .await;
    assert!(again.is_err());
    sqlx::query("DELETE FROM vms").execute(&mut db).await.unwrap();
    let left: Vec<i64> = sqlx::query_scalar("SELECT seq FROM events").fetch_all(&mut db).await.unwrap();
    assert_eq!(left, [5]);
}

#[tokio::test]
async fn a_database_without_events_begins_at_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = store::open(&dir.path().join("mayfly.db")).await.unwrap();
    let mut bell = store.ledger.changes().subscribe_templates();
    assert_eq!(store.ledger.record_template("t", deleted("sha256:0"), at(0)).await.unwrap(), 1);
    let rung = bell.recv().await.unwrap();
    assert_eq!((rung.seq, rung.template.as_str(), &rung.event), (1, "t", &deleted("sha256:0")));
    assert_eq!(store.ledger.changes().last_seq(), 1);
}

#[tokio::test]
async fn events_are_found_by_name_and_digest_and_forgotten_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = store::open(&dir.path().join("mayfly.db")).await.unwrap();
    for (n, template) in ["a", "sha256:1", "b", "a"].into_iter().enumerate() {
        store.ledger.record_template(template, deleted("sha256:1"), at(n as i64)).await.unwrap();
    }
    let found = async |of, after| -> Vec<i64> {
        store.reader.template_events(of, after, 10).await.unwrap().iter().map(|e| e.seq).collect()
    };
    assert_eq!(found(["a", "sha256:1"], 0).await, [1, 2, 4]);
    assert_eq!(found(["a", "a"], 1).await, [4]);
    assert_eq!(store.reader.events(None, 0, 10).await.unwrap(), []);
    // Up to the moment, exclusive.
    assert_eq!(store.ledger.forget_deleted_before(at(2)).await.unwrap(), 2);
    assert_eq!(store.ledger.forget_deleted_before(at(2)).await.unwrap(), 0);
    assert_eq!(found(["a", "sha256:1"], 0).await, [4]);
    assert_eq!(found(["b", "b"], 0).await, [3]);
}

/// Clients distinguish events by their type alone.
#[test]
fn an_event_is_kept_under_its_type_and_no_vm_event_has_it() {
    let id = crate::domain::PullId::mint();
    let text = String::new;
    let code = crate::domain::Code::Internal;
    let all = [
        TemplateEvent::Registered { digest: text() },
        TemplateEvent::PullStarted { pull: id, image: text() },
        TemplateEvent::Pulled { pull: id, image: text(), digest: text(), bytes: 1, seconds: 1 },
        TemplateEvent::PullFailed { pull: id, image: text(), code, detail: text() },
        TemplateEvent::PullCancelled { pull: id, image: text() },
        TemplateEvent::NameMoved { name: text(), from: None, to: Some(text()), why: text() },
        deleted(""),
        TemplateEvent::Pruned { digest: text(), bytes: 1, why: text() },
        TemplateEvent::Verified { digest: text(), faults: 0 },
        TemplateEvent::CanaryFailed { pull: id, digest: text(), vm: None, detail: text() },
        TemplateEvent::WatchSet { image: text(), every_seconds: 60 },
        TemplateEvent::WatchRemoved { image: text() },
        TemplateEvent::TagMoved { image: text(), digest: text() },
        TemplateEvent::WatchFailed { image: text(), code, detail: text() },
    ];
    for event in all {
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["type"], event.kind());
        assert!(EventKind::ALL.iter().all(|kind| kind.as_str() != event.kind()), "{}", event.kind());
        assert_eq!(serde_json::from_value::<TemplateEvent>(json).unwrap(), event);
    }
}
