//! Runs `qemu-img`, which converts and compares images.
//!
//! It follows every file name in an image. It is therefore run only on images whose names were checked before.

use std::{ffi::OsStr, path::Path};

use super::Tools;
use crate::{
    domain::{Code, Error, Result, template::DiskFormat},
    platform::{
        files::SpaceGuard,
        process::{Command, CommandError},
    },
    templates::catalog::storage,
};

const SHOWN: usize = 500;

/// Creates `to`, which must not exist, with the complete content of `from` and its backing files. qemu-img is ended
/// when it has written so much that too little is free; the caller removes what it wrote.
pub(in crate::templates) async fn convert(
    tools: &Tools,
    space: &SpaceGuard,
    from: (&Path, DiskFormat),
    to: (&Path, DiskFormat),
) -> Result<()> {
    let format = [OsStr::new("-f"), OsStr::new(from.1.as_str()), OsStr::new("-O"), OsStr::new(to.1.as_str())];
    let mut args = vec![OsStr::new("convert"), OsStr::new("-q")];
    args.extend(format);
    args.extend([from.0.as_os_str(), to.0.as_os_str()]);
    let converted = tokio::select! {
        biased;
        converted = run(tools, &args) => converted?,
        full = space.exhausted() => return Err(storage(full)),
    };
    match converted {
        (Some(0), _) => {}
        (_, said) => {
            // The disk may have been full before that was noticed. Then the image is not to blame.
            if let Some(full) = space.shortage().map_err(Error::internal)? {
                return Err(storage(full));
            }
            let what = format!("could not be converted: qemu-img said {said:?}");
            return Err(Error::new(Code::TemplateInvalid, format!("the image {what}")).field("/path", what));
        }
    }
    // Its output may still be in the page cache.
    let to = to.0.to_owned();
    super::blocking(move || std::fs::File::open(to).and_then(|file| file.sync_all()).map_err(Error::internal)).await
}

/// Whether a guest would read the same content from both.
pub(super) async fn compare(tools: &Tools, one: (&Path, DiskFormat), other: (&Path, DiskFormat)) -> Result<()> {
    let args = [
        OsStr::new("compare"),
        OsStr::new("-q"),
        OsStr::new("-f"),
        OsStr::new(one.1.as_str()),
        OsStr::new("-F"),
        OsStr::new(other.1.as_str()),
        one.0.as_os_str(),
        other.0.as_os_str(),
    ];
    match run(tools, &args).await? {
        (Some(0), _) => Ok(()),
        (Some(1), _) => Err(Error::internal("qemu-img converted an image into another one")),
        (_, said) => Err(Error::internal(format!("qemu-img could not compare two images: {said:?}"))),
    }
}

/// The status (`None`: a signal), and the end of standard error.
async fn run(tools: &Tools, args: &[&OsStr]) -> Result<(Option<i32>, String)> {
    // Its duration depends on the image; it is ended when the caller disconnects.
    let output = match Command::without_deadline(&tools.qemu_img).args(args).current_dir("/").run().await {
        Ok(output) => output,
        Err(error @ CommandError::Missing { .. }) => {
            let detail = "qemu-img is needed for this and is not installed on the service's host";
            return Err(Error::new(Code::HostUnavailable, detail).cause(error));
        }
        Err(error) => return Err(Error::internal(error)),
    };
    let said = &output.stderr_tail;
    let start = said.char_indices().rev().nth(SHOWN).map_or(0, |(at, _)| at);
    Ok((output.status.code(), said[start..].to_owned()))
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, time::Duration};

    use super::*;
    use crate::platform::files::{free, small_disk as small};

    #[tokio::test]
    async fn an_image_that_does_not_fit_is_the_hosts_fault_and_its_conversion_ends() {
        let Some(disk) = small::small_disk(
            module_path!(),
            "an_image_that_does_not_fit_is_the_hosts_fault_and_its_conversion_ends",
            64,
        ) else {
            return;
        };
        let source = tempfile::tempdir().unwrap();
        let image = source.path().join("image");
        let mut file = std::fs::File::create(&image).unwrap();
        for n in 0..96_u8 {
            file.write_all(&vec![n + 1; 1 << 20]).unwrap();
        }
        let tools = Tools { qemu_img: "qemu-img".into() };
        // A limit that is noticed while it writes, and none: then its own write fails.
        for keep_free in [62 << 20, 0] {
            let space = SpaceGuard::new(disk.clone(), keep_free);
            let to = disk.join("converted");
            let from = (image.as_path(), DiskFormat::Raw);
            let error = convert(&tools, &space, from, (&to, DiskFormat::Qcow2)).await.unwrap_err();
            assert_eq!(error.code, Code::HostFull, "{error} {:?}", error.cause);
            std::fs::remove_file(&to).unwrap();
            // It was killed, so it neither writes any more nor keeps the removed file open.
            let freed = async {
                while free(&disk).unwrap() <= 63 << 20 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), freed).await.expect("the space is free again");
        }
        // What fits is converted, and what is no image is not the host's fault.
        let space = SpaceGuard::new(disk.clone(), 1 << 20);
        std::fs::write(&image, vec![7; 1 << 20]).unwrap();
        let to = disk.join("fits");
        convert(&tools, &space, (&image, DiskFormat::Raw), (&to, DiskFormat::Qcow2)).await.unwrap();
        let broken = convert(&tools, &space, (&image, DiskFormat::Qcow2), (&disk.join("no"), DiskFormat::Raw)).await;
        assert_eq!(broken.unwrap_err().code, Code::TemplateInvalid);
    }
}
