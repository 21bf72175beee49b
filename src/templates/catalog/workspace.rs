//! A working directory for new content of the catalog.

use std::path::Path;

use super::{Catalog, Staged, storage};
use crate::domain::Result;

/// On the catalog's file system, so that files move into the catalog by copy-on-write. Removed when this is dropped;
/// after a crash, the next start removes it.
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

    /// Whether a resolved path is inside the catalog's directory.
    pub(in crate::templates) fn holds(&self, path: &Path) -> bool {
        let dir = &self.root.dir;
        path.starts_with(dir) || dir.canonicalize().is_ok_and(|dir| path.starts_with(dir))
    }
}
