//! Builds the NoCloud volume: a small vfat image labelled `CIDATA` with `user-data` and `meta-data`.
//!
//! `user-data` is a script and not `#cloud-config`, so that guests with a few lines of shell in place of cloud-init
//! can run it. The instance id is the vm's id, so cloud-init sees a first boot in every vm, even if the template was
//! booted before. The same bundle and name always give the same bytes.

use std::io::{self, Cursor, Seek as _, Write as _};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

use super::{
    install::{self, InstallTarget},
    kit::Kit,
};

const LABEL: &[u8; 11] = b"CIDATA     ";
const MIN_BYTES: usize = 1 << 20;
const STEP: usize = 64 << 10;

/// The volume's bytes. They contain the bundle's secrets.
pub fn volume(kit: &Kit, vm_name: &str) -> io::Result<Vec<u8>> {
    let user_data = install::script(kit, &InstallTarget::System);
    let meta_data = meta_data(kit, vm_name);
    image(kit.vm_id().0.as_fields().0, &[("user-data", user_data.as_bytes()), ("meta-data", meta_data.as_bytes())])
}

fn meta_data(kit: &Kit, vm_name: &str) -> String {
    format!("instance-id: {}\nlocal-hostname: {}\n", kit.vm_id(), hostname(vm_name))
}

/// A host name that is also a plain YAML string.
fn hostname(vm_name: &str) -> String {
    let mut name = String::new();
    for c in vm_name.chars() {
        match c {
            'a'..='z' | '0'..='9' => name.push(c),
            'A'..='Z' => name.push(c.to_ascii_lowercase()),
            _ if name.ends_with('-') || name.is_empty() => {}
            _ => name.push('-'),
        }
    }
    // YAML reads `123`, `1e3` and `no` as other types than text.
    let other_than_text = matches!(name.as_str(), "true" | "false" | "yes" | "no" | "on" | "off" | "null" | "y" | "n");
    if other_than_text || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        name.insert_str(0, "vm-");
    }
    name.truncate(63);
    name.trim_end_matches('-').to_owned()
}

fn image(volume_id: u32, files: &[(&str, &[u8])]) -> io::Result<Vec<u8>> {
    // Allocation tables, root directory and partly filled clusters need a few percent.
    let content: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let size = (content + content / 16 + STEP).next_multiple_of(STEP).max(MIN_BYTES);

    let mut disk = Cursor::new(vec![0; size]);
    let options = FormatVolumeOptions::new().volume_label(*LABEL).volume_id(volume_id);
    fatfs::format_volume(&mut disk, options)?;
    disk.rewind()?;
    {
        // Without the crate's `chrono` feature all timestamps are constant, so the image depends only on its content.
        let fs = FileSystem::new(&mut disk, FsOptions::new())?;
        for (name, bytes) in files {
            let mut file = fs.root_dir().create_file(name)?;
            file.truncate()?;
            file.write_all(bytes)?;
            file.flush()?;
        }
        fs.unmount()?;
    }
    Ok(disk.into_inner())
}

/// A file of a volume, or `None` if it does not exist.
#[cfg(test)]
fn read(volume: &[u8], name: &str) -> io::Result<Option<Vec<u8>>> {
    use std::io::Read as _;

    let fs = FileSystem::new(Cursor::new(volume.to_vec()), FsOptions::new())?;
    let mut bytes = Vec::new();
    let found = match fs.root_dir().open_file(name) {
        Ok(mut file) => file.read_to_end(&mut bytes).map(|_| Some(()))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    Ok(found.map(|()| bytes))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{
        super::kit::{KitInput, tests::input},
        *,
    };

    #[test]
    fn the_volume_holds_both_files_under_their_long_names() {
        let kit = Kit::new(input()).unwrap();
        let volume = volume(&kit, "Build #7 / arm").unwrap();
        assert_eq!(volume.len(), MIN_BYTES);
        let fs = FileSystem::new(Cursor::new(volume.clone()), FsOptions::new()).unwrap();
        assert_eq!(fs.volume_label(), "CIDATA");
        assert_eq!(fs.read_volume_label_from_root_dir().unwrap().as_deref(), Some("CIDATA"));
        let names: Vec<String> = fs.root_dir().iter().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["user-data", "meta-data"]);
        assert_eq!(
            read(&volume, "meta-data").unwrap().unwrap(),
            b"instance-id: 01933b5c-7e5e-7c7a-9d5b-1f2e3d4c5b6a\nlocal-hostname: build-7-arm\n"
        );
        let user_data = read(&volume, "user-data").unwrap().unwrap();
        assert_eq!(user_data, install::script(&kit, &InstallTarget::System).as_bytes());
        assert!(user_data.starts_with(b"#!/bin/sh\n"));
        // cloud-init looks for a MIME header in the first 4 KiB, so they must not contain user data.
        assert!(!String::from_utf8_lossy(&user_data[..4096]).contains("GREETING"));
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let volumes: Vec<_> = (0..2).map(|_| volume(&Kit::new(input()).unwrap(), "a").unwrap()).collect();
        assert!(volumes[0] == volumes[1]);
    }

    #[test]
    fn it_grows_with_its_content() {
        for size in [0, 1, 700 << 10, 980 << 10, 1 << 20, 3_900_000, 4 << 20, 17 << 20] {
            let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            let volume = image(1, &[("user-data", &bytes), ("meta-data", b"x")]).unwrap();
            assert!(volume.len() >= MIN_BYTES && volume.len() < (size + size / 8 + (2 << 16)).max(MIN_BYTES + 1));
            assert!(read(&volume, "user-data").unwrap().unwrap() == bytes, "{size}");
            assert_eq!(read(&volume, "meta-data").unwrap().unwrap(), b"x");
        }
    }

    #[test]
    fn big_payloads_fit() {
        let kit = Kit::new(KitInput { payload: Some("é\u{1}".repeat(400_000)), ..input() }).unwrap();
        let volume = volume(&kit, "a").unwrap();
        assert_eq!(
            read(&volume, "user-data").unwrap().unwrap(),
            install::script(&kit, &InstallTarget::System).as_bytes()
        );
    }

    #[test]
    fn hostnames_are_names() {
        for (given, name) in [
            ("runner-1", "runner-1"),
            ("--A__b--", "a-b"),
            ("42", "vm-42"),
            ("no", "vm-no"),
            ("", "vm"),
            ("日本", "vm"),
            (&"x".repeat(80), &"x".repeat(63)),
        ] {
            assert_eq!(hostname(given), name, "{given}");
        }
    }

    /// Other implementations of the file system agree, where they are installed.
    #[test]
    fn others_read_it_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.img");
        let kit = Kit::new(input()).unwrap();
        std::fs::write(&path, volume(&kit, "a").unwrap()).unwrap();
        if let Ok(out) = Command::new("mcopy").arg("-i").arg(&path).args(["::user-data", "-"]).output() {
            assert_eq!(out.stdout, install::script(&kit, &InstallTarget::System).as_bytes());
        }
        if let Ok(out) = Command::new("blkid").args(["-p", "-o", "export"]).arg(&path).output() {
            let shown = String::from_utf8_lossy(&out.stdout);
            assert!(shown.contains("LABEL=CIDATA") && shown.contains("TYPE=vfat"), "{shown}");
        }
        if let Ok(out) = Command::new("fsck.vfat").arg("-n").arg(&path).output() {
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
        }
    }
}
