//! Tests of disk space: pruning and reservations.

use super::*;

/// Makes it look as if it had not been used for so long.
fn age(f: &Fixture, digest: &str, hours: u64) {
    let at = SystemTime::now() - Duration::from_secs(hours * 3600);
    let dir = f.at("templates").join(digest.replace(':', "-"));
    let _ = fs::remove_file(dir.join("used"));
    File::open(dir.join("manifest.json")).unwrap().set_modified(at).unwrap();
}

#[tokio::test]
async fn what_nothing_needs_goes_and_the_rest_says_why_it_stays() {
    let f = Fixture::new();
    let vms = Vms::of(&[]);
    f.catalog.set_template_usage(vms.clone());
    let mut digests = Vec::new();
    for cpus in 1..=6 {
        let digest = version(&f, cpus).await.digest;
        age(&f, &digest, 100 - u64::from(cpus));
        digests.push(digest);
    }
    let [oldest, older, pinned, used, before, now] = <[String; 6]>::try_from(digests).unwrap();
    f.catalog.point_name("n", &before, "first").await.unwrap();
    f.catalog.point_name("n", &now, "then").await.unwrap();
    f.catalog.pin(&pinned, Some("for the audit")).await.unwrap();
    vms.listed.lock().insert(used.clone());

    let dry = PruneRequest { dry_run: true, ..PruneRequest::default() };
    let outlook = f.catalog.prune(&dry).await.unwrap();
    let digests_of = |held: &[VersionUsage]| held.iter().map(|h| h.digest.clone()).collect::<Vec<_>>();
    assert_eq!(digests_of(&outlook.removed), [oldest.clone(), older.clone()]);
    assert_eq!(outlook.freed_bytes, outlook.removed.iter().map(|h| h.bytes).sum::<u64>());
    assert!(outlook.freed_bytes >= 2 * 4096 && outlook.total_bytes >= 6 * 4096 && outlook.available_bytes > 0);
    let why = |digest: &String| outlook.kept.iter().find(|h| h.digest == *digest).unwrap().why.clone();
    assert_eq!(why(&pinned), "it is pinned: for the audit");
    assert_eq!(why(&used), "a vm needs it");
    assert_eq!(
        (why(&before), why(&now)),
        ("the name n may be rolled back to it".into(), "the name n points at it".into())
    );
    assert!(vms.told.lock().is_empty());
    assert!(f.catalog.get(&oldest).await.is_ok());

    // Taken since the list was made: the lock, or the row that was written meanwhile, keeps it.
    let (_, kept) = f.catalog.take(&older).await.unwrap();
    vms.needed.lock().insert(oldest.clone());
    let pruned = f.catalog.prune(&PruneRequest::default()).await.unwrap();
    assert_eq!(pruned.removed, []);
    drop(kept);
    vms.needed.lock().clear();
    age(&f, &older, 98);
    // Named since the list was made.
    let only = PruneRequest { max_bytes: Some(pruned.total_bytes - 1), ..PruneRequest::default() };
    assert_eq!(digests_of(&f.catalog.prune(&only).await.unwrap().removed), slice::from_ref(&oldest));
    assert_eq!(removed(&f.catalog).await, slice::from_ref(&older));
    assert_eq!(*vms.told.lock(), [oldest, older]);

    vms.none();
    f.catalog.pin(&pinned, None).await.unwrap();
    assert_eq!(removed(&f.catalog).await, [pinned, used]);
    let none = PruneRequest { keep_previous: 0, ..PruneRequest::default() };
    assert_eq!(digests_of(&f.catalog.prune(&none).await.unwrap().removed), [before]);
    assert_eq!(f.catalog.get("n").await.unwrap().digest, now);
    assert_eq!(f.entries().len(), EMPTY.len() + 2);
}

#[tokio::test]
async fn without_knowing_the_vms_nothing_is_pruned() {
    let f = Fixture::new();
    let made = version(&f, 1).await;
    assert_eq!(f.catalog.prune(&PruneRequest::default()).await.unwrap_err().code, Code::Internal);
    f.catalog.tidy().await.unwrap();
    assert_eq!(f.catalog.get(&made.digest).await.unwrap(), made);
}

#[tokio::test]
async fn a_pruning_that_was_cut_off_is_finished_by_the_next_start() {
    let f = Fixture::new();
    let made = version(&f, 1).await;
    // As far as `discard` came.
    let dir = f.at("templates").join(made.digest.replace(':', "-"));
    fs::rename(dir, f.at("templates/staging/grave")).unwrap();
    assert_eq!(f.catalog.get(&made.digest).await.unwrap_err().code, Code::TemplateNotFound);
    Catalog::open(f.at("templates")).unwrap();
    assert_eq!(f.entries(), EMPTY);
}

#[tokio::test]
async fn interrupted_pulls_are_removed_when_unused() {
    let f = Fixture::new();
    f.catalog.set_template_usage(Vms::of(&[]));
    let [idle, busy] = [b"idle", b"busy"].map(|image| oci::Digest::of(image));
    for image in [idle, busy] {
        let staging = f.catalog.staging(image).await.unwrap().unwrap();
        fs::write(staging.journal(), "mayfly pull 1\n").unwrap();
        fs::write(staging.part(Part::Disk), vec![1; 100_000]).unwrap();
    }
    let at_work = f.catalog.staging(busy).await.unwrap().unwrap();
    assert_eq!(removed(&f.catalog).await, [""; 0]);
    let old = PruneRequest { partial_older_than_seconds: Some(3600), ..PruneRequest::default() };
    assert_eq!(f.catalog.prune(&old).await.unwrap().removed, []);
    let all = PruneRequest { partial_older_than_seconds: Some(0), ..PruneRequest::default() };
    let pruned = f.catalog.prune(&all).await.unwrap();
    assert_eq!((pruned.removed.len(), pruned.removed[0].kind), (1, HeldKind::PartialPull));
    assert_eq!(pruned.removed[0].digest, idle.to_string());
    assert!(pruned.removed[0].bytes >= 100_000);
    assert_eq!((pruned.kept.len(), pruned.kept[0].why.as_str()), (1, "it is being pulled"));
    drop(at_work);
    assert_eq!(f.catalog.prune(&all).await.unwrap().removed.len(), 1);
    assert_eq!(f.entries(), EMPTY);
}

/// What one template of the fixture takes.
async fn one_takes(f: &Fixture) -> u64 {
    let made = version(f, 90).await;
    let dry = PruneRequest { dry_run: true, ..PruneRequest::default() };
    f.catalog.set_template_usage(Vms::of(&[]));
    let held = f.catalog.prune(&dry).await.unwrap().removed;
    f.catalog.remove(&made.digest).await.unwrap();
    held[0].bytes
}

#[tokio::test]
async fn the_budget_is_kept_by_pruning_and_nothing_is_pruned_in_vain() {
    let f = Fixture::new();
    let one = one_takes(&f).await;
    let limits = SpaceLimits { max_bytes: 4 * one, ..SpaceLimits::default() };
    let catalog = Catalog::open_with(f.at("templates"), limits).unwrap();
    catalog.set_template_usage(Vms::of(&[]));
    let register = async |name: Option<&str>, cpus: u32| {
        let new = NewTemplate { name: name.map(str::to_owned), cpus: Some(cpus), ..f.template("") };
        catalog.register(new).await
    };
    let named = register(Some("a"), 1).await.unwrap();
    let (old, older) = (register(None, 2).await.unwrap(), register(None, 3).await.unwrap());
    age(&f, &old.digest, 10);
    age(&f, &older.digest, 20);
    // The fourth fits beside three, and the fifth does not.
    register(Some("b"), 4).await.unwrap();
    register(Some("c"), 5).await.unwrap();
    assert_eq!(catalog.get(&older.digest).await.unwrap_err().code, Code::TemplateNotFound);
    assert_eq!(catalog.get(&old.digest).await.unwrap().digest, old.digest);

    // A pull that would not fit even then removes nothing, and says why all is kept.
    let error = catalog.room_for_pull(3 * one).await.unwrap_err();
    assert_eq!(error.code, Code::HostFull);
    assert!(error.detail.contains("the name a points at it") && error.detail.contains("at most"), "{}", error.detail);
    assert_eq!(catalog.get(&old.digest).await.unwrap().digest, old.digest);
    // One that does takes the old one's place, and the next one cannot have the same room.
    let room = catalog.room_for_pull(one).await.unwrap();
    assert_eq!(catalog.get(&old.digest).await.unwrap_err().code, Code::TemplateNotFound);
    let error = catalog.room_for_pull(one).await.unwrap_err();
    assert!(error.detail.contains("promised"), "{}", error.detail);
    room.written(one);
    drop(catalog.room_for_pull(one).await.unwrap());
    drop(room);
    // More than was promised is not given back twice.
    let room = catalog.room_for_pull(10).await.unwrap();
    room.written(one);
    drop(room);
    assert_eq!(catalog.root.promised.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert_eq!(catalog.get("a").await.unwrap(), named);
}

#[tokio::test]
async fn two_at_once_are_not_promised_the_same_room() {
    let f = Fixture::new();
    let limits = SpaceLimits { max_bytes: 10 << 20, ..SpaceLimits::default() };
    let catalog = Catalog::open_with(f.at("templates"), limits).unwrap();
    catalog.set_template_usage(Vms::of(&[]));
    let all = futures_util::future::join_all((0..8).map(|_| catalog.room_for_pull(4 << 20))).await;
    assert_eq!(all.iter().filter(|r| r.is_ok()).count(), 2);
    drop(all);
    assert!(catalog.room_for_pull(9 << 20).await.is_ok());
}

#[tokio::test]
async fn a_clone_needs_the_low_water_mark() {
    let f = Fixture::new();
    let made = version(&f, 1).await;
    age(&f, &made.digest, 1);
    let limits = SpaceLimits { min_free_bytes: u64::MAX, ..SpaceLimits::default() };
    let catalog = Catalog::open_with(f.at("templates"), limits).unwrap();
    catalog.set_template_usage(Vms::of(&[]));
    let error = catalog.may_clone(&made.digest).await.unwrap_err();
    assert_eq!((error.code, error.retry_after), (Code::HostFull, Some(60)));
    assert!(error.detail.starts_with("a clone needs ") && error.detail.contains("frees"), "{}", error.detail);
    assert_eq!(catalog.get(&made.digest).await.unwrap().digest, made.digest);
    f.catalog.may_clone(&made.digest).await.unwrap();
}

#[tokio::test]
async fn what_was_not_used_for_long_is_tidied_away() {
    let f = Fixture::new();
    let limits = SpaceLimits { keep_unused_days: 1, ..SpaceLimits::default() };
    let catalog = Catalog::open_with(f.at("templates"), limits).unwrap();
    catalog.set_template_usage(Vms::of(&[]));
    let (old, young) = (version(&f, 5).await, version(&f, 6).await);
    age(&f, &old.digest, 25);
    age(&f, &young.digest, 23);
    let named = f.catalog.register(f.template("a")).await.unwrap();
    age(&f, &named.digest, 1000);
    catalog.tidy().await.unwrap();
    assert_eq!(catalog.get(&old.digest).await.unwrap_err().code, Code::TemplateNotFound);
    assert!(catalog.get(&young.digest).await.is_ok() && catalog.get("a").await.is_ok());
}
