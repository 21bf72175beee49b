//! A directory for what is made on the way into the catalog.

use std::path::Path;

use super::{Catalog, Staged, storage};
use crate::domain::Result;

/// On the catalog's file system, so that what is made here goes into it by copy-on-write. It goes when this is dropped; what a
/// crash leaves is swept at the next start.
#[derive(Debug)]
pub(in crate::templates) struct CatalogWorkspace(Staged);

impl CatalogWorkspace {
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

impl Catalog {
    pub(in crate::templates) async fn workspace(&self) -> Result<CatalogWorkspace> {
        self.blocking(|root| root.stage().map(CatalogWorkspace).map_err(storage)).await
    }

    /// Whether a resolved path lies in the catalog's own directory.
    pub(in crate::templates) fn holds(&self, path: &Path) -> bool {
        let dir = &self.root.dir;
        path.starts_with(dir) || dir.canonicalize().is_ok_and(|dir| path.starts_with(dir))
    }
}
