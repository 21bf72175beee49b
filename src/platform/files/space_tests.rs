use std::{fs::File, os::unix::fs::FileExt as _, thread};

use super::*;
use crate::platform::files::small_disk as small;

#[test]
fn writers_that_write_at_once_stop_at_the_limit_together() {
    let Some(disk) = small::small_disk(module_path!(), "writers_that_write_at_once_stop_at_the_limit_together", 64)
    else {
        return;
    };
    let keep_free = 20 << 20;
    let guard = SpaceGuard::new(disk.clone(), keep_free);
    let written: u64 = thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|n| {
                let (guard, path) = (guard.clone(), disk.join(n.to_string()));
                scope.spawn(move || {
                    let file = File::create_new(path).unwrap();
                    let block = vec![1; 300_000];
                    for at in 0.. {
                        let write = || file.write_all_at(&block, at * block.len() as u64);
                        if let Err(error) = guard.write(block.len(), write) {
                            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
                            assert_eq!(SpaceLow::of(&error).unwrap().keep_free, keep_free);
                            return at * block.len() as u64;
                        }
                    }
                    unreachable!("a writer without end")
                })
            })
            .collect();
        writers.into_iter().map(|w| w.join().unwrap()).sum()
    });
    let left = free(&disk).unwrap();
    // A page for each file's last block, and the file system's own tables.
    assert!(left + (256 << 10) >= keep_free, "{left} bytes are free");
    assert!(written > 40 << 20, "{written} bytes");
    // Another limit on the same file system, and none.
    guard.keeping(keep_free / 2).write(1 << 20, || Ok(())).unwrap();
    guard.keeping(0).write(1 << 30, || Ok(())).unwrap();
    assert_eq!(guard.file_system.tally.lock().in_flight, 0);
}

#[tokio::test]
async fn what_another_program_writes_is_noticed() {
    let Some(disk) = small::small_disk(module_path!(), "what_another_program_writes_is_noticed", 16) else { return };
    let guard = SpaceGuard::new(disk.clone(), 8 << 20);
    let end = guard.exhausted();
    tokio::pin!(end);
    assert!(tokio::time::timeout(WATCH_EVERY * 3, &mut end).await.is_err());
    small::fill(&disk, 100);
    assert_eq!(SpaceLow::of(&end.await).unwrap().free >> 20, 0);
    assert!(guard.permit(1).is_err());
    small::empty(&disk);
    assert!(guard.permit(1).is_ok());
}

#[test]
fn a_directory_elsewhere_has_no_limit() {
    let Some(disk) = small::small_disk(module_path!(), "a_directory_elsewhere_has_no_limit", 4) else { return };
    let other = tempfile::tempdir().unwrap();
    let guard = SpaceGuard::new(disk.clone(), u64::MAX);
    assert!(guard.at(&disk).unwrap().permit(1).is_err());
    assert!(guard.at(other.path()).unwrap().permit(1).is_ok());
    assert!(guard.writer(Vec::new()).write_all(b"x").is_err());
}
