//! Where an image is taken from, and where it is brought to.
//!
//! Everything that converts works on local files. A place turns what the caller named into one, and takes a finished one to
//! where the caller wants it; it is the only part that knows of more than this host.

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
    /// Absolute, and without detours.
    File(PathBuf),
    /// In S3. Whoever imports fetches it first, and whoever exports takes it there afterwards: here it is nothing.
    Object { at: Location, overwrite: bool },
}

/// For those who convert files.
fn not_here(at: &Location) -> Error {
    Error::internal(format!("{at} is not on this host"))
}

impl ExportDestination {
    pub fn parse(text: &str) -> Result<ExportDestination> {
        let wrong = |what: &str| Err(Error::new(Code::RequestInvalid, format!("path {what}")).field("/path", what));
        if Location::is_meant(text) {
            let at = text.parse().map_err(|error: LocationError| {
                Error::new(Code::RequestInvalid, error.to_string()).field("/path", "is no object in S3")
            })?;
            return Ok(ExportDestination::Object { at, overwrite: false });
        }
        if text.split_once("://").is_some_and(|(scheme, _)| scheme.bytes().all(|b| b.is_ascii_alphanumeric())) {
            return wrong("must be on the service's host, or s3://bucket/key: no other place is known here");
        }
        let path = Path::new(text);
        if !path.is_absolute() || text.contains('\0') {
            // Relative to what? The service's directory is not the caller's.
            return wrong("must be an absolute path on the service's host");
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return wrong("must not lead upwards: leave `..` out");
        }
        Ok(ExportDestination::File(path.components().collect()))
    }

    /// Whether what is there may be replaced.
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

    /// The source as a file or directory of this host. `_work` is where one from elsewhere would be put; it goes when the import
    /// is over.
    pub(super) async fn obtain(&self, _work: &Path) -> Result<PathBuf> {
        match self {
            ExportDestination::File(path) => Ok(path.clone()),
            ExportDestination::Object { at, .. } => Err(not_here(at)),
        }
    }

    /// A directory in which what is exported is made, as near to its target as can be.
    pub(super) async fn stage(&self, catalog: &Catalog) -> Result<ExportStage> {
        match self {
            ExportDestination::File(path) => {
                let (path, catalog) = (path.clone(), catalog.clone());
                super::blocking(move || ExportStage::beside(&path, &catalog)).await
            }
            ExportDestination::Object { at, .. } => Err(not_here(at)),
        }
    }

    /// Takes the finished files to their target. The first has the target's own name and comes last: what is found under it is
    /// complete. `suffix` tells the others from it.
    pub(super) async fn deliver(&self, stage: ExportStage, files: Vec<Finished>) -> Result<Vec<WrittenFile>> {
        match self {
            ExportDestination::File(_) => super::blocking(move || stage.publish_files(&files)).await,
            ExportDestination::Object { at, .. } => Err(not_here(at)),
        }
    }
}
