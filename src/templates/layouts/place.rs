//! Sources and destinations of images.
//!
//! All conversions work on local files. This module turns the caller's source into a local file, and brings a
//! finished file to the caller's destination; only it knows about other places than this host.

use std::path::{Component, Path, PathBuf};

use super::{
    WrittenFile,
    stage::{ExportStage, Finished},
};
use crate::{
    domain::{Code, Error, Result},
    registry::s3::{Location, LocationError},
    templates::Catalog,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportDestination {
    /// Absolute and normalised.
    File(PathBuf),
    /// In S3. The caller downloads it before an import, and uploads it after an export; here it is not supported.
    Object { at: Location, overwrite: bool },
}

/// For users of conversions.
fn not_here(at: &Location) -> Error {
    Error::internal(format!("{at} is not on this host"))
}

impl ExportDestination {
    pub fn parse(text: &str) -> Result<ExportDestination> {
        let wrong = |what: &str| Err(Error::new(Code::RequestInvalid, format!("path {what}")).field("/path", what));
        if Location::is_meant(text) {
            let at = text.parse().map_err(|error: LocationError| {
                Error::new(Code::RequestInvalid, error.to_string()).field("/path", "is not an object in S3")
            })?;
            return Ok(ExportDestination::Object { at, overwrite: false });
        }
        if text.split_once("://").is_some_and(|(scheme, _)| scheme.bytes().all(|b| b.is_ascii_alphanumeric())) {
            return wrong("must be a path on the service's host, or s3://bucket/key");
        }
        let path = Path::new(text);
        if !path.is_absolute() || text.contains('\0') {
            // The service's working directory is not the caller's.
            return wrong("must be an absolute path on the service's host");
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return wrong("must not contain `..`");
        }
        Ok(ExportDestination::File(path.components().collect()))
    }

    /// Whether an existing target may be replaced.
    pub fn overwriting(self, overwrite: bool) -> Result<ExportDestination> {
        match self {
            ExportDestination::Object { at, .. } => Ok(ExportDestination::Object { at, overwrite }),
            ExportDestination::File(_) if overwrite => {
                let what = "means nothing on the host, where nothing is overwritten: leave it out";
                Err(Error::new(Code::RequestInvalid, format!("overwrite {what}")).field("/overwrite", what))
            }
            file => Ok(file),
        }
    }

    /// The source as a file or directory of this host. `_work` is for downloaded sources; it is removed after the
    /// import.
    pub(super) async fn obtain(&self, _work: &Path) -> Result<PathBuf> {
        match self {
            ExportDestination::File(path) => Ok(path.clone()),
            ExportDestination::Object { at, .. } => Err(not_here(at)),
        }
    }

    /// A directory for the exported files, as close to the target as possible.
    pub(super) async fn stage(&self, catalog: &Catalog) -> Result<ExportStage> {
        match self {
            ExportDestination::File(path) => {
                let (path, catalog) = (path.clone(), catalog.clone());
                super::blocking(move || ExportStage::beside(&path, &catalog)).await
            }
            ExportDestination::Object { at, .. } => Err(not_here(at)),
        }
    }

    /// Moves the finished files to the target. The first has the target's own name and is moved last, so a file under
    /// that name is complete. `suffix` distinguishes the others.
    pub(super) async fn deliver(&self, stage: ExportStage, files: Vec<Finished>) -> Result<Vec<WrittenFile>> {
        match self {
            ExportDestination::File(_) => super::blocking(move || stage.publish_files(&files)).await,
            ExportDestination::Object { at, .. } => Err(not_here(at)),
        }
    }
}
