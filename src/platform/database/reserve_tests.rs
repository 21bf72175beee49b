use super::*;
use crate::platform::files::small_disk as small;

async fn reserve(disk: &Path, bytes: u64) -> DatabaseReserve {
    let health = DatabaseHealth::new(&disk.join("mayfly.db"));
    DatabaseReserve::open(ReserveFile { path: disk.join("database.reserve"), bytes }, health).await
}

#[tokio::test]
async fn space_is_given_up_in_parts_and_taken_again() {
    let Some(disk) = small::small_disk(module_path!(), "space_is_given_up_in_parts_and_taken_again", 64) else {
        return;
    };
    let size = 12 << 20;
    let path = disk.join("database.reserve");
    let length = || path.metadata().unwrap().len();
    let mut held = reserve(&disk, size).await;
    assert_eq!((held.is_incomplete(), length()), (false, size));
    let free = || files::free(&disk).unwrap();
    held.make_headroom(free()).await;
    assert_eq!((length(), held.health.space_fault()), (size, None));

    small::fill(&disk, 2);
    held.make_headroom(free()).await;
    assert_eq!(length(), size - PART);
    assert!(free() >= HEADROOM && held.is_incomplete());
    assert!(held.health.space_fault().unwrap().detail.contains("is full"));
    // Given up although there seems to be enough: a quota, for example.
    held.disk_was_full().await;
    assert_eq!(length(), size - 2 * PART);
    // Not while there is too little.
    held.refill().await;
    assert!(held.is_incomplete() && held.health.space_fault().is_some());
    // A restart finds what is left.
    let mut held = reserve(&disk, size).await;
    assert!(held.is_incomplete());
    assert_eq!(length(), size - 2 * PART);
    for _ in 0..5 {
        held.disk_was_full().await;
    }
    assert_eq!(length(), 0);

    small::empty(&disk);
    held.refill().await;
    assert_eq!((held.is_incomplete(), length(), held.health.space_fault()), (false, size, None));
    // Smaller, and none.
    assert!(!reserve(&disk, size / 2).await.is_incomplete());
    assert_eq!(length(), size / 2);
    assert!(!reserve(&disk, 0).await.is_incomplete());
    assert!(!path.exists());
}

#[test]
fn where_space_cannot_be_reserved_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create_new(dir.path().join("file")).unwrap();
    allocate(&file, 0, 3 << 20).unwrap();
    file.sync_all().unwrap();
    assert_eq!(allocated(&file).unwrap(), 3 << 20);
}
