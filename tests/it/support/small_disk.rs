//! Disks that are full, for real: a test runs once more, alone, in a mount namespace of its own with a small file system in
//! memory. Where none can be mounted (outside of Linux, and where there is neither root nor a user namespace) it says so and
//! tests nothing.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

const DISK: &str = "MAYFLY_TEST_SMALL_DISK";

/// The small disk, in the inner run; `None` in the outer one, which has by then seen the inner one pass. `module` is the
/// `module_path!()` of the test, and `test` its name.
pub fn small_disk(module: &str, test: &str, mib: u32) -> Option<PathBuf> {
    if let Some(disk) = std::env::var_os(DISK) {
        return Some(disk.into());
    }
    // The test program leaves the name of the crate out.
    let test = &format!("{}::{test}", module.split_once("::").map_or("", |(_, path)| path));
    let dir = tempfile::tempdir().unwrap();
    let ways = [&["-m"][..], &["-U", "-r", "-m"]];
    let works = |way: &&&[&str]| {
        let mount = ["mount", "-t", "tmpfs", "tmpfs"];
        let mount = Command::new("unshare").args(**way).args(mount).arg(dir.path()).output();
        mount.is_ok_and(|o| o.status.success())
    };
    let Some(way) = ways.iter().find(works) else {
        eprintln!("{test}: not tested, because no file system can be mounted here");
        return None;
    };
    let script =
        format!("mount -t tmpfs -o size={mib}m,mode=0700 tmpfs \"$1\" && exec \"$2\" --exact \"$3\" --nocapture");
    let output = Command::new("unshare")
        .args(*way)
        .args(["sh", "-c", &script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(DISK, dir.path())
        .output()
        .unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{errors}");
    None
}

/// Leaves so many pages free.
pub fn fill(disk: &Path, pages: u64) {
    empty(disk);
    let stat = rustix::fs::statvfs(disk).unwrap();
    let bytes = stat.f_bavail.saturating_sub(pages) * stat.f_frsize;
    let mut file = File::create(disk.join("filler")).unwrap();
    file.write_all(&vec![1; usize::try_from(bytes).unwrap()]).unwrap();
    let left = rustix::fs::statvfs(disk).unwrap().f_bavail;
    assert!(left <= pages + 1, "{left} pages are left, and {pages} were to be");
}

/// Takes away what `fill` wrote.
pub fn empty(disk: &Path) {
    let _ = fs::remove_file(disk.join("filler"));
}
