//! `tart clone`: copies in `tmp`, then moves over whatever is there, a running VM included.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use crate::{
    cli, config,
    failure::Failure,
    home::Home,
    oci,
    vm::{State, Vm},
};

pub fn clone(home: &Home, source: &str, target: &str) -> Result<(), Failure> {
    let from = match oci::Remote::parse(source) {
        Some(remote) => {
            let vm = Vm::at(remote.path(home), source);
            if !vm.initialised() {
                return Err(Failure::not_simulated("pull"));
            }
            vm
        }
        None => Vm::open(home, source)?,
    };
    debug_assert!(!cli::is_remote(target));
    let (stage, _held) = home.stage()?;
    let lock = home.lock()?;
    let mut wanted = from.config()?;
    let suspended = from.state() == State::Suspended;
    // One configuration anywhere that cannot be read, and no clone works at all.
    let mut taken = false;
    for vm in home.local()? {
        taken |= vm.config()?.mac_address == wanted.mac_address;
    }
    let io = |e: std::io::Error| Failure::io("failed to clone", &e);
    for file in ["config.json", "nvram.bin"] {
        fs::copy(from.dir.join(file), stage.join(file)).map_err(io)?;
    }
    copy_disk(&from.disk(), &stage.join("disk.img")).map_err(io)?;
    if from.snapshot().exists() {
        fs::copy(from.snapshot(), stage.join("state.vzvmsave")).map_err(io)?;
    }
    if taken && !suspended {
        wanted.mac_address = config::random_mac();
        wanted.write(&stage.join("config.json"))?;
        let _ = fs::remove_file(stage.join("state.vzvmsave"));
    }
    place(home, &stage, target).map_err(io)?;
    drop(lock);
    Ok(())
}

/// Copy-on-write as on a Mac; where the file system cannot, what is not a hole.
fn copy_disk(from: &Path, to: &Path) -> std::io::Result<()> {
    if reflink_copy::reflink(from, to).is_ok() {
        return Ok(());
    }
    let (source, mut target) = (File::open(from)?, File::create(to)?);
    let end = source.metadata()?.len();
    target.set_len(end)?;
    let mut at = 0;
    while let Some((data, hole)) = next_data(&source, at, end)? {
        (&source).seek(SeekFrom::Start(data))?;
        target.seek(SeekFrom::Start(data))?;
        std::io::copy(&mut (&source).take(hole - data), &mut target)?;
        at = hole;
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn next_data(file: &File, at: u64, _: u64) -> std::io::Result<Option<(u64, u64)>> {
    use rustix::fs::{SeekFrom, seek};
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some((data, seek(file, SeekFrom::Hole(data))?))),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn next_data(_: &File, at: u64, end: u64) -> std::io::Result<Option<(u64, u64)>> {
    Ok((at < end).then_some((at, end)))
}

/// Moves a finished directory to where VMs are, without asking what was there.
pub fn place(home: &Home, stage: &Path, name: &str) -> std::io::Result<()> {
    let target = home.vm(name).dir;
    if target.exists() {
        // In one piece first, as the real replacement is: what ran there runs on, without a name.
        let old = home.tmp().join(format!("replaced-{}", uuid::Uuid::new_v4()));
        fs::rename(&target, &old)?;
        fs::rename(stage, &target)?;
        return fs::remove_dir_all(&old);
    }
    fs::rename(stage, &target)
}
