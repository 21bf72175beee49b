//! Validates new templates. Every field is checked before anything is copied, so that one answer lists all faults.

use std::{
    fs::File,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{
    NewTemplate,
    manifest::Part,
    qcow2,
    read_budget::{ReadBudget, StopFlag},
    source_state::{self, SourceObstacle},
};
use crate::domain::{
    Arch, Code, Error, GuestOs, Handover, Result,
    tart_config::{self, TartConfig},
    template::DiskFormat,
};
use crate::platform::files;

/// More than any host has. What a file claims beyond that is an error in the file.
pub(super) const MOST_CPUS: u32 = 4096;
pub(super) const MOST_MEMORY_MIB: u32 = 64 << 20;

const LARGEST_KEY: u64 = 64 << 10;
const LARGEST_PASSWORD: u64 = 1 << 10;

/// The default user that runs the runner.
const QEMU: &str = "qemu";
const CLOUD_HYPERVISOR: &str = "cloud-hypervisor";
const TART: &str = "tart";
const MACOSVM: &str = "macosvm";

/// The rule of `is_name`, for messages.
pub(super) const NAME_RULE: &str = "must match [a-z0-9][a-z0-9._-]{0,62} and not be `prune` or `import`";

/// `[a-z0-9][a-z0-9._-]{0,62}`: a file name on every file system, and never a digest. `/templates/prune` and
/// `/templates/import` are operations.
pub fn is_name(name: &str) -> bool {
    name.len() <= 63
        && !["prune", "import"].contains(&name)
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
}

/// A file to be imported, kept open, so that the checked file is the file that is read.
#[derive(Debug)]
pub(super) struct ImportSource {
    pub part: Part,
    pub file: File,
}

/// The request with all defaults resolved.
#[derive(Debug)]
pub(super) struct CheckedTemplate {
    pub driver: String,
    pub os: GuestOs,
    pub arch: Arch,
    pub disk_format: DiskFormat,
    pub cpus: u32,
    pub memory_mib: u32,
    pub handover: Handover,
    pub user: String,
    pub sources: Vec<ImportSource>,
}

/// Faults by field, combined into one error.
#[derive(Default)]
struct Faults(Vec<(&'static str, String)>);

impl Faults {
    fn add(&mut self, field: &'static str, what: impl Into<String>) {
        self.0.push((field, what.into()));
    }

    fn into_result(self) -> Result<()> {
        let Some((field, what)) = self.0.first() else { return Ok(()) };
        let more = match self.0.len() - 1 {
            0 => String::new(),
            n => format!(" (and {n} more, see `errors`)"),
        };
        let error = Error::new(Code::TemplateInvalid, format!("{field} {what}{more}"));
        Err(self.0.iter().fold(error, |e, (field, what)| e.field(format!("/{field}"), what)))
    }
}

/// A fault that was found during the import.
pub(super) fn fault(part: Part, what: impl Into<String>) -> Error {
    let what = what.into();
    Error::new(Code::TemplateInvalid, format!("{} {what}", part.name())).field(format!("/{}", part.name()), what)
}

/// Ends with an error once `stop` is set.
pub(super) fn check(new: &NewTemplate, stop: &StopFlag) -> Result<CheckedTemplate> {
    shut_down(new)?;
    check_all(new, true, stop)
}

/// The directory of a VM must not change while it is copied. Files of an image have other names.
fn shut_down(new: &NewTemplate) -> Result<()> {
    let is_vm = |path: &&PathBuf| path.file_name().is_some_and(|name| name == source_state::CONFIG);
    let dir = new.config.as_ref().filter(is_vm).and_then(|config| config.parent());
    let Some(obstacle) = dir.and_then(source_state::of_tart) else { return Ok(()) };
    let code = match obstacle {
        SourceObstacle::Running { .. } => Code::SourceRunning,
        SourceObstacle::Layered => Code::TemplateInvalid,
        // An import may discard the memory of a suspended VM; it asks before. What cannot be read is reported with the
        // other faults of the files.
        SourceObstacle::Suspended | SourceObstacle::Unreadable(_) => return Ok(()),
    };
    let (file, what) = obstacle.describe();
    Err(Error::new(code, format!("{file} {what}")).field("/vm_dir", format!("its {file} {what}")))
}

/// All checks that do not depend on the disk's content, which may not be there yet. `disk_size`: of its future file.
pub(super) fn check_before_disk(new: &NewTemplate, disk_size: u64) -> Result<CheckedTemplate> {
    let checked = check_all(new, false, &StopFlag::default())?;
    if checked.disk_format == DiskFormat::Raw {
        whole_sectors(disk_size).map_err(|what| fault(Part::Disk, what))?;
    }
    Ok(checked)
}

fn whole_sectors(size: u64) -> std::result::Result<(), String> {
    if size.is_multiple_of(512) {
        return Ok(());
    }
    Err(format!("has {size} bytes, a raw disk is a multiple of 512: copy or download it again"))
}

fn check_all(new: &NewTemplate, disk: bool, stop: &StopFlag) -> Result<CheckedTemplate> {
    let mut faults = Faults::default();
    let optional = |part, path: &Option<PathBuf>| path.clone().map(|path| (part, path));
    let parts = [
        Some((Part::Disk, new.disk.clone())),
        optional(Part::Kernel, &new.kernel),
        optional(Part::Initramfs, &new.initramfs),
        optional(Part::Firmware, &new.firmware),
        optional(Part::Config, &new.config),
        optional(Part::Nvram, &new.nvram),
        optional(Part::SshKey, &new.ssh_key),
        optional(Part::SshPassword, &new.ssh_password),
    ];
    let mut sources = Vec::new();
    for (part, path) in parts.into_iter().flatten() {
        match open(part, &path) {
            Ok(file) => sources.push(ImportSource { part, file }),
            Err(what) => faults.add(part.name(), what),
        }
    }
    let source = |part: Part| sources.iter().find(|s| s.part == part).map(|s| &s.file);
    let config = source(Part::Config).and_then(|file| match tart_config(file) {
        Ok(config) => Some(config),
        Err(what) => {
            faults.add(Part::Config.name(), what);
            None
        }
    });
    let disk_format = new.disk_format.or(config.as_ref().map(|c| c.format)).or_else(|| {
        match format_of(&new.disk, source(Part::Disk)?) {
            Ok(format) => Some(format),
            Err(what) => {
                faults.add("disk_format", what);
                None
            }
        }
    });
    for ImportSource { part, file } in &sources {
        if let Some(disk_format) = disk_format.or((*part != Part::Disk).then_some(DiskFormat::Raw))
            && *part != Part::Config
            && (disk || *part != Part::Disk)
            && let Err(what) = content(*part, disk_format, file, stop)
        {
            faults.add(part.name(), what);
        }
    }
    let decided = settings(new, config.as_ref(), &mut faults);
    faults.into_result()?;
    Ok(CheckedTemplate { disk_format: disk_format.unwrap_or(DiskFormat::Raw), sources, ..decided })
}

fn settings(new: &NewTemplate, config: Option<&TartConfig>, faults: &mut Faults) -> CheckedTemplate {
    if new.name.as_deref().is_some_and(|name| !is_name(name)) {
        faults.add("name", NAME_RULE);
    }
    let os = new.os.or(config.map(|c| c.os)).unwrap_or(GuestOs::Linux);
    let arch = new.arch.or(config.map(|c| c.arch)).or_else(Arch::of_this_host);
    if arch.is_none() {
        faults.add("arch", "is not named, and this host's has no name here");
    }
    // A Tart VM defines these itself; another value shows that the wrong VM was given.
    if let Some(config) = config {
        if os != config.os {
            faults.add("os", "is not what the VM's config.json says");
        }
        if arch != Some(config.arch) {
            faults.add("arch", format!("is not what the VM's config.json says, which is {}", config.arch.as_str()));
        }
        if new.disk_format.is_some_and(|format| format != config.format) {
            let says = config.format.as_str();
            faults.add("disk_format", format!("is not what the VM's config.json says, which is {says}"));
        }
    }
    let usual = if new.config.is_some() || os == GuestOs::Macos { TART } else { QEMU };
    let driver = new.driver.clone().unwrap_or_else(|| usual.to_owned());
    if driver.is_empty() {
        faults.add("driver", "is empty, name one of the drivers in `GET /host`");
    }
    let is_apple = driver == TART || driver == MACOSVM;
    if is_apple {
        for (part, given) in [(Part::Config, new.config.is_some()), (Part::Nvram, new.nvram.is_some())] {
            if !given {
                faults.add(
                    part.name(),
                    format!("is needed by the driver {driver}: name a Tart VM's directory in `vm_dir`, or import another layout"),
                );
            }
        }
        for (part, given) in [
            (Part::Kernel, new.kernel.is_some()),
            (Part::Initramfs, new.initramfs.is_some()),
            (Part::Firmware, new.firmware.is_some()),
        ] {
            if given {
                faults.add(part.name(), format!("means nothing to the driver {driver}, leave it out"));
            }
        }
        if driver == MACOSVM && os != GuestOs::Macos {
            faults.add("os", "is not macos, and the driver macosvm runs macOS guests only: use tart or qemu");
        }
        let format = new.disk_format.or(config.map(|c| c.format));
        if driver == MACOSVM && format.is_some_and(|format| format != DiskFormat::Raw) {
            faults.add("disk_format", "is not raw, and macosvm opens raw disks only: convert the disk, or use tart");
        }
    } else {
        for (part, given) in [(Part::Config, new.config.is_some()), (Part::Nvram, new.nvram.is_some())] {
            if given {
                faults.add(part.name(), "means something to the drivers tart and macosvm only");
            }
        }
    }
    let cpus = new.cpus.or(config.map(|c| c.cpus)).unwrap_or(2);
    if !(1..=MOST_CPUS).contains(&cpus) {
        faults.add("cpus", format!("must be from 1 to {MOST_CPUS}"));
    }
    let memory_mib = new.memory_mib.or(config.map(TartConfig::memory_mib)).unwrap_or(2048);
    if !(1..=MOST_MEMORY_MIB).contains(&memory_mib) {
        faults.add("memory_mib", format!("must be from 1 to {MOST_MEMORY_MIB}"));
    }
    let (usual_user, usual_handover) = match driver.as_str() {
        TART => ("admin", Handover::Agent),
        MACOSVM => ("admin", Handover::Ssh),
        _ => ("runner", Handover::Seed),
    };
    let user = new.user.clone().unwrap_or_else(|| usual_user.to_owned());
    let user_starts_well = user.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !user_starts_well
        || user.len() > 32
        || !user.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    {
        faults.add("user", "must match [A-Za-z_][A-Za-z0-9._-]{0,31}");
    }
    if driver == CLOUD_HYPERVISOR && new.kernel.is_none() && new.firmware.is_none() {
        faults.add("kernel", "is needed by the driver cloud-hypervisor, which has no BIOS: name it, or a `firmware`");
    }
    if new.kernel.is_none() {
        if new.initramfs.is_some() {
            faults.add("initramfs", "needs a kernel, name it in `kernel`");
        }
        if new.cmdline.is_some() {
            faults.add("cmdline", "needs a kernel, name it in `kernel`");
        }
    }
    if new.cmdline.as_ref().is_some_and(|c| c.len() > 2047 || c.chars().any(char::is_control)) {
        faults.add("cmdline", "must be one line of at most 2047 bytes");
    }
    let handover = new.handover.unwrap_or(usual_handover);
    match handover {
        Handover::Seed if os == GuestOs::Macos || is_apple => {
            faults.add("handover", "must be ssh or agent: this guest reads no NoCloud seed");
        }
        Handover::Agent if driver == QEMU || driver == CLOUD_HYPERVISOR => {
            faults.add(
                "handover",
                format!("must be seed or ssh: the driver {driver} has no channel to an agent in the guest"),
            );
        }
        Handover::Agent if driver == MACOSVM => {
            faults.add("handover", "must be ssh: the driver macosvm has no channel to an agent in the guest");
        }
        Handover::Seed | Handover::Ssh | Handover::Agent => {}
    }
    let by_agent = handover == Handover::Agent;
    if let Some(ready) = &new.ready
        && let Err(error) = ready.check().and_then(|()| ready.check_provisioning(by_agent))
    {
        for field in error.fields {
            faults.add("ready", format!("{} {}", field.pointer.trim_start_matches("/ready"), field.detail));
        }
    }
    CheckedTemplate {
        driver,
        os,
        arch: arch.unwrap_or(Arch::X86_64),
        disk_format: DiskFormat::Raw,
        cpus,
        memory_mib,
        handover,
        user,
        sources: Vec::new(),
    }
}

fn open(part: Part, path: &Path) -> Result<File, String> {
    if !path.is_absolute() {
        return Err("must be an absolute path".into());
    }
    let file = files::open_regular(path)?;
    let metadata = file.metadata().map_err(|e| format!("cannot be read: {}", e.kind()))?;
    if part.is_secret() && metadata.mode() & 0o077 != 0 {
        return Err("can be read by others, make it private with `chmod 600`".into());
    }
    Ok(file)
}

/// Detects the format. The content alone does not decide: a raw disk contains what its guest wrote, and a guest that
/// writes a qcow2 header must not turn its disk into one.
fn format_of(path: &Path, file: &File) -> Result<DiskFormat, String> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match (qcow2::has_magic(file), extension == "qcow2") {
        (true, true) => Ok(DiskFormat::Qcow2),
        (false, false) => Ok(DiskFormat::Raw),
        (true, false) => {
            Err("is not named, and the disk is a qcow2 image that is not called so: say qcow2 or raw".into())
        }
        (false, true) => Err("is not named, and the disk is called qcow2 and is none: say raw if it is raw".into()),
    }
}

/// Validates a file of this kind. For a disk, returns its size in the guest.
pub(super) fn content(
    part: Part,
    disk_format: DiskFormat,
    file: &File,
    stop: &StopFlag,
) -> Result<Option<u64>, String> {
    let size = file.metadata().map_err(|e| format!("cannot be read: {}", e.kind()))?.len();
    if size == 0 {
        return Err("is empty".into());
    }
    match part {
        Part::Disk => match disk_format {
            DiskFormat::Qcow2 => {
                let budget = ReadBudget::bounded_by(file).map_err(|e| format!("cannot be read: {}", e.kind()))?;
                qcow2::check(file, &budget.until(stop)).map(Some)
            }
            DiskFormat::Raw if qcow2::has_magic(file) => {
                Err("is a qcow2 image and not a raw one, set disk_format to qcow2".into())
            }
            DiskFormat::Raw => whole_sectors(size).map(|()| Some(size)),
            // Only macOS knows the size in the guest; the file is at least as large as the data written to it.
            DiskFormat::Asif => Ok(Some(size)),
        },
        Part::Kernel | Part::Initramfs | Part::Firmware | Part::Nvram => Ok(None),
        Part::Config => tart_config(file).map(|_| None),
        Part::SshKey => private_key(file, size).map(|()| None),
        Part::SshPassword => password(file, size).map(|()| None),
    }
}

fn tart_config(file: &File) -> Result<TartConfig, String> {
    let size = file.metadata().map_err(|e| format!("cannot be read: {}", e.kind()))?.len();
    if size > tart_config::LARGEST {
        return Err(format!("has {size} bytes and is no Tart VM's config.json"));
    }
    TartConfig::parse(&whole(file, size)?).map_err(|what| format!("is not a Tart VM's config.json: {what}"))
}

fn password(file: &File, size: u64) -> Result<(), String> {
    if size > LARGEST_PASSWORD {
        return Err(format!("has {size} bytes, a password has at most {LARGEST_PASSWORD}"));
    }
    match std::str::from_utf8(&whole(file, size)?).map(|text| text.trim_end_matches(['\r', '\n'])) {
        Ok("") => Err("is empty".into()),
        Ok(text) if text.contains(char::is_control) => Err("must be one line".into()),
        Ok(_) => Ok(()),
        Err(_) => Err("is not text".into()),
    }
}

fn whole(file: &File, size: u64) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|e| format!("cannot be read: {}", e.kind()))?;
    Ok(bytes)
}

fn private_key(file: &File, size: u64) -> Result<(), String> {
    let not_a_key = || "is not a private key that OpenSSH would read".to_owned();
    if size > LARGEST_KEY {
        return Err(not_a_key());
    }
    let bytes = whole(file, size)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| not_a_key())?;
    match russh::keys::decode_secret_key(text, None) {
        // An OpenSSH key file with a passphrase can be parsed, but only its public half is readable.
        Ok(key) if !key.is_encrypted() => Ok(()),
        Ok(_) | Err(russh::keys::Error::KeyIsEncrypted) => {
            Err("has a passphrase, remove it with `ssh-keygen -p`".into())
        }
        Err(_) => Err(not_a_key()),
    }
}

impl NewTemplate {
    /// The file of this part.
    pub(super) fn with_part(mut self, part: Part, path: PathBuf) -> Self {
        let file = match part {
            Part::Disk => {
                self.disk = path;
                return self;
            }
            Part::Kernel => &mut self.kernel,
            Part::Initramfs => &mut self.initramfs,
            Part::Firmware => &mut self.firmware,
            Part::Config => &mut self.config,
            Part::Nvram => &mut self.nvram,
            Part::SshKey => &mut self.ssh_key,
            Part::SshPassword => &mut self.ssh_password,
        };
        *file = Some(path);
        self
    }
}
