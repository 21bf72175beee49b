//! The KVM device: whether this user may open it, and what an administrator can do if not.

use std::{io, path::Path};

/// Path of the KVM device.
pub const KVM: &str = "/dev/kvm";
/// Its device number, the same on every Linux.
#[cfg(target_os = "linux")]
const NUMBER: (u32, u32) = (10, 232);

/// Why an accelerator is not used, and the remedy. Both become one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub cause: String,
    pub remedy: &'static str,
}

const ENABLE: &str = "load the module kvm_intel or kvm_amd, and switch on virtualisation in the firmware, or nested \
                      virtualisation where this host is itself a virtual machine";
const PERMIT: &str = "add the service's user to the group that owns the device (usermod -aG kvm USER), or pass the device \
                      to the container, and start the service again";

/// Opens the device for reading and writing, as QEMU does.
pub fn open(path: &Path) -> Result<(), Refused> {
    let opened = std::fs::File::options().read(true).write(true).open(path);
    let file = opened.map_err(|error| refused(path, &error))?;
    if is_kvm(&file) {
        return Ok(());
    }
    let remedy = "put the real device there (a character device, 10:232)";
    Err(Refused { cause: format!("{} is not the KVM device", path.display()), remedy })
}

fn refused(path: &Path, error: &io::Error) -> Refused {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => Refused { cause: format!("{path} does not exist"), remedy: ENABLE },
        io::ErrorKind::PermissionDenied => {
            Refused { cause: format!("this user may not open {path} ({error})"), remedy: PERMIT }
        }
        _ => Refused { cause: format!("{path} cannot be opened ({error})"), remedy: ENABLE },
    }
}

#[cfg(target_os = "linux")]
fn is_kvm(file: &std::fs::File) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    file.metadata().is_ok_and(|meta| {
        let number = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        meta.file_type().is_char_device() && number == NUMBER
    })
}

#[cfg(not(target_os = "linux"))]
fn is_kvm(_: &std::fs::File) -> bool {
    true
}

/// Whether this processor has no feature that KVM could use: then a KVM that is present interprets or rewrites guest
/// code.
pub fn is_software() -> bool {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return false;
    }
    let Ok(cpuinfo) = std::fs::read_to_string("/proc/cpuinfo") else { return false };
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| !flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// The device's number, owner and mode, and whether this user may open it: joining the group `kvm` should not require
/// a reboot.
pub fn state(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).ok()?;
    let refused = open(path).err().map(|refused| refused.cause);
    Some(format!("{}:{} {:o} {} {} {refused:?}", meta.uid(), meta.gid(), meta.mode(), meta.ctime(), meta.rdev()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_not_to_have_kvm_has_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let absent = open(&dir.path().join("kvm")).unwrap_err();
        assert!(absent.cause.ends_with("/kvm does not exist") && absent.remedy.contains("kvm_intel"), "{absent:?}");
        let denied = refused(Path::new(KVM), &io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(denied.cause.starts_with("this user may not open /dev/kvm ("), "{denied:?}");
        assert!(denied.remedy.contains("usermod -aG kvm"), "{denied:?}");
        // The module is loaded, but the processor's virtualisation is disabled or in use.
        let broken = refused(Path::new(KVM), &io::Error::from(io::ErrorKind::ResourceBusy));
        assert!(
            broken.cause.starts_with("/dev/kvm cannot be opened (") && broken.remedy.contains("firmware"),
            "{broken:?}"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn another_file_in_its_place_is_not_kvm() {
        let other = open(Path::new("/dev/null")).unwrap_err();
        assert_eq!(other.cause, "/dev/null is not the KVM device");
        assert!(state(Path::new("/dev/null")).unwrap().contains("not the KVM device"));
    }
}
