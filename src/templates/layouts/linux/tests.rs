use std::{collections::BTreeMap, fs, os::unix::fs::FileExt as _, process::Command};

use gpt::mbr::ProtectiveMBR;

use super::{partitions::SECTOR, *};

fn unlimited(dir: &tempfile::TempDir) -> SpaceGuard {
    SpaceGuard::new(dir.path().to_owned(), 0)
}

/// An ext4 file system with these files.
fn ext4(dir: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
    ext4_with(dir, name, files, &[])
}

/// With these options of `mke2fs`.
fn ext4_with(dir: &Path, name: &str, files: &[(&str, &str)], options: &[&str]) -> PathBuf {
    let tree = dir.join(format!("{name}.tree"));
    fs::create_dir(&tree).unwrap();
    for (path, content) in files {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let image = dir.join(name);
    let out = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4"])
        .args(options)
        .arg("-d")
        .arg(&tree)
        .arg(&image)
        .arg("8M")
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    image
}

/// A disk with a GPT and these file systems, and the identifiers of its partitions.
fn gpt_disk(dir: &Path, systems: &[PathBuf]) -> (PathBuf, Vec<String>) {
    let disk = dir.join("gpt.raw");
    let mut file = File::options().read(true).write(true).create_new(true).open(&disk).unwrap();
    file.set_len(32 << 20).unwrap();
    ProtectiveMBR::with_lb_size((32 << 11) - 1).overwrite_lba0(&mut file).unwrap();
    let mut table = gpt::GptConfig::new().writable(true).create_from_device(file, None).unwrap();
    table.update_partitions(BTreeMap::new()).unwrap();
    for system in systems {
        let length = fs::metadata(system).unwrap().len();
        table.add_partition("linux", length, gpt::partition_types::LINUX_FS, 0, None).unwrap();
    }
    let parts: Vec<_> = table.partitions().values().cloned().collect();
    let file = table.write().unwrap();
    for (part, system) in parts.iter().zip(systems) {
        file.write_all_at(&fs::read(system).unwrap(), part.first_lba * SECTOR).unwrap();
    }
    (disk, parts.iter().map(|p| p.part_guid.hyphenated().to_string()).collect())
}

fn content(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

const ROOT: [(&str, &str); 5] = [
    ("etc/os-release", "ID=debian"),
    ("boot/vmlinuz-6.8.0-9-generic", "old kernel"),
    ("boot/vmlinuz-6.8.0-90-generic", "new kernel"),
    ("boot/initrd.img-6.8.0-90-generic", "new initrd"),
    ("boot/vmlinuz-0-rescue-abc", "rescue"),
];

#[test]
fn the_newest_kernel_of_a_bare_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let disk = ext4(dir.path(), "bare", &ROOT);
    let found = extract(&disk, dir.path(), &unlimited(&dir), &StopFlag::default()).unwrap();
    assert_eq!((found.name.as_str(), found.root.as_str()), ("vmlinuz-6.8.0-90-generic", "/dev/vda"));
    assert_eq!(content(&found.kernel), "new kernel");
    let (name, path) = found.initramfs.unwrap();
    assert_eq!((name.as_str(), content(&path).as_str()), ("initrd.img-6.8.0-90-generic", "new initrd"));
}

#[test]
fn a_partition_of_its_own_for_boot_is_not_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let boot = ext4(dir.path(), "boot", &[("vmlinuz-5.14.0", "kernel"), ("initramfs-5.14.0.img", "initramfs")]);
    let root = ext4(dir.path(), "root", &[("etc/os-release", "ID=rocky"), ("boot/empty", "")]);
    let (disk, ids) = gpt_disk(dir.path(), &[boot, root]);
    let found = extract(&disk, dir.path(), &unlimited(&dir), &StopFlag::default()).unwrap();
    assert_eq!(found.root, format!("PARTUUID={}", ids[1]));
    assert_eq!((content(&found.kernel).as_str(), found.place.as_str()), ("kernel", "/ of partition 1"));
    assert_eq!(found.initramfs.unwrap().0, "initramfs-5.14.0.img");
}

#[test]
fn the_older_table_is_read_too() {
    let dir = tempfile::tempdir().unwrap();
    let root = ext4(dir.path(), "root", &ROOT);
    let disk = dir.path().join("mbr.raw");
    let mut file = File::options().read(true).write(true).create_new(true).open(&disk).unwrap();
    file.set_len(16 << 20).unwrap();
    file.write_all_at(&fs::read(root).unwrap(), 1 << 20).unwrap();
    let mut table = ProtectiveMBR::new();
    let mut record = table.partition(0).unwrap();
    (record.os_type, record.lb_start, record.lb_size) = (0x83, 2048, 8 << 11);
    table.set_partition(0, record);
    table.set_disk_signature([0x78, 0x56, 0x34, 0x12]);
    table.overwrite_lba0(&mut file).unwrap();
    assert_eq!(
        extract(&disk, dir.path(), &unlimited(&dir), &StopFlag::default()).unwrap().root,
        "PARTUUID=12345678-01"
    );
}

#[test]
fn disks_without_a_kernel_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let says = |path: &Path| extract(path, dir.path(), &unlimited(&dir), &StopFlag::default()).unwrap_err().detail;
    assert!(says(&ext4(dir.path(), "empty", &[("etc/fstab", "")])).contains("no kernel"));
    fs::write(dir.path().join("noise"), vec![0xa5; 1 << 20]).unwrap();
    assert!(says(&dir.path().join("noise")).contains("no ext2"));
    fs::write(dir.path().join("short"), "x").unwrap();
    assert!(says(&dir.path().join("short")).contains("too short"));
    // A table that would be allocated by the gigabyte, or stop the reader.
    let (disk, _) = gpt_disk(dir.path(), &[]);
    let bytes = fs::read(&disk).unwrap();
    let mut broken = bytes.clone();
    broken[512 + 84] = 64;
    fs::write(dir.path().join("broken"), broken).unwrap();
    assert!(says(&dir.path().join("broken")).contains("partition table"));
}

/// Changes a field of an inode, with its checksum.
fn debugfs(image: &Path, command: &str) {
    let out = Command::new("debugfs").args(["-w", "-R", command]).arg(image).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && !said.contains("not found"), "{said}");
}

#[test]
fn links_in_the_guest_are_followed_inside_it_only() {
    let dir = tempfile::tempdir().unwrap();
    let disk = ext4(dir.path(), "links", &[("usr/lib/os-release", "ID=x"), ("data/k/vmlinuz-6.1", "kernel")]);
    let tree = dir.path().join("links.tree");
    let link = |to: &str, name: &str| {
        debugfs(&disk, &format!("symlink {name} {to}"));
    };
    drop(tree);
    link("/data/k", "/boot");
    debugfs(&disk, "mkdir /etc");
    link("../usr/lib/os-release", "/etc/os-release");
    link("/etc/passwd", "/data/k/initrd.img-6.1");
    link("/loop", "/loop");
    let found = extract(&disk, dir.path(), &unlimited(&dir), &StopFlag::default()).unwrap();
    assert_eq!((found.name.as_str(), content(&found.kernel).as_str()), ("vmlinuz-6.1", "kernel"));
    assert!(found.initramfs.is_none());
}

/// The reader of the file system would allocate what is claimed: the service would be aborted.
#[test]
fn what_a_file_system_claims_is_not_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let says = |disk: &Path| extract(disk, dir.path(), &unlimited(&dir), &StopFlag::default()).unwrap_err().detail;
    let long = format!("/{}", "x".repeat(100));
    for (name, size) in [("abort", 1_u64 << 45), ("panic", u64::MAX >> 1)] {
        let disk = ext4(dir.path(), name, &[("etc/fstab", "")]);
        debugfs(&disk, &format!("symlink /boot {long}"));
        debugfs(&disk, &format!("set_inode_field /boot size {size}"));
        let said = says(&disk);
        assert!(said.contains("no kernel") || said.contains("cannot be read at /boot"), "{said}");
    }
    // A file system of 16 TiB in groups of one block each, in 8 MiB.
    let disk = ext4(dir.path(), "groups", &[("boot/vmlinuz-1", "x")]);
    let file = File::options().write(true).open(&disk).unwrap();
    file.write_all_at(&u32::MAX.to_le_bytes(), 1024 + 4).unwrap();
    file.write_all_at(&1_u32.to_le_bytes(), 1024 + 32).unwrap();
    assert!(says(&disk).contains("cannot be read here (the disk: its superblock is wrong)"));
}

#[test]
fn the_work_ends_when_it_is_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let disk = ext4(dir.path(), "bare", &ROOT);
    let stop = StopFlag::default();
    stop.cancel();
    let error = extract(&disk, dir.path(), &unlimited(&dir), &stop).unwrap_err();
    assert!(error.detail.contains("cancelled"), "{error}");
}

#[test]
fn versions_are_compared_number_by_number() {
    for (older, newer) in [
        ("6.8.0-9", "6.8.0-90"),
        ("6.8.0-rc1", "6.8.0"),
        ("6.8.0", "6.8.0-1"),
        ("5.15.0-100-generic", "6.1.0-1-amd64"),
        ("6.9", "6.10"),
    ] {
        assert_eq!(by_version(older, newer), Ordering::Less, "{older} {newer}");
    }
}

/// What the reader does not support is not taken for absent.
#[test]
fn a_file_system_that_cannot_be_read_is_named_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    for (name, options) in [
        ("inline_data", &["-O", "inline_data"][..]),
        ("casefold", &["-O", "casefold"]),
        ("meta_bg", &["-O", "meta_bg,^resize_inode"]),
        ("large_dir", &["-O", "large_dir"]),
        ("ea_inode", &["-O", "ea_inode"]),
        ("mmp", &["-O", "mmp"]),
        ("128", &["-I", "128"]),
    ] {
        let disk = ext4_with(dir.path(), name, &ROOT, options);
        let into = dir.path().join(format!("{name}.into"));
        fs::create_dir(&into).unwrap();
        match extract(&disk, &into, &unlimited(&dir), &StopFlag::default()) {
            // A later version of the reader may support it.
            Ok(found) => assert_eq!(content(&found.kernel), "new kernel", "{name}"),
            Err(error) => {
                let said = &error.detail;
                assert!(said.contains("has a file system that cannot be read here (the disk: "), "{name}: {said}");
                assert!(said.contains("give the kernel in `kernel`"), "{name}: {said}");
                eprintln!("{name}: {said}");
            }
        }
    }
    let disk = dir.path().join("none");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let error = extract(&disk, dir.path(), &unlimited(&dir), &StopFlag::default()).unwrap_err();
    assert!(error.detail.contains("has no ext2, ext3 or ext4 file system on it"), "{}", error.detail);
}
