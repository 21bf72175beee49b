use super::*;
use crate::{
    domain::pull::{PullSpec, Watch},
    store,
};

fn at(n: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + n).unwrap()
}

fn pull(name: &str) -> Pull {
    let spec = PullSpec {
        image: "r.example/a:b".into(),
        name: name.into(),
        cpus: Some(2),
        memory_mib: None,
        network: None,
        ready: None,
        handover: None,
        user: None,
        ssh_key: Some("/key".into()),
        ssh_password: None,
        budgets: Default::default(),
        canary: None,
        background: false,
    };
    Pull::requested(PullId::mint(), spec, None, at(100), at(0))
}

async fn open_store(dir: &tempfile::TempDir) -> store::Store {
    store::open(&dir.path().join("mayfly.db")).await.unwrap()
}

#[tokio::test]
async fn an_equal_request_joins_until_the_pull_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(&dir).await;
    let (first, new) = store.ledger.open_pull(pull("a"), [1; 32]).await.unwrap();
    assert!(new);
    let (joined, new) = store.ledger.open_pull(pull("a"), [1; 32]).await.unwrap();
    assert_eq!((joined.id, new), (first.id, false));
    assert!(store.ledger.open_pull(pull("b"), [2; 32]).await.unwrap().1);

    let mut changes = store.ledger.changes().subscribe_pulls();
    let mut events = store.ledger.changes().subscribe_templates();
    let mut ended = (*first).clone();
    ended.ended(PullState::Cancelled, at(1));
    let said = TemplateEvent::PullCancelled { pull: first.id, image: "i".into() };
    let saved = store.ledger.save_pull(ended, vec![("a".into(), said)], at(1)).await.unwrap().unwrap();
    assert_eq!((saved.generation, saved.updated_at), (2, at(1)));
    assert_eq!(changes.recv().await.unwrap(), saved);
    assert_eq!(events.recv().await.unwrap().event.kind(), "pull_cancelled");
    assert_eq!(store.reader.pull(first.id).await.unwrap().as_ref(), Some(&*saved));
    assert_eq!(store.reader.live_pulls().await.unwrap().len(), 1);
    let (again, new) = store.ledger.open_pull(pull("a"), [1; 32]).await.unwrap();
    assert!(new && again.id != first.id);
    // Newest first, from any position.
    let all: Vec<_> = store.reader.pulls(None, 10).await.unwrap().into_iter().map(|p| p.id).collect();
    assert_eq!((all.len(), all[0], all[2]), (3, again.id, first.id));
    assert_eq!(store.reader.pulls(Some(all[1]), 10).await.unwrap(), [(*saved).clone()]);
}

#[tokio::test]
async fn an_outdated_generation_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(&dir).await;
    let (pull, _) = store.ledger.open_pull(pull("a"), [1; 32]).await.unwrap();
    let mut cancelled = (*pull).clone();
    cancelled.ended(PullState::Cancelled, at(1));
    assert!(store.ledger.save_pull(cancelled, Vec::new(), at(1)).await.unwrap().is_some());
    let mut done = (*pull).clone();
    done.ended(PullState::Done, at(2));
    let said = TemplateEvent::Deleted { digest: "d".into() };
    let before = store.reader.last_seq().await.unwrap();
    assert_eq!(store.ledger.save_pull(done, vec![("a".into(), said)], at(2)).await.unwrap(), None);
    assert_eq!(store.reader.pull(pull.id).await.unwrap().unwrap().state, PullState::Cancelled);
    assert_eq!(store.reader.last_seq().await.unwrap(), before, "an event of what did not happen");
}

#[tokio::test]
async fn pulls_are_forgotten_after_their_end_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(&dir).await;
    let (old, _) = store.ledger.open_pull(pull("a"), [1; 32]).await.unwrap();
    let (live, _) = store.ledger.open_pull(pull("b"), [2; 32]).await.unwrap();
    let mut testing = (*live).clone();
    testing.state = PullState::Testing;
    testing.digest = Some("sha256:1".into());
    store.ledger.save_pull(testing, Vec::new(), at(0)).await.unwrap();
    assert_eq!(store.reader.digests_in_test().await.unwrap(), ["sha256:1"]);
    let mut ended = (*old).clone();
    ended.ended(PullState::Done, at(10));
    store.ledger.save_pull(ended, Vec::new(), at(10)).await.unwrap();
    // The two starts are events of second 0.
    assert_eq!(store.ledger.forget_deleted_before(at(10)).await.unwrap(), 2);
    assert!(store.reader.pull(old.id).await.unwrap().is_some());
    assert_eq!(store.ledger.forget_deleted_before(at(11)).await.unwrap(), 1);
    assert_eq!(store.reader.pull(old.id).await.unwrap(), None);
    assert!(store.reader.pull(live.id).await.unwrap().is_some(), "one that has not ended is never old");
}

#[tokio::test]
async fn a_watch_that_was_replaced_is_not_overwritten_by_an_old_look() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(&dir).await;
    let watch = |image: &str| Watch {
        template: "a".into(),
        image: image.into(),
        every_seconds: 60,
        canary: None,
        created_at: at(0),
        looked_at: None,
        next_look_at: at(0),
        image_digest: None,
        pull: None,
        failures: 0,
        fault: None,
    };
    let (one, two) = (watch("r/one:x"), watch("r/two:x"));
    store.ledger.put_watch(one.clone(), at(0)).await.unwrap();
    let looked = Watch { looked_at: Some(at(1)), ..one.clone() };
    assert!(store.ledger.save_watch(&one, looked.clone(), None, at(1)).await.unwrap());
    store.ledger.put_watch(two.clone(), at(2)).await.unwrap();
    let moved = TemplateEvent::TagMoved { image: "r/one:x".into(), digest: "d".into() };
    assert!(!store.ledger.save_watch(&looked, one, Some(moved.clone()), at(3)).await.unwrap());
    assert_eq!(store.reader.watch("a").await.unwrap(), Some(two.clone()));
    assert!(store.ledger.remove_watch("a", at(4)).await.unwrap());
    assert!(!store.ledger.remove_watch("a", at(4)).await.unwrap());
    assert!(!store.ledger.save_watch(&two, looked, Some(moved), at(5)).await.unwrap());
    assert_eq!(store.reader.watches().await.unwrap(), []);
    let events = store.reader.template_events(["a", "a"], 0, 10).await.unwrap();
    let kinds: Vec<_> = events.iter().map(|e| e.event.kind()).collect();
    assert_eq!(kinds, ["watch_set", "watch_set", "watch_removed"]);
}
