//! What the program looks at before it boots: kernels and disk images.

use std::{fs::File, io::Read as _, path::Path};

use crate::{
    Chain,
    config::{Disk, ImageType},
};

/// A bzImage, or an ELF file with a PVH note.
pub fn check_kernel(path: &Path) -> Result<(), Chain> {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(1 << 20).read_to_end(&mut head));
    read.map_err(|error| vec!["Cannot open kernel file".to_owned(), error.to_string()])?;
    let bzimage = head.get(0x202..0x206) == Some(b"HdrS");
    let pvh = head.starts_with(b"\x7fELF") && head.windows(8).any(|window| window == b"\x12\0\0\0Xen\0");
    if bzimage || pvh {
        return Ok(());
    }
    Err(vec!["Cannot load the kernel into memory".to_owned(), "Kernel lacks PVH header".to_owned()])
}

/// Locked while the returned file is open.
pub fn open_disk(disk: &Disk) -> Result<File, Chain> {
    let failed = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Chain>();
    let manager = "Error from device manager";
    let Some(path) = &disk.path else { return Err(failed(&[manager, "No disk path was specified"])) };
    let file = File::options().read(true).write(!disk.readonly).open(path);
    let file = file.map_err(|error| failed(&[manager, "Cannot open disk path", &error.to_string()]))?;
    let mut head = [0; 16];
    let length = std::io::Read::by_ref(&mut &file).read(&mut head).unwrap_or(0);
    let qcow2 = head[..length].starts_with(b"QFI\xfb");
    match disk.image_type {
        ImageType::Qcow2 if !qcow2 => return Err(failed(&[manager, "Failed to parse QCOW header", "Invalid magic"])),
        ImageType::Qcow2 => {
            let backing = head[8..16].iter().any(|byte| *byte != 0);
            if backing && !disk.backing_files {
                return Err(failed(&[manager, "Failed to open QCOW2 image", "Backing file support is disabled"]));
            }
        }
        ImageType::Raw => {}
        ImageType::Unknown => eprintln!("cloud-hypervisor: WARN:Autodetection of the image type is deprecated"),
        ImageType::FixedVhd | ImageType::Vhdx => return Err(failed(&[manager, "this image type is not played"])),
    }
    let locked = if disk.readonly { file.try_lock_shared() } else { file.try_lock() };
    locked.map_err(|_| {
        let what = if disk.readonly { "Read" } else { "Write" };
        let lock = format!("Failed to get {what} lock for disk image: {}", path.display());
        failed(&[
            "Error locking disk images: Another instance likely holds a lock",
            &lock,
            "The file is already locked",
        ])
    })?;
    Ok(file)
}
