//! What the program looks at before it boots: kernels and disk images.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use crate::{
    Chain,
    config::{Disk, ImageType},
};

fn chain(texts: &[&str]) -> Chain {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// A bzImage, or an ELF file with a PVH note.
pub fn check_kernel(path: &Path) -> Result<(), Chain> {
    let file = File::open(path).map_err(|error| chain(&["Cannot open kernel file", &error.to_string()]))?;
    let mut head = Vec::new();
    let failed = |text: &str| {
        let whole = format!("Kernel Loader: failed to load bzImage kernel image: {text}");
        chain(&["Cannot load the kernel into memory", &whole, text])
    };
    file.take(1 << 20).read_to_end(&mut head).map_err(|_| failed("Kernel Loader: Unable to read bzImage header"))?;
    if head.starts_with(b"\x7fELF") {
        // Two segments, of which the second is the note: as test kernels are.
        let note = head.windows(8).position(|window| window == b"\x12\0\0\0Xen\0");
        let is_note = head.get(64 + 56..64 + 60) == Some(&4u32.to_le_bytes()[..]);
        return if note.is_some() && is_note { Ok(()) } else { Err(chain(&["Kernel lacks PVH header"])) };
    }
    if head.get(0x202..0x206) == Some(b"HdrS") { Ok(()) } else { Err(failed("Kernel Loader: Invalid bzImage")) }
}

/// Opens it, and its backing file.
pub fn open_disk(disk: &Disk) -> Result<File, Chain> {
    let manager = "Error from device manager";
    let Some(path) = &disk.path else {
        return Err(chain(&[manager, "No disk path was specified when one was expected"]));
    };
    let failed = |kind: &str, rest: &[&str]| {
        let what = format!("{kind} (path={} op=open)", path.display());
        chain(&[&[manager, "Cannot open disk path", &what], rest].concat())
    };
    let io = |error: io::Error| failed("I/O error", &[&error.to_string()]);
    let file = File::options().read(true).write(!disk.readonly).open(path).map_err(io)?;
    let mut head = [0; 20];
    let qcow2 = file.read_exact_at(&mut head, 0).is_ok() && head.starts_with(b"QFI\xfb");
    if let Some(backing) = backing_file(&file, &head, path).map_err(io)? {
        if !disk.backing_files {
            return Err(failed("Unsupported feature", &["Maximum disk nesting depth exceeded"]));
        }
        if let Err(error) = File::open(&backing) {
            let text = format!("Backing file I/O error: {}", backing.display());
            return Err(failed("I/O error", &[&text, &error.to_string()]));
        }
    }
    match (disk.image_type, qcow2) {
        (ImageType::Qcow2, true) | (ImageType::Raw, false) => {}
        (ImageType::Unknown, _) => eprintln!("cloud-hypervisor: WARN:Autodetection of the image type is deprecated"),
        (ImageType::Qcow2 | ImageType::Raw, _) => {
            let (specified, detected) = if qcow2 { ("raw", "qcow2") } else { ("qcow2", "raw") };
            let text = "Disk image type does not match expected type";
            return Err(chain(&[manager, &format!("{text}: specified = {specified}, detected = {detected}")]));
        }
        _ => return Err(chain(&[manager, "this image type is not simulated"])),
    }
    Ok(file)
}

/// Where a qcow2 file says that it is; relative to the file itself.
fn backing_file(file: &File, head: &[u8; 20], path: &Path) -> io::Result<Option<PathBuf>> {
    let [.., a, b, c, d, e, f, g, h, s, t, u, v] = *head;
    let (offset, size) = (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u32::from_be_bytes([s, t, u, v]));
    if !head.starts_with(b"QFI\xfb") || offset == 0 {
        return Ok(None);
    }
    let mut name = vec![0; size.min(1023) as usize];
    file.read_exact_at(&mut name, offset)?;
    let name = String::from_utf8_lossy(&name).into_owned();
    Ok(Some(path.parent().unwrap_or(Path::new("/")).join(name)))
}

/// Locked while the file is open.
pub fn lock_disk(disk: &Disk, file: &File) -> Result<(), Chain> {
    let locked = if disk.readonly { file.try_lock_shared() } else { file.try_lock() };
    locked.map_err(|_| {
        let what = if disk.readonly { "Read" } else { "Write" };
        let path = disk.path.as_deref().unwrap_or(Path::new(""));
        chain(&[
            "Error locking disk images: Another instance likely holds a lock",
            "Cannot lock images of all block devices",
            &format!("Failed to get {what} lock for disk image: {}", path.display()),
            "The file is already locked",
        ])
    })
}
