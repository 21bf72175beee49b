//! Tests of the catalog on a full disk.

use std::{
    fs::{self, File},
    path::Path,
    sync::Arc,
};

use super::{tests::Vms, *};
use crate::{
    domain::version::PruneRequest,
    platform::files::small_disk::{self as small, fill},
};

fn new(sources: &Path, name: &str, cpus: u32) -> NewTemplate {
    let given = Some(sources.join("kernel"));
    NewTemplate {
        kernel: given,
        cpus: Some(cpus),
        memory_mib: Some(64),
        ..NewTemplate::of_disk(name, sources.join("disk"))
    }
}

/// The sources of templates, on another disk.
fn sources() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..160_u32 << 10).map(|n| (n % 251) as u8 + 1).collect();
    fs::write(dir.path().join("disk"), bytes).unwrap();
    fs::write(dir.path().join("kernel"), vec![9; 10_000]).unwrap();
    dir
}

fn here(catalog: &Catalog) -> (Vec<String>, BTreeMap<String, String>, usize) {
    let root = &catalog.root;
    (root.digests().unwrap(), root.all_names().unwrap(), fs::read_dir(root.staging()).unwrap().count())
}

#[tokio::test]
async fn an_import_that_finds_the_disk_full_anywhere_leaves_nothing_and_loses_nothing() {
    let Some(disk) = small::small_disk(
        module_path!(),
        "an_import_that_finds_the_disk_full_anywhere_leaves_nothing_and_loses_nothing",
        4,
    ) else {
        return;
    };
    let sources = sources();
    let catalog = Catalog::open(disk.join("templates")).unwrap();
    let old = catalog.register(new(sources.path(), "old", 1)).await.unwrap();
    let before = here(&catalog);
    let mut refused = 0;
    for pages in 0.. {
        fill(&disk, pages);
        // Bypasses the check of free space, which would refuse this.
        let made = catalog.root.register(&new(sources.path(), "new", 2));
        match made {
            Err(error) => {
                assert_eq!(error.code, Code::HostFull, "{pages}: {error} {:?}", error.cause);
                assert_eq!(here(&catalog), before, "{pages}");
                refused += 1;
            }
            Ok(template) => {
                assert_eq!(catalog.get("new").await.unwrap(), template);
                assert_eq!(catalog.verify("new").await.unwrap().faults, []);
                break;
            }
        }
    }
    assert!(refused > 40, "{refused}");
    assert_eq!(catalog.get("old").await.unwrap(), old);
    assert_eq!(catalog.verify("old").await.unwrap().faults, []);
    assert_eq!(here(&catalog).2, 0);
}

#[tokio::test]
async fn a_name_on_a_full_disk_stays_where_it_points() {
    let Some(disk) = small::small_disk(module_path!(), "a_name_on_a_full_disk_stays_where_it_points", 4) else {
        return;
    };
    let sources = sources();
    let catalog = Catalog::open(disk.join("templates")).unwrap();
    let (one, two) = (
        catalog.register(new(sources.path(), "a", 1)).await.unwrap(),
        catalog.register(new(sources.path(), "b", 2)).await.unwrap(),
    );
    fill(&disk, 0);
    let before = here(&catalog);
    let error = catalog.point_name("a", &two.digest, "full").await.unwrap_err();
    assert_eq!(error.code, Code::HostFull);
    assert_eq!(catalog.pin("a", Some("full")).await.unwrap_err().code, Code::HostFull);
    assert_eq!((here(&catalog), catalog.get("a").await.unwrap()), (before, one.clone()));
    // Freeing space needs no space, and a failed write of metadata does not refuse a vm.
    catalog.take("b").await.unwrap();
    catalog.set_template_usage(Vms::of(&[]));
    catalog.remove("b").await.unwrap();
    assert_eq!(here(&catalog).0, [one.digest]);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_it_begins_and_a_clone_makes_room() {
    let Some(disk) =
        small::small_disk(module_path!(), "what_does_not_fit_is_refused_before_it_begins_and_a_clone_makes_room", 8)
    else {
        return;
    };
    let sources = sources();
    let low_water = 1 << 20;
    let limits = SpaceLimits { min_free_bytes: low_water, ..SpaceLimits::default() };
    let catalog = Catalog::open_with(disk.join("templates"), limits).unwrap();
    let vms = Vms::of(&[]);
    catalog.set_template_usage(vms.clone());
    let named = catalog.register(new(sources.path(), "a", 1)).await.unwrap();
    let unnamed = NewTemplate { name: None, ..new(sources.path(), "", 2) };
    let idle = catalog.register(unnamed).await.unwrap();
    let manifest = idle.files.disk.with_file_name(manifest::FILE_NAME);
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    File::open(manifest).unwrap().set_modified(hour_ago).unwrap();

    // Above the mark by less than another template needs: nothing that can be removed is enough for two.
    fill(&disk, low_water / 4096 + 10);
    catalog.may_clone(&named.digest).await.unwrap();
    let before = here(&catalog);
    let error = catalog.room_for_pull(1 << 20).await.unwrap_err();
    assert_eq!(error.code, Code::HostFull);
    assert!(error.detail.contains("the name a points at it"), "{}", error.detail);
    assert_eq!(here(&catalog), before);
    // One import fits into the space of a version that nothing needs.
    let made = catalog.register(new(sources.path(), "b", 3)).await.unwrap();
    assert_eq!(here(&catalog).0.len(), 2);
    assert_eq!(catalog.get(&idle.digest).await.unwrap_err().code, Code::TemplateNotFound);

    // Below it, with a removable version, and without one.
    let unneeded = catalog.root.register(&NewTemplate { name: None, ..new(sources.path(), "", 4) }).unwrap();
    let manifest = unneeded.files.disk.with_file_name(manifest::FILE_NAME);
    File::open(manifest).unwrap().set_modified(hour_ago).unwrap();
    fill(&disk, low_water / 4096 - 10);
    catalog.may_clone(&made.digest).await.unwrap();
    assert_eq!(here(&catalog).0.len(), 2);
    fill(&disk, low_water / 4096 - 10);
    let error = catalog.may_clone(&made.digest).await.unwrap_err();
    assert_eq!(error.code, Code::HostFull);
    assert!(error.detail.contains("there is nothing that nothing needs"), "{}", error.detail);
    let all = PruneRequest { dry_run: true, ..PruneRequest::default() };
    assert_eq!(catalog.prune(&all).await.unwrap().removed, []);
}

#[tokio::test]
async fn a_pull_that_is_published_on_a_full_disk_is_published_later() {
    let Some(disk) = small::small_disk(module_path!(), "a_pull_that_is_published_on_a_full_disk_is_published_later", 4)
    else {
        return;
    };
    let catalog = Catalog::open(disk.join("templates")).unwrap();
    let image = crate::registry::oci::Digest::of(b"image");
    let staging = Arc::new(catalog.staging(image).await.unwrap().unwrap());
    fs::write(staging.journal(), "mayfly pull 1\n").unwrap();
    let content = vec![5; 64 << 10];
    fs::write(staging.part(Part::Disk), &content).unwrap();
    let entry = FileEntry::Whole { sha256: manifest::sha256(&content), size: content.len() as u64 };
    let files = BTreeMap::from([("disk".to_owned(), entry)]);
    let origin = Origin { repository: "registry.example.com/a".into(), digest: image.to_string() };
    let wanted = NewTemplate::of_disk("a", staging.part(Part::Disk));
    let mut refused = 0;
    for pages in 0.. {
        fill(&disk, pages);
        match catalog.publish_pulled(staging.clone(), origin.clone(), None, wanted.clone(), files.clone()).await {
            Err(error) => {
                assert_eq!(error.code, Code::HostFull, "{error} {:?}", error.cause);
                let (digests, names, staged) = here(&catalog);
                assert_eq!((digests.len(), names.len(), staged), (0, 0, 1), "{pages}");
                assert_eq!(fs::read(staging.part(Part::Disk)).unwrap(), content);
                refused += 1;
            }
            Ok(template) => {
                assert_eq!(catalog.get("a").await.unwrap(), template);
                break;
            }
        }
    }
    assert!(refused > 0);
    assert_eq!(here(&catalog).2, 0);
}
