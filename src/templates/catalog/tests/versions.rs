//! Tests of names and their versions.

use super::*;

#[tokio::test]
async fn a_name_remembers_where_it_pointed() {
    let f = Fixture::new();
    let made = f.catalog.register(f.template("a")).await.unwrap();
    // As it was written before there was a history.
    fs::write(f.at("templates/names/a"), format!("{}\n", made.digest)).unwrap();
    assert_eq!(f.catalog.get("a").await.unwrap(), made);
    let next = version(&f, 2).await;
    let moved = f.catalog.point_name("a", &next.digest, "an update").await.unwrap();
    assert_eq!((moved.from.as_ref(), &moved.to, moved.changed()), (Some(&made.digest), &next.digest, true));
    let status = f.catalog.status("a").await.unwrap();
    assert_eq!((status.names, status.why.as_deref()), (vec!["a".to_owned()], Some("an update")));
    let old = &status.previous[0];
    assert_eq!((&old.digest, &old.since, &old.why), (&made.digest, &None, &None));

    assert!(!f.catalog.point_name("a", &next.digest, "again").await.unwrap().changed());
    assert_eq!(f.catalog.status("a").await.unwrap().why.as_deref(), Some("an update"));
    let (back, template) = f.catalog.roll_back("a", None).await.unwrap();
    assert_eq!((back.to, &template.digest), (made.digest.clone(), &made.digest));
    assert_eq!(f.catalog.get("a").await.unwrap().digest, made.digest);
    assert_eq!(previous(&f, "a").await, slice::from_ref(&next.digest));
    assert_eq!(f.catalog.roll_back("a", None).await.unwrap().1.digest, next.digest);

    let error = f.catalog.roll_back("a", Some(&version(&f, 9).await.digest)).await.unwrap_err();
    assert_eq!(error.code, Code::TemplateNoPrevious);
    assert!(f.entries().iter().all(|e| !e.starts_with("staging/")), "{:?}", f.entries());
}

#[tokio::test]
async fn a_name_that_is_moved_by_many_points_at_one_of_theirs_and_remembers_the_others() {
    let f = Fixture::new();
    let mut digests = Vec::new();
    for cpus in 1..=6 {
        digests.push(version(&f, cpus).await.digest);
    }
    let other = Catalog::open(f.at("templates")).unwrap();
    let moves = (0..48).map(|n| {
        let catalog = if n % 2 == 0 { &f.catalog } else { &other };
        let digest = digests[n % digests.len()].clone();
        async move {
            match n % 8 {
                7 => catalog.roll_back("a", None).await.map(drop).or_else(|e| match e.code {
                    Code::TemplateNotFound | Code::TemplateNoPrevious => Ok(()),
                    _ => Err(e),
                }),
                _ => catalog.point_name("a", &digest, "a race").await.map(drop),
            }
        }
    });
    let watch = async {
        // Concurrent readers see one of them, never none.
        for _ in 0..200 {
            match f.catalog.get("a").await {
                Ok(template) => assert!(digests.contains(&template.digest)),
                Err(e) => assert_eq!(e.code, Code::TemplateNotFound),
            }
            tokio::task::yield_now().await;
        }
    };
    let (done, ()) = tokio::join!(futures_util::future::join_all(moves), watch);
    done.into_iter().for_each(|r| r.unwrap());
    let mut all = previous(&f, "a").await;
    all.push(f.catalog.get("a").await.unwrap().digest);
    all.sort();
    digests.sort();
    assert_eq!(all, digests);
}

#[tokio::test]
async fn a_move_that_was_cut_off_has_not_happened() {
    let f = Fixture::new();
    let made = f.catalog.register(f.template("a")).await.unwrap();
    let next = version(&f, 2).await;
    // Written, and not renamed.
    let (_, staged) = f.catalog.root.stage_name("a", &next.digest, "cut off").unwrap();
    std::mem::forget(staged);
    assert_eq!(f.catalog.get("a").await.unwrap(), made);
    let again = Catalog::open(f.at("templates")).unwrap();
    assert_eq!((again.get("a").await.unwrap(), previous(&f, "a").await), (made, vec![]));
    assert_eq!(fs::read_dir(f.at("templates/staging")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_is_taken_is_not_removed() {
    let f = Fixture::new();
    let made = f.catalog.register(f.template("a")).await.unwrap();
    let (taken, kept) = f.catalog.take("a").await.unwrap();
    assert_eq!(taken, made);
    assert_eq!(f.catalog.remove("a").await.unwrap_err().code, Code::TemplateInUse);
    drop(kept);
    let used = f.catalog.status("a").await.unwrap().last_used_at.unwrap();
    assert!(used >= made.created_at);
    let remover = File::open(&made.files.disk).unwrap();
    remover.lock().unwrap();
    let error = f.catalog.take("a").await.unwrap_err();
    assert_eq!((error.code, error.retry_after), (Code::TemplateInUse, Some(1)));
    drop(remover);
    f.catalog.remove("a").await.unwrap();
    assert_eq!(f.catalog.take("a").await.unwrap_err().code, Code::TemplateNotFound);
}
