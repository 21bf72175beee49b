//! The catalog's interface for pushes: a lease on the template while it is read, a working directory, and the known
//! images.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{Catalog, Root, Staged, no_template, storage};
use crate::{
    domain::{Code, Error, Result, Template},
    templates::manifest::{FileEntry, Origin, Part, TemplateManifest},
};

/// A template that is not removed while this exists.
#[derive(Debug)]
pub(in crate::templates) struct PushLease {
    pub template: Template,
    manifest: TemplateManifest,
    dir: PathBuf,
    /// A shared lock, as for clones.
    _disk: File,
}

impl PushLease {
    /// The image that it was pulled from.
    pub fn origin(&self) -> Option<&Origin> {
        self.manifest.image.as_ref()
    }

    pub fn entry(&self, part: Part) -> Option<&FileEntry> {
        self.manifest.files.get(part.name())
    }

    pub fn path(&self, part: Part) -> PathBuf {
        self.dir.join(part.name())
    }
}

/// A working directory. Removed when this is dropped, or at the next start after a crash.
pub(in crate::templates) struct Spool(Staged);

impl Spool {
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

impl Catalog {
    pub(in crate::templates) async fn hold(&self, name_or_digest: &str) -> Result<PushLease> {
        let wanted = name_or_digest.to_owned();
        self.blocking(move |root| root.hold(&wanted)).await
    }

    pub(in crate::templates) async fn spool(&self) -> Result<Spool> {
        self.blocking(|root| root.stage().map(Spool).map_err(storage)).await
    }

    /// The images of this registry from which templates of the catalog were pulled, newest first.
    pub(in crate::templates) async fn images_of(&self, registry: &str) -> Result<Vec<Origin>> {
        let prefix = format!("{registry}/");
        self.blocking(move |root| {
            let mut found = Vec::new();
            for (digest, manifest) in root.published().map_err(Error::internal)? {
                let Some(origin) = manifest.image.filter(|image| image.repository.starts_with(&prefix)) else {
                    continue;
                };
                let changed =
                    fs::metadata(root.place(&digest)?).map(|m| (m.ctime(), m.ctime_nsec())).unwrap_or_default();
                found.push((changed, origin));
            }
            found.sort_by(|(a, x), (b, y)| (b, &y.digest).cmp(&(a, &x.digest)));
            Ok(found.into_iter().map(|(_, origin)| origin).collect())
        })
        .await
    }
}

impl Root {
    fn hold(&self, wanted: &str) -> Result<PushLease> {
        let digest = self.get(wanted)?.digest;
        let dir = self.place(&digest)?;
        let gone = || no_template(wanted);
        let disk = File::open(dir.join(Part::Disk.name())).map_err(|_| gone())?;
        // An exclusive lock means that it is being removed.
        disk.try_lock_shared().map_err(|_| gone())?;
        // It may have been removed between the two.
        let template = self.get(wanted)?;
        if template.digest != digest {
            return Err(Error::new(Code::TemplateInUse, format!("{wanted} is being replaced")).retry_after(1));
        }
        let manifest = self.manifest(&digest).map_err(Error::internal)?;
        Ok(PushLease { template, manifest, dir, _disk: disk })
    }
}
