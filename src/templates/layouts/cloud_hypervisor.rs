//! The directory tree in which hosts with Cloud Hypervisor keep golden images and kernels:
//!
//! ```text
//! snapshots/ubuntu-base.7.qcow2          a golden image, by name and number
//! snapshots/ubuntu-base.8/disk.qcow2     the same, of later tools
//! kernels/vmlinuz-6.8.0-90-generic       a kernel for all of them
//! kernels/initrd.img-6.8.0-90-generic    its initramfs
//! ```
//!
//! The number is the version: the highest one is imported, or the one that is named. A warm snapshot (`memory-ranges`) is imported
//! as a disk, because memory can be restored by the same version of the hypervisor only.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Notices, invalid, linux::by_version, source};
use crate::{
    domain::{Arch, Result},
    platform::files,
    templates::NewTemplate,
};

const DRIVER: &str = "cloud-hypervisor";
const SNAPSHOTS: &str = "snapshots";
const KERNELS: &str = "kernels";
const DISK: &str = "disk.qcow2";

/// A golden image in the tree.
#[derive(Debug, PartialEq, Eq)]
struct GoldenImage {
    name: String,
    number: u64,
    disk: PathBuf,
}

/// Completes the template by what is in the tree, as far as the request does not say it. `from`: the tree, or one of its images.
pub(super) fn read(from: &Path, extract_kernel: bool, new: &mut NewTemplate, notices: &mut Notices) -> Result<PathBuf> {
    let (root, disk) = match from.symlink_metadata() {
        Ok(found) if found.is_dir() => {
            let root = source::directory(from)?;
            let golden = newest(&root)?;
            notices.add("disk", format!("is number {} of {}", golden.number, golden.name));
            (root, golden.disk)
        }
        _ => {
            files::open_regular(from).map_err(|what| invalid("disk", what))?;
            (root_of(from)?, from.to_owned())
        }
    };
    new.driver.get_or_insert_with(|| DRIVER.to_owned());
    if extract_kernel || new.kernel.is_some() || new.firmware.is_some() {
        return Ok(disk);
    }
    let (kernel, version) = newest_kernel(&root.join(KERNELS))?;
    notices.add("kernel", format!("is vmlinuz-{version}"));
    new.kernel = Some(kernel);
    if new.initramfs.is_none() {
        new.initramfs = source::optional_part(&root.join(KERNELS), &format!("initrd.img-{version}"))?;
        if new.initramfs.is_none() {
            notices.add("initramfs", "is missing beside that kernel: it has to find its root by itself");
        }
    }
    if new.cmdline.is_none() {
        let console = match new.arch.or_else(Arch::of_this_host) {
            Some(Arch::Aarch64) => "ttyAMA0",
            _ => "ttyS0",
        };
        // Only an initramfs can find a file system by its label.
        let root = if new.initramfs.is_some() { "LABEL=cloudimg-rootfs" } else { "/dev/vda1" };
        let cmdline = format!("console={console} root={root} rw");
        notices.add("cmdline", format!("was not given: {cmdline:?} was taken"));
        new.cmdline = Some(cmdline);
    }
    Ok(disk)
}

/// The tree of an image that was named itself.
fn root_of(disk: &Path) -> Result<PathBuf> {
    let resolved =
        fs::canonicalize(disk).map_err(|error| invalid("disk", format!("cannot be read: {}", error.kind())))?;
    let snapshots =
        resolved.ancestors().skip(1).take(2).find(|dir| dir.file_name().is_some_and(|name| name == SNAPSHOTS));
    let root = snapshots.and_then(Path::parent);
    root.map(Path::to_owned).ok_or_else(|| {
        let what = format!("must be in a directory {SNAPSHOTS}: import another image with the layout qcow2");
        invalid("disk", what)
    })
}

fn newest(root: &Path) -> Result<GoldenImage> {
    let dir = root.join(SNAPSHOTS);
    let mut images = images(&dir)?;
    let mut names: Vec<String> = images.iter().map(|image| image.name.clone()).collect();
    names.sort();
    names.dedup();
    match names.as_slice() {
        [] => Err(invalid(SNAPSHOTS, "has no image NAME.N.qcow2, where N is its number")),
        [_] => {
            images.sort_by_key(|image| image.number);
            images.pop().ok_or_else(|| invalid(SNAPSHOTS, "has no image"))
        }
        several => {
            let what = format!("has images of several names ({}): name the image itself", several.join(", "));
            Err(invalid(SNAPSHOTS, what))
        }
    }
}

fn images(dir: &Path) -> Result<Vec<GoldenImage>> {
    let cannot = |error: std::io::Error| invalid(SNAPSHOTS, format!("cannot be read: {}", error.kind()));
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let Some(file) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let kind = entry.file_type().map_err(cannot)?;
        let stem =
            if kind.is_file() { file.strip_suffix(".qcow2") } else { Some(file.as_str()).filter(|_| kind.is_dir()) };
        let Some((name, number)) = stem.and_then(|stem| stem.rsplit_once('.')) else { continue };
        // `007` and `+7` are other names.
        let Some(number) = number.parse::<u64>().ok().filter(|parsed| parsed.to_string() == number) else { continue };
        let disk = if kind.is_dir() {
            let Some(disk) = source::optional_part(&entry.path(), DISK)? else { continue };
            disk
        } else {
            entry.path()
        };
        found.push(GoldenImage { name: name.to_owned(), number, disk });
    }
    Ok(found)
}

fn newest_kernel(dir: &Path) -> Result<(PathBuf, String)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("vmlinuz-").map(str::to_owned));
    let Some(version) = names.max_by(|a, b| by_version(a, b)) else {
        let what =
            "has no vmlinuz-VERSION: ask for the disk's own kernel with `extract_kernel`, or name one in `kernel`";
        return Err(invalid(KERNELS, what));
    };
    Ok((source::part(dir, &format!("vmlinuz-{version}"))?, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        dir
    }

    fn found(from: &Path) -> (PathBuf, NewTemplate, Notices) {
        let (mut new, mut notices) = (NewTemplate::of_disk("a", ""), Notices::default());
        let disk = read(from, false, &mut new, &mut notices).unwrap();
        (disk, new, notices)
    }

    fn refused(from: &Path) -> String {
        read(from, false, &mut NewTemplate::of_disk("a", ""), &mut Notices::default()).unwrap_err().detail
    }

    #[test]
    fn the_highest_number_is_taken_with_the_newest_kernel() {
        let dir = tree(&[
            "snapshots/ubuntu-base.9.qcow2",
            "snapshots/ubuntu-base.10/disk.qcow2",
            "snapshots/ubuntu-base.10/memory-ranges",
            "snapshots/ubuntu-base.099.qcow2",
            "snapshots/notes.txt",
            "kernels/vmlinuz-6.8.0-9-generic",
            "kernels/vmlinuz-6.8.0-90-generic",
            "kernels/initrd.img-6.8.0-90-generic",
        ]);
        let root = dir.path().canonicalize().unwrap();
        let (disk, new, notices) = found(dir.path());
        assert_eq!(disk, root.join("snapshots/ubuntu-base.10/disk.qcow2"));
        assert_eq!(new.kernel.as_deref(), Some(&*root.join("kernels/vmlinuz-6.8.0-90-generic")));
        assert_eq!(new.initramfs.as_deref(), Some(&*root.join("kernels/initrd.img-6.8.0-90-generic")));
        assert_eq!(new.driver.as_deref(), Some("cloud-hypervisor"));
        assert!(new.cmdline.as_deref().unwrap().ends_with(" root=LABEL=cloudimg-rootfs rw"));
        assert!(notices.0.iter().any(|notice| notice.detail == "is number 10 of ubuntu-base"));
        // An earlier one, by its name; and one in a directory.
        for image in ["snapshots/ubuntu-base.9.qcow2", "snapshots/ubuntu-base.10/disk.qcow2"] {
            let (disk, new, _) = found(&root.join(image));
            assert_eq!(disk, root.join(image));
            assert_eq!(new.kernel.as_deref(), Some(&*root.join("kernels/vmlinuz-6.8.0-90-generic")));
        }
    }

    #[test]
    fn what_is_ambiguous_or_missing_is_refused_with_the_next_step() {
        let dir = tree(&["snapshots/a.1.qcow2", "snapshots/b.1.qcow2"]);
        assert!(refused(dir.path()).contains("images of several names (a, b): name the image itself"));
        assert!(refused(&dir.path().join("snapshots/a.1.qcow2")).contains("kernels has no vmlinuz-VERSION"));
        assert!(refused(tree(&["kernels/vmlinuz-1"]).path()).contains("snapshots cannot be read"));
        assert!(refused(tree(&["snapshots/a.qcow2"]).path()).contains("has no image NAME.N.qcow2"));
        let other = tree(&["a.1.qcow2"]);
        assert!(refused(&other.path().join("a.1.qcow2")).contains("import another image with the layout qcow2"));
        // A link could bring the host's own files into guests.
        let linked = tree(&["snapshots/a.1.qcow2"]);
        fs::create_dir(linked.path().join("kernels")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", linked.path().join("kernels/vmlinuz-1")).unwrap();
        assert!(refused(linked.path()).contains("vmlinuz-1 is a symbolic link"));
    }
}
